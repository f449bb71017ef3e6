import json
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

# The daemon's own iterator of ticks; Dagster has no public one.
from dagster._utils.schedules import schedule_execution_time_iterator

from payments_pipeline.defs.automation import build_schedules
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.defs.partitions import match_day_partitions
from payments_pipeline.settings import Settings

#: The clocks go forward and back on these days of 2024; Kathmandu's never do. In Chatham the hour from 02:45 is skipped
#: or repeated, 03:00 with it.
CHANGES = {
    "Europe/London": (date(2024, 3, 31), date(2024, 10, 27)),
    "Europe/Berlin": (date(2024, 3, 31), date(2024, 10, 27)),
    "America/New_York": (date(2024, 3, 10), date(2024, 11, 3)),
    "Asia/Kathmandu": (date(2024, 3, 31), date(2024, 10, 27)),
    "Pacific/Chatham": (date(2024, 9, 29), date(2024, 4, 7)),
}


def settings(timezone: str, start: date = date(2024, 1, 1)) -> Settings:
    return Settings(timezone=timezone, start_date=start)


def ticks(schedule: dg.ScheduleDefinition, first: date, last: date) -> list[datetime]:
    """Give the instants at which the daemon evaluates a schedule, from the start of `first` to the end of `last`."""
    zone = ZoneInfo(str(schedule.execution_timezone))
    start = datetime(first.year, first.month, first.day, tzinfo=zone)
    end = datetime(last.year, last.month, last.day, tzinfo=zone) + timedelta(days=1)
    found = schedule_execution_time_iterator(start.timestamp(), schedule.cron_schedule, schedule.execution_timezone)
    return list(takewhile(lambda tick: tick < end, found))


def evaluate(schedule: dg.ScheduleDefinition, tick: datetime) -> Any:
    return schedule(dg.build_schedule_context(scheduled_execution_time=tick.astimezone(UTC)))


@pytest.mark.parametrize("change", [0, 1], ids=["forward", "back"])
@pytest.mark.parametrize("timezone", CHANGES)
def test_each_day_runs_once_and_in_its_own_partition_through_a_change_of_clocks(timezone: str, change: int) -> None:
    (schedule,) = build_schedules(settings(timezone))
    changed_on = CHANGES[timezone][change]
    first, last = changed_on - timedelta(days=3), changed_on + timedelta(days=3)
    evaluated = ticks(schedule, first, last)
    requests = [evaluate(schedule, tick) for tick in evaluated]
    # A repeated hour may tick twice; the run key then is the same, and Dagster starts one run.
    by_key = {request.run_key: request.partition_key for request in requests}
    expected = [(first + timedelta(days=offset - 1)).isoformat() for offset in range(7)]
    assert list(by_key.values()) == expected
    assert len(by_key) == 7
    for tick in evaluated:
        local = tick.astimezone(ZoneInfo(timezone))
        assert local.strftime("%H:%M") == "03:00" or (timezone, local.date()) == ("Pacific/Chatham", changed_on)


@pytest.mark.parametrize("timezone", [zone for zone in CHANGES if zone not in {"Asia/Kathmandu", "Pacific/Chatham"}])
def test_the_days_of_a_change_have_23_and_25_hours_and_one_tick_each(timezone: str) -> None:
    (schedule,) = build_schedules(settings(timezone))
    zone = ZoneInfo(timezone)
    for day, hours in zip(CHANGES[timezone], (23, 25), strict=True):
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        following = day + timedelta(days=1)
        assert datetime(following.year, following.month, following.day, tzinfo=zone) - midnight == timedelta(
            hours=hours
        )
        (tick,) = ticks(schedule, day, day)
        assert evaluate(schedule, tick).partition_key == (day - timedelta(days=1)).isoformat()


def test_a_tick_that_is_evaluated_late_runs_its_own_day() -> None:
    (schedule,) = build_schedules(settings("Europe/London"))
    request = evaluate(schedule, datetime(2024, 6, 10, 2, tzinfo=UTC))  # 03:00 in London; "now" is some other year
    assert request.partition_key == "2024-06-09"


def test_a_day_before_the_first_partition_is_skipped_and_the_first_one_is_not() -> None:
    (schedule,) = build_schedules(settings("Europe/London", start=date(2024, 6, 1)))
    assert isinstance(evaluate(schedule, datetime(2024, 6, 1, 2, tzinfo=UTC)), dg.SkipReason)
    assert evaluate(schedule, datetime(2024, 6, 2, 2, tzinfo=UTC)).partition_key == "2024-06-01"


@pytest.mark.parametrize("timezone", CHANGES)
def test_the_day_asked_for_is_a_partition_that_has_ended(timezone: str) -> None:
    configured = settings(timezone)
    (schedule,) = build_schedules(configured)
    tick = ticks(schedule, date(2024, 6, 1), date(2024, 6, 1))[0]
    window = match_day_partitions(configured).time_window_for_partition_key(evaluate(schedule, tick).partition_key)
    assert window.end <= tick < window.end + timedelta(hours=4)


def test_the_schedule_runs_the_daily_job_from_the_start_and_its_runs_say_so() -> None:
    configured = settings("Europe/London")
    (schedule,) = build_schedules(configured)
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING

    @dg.asset(partitions_def=match_day_partitions(configured))
    def match_results() -> None: ...

    definitions = dg.Definitions(
        assets=[match_results], jobs=[dg.define_asset_job(DAILY, selection=[match_results])], schedules=[schedule]
    )
    repository = definitions.get_repository_def()
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2024, 6, 10, 2, tzinfo=UTC), repository_def=repository
    )
    (request,) = repository.get_schedule_def("daily_at_three").evaluate_tick(context).run_requests or []
    assert request.tags["dagster/schedule_name"] == "daily_at_three"  # by which the ledger names the maker `scheduler`
    assert request.tags["dagster/partition"] == "2024-06-09"
    assert request.tags["payments/reason"] == "daily_at_three"
    assert json.dumps(request.run_key) == '"daily:2024-06-09"'
