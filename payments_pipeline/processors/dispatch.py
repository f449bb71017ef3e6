"""Dispatch: the only step that acts on the outside world.

Belongs here: the order of committing, sending and committing again. Does not belong here: SQL
(`storage.payout_submissions`), HTTP (the adapters), the clock (handed in).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.payout_submissions import execution_day, sendable_for
from payments_pipeline.domain.policy import Policy
from payments_pipeline.processors.base import (
    Capabilities,
    Direction,
    LookUpStatus,
    PayoutProcessor,
    PayoutRequest,
)
from payments_pipeline.storage import payout_submissions as store
from payments_pipeline.storage.payout_submissions import Attempt, LookedUp, Outcome
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, session_lock

#: How often a long dispatch says how far it has come; one that is over sooner says nothing.
_TOLD_EVERY = timedelta(seconds=5)
#: A processor that asks for a longer pause is asked again by the next dispatch.
_LONGEST_PAUSE_S = 30.0
#: What is sent again later than this after its first sending is the next dispatch's, which looks at the parties anew.
_RETRIED_FOR = timedelta(seconds=60)
Clock = Callable[[], datetime]
Sleep = Callable[[float], Awaitable[None]]


def utc_now() -> datetime:
    """Give the wall clock's instant."""
    return datetime.now(UTC)


