"""Sweeps over a real ledger: which items a day takes, gives back and leaves to others, in any order and at once."""

import datetime as dt
import itertools
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from money_zone import DAY, POLICY, RUN, FakeProcessor, MoneyZone, fee, line, match, parties_frame, policy, share
from psycopg import errors
from refunding import charge, refund, request

from payments_pipeline.domain.errors import PayoutOutcomeUnknownError, PayoutRejectedError
from payments_pipeline.domain.proposals import Retry
from payments_pipeline.local import postgres
from payments_pipeline.storage import approvals
from payments_pipeline.storage import payout_instructions as sweeping
from payments_pipeline.storage.approvals import NotApprovedError

HELD = parties_frame(a="on_hold", b="on_hold", c="on_hold", p="on_hold", q="on_hold")
PARTIES = parties_frame(a="active", b="active", c="active", p="active", q="active")
HOLD_A = parties_frame(a="on_hold", b="active")
DAYS = [DAY + dt.timedelta(days=number) for number in range(5)]


@pytest.fixture
def zone(database) -> MoneyZone:
    return MoneyZone(database.url)


def reject(_key: str) -> None:
    raise PayoutRejectedError("no such account", code="account_closed")


def _made(zone: MoneyZone, day: dt.date = DAY) -> dict[str, int]:
    """What each party's newest instruction of a sweep day moves: > 0 to the party."""
    return dict(
        zone.rows(
            """SELECT party_id, amount_minor * CASE direction WHEN 'debit' THEN -1 ELSE 1 END
               FROM payout_instructions JOIN instruction_states USING (instruction_id)
               WHERE sweep_day = %s AND state <> 'cancelled'""",
            day,
        )
    )


def _waits(zone: MoneyZone, day: dt.date = DAY) -> dict[tuple[str, str], int]:
    rows = zone.rows(
        """SELECT party_id, reason, amount_minor FROM sweep_deferrals
           WHERE sweep_day = %s AND seq = (SELECT max(seq) FROM sweeps WHERE sweep_day = %s)""",
        day,
        day,
    )
    return {(party, reason): amount for party, reason, amount in rows}


@pytest.mark.rule("sweeping/before-its-day")
def test_a_second_sweep_of_a_day_takes_nothing_new(zone):
    zone.owe(a=600, b=400)
    assert len(zone.sweep(PARTIES).plan.instructions) == 2
    again = zone.sweep(PARTIES)
    assert (again.seq, len(again.plan.instructions), again.open_items) == (2, 0, 0)
    assert _made(zone) == {"a": 600, "b": 400}


@pytest.mark.rule("posting/ids")
def test_the_same_work_has_the_same_ids_in_another_database(zone, postgres_server, migrated_template):
    zone.owe(a=600, b=400)
    with postgres_server.new_database(postgres.MIGRATOR, template=migrated_template) as name:
        other = MoneyZone(postgres_server.url(postgres.RUNTIME, name))
        other.owe(a=600, b=400)
        other.sweep(PARTIES.iloc[::-1])
        theirs = other.instruction("a"), other.instruction("b")
    zone.sweep(PARTIES)
    assert (zone.instruction("a"), zone.instruction("b")) == theirs


@pytest.mark.rule("sweeping/which-items")
def test_items_of_a_day_that_was_not_swept_are_left_to_it(zone):
    zone.owe(DAYS[0], a=600)
    zone.owe(DAYS[1], a=150)
    assert _made_after(zone, DAYS[1]) == {"a": 150}
    assert _made_after(zone, DAYS[0]) == {"a": 600}


def _made_after(zone: MoneyZone, day: dt.date) -> dict[str, int]:
    zone.sweep(PARTIES, day)
    return _made(zone, day)


@pytest.mark.rule("sweeping/which-items")
def test_items_left_open_by_a_sweep_are_taken_by_a_later_day(zone):
    zone.owe(DAYS[0], a=600)
    zone.sweep(HOLD_A, DAYS[0])
    assert _waits(zone) == {("a", "party_on_hold"): 600}
    zone.owe(DAYS[1], a=50)
    assert _made_after(zone, DAYS[1]) == {"a": 650}


@pytest.mark.rule("sweeping/which-items")
def test_a_later_days_items_are_never_taken_by_an_earlier_day(zone):
    zone.owe(DAYS[1], a=600)
    zone.sweep(HOLD_A, DAYS[1])
    assert _made_after(zone, DAYS[0]) == {}


