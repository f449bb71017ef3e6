"""Refunds in the money zone: accepted once, bounded, divided, recomputed with every correction."""

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from money_zone import DAY, NEXT, FakeProcessor, MoneyZone, fee, line, match, parties_frame, share
from refunding import JANE, applied, charge, decided, nets, refund, request, settle

LATER = NEXT + dt.timedelta(days=1)
PARTIES = parties_frame(p1="active", p2="active", a="active", b="active", c="active")


@pytest.fixture
def zone(database_url: str) -> MoneyZone:
    return MoneyZone(database_url)


def test_a_refund_debits_the_recipients_and_credits_the_payer(zone):
    charge(zone, a=700, b=300)
    assert decided(refund(zone, request("r1", 100))) == ["accepted"]
    assert nets(zone, "refund") == {"party:p1": 100, "party:a": -70, "party:b": -30}
    assert zone.open_items() == {"p1": -900, "a": 630, "b": 270}


@pytest.mark.rule("refunds/all-that-is-left")
def test_without_an_amount_all_that_is_left_is_refunded(zone):
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 1), request("r2"))
    assert applied(zone) == {"r1": 1, "r2": 999}
    assert zone.open_items() == {"p1": 0, "a": 0, "b": 0}


def test_the_amount_is_fixed_at_acceptance_with_who_asked_and_why(zone):
    charge(zone, a=1000)
    refund(zone, request("r1"))
    assert zone.rows(
        """SELECT refund_id, amount_minor, requested_minor, reason, requester, accepted_day, source, pot_no, login
           FROM refunds"""
    ) == [("r1", 1000, None, "rained off", JANE, NEXT, "f.csv", 1, "payments_runtime_embedded")]


@pytest.mark.rule("refunds/at-most")
def test_a_refund_is_at_most_what_the_pot_still_charges_its_payer(zone):
    charge(zone, a=1000)
    accepted = refund(zone, request("r1", 600), request("r2", 401), request("r3", 400), request("r4"))
    assert decided(accepted) == ["accepted", "more_than_left", "accepted", "nothing_left"]
    assert "of which 400 is left to refund" in accepted.refused["words"].iloc[0]


@pytest.mark.rule("refunds/refused")
def test_what_is_refused_says_why_and_changes_nothing(zone):
    charge(zone, a=1000)
    zone.post([match("m2", revenue_minor=500)], [share("m2", "a", 500)], NEXT)
    accepted = refund(
        zone, request("r1", match_id="unknown"), request("r2", party="a"), request("r3", match_id="m2", party="a")
    )
    assert decided(accepted) == ["match_not_posted", "not_a_payer", "not_a_payer"]
    assert accepted.refused["words"].iloc[0] == (
        "refund r1 is of match unknown, which is not posted. Run the match's day, then this one again. "
        "Nothing of it was refunded."
    )
    assert zone.value("SELECT count(*) FROM refunds") == 0


def test_a_request_for_a_match_not_posted_yet_is_taken_up_by_a_later_run(zone):
    assert decided(refund(zone, request("r1", 10))) == ["match_not_posted"]
    charge(zone, a=1000)
    assert decided(refund(zone, request("r1", 10))) == ["accepted"]


@pytest.mark.rule("refunds/same-id")
def test_the_same_refund_again_is_a_no_op_and_with_other_content_an_error(zone):
    charge(zone, a=1000)
    refund(zone, request("r1", 10), request("r2"))
    before = zone.rows("SELECT * FROM ledger_entries ORDER BY entry_id")
    again = refund(zone, request("r1", 10), request("r2"), day=LATER)
    assert decided(again) == ["repeated", "repeated"]
    others = [request("r1", 11), request("r1"), request("r1", 10, reason="x"), request("r1", 10, party="a")]
    others += [request("r2", 990)]
    assert [decided(refund(zone, other)) for other in others] == [["other_content"]] * 5
    assert zone.rows("SELECT * FROM ledger_entries ORDER BY entry_id") == before


