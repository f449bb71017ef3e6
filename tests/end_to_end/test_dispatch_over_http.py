"""The dispatch on real Postgres against the sandbox's own process over HTTP: its books and ours agree, come what may.

What is expected is read from the sandbox's own books and counters, and from Postgres, never from what was sent.
"""

import asyncio
import datetime as dt
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from money_zone import DAY, NEXT, POLICY, RUN, MoneyZone, parties_frame, policy
from sandbox_process import API_KEY, SandboxProcess, running_sandbox, until

from payments_pipeline.domain.policy import Policy
from payments_pipeline.processors.dispatch import Dispatched, utc_now
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor
from payments_pipeline.storage.reconciliation import reconcile_day
from payments_pipeline.storage.settlement_records import take_report_in

LATER = [NEXT + dt.timedelta(days=number) for number in range(1, 8)]
OWED = 600
#: One sending each, and no breaker: what a fault does to the one is seen alone.
ONCE = policy(dispatch={"retries": 0, "breaker_failures": 1_000})


def adapter(url: str, **capabilities: Any) -> SandboxProcessor:
    """The real adapter; it is patient, so that a busy machine is no lost answer."""
    processor = SandboxProcessor(url, API_KEY, 60)
    processor.capabilities = replace(processor.capabilities, **capabilities)
    return processor


@dataclass
class Bench:
    """A business database and a processor; each party is owed the same and has a token of its own."""

    zone: MoneyZone
    sandbox: SandboxProcess
    parties: pd.DataFrame = field(default_factory=pd.DataFrame)

    def owe(self, tokens: dict[str, str]) -> None:
        """Owe each party OWED and approve an instruction of it."""
        accounts = {party: {"payout_token": token, "collection_token": token} for party, token in tokens.items()}
        self.parties = parties_frame(**accounts)
        self.zone.owe(**dict.fromkeys(tokens, OWED))
        self.zone.sweep(self.parties)

    def owe_many(self, count: int) -> None:
        self.owe({f"p{number:02}": f"tok_p{number}" for number in range(count)})

    def dispatch(self, day: dt.date = DAY, policy: Policy = ONCE, **other: Any) -> Dispatched:
        processor = other.pop("processor", None) or adapter(self.sandbox.url)
        return self.zone.dispatch(self.parties, processor, day, policy, **other)

    def take_in(self, day: dt.date) -> None:
        """Take in the report of a day as the adapter reads it."""

        async def read() -> Any:
            async with adapter(self.sandbox.url) as processor:
                return await processor.report(day)

        report = asyncio.run(read())
        pots = frozenset(["pot:c1"])
        take_report_in(self.zone.url, day, "sandbox", report.lines, report.balances, report.digest, pots, RUN)

    def states(self) -> dict[str, str]:
        """State of each party's instruction."""
        return {party.split()[0]: state for party, state in self.zone.states().items()}

    def times_paid(self) -> dict[str, int]:
        """How often each party was paid, by the sandbox's books; each of its payments is of one of our instructions."""
        party_of = dict(self.zone.rows("SELECT instruction_id::text, party_id FROM payout_instructions"))
        return dict(Counter(party_of[row["idempotency_key"]] for row in self.sandbox.executed()))

    def sent(self) -> int:
        """How many submissions reached the sandbox, by its own count."""
        return int(self.sandbox.traffic()["requests"]["payments"])

    def reconciled(self, day: dt.date) -> pd.DataFrame:
        return reconcile_day(self.zone.url, day, "sandbox", POLICY).set_index("subject_type")

    def paid_each_once(self) -> None:
        """Each is submitted and paid, once, by both books, and is owed nothing more."""
        parties = sorted(self.parties["party_id"])
        assert self.states() == dict.fromkeys(parties, "submitted")
        assert self.times_paid() == dict.fromkeys(parties, 1)
        assert {(row["amount_minor"], row["currency"]) for row in self.sandbox.executed()} == {(OWED, "GBP")}
        assert self.zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == len(parties)
        assert self.zone.balances() == {"pot:c1": OWED * len(parties), "in_transit:sandbox": -OWED * len(parties)}
        assert self.zone.open_items() == {}
        assert self.zone.party_balances_disagree() == []