@pytest.mark.rule("sweeping/before-its-day")
def test_released_items_wait_for_a_later_day(zone):
    zone.owe(a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor(answer=reject))
    assert zone.open_items() == {"a": 600}
    assert len(zone.sweep(PARTIES).plan.instructions) == 0
    assert _made_after(zone, DAYS[1]) == {"a": 600}
    assert zone.value("SELECT max(claim_no) FROM instruction_claims") == 2


@pytest.mark.rule("sweeping/before-its-day")
def test_what_settled_or_came_back_after_a_day_is_nothing_to_it(zone):
    zone.owe(a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    key = zone.instruction("a")
    zone.take_in([line(key, -700), line(key, 700, "returned")], DAYS[2])
    for day, made in [(DAYS[0], {"a": 600}), (DAYS[1], {}), (DAYS[2], {}), (DAYS[3], {"a": 600})]:
        assert _made_after(zone, day) == made


@pytest.mark.rule("sweeping/corrected")
def test_a_correction_cancels_the_unsent_instruction_and_both_items_are_swept_again(zone):
    zone.owe(a=600, b=400)
    zone.sweep(PARTIES)
    before = zone.instruction("a")
    zone.owe(revision=2, a=700, b=400)
    swept = zone.sweep(PARTIES)
    assert swept.cancelled == 1
    assert _made(zone) == {"a": 700, "b": 400}
    assert zone.value("SELECT state FROM instruction_states WHERE instruction_id = %s", before) == "cancelled"
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("corrections/after-sending")
def test_a_correction_of_what_was_sent_is_an_item_of_its_own(zone):
    zone.owe(a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.owe(revision=2, a=250)
    zone.sweep(PARTIES)
    rows = zone.rows("SELECT direction, amount_minor FROM payout_instructions ORDER BY sweep_seq")
    assert rows == [("credit", 600), ("debit", 350)]


@pytest.mark.rule("posting/waits-with-break")
def test_a_match_with_a_break_keeps_its_items_open(zone):
    zone.owe(a=600)
    zone.post([], [], DAY)
    zone.sweep(PARTIES)
    assert _waits(zone) == {("a", "posting_break"): 600}
    zone.owe(a=600)
    zone.sweep(PARTIES)
    assert _made(zone) == {"a": 600}


@pytest.mark.rule("sweeping/netted")
def test_a_net_of_zero_is_netted_and_never_given_back(zone):
    zone.post([match("m1"), match("m2", revenue_minor=None)], [share("m1", "a", 500), *fee("m2", "a", {"b": 500})])
    zone.sweep(PARTIES)
    assert zone.states() == {f"a {DAY}": "netted", f"b {DAY}": "approved"}
    zone.post(
        [match("m1", 2), match("m2", 2, revenue_minor=None)], [share("m1", "a", 800), *fee("m2", "a", {"b": 500})]
    )
    assert zone.sweep(PARTIES).cancelled == 0
    assert zone.open_items() == {}
    assert _made(zone)["a"] == 300


@pytest.mark.rule("instructions/held")
def test_over_its_limit_an_instruction_is_held_until_it_expires_by_the_days_and_by_the_clock(zone, database):
    zone.owe(a=600)
    strict = policy(instruction_limit_minor=599, expires_days=2)
    zone.sweep(PARTIES, policy=strict)
    assert zone.states() == {f"a {DAY}": "held"}
    # Days of a backfill go by within minutes, and an approver has two days' time.
    assert zone.sweep(PARTIES, DAYS[2], strict).cancelled == 0
    with psycopg.connect(database.superuser_url, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE payout_instructions SET created_at = created_at - interval '2 days'")
    assert zone.sweep(PARTIES, DAYS[1], strict).cancelled == 0
    assert zone.sweep(PARTIES, DAYS[2], strict).cancelled == 1
    assert zone.states() == {f"a {DAY}": "cancelled"}
    zone.sweep(PARTIES, DAYS[3], strict)
    assert zone.states()[f"a {DAYS[3]}"] == "held"


def lost(_key: str) -> None:
    raise PayoutOutcomeUnknownError("no answer")


def _charged_and_sent(zone: MoneyZone, processor: FakeProcessor) -> None:
    """The fee of 500 of p is being collected, and is void; of its collection the processor says what it says."""
    zone.post([match("m1", revenue_minor=None)], fee("m1", "p", {"a": 500}))
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, processor)
    zone.post([match("m1", 2, revenue_minor=None)], [])
    zone.sweep(PARTIES)


@pytest.mark.rule("sweeping/given-back")
def test_what_is_given_back_of_a_fee_whose_collection_is_unknown_waits_until_it_is_settled(zone):
    _charged_and_sent(zone, FakeProcessor(lose=lost))
    assert zone.states()[f"p {DAY}"] == "unknown"
    for day in DAYS[:2]:
        zone.sweep(PARTIES, day)
        assert _waits(zone, day)["p", "collection_not_settled"] == 500
    zone.take_in([line(zone.instruction("p"), 500)], DAYS[2])
    assert "p" not in _made_after(zone, DAYS[2]), "settled on the day itself: a later day pays"
    assert _made_after(zone, DAYS[3])["p"] == 500


def test_what_is_given_back_of_a_fee_whose_collection_failed_nets_with_it_and_nothing_is_paid(zone):
    _charged_and_sent(zone, FakeProcessor())
    zone.sweep(PARTIES, DAYS[1])
    assert _waits(zone, DAYS[1])["p", "collection_not_settled"] == 500
    zone.take_in([line(zone.instruction("p"), 0, "failed")], DAYS[2])
    assert "p" not in _made_after(zone, DAYS[2]), "its debit is free to later days only"
    assert _waits(zone, DAYS[2])["p", "collection_not_settled"] == 500
    assert _made_after(zone, DAYS[3])["p"] == 0
    assert zone.states()[f"p {DAYS[3]}"] == "netted"
    assert zone.party_balances_disagree() == []


def test_what_is_charged_again_of_what_waits_waits_with_it(zone):
    _charged_and_sent(zone, FakeProcessor())
    zone.post([match("m1", 3, revenue_minor=None)], fee("m1", "p", {"a": 200}))
    for day in DAYS[:2]:
        zone.sweep(PARTIES, day)
        assert _waits(zone, day)["p", "collection_not_settled"] == 300
    assert "p" not in _made(zone, DAYS[1])
    zone.post([match("m1", 4, revenue_minor=None)], fee("m1", "p", {"a": 600}))
    assert _made_after(zone, DAY)["p"] == -100, "more is charged than before: the rest is collected"


def test_what_is_given_back_of_one_fee_holds_up_no_other_item_of_the_payer(zone):
    _charged_and_sent(zone, FakeProcessor())
    zone.post([match("m2", day=DAYS[1])], [share("m2", "p", 1000)], DAYS[1])
    zone.sweep(PARTIES, DAYS[1])
    assert _made(zone, DAYS[1])["p"] == 1000
    assert _waits(zone, DAYS[1]) == {("p", "collection_not_settled"): 500}


def test_what_is_given_back_of_a_fee_that_was_netted_with_what_was_paid_is_paid(zone):
    zone.post([match("m1"), match("m2", revenue_minor=None)], [share("m1", "p", 800), *fee("m2", "p", {"a": 500})])
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.post([match("m1"), match("m2", 2, revenue_minor=None)], [share("m1", "p", 800)])
    assert _made_after(zone, DAY)["p"] == 500


WHEN_COLLECTED = {"payout_policy": "when_collected", "revenue_minor": None}


@pytest.mark.rule("sweeping/when-collected")
def test_when_collected_recipients_wait_until_their_own_payer_has_paid(zone):
    shares = [*fee("m1", "p", {"a": 500}), *fee("m1", "q", {"b": 300})]
    zone.post([match("m1", **WHEN_COLLECTED)], shares)
    zone.sweep(PARTIES)
    assert _made(zone) == {"p": -500, "q": -300}
    assert _waits(zone) == {("a", "not_collected"): 500, ("b", "not_collected"): 300}
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("p"), 500)], DAYS[1])
    assert _made_after(zone, DAYS[1]) == {}  # settled on the day itself: a later day pays
    assert _made_after(zone, DAYS[2]) == {"a": 500}
    zone.take_in([line(zone.instruction("q"), 0, "failed")], DAYS[2])
    assert _made_after(zone, DAYS[3]) == {"q": -300}