@dataclass
class Dispatched:
    """What a dispatch did, in instructions.

    Attributes:
        cancelled: refused by the gate; their items are free again.
        sent: first attempts committed and sent.
        acknowledged: the processor has them.
        rejected: refused for good; their items are free again.
        unavailable: not accepted so far; sent again by the next dispatch.
        unknown: no answer; asked about by the next dispatch.
        resolved: unknown before, known now.
        waiting: left for later: over a sending limit, or after the breaker opened.
        stopped: why the dispatch stopped early; empty where it did not.
        doubts: what only a person can end, in words, the first few by name; empty where there is nothing.
    """

    cancelled: int = 0
    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unavailable: int = 0
    unknown: int = 0
    resolved: int = 0
    waiting: int = 0
    stopped: str = ""
    doubts: str = ""
    _failures_in_a_row: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Dispatch:
    """One day's dispatch.

    Attributes:
        url: business database.
        day: dispatching day.
        processor: adapter.
        policy: limits and batch sizes.
        zone: whose calendar days the sending limits are for.
        run: who dispatches.
        clock: gives now.
        sleep: waits.
        progress: told in words how far a long dispatch has come, every few seconds.
    """

    url: str
    day: date
    processor: PayoutProcessor
    policy: Policy
    zone: ZoneInfo
    run: RunInfo
    clock: Clock = utc_now
    sleep: Sleep = asyncio.sleep
    progress: Callable[[str], None] = lambda _words: None

    def __call__(self, parties: pd.DataFrame) -> Dispatched:
        """Ask about what is unknown, then send what is approved, of any sweep up to the day.

        Args:
            parties: party_id, status, payout_token, collection_token as of now.

        Raises:
            LedgerFaultError: what is stored breaks a rule of the ledger; nothing was sent.
        """
        with connect(self.url) as connection, session_lock(connection, Lock.DISPATCH):
            return asyncio.run(self._dispatch(connection, parties))

    async def _dispatch(self, connection: psycopg.Connection, parties: pd.DataFrame) -> Dispatched:
        done = Dispatched()
        name = self.processor.name
        store.check_ledger(connection)
        store.abandon_unanswered(connection, self.day, name, self.run)
        store.give_up_expired(connection, self.day, name, self.clock(), self.run)
        async with self.processor:
            # One rate and one number of requests under way for all that a dispatch asks and sends.
            lane = _Lane(self.processor.capabilities, self.sleep)
            await self._resolve(connection, parties, lane, done)
            # What was sent before asks the gate too: a hold may have come since.
            before = store.unavailable(connection, self.day, name, self.clock())
            again = store.may_leave_again(connection, self.day, before, parties, self.run)
            fits = store.within_limits_again(connection, again, self.zone, self.policy)
            done.waiting += len(again) - len(fits)
            if fits:
                await self._send(connection, store.begin_again(connection, self.day, fits, self.run), lane, done)
            done.cancelled = store.refuse_unpayable(connection, self.day, name, parties, self.run)
            await self._send_approved(connection, parties, lane, done)
        return done

    async def _send_approved(
        self, connection: psycopg.Connection, parties: pd.DataFrame, lane: _Lane, done: Dispatched
    ) -> None:
        approved = store.approved(connection, self.day, self.processor.name, self.zone, self.policy)
        done.waiting += int((~approved["fits"]).sum())
        approved = approved[approved["fits"]].reset_index(drop=True)
        size = self.policy.dispatch.batch_size
        told_at = began_at = self.clock()
        for start in range(0, len(approved), size):
            if done.stopped:
                done.waiting += len(approved) - start
                return
            batch = approved.iloc[start : start + size].reset_index(drop=True)
            execute_on = [execution_day(sweep_day, self.day) for sweep_day in batch["sweep_day"]]
            requests = [
                self.processor.encode(
                    PayoutRequest(
                        instruction_id=row["instruction_id"],
                        idempotency_key=row["instruction_id"],
                        direction=Direction(row["direction"]),
                        amount_minor=int(row["amount_minor"]),
                        currency=row["currency"],
                        token=row["token"],
                        execute_on=execute,
                    )
                )
                for row, execute in zip(batch.to_dict("records"), execute_on, strict=True)
            ]
            window = sendable_for(self.processor.capabilities.key_lifetime, self.policy)
            not_after = self.clock() + window
            # The gate looks once more: the batches before took their time.
            attempts, refused = store.begin(
                connection, self.day, batch, requests, execute_on, not_after, window, parties, self.run
            )
            done.sent += len(attempts)
            done.cancelled += refused
            await self._send(connection, attempts, lane, done)
            now = self.clock()
            if now - told_at >= _TOLD_EVERY:
                told_at = now
                self.progress(_how_far(min(start + size, len(approved)), len(approved), now - began_at, done))

    async def _send(
        self, connection: psycopg.Connection, attempts: Sequence[Attempt], lane: _Lane, done: Dispatched
    ) -> None:
        """Send committed attempts; what was definitely not accepted is tried again, as an attempt of its own."""
        began_at = self.clock()
        for retry in range(self.policy.dispatch.retries + 1):
            outcomes = await self._send_once(attempts, lane, done)
            store.finish(connection, self.day, outcomes, self.run)
            done.acknowledged += sum(outcome.outcome == "acknowledged" for outcome in outcomes)
            done.rejected += sum(outcome.outcome == "rejected" for outcome in outcomes)
            done.unknown += sum(outcome.outcome == "unknown" for outcome in outcomes)
            again = [o.attempt.instruction_id for o in outcomes if o.outcome in ("unavailable", "not_sent")]
            if not again:
                return
            asked_s = max(outcome.retry_after_s for outcome in outcomes)
            # Full jitter: many senders that failed together do not come back together.
            pause_s = asked_s + random.uniform(0, 0.2 * 2**retry)  # noqa: S311 - no secret depends on it
            too_late = self.clock() - began_at + timedelta(seconds=pause_s) > _RETRIED_FOR
            if done.stopped or retry == self.policy.dispatch.retries or asked_s > _LONGEST_PAUSE_S or too_late:
                done.unavailable += len(again)
                return
            await self.sleep(pause_s)
            attempts = store.begin_again(connection, self.day, again, self.run)

    async def _send_once(self, attempts: Sequence[Attempt], lane: _Lane, done: Dispatched) -> list[Outcome]:
        async def send(attempt: Attempt) -> Outcome:
            async with lane:
                if done.stopped:
                    return Outcome(attempt, "not_sent", message=done.stopped)
                outcome = await self._submit(attempt)
                self._judge(outcome, done)
                return outcome

        return await asyncio.gather(*(send(attempt) for attempt in attempts))

    async def _submit(self, attempt: Attempt) -> Outcome:
        if self.clock() >= attempt.not_after:
            return Outcome(attempt, "unknown", message="its deadline passed: its key may have died at the processor")
        try:
            acknowledgement = await self.processor.submit(attempt.request, attempt.idempotency_key)
        except PayoutRejectedError as error:
            return Outcome(attempt, "rejected", code=error.code, message=str(error))
        except ProcessorUnavailableError as error:
            return Outcome(attempt, "unavailable", message=str(error), retry_after_s=error.retry_after_s)
        except PayoutOutcomeUnknownError as error:
            return Outcome(attempt, "unknown", message=str(error))
        return Outcome(attempt, "acknowledged", processor_reference=acknowledgement.processor_reference)

    def _judge(self, outcome: Outcome, done: Dispatched) -> None:
        """Open the breaker after a run of failures; one rejected instruction is no failure of the processor."""
        if outcome.outcome in ("unavailable", "unknown"):
            done._failures_in_a_row += 1
            if done._failures_in_a_row >= self.policy.dispatch.breaker_failures and not done.stopped:
                done.stopped = (
                    f"{self.processor.name} failed {done._failures_in_a_row} times in a row: dispatch stopped, and the "
                    "rest was left untouched. It goes on with the next run."
                )
        else:
            done._failures_in_a_row = 0

    async def _resolve(
        self, connection: psycopg.Connection, parties: pd.DataFrame, lane: _Lane, done: Dispatched
    ) -> None:
        """Ask about what is unknown, by its key; send again only what was never seen, while the key lives."""
        asked = store.unknown(connection, self.day, self.processor.name)

        async def ask(attempt: Attempt) -> LookedUp:
            async with lane:
                return await self._look_up(attempt)

        looked_up = await asyncio.gather(*(ask(attempt) for attempt in asked))
        alive = {attempt.instruction_id for attempt in asked if self.clock() < attempt.not_after}
        never_seen = [
            each.instruction_id for each in looked_up if each.answer == "never_seen" and each.instruction_id in alive
        ]
        again = set(store.may_leave_again(connection, self.day, never_seen, parties, self.run))
        moves = [
            (each.instruction_id, *_MOVES[each.answer])
            for each in looked_up
            if each.answer in _MOVES and (each.answer != "never_seen" or each.instruction_id in again)
        ]
        store.resolve(
            connection,
            self.day,
            looked_up,
            pd.DataFrame(moves, columns=["instruction_id", "to_state", "reason"], dtype=object),
            self.run,
        )
        doubts = [each.message or "" for each in looked_up if each.answer == "doubtful"]
        done.doubts = _first_of(doubts)
        done.resolved = len(moves)
        done.unknown = len(asked) - len(moves)

    async def _look_up(self, attempt: Attempt) -> LookedUp:
        """Ask about one; one that is not answered stays unknown and is asked about again by the next dispatch."""
        try:
            told = await self.processor.look_up(attempt.idempotency_key)
        except ProcessorUnavailableError as error:
            return LookedUp(attempt.instruction_id, "unanswered", message=str(error))
        except PayoutOutcomeUnknownError as error:
            return LookedUp(attempt.instruction_id, "doubtful", message=str(error))
        if told.request_sha256 not in (None, hashlib.sha256(attempt.request).hexdigest()):
            return LookedUp(
                attempt.instruction_id,
                "doubtful",
                told.processor_reference,
                told.code,
                told.request_sha256,
                f"{self.processor.name}: key {attempt.idempotency_key} stands for another request than ours. What "
                "became of ours a person must find out; it stays unknown.",
            )
        return LookedUp(
            attempt.instruction_id,
            str(told.status),
            told.processor_reference,
            told.code,
            told.request_sha256,
            told.message,
        )


