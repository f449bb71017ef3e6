"""`reconciliation`: ledger against instructions against settlements."""

import dagster as dg

from payments_pipeline.defs.check_results import check_result, check_spec, schema_result
from payments_pipeline.defs.io_managers import COLUMN_SCHEMA_KEY, WRITE_MODE_KEY, column_schema
from payments_pipeline.defs.resources import MoneyZone, PayoutGateway, partition_day
from payments_pipeline.domain.schemas import RECONCILIATION
from payments_pipeline.storage.reconciliation import reconcile_day

NAME = RECONCILIATION.name


def reconciliation(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        deps=["ledger_entries", "payout_submissions", "settlement_records"],
        group_name="settlement",
        kinds={"postgres"},
        owners=["team:payments"],
        io_manager_key="postgres",
        dagster_type=dg.Any,
        description=RECONCILIATION.description,
        metadata={WRITE_MODE_KEY: "replace_partition", COLUMN_SCHEMA_KEY: column_schema(RECONCILIATION)},
        check_specs=[
            check_spec(match_days, NAME, "schema", "The frame is what is declared."),
            check_spec(match_days, NAME, "no_breaks", "Ledger, instructions and settlements agree."),
            check_spec(match_days, NAME, "no_old_breaks", "No break is older than the policy admits."),
        ],
    )
    def run(context: dg.AssetExecutionContext, money_zone: MoneyZone, gateway: PayoutGateway) -> dg.MaterializeResult:
        policy = money_zone.policy
        rows = reconcile_day(money_zone.url, partition_day(context), gateway.name, policy)
        breaks = rows[rows["status"] == "break"]
        shown = breaks[["subject_type", "subject_id", "currency", "difference_minor", "age_days", "words"]]
        old = shown[shown["age_days"] >= policy.checks.break_age_days]
        return dg.MaterializeResult(
            value=rows,
            metadata={
                "matched": len(rows) - len(breaks),
                "breaks": len(breaks),
                "oldest_break_days": int(breaks["age_days"].max()) if len(breaks) else 0,
            },
            check_results=[
                schema_result(NAME, rows, RECONCILIATION),
                check_result(
                    NAME,
                    "no_breaks",
                    shown,
                    "each row's words say what to do",
                    checked=len(rows),
                    severity=dg.AssetCheckSeverity.WARN,
                ),
                check_result(
                    NAME,
                    "no_old_breaks",
                    old,
                    f"these are {policy.checks.break_age_days} days old or more: they need a person",
                    checked=len(rows),
                ),
            ],
        )

    return run