@pytest.mark.rule("sweeping/when-collected")
def test_when_collected_a_payer_whose_items_net_to_zero_has_paid(zone):
    zone.post([match("m1", **WHEN_COLLECTED), match("m2")], [*fee("m1", "p", {"a": 500}), share("m2", "p", 500)])
    zone.sweep(PARTIES)
    assert zone.states() == {f"p {DAY}": "netted"}
    assert _made_after(zone, DAYS[1]) == {"a": 500}


def test_when_collected_a_correction_of_what_waits_waits_with_it_and_collects_nothing_that_was_never_paid(zone):
    zone.post([match("m1", **WHEN_COLLECTED)], fee("m1", "p", {"a": 500}))
    zone.post([match("m1", 2, **WHEN_COLLECTED)], fee("m1", "p", {"a": 200}))
    zone.sweep(PARTIES)
    assert _made(zone) == {"p": -200}
    assert _waits(zone) == {("a", "not_collected"): 200}


def test_when_collected_what_was_paid_too_much_does_not_wait(zone):
    zone.post([match("m1", **WHEN_COLLECTED)], fee("m1", "p", {"a": 500}))
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("p"), 500)], DAYS[1])
    assert _made_after(zone, DAYS[2]) == {"a": 500}
    zone.dispatch(PARTIES, FakeProcessor(), DAYS[2])
    zone.post([match("m1", 2, **WHEN_COLLECTED)], fee("m1", "p", {"a": 200}))
    assert _made_after(zone, DAY) == {"p": -500, "a": -300}
    assert _made_after(zone, DAYS[3]) == {"p": 300}, "its own day is before the settlement"


