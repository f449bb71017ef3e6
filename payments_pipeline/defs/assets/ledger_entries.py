"""`ledger_entries`: the difference between the day's shares and what is posted for them."""

import dagster as dg
import pandas as pd

from payments_pipeline.defs.assets.lineage import refuse_lost_rows, same_input
from payments_pipeline.defs.check_results import SHOWN, check_result, check_spec, markdown_table
from payments_pipeline.defs.resources import Certificates, Inputs, MoneyZone, partition_day, run_info
from payments_pipeline.domain.checks import posted_differs_from_shares
from payments_pipeline.storage import checks
from payments_pipeline.storage.ledger_entries import DayInput, post_day

NAME = "ledger_entries"


def ledger_entries(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        group_name="ledger",
        kinds={"postgres"},
        owners=["team:payments"],
        description="Balanced double-entry postings: the difference to what the day already posted.",
        check_specs=[
            check_spec(
                match_days,
                NAME,
                "balanced",
                "Debits equal credits in each currency of each journal of the day.",
                blocking=True,
            ),
            check_spec(
                match_days, NAME, "equals_shares", "What is posted for the day is what its shares say.", blocking=True
            ),
            check_spec(match_days, NAME, "no_posting_breaks", "No match of the day was left alone."),
        ],
    )
    def run(
        context: dg.AssetExecutionContext,
        inputs: Inputs,
        money_zone: MoneyZone,
        certificates: Certificates,
        match_results: pd.DataFrame,
        match_participants: pd.DataFrame,
        rejected_records: pd.DataFrame,
        participant_shares: pd.DataFrame,
    ) -> dg.MaterializeResult:
        day = partition_day(context)
        hashes = same_input(match_results, match_participants, rejected_records, participant_shares)
        refuse_lost_rows(match_results, match_participants, rejected_records)
        day_input = DayInput(match_results, match_participants, participant_shares, rejected_records, hashes)
        posted = post_day(money_zone.url, day, day_input, lambda: inputs.input_hashes(day), run_info(context))
        written = certificates.write(money_zone.url, day)
        tables = checks.DayTables(money_zone.url, day)
        breaks = tables(checks.POSTING_BREAKS)
        corrections = tables(checks.CORRECTIONS)
        corrections = corrections[corrections["posting"] == posted.seq].drop(columns=["match_day", "posting"])
        return dg.MaterializeResult(
            metadata={
                "entries_posted": posted.entries,
                "refund_entries_posted": posted.refund_entries,
                "matches_posted": len(posted.plan.matches),
                "matches_left_alone": len(breaks),
                "posting": posted.seq,
                "corrections": dg.MetadataValue.md(
                    markdown_table(corrections.head(SHOWN)) if len(corrections) else "none"
                ),
                "certificates_written": written,
            },
            check_results=[
                check_result(
                    NAME,
                    "balanced",
                    tables(checks.JOURNALS_OF_DAY),
                    "the ledger does not balance: nothing is sent until it does; run `payments-pipeline verify`",
                    checked=tables.count(checks.COUNT_OF_JOURNALS),
                ),
                check_result(
                    NAME,
                    "equals_shares",
                    posted_differs_from_shares(participant_shares, tables.posted(), frozenset(breaks["match_id"])),
                    "what is posted is not what the shares say: a defect of the program, report it",
                    checked=len(participant_shares),
                ),
                check_result(
                    NAME,
                    "no_posting_breaks",
                    breaks,
                    "what was posted for these matches stands and their unsent items wait; the words say what to do",
                    checked=len(match_results),
                ),
            ],
        )

    return run
