"""Dispatch: the only step that acts on the outside world.

Belongs here: the order of committing, sending and committing again. Does not belong here: SQL
(`storage.payout_submissions`), HTTP (the adapters), the clock (handed in).

The processor's calls are made in a thread of their own, and Postgres is asked in the caller's, on one connection:
neither waits for the other, and whatever interrupts the caller finds the connection in no other hands.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol, TypeVar
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg
from anyio.from_thread import start_blocking_portal

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.payout_submissions import beyond_limits, execution_day, sendable_for
from payments_pipeline.domain.policy import Policy
from payments_pipeline.processors.base import (
    Direction,
    LookUpStatus,
    PayoutProcessor,
    PayoutRequest,
)
from payments_pipeline.processors.pacing import Breaker, Lane, Sleep
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
_Of = TypeVar("_Of")
_Given = TypeVar("_Given")
_Told = TypeVar("_Told", covariant=True)


class Pending(Protocol[_Told]):
    """What a call that was started will give."""

    def result(self) -> _Told:
        """Wait for it; raises what the call raised."""
        ...


class Portal(Protocol):
    """Where calls of a processor are made while the caller goes on."""

    def start_task_soon(self, call: Callable[..., Awaitable[_Given]], *arguments: Any) -> Pending[_Given]:
        """Start a call."""
        ...


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
        portal: opens where the processor's calls are made; what is under way when it is left by an error is given up.
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
    portal: Callable[[], AbstractContextManager[Portal]] = start_blocking_portal
    progress: Callable[[str], None] = lambda _words: None

    def __call__(self, parties: pd.DataFrame) -> Dispatched:
        """Ask about what is unknown, then send what is approved, of any sweep up to the day.

        Args:
            parties: party_id, status, payout_token, collection_token as of now.

        Raises:
            LedgerFaultError: what is stored breaks a rule of the ledger; nothing was sent.
        """
        with (
            connect(self.url) as connection,
            session_lock(connection, Lock.DISPATCH),
            self.portal() as portal,
        ):
            return _Course(self, connection, parties, portal).run()


class _Course:
    """One dispatch under way."""

    def __init__(self, order: Dispatch, connection: psycopg.Connection, parties: pd.DataFrame, portal: Portal) -> None:
        self.connection, self.portal = connection, portal
        self.parties = parties
        self.day, self.by, self.clock = order.day, order.run, order.clock
        self.processor, self.policy, self.zone = order.processor, order.policy, order.zone
        self.sleep, self.progress = order.sleep, order.progress
        # One rate, one number of requests under way and one breaker for all that a dispatch asks and sends.
        self.lane = Lane(self.processor.capabilities, self.sleep)
        self.breaker = Breaker(self.processor.name, self.policy.dispatch)
        self.done = Dispatched()
        self.doubts: list[str] = []
        self.told_at = self.clock()

    def run(self) -> Dispatched:
        name = self.processor.name
        store.check_ledger(self.connection)
        store.abandon_unanswered(self.connection, self.day, name, self.by)
        store.give_up_expired(self.connection, self.day, name, self.clock(), self.by)
        with self.opened():
            self.resolve()
            self.send_again()
            self.done.cancelled += store.refuse_unpayable(self.connection, self.day, name, self.parties, self.by)
            self.send_approved()
        self.done.stopped, self.done.doubts = self.breaker.why, _first_of(self.doubts)
        return self.done

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the processor's connections."""
        self.portal.start_task_soon(self.processor.__aenter__).result()
        try:
            yield
        finally:
            self.portal.start_task_soon(self.processor.__aexit__, None, None, None).result()

    # What was sent before ---------------------------------------------------------------------------------------------

    def resolve(self) -> None:
        """Ask about what is unknown, by its key; send again only what was never seen, while the key lives."""
        asked = store.unknown(self.connection, self.day, self.processor.name)
        began_at, gone = self.clock(), 0
        for batch in self.breaker.batches(asked):
            answers = _all(self.portal.start_task_soon(_together, self.look_up, batch))
            looked_up = [answer for answer in answers if answer is not None]
            alive = {attempt.instruction_id for attempt in batch if self.clock() < attempt.not_after}
            never_seen = [
                each.instruction_id
                for each in looked_up
                if each.answer == "never_seen" and each.instruction_id in alive
            ]
            again = set(store.may_leave_again(self.connection, self.day, never_seen, self.parties, self.by))
            moves = [
                (each.instruction_id, *_MOVES[each.answer])
                for each in looked_up
                if each.answer in _MOVES and (each.answer != "never_seen" or each.instruction_id in again)
            ]
            frame = pd.DataFrame(moves, columns=["instruction_id", "to_state", "reason"], dtype=object)
            self.done.resolved += store.resolve(self.connection, self.day, looked_up, frame, self.by)
            self.doubts += [each.message or "" for each in looked_up if each.answer == "doubtful"]
            gone += len(batch)
            self.tell("looked up", gone, len(asked), began_at)
        self.done.unknown = len(asked) - self.done.resolved

    async def look_up(self, attempt: Attempt) -> LookedUp | None:
        """Ask about one; None once nobody is asked any more. What has no answer is asked about by the next dispatch."""
        async with self.lane:
            if self.breaker.why:
                return None
            found = await self.ask(attempt)
        self.breaker.judge(failed=found.answer == "unanswered")
        return found

    async def ask(self, attempt: Attempt) -> LookedUp:
        key = attempt.idempotency_key
        try:
            told = await self.processor.look_up(key)
        except ProcessorUnavailableError as error:
            return LookedUp(attempt.instruction_id, "unanswered", message=str(error))
        except PayoutOutcomeUnknownError as error:
            return LookedUp(attempt.instruction_id, "doubtful", message=str(error))
        except Exception as error:  # noqa: BLE001 - whatever an adapter fails at, the others are asked about
            return LookedUp(attempt.instruction_id, "doubtful", message=_unforeseen(self.processor.name, key, error))
        about = (attempt.instruction_id, told.processor_reference, told.code, told.request_sha256)
        if told.request_sha256 not in (None, hashlib.sha256(attempt.request).hexdigest()):
            words = (
                f"{self.processor.name}: key {key} stands for another request than ours. What became of ours a person "
                "must find out; it stays unknown."
            )
            return LookedUp(about[0], "doubtful", *about[1:], words)
        return LookedUp(about[0], str(told.status), *about[1:], told.message)

    def send_again(self) -> None:
        """Send again what was never accepted; it asks the gate too, for a hold or a correction may have come since."""
        before = store.unavailable(self.connection, self.day, self.processor.name, self.clock())
        began_at, gone = self.clock(), 0
        for batch in self.breaker.batches(before):
            again = store.may_leave_again(self.connection, self.day, list(batch), self.parties, self.by)
            fits = store.within_limits_again(self.connection, again, self.zone, self.policy)
            self.done.waiting += len(again) - len(fits)
            if fits:
                began = self.clock()
                self.follow(
                    self.answered(self.start(store.begin_again(self.connection, self.day, fits, self.by))), began
                )
            gone += len(batch)
            self.tell("sent again", gone, len(before), began_at)
        self.done.waiting += len(before) - gone

    # What is sent for the first time ----------------------------------------------------------------------------------

    def send_approved(self) -> None:
        approved = store.approved(self.connection, self.day, self.processor.name, self.zone, self.policy)
        self.done.waiting += int((~approved["fits"]).sum())
        self.doubts += [
            f"instruction {each} of {amount_minor} {currency} (minor units) is above what may be sent on a day: it "
            "waits until the policy admits it, or somebody refuses it."
            for each, amount_minor, currency in beyond_limits(approved, self.policy)
        ]
        approved = approved[approved["fits"]].reset_index(drop=True)
        batches = self.breaker.batches(range(len(approved)))
        began_at, gone, left = self.clock(), 0, len(approved)
        unwritten: list[Outcome] = []
        # Once a batch as large as any went through, the next is committed while one is under way.
        is_steady = False
        batch = self.begin(approved, batches)
        while batch is not None:
            places, attempts = batch
            left -= len(places)
            began = self.clock()
            under_way = self.start(attempts)
            try:
                self.finish(unwritten)
                ahead = self.begin(approved, batches) if is_steady else None
            except Exception as error:
                # What becomes of these is known soon, whatever this broke off at.
                try:
                    self.finish(self.answered(under_way))
                except Exception as also:  # noqa: BLE001 - told with the first; the next dispatch looks these up
                    error.add_note(f"What came of {len(attempts)} attempts was not written down either: {also}")
                raise
            outcomes = self.answered(under_way)
            went_through = all(outcome.outcome in ("acknowledged", "rejected") for outcome in outcomes)
            is_steady = went_through and len(outcomes) == self.policy.dispatch.batch_size
            unwritten = outcomes if went_through and ahead is not None else []
            if not unwritten:
                self.follow(outcomes, began)
            gone += len(places)
            self.tell("instructions", gone, len(approved), began_at)
            batch = ahead if ahead is not None else self.begin(approved, batches)
        self.done.waiting += left

    def begin(
        self, approved: pd.DataFrame, batches: Iterator[Sequence[int]]
    ) -> tuple[Sequence[int], list[Attempt]] | None:
        """Commit the attempts of the next batch; None where there is none."""
        places = next(batches, None)
        if places is None:
            return None
        batch, requests = self.encoded(approved.iloc[list(places)].reset_index(drop=True))
        execute_on = [execution_day(sweep_day, self.day) for sweep_day in batch["sweep_day"]]
        window = sendable_for(self.processor.capabilities.key_lifetime, self.policy)
        not_after = self.clock() + window
        # The gate looks once more: the batches before took their time.
        attempts, refused = store.begin(
            self.connection, self.day, batch, requests, execute_on, not_after, window, self.parties, self.by
        )
        self.done.sent += len(attempts)
        self.done.cancelled += refused
        return places, attempts

    def encoded(self, batch: pd.DataFrame) -> tuple[pd.DataFrame, list[bytes]]:
        """Give the bytes to send; an instruction that cannot be written is cancelled, alone."""
        requests: list[bytes] = []
        faults: dict[str, str] = {}
        for row in batch.to_dict("records"):
            request = PayoutRequest(
                instruction_id=row["instruction_id"],
                idempotency_key=row["instruction_id"],
                direction=Direction(row["direction"]),
                amount_minor=int(row["amount_minor"]),
                currency=row["currency"],
                token=row["token"],
                execute_on=execution_day(row["sweep_day"], self.day),
            )
            try:
                requests.append(self.processor.encode(request))
            except Exception as error:  # noqa: BLE001 - whatever an adapter fails at, the others are sent
                faults[row["instruction_id"]] = f"{self.processor.name} cannot be asked for it: {_named(error)}"
        if faults:
            self.done.cancelled += store.refuse_unwritable(self.connection, self.day, faults, self.by)
            self.doubts += [f"instruction {each} was cancelled: {why}." for each, why in faults.items()]
        return batch[~batch["instruction_id"].isin(list(faults))].reset_index(drop=True), requests

    def start(self, attempts: Sequence[Attempt]) -> Pending[list[Outcome | BaseException]]:
        """Send committed attempts; the caller goes on."""
        return self.portal.start_task_soon(_together, self.send_one, attempts)

    def answered(self, under_way: Pending[list[Outcome | BaseException]]) -> list[Outcome]:
        """Wait for what came of attempts."""
        outcomes = _all(under_way)
        self.done.acknowledged += sum(outcome.outcome == "acknowledged" for outcome in outcomes)
        self.done.rejected += sum(outcome.outcome == "rejected" for outcome in outcomes)
        self.done.unknown += sum(outcome.outcome == "unknown" for outcome in outcomes)
        return outcomes

    def finish(self, outcomes: list[Outcome]) -> None:
        """Commit what came of attempts."""
        store.finish(self.connection, self.day, outcomes, self.by)

    def follow(self, outcomes: list[Outcome], began_at: datetime) -> None:
        """Commit what came of attempts; what was definitely not accepted is tried again, as an attempt of its own."""
        for retry in range(self.policy.dispatch.retries + 1):
            self.finish(outcomes)
            again = [o.attempt.instruction_id for o in outcomes if o.outcome in ("unavailable", "not_sent")]
            if not again:
                return
            asked_s = max(outcome.retry_after_s for outcome in outcomes)
            # Full jitter: many senders that failed together do not come back together.
            pause_s = asked_s + random.uniform(0, 0.2 * 2**retry)  # noqa: S311 - no secret depends on it
            too_late = self.clock() - began_at + timedelta(seconds=pause_s) > _RETRIED_FOR
            if self.breaker.why or retry == self.policy.dispatch.retries or asked_s > _LONGEST_PAUSE_S or too_late:
                self.done.unavailable += len(again)
                return
            self.portal.start_task_soon(self.sleep, pause_s).result()
            outcomes = self.answered(self.start(store.begin_again(self.connection, self.day, again, self.by)))

    async def send_one(self, attempt: Attempt) -> Outcome:
        async with self.lane:
            if self.breaker.why:
                return Outcome(attempt, "not_sent", message=self.breaker.why)
            outcome = await self.submit(attempt)
        self.breaker.judge(failed=outcome.outcome in ("unavailable", "unknown"))
        return outcome

    async def submit(self, attempt: Attempt) -> Outcome:
        if self.clock() >= attempt.not_after:
            return Outcome(attempt, "unknown", message="its deadline passed: its key may have died at the processor")
        key = attempt.idempotency_key
        try:
            acknowledgement = await self.processor.submit(attempt.request, key)
        except PayoutRejectedError as error:
            return Outcome(attempt, "rejected", code=error.code, message=str(error))
        except ProcessorUnavailableError as error:
            return Outcome(attempt, "unavailable", message=str(error), retry_after_s=error.retry_after_s)
        except PayoutOutcomeUnknownError as error:
            return Outcome(attempt, "unknown", message=str(error))
        except Exception as error:  # noqa: BLE001 - whatever an adapter fails at, it may have been carried out
            words = _unforeseen(self.processor.name, key, error)
            self.doubts.append(words)
            return Outcome(attempt, "unknown", message=words)
        return Outcome(attempt, "acknowledged", processor_reference=acknowledgement.processor_reference)

    def tell(self, what: str, gone: int, of: int, began_at: datetime) -> None:
        """Say how far a long dispatch has come, every few seconds."""
        now = self.clock()
        if now - self.told_at < _TOLD_EVERY:
            return
        self.told_at = now
        took_s = max((now - began_at).total_seconds(), 0.001)
        done = self.done
        self.progress(
            f"{gone} of {of} {what}, {gone / took_s:.0f} a second, {of - gone} left: {done.acknowledged} acknowledged, "
            f"{done.rejected} rejected, {done.unknown} without an answer, {done.unavailable} to be sent again, "
            f"{done.cancelled} cancelled"
        )


