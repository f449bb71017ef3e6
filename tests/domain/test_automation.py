from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.automation import (
    CATCH_UP_DAYS,
    MISSED_AFTER,
    DayRun,
    Gaps,
    MissedDays,
    RunOutcome,
    day_due,
    days_to_catch_up,
    days_to_compare,
    due_at,
    find_gaps,
    grown_report_dates,
    landing_fingerprints,
)

ZONES = ("Europe/London", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham")
LONDON = ZoneInfo("Europe/London")
days = st.dates(date(2018, 1, 1), date(2040, 12, 31))
zones = st.sampled_from(ZONES).map(ZoneInfo)


def days_between(first: date, last: date) -> list[date]:
    return [first + timedelta(days=offset) for offset in range((last - first).days + 1)]


@given(days, zones)
def test_each_day_is_due_once_on_the_morning_after_it(day: date, zone: ZoneInfo) -> None:
    assert day_due(due_at(day, zone), zone) == day
    assert timedelta(hours=23) <= due_at(day + timedelta(days=1), zone) - due_at(day, zone) <= timedelta(hours=25)


def test_due_hour_is_local_on_both_sides_of_a_change_of_clocks() -> None:
    assert due_at(date(2026, 3, 27), LONDON) == datetime(2026, 3, 28, 3, tzinfo=UTC)
    assert due_at(date(2026, 3, 28), LONDON) == datetime(2026, 3, 29, 2, tzinfo=UTC)


@given(st.sets(st.dates(date(2026, 1, 1), date(2026, 6, 30)), max_size=60), zones, st.integers(0, 100_000))
def test_a_day_is_missing_when_it_never_ran_is_not_before_the_first_and_is_overdue(
    ran: set[date], zone: ZoneInfo, minutes: int
) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    gaps = find_gaps(ran, now, zone)
    expected = [
        day
        for day in days_between(date(2026, 1, 1), date(2026, 8, 1))
        if ran and day > min(ran) and day not in ran and due_at(day, zone) + MISSED_AFTER <= now
    ]
    assert [*gaps.older, *gaps.recent] == expected
    assert all((day_due(now, zone) - day).days < CATCH_UP_DAYS for day in gaps.recent)
    assert all((day_due(now, zone) - day).days >= CATCH_UP_DAYS for day in gaps.older)


def test_nothing_is_missing_where_nothing_ever_ran() -> None:
    assert find_gaps(set(), datetime(2026, 5, 1, tzinfo=UTC), LONDON) == Gaps()


@pytest.mark.parametrize(("minute", "missing"), [(59, ()), (60, (date(2026, 1, 11),))])
def test_yesterday_is_missing_an_hour_after_its_hour(minute: int, missing: tuple[date, ...]) -> None:
    now = datetime(2026, 1, 12, 3, tzinfo=UTC) + timedelta(minutes=minute)
    assert find_gaps({date(2026, 1, 10)}, now, LONDON).recent == missing


RECENT = days_between(date(2026, 1, 1), date(2026, 1, 10))


def catch_up(
    unfinished: Sequence[DayRun] = (), runs_of: dict[date, list[DayRun]] | None = None, limit: int = 99
) -> MissedDays:
    return days_to_catch_up(RECENT, unfinished, runs_of or {}, sensor="missed_days", limit=limit)


def test_missing_days_are_asked_for_oldest_first_and_no_more_than_the_limit_at_once() -> None:
    found = catch_up(limit=3)
    assert found.request == found.missed == tuple(RECENT[:3])
    assert found.waiting == tuple(RECENT[3:])


def test_a_day_with_a_run_under_way_waits() -> None:
    found = catch_up(unfinished=[DayRun(RECENT[0], RunOutcome.UNFINISHED, "daily_at_three")])
    assert found.waiting == (RECENT[0],)
    assert found.request == tuple(RECENT[1:])


def test_nothing_is_asked_for_while_somebody_runs_days_by_hand() -> None:
    found = catch_up(unfinished=[DayRun(date(2025, 12, 24), RunOutcome.UNFINISHED, None)])
    assert found == MissedDays(waiting=tuple(RECENT))


def test_a_day_that_failed_is_asked_for_once_more_and_is_not_called_missed() -> None:
    failed = DayRun(RECENT[0], RunOutcome.FAILED, "daily_at_three")
    found = catch_up(runs_of={RECENT[0]: [failed]})
    assert RECENT[0] in found.request
    assert RECENT[0] not in found.missed
    again = catch_up(runs_of={RECENT[0]: [DayRun(RECENT[0], RunOutcome.FAILED, "missed_days"), failed]})
    assert again.left == (RECENT[0],)


def test_days_that_fail_again_and_again_do_not_hold_up_later_ones() -> None:
    asked = {day: [DayRun(day, RunOutcome.FAILED, "missed_days")] for day in RECENT[:5]}
    assert catch_up(runs_of=asked, limit=5).request == tuple(RECENT[5:])


def test_a_day_whose_newest_run_a_person_cancelled_is_left_to_them() -> None:
    runs = [
        DayRun(RECENT[3], RunOutcome.CANCELED, None),
        DayRun(RECENT[3], RunOutcome.FAILED, "daily_at_three"),
    ]
    assert catch_up(runs_of={RECENT[3]: runs}).left == (RECENT[3],)


ONE, TWO, THREE = days_between(date(2026, 1, 1), date(2026, 1, 3))
OBJECTS = [
    ("match_results/date=2026-01-01/a.csv", 10, "v1"),
    ("match_participants/date=2026-01-01/a.csv", 20, "v1"),
    ("match_results/date=2026-01-02/a.csv", 30, "v1"),
]


@given(st.permutations(OBJECTS))
def test_the_order_of_a_listing_makes_no_fingerprint(objects: list[tuple[str, int, str]]) -> None:
    assert landing_fingerprints(objects) == landing_fingerprints(OBJECTS)
    assert set(landing_fingerprints(objects)) == {ONE, TWO}


@pytest.mark.parametrize(
    "other",
    [
        [("match_results/date=2026-01-01/a.csv", 11, "v1"), *OBJECTS[1:]],
        [("match_results/date=2026-01-01/a.csv", 10, "v2"), *OBJECTS[1:]],
        [("match_results/date=2026-01-01/b.csv", 10, "v1"), *OBJECTS[1:]],
        [("match_results/date=2026-01-01/b.csv", 1, "v1"), *OBJECTS],
        OBJECTS[1:],
    ],
    ids=["size", "version", "renamed", "new", "removed"],
)
def test_a_change_shows_in_its_own_day_and_in_no_other(other: list[tuple[str, int, str]]) -> None:
    before, after = landing_fingerprints(OBJECTS), landing_fingerprints(other)
    assert before[ONE] != after[ONE]
    assert before[TWO] == after[TWO]


def test_objects_that_are_below_no_day_are_passed_over() -> None:
    keys = ["match_results/readme.txt", "match_results/date=2026-02-30/a.csv", "match_results/date=soon/a.csv", "a.csv"]
    assert landing_fingerprints([(key, 1, "") for key in keys]) == {}


def test_a_name_that_is_no_unicode_has_a_fingerprint_too() -> None:
    assert set(landing_fingerprints([("match_results/date=2026-01-01/\udcff.csv", 1, "")])) == {ONE}


def test_days_that_ran_and_are_listed_otherwise_are_compared_newest_first() -> None:
    listed = {ONE: "a", TWO: "b", THREE: "c"}
    assert days_to_compare(listed, {TWO: "b"}, {ONE, TWO, THREE}, ()).compare == (THREE, ONE)
    assert days_to_compare(listed, {}, {ONE, TWO, THREE}, {THREE}).compare == (TWO, ONE)


def test_a_day_that_never_ran_is_left_to_the_schedule() -> None:
    found = days_to_compare({ONE: "a"}, {}, {TWO}, ())
    assert found.compare == ()
    assert not found.everything_gone


def test_an_empty_landing_zone_calls_for_nothing_and_is_told() -> None:
    found = days_to_compare({}, {ONE: "a"}, {ONE, TWO}, ())
    assert found.compare == ()
    assert found.everything_gone
    assert found.gone == (ONE,)
    assert not days_to_compare({}, {}, set(), ()).everything_gone


def test_a_day_whose_files_are_gone_is_told_and_not_compared() -> None:
    found = days_to_compare({TWO: "b"}, {ONE: "a", TWO: "b"}, {ONE, TWO}, ())
    assert found.gone == (ONE,)
    assert found.compare == ()
    assert not found.everything_gone


def test_a_report_has_grown_when_its_digest_is_another_than_the_one_taken_in() -> None:
    taken = {ONE: "a", TWO: "b", THREE: "c"}
    assert grown_report_dates(taken, {ONE: "a", TWO: "B", THREE: "C"}, (), 9) == [TWO, THREE]
    assert grown_report_dates(taken, {ONE: "a", TWO: "B", THREE: "C"}, (), 1) == [TWO]
    assert grown_report_dates(taken, {ONE: "a", TWO: "B", THREE: "C"}, {TWO}, 9) == [THREE]
    assert grown_report_dates({ONE: "a"}, {TWO: "never taken in"}, (), 9) == []
