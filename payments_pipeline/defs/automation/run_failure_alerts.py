"""Sensor `run_failure_alerts`: every run that failed becomes an alert.

A sensor with a cursor of its own, not a run failure sensor: the latter's cursor moves on even where its code raises,
and an alert would be lost while the database is down. Here the cursor moves once the alerts are stored.
"""

from collections.abc import Callable
from datetime import datetime

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import said_if_failed
from payments_pipeline.defs.resources import MoneyZone
from payments_pipeline.domain.alerts import run_failure
from payments_pipeline.storage.alerts import amounts_of_days, raise_alerts

NAME = "run_failure_alerts"


def run_failure_alerts(clock: Callable[[], datetime]) -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Puts an alert into the outbox for each run that failed, whether it is retried or not.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            read = history.runs_ended_since(
                context.instance, context.cursor, [dg.DagsterEventType.RUN_FAILURE], clock()
            )
            failed = [ended.as_failed() for ended in read.runs]
            url = money_zone.url if failed else ""
            amounts = amounts_of_days(url, sorted({each.day for each in failed if each.day}))
            new = raise_alerts(
                url, [run_failure(each, amounts.get(each.day, ()) if each.day else ()) for each in failed]
            )
        return dg.SensorResult(skip_reason=f"{new} new alerts", cursor=read.cursor)

    return run