@pytest.mark.rule("refunds/division")
def test_it_is_taken_by_what_each_line_still_holds_largest_remainder_in_order_of_acceptance(zone):
    charge(zone, a=3, b=3, c=1)
    refund(zone, request("r1", 1))
    assert nets(zone, "refund") == {"party:p1": 1, "party:a": -1}
    refund(zone, request("r2", 1))
    assert nets(zone, "refund") == {"party:p1": 2, "party:a": -1, "party:b": -1}, "by what is held now: 2, 3, 1"


def test_two_requests_of_one_pot_in_either_order_refund_the_same_in_all(zone):
    for day, match_id, order in ((NEXT, "m", ("r1", "r2")), (LATER, "n", ("s2", "s1"))):
        charge(zone, day=day, match_id=match_id, a=501, b=333)
        refund(zone, *(request(name, 101 if "1" in name else 57, match_id=match_id) for name in order))
    assert applied(zone) == {"r1": 101, "r2": 57, "s1": 101, "s2": 57}


@pytest.mark.rule("refunds/key")
def test_its_lines_key_is_refund_and_share_key(zone):
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 100), request("r2", 100))
    keys = zone.rows(
        """SELECT refund_id, pot, pot_party_id, line_no, account, posting_no, recipient FROM ledger_entries
           WHERE kind = 'refund' ORDER BY 1, 4"""
    )
    assert keys == [
        (name, "match_fee", "p1", *rest)
        for name in ("r1", "r2")
        for rest in ((1, "party:p1", 1, "payer"), (2, "party:a", 1, "club"), (3, "party:b", 1, "club"))
    ]


@pytest.mark.rule("refunds/applied")
def test_a_later_correction_leaves_of_a_refund_what_the_pot_still_charges(zone):
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 600))
    charge(zone, 2, a=200, b=200)
    assert applied(zone) == {"r1": 400}
    assert nets(zone, "accrual") == {"party:p1": -400, "party:a": 200, "party:b": 200}
    assert zone.open_items() == {"p1": 0, "a": 0, "b": 0}
    charge(zone, 3, a=700, b=300)
    assert applied(zone) == {"r1": 600}, "the amount stays fixed: it applies again as soon as the pot has it"
    assert zone.open_items() == {"p1": -400, "a": 280, "b": 120}


@pytest.mark.rule("refunds/recomputed")
def test_refunds_are_recomputed_in_order_of_acceptance(zone):
    charge(zone, a=1000)
    refund(zone, request("r2", 400))
    refund(zone, request("r1", 300), request("r3", 300))
    charge(zone, 2, a=500)
    assert applied(zone) == {"r1": 100, "r2": 400, "r3": 0}


def test_only_the_difference_is_posted(zone):
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 100))
    charge(zone, 2, a=690, b=310)
    entries = zone.rows(
        """SELECT account, posting_no, credit_minor - debit_minor FROM ledger_entries
           WHERE kind = 'refund' AND posting_no > 1 ORDER BY 1"""
    )
    assert entries == [("party:a", 2, 1), ("party:b", 2, -1)]
    charge(zone, 3, a=690, b=310)
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'refund'") == 2, "no difference, no journal"


def test_the_difference_has_the_day_of_the_refund_and_nets_with_what_it_corrects(zone):
    charge(zone, a=1000)
    zone.sweep(PARTIES)
    refund(zone, request("r1", 400))
    zone.sweep(PARTIES, NEXT)
    charge(zone, 2)
    assert zone.rows("SELECT DISTINCT day FROM ledger_entries WHERE kind = 'refund'") == [(NEXT,)]
    zone.sweep(PARTIES)
    zone.sweep(PARTIES, NEXT)
    made = "SELECT count(*) FROM instruction_states WHERE state = %s"
    assert {state: zone.value(made, state) for state in ("cancelled", "netted", "approved")} == {
        "cancelled": 3,
        "netted": 4,
        "approved": 0,
    }
    assert zone.open_items() == {}


@pytest.mark.rule("corrections/void-and-back")
def test_a_voided_match_takes_its_refund_back_and_a_reinstated_one_brings_it_again(zone):
    charge(zone, a=1000)
    refund(zone, request("r1", 400))
    charge(zone, 2)
    assert zone.balances() == {}
    assert applied(zone) == {"r1": 0}
    charge(zone, 3, a=1000)
    assert applied(zone) == {"r1": 400}