#: Where the answer of a look-up leads.
_MOVES = {
    str(LookUpStatus.ACCEPTED): (State.SUBMITTED, "looked up: the processor has it"),
    str(LookUpStatus.REJECTED): (State.FAILED, "looked up: rejected"),
    str(LookUpStatus.NEVER_SEEN): (State.SUBMITTING, "looked up: never seen, its key is alive"),
}


def _first_of(doubts: Sequence[str], at_most: int = 10) -> str:
    more = len(doubts) - at_most
    return " ".join([*sorted(doubts)[:at_most], *([f"And {more} more."] if more > 0 else [])])


def _how_far(gone: int, of: int, took: timedelta, done: Dispatched) -> str:
    return (
        f"{gone} of {of} instructions, {gone / took.total_seconds():.0f} a second, {of - gone} left: "
        f"{done.acknowledged} acknowledged, {done.rejected} rejected, {done.unknown} without an answer, "
        f"{done.unavailable} to be sent again, {done.cancelled} cancelled"
    )


class _Lane:
    """Lets calls through one after the other, at most so many a second, evenly, and at most so many at once."""

    def __init__(self, capabilities: Capabilities, sleep: Sleep) -> None:
        self._slots = asyncio.Semaphore(capabilities.max_concurrency)
        self._gap_s = 1 / capabilities.requests_per_second
        self._next_s = 0.0
        self._sleep = sleep

    async def __aenter__(self) -> None:
        await self._slots.acquire()
        now = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now - 0.05) + self._gap_s
        if self._next_s > now:
            try:
                await self._sleep(self._next_s - now)
            except BaseException:
                self._slots.release()
                raise

    async def __aexit__(self, *_error: object) -> None:
        self._slots.release()
