"""Dispatch against a processor in memory: what each answer or its absence leads to, how fast, what is never done."""

import asyncio
import datetime as dt
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from dispatches import (
    BEFORE,
    LATER,
    ONCE,
    PARTIES,
    REJECTED,
    UNAVAILABLE,
    UNKNOWN,
    Clock,
    keys,
    later,
    many_approved,
    raising,
    two_approved,
)
from money_zone import DAY, NEXT, RUN, FakeProcessor, MoneyZone, line, parties_frame, policy

from payments_pipeline.domain.errors import (
    LedgerFaultError,
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.domain.payout_submissions import execution_day
from payments_pipeline.processors.base import (
    Acknowledgement,
    Capabilities,
    LookUp,
    LookUpStatus,
    PayoutKeyConflictError,
)
from payments_pipeline.processors.dispatch import utc_now
from payments_pipeline.storage import payout_submissions as store
from payments_pipeline.storage.postgres import connect


class SenderDied(BaseException):
    """Stands for the end of the sending process."""


@pytest.fixture
def zone(database) -> MoneyZone:
    """a is owed 600 and d owes 400; both instructions are approved."""
    return two_approved(database.url)


def in_transit(zone: MoneyZone) -> int:
    return zone.balances().get("in_transit:sandbox", 0)


def outcomes(zone: MoneyZone) -> list[tuple[int, str]]:
    return zone.rows("SELECT attempt_no, outcome FROM payout_attempt_outcomes ORDER BY 1, 2")


@pytest.mark.rule("settlement/acknowledged")
def test_what_is_acknowledged_is_submitted_and_not_settled(zone):
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor)
    assert (done.sent, done.acknowledged, done.stopped) == (2, 2, "")
    assert set(zone.states().values()) == {"submitted"}
    assert zone.balances() == {"pot:c1": 600, "suspense": -400, "in_transit:sandbox": -200}
    assert zone.rows("SELECT DISTINCT execute_on, dispatched_on FROM payout_attempts") == [(NEXT, DAY)]
    assert zone.dispatch(PARTIES, processor).sent == 0
    assert len(processor.requests) == 2


def test_the_key_is_the_instructions_own(zone):
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor)
    assert set(keys(processor)) == {zone.instruction("a"), zone.instruction("d")}


@pytest.mark.rule("dispatch/execution-day")
def test_an_instruction_asks_for_the_day_after_the_later_of_its_sweep_and_of_the_dispatching_day(zone):
    """In either order; no dispatch sends what a later day swept: of that one there is the rule alone."""
    zone.owe(LATER[1], b=500)
    zone.sweep(PARTIES, LATER[1])
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor, LATER[1])
    asked = "SELECT i.party_id, i.sweep_day, a.execute_on FROM payout_attempts a JOIN payout_instructions i"
    assert sorted(zone.rows(f"{asked} USING (instruction_id)")) == [
        ("a", DAY, LATER[2]),
        ("b", LATER[1], LATER[2]),
        ("d", DAY, LATER[2]),
    ]
    assert all(f"execute_on={LATER[2]!r}".encode() in body for _, body in processor.requests)
    assert execution_day(LATER[1], DAY) == execution_day(DAY, LATER[1]) == LATER[2]


@pytest.mark.rule("dispatch/committed-before")
def test_the_attempt_is_committed_before_the_request_leaves(zone):
    seen: list[tuple[str, str]] = []

    def look(key: str) -> None:
        seen.extend(
            zone.rows(
                """SELECT state, encode(request, 'escape') FROM payout_attempts JOIN instruction_states
                   USING (instruction_id) WHERE idempotency_key = %s""",
                key,
            )
        )

    processor = FakeProcessor(answer=look)
    zone.dispatch(PARTIES, processor)
    assert {state for state, _ in seen} == {"submitting"}
    assert {text for _, text in seen} == {body.decode() for _, body in processor.requests}