@pytest.mark.rule("corrections/moved")
def test_a_match_that_moves_to_another_day_takes_its_refund_along(zone):
    charge(zone, a=1000)
    refund(zone, request("r1", 400))
    charge(zone, 2)
    charge(zone, 3, LATER, a=1000)
    assert applied(zone) == {"r1": 400}
    assert zone.value("SELECT max(day) FROM ledger_entries WHERE kind = 'refund'") == LATER


def test_nothing_is_left_of_a_voided_match(zone):
    charge(zone, a=1000)
    charge(zone, 2)
    assert decided(refund(zone, request("r1", 1))) == ["nothing_left"]


def test_its_items_are_swept_by_its_own_day_or_a_later_one(zone):
    charge(zone, a=1000)
    refund(zone, request("r1", 400))
    assert zone.sweep(PARTIES).plan.instructions["amount_minor"].tolist() == [1000, 1000]
    settle(zone)
    assert zone.sweep(PARTIES, NEXT).plan.instructions["amount_minor"].tolist() == [400, 400]
    assert zone.open_items() == {}


def test_a_later_sweep_takes_them_though_their_own_day_never_ran_once_their_matchs_day_was_swept(zone):
    charge(zone, a=1000)
    refund(zone, request("r1", 400))
    assert zone.sweep(PARTIES, LATER).plan.instructions.empty, "the charge is not swept: its refund would be paid first"
    zone.sweep(PARTIES)
    settle(zone)
    assert zone.sweep(PARTIES, LATER).plan.instructions["amount_minor"].tolist() == [400, 400]


def test_one_of_a_match_of_a_later_day_is_of_that_day(zone):
    charge(zone, day=LATER, a=1000)
    refund(zone, request("r1", 400), day=NEXT)
    assert zone.value("SELECT DISTINCT day FROM ledger_entries WHERE kind = 'refund'") == LATER


def _when_collected(zone, a, revision=1):
    zone.post(
        [match("m", revision, revenue_minor=0, payout_policy="when_collected")], fee("m", "p1", {"a": a}) if a else []
    )


def test_of_a_charge_that_is_not_collected_a_part_refunded_waits_with_what_it_reduces(zone):
    _when_collected(zone, 1000)
    zone.sweep(PARTIES)
    refund(zone, request("r1", 400))
    zone.sweep(PARTIES, NEXT)
    assert zone.open_items() == {"a": 600, "p1": 400}, "the club waits for the rest, and the player for the collection"


def test_of_a_charge_that_is_not_collected_all_refunded_nets_to_nothing(zone):
    _when_collected(zone, 1000)
    refund(zone, request("r1"))
    zone.sweep(parties_frame(p1={"collection_token": None}, a="active"))
    assert zone.open_items() == {"p1": 0, "a": 0}, "the charge waits for a token, the share for the charge"
    zone.sweep(parties_frame(p1={"collection_token": None}, a="active"), NEXT)
    assert zone.states() == {f"p1 {NEXT}": "netted", f"a {NEXT}": "netted"}


@pytest.mark.rule("refunds/returned-collection")
def test_a_refund_after_the_collection_was_returned_nets_with_the_debt(zone):
    charge(zone, a=1000)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    key = zone.instruction("p1")
    zone.take_in([line(key, 1000), line(key, -1000, "returned")])
    assert zone.open_items() == {"p1": -1000}
    refund(zone, request("r1", 400))
    assert applied(zone) == {"r1": 400}, "a returned collection reverses nothing: the pot charges as before"
    assert zone.open_items() == {"p1": -600, "a": -400}
    assert zone.party_balances_disagree() == []


def test_an_unsent_instruction_whose_refund_was_recomputed_is_cancelled_first(zone):
    charge(zone, a=1000)
    zone.sweep(PARTIES)
    settle(zone)
    refund(zone, request("r1", 600))
    zone.sweep(PARTIES, NEXT)
    charge(zone, 2, a=500)
    zone.sweep(parties_frame(a="on_hold", p1="on_hold"))
    zone.sweep(PARTIES, NEXT)
    assert zone.value("SELECT count(*) FROM instruction_states WHERE state = 'cancelled'") == 2
    assert zone.open_items() == {}


