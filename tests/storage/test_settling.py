"""Reports taken in from what was really sent: each line once, and what follows from it in one transaction."""

import datetime as dt
from typing import Any

import pandas as pd
import pytest
from money_zone import DAY, NEXT, FakeProcessor, MoneyZone, line, parties_frame

from payments_pipeline.domain.errors import ConflictError

PARTIES = parties_frame(a="active", d="active")
LATER = NEXT + dt.timedelta(days=1)


@pytest.fixture
def zone(database) -> MoneyZone:
    """a is owed 600 and d owes 400; both instructions are with the processor."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, d=-400)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    return zone


def _about(zone: MoneyZone, party: str, amount_minor: int, kind: str = "settled", **other: Any) -> dict[str, Any]:
    return line(zone.instruction(party), amount_minor, kind, **other)


def test_a_report_settles_what_it_says(zone):
    taken = zone.take_in([_about(zone, "a", -600), _about(zone, "d", 400)])
    assert taken.new_lines == 2
    assert taken.records["outcome"].tolist() == ["settled", "settled"]
    assert zone.states() == {f"a {DAY}": "settled", f"d {DAY}": "settled"}
    assert zone.balances() == {"pot:c1": 600, "suspense": -400, "cash:sandbox": -200}
    assert zone.open_items() == {}


@pytest.mark.rule("settlement/new-lines")
def test_a_report_taken_in_twice_changes_nothing(zone):
    lines = [_about(zone, "a", -600), _about(zone, "d", 0, "failed"), line(None, -7, "fee")]
    first = zone.take_in(lines)
    before = (zone.balances(), zone.states(), zone.open_items())
    again = zone.take_in(lines)
    assert (again.new_lines, again.entries) == (0, 0)
    assert again.records.equals(first.records)
    assert (zone.balances(), zone.states(), zone.open_items()) == before


@pytest.mark.rule("settlement/new-lines")
def test_of_a_report_that_grew_only_the_new_lines_are_posted(zone):
    first = [_about(zone, "a", -600)]
    zone.take_in(first)
    grown = zone.take_in([*first, _about(zone, "d", 400)])
    assert (grown.new_lines, len(grown.records)) == (1, 2)
    assert zone.balances() == {"pot:c1": 600, "suspense": -400, "cash:sandbox": -200}


def test_a_line_listed_twice_is_one_line(zone):
    twice = _about(zone, "a", -600)
    assert zone.take_in([twice, twice]).new_lines == 1
    assert zone.balances()["cash:sandbox"] == -600


CHANGES = [
    {"amount_minor": -500},
    {"kind": "returned"},
    {"currency": "EUR"},
    {"idempotency_key": "other"},
    {"subject": "pot:c1"},
    {"processor_reference": "other"},
    {"reason": "other"},
    {"occurred_at": pd.Timestamp("2024-08-18T10:01Z")},
]


@pytest.mark.rule("settlement/same-reference")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_line_that_comes_with_other_content_is_refused_and_nothing_of_its_report_posted(zone, change):
    taken = _about(zone, "a", -600)
    zone.take_in([taken])
    before = zone.balances()
    with pytest.raises(ConflictError, match=taken["entry_reference"]):
        zone.take_in([taken | change, _about(zone, "d", 400)])
    with pytest.raises(ConflictError, match="twice with different content"):
        zone.take_in([taken, taken | change])
    assert zone.balances() == before
    assert zone.states()[f"d {DAY}"] == "submitted"


def test_a_line_does_not_move_to_another_date(zone):
    taken = _about(zone, "a", -600)
    zone.take_in([taken])
    with pytest.raises(ConflictError, match=f"taken in on {NEXT}"):
        zone.take_in([taken], day=LATER)


@pytest.mark.rule("settlement/returned")
def test_a_payout_that_came_back_is_owed_again_once(zone):
    zone.take_in([_about(zone, "a", -600)])
    zone.take_in([_about(zone, "a", 600, "returned"), _about(zone, "a", 0, "failed")], day=LATER)
    assert zone.states()[f"a {DAY}"] == "returned"
    assert zone.open_items() == {"a": 600}
    assert zone.value("SELECT count(*) FROM claim_releases") == 1
    assert zone.balances()["party:a"] == -600
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("accounts/party-balance")
@pytest.mark.parametrize(
    "lines",
    [
        [("failed", 0), ("settled", -600)],
        [("returned", 600), ("settled", -600), ("settled", -600)],
        [("settled", -600), ("settled", -600), ("returned", 600)],
        [("settled", -700), ("returned", 600)],
        [("settled", -500), ("failed", 0), ("returned", 500)],
    ],
    ids=str,
)
@pytest.mark.parametrize("together", [True, False])
def test_paid_plus_open_plus_in_transit_is_what_was_owed(zone, lines, together):
    zone.take_in([_about(zone, "d", 400)])
    rows = [_about(zone, "a", amount, kind, entry_reference=f"r{at}") for at, (kind, amount) in enumerate(lines)]
    for at, report in enumerate([rows] if together else [[row] for row in rows], start=1):
        zone.take_in(report, day=NEXT + dt.timedelta(days=at))
    paid = -sum(amount for _, amount in lines)
    balances = zone.balances()
    assert balances["cash:sandbox"] == 400 - paid
    assert paid + zone.open_items().get("a", 0) - balances.get("in_transit:sandbox", 0) == 600
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("accounts/report-lines")
def test_a_payment_that_a_report_fails_a_second_time_with_its_cash_is_taken_in(zone):
    """Failed, settled late, and undone by the processor: the second failure moves cash, and reverses nothing again."""
    zone.take_in([_about(zone, "a", 0, "failed")])
    zone.take_in([_about(zone, "a", -600)], LATER)
    zone.take_in([_about(zone, "a", 600, "failed")], LATER + dt.timedelta(days=1))
    assert zone.states()[f"a {DAY}"] == "failed"
    assert zone.balances().get("cash:sandbox", 0) == 0
    assert zone.open_items()["a"] == 600
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("accounts/overpaid")
def test_what_was_paid_beyond_what_is_owed_is_taken_from_the_next_payout(zone):
    zone.take_in([_about(zone, "a", -700)])
    assert zone.open_items() == {"a": -100}
    zone.owe(LATER, "m9", a=250)
    zone.sweep(PARTIES, LATER)
    assert zone.rows("SELECT amount_minor FROM payout_instructions WHERE sweep_day = %s", LATER) == [(150,)]


@pytest.mark.rule("accounts/suspense")
def test_a_line_about_nothing_of_ours_is_kept_in_suspense(zone):
    taken = zone.take_in([line("nobody", -5), line(None, 9, "other"), line("nobody", 0, "failed")])
    assert taken.records["outcome"].tolist() == ["unmatched"] * 3
    assert zone.balances()["cash:sandbox"] == 4
    assert zone.states() == {f"a {DAY}": "submitted", f"d {DAY}": "submitted"}


def test_an_empty_report_is_an_intake_with_its_balances(zone):
    taken = zone.take_in([], closing_minor=5)
    assert (taken.new_lines, taken.entries, len(taken.records)) == (0, 0, 0)
    assert zone.rows(
        "SELECT entry_count, closing_minor FROM report_intakes JOIN report_balances USING (report_date)"
    ) == [(0, 5)]