@pytest.fixture
def bench(database, tmp_path: Path) -> Iterator[Bench]:
    """Books of its own for each test: an instruction's key is the same in every database."""
    with running_sandbox(tmp_path) as sandbox:
        yield Bench(MoneyZone(database.url), sandbox)


# The breaker, the rate and the concurrency


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("status", {"status": 503}),
        ("status", {"status": 500}),
        ("gateway", {"status": 502}),
    ],
    ids=str,
)
def test_the_breaker_leaves_the_rest_of_the_day_approved_and_untouched_and_the_next_dispatch_sends_it(
    bench: Bench, kind: str, fields: dict[str, Any]
) -> None:
    bench.owe_many(20)
    events = "SELECT party_id, seq, to_state FROM instruction_events JOIN payout_instructions USING (instruction_id)"
    before = set(bench.zone.rows(events))
    bench.sandbox.fault(kind, on="payments", count=None, **fields)
    careful = policy(dispatch={"batch_size": 5, "breaker_failures": 4, "retries": 0})
    done = bench.dispatch(policy=careful, processor=adapter(bench.sandbox.url, max_concurrency=1))
    assert "failed 4 times in a row" in done.stopped
    assert bench.sent() == 4
    assert bench.sandbox.executed() == []
    untouched = {party for party, state in bench.states().items() if state == "approved"}
    assert (len(untouched), done.waiting) == (16, 16)
    assert {row[0] for row in set(bench.zone.rows(events)) - before}.isdisjoint(untouched)
    assert bench.zone.value("SELECT count(DISTINCT instruction_id) FROM payout_attempts") == 4
    bench.sandbox.behave()
    assert bench.dispatch(LATER[0], careful).stopped == ""
    bench.paid_each_once()


@pytest.mark.rule("dispatch/bounded")
def test_no_more_requests_are_under_way_at_the_processor_than_the_adapter_promises(bench: Bench) -> None:
    bench.owe_many(30)
    bench.sandbox.fault("delay_before", on="payments", seconds=600, count=None)
    with ThreadPoolExecutor(1) as pool:
        dispatching = pool.submit(bench.dispatch, processor=adapter(bench.sandbox.url, max_concurrency=4))
        until(lambda: bench.sandbox.traffic()["under_way"] >= 4 or dispatching.done())
        bench.sandbox.behave()  # whatever waits goes on
        assert dispatching.result().acknowledged == 30
    assert bench.sandbox.traffic()["most_under_way"] == 4
    bench.paid_each_once()


