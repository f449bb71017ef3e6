"""Sensor `check_failure_alerts`: every failed check of severity ERROR becomes an alert, when its run has ended."""

from collections.abc import Callable
from datetime import datetime

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import said_if_failed
from payments_pipeline.defs.resources import MoneyZone
from payments_pipeline.domain.alerts import check_failure
from payments_pipeline.storage.alerts import amounts_of_days, raise_alerts

NAME = "check_failure_alerts"


def check_failure_alerts(clock: Callable[[], datetime]) -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Puts an alert into the outbox for each data-quality check that failed with severity ERROR.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            read = history.runs_ended_since(context.instance, context.cursor, history.ENDINGS, clock())
            failed = [check for ended in read.runs for check in history.failed_checks(context.instance, ended)]
            url = money_zone.url if failed else ""
            amounts = amounts_of_days(url, sorted({each.day for each in failed if each.day}))
            new = raise_alerts(
                url, [check_failure(each, amounts.get(each.day, ()) if each.day else ()) for each in failed]
            )
        return dg.SensorResult(skip_reason=f"{new} new alerts", cursor=read.cursor)

    return run
