"""Sensor `missed_days`: runs the days whose hour passed while nothing was there to run them.

Schedules do not catch up: after a stop only the newest tick runs.
"""

from collections.abc import Callable
from datetime import datetime

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import day_request, said_if_failed
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.defs.resources import MoneyZone
from payments_pipeline.domain.alerts import days_missed, days_never_run
from payments_pipeline.domain.automation import CATCH_UP_DAYS, days_to_catch_up, find_gaps
from payments_pipeline.settings import Settings
from payments_pipeline.storage.alerts import raise_alerts

NAME = "missed_days"
#: Runs asked for in one tick.
REQUESTED_AT_ONCE = 5


def missed_days(settings: Settings, clock: Callable[[], datetime]) -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        job_name=DAILY,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs days that were missed, oldest first; those longer ago than a month are only reported.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            instance = context.instance
            gaps = find_gaps(history.days_run(instance), clock(), settings.zone)
            runs_of = history.runs_of_days(instance, gaps.recent)
            days = days_to_catch_up(
                gaps.recent, history.unfinished_runs(instance), runs_of, sensor=NAME, limit=REQUESTED_AT_ONCE
            )
            alerts = [days_missed(days.missed)] if days.missed else []
            alerts += [days_never_run(gaps.older, CATCH_UP_DAYS)] if gaps.older else []
            raise_alerts(money_zone.url if alerts else "", alerts)
        return dg.SensorResult(
            run_requests=[day_request(NAME, f"missed:{day}", day, DAILY) for day in days.request],
            skip_reason=None
            if days.request
            else f"no day to catch up: {len(days.waiting)} wait for runs under way, {len(days.left)} are left to a "
            f"person, {len(gaps.older)} are longer ago than {CATCH_UP_DAYS} days",
        )

    return run