@pytest.mark.rule("dispatch/bounded")
def test_one_rate_holds_for_all_that_a_dispatch_asks_and_sends(bench: Bench) -> None:
    per_second, count = 40, 30
    bench.owe_many(count)
    bench.sandbox.fault("drop_after", on="payments", count=count // 2)
    bench.dispatch()
    assert Counter(bench.states().values()) == {"unknown": count // 2, "submitted": count // 2}
    bench.zone.owe(NEXT, **dict.fromkeys(bench.parties["party_id"], OWED))
    bench.zone.sweep(bench.parties, NEXT)
    bench.sandbox.call("DELETE", "/v1/test_helpers/traffic")
    # Before the clock starts nothing is asked; whatever delays a request by more only makes the rate lower.
    started_s = time.monotonic()
    limited = adapter(bench.sandbox.url, requests_per_second=per_second)
    done = bench.dispatch(NEXT, processor=limited, sleep=asyncio.sleep)
    took_s = time.monotonic() - started_s
    assert (done.resolved, done.acknowledged) == (count // 2, count)
    counted = bench.sandbox.traffic()
    assert counted["requests"] == {"payments": count, "look_ups": count // 2, "reports": 0}
    at_once = 3  # the first, and what a twentieth of a second that was missed may make up for
    assert count + count // 2 <= per_second * took_s + at_once


# One bad instruction, and storms


@pytest.mark.rule("dispatch/bad-one")
def test_a_bad_instruction_holds_up_no_other(bench: Bench) -> None:
    bench.owe({"a": "tok_a", "b": "tok_test_decline_b", "c": "tok_c", "d": "no token at all", "e": "tok_e"})
    done = bench.dispatch(policy=policy(dispatch={"batch_size": 1, "breaker_failures": 2, "retries": 0}))
    assert (done.acknowledged, done.rejected, done.stopped) == (3, 2, "")
    assert bench.times_paid() == {"a": 1, "c": 1, "e": 1}
    assert bench.states() == dict.fromkeys("ace", "submitted") | dict.fromkeys("bd", "failed")
    assert bench.zone.rows(
        """SELECT party_id, code FROM payout_attempt_outcomes JOIN payout_instructions USING (instruction_id)
           WHERE outcome = 'rejected' ORDER BY 1"""
    ) == [("b", "account_closed"), ("d", "invalid_token")]
    assert bench.zone.open_items() == {"b": OWED, "d": OWED}
    assert bench.zone.balances()["in_transit:sandbox"] == -3 * OWED
    assert bench.zone.party_balances_disagree() == []


def test_a_storm_of_429_is_waited_out_as_long_as_the_processor_asks_and_each_is_paid_once(bench: Bench) -> None:
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    bench.owe_many(12)
    bench.sandbox.fault("status", on="payments", status=429, retry_after_s=7, count=30)
    patient = policy(dispatch={"retries": 5, "breaker_failures": 1_000})
    done = bench.dispatch(policy=patient, sleep=sleep)
    assert (done.acknowledged, done.unavailable, done.unknown) == (12, 0, 0)
    assert bench.sent() == 30 + 12
    # 12 are refused, again, and 6 a third time: three pauses, none shorter than it asked for.
    assert len([pause for pause in pauses_s if pause >= 7]) == 3
    assert bench.zone.rows("SELECT outcome, count(*) FROM payout_attempt_outcomes GROUP BY 1 ORDER BY 1") == [
        ("acknowledged", 12),
        ("unavailable", 30),
    ]
    bench.paid_each_once()


@pytest.mark.parametrize(
    ("kind", "status"),
    [("status", 500), ("status", 408), ("gateway", 502), ("gateway", 503)],
)
def test_a_storm_of_doubts_ends_with_each_paid_once(bench: Bench, kind: str, status: int) -> None:
    bench.owe_many(12)
    bench.sandbox.fault(kind, on="payments", status=status, count=18)
    unknown = [bench.dispatch(day).unknown for day in (DAY, *LATER[:3])]
    assert unknown == [12, 6, 0, 0]
    assert bench.sandbox.traffic()["requests"] == {"payments": 18 + 12, "look_ups": 12 + 6, "reports": 0}
    bench.paid_each_once()


# Doubts, each ended by a look-up or by a person


@pytest.mark.parametrize("kind", ["drop_after", "cut", "gateway_after"])
def test_an_answer_that_is_lost_is_looked_up_and_the_payment_is_never_sent_again(bench: Bench, kind: str) -> None:
    bench.owe({"a": "tok_a"})
    fields = {"status": 502} if kind == "gateway_after" else {}
    bench.sandbox.fault(kind, on="payments", **fields)
    assert bench.dispatch().unknown == 1
    assert (bench.states(), bench.times_paid()) == ({"a": "unknown"}, {"a": 1})
    assert bench.dispatch(LATER[0]).resolved == 1
    assert bench.sandbox.traffic()["requests"] == {"payments": 1, "look_ups": 1, "reports": 0}
    bench.paid_each_once()
    bench.take_in(NEXT)
    assert bench.states() == {"a": "settled"}
    assert bench.reconciled(NEXT)["status"].tolist() == ["matched", "matched"]


def test_what_is_in_progress_under_its_key_is_asked_about_until_it_is_over(bench: Bench) -> None:
    bench.owe({"a": "tok_a"})
    bench.sandbox.fault("in_progress", on="payments", seconds=600)
    assert bench.dispatch().unknown == 1
    assert bench.dispatch(LATER[0]).unknown == 1
    assert (bench.states(), bench.times_paid(), bench.sent()) == ({"a": "unknown"}, {}, 1)
    bench.sandbox.behave()
    until(lambda: len(bench.sandbox.executed()) == 1)
    assert bench.dispatch(LATER[1]).resolved == 1
    assert bench.sent() == 1
    bench.paid_each_once()


def test_what_was_refused_as_in_progress_and_may_not_leave_again_stays_locked(bench: Bench) -> None:
    """Were it taken for never accepted, its items would be free, and paid once more."""
    bench.owe({"a": "tok_a"})
    bench.sandbox.fault("in_progress", on="payments", seconds=600)
    bench.dispatch()
    bench.parties = parties_frame(a={"status": "on_hold", "payout_token": "tok_a"})
    bench.dispatch(LATER[0])
    bench.sandbox.behave()
    until(lambda: len(bench.sandbox.executed()) == 1)
    assert (bench.states(), bench.zone.open_items()) == ({"a": "unknown"}, {})
    bench.dispatch(LATER[1])
    bench.paid_each_once()


@pytest.mark.rule("dispatch/look-up")
def test_a_key_that_expired_is_looked_up_and_never_sent_again(bench: Bench) -> None:
    bench.owe({"a": "tok_a"})
    bench.sandbox.set_today("2024-09-01")
    bench.sandbox.fault("drop_after", on="payments")
    assert bench.dispatch().unknown == 1
    bench.sandbox.expire(bench.zone.instruction("a"), on="2024-09-03")
    bench.sandbox.set_today("2024-09-03")
    two_days_on = utc_now() + dt.timedelta(days=2)
    for number, day in enumerate(LATER[:2], start=1):
        done = bench.dispatch(day, clock=lambda: two_days_on)
        assert (done.unknown, done.resolved, done.sent) == (1, 0, 0)
        assert bench.sandbox.traffic()["requests"] == {"payments": 1, "look_ups": number, "reports": 0}
    assert (bench.states(), bench.times_paid()) == ({"a": "unknown"}, {"a": 1})
    assert bench.zone.open_items() == {}
    bench.take_in(NEXT)
    assert bench.states() == {"a": "settled"}
    assert bench.zone.balances() == {"pot:c1": OWED, "cash:sandbox": -OWED}


def test_a_key_that_stands_for_another_request_moves_nothing_of_ours_and_is_told(bench: Bench) -> None:
    bench.owe({"a": "tok_a"})
    key = bench.zone.instruction("a")
    assert bench.sandbox.pay(key, amount_minor=99, token="tok_other", execute_on=NEXT.isoformat())[0] == 201
    assert bench.dispatch().unknown == 1
    [(outcome, message)] = bench.zone.rows("SELECT outcome, message FROM payout_attempt_outcomes")
    assert outcome == "unknown"
    assert "has another request under this key (idempotency_key_reuse)" in message
    for day in LATER[:2]:
        done = bench.dispatch(day)
        assert done.unknown == 1
        assert f"key {key} stands for another request than ours" in done.doubts
    assert bench.states() == {"a": "unknown"}
    assert bench.sent() == 1 + 1  # the other one and ours, once
    assert [(row["amount_minor"], row["cash_minor"]) for row in bench.sandbox.executed()] == [(99, -99)]
    assert bench.zone.balances() == {"pot:c1": OWED, "in_transit:sandbox": -OWED}
    # What did move under our key is not hidden: the rest is a break.
    bench.take_in(NEXT)
    row = bench.reconciled(NEXT).loc["instruction"]
    assert (row["status"], row["expected_minor"], row["actual_minor"]) == ("break", OWED, 99)


def test_two_payments_under_one_key_stay_unknown_are_told_and_the_second_is_owed_back(bench: Bench) -> None:
    bench.owe({"a": "tok_a"})
    bench.sandbox.fault("drop_after", on="payments")
    bench.dispatch()
    [(key, request)] = bench.zone.rows("SELECT idempotency_key, request FROM payout_attempts")
    bench.sandbox.fault("pays_twice", on="payments")
    assert bench.sandbox.call("POST", "/v1/payments", bytes(request), key=key)[0] == 201
    assert bench.times_paid() == {"a": 2}
    ids = [row["id"] for row in bench.sandbox.executed()]
    for day in LATER[:2]:
        done = bench.dispatch(day)
        assert (done.unknown, done.resolved) == (1, 0)
        assert all(each in done.doubts for each in ids)
    assert bench.states() == {"a": "unknown"}
    assert bench.times_paid() == {"a": 2}
    bench.take_in(NEXT)
    assert bench.states() == {"a": "settled"}
    assert bench.zone.open_items() == {"a": -OWED}
    assert bench.reconciled(NEXT).loc["cash", "status"] == "matched"


# What the report says of what was sent


@pytest.mark.rule("accounts/short")
def test_what_settled_short_leaves_the_rest_in_transit_as_a_break(bench: Bench) -> None:
    bench.owe({"a": "tok_test_short_100"})
    bench.dispatch()
    bench.take_in(NEXT)
    assert bench.states() == {"a": "settled"}
    assert [row["cash_minor"] for row in bench.sandbox.executed()] == [-(OWED - 100)]
    assert bench.zone.balances() == {"pot:c1": OWED, "cash:sandbox": -(OWED - 100), "in_transit:sandbox": -100}
    rows = bench.reconciled(NEXT)
    assert rows.loc["instruction", ["status", "difference_minor"]].tolist() == ["break", -100]
    assert rows.loc["cash", ["status", "actual_minor"]].tolist() == ["matched", -(OWED - 100)]
    assert bench.zone.open_items() == {}
    assert bench.zone.party_balances_disagree() == []


OUTCOMES = {
    # A status without cash never undoes cash.
    "s0f1": ("settled", {"a": 0}, -OWED),
    # Owed again, then paid after all: the payment is an overpayment that meets what is owed.
    "f0s1": ("failed", {"a": 0}, -OWED),
    "s0r1": ("returned", {"a": OWED}, 0),
    "r0s1": ("returned", {"a": OWED}, 0),
    # Returned after settled after failed: the overpayment is taken back, and what failed is owed.
    "f0s1r2": ("failed", {"a": OWED}, 0),
    "s0s1": ("settled", {"a": -OWED}, -2 * OWED),
}


@pytest.mark.parametrize("steps", OUTCOMES)
def test_whatever_the_lines_and_their_order_cash_is_the_processors_and_the_party_is_owed_the_rest(
    bench: Bench, steps: str
) -> None:
    state, owed, cash_minor = OUTCOMES[steps]
    bench.owe({"a": f"tok_test_lines_{steps}"})
    bench.dispatch()
    for day in (NEXT, *LATER[:2]):
        bench.take_in(day)
    assert bench.states() == {"a": state}
    assert [row["cash_minor"] for row in bench.sandbox.executed()] == [cash_minor]
    assert bench.zone.balances().get("cash:sandbox", 0) == cash_minor
    assert bench.zone.balances().get("in_transit:sandbox", 0) == 0
    assert {"a": 0} | bench.zone.open_items() == owed
    assert bench.zone.party_balances_disagree() == []
    assert bench.reconciled(LATER[1]).loc["cash", "status"] == "matched"
    # What is owed, and no more, is sent by a later day.
    bench.zone.sweep(bench.parties, LATER[3])
    rows = bench.zone.rows("SELECT direction, amount_minor FROM payout_instructions WHERE sweep_day = %s", LATER[3])
    sent = sum(amount if direction == "credit" else -amount for direction, amount in rows)
    assert sent == owed["a"]


# The sender's death


def dispatch_in_small_batches(database_url: str, sandbox_url: str, parties: pd.DataFrame) -> None:
    MoneyZone(database_url).dispatch(
        parties, adapter(sandbox_url), DAY, policy(dispatch={"batch_size": 10, "breaker_failures": 1_000})
    )


@pytest.mark.parametrize(("kind", "is_late"), [("delay_after", False), ("delay_before", False), ("delay_before", True)])
def test_a_dispatch_killed_while_its_requests_are_under_way_continues_where_it_was(
    bench: Bench, kind: str, is_late: bool
) -> None:
    """What was under way is carried out all the same, at once or late: the processor knows of no dead client."""
    bench.owe_many(25)
    bench.sandbox.fault(kind, on="payments", seconds=600, count=10)
    arguments = (bench.zone.url, bench.sandbox.url, bench.parties)
    process = multiprocessing.get_context("spawn").Process(target=dispatch_in_small_batches, args=arguments)
    process.start()
    done = 10 if kind == "delay_after" else 0
    until(lambda: bench.sandbox.traffic()["under_way"] == 10 and len(bench.sandbox.executed()) == done)
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert Counter(bench.states().values()) == {"submitting": 10, "approved": 15}
    if not is_late:
        bench.sandbox.behave()
        until(lambda: len(bench.sandbox.executed()) == 10)
    told = bench.dispatch(LATER[0])
    assert (told.resolved, told.sent, told.unknown) == (10, 15, 0)
    # Never seen so far, they are sent again as they were; the first sending comes to nothing when it arrives.
    assert bench.sent() == 25 + (10 if is_late else 0)
    bench.sandbox.behave()
    until(lambda: bench.sandbox.traffic()["under_way"] == 0)
    bench.paid_each_once()