async def _together(call: Callable[[_Of], Awaitable[_Given]], each: Sequence[_Of]) -> list[_Given | BaseException]:
    """Make calls at once, and give what each gave or raised: whatever one breaks off at, the others are answered."""
    return await asyncio.gather(*map(call, each), return_exceptions=True)


def _all(pending: Pending[list[_Given | BaseException]]) -> list[_Given]:
    """Wait for calls made together; raises what the first of them raised."""
    given: list[_Given] = []
    for answer in pending.result():
        if isinstance(answer, BaseException):
            raise answer
        given.append(answer)
    return given


#: Where the answer of a look-up leads.
_MOVES = {
    str(LookUpStatus.ACCEPTED): (State.SUBMITTED, "looked up: the processor has it"),
    str(LookUpStatus.REJECTED): (State.FAILED, "looked up: rejected"),
    str(LookUpStatus.NEVER_SEEN): (State.SUBMITTING, "looked up: never seen, its key is alive"),
}


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _unforeseen(processor: str, key: str, error: Exception) -> str:
    return (
        f"{processor}: key {key}: {_named(error)}. It may have been carried out: it stays locked, and is looked up by "
        "the next dispatch. This is a defect of the adapter: report it."
    )


def _first_of(doubts: Sequence[str], at_most: int = 10) -> str:
    more = len(doubts) - at_most
    return " ".join([*sorted(doubts)[:at_most], *([f"And {more} more."] if more > 0 else [])])
