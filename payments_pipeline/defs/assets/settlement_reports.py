"""`settlement_reports`: what the processor reported on the date, as received. It has no upstream asset."""

import asyncio
from datetime import date

import dagster as dg

from payments_pipeline.defs.check_results import check_spec, schema_result
from payments_pipeline.defs.io_managers import COLUMN_SCHEMA_KEY, column_schema
from payments_pipeline.defs.resources import PayoutGateway, partition_day
from payments_pipeline.domain.schemas import SETTLEMENT_REPORTS
from payments_pipeline.processors.base import PayoutProcessor, SettlementReport

NAME = SETTLEMENT_REPORTS.name


async def _fetch(processor: PayoutProcessor, day: date) -> SettlementReport:
    async with processor:
        return await processor.report(day)


_CURE = "the processor's report is not one that can be taken in: ask the processor which of these lines holds"


def settlement_reports(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        group_name="settlement",
        kinds={"parquet", "s3"},
        owners=["team:payments"],
        io_manager_key="s3_parquet",
        dagster_type=dg.Any,
        metadata={COLUMN_SCHEMA_KEY: column_schema(SETTLEMENT_REPORTS)},
        description=SETTLEMENT_REPORTS.description,
        check_specs=[
            check_spec(
                match_days, NAME, "schema", "The report is what is declared; each line is stored once.", blocking=True
            )
        ],
    )
    def run(context: dg.AssetExecutionContext, gateway: PayoutGateway) -> dg.MaterializeResult:
        report = asyncio.run(_fetch(gateway.processor(), partition_day(context)))
        # A line reported twice under one reference, word for word, is one line.
        lines = report.lines.drop_duplicates(ignore_index=True)
        lines.attrs = {
            "processor": gateway.name,
            "digest": report.digest,
            "balances": report.balances.to_dict("records"),
        }
        cash = lines.groupby("currency", observed=True)["amount_minor"].sum()
        return dg.MaterializeResult(
            value=lines,
            metadata={
                "lines": len(lines),
                "lines_reported_twice": len(report.lines) - len(lines),
                **{f"cash_minor {currency}": int(amount) for currency, amount in cash.items()},
            },
            check_results=[schema_result(NAME, lines, SETTLEMENT_REPORTS, _CURE)],
        )

    return run