@pytest.mark.rule("dispatch/no-transaction")
def test_no_transaction_is_open_while_the_processor_is_asked(zone, database):
    open_transactions: list[int] = []

    def look(_key: str) -> None:
        with psycopg.connect(database.superuser_url) as connection:
            row = connection.execute(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"""
            ).fetchone()
            open_transactions.append(row[0])

    zone.dispatch(PARTIES, FakeProcessor(answer=look))
    assert open_transactions == [0, 0]


def test_what_is_rejected_is_posted_back_and_free_for_a_later_day(zone):
    done = zone.dispatch(PARTIES, FakeProcessor(answer=REJECTED))
    assert done.rejected == 2
    assert set(zone.states().values()) == {"failed"}
    assert in_transit(zone) == 0
    assert zone.open_items() == {"a": 600, "d": -400}
    assert len(zone.sweep(PARTIES).plan.instructions) == 0
    assert len(zone.sweep(PARTIES, NEXT).plan.instructions) == 2
    assert zone.party_balances_disagree() == []


@pytest.mark.rule("dispatch/same-bytes")
def test_what_was_unavailable_is_sent_again_with_the_same_key_and_bytes(zone):
    tries: dict[str, int] = {}

    def at_the_third(key: str) -> None:
        tries[key] = tries.get(key, 0) + 1
        if tries[key] < 3:
            raise ProcessorUnavailableError("503")

    processor = FakeProcessor(answer=at_the_third)
    done = zone.dispatch(PARTIES, processor)
    assert (done.acknowledged, done.unavailable) == (2, 0)
    assert len(processor.requests) == 6
    assert len(set(processor.requests)) == 2
    assert outcomes(zone) == [
        (n, o) for n, o in [(1, "unavailable"), (2, "unavailable"), (3, "acknowledged")] for _ in "ad"
    ]
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == 2


@pytest.mark.rule("dispatch/retries")
def test_what_stayed_unavailable_goes_with_the_next_dispatch(zone):
    first = FakeProcessor(answer=UNAVAILABLE)
    done = zone.dispatch(PARTIES, first, policy=ONCE)
    assert (done.sent, done.unavailable) == (2, 2)
    assert set(zone.states().values()) == {"submitting"}
    second = FakeProcessor()
    assert zone.dispatch(PARTIES, second, LATER[0]).acknowledged == 2
    assert sorted(second.requests) == sorted(first.requests)
    assert set(zone.states().values()) == {"submitted"}


@pytest.mark.rule("dispatch/look-up")
def test_an_unanswered_request_that_was_accepted_is_found_and_never_sent_again(zone):
    processor = FakeProcessor(lose=UNKNOWN)
    assert zone.dispatch(PARTIES, processor).unknown == 2
    assert set(zone.states().values()) == {"unknown"}
    processor.lose = lambda _key: None
    done = zone.dispatch(PARTIES, processor)
    assert (done.resolved, done.unknown, done.sent) == (2, 0, 0)
    assert set(zone.states().values()) == {"submitted"}
    assert len(processor.requests) == 2


def test_an_unanswered_request_that_was_rejected_is_posted_back(zone):
    processor = FakeProcessor(answer=UNKNOWN, look=lambda _key: LookUp(LookUpStatus.REJECTED, code="closed"))
    zone.dispatch(PARTIES, processor)
    zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"failed"}
    assert (in_transit(zone), zone.open_items()) == (0, {"a": 600, "d": -400})
    assert len(processor.requests) == 2


@pytest.mark.rule("dispatch/look-up")
def test_an_unanswered_request_that_was_never_seen_is_sent_again_as_it_was(zone):
    processor = FakeProcessor(answer=UNKNOWN)
    zone.dispatch(PARTIES, processor)
    processor.answer = lambda _key: None
    done = zone.dispatch(PARTIES, processor)
    assert done.acknowledged == 2
    assert len(processor.requests) == 4
    assert len(set(processor.requests)) == 2
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == 2
    assert set(zone.states().values()) == {"submitted"}


@pytest.mark.rule("instructions/unknown-stays-locked")
def test_a_look_up_without_an_answer_leaves_everything_as_it_is(zone):
    def down(_key: str) -> LookUp:
        raise ProcessorUnavailableError("503")

    processor = FakeProcessor(answer=UNKNOWN, look=down)
    zone.dispatch(PARTIES, processor)
    done = zone.dispatch(PARTIES, processor)
    assert (done.unknown, done.resolved) == (2, 0)
    assert set(zone.states().values()) == {"unknown"}
    assert len(processor.requests) == 2


def test_a_look_up_that_answers_about_other_bytes_resolves_nothing(zone):
    processor = FakeProcessor(
        answer=UNKNOWN, look=lambda _key: LookUp(LookUpStatus.ACCEPTED, "ref", request_sha256="0" * 64)
    )
    zone.dispatch(PARTIES, processor)
    assert zone.dispatch(PARTIES, processor).unknown == 2
    assert set(zone.states().values()) == {"unknown"}


def test_what_only_a_person_can_end_is_told_by_each_dispatch_the_first_of_many_by_name(zone):
    def two_of_them(key: str) -> LookUp:
        raise PayoutOutcomeUnknownError(f"two payments under {key}.")

    processor = FakeProcessor(answer=UNKNOWN, look=two_of_them)
    parties = many_approved(zone, 10)
    patient = policy(dispatch={"breaker_failures": 100})
    assert zone.dispatch(parties, processor, policy=patient).unknown == 12
    for _ in range(2):
        done = zone.dispatch(parties, processor, policy=patient)
        assert (done.unknown, done.resolved, len(processor.requests)) == (12, 0, 12)
        assert done.doubts.count("two payments under") == 10
        assert done.doubts.endswith("And 2 more.")
    assert set(zone.states().values()) == {"unknown"}


@pytest.mark.rule("dispatch/same-bytes")
@pytest.mark.parametrize("error", [PayoutOutcomeUnknownError("timeout"), PayoutKeyConflictError("409")], ids=type)
def test_neither_a_timeout_nor_a_conflict_ever_leads_to_a_second_key(zone, error):
    processor = FakeProcessor(answer=raising(error))
    for day in (DAY, *LATER):
        zone.sweep(PARTIES, day)
        zone.dispatch(PARTIES, processor, day)
    assert len(set(keys(processor))) == 2
    assert zone.value("SELECT count(DISTINCT idempotency_key) FROM payout_attempts") == 2
    assert zone.open_items() == {}


@pytest.mark.rule("dispatch/deadline")
def test_nothing_is_sent_after_its_deadline_and_a_person_is_left_to_decide(zone, database):
    processor = FakeProcessor(answer=UNAVAILABLE)
    zone.dispatch(PARTIES, processor, policy=ONCE)
    later(database, days=2)
    processor.answer = lambda _key: None
    for day in LATER[:2]:
        zone.dispatch(PARTIES, processor, day)
    assert len(processor.requests) == 2
    assert processor.taken == {}
    assert set(zone.states().values()) == {"unknown"}
    assert set(processor.looked_up) == set(keys(processor))


@pytest.mark.rule("dispatch/deadline")
def test_a_clock_that_was_fast_when_it_sent_does_not_outlive_the_key(zone):
    clock = Clock()
    clock.days_later(2)
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), clock=clock)
    clock.days_later(-1 + 6 / 24)  # put right, on the next morning but one: the key died six hours ago
    assert zone.value("SELECT max(not_after - started_at) < interval '24 h' FROM payout_attempts")
    processor = FakeProcessor()
    assert zone.dispatch(PARTIES, processor, LATER[1], clock=clock).unknown == 2
    assert processor.requests == []


@pytest.mark.rule("dispatch/deadline")
def test_the_deadline_is_looked_at_last(zone):
    clock = Clock()
    processor = FakeProcessor()
    first: list[str] = []

    def slowly(key: str) -> None:
        first.append(key)
        clock.days_later(2)

    processor.answer = slowly
    done = zone.dispatch(PARTIES, processor, clock=clock)
    assert (done.acknowledged, done.unknown) == (1, 1)
    assert keys(processor) == first[:1]


@pytest.mark.rule("dispatch/deadline")
def test_a_sender_whose_clock_is_ahead_calls_nothing_unknown_before_its_time(zone):
    clock = Clock()
    processor = FakeProcessor(answer=UNAVAILABLE)
    zone.dispatch(PARTIES, processor, policy=ONCE, clock=clock)
    clock.days_later(2)
    zone.dispatch(PARTIES, processor, LATER[0], clock=clock)
    assert len(processor.requests) == 2
    assert set(zone.states().values()) == {"submitting"}
    processor.answer = lambda _key: None
    assert zone.dispatch(PARTIES, processor, LATER[1]).acknowledged == 2


@pytest.mark.rule("dispatch/deadline")
def test_a_sender_whose_clock_is_behind_sends_nothing_again_after_the_deadline(zone, database):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    later(database, days=2)
    behind = Clock()
    behind.days_later(-3)
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor, NEXT, clock=behind)
    assert (done.unknown, done.resolved) == (2, 0)
    assert sorted(processor.looked_up) == sorted([zone.instruction("a"), zone.instruction("d")])
    assert keys(processor) == []


def test_a_never_seen_request_is_not_sent_after_its_deadline(zone):
    clock = Clock()
    processor = FakeProcessor(answer=UNKNOWN)
    zone.dispatch(PARTIES, processor, clock=clock)
    clock.days_later(2)
    assert zone.dispatch(PARTIES, processor, LATER[1], clock=clock).unknown == 2
    assert len(processor.requests) == 2
    assert set(zone.states().values()) == {"unknown"}


@pytest.mark.rule("dispatch/breaker")
def test_the_breaker_stops_the_dispatch_and_leaves_the_rest_untouched(zone):
    parties = many_approved(zone, 20)
    careful = policy(dispatch={"batch_size": 5, "breaker_failures": 4, "retries": 0})
    processor = FakeProcessor(answer=UNAVAILABLE)
    done = zone.dispatch(parties, processor, policy=careful)
    assert "failed 4 times in a row" in done.stopped
    assert len(processor.requests) == 4
    assert (done.sent, done.unavailable, done.waiting) == (4, 4, 18)
    assert sorted(zone.states().values()) == ["approved"] * 18 + ["submitting"] * 4
    assert zone.dispatch(parties, FakeProcessor(), policy=careful).acknowledged == 22


@pytest.mark.rule("dispatch/breaker")
def test_an_answer_between_failures_begins_the_run_anew(zone):
    parties = many_approved(zone, 20)
    careful = policy(dispatch={"batch_size": 5, "breaker_failures": 4, "retries": 0})
    processor = FakeProcessor(capabilities=Capabilities(dt.timedelta(hours=24), 1, 100_000, 1.0))
    processor.answer = lambda key: UNAVAILABLE(key) if len(processor.requests) % 4 else None
    done = zone.dispatch(parties, processor, policy=careful)
    assert (done.stopped, done.acknowledged, done.unavailable) == ("", 5, 17)


@pytest.mark.rule("dispatch/breaker")
def test_a_processor_that_fails_in_the_middle_touches_no_more_than_a_batch(zone):
    parties = many_approved(zone, 40)
    careful = policy(dispatch={"batch_size": 16, "breaker_failures": 4, "retries": 0})
    processor = FakeProcessor()
    processor.answer = lambda key: UNAVAILABLE(key) if len(processor.requests) > 10 else None
    done = zone.dispatch(parties, processor, policy=careful)
    assert (done.acknowledged, done.sent, done.waiting) == (10, 20, 22)  # batches of 4 and of 16
    assert zone.value("SELECT count(*) FROM instruction_states WHERE state = 'approved'") == 22
    processor.answer = lambda _key: None
    assert zone.dispatch(parties, processor, policy=careful).acknowledged == 32


def submitting(zone: MoneyZone) -> int:
    return zone.value("SELECT count(*) FROM instruction_states WHERE state = 'submitting'")


def wait_for_the_next_batch(zone: MoneyZone, sent: int) -> None:
    """Answer the first request of a batch no sooner than the next is committed: no transaction waits for an answer."""
    until = time.monotonic() + 20
    while zone.value("SELECT count(*) FROM payout_attempts") != sent - 1 + 16:
        assert time.monotonic() < until, "the next batch is not begun while this one is under way"
        time.sleep(0.01)


@pytest.mark.rule("dispatch/committed-before")
@pytest.mark.rule("dispatch/no-transaction")
def test_the_next_batch_is_committed_while_one_is_under_way_once_the_processor_works(zone):
    parties = many_approved(zone, 38)
    small = policy(dispatch={"batch_size": 8, "breaker_failures": 8})
    processor, under_way = FakeProcessor(), []

    def look(key: str) -> None:
        assert zone.value("SELECT count(*) FROM payout_attempts WHERE idempotency_key = %s", key) == 1
        if len(processor.requests) in (9, 17, 25):
            wait_for_the_next_batch(zone, len(processor.requests))
        under_way.append(submitting(zone))

    processor.answer = look
    done = zone.dispatch(parties, processor, policy=small)
    assert (done.sent, done.acknowledged, len(processor.taken)) == (40, 40, 40)
    assert max(under_way[:8]) == 8, "the first shows whether the processor works"
    assert max(under_way[8:]) == 16, "one that is under way and the next, no more"
    assert submitting(zone) == 0


@pytest.mark.rule("dispatch/breaker")
def test_what_was_begun_ahead_when_the_breaker_opens_is_not_sent_and_goes_with_the_next_dispatch(zone):
    parties = many_approved(zone, 38)
    careful = policy(dispatch={"batch_size": 8, "breaker_failures": 8, "retries": 0})
    processor = FakeProcessor()

    def fail_from_the_third_batch_on(key: str) -> None:
        if len(processor.requests) == 17:
            wait_for_the_next_batch(zone, 17)
        if len(processor.requests) >= 17:
            UNAVAILABLE(key)

    processor.answer = fail_from_the_third_batch_on
    done = zone.dispatch(parties, processor, policy=careful)
    assert (done.acknowledged, done.sent, done.unavailable, done.waiting) == (16, 32, 16, 8)
    assert len(processor.requests) == 24
    assert zone.rows("SELECT outcome, count(*) FROM payout_attempt_outcomes GROUP BY 1 ORDER BY 1") == [
        ("acknowledged", 16),
        ("not_sent", 8),
        ("unavailable", 8),
    ]
    processor.answer = lambda _key: None
    assert zone.dispatch(parties, processor, policy=careful).acknowledged == 24
    assert set(zone.states().values()) == {"submitted"}
    assert len(processor.taken) == 40


class Silent(FakeProcessor):
    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        await super().submit(body, idempotency_key)
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Gives what raises KeyboardInterrupt in the main thread; Ctrl-C itself is deaf under several test processes."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(60)
def test_an_interrupt_gives_up_what_is_under_way_and_the_next_dispatch_asks_about_it(zone, database, interrupt):
    processor = Silent(answer=lambda _key: threading.Timer(0.2, interrupt).start())
    with pytest.raises(KeyboardInterrupt):
        zone.dispatch(PARTIES, processor, policy=policy(dispatch={"batch_size": 1}))
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name]
    with psycopg.connect(database.superuser_url) as connection:
        query = """SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   WHERE l.locktype = 'advisory' AND a.datname = current_database()"""
        assert connection.execute(query).fetchone() == (0,)
    assert sorted(zone.states().values()) == ["approved", "submitting"]
    after = FakeProcessor(taken=processor.taken)
    assert zone.dispatch(PARTIES, after).resolved == 1
    assert set(zone.states().values()) == {"submitted"}
    assert len(after.requests) == 1


def test_what_is_under_way_is_written_down_when_the_next_batch_cannot_be_begun(zone, monkeypatch):
    parties = many_approved(zone, 38)
    small = policy(dispatch={"batch_size": 8, "breaker_failures": 8})
    begin, begun = store.begin, []

    def begin_twice(*arguments):
        begun.append(None)
        if len(begun) == 3:
            raise LedgerFaultError("an item of it is given back")
        return begin(*arguments)

    monkeypatch.setattr(store, "begin", begin_twice)
    with pytest.raises(LedgerFaultError):
        zone.dispatch(parties, FakeProcessor(), policy=small)
    assert sorted(zone.states().values()) == ["approved"] * 24 + ["submitted"] * 16
    assert zone.value("SELECT count(*) FROM payout_attempt_outcomes WHERE outcome = 'acknowledged'") == 16


@pytest.mark.rule("dispatch/breaker")
def test_look_ups_without_an_answer_open_the_breaker_and_nothing_is_sent(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    zone.owe(NEXT, b=500)
    zone.sweep(PARTIES, NEXT)
    careful = policy(dispatch={"breaker_failures": 2})
    processor = FakeProcessor(look=UNAVAILABLE)
    done = zone.dispatch(PARTIES, processor, NEXT, careful)
    assert "failed 2 times in a row" in done.stopped
    assert (done.unknown, done.waiting, processor.requests) == (2, 1, [])
    assert zone.rows("SELECT answer, count(*) FROM payout_look_ups GROUP BY 1") == [("unanswered", 2)]


@pytest.mark.rule("dispatch/no-transaction")
def test_nobody_is_looked_up_within_a_transaction(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    open_then: list[int] = []

    def look(_key: str) -> None:
        open_then.append(
            zone.value(
                """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND pid <> pg_backend_pid() AND state = 'idle in transaction'"""
            )
        )

    zone.dispatch(PARTIES, FakeProcessor(look=look), NEXT)
    assert open_then == [0, 0]


@pytest.mark.rule("dispatch/bad-one")
@pytest.mark.parametrize("error", [ValueError("no digits"), KeyError("id"), RuntimeError("loop")], ids=type)
def test_whatever_an_adapter_fails_at_the_others_are_sent_and_that_one_is_looked_up(zone, error):
    parties = many_approved(zone, 4)
    bad = zone.instruction("a")
    processor = FakeProcessor(answer=lambda key: raising(error)(key) if key == bad else None)
    done = zone.dispatch(parties, processor)
    assert (done.acknowledged, done.unknown) == (5, 1)
    assert type(error).__name__ in done.doubts
    assert zone.states()[f"a {DAY}"] == "unknown"
    processor.look = lambda key: raising(error)(key)
    again = zone.dispatch(parties, processor, NEXT)
    assert (again.unknown, zone.states()[f"a {DAY}"]) == (1, "unknown")
    assert type(error).__name__ in again.doubts
    processor.answer = processor.look = lambda _key: None
    assert zone.dispatch(parties, processor, LATER[1]).acknowledged == 1


@pytest.mark.rule("dispatch/bad-one")
def test_an_instruction_that_no_request_can_be_written_for_is_cancelled_alone(zone):
    class Mute(FakeProcessor):
        def encode(self, request):
            if request.amount_minor == 600:
                raise OverflowError("more digits than the processor takes")
            return super().encode(request)

    processor = Mute()
    done = zone.dispatch(PARTIES, processor)
    assert (done.cancelled, done.acknowledged) == (1, 1)
    assert "OverflowError: more digits" in done.doubts
    assert zone.states() == {f"a {DAY}": "cancelled", f"d {DAY}": "submitted"}
    assert zone.open_items() == {"a": 600}


@pytest.mark.rule("dispatch/retries")
def test_what_is_unavailable_is_tried_again_after_pauses_that_grow_and_are_never_alike(zone):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    patient = policy(dispatch={"retries": 6, "breaker_failures": 1000})
    for _ in range(5):
        zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=patient, sleep=sleep)
    rounds = [slept[start : start + 6] for start in range(0, 30, 6)]
    assert len(set(slept)) == 30
    assert all(0 <= pause <= 0.2 * 2**retry for pauses in rounds for retry, pause in enumerate(pauses))
    assert sum(pauses[5] for pauses in rounds) > 4 * sum(pauses[0] for pauses in rounds)


@pytest.mark.rule("dispatch/up-to-its-day")
def test_a_dispatch_neither_asks_about_nor_sends_again_what_is_of_a_later_day(zone):
    zone.owe(NEXT, b=500)
    zone.sweep(PARTIES, NEXT)
    unknown_of_next = zone.instruction("b", NEXT)
    processor = FakeProcessor(answer=lambda key: UNKNOWN(key) if key == unknown_of_next else UNAVAILABLE(key))
    zone.dispatch(PARTIES, processor, NEXT, ONCE)
    assert sorted(zone.states().values()) == ["submitting", "submitting", "unknown"]
    zone.owe(LATER[2], c=500)
    zone.sweep(PARTIES, LATER[2])
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), LATER[2], ONCE)
    today = FakeProcessor()
    zone.dispatch(PARTIES, today, DAY)
    assert sorted(keys(today)) == sorted([zone.instruction("a"), zone.instruction("d")])
    assert today.looked_up == []


@pytest.mark.rule("dispatch/progress")
def test_long_look_ups_say_how_far_they_have_come(zone):
    parties = many_approved(zone, 12)
    small = policy(dispatch={"batch_size": 2})
    zone.dispatch(parties, FakeProcessor(answer=UNKNOWN), policy=policy(dispatch={"retries": 0}))
    start, calls, told = utc_now(), [0], []

    def a_second_a_look() -> dt.datetime:
        calls[0] += 1
        return start + dt.timedelta(seconds=calls[0])

    zone.dispatch(parties, FakeProcessor(), NEXT, small, clock=a_second_a_look, progress=told.append)
    assert any(re.match(r"\d+ of 14 looked up, \d+ a second, \d+ left", words) for words in told)
    assert any(re.match(r"\d+ of 14 sent again", words) for words in told)


@pytest.mark.rule("dispatch/breaker")
def test_rejections_do_not_open_the_breaker(zone):
    parties = many_approved(zone, 10)
    careful = policy(dispatch={"batch_size": 5, "breaker_failures": 2, "retries": 0})
    assert zone.dispatch(parties, FakeProcessor(answer=REJECTED), policy=careful).rejected == 12


def test_a_processor_that_is_down_for_what_is_sent_again_is_asked_for_nothing_more(zone):
    careful = policy(dispatch={"breaker_failures": 2, "retries": 0})
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=careful)
    zone.owe(BEFORE, b=500)
    zone.sweep(PARTIES, BEFORE)
    processor = FakeProcessor(answer=UNAVAILABLE)
    done = zone.dispatch(PARTIES, processor, policy=careful)
    assert len(processor.requests) == 2
    assert done.waiting == 1
    assert zone.states()[f"b {BEFORE}"] == "approved"


@pytest.mark.parametrize("taken", [True, False])
def test_after_the_senders_death_the_next_dispatch_goes_on_without_paying_twice(zone, taken):
    dies = raising(SenderDied())
    processor = FakeProcessor(lose=dies) if taken else FakeProcessor(answer=dies)
    with pytest.raises(SenderDied):
        zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"submitting"}
    processor.answer = processor.lose = lambda _key: None
    zone.dispatch(PARTIES, processor)
    zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"submitted"}
    assert set(processor.taken) == {zone.instruction("a"), zone.instruction("d")}
    assert len(set(processor.requests)) == 2
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == 2


def test_a_connection_killed_while_sending_loses_no_payment_and_doubles_none(zone, database):
    def kill(_key: str) -> None:
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()"""
            )

    processor = FakeProcessor(lose=kill)
    with pytest.raises(psycopg.OperationalError):
        zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"submitting"}
    processor.lose = lambda _key: None
    zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"submitted"}
    assert len(processor.requests) == 2