def _fail(zone: MoneyZone, day: dt.date, policy=POLICY) -> list[str]:
    zone.sweep(PARTIES, day, policy)
    processor = FakeProcessor(answer=reject)
    zone.dispatch(PARTIES, processor, day)
    return [key for key, _ in processor.requests]


@pytest.mark.rule("sweeping/failures-in-a-row")
def test_after_failures_in_a_row_a_partys_items_wait_for_a_new_token(zone):
    zone.owe(a=600, b=-400)
    twice = policy(sweep={"failures_in_a_row": 2})
    for day in DAYS[:2]:
        assert len(_fail(zone, day, policy=twice)) == 2
    assert _fail(zone, DAYS[2], policy=twice) == []
    assert _waits(zone, DAYS[2]) == {("a", "failures_in_a_row"): 600, ("b", "failures_in_a_row"): -400}
    renewed = parties_frame(a={"payout_token": "new"}, b="active")
    zone.sweep(renewed, DAYS[3], twice)
    assert _made(zone, DAYS[3]) == {"a": 600}


@pytest.mark.rule("sweeping/failures-in-a-row")
def test_once_a_retry_is_accepted_what_failed_before_stops_nothing_and_what_fails_after_does(zone, database):
    zone.owe(a=600, b=-400)
    twice = policy(sweep={"failures_in_a_row": 2})
    _fail(zone, DAYS[0], policy=twice)
    with pytest.raises(NotApprovedError, match="does not wait in GBP after failures in a row"):
        approvals.propose(database.url, approvals.retry(database.url, "a", "GBP"), "it works", "clerk")
    _fail(zone, DAYS[1], policy=twice)
    assert _fail(zone, DAYS[2], policy=twice) == []
    proposed = approvals.retry(database.url, "a", "GBP")
    assert proposed.failed == sorted(zone.instruction("a", day) for day in DAYS[:2])
    identity = approvals.propose(database.url, proposed, "it works", "clerk")
    assert _fail(zone, DAYS[2], policy=twice) == []  # proposed is not accepted
    approvals.decide(database.approver_url, identity, "accepted", "letter of the bank")
    last = DAYS[4] + dt.timedelta(days=1)
    for day in DAYS[3:]:
        assert _fail(zone, day, policy=twice) == [zone.instruction("a", day)]
        assert _waits(zone, day)["b", "failures_in_a_row"] == -400
    assert _fail(zone, last, policy=twice) == []
    assert _waits(zone, last)["a", "failures_in_a_row"] == 600


def test_a_retry_of_what_did_not_fail_is_refused_by_postgres(zone, database):
    zone.owe(a=600, b=-400)
    twice = policy(sweep={"failures_in_a_row": 2})
    for day in DAYS[:3]:
        _fail(zone, day, policy=twice)
    of_another = Retry("b", "GBP", [zone.instruction("a", DAYS[0])])
    with pytest.raises(errors.RestrictViolation, match="is none of b that failed or came back"):
        approvals.propose(database.url, of_another, "x", "clerk")


