"""`status` says of each open item why it is open, as of now: an older reason that no longer holds is not told.

And of each unknown outcome what was said of it last.
"""

import datetime as dt

import pytest
from dispatches import REJECTED, UNAVAILABLE, UNKNOWN
from money_zone import DAY, FakeProcessor, MoneyZone, parties_frame

from payments_pipeline import status

HOLD, ACTIVE = parties_frame(a="on_hold"), parties_frame(a="active")
NOT_SWEPT = "posted since their day was last swept, and no other day takes them: if its run stopped, run it again"
DAYS = [DAY + dt.timedelta(days=number) for number in range(4)]


@pytest.fixture
def zone(database_url: str) -> MoneyZone:
    return MoneyZone(database_url)


def told(zone: MoneyZone) -> list[tuple[str, int, str]]:
    return [(row["reason"], row["amount_minor"], row["words"]) for row in status.overall(zone.url)["open_items"]]


def test_what_no_sweep_has_looked_at_is_said_to_be_posted_since(zone):
    zone.owe(a=600)
    assert told(zone) == [("not_swept_yet", 600, NOT_SWEPT)]


@pytest.mark.rule("sweeping/own-run-first")
def test_a_day_that_was_posted_and_not_swept_is_named_until_its_run_gets_there(zone):
    def to_run() -> list[tuple[dt.date, int, int]]:
        rows = status.overall(zone.url)["days_to_run"]
        assert all("run it again" in row["words"] for row in rows)
        return [(row["match_day"], row["posting"], row["open_items"]) for row in rows]

    zone.owe(a=600)
    assert to_run() == [(DAY, 1, 1)]
    zone.sweep(HOLD)
    assert to_run() == []
    zone.owe(revision=2, a=700)
    zone.owe(revision=2, a=700)
    assert to_run() == [(DAY, 2, 2)]
    assert status.overall(zone.url, day=DAYS[1])["days_to_run"] == []
    zone.sweep(ACTIVE, DAYS[1])
    assert [(reason, minor) for reason, minor, _ in told(zone)] == [("day_not_swept", 700)]
    zone.sweep(ACTIVE)
    assert (to_run(), told(zone)) == ([], [])


def test_what_failed_is_free_to_later_days_whatever_held_it_up_before(zone):
    zone.owe(a=600)
    zone.sweep(HOLD)
    [(reason, _, words)] = told(zone)
    assert (reason, "on hold" in words) == ("party_on_hold", True)
    zone.sweep(ACTIVE, DAYS[1])
    zone.dispatch(ACTIVE, FakeProcessor(answer=REJECTED), DAYS[1])
    assert told(zone) == [("for_a_later_day", 600, f"given back: free to sweeps of days after {DAYS[1]}")]
    zone.sweep(HOLD, DAYS[2])
    assert [reason for reason, _, _ in told(zone)] == ["party_on_hold"]


def test_what_is_unknown_is_listed_with_its_deadline_and_what_was_said_of_it_last(zone):
    zone.owe(a=600)
    zone.sweep(ACTIVE)
    processor = FakeProcessor(lose=UNKNOWN, look=UNAVAILABLE)
    for last_answer in (None, "unanswered"):
        zone.dispatch(ACTIVE, processor)
        [row] = status.overall(zone.url)["unknown"]
        assert str(row["instruction_id"]) == zone.instruction("a")
        assert row["not_after"] == zone.value("SELECT not_after FROM payout_attempts")
        assert (row["party_id"], row["amount_minor"], row["last_answer"]) == ("a", 600, last_answer)
    assert status.overall(zone.url, day=DAY, party="a")["unknown"] == [row]
    for other in ({"day": DAYS[1]}, {"party": "b"}):
        assert status.overall(zone.url, **other)["unknown"] == []
    processor.look = lambda _key: None
    zone.dispatch(ACTIVE, processor)
    assert status.overall(zone.url)["unknown"] == []