@pytest.mark.rule("settlement/faster-than-the-answer")
def test_a_report_line_that_is_faster_than_the_answer_stands(zone):
    def report(key: str) -> None:
        if key == zone.instruction("a"):
            zone.take_in([line(key, -600)])
            raise PayoutOutcomeUnknownError("no answer")
        zone.take_in([line(key, 0, "failed")], LATER[1])

    zone.dispatch(PARTIES, FakeProcessor(lose=report))
    assert zone.states() == {f"a {DAY}": "settled", f"d {DAY}": "failed"}
    assert zone.open_items() == {"d": -400}
    assert zone.party_balances_disagree() == []
    assert zone.dispatch(PARTIES, FakeProcessor(), NEXT).sent == 0


def test_a_rejection_after_a_report_line_is_posted_back_once(zone):
    def report(key: str) -> None:
        zone.take_in([line(key, 0, "failed")], DAY + dt.timedelta(days=keys(processor).index(key) + 1))
        raise PayoutRejectedError("closed", code="closed")

    processor = FakeProcessor(answer=report)
    zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"failed"}
    assert in_transit(zone) == 0
    assert zone.open_items() == {"a": 600, "d": -400}


def test_finishing_an_attempt_that_was_abandoned_meanwhile_is_refused(zone):
    """A sender that was taken for dead and lives learns it from Postgres: one outcome an attempt."""
    held: list[store.Attempt] = []

    class Slow(FakeProcessor):
        async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
            await super().submit(body, idempotency_key)
            raise SenderDied

    with pytest.raises(SenderDied):
        zone.dispatch(PARTIES, Slow())
    with connect(zone.url) as connection:
        store.abandon_unanswered(connection, DAY, "sandbox", RUN)
        held = store.unknown(connection, DAY, "sandbox")
        with pytest.raises(psycopg.errors.UniqueViolation):
            store.finish(connection, DAY, [store.Outcome(held[0], "rejected")], RUN)
    assert set(zone.states().values()) == {"unknown"}
    assert zone.open_items() == {}