def test_requests_at_once_are_bounded_together_and_the_same_one_is_accepted_once(zone):
    charge(zone, a=1000)
    names = ["r1", "r2", "r3", "r1", "r2", "r3"]
    with ThreadPoolExecutor(6) as pool:
        found = [decided(each)[0] for each in pool.map(lambda name: refund(zone, request(name, 400)), names)]
    assert found.count("accepted") == 2
    assert set(found) <= {"accepted", "repeated", "more_than_left"}
    assert sum(applied(zone).values()) == 800
    assert zone.rows("SELECT pot_no FROM refunds ORDER BY 1") == [(1,), (2,)]


def test_a_correction_and_a_request_at_once_leave_what_one_after_the_other_would(zone):
    for number, day in enumerate((DAY, NEXT, LATER)):
        match_id = f"m{number}"
        charge(zone, day=day, match_id=match_id, a=1000)
        asked = [request(f"r{number}", 900, match_id=match_id)]
        with ThreadPoolExecutor(2) as pool:
            correction = pool.submit(charge, zone, 2, day, match_id, a=500)
            accepted = pool.submit(refund, zone, *asked, day=day).result()
            correction.result()
        left = {"accepted": 500, "more_than_left": None}[decided(accepted)[0]]
        assert applied(zone).get(f"r{number}") == left


def test_what_is_refunded_of_a_match_that_was_left_alone_waits_with_it(zone):
    charge(zone, a=1000)
    zone.post([], [])
    refund(zone, request("r1", 400))
    zone.sweep(PARTIES)
    zone.sweep(PARTIES, NEXT)
    waits = "SELECT party_id, amount_minor FROM sweep_deferrals WHERE sweep_day = %s AND reason = 'posting_break'"
    assert dict(zone.rows(waits, NEXT)) == {"p1": -600, "a": 600}
    assert zone.states() == {}


def test_a_refund_does_not_wait_for_its_match_under_another_day_which_never_posts_it(zone):
    charge(zone, a=1000)
    zone.sweep(PARTIES)
    settle(zone)
    refund(zone, request("r1", 400))
    moved = zone.post([match("m", 2, NEXT, revenue_minor=0)], fee("m", "p1", {"a": 1000}), NEXT)
    assert moved.plan.breaks["reason"].tolist() == ["posted_under_another_day"]
    later = NEXT + dt.timedelta(days=1)
    zone.sweep(PARTIES, later)
    assert (
        zone.rows("SELECT party_id FROM sweep_deferrals WHERE sweep_day = %s AND reason = 'posting_break'", later) == []
    )
    zone.dispatch(PARTIES, FakeProcessor(), later)
    states = "SELECT i.party_id, s.state FROM payout_instructions i JOIN instruction_states s USING (instruction_id)"
    assert dict(zone.rows(f"{states} WHERE i.sweep_day = %s", later))["p1"] == "submitted"


def test_an_acceptance_waits_for_a_posting_that_is_under_way(zone):
    charge(zone, a=1000)
    done = threading.Event()
    results = []

    def ask():
        results.append(refund(zone, request("r1", 900)))
        done.set()

    with psycopg.connect(zone.url) as posting:
        posting.execute("SELECT pg_advisory_xact_lock_shared(7203103, 0)")
        asking = threading.Thread(target=ask)
        asking.start()
        assert not done.wait(0.3)
    asking.join(10)
    assert decided(results[0]) == ["accepted"]


def test_the_same_work_has_the_same_ids(zone):
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 100))
    namespace = uuid.UUID("6f1d7c1e-6f5b-5c57-9d0a-5b8f2b0c8e11")
    assert zone.rows("SELECT journal_id FROM journals WHERE kind = 'refund'") == [
        (uuid.uuid5(namespace, "\x1f".join(("refund", "r1", "1"))),)
    ]
    key = ("refund_entry", "r1", "m", "match_fee", "p1", "2", "party:a", "GBP", "1")
    assert uuid.uuid5(namespace, "\x1f".join(key)) in {
        entry for (entry,) in zone.rows("SELECT entry_id FROM ledger_entries WHERE kind = 'refund'")
    }
