"""The one partitions definition: a match day in the pipeline's time zone."""

import dagster as dg

from payments_pipeline.settings import Settings


def match_day_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Give the match days from `PAYMENTS_START_DATE` to yesterday in `PAYMENTS_TIMEZONE`."""
    return dg.DailyPartitionsDefinition(start_date=settings.start_date.isoformat(), timezone=settings.timezone)
