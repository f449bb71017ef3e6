"""`settlement_records`: one row per report line, posted and matched to its instruction. Only a report line settles."""

import dagster as dg
import pandas as pd

from payments_pipeline.defs.check_results import check_result, check_spec, schema_result
from payments_pipeline.defs.io_managers import COLUMN_SCHEMA_KEY, WRITE_MODE_KEY, column_schema
from payments_pipeline.defs.resources import Inputs, MoneyZone, partition_day, run_info
from payments_pipeline.domain.checks import report_not_recorded
from payments_pipeline.domain.schemas import SETTLEMENT_RECORDS
from payments_pipeline.storage import checks
from payments_pipeline.storage.settlement_records import take_report_in

NAME = SETTLEMENT_RECORDS.name


def settlement_records(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        group_name="settlement",
        kinds={"postgres"},
        owners=["team:payments"],
        io_manager_key="postgres",
        dagster_type=dg.Any,
        description=SETTLEMENT_RECORDS.description,
        metadata={WRITE_MODE_KEY: "insert_once", COLUMN_SCHEMA_KEY: column_schema(SETTLEMENT_RECORDS)},
        check_specs=[
            check_spec(match_days, NAME, "schema", "The frame is what is declared."),
            check_spec(
                match_days,
                NAME,
                "equal_reports",
                "Each report line is recorded once, with its own amount.",
                blocking=True,
            ),
            check_spec(
                match_days, NAME, "all_matched", "Each report line belongs to an instruction, a fee or a funding."
            ),
        ],
    )
    def run(
        context: dg.AssetExecutionContext, inputs: Inputs, money_zone: MoneyZone, settlement_reports: pd.DataFrame
    ) -> dg.MaterializeResult:
        lineage = settlement_reports.attrs
        pots = frozenset(f"pot:{competition_id}" for competition_id in inputs.reference().competitions.by_id)
        taken = take_report_in(
            money_zone.url,
            partition_day(context),
            lineage["processor"],
            settlement_reports,
            pd.DataFrame(lineage["balances"], columns=["currency", "opening_minor", "closing_minor"]),
            lineage["digest"],
            pots,
            run_info(context),
        )
        records, tables = taken.records, checks.DayTables(money_zone.url, partition_day(context))
        matched = tables(checks.MATCHED_LINES)["entry_reference"]
        outcomes = records["outcome"].value_counts()
        return dg.MaterializeResult(
            value=records,
            metadata={
                "new_lines": taken.new_lines,
                "entries_posted": taken.entries,
                "records": len(records),
                **{f"outcome {outcome}": int(count) for outcome, count in outcomes.items()},
            },
            check_results=[
                schema_result(NAME, records, SETTLEMENT_RECORDS),
                check_result(
                    NAME,
                    "equal_reports",
                    report_not_recorded(settlement_reports, records),
                    "the report and the records of this date differ: where the report lost or changed a line that was "
                    "taken in, what was posted of it stands, and the processor mends it; else run the day again",
                    checked=len(settlement_reports),
                ),
                check_result(
                    NAME,
                    "all_matched",
                    records[(records["outcome"] == "unmatched") & ~records["entry_reference"].isin(matched)],
                    "their cash is in suspense until they are matched: ask the processor what they are for",
                    checked=len(records),
                ),
            ],
        )

    return run
