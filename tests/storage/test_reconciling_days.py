"""Days reconciled from what is stored: the same again later, whatever has happened since."""

import datetime as dt

import pandas as pd
import pytest
from money_zone import DAY, NEXT, POLICY, FakeProcessor, MoneyZone, line, parties_frame

from payments_pipeline.domain.schemas import RECONCILIATION
from payments_pipeline.storage.postgres import connect, copy_frame
from payments_pipeline.storage.reconciliation import reconcile_day

PARTIES = parties_frame(a="active", d="active")
DAYS = [DAY + dt.timedelta(days=number) for number in range(8)]


@pytest.fixture
def zone(database) -> MoneyZone:
    """a's 600 and d's 400 are with the processor, asked for `NEXT`."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, d=-400)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    return zone


def _day(zone: MoneyZone, day: dt.date = NEXT) -> pd.DataFrame:
    return reconcile_day(zone.url, day, "sandbox", POLICY).set_index(["subject_type", "subject_id"])


def _store(zone: MoneyZone, day: dt.date) -> None:
    frame = reconcile_day(zone.url, day, "sandbox", POLICY)
    with connect(zone.url) as connection, connection.transaction(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM reconciliation WHERE report_date = %s", (day,))
        copy_frame(cursor, "reconciliation", frame[RECONCILIATION.names])


def test_a_day_on_which_everything_settled_agrees(zone):
    zone.take_in([line(zone.instruction("a"), -600), line(zone.instruction("d"), 400)], closing_minor=-200)
    rows = _day(zone)
    assert rows["status"].tolist() == ["matched"] * 3
    assert rows.loc[("cash", "cash:sandbox"), ["expected_minor", "actual_minor"]].tolist() == [-200, -200]


@pytest.mark.rule("settlement/balances")
def test_a_line_that_the_report_left_out_shows_in_its_closing_balance(zone):
    zone.take_in([line(zone.instruction("a"), -600)], closing_minor=-200)
    row = _day(zone).loc[("cash", "cash:sandbox")]
    assert (row["status"], row["difference_minor"]) == ("break", 400)


def test_a_closing_balance_in_a_currency_of_no_entry_is_compared_with_nothing(zone):
    zone.take_in([], closing_minor=5)
    assert _day(zone).loc[("cash", "cash:sandbox"), ["expected_minor", "actual_minor"]].tolist() == [0, 5]


def test_cash_of_later_days_is_no_part_of_an_earlier_balance(zone):
    zone.take_in([line(zone.instruction("a"), -600)], closing_minor=-600)
    before = _day(zone)
    zone.take_in([line(zone.instruction("d"), 400)], DAYS[2], closing_minor=-200)
    pd.testing.assert_frame_equal(_day(zone), before)


def test_a_day_reconciled_again_after_a_return_says_the_same(zone):
    zone.take_in([line(zone.instruction("a"), -600)], closing_minor=-600)
    before = _day(zone)
    zone.take_in([line(zone.instruction("a"), 600, "returned")], DAYS[2])
    pd.testing.assert_frame_equal(_day(zone), before)
    row = _day(zone, DAYS[2]).loc[("instruction", zone.instruction("a"))]
    assert row[["expected_minor", "actual_minor", "status"]].tolist() == [0, 0, "matched"]


@pytest.mark.rule("settlement/age")
def test_paid_short_is_a_break_that_ages_until_mended(zone):
    key = zone.instruction("a")
    zone.take_in([line(key, -500)], closing_minor=-500)
    _store(zone, NEXT)
    for day in DAYS[2:4]:
        row = _day(zone, day).loc[("instruction", key)]
        assert (row["difference_minor"], row["age_days"]) == (-100, (day - NEXT).days)
        _store(zone, day)
    zone.take_in([line(key, -100)], DAYS[4])
    assert _day(zone, DAYS[4]).loc[("instruction", key), "status"] == "matched"
    _store(zone, DAYS[4])
    assert ("instruction", key) not in _day(zone, DAYS[5]).index


def test_paid_beyond_is_a_break_of_its_day_and_an_item_against_the_party_from_then_on(zone):
    key = zone.instruction("a")
    zone.take_in([line(key, -700)], closing_minor=-700)
    row = _day(zone).loc[("instruction", key)]
    assert (row["status"], row["difference_minor"]) == ("break", 100)
    _store(zone, NEXT)
    assert ("instruction", key) not in _day(zone, DAYS[2]).index
    assert zone.open_items() == {"a": -100}


@pytest.mark.rule("settlement/age")
def test_a_report_that_grew_after_later_days_were_reconciled_is_a_break_of_the_days_to_come(zone):
    key = zone.instruction("a")
    for day in DAYS[1:4]:
        zone.take_in([], day)
        _store(zone, day)
    zone.take_in([line(key, -500)], NEXT, closing_minor=-500)
    _store(zone, NEXT)
    for day in DAYS[4:7]:
        row = _day(zone, day).loc[("instruction", key)]
        assert (row["difference_minor"], row["age_days"]) == (-100, (day - NEXT).days)
        _store(zone, day)


@pytest.mark.rule("settlement/age")
def test_a_missed_day_that_is_caught_up_later_makes_no_break_younger(zone):
    key = zone.instruction("a")
    zone.take_in([line(key, -500)], NEXT, closing_minor=-500)
    for day in (NEXT, DAYS[3], DAYS[2], DAYS[4]):
        _store(zone, day)
        row = _day(zone, day).loc[("instruction", key)]
        assert (row["difference_minor"], row["age_days"]) == (-100, (day - NEXT).days)


def test_an_instruction_without_an_outcome_is_a_break_once_it_is_overdue(zone):
    wait = POLICY.dispatch.overdue_days
    assert ("instruction", zone.instruction("a")) not in _day(zone, NEXT + dt.timedelta(days=wait - 1)).index
    row = _day(zone, NEXT + dt.timedelta(days=wait)).loc[("instruction", zone.instruction("a"))]
    assert (row["status"], row["age_days"], row["actual_minor"]) == ("break", wait, 0)


def test_a_match_left_alone_is_a_break_that_ages_until_its_day_is_mended(zone):
    zone.post([], [])
    row = _day(zone, DAY).loc[("posting", f"m-{DAY}")]
    assert (row["status"], row["currency"]) == ("break", "")
    assert _day(zone, DAYS[3]).loc[("posting", f"m-{DAY}"), "age_days"] == 3
    zone.owe(a=600, d=-400)
    assert ("posting", f"m-{DAY}") not in _day(zone, NEXT).index


def test_cash_of_nobody_stays_a_break_and_is_as_old_as_its_line(zone):
    unknown = line(None, 9, "other")
    zone.take_in([unknown], closing_minor=9)
    row = _day(zone, DAYS[4]).loc[("unmatched", unknown["entry_reference"])]
    assert (row["difference_minor"], row["age_days"]) == (9, 3)
