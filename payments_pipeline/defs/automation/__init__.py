"""What starts by itself: the schedule, and the sensors; one module each. Sensors read and emit, pure functions decide.

Belongs here: the two lists. Does not belong here: decisions (`domain.automation`), words (`domain.alerts`).
"""

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg

from payments_pipeline.defs.automation.alert_delivery import alert_delivery
from payments_pipeline.defs.automation.changed_input import changed_input
from payments_pipeline.defs.automation.changed_rules import changed_rules
from payments_pipeline.defs.automation.check_failure_alerts import check_failure_alerts
from payments_pipeline.defs.automation.daily_at_three import daily_at_three
from payments_pipeline.defs.automation.grown_reports import grown_reports
from payments_pipeline.defs.automation.missed_days import missed_days
from payments_pipeline.defs.automation.payout_alerts import payout_alerts
from payments_pipeline.defs.automation.run_failure_alerts import run_failure_alerts
from payments_pipeline.settings import Settings


def _utc_now() -> datetime:
    return datetime.now(UTC)


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Build the schedule."""
    return [daily_at_three(settings)]


def build_sensors(settings: Settings, clock: Callable[[], datetime] = _utc_now) -> list[dg.SensorDefinition]:
    """Build the sensors.

    Args:
        settings: time zone and first day.
        clock: gives the present instant, aware; for tests.
    """
    return [
        run_failure_alerts(clock),
        check_failure_alerts(clock),
        payout_alerts(settings, clock),
        changed_input(),
        changed_rules(),
        missed_days(settings, clock),
        grown_reports(),
        alert_delivery(),
    ]
