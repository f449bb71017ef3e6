"""Sensor `grown_reports`: takes a date's report in again when the processor has added to it."""

import asyncio
from datetime import date

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import day_request, said_if_failed
from payments_pipeline.defs.jobs import TAKE_REPORT_IN
from payments_pipeline.defs.resources import MoneyZone, PayoutGateway
from payments_pipeline.domain.automation import grown_report_dates
from payments_pipeline.processors.base import PayoutProcessor, ReportDigest
from payments_pipeline.storage.day_summary import taken_in_digests

NAME = "grown_reports"
#: Runs asked for in one tick.
REQUESTED_AT_ONCE = 10


def grown_reports() -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        job_name=TAKE_REPORT_IN,
        minimum_interval_seconds=600,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes reports in again that have grown since they were taken in.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone, gateway: PayoutGateway) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            taken = taken_in_digests(money_zone.url, gateway.name)
            listed = asyncio.run(_digests(gateway.processor(), min(taken), max(taken))) if taken else []
            digests = {report.report_date: report.digest for report in listed}
            under_way = {run.day for run in history.unfinished_runs(context.instance) if run.day}
            grown = grown_report_dates(taken, digests, under_way, REQUESTED_AT_ONCE)
        return dg.SensorResult(
            run_requests=[
                day_request(NAME, f"report:{gateway.name}:{day}:{digests[day]}", day, TAKE_REPORT_IN) for day in grown
            ],
            skip_reason=None if grown else f"{len(taken)} reports taken in, none of them has grown",
        )

    return run


async def _digests(processor: PayoutProcessor, first: date, last: date) -> list[ReportDigest]:
    async with processor:
        return await processor.report_digests(first, last)