@pytest.mark.rule("dispatch/progress")
def test_a_long_dispatch_says_every_few_seconds_how_far_it_has_come_and_a_short_one_nothing(database):
    names = [f"p{number:02}" for number in range(12)]
    zone, parties = MoneyZone(database.url), parties_frame(**dict.fromkeys(names, "active"))
    zone.owe(**dict.fromkeys(names, 500))
    zone.sweep(parties)
    start, calls, told = utc_now(), [0], []

    def a_second_a_look() -> dt.datetime:
        calls[0] += 1
        return start + dt.timedelta(seconds=calls[0])

    refusing = zone.instruction("p03")
    processor = FakeProcessor(answer=lambda key: REJECTED(key) if key == refusing else None)
    small = policy(dispatch={"batch_size": 2})
    done = zone.dispatch(parties, processor, policy=small, clock=a_second_a_look, progress=told.append)
    assert (done.acknowledged, done.rejected) == (11, 1)
    assert 1 <= len(told) <= 6
    assert re.fullmatch(
        r"\d+ of 12 instructions, \d+ a second, \d+ left: \d+ acknowledged, [01] rejected, 0 without an answer, "
        r"0 to be sent again, 0 cancelled",
        told[0],
    )
    assert told[-1].startswith("12 of 12 instructions") or "1 rejected" in told[-1]
    zone.sweep(parties, NEXT)
    quiet: list[str] = []
    assert zone.dispatch(parties, FakeProcessor(), LATER[0], progress=quiet.append).sent == 1
    assert quiet == []