def test_a_success_between_failures_ends_the_row(zone):
    twice = policy(sweep={"failures_in_a_row": 2})
    zone.owe(a=600)
    _fail(zone, DAYS[0], policy=twice)
    zone.sweep(PARTIES, DAYS[1], twice)
    zone.dispatch(PARTIES, FakeProcessor(), DAYS[1])
    zone.take_in([line(zone.instruction("a", DAYS[1]), -600)], DAYS[1])
    zone.owe(DAYS[2], a=700)
    _fail(zone, DAYS[2], policy=twice)
    assert _made_after(zone, DAYS[3]) == {"a": 700}


def _live_daily(zone: MoneyZone, days: int, comes_back: set[int]) -> list[int]:
    """Owe, sweep and send daily; each settles a day later, some come back two days after. Gives the days that sent."""
    sent: list[int] = []
    for number in range(days):
        day = DAY + dt.timedelta(days=number)
        zone.owe(day, a=600)
        zone.sweep(PARTIES, day)
        processor = FakeProcessor()
        zone.dispatch(PARTIES, processor, day)
        sent += [number] * len(processor.requests)
        lines = []
        for before, kind in ((1, "settled"), (3, "returned")):
            if number - before in sent and (kind == "settled" or number - before in comes_back):
                key = zone.instruction("a", day - dt.timedelta(days=before))
                amount = zone.value("SELECT amount_minor FROM payout_instructions WHERE instruction_id = %s", key)
                lines.append(line(key, -amount if kind == "settled" else amount, kind))
        zone.take_in(lines, day)
    return sent


@pytest.mark.rule("sweeping/failures-in-a-row")
def test_payments_that_overlap_settle_and_always_come_back_are_stopped(zone):
    assert _live_daily(zone, 9, comes_back=set(range(9))) == [0, 1, 2, 3, 4, 5]
    last = DAY + dt.timedelta(days=8)
    assert {reason for _, reason in _waits(zone, last)} == {"failures_in_a_row"}
    assert _made_after_with(zone, parties_frame(a={"payout_token": "new"}), last + dt.timedelta(days=1)) == {"a": 5400}


def _made_after_with(zone: MoneyZone, parties, day: dt.date) -> dict[str, int]:
    zone.sweep(parties, day)
    return _made(zone, day)


def test_returns_with_proven_payments_between_them_never_stop_a_party(zone):
    assert _live_daily(zone, 16, comes_back={0, 1, 8, 9}) == list(range(16))


@pytest.mark.rule("sweeping/own-run-first")
def test_what_a_day_posted_waits_until_its_own_run_gets_to_its_sweep(zone):
    zone.owe(a=600)
    assert _made_after(zone, DAYS[1]) == {}, "the day was never swept"
    zone.sweep(HELD)
    zone.owe(revision=2, a=700, b=50)
    assert _made_after(zone, DAYS[1]) == {}, "nothing of the day, for what it said before may be what is wrong"
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[1]) == {"a": 700}


@pytest.mark.rule("sweeping/own-run-first")
def test_what_is_posted_while_a_sweep_of_its_day_looks_for_items_waits_for_the_next(zone, monkeypatch):
    zone.owe(a=600)
    read = sweeping.read_frame

    def posted_meanwhile(cursor, query, *arguments):
        found = read(cursor, query, *arguments)
        if query is sweeping._ITEMS and zone.value("SELECT count(*) FROM day_postings") == 1:
            zone.owe(revision=2, a=700)
        return found

    monkeypatch.setattr(sweeping, "read_frame", posted_meanwhile)
    zone.sweep(PARTIES)
    assert _made_after(zone, DAYS[1]) == {}
    assert _made_after(zone, DAY) == {"a": 700}


@pytest.mark.rule("sweeping/own-run-first")
def test_what_posts_nothing_opens_no_day_again(zone):
    zone.owe(a=600)
    zone.sweep(HELD)
    zone.owe(a=600)
    assert _made_after(zone, DAYS[1]) == {"a": 600}


UNCOLLECTED = parties_frame(a="active", d={"collection_token": None})


def _written_off(zone: MoneyZone, database, party: str, amount_minor: int) -> None:
    asked = approvals.write_off(database.url, party, "GBP", amount_minor)
    identity = approvals.propose(database.url, asked, "insolvent", "clerk")
    approvals.decide(database.approver_url, identity, "accepted", "seen")
    assert approvals.carry_out_accepted(database.url, DAYS[1], RUN).done == (identity,)


