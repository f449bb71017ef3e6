"""What a correction changed, party by party, and why: as `status` shows it."""

import datetime as dt
from typing import Any

import pytest
from money_zone import DAY, NEXT, MoneyZone, match, participant, share
from refunding import charge, refund, request

from payments_pipeline import status
from payments_pipeline.storage import approvals

pytestmark = pytest.mark.rule("corrections/explained")


@pytest.fixture
def zone(database: Any) -> MoneyZone:
    return MoneyZone(database.url)


def told(zone: MoneyZone, day: dt.date | None = DAY, party: str | None = None) -> list[tuple[str, int, str]]:
    found = status.overall(zone.url, day=day, party=party)["corrections"]
    return [(row["account"], row["amount_minor"], row["words"]) for row in found]


def test_a_first_posting_corrects_nothing(zone):
    zone.post([match("m1")], [share("m1", "a", 600)])
    assert told(zone) == []


def test_a_newer_revision_is_told_with_what_it_says_otherwise(zone):
    zone.post([match("m1", revenue_minor=600)], [share("m1", "a", 600)])
    zone.post([match("m1", 2, revenue_minor=700, content_hash="other")], [share("m1", "a", 700)])
    words = "revision 2 after 1; its result says something else; revenue 700 after 600"
    assert told(zone) == [("party:a", 100, words), ("pot:c1", -100, words)]
    assert told(zone, day=None, party="a") == [("party:a", 100, words)]
    assert told(zone, day=NEXT) == told(zone, day=None, party="b") == []


def test_the_newest_correction_comes_first(zone):
    for revision, amount in enumerate((600, 700, 650), 1):
        zone.post([match("m1", revision)], [share("m1", "a", amount)])
    assert [minor for _, minor, _ in told(zone, party="a")] == [-50, 100]


def test_who_takes_part_late_is_told(zone):
    zone.post([match("m1")], [share("m1", "a", 600)], participants=[participant("m1", "a")])
    both = [participant("m1", "a"), participant("m1", "b")]
    zone.post([match("m1")], [share("m1", "a", 300), share("m1", "b", 300)], participants=both)
    assert told(zone, party="b") == [("party:b", 300, "others took part: +b")]


def test_what_was_refunded_is_told_with_the_correction_that_changes_it(zone, database):
    charge(zone, a=500)
    refund(zone, request("r1", 400))
    charge(zone, revision=2, a=300)
    found = told(zone)
    # The fee is 200 less, and of the 400 that were given back 300 still can be.
    assert [(account, minor) for account, minor, _ in found] == [("party:a", -100), ("party:p1", 100)]
    assert all(words.endswith("with what was refunded of it, taken anew from what it holds now") for *_, words in found)


def test_a_match_that_moved_says_where_it_was(zone):
    zone.post([match("m1")], [share("m1", "a", 600)])
    zone.post([match("m1", 2, revenue_minor=600)], [])
    zone.post([match("m1", 3)], [share("m1", "a", 600)], day=NEXT)
    assert [words for _, _, words in told(zone, day=NEXT, party="a")] == [
        f"was posted under {DAY}; revision 3 after 2; its result says something else"
    ]


def test_a_change_of_organiser_moves_the_share_once_accepted_and_names_who_accepted_it_and_why(zone, database):
    zone.post([match("m1", rules_hash="old")], [share("m1", "organiser-1", 600)])
    for _ in range(2):
        zone.post([match("m1", rules_hash="new")], [share("m1", "organiser-2", 600)])
    assert told(zone) == []
    [proposal] = approvals.pending(database.url)
    assert proposal["content"]["effect"] == [["party:organiser-1", "GBP", -600], ["party:organiser-2", "GBP", 600]]
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as signed")
    zone.post([match("m1", rules_hash="new")], [share("m1", "organiser-2", 600)])
    [(was, minus, words), (now, plus, same)] = told(zone)
    assert (was, minus, now, plus) == ("party:organiser-1", -600, "party:organiser-2", 600)
    assert words == same
    assert words.startswith("other rules, accepted by ")
    assert words.endswith(": as signed")
    assert zone.balances() == {"party:organiser-2": -600, "pot:c1": 600}
