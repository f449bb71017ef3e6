"""Sensor `alert_delivery`: gives each channel the alerts that it has not been given; at least once.

A further channel is one more call of `storage.alerts.deliver` here, under a name of its own.
"""

import dagster as dg

from payments_pipeline.defs.automation.sensing import said_if_failed
from payments_pipeline.defs.resources import MoneyZone
from payments_pipeline.storage.alerts import deliver_to_log

NAME = "alert_delivery"


def alert_delivery() -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Delivers the alerts in the outbox.",
    )
    def run(context: dg.SensorEvaluationContext, money_zone: MoneyZone) -> dg.SkipReason:
        with said_if_failed(context, NAME):
            delivered = deliver_to_log(money_zone.url)
        return dg.SkipReason(f"{delivered} alerts delivered to the log")

    return run
