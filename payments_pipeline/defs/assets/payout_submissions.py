"""`payout_submissions`: the only step that acts on the outside world."""

import logging

import dagster as dg
import pandas as pd

from payments_pipeline.defs.check_results import check_result, check_spec
from payments_pipeline.defs.resources import Inputs, MoneyZone, PayoutGateway, partition_day, run_info
from payments_pipeline.processors.dispatch import Dispatch
from payments_pipeline.storage import checks

NAME = "payout_submissions"
#: Says how far a long dispatch has come, as the run's log does, to whoever runs it in this process and listens.
PROGRESS = logging.getLogger("payments_pipeline.progress")


def payout_submissions(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        deps=["payout_instructions"],
        group_name="payouts",
        kinds={"postgres"},
        owners=["team:payments"],
        description="Each attempt to have an instruction carried out: approved ones sent, unknown ones asked about.",
        check_specs=[
            check_spec(match_days, NAME, "all_answered", "No instruction is without an answer from the processor."),
            check_spec(
                match_days,
                NAME,
                "none_refused",
                "No instruction was rejected by the processor or cancelled by the gate.",
            ),
            check_spec(
                match_days, NAME, "nothing_sent_to_a_party_on_hold", "Nothing was sent today to a party on hold."
            ),
        ],
    )
    def run(
        context: dg.AssetExecutionContext, inputs: Inputs, money_zone: MoneyZone, gateway: PayoutGateway
    ) -> dg.MaterializeResult:
        def tell(words: str) -> None:
            context.log.info(words)
            PROGRESS.info(words)

        day = partition_day(context)
        parties = inputs.reference().parties.frame
        dispatched = Dispatch(
            url=money_zone.url,
            day=day,
            processor=gateway.processor(),
            policy=money_zone.policy,
            zone=inputs.zone,
            run=run_info(context),
            progress=tell,
        )(parties)
        for words in filter(None, (dispatched.stopped, dispatched.doubts)):
            context.log.warning(words)
        tables = checks.DayTables(money_zone.url, day)
        attempts = tables(checks.ATTEMPTS_OF_DAY)
        unanswered = tables(checks.UNANSWERED)
        refused = tables(checks.REFUSED)
        not_active = parties.loc[parties["status"].astype(object) != "active", "party_id"].astype(object)
        sent = attempts["outcome"].ne("not_sent")
        return dg.MaterializeResult(
            metadata={
                "sent": dispatched.sent,
                "acknowledged": dispatched.acknowledged,
                "rejected": dispatched.rejected,
                "unavailable": dispatched.unavailable,
                "unknown": dispatched.unknown,
                "resolved": dispatched.resolved,
                "cancelled": dispatched.cancelled,
                "waiting": dispatched.waiting,
                "stopped": dispatched.stopped or "no",
                "doubts": dispatched.doubts or "none",
            },
            check_results=[
                check_result(
                    NAME,
                    "all_answered",
                    unanswered,
                    "these may have been carried out; every later dispatch asks about them, and none is sent blind",
                    checked=_instructions(attempts, unanswered),
                ),
                check_result(
                    NAME,
                    "none_refused",
                    refused,
                    "their items are open again for later days; mend the party's token, or ask the processor",
                    checked=_instructions(attempts, refused),
                    severity=dg.AssetCheckSeverity.WARN,
                ),
                check_result(
                    NAME,
                    "nothing_sent_to_a_party_on_hold",
                    attempts[sent & attempts["party_id"].isin(not_active)],
                    "the party went on hold after its instruction was sent, or this is a defect: look at both times",
                    checked=len(attempts),
                ),
            ],
        )

    return run


def _instructions(*tables: pd.DataFrame) -> int:
    return int(pd.concat([table["instruction_id"] for table in tables]).nunique())