@pytest.mark.rule("sweeping/own-run-first")
@pytest.mark.parametrize("was_swept", [True, False])
def test_a_write_off_waits_with_its_debt_and_is_never_paid_to_the_debtor(zone, database, was_swept):
    zone.owe(d=-700)
    if was_swept:
        zone.sweep(UNCOLLECTED)
        zone.owe(revision=2, d=-700, a=50)
    _written_off(zone, database, "d", 700)
    assert _made_after_with(zone, UNCOLLECTED, DAYS[2]) == {}
    assert _waits(zone, DAYS[2])["d", "day_not_swept"] == (0 if was_swept else 700)
    zone.sweep(parties_frame(a="on_hold", d="on_hold"))
    assert _made_after_with(zone, UNCOLLECTED, DAYS[3])["d"] == 0


@pytest.mark.rule("sweeping/nets-together")
def test_a_debt_that_was_written_off_is_collected_by_no_sweep_that_the_write_off_is_not_free_to(zone, database):
    """It was written off, and then its debtor gave an account after all: the loss would be paid out to them."""
    zone.owe(d=-700, a=50)
    zone.sweep(UNCOLLECTED)
    _written_off(zone, database, "d", 700)
    collected = parties_frame(a="active", d="active")
    for day in DAYS[:2]:
        assert "d" not in _made_after_with(zone, collected, day)
        assert _waits(zone, day)["d", "nets_later"] == -700
    assert _made_after_with(zone, collected, DAYS[2])["d"] == 0
    assert zone.states()[f"d {DAYS[2]}"] == "netted"


@pytest.mark.rule("sweeping/nets-together")
def test_a_write_off_waits_as_long_as_its_debt_has_a_break(zone, database):
    zone.owe(d=-700, a=750)
    zone.sweep(UNCOLLECTED)
    _written_off(zone, database, "d", 700)
    zone.post([match("m1", 1, revenue_minor=None)], [])
    assert "d" not in _made_after_with(zone, UNCOLLECTED, DAYS[2])
    assert _waits(zone, DAYS[2]) == {("d", "posting_break"): -700, ("d", "nets_later"): 700}


@pytest.mark.rule("instructions/paid-late")
@pytest.mark.parametrize("by", ["gate", "sweep"])
@pytest.mark.parametrize(("owed", "moved"), [(600, -600), (-600, 600)])
def test_what_failed_and_is_about_to_be_sent_again_is_cancelled_once_it_settled_all_the_same(zone, by, owed, moved):
    zone.owe(a=owed)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    first, processor = zone.instruction("a"), FakeProcessor()
    zone.take_in([line(first, 0, "failed")], DAYS[1])
    zone.sweep(PARTIES, DAYS[2])
    assert _made(zone, DAYS[2]) == {"a": owed}
    zone.take_in([line(first, moved)], DAYS[2])
    if by == "sweep":
        assert zone.sweep(PARTIES, DAYS[2]).cancelled == 1
    zone.dispatch(PARTIES, processor, DAYS[2])
    assert zone.states()[f"a {DAYS[2]}"] == "cancelled"
    assert _made_after(zone, DAYS[3]) == {"a": 0}
    zone.dispatch(PARTIES, processor, DAYS[3])
    assert processor.taken == {}
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("instructions/held")
@pytest.mark.parametrize(
    ("given", "state"), [({"payout_token": "other"}, "held"), ("on_hold", None), ({"payout_token": None}, None)]
)
def test_what_is_held_for_an_account_that_may_not_be_paid_any_more_is_cancelled_by_the_next_sweep(zone, given, state):
    strict = policy(instruction_limit_minor=599)
    zone.owe(a=600)
    zone.sweep(PARTIES, policy=strict)
    assert zone.sweep(PARTIES, DAYS[1], strict).cancelled == 0
    assert zone.sweep(parties_frame(a=given), DAYS[1], strict).cancelled == 1
    assert zone.states().get(f"a {DAYS[1]}") == state
    held = "SELECT token FROM payout_instructions JOIN instruction_states USING (instruction_id) WHERE state = 'held'"
    assert zone.rows(held) == ([("other",)] if state else [])


@pytest.mark.rule("sweeping/own-run-first")
@pytest.mark.parametrize(("owed", "moved"), [(600, -600), (-600, 600)])
def test_what_settled_after_it_failed_waits_for_what_it_makes_up_for(zone, owed, moved):
    zone.owe(a=owed)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    for day, kind, cash in ((DAYS[1], "failed", 0), (DAYS[2], "settled", moved)):
        zone.take_in([line(zone.instruction("a"), cash, kind)], day)
    zone.owe(revision=2, a=owed, b=50)
    assert _made_after(zone, DAYS[3]) == {}
    assert _waits(zone, DAYS[3])["a", "day_not_swept"] == 0
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[4]) == {"a": 0}


