"""`payout_instructions`: the day's sweep."""

from datetime import datetime

import dagster as dg

from payments_pipeline.defs.check_results import check_result, check_spec
from payments_pipeline.defs.resources import Inputs, MoneyZone, PayoutGateway, partition_day, run_info
from payments_pipeline.domain.payout_instructions import WAIT_WORDS, WaitReason
from payments_pipeline.storage import checks
from payments_pipeline.storage.approvals import carry_out_accepted
from payments_pipeline.storage.payout_instructions import sweep_day_items

NAME = "payout_instructions"


def payout_instructions(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        deps=["ledger_entries", "refunds"],
        group_name="payouts",
        kinds={"postgres"},
        owners=["team:payments"],
        description="The day's sweep: one instruction per party and currency, with the open items that it claims.",
        check_specs=[
            check_spec(
                match_days, NAME, "equal_their_items", "Each instruction is for the net of its items.", blocking=True
            ),
            check_spec(
                match_days, NAME, "no_item_claimed_twice", "No item is under two live instructions.", blocking=True
            ),
            check_spec(
                match_days,
                NAME,
                "none_for_a_party_on_hold",
                "No instruction of the day pays a party on hold.",
                blocking=True,
            ),
            check_spec(match_days, NAME, "nothing_waits", "No open item waits for a person."),
        ],
    )
    def run(
        context: dg.AssetExecutionContext, inputs: Inputs, money_zone: MoneyZone, gateway: PayoutGateway
    ) -> dg.MaterializeResult:
        day = partition_day(context)
        parties = inputs.reference().parties.frame
        decided = carry_out_accepted(money_zone.url, datetime.now(inputs.zone).date(), run_info(context))
        swept = sweep_day_items(money_zone.url, day, parties, gateway.name, money_zone.policy, run_info(context))
        tables = checks.DayTables(money_zone.url, day)
        made = swept.plan.instructions
        waiting = tables(checks.WAITING)
        not_active = parties.loc[parties["status"].astype(object) != "active", "party_id"].astype(object)
        moved = made[made["direction"] != "none"]
        totals = moved.groupby(["currency", "direction"], as_index=False)[["amount_minor"]].sum()
        return dg.MaterializeResult(
            metadata={
                "instructions_created": len(made),
                "cancelled": swept.cancelled,
                "proposals_carried_out": len(decided.done),
                "open_items": swept.open_items,
                **{
                    f"{row['direction']}_minor {row['currency']}": int(row["amount_minor"])
                    for row in totals.to_dict("records")
                },
                **{
                    f"waiting {reason}": int(items)
                    for reason, items in waiting.groupby("reason")["items"].sum().items()
                },
            },
            check_results=[
                check_result(
                    NAME,
                    "equal_their_items",
                    tables(checks.INSTRUCTION_IS_NOT_ITS_ITEMS),
                    "an instruction is not the net of its items: a defect, report it; it is not sent",
                    checked=tables.count(checks.COUNT_OF_INSTRUCTIONS),
                ),
                check_result(
                    NAME,
                    "no_item_claimed_twice",
                    tables(checks.CLAIMED_TWICE),
                    "an item is under two live instructions: a defect, report it; run `payments-pipeline verify`",
                    checked=tables.count(checks.COUNT_OF_CLAIMS),
                ),
                check_result(
                    NAME,
                    "none_for_a_party_on_hold",
                    moved[moved["party_id"].isin(not_active)],
                    "an instruction pays a party that is not active: a defect, report it; dispatch cancels it",
                    checked=len(moved),
                ),
                check_result(
                    NAME,
                    "nothing_waits",
                    waiting.assign(what_to_do=[WAIT_WORDS[WaitReason(reason)] for reason in waiting["reason"]]),
                    "these items stay open and are swept again by later days; what_to_do says how",
                    checked=int(waiting["items"].sum()) + len(swept.plan.claims),
                    severity=dg.AssetCheckSeverity.WARN,
                ),
            ],
        )

    return run
