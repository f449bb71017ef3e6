"""Schedule `daily_at_three`: yesterday, at 03:00 in the pipeline's time zone."""

import dagster as dg

from payments_pipeline.defs.automation.sensing import REASON_TAG
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.domain.automation import DUE_HOUR, day_due
from payments_pipeline.settings import Settings

NAME = "daily_at_three"


def daily_at_three(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule. The day comes from the tick's own time, not from the clock: a late tick runs its own day."""

    @dg.schedule(
        name=NAME,
        job_name=DAILY,
        cron_schedule=f"0 {DUE_HOUR} * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Runs yesterday's matches at 03:00 local time, on days of 23 and 25 hours too.",
    )
    def run(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = day_due(context.scheduled_execution_time, settings.zone)
        if day < settings.start_date:
            return dg.SkipReason(f"{day} is before PAYMENTS_START_DATE, {settings.start_date}: it has no partition")
        return dg.RunRequest(run_key=f"daily:{day}", partition_key=day.isoformat(), tags={REASON_TAG: NAME})

    return run