@pytest.mark.rule("sweeping/own-run-first")
def test_what_is_taken_back_by_a_run_that_stopped_is_netted_before_more_is_paid(zone):
    zone.owe(a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("a"), -600)], DAYS[0])
    zone.post([match(f"m-{DAY}", 2, status="void", revenue_minor=0)], [])
    zone.owe(DAYS[1], a=600)
    assert _made_after(zone, DAYS[1]) == {}
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[2]) == {"a": 0}


@pytest.mark.rule("sweeping/own-run-first")
def test_what_moved_from_a_day_that_was_not_swept_is_neither_made_nor_cancelled_day_after_day(zone):
    zone.owe(DAYS[0], "M", a=600)
    zone.sweep(HELD)
    zone.post([match("M", 2, status="void", revenue_minor=0)], [])
    zone.owe(DAYS[1], "M", 3, a=600)
    for day in DAYS[1:3]:
        assert _made_after(zone, day) == {}
        assert _waits(zone, day)["a", "day_not_swept"] in (0, 600, 1200)
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[3]) == {"a": 600}


@pytest.mark.rule("refunds/key")
def test_a_refund_of_a_match_that_moved_waits_for_the_sweep_of_its_new_day(zone):
    charge(zone, payer="p", a=1000)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("p"), 1000), line(zone.instruction("a"), -1000)], DAYS[0])
    refund(zone, request("r1", 500, party="p"), day=DAYS[0])
    charge(zone, 2, payer="p")
    zone.sweep(PARTIES)
    zone.sweep(PARTIES, DAYS[1])
    zone.dispatch(PARTIES, FakeProcessor(), DAYS[1])
    charge(zone, 3, payer="p", a=1000, day=DAYS[2])
    assert _made_after(zone, DAYS[3]) == {}, "the refund is of a fee that nobody has swept"
    assert _made_after(zone, DAYS[2]) == {"a": 500, "p": -500}


@pytest.mark.rule("sweeping/own-run-first")
@pytest.mark.parametrize("posting", [None, 1])
def test_a_sweep_that_names_a_posting_that_is_not_there_is_refused(zone, posting):
    sweep = """INSERT INTO payments.sweeps (sweep_day, seq, instructions, run_id, code_version, posting_seq)
               VALUES (%s, 1, 0, 'r', '1', %s)"""
    with (
        psycopg.connect(zone.url) as connection,
        pytest.raises(errors.RestrictViolation, match="says that it came after posting"),
    ):
        connection.execute(sweep, (DAY, posting))


@pytest.mark.rule("sweeping/neighbours-at-once")
def test_sweeps_of_neighbouring_days_at_once_claim_each_item_once(zone):
    for day in DAYS:
        zone.owe(day, f"m-{day}", a=600, b=400, c=-300)
    # Every day was swept while its parties were on hold: each sweep below may take every older day's items.
    for day in DAYS:
        zone.sweep(parties_frame(a="on_hold", b="on_hold", c="on_hold"), day)
    with ThreadPoolExecutor(6) as pool:
        swept = list(pool.map(lambda day: zone.sweep(PARTIES, day), [*DAYS, *DAYS]))
    assert len(swept) == 10
    assert zone.open_items() == {}
    assert zone.value("SELECT count(*) FROM instruction_claims") == 15
    total = dict(
        zone.rows(
            """SELECT party_id, sum(amount_minor * CASE direction WHEN 'debit' THEN -1 ELSE 1 END)::bigint
               FROM payout_instructions GROUP BY 1"""
        )
    )
    assert total == {"a": 3000, "b": 2000, "c": -1500}
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("refunds/key")
def test_nothing_of_a_fee_is_given_back_before_the_fee_is_swept(zone):
    charge(zone, a=600, b=400, payer="p", day=DAYS[0])
    refund(zone, request("r1", 500, party="p"), day=DAYS[1])
    assert _made_after(zone, DAYS[1]) == {}
    assert _made_after(zone, DAYS[0]) == {"a": 600, "b": 400, "p": -1000}
    assert _made_after(zone, DAYS[1]) == {"a": -300, "b": -200}
    assert _waits(zone, DAYS[1]) == {("p", "collection_not_settled"): 500}


