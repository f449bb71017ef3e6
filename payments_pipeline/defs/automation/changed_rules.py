"""Sensor `changed_rules`: days whose posted matches fall under other rules now are run, so that the effect is proposed.

A day is asked for once for each state of the reference data, and once more when its change was accepted.
"""

from datetime import date

import dagster as dg

from payments_pipeline.defs.automation.sensing import day_request, said_if_failed
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.defs.resources import Inputs, MoneyZone
from payments_pipeline.domain.automation import days_under_other_rules, digest
from payments_pipeline.storage.posted_rules import posted_rules

NAME = "changed_rules"
#: Runs asked for in one tick; the next tick goes on.
REQUESTED_AT_ONCE = 10


def changed_rules() -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        job_name=DAILY,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs days that a change of schedules or competitions reaches: their effect is proposed.",
    )
    def run(context: dg.SensorEvaluationContext, inputs: Inputs, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            posted = posted_rules(money_zone.url)
            if not posted:
                return dg.SensorResult(skip_reason="nothing is posted")
            reference = inputs.reference()

            def rules_on(day: date) -> dict[str, str]:
                return {name: rules.rules_hash for name, rules in reference.rules_on(day).items()}

            days = days_under_other_rules(
                [(row.day, row.competition_id, row.rules_hash, row.seen, row.accepted) for row in posted],
                rules_on,
                reference.input_hashes,
            )
            # A day stays on the list until it has run, and may fail: each tick goes on behind the last, and begins anew
            # at the end. Dagster knows the key of what it was asked for before.
            behind = [day for day in days if day.isoformat() > (context.cursor or "")][:REQUESTED_AT_ONCE]
            requests = [day_request(NAME, f"rules:{day}:{digest(days[day])}", day, DAILY) for day in behind]
        return dg.SensorResult(
            run_requests=requests,
            cursor=behind[-1].isoformat() if len(behind) == REQUESTED_AT_ONCE else "",
            skip_reason=None if requests else "no posted match falls under other rules than it was posted under",
        )

    return run
