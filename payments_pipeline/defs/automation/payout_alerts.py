"""Sensor `payout_alerts`: instructions that failed, came back, got no answer, are overdue or wait for an approver.

One alert for each kind and day, and one more when others join it. Held, unknown and overdue ones are looked at as they
stand; failed and returned ones on the days of runs that have ended since the last tick.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import said_if_failed
from payments_pipeline.defs.resources import MoneyZone
from payments_pipeline.domain.alerts import instructions_in_trouble
from payments_pipeline.settings import Settings
from payments_pipeline.storage.alerts import instructions_ended, instructions_waiting, raise_alerts

NAME = "payout_alerts"


def payout_alerts(settings: Settings, clock: Callable[[], datetime]) -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=120,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Puts alerts into the outbox for failed, returned, unknown, overdue and held payout instructions.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            now = clock()
            read = history.runs_ended_since(context.instance, context.cursor, history.ENDINGS, now)
            url = money_zone.url
            overdue_days = money_zone.policy.dispatch.overdue_days
            overdue_on = now.astimezone(settings.zone).date() - timedelta(days=overdue_days)
            groups = [
                *instructions_waiting(url, overdue_on),
                *instructions_ended(url, sorted({ended.day for ended in read.runs if ended.day})),
            ]
            new = raise_alerts(url, [instructions_in_trouble(group) for group in groups])
        return dg.SensorResult(skip_reason=f"{new} new alerts", cursor=read.cursor)

    return run