@pytest.mark.rule("sweeping/corrected")
def test_what_corrects_an_item_waits_where_it_is_posted_while_a_sweep_runs(zone, monkeypatch):
    """The sweep has looked for what was corrected, and not yet for open items."""
    zone.owe(a=600)
    zone.sweep(PARTIES)
    read = sweeping.read_frame

    def posted_meanwhile(cursor, query, *arguments):
        if query is sweeping._ITEMS and zone.value("SELECT count(*) FROM day_postings") == 1:
            zone.post([match(f"m-{DAY}", 2, status="void", revenue_minor=0)], [])
        return read(cursor, query, *arguments)

    monkeypatch.setattr(sweeping, "read_frame", posted_meanwhile)
    zone.sweep(PARTIES)
    assert _waits(zone) == {("a", "correction_under_way"): -600}
    assert zone.states() == {f"a {DAY}": "approved"}
    assert zone.dispatch(PARTIES, FakeProcessor(), DAYS[1]).cancelled == 1
    assert _made_after(zone, DAYS[2]) == {}, "their day has not been swept since"
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[3]) == {"a": 0}


@pytest.mark.rule("sweeping/corrected")
def test_what_corrects_an_item_that_came_back_is_netted_with_it_though_it_is_approved(zone):
    zone.owe(a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.post([match(f"m-{DAY}", 2, status="void", revenue_minor=0)], [])
    zone.sweep(HELD)
    assert _made_after(zone, DAYS[1]) == {"a": -600}
    zone.take_in([line(zone.instruction("a"), 0, "failed")], DAYS[2])
    assert _made_after(zone, DAYS[3]) == {"a": 0}
    assert zone.states() == {f"a {DAYS[0]}": "failed", f"a {DAYS[1]}": "cancelled", f"a {DAYS[3]}": "netted"}


@pytest.mark.rule("sweeping/any-order")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_days_in_any_order_give_the_same_paid_plus_open(zone, order):
    """Swept and sent in any order, corrected once, with a failure and a return on the way."""
    for number in order:
        day = DAYS[number]
        zone.owe(day, a=600 + number, b=150, c=-200 - number)
        zone.sweep(PARTIES, day)
        if number == 1:
            zone.owe(day, revision=2, a=500, b=150, c=-201)
            zone.sweep(PARTIES, day)
        zone.dispatch(PARTIES, FakeProcessor(answer=reject if number == 2 else lambda _key: None), day)
    for party, owed in {"a": 600 + 500 + 602, "b": 450, "c": -200 - 201 - 202}.items():
        paid = zone.value(
            """SELECT coalesce(sum(amount_minor * CASE direction WHEN 'debit' THEN -1 ELSE 1 END), 0)::bigint
               FROM payout_instructions JOIN instruction_states USING (instruction_id)
               WHERE party_id = %s AND state IN ('approved', 'submitted')""",
            party,
        )
        assert paid + zone.open_items().get(party, 0) == owed
    assert zone.party_balances_disagree() == []


def test_an_item_that_came_back_waits_for_a_later_day_even_if_a_sweep_cancels_what_claimed_it_since(zone):
    zone.owe(DAYS[0], a=600)
    _fail(zone, DAYS[0])
    zone.dispatch(PARTIES, FakeProcessor(), DAYS[1])
    zone.sweep(PARTIES, DAYS[2])
    zone.owe(DAYS[0], revision=2, a=700)
    assert zone.sweep(PARTIES, DAYS[0]).cancelled == 1
    # The correction is new to the day; what failed under it is not.
    assert _made(zone, DAYS[0]) == {"a": 600} | {"a": 100}
    assert _made_after(zone, DAYS[1]) == {"a": 700}, "what failed and its correction are netted"


def test_an_overpayment_is_taken_back_by_a_later_day_even_if_a_sweep_cancels_what_claimed_it_since(zone):
    zone.owe(DAYS[0], a=600)
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("a"), -900)], DAYS[1])
    zone.owe(DAYS[1], a=500)
    # Free to later days only, and so is what it is netted with.
    assert zone.sweep(PARTIES, DAYS[1]).plan.deferrals["reason"].tolist() == ["nets_later"]
    zone.owe(DAYS[2], a=400)
    assert _made_after(zone, DAYS[2]) == {"a": 600}
    zone.owe(DAYS[2], revision=2, a=450)
    assert zone.sweep(PARTIES, DAYS[1]).cancelled == 1
    assert zone.open_items() == {"a": 650}
    assert _made_after(zone, DAYS[2]) == {"a": 650}