def test_one_rate_holds_for_all_batches_retries_and_questions_of_a_dispatch(zone):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    processor = FakeProcessor(capabilities=Capabilities(dt.timedelta(hours=24), 8, 1, 1.0))
    zone.dispatch(PARTIES, processor, policy=policy(dispatch={"batch_size": 1}), sleep=sleep)
    assert len(processor.requests) == 2
    # Nobody really slept: each further call is due a second later than the one before, whichever batch it is of.
    assert [round(seconds) for seconds in slept] == [1, 2]


def test_a_retry_that_comes_after_the_deadline_is_not_begun_and_stops_nothing(zone):
    # By a slow clock the deadline of the first attempt is a second off; the pause before the retry is longer.
    def slow() -> dt.datetime:
        return utc_now() - dt.timedelta(hours=22, minutes=59, seconds=59)

    async def pause(_seconds: float) -> None:
        await asyncio.sleep(1.2)

    processor = FakeProcessor(answer=UNAVAILABLE)
    zone.dispatch(PARTIES, processor, clock=slow, sleep=pause)
    assert len(processor.requests) == 2
    assert set(zone.states().values()) == {"submitting"}
    zone.dispatch(PARTIES, processor)
    assert len(processor.requests) == 2
    assert set(zone.states().values()) == {"unknown"}


@pytest.mark.rule("dispatch/retries")
def test_what_is_not_accepted_within_a_minute_of_its_first_sending_is_left_to_the_next_dispatch(zone):
    clock = Clock()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += dt.timedelta(seconds=seconds)

    busy = raising(ProcessorUnavailableError("503", retry_after_s=25))
    processor = FakeProcessor(answer=busy)
    patient = policy(dispatch={"retries": 20, "breaker_failures": 1000})
    done = zone.dispatch(PARTIES, processor, policy=patient, clock=clock, sleep=sleep)
    assert (done.unavailable, len(processor.requests)) == (2, 6)
    assert 50 <= sum(slept) <= 60
    processor.answer = lambda _key: None
    # A hold since then is seen before anything leaves again.
    zone.dispatch(parties_frame(a="on_hold", d="active"), processor, NEXT, clock=clock)
    assert set(processor.taken) == {zone.instruction("d")}
    assert zone.states()[f"a {DAY}"] == "failed"
