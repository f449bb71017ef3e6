"""A payment processor in memory, with its own truth of what money moved under which key, and every bad habit.

Belongs here: what the processor knows and answers. Does not belong here: what the pipeline makes of it. A key that has
outlived its lifetime is forgotten: the same bytes sent again are a second payment, which `paid_twice` then shows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pandas as pd

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.processors.base import (
    Acknowledgement,
    Capabilities,
    Direction,
    LookUp,
    LookUpStatus,
    PayoutRequest,
    ReportDigest,
    SettlementReport,
)
from simulation.effects import Effects

NAME = "simulated"
KEY_LIFETIME = timedelta(hours=24)
#: Answers that ask for a while, in seconds: 503 does not say, 429 does, and the last for longer than a sender waits.
_PAUSES = {"unavailable": 0.0, "too_many": 7.0, "come_later": 120.0}
#: Answers to a submission: what the processor does with it, and what the sender gets to see.
ANSWERS = ("lost_response", "lost_request", "rejected", *_PAUSES)
_LINE_COLUMNS = [
    "processor",
    "entry_reference",
    "report_date",
    "kind",
    "idempotency_key",
    "processor_reference",
    "subject",
    "amount_minor",
    "currency",
    "reason",
    "occurred_at",
]


_DTYPES = {"amount_minor": np.int64}


@dataclass
class Payment:
    """One request that the processor took.

    Attributes:
        key: idempotency key.
        request: what was asked for.
        accepted_at: by the processor's own clock.
        rejected: refused for good.
        moved_minor: cash that left us for it so far; below zero where it came in.
        over: whether the processor is done with it.
    """

    key: str
    request: dict[str, Any]
    body: bytes
    accepted_at: datetime
    rejected: bool = False
    moved_minor: int = 0
    over: bool = False


@dataclass
class SimulatedProcessor:
    """The processor; its clock is the true one, whatever the pipeline's says.

    Attributes:
        effects: each call of it is a boundary.
        now: the true time.
        seen: told of each request that reaches it: key, bytes, whether its sender had no answer to the one before.
        payments: requests that it took, in order.
        answers: to the next submissions; empty where it behaves.
        down: whether it answers nothing.
        lines: of its reports.
        injected: how often it misbehaved, by kind.
        submissions: requests that were handed over, by key.
        unanswered: keys whose newest request had no answer, nor a look-up since.
    """

    effects: Effects
    now: Callable[[], datetime]
    seen: Callable[[str, bytes, bool], None]
    name: str = NAME
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(KEY_LIFETIME, 3, 1_000_000, 30.0))
    payments: list[Payment] = field(default_factory=list)
    answers: deque[str] = field(default_factory=deque)
    down: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)
    injected: dict[str, int] = field(default_factory=dict)
    submissions: dict[str, int] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    _reported: dict[date, int] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        """Nothing is opened."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is closed."""

    def encode(self, request: PayoutRequest) -> bytes:
        """Give the bytes to send."""
        content = {
            "instruction_id": request.instruction_id,
            "direction": str(request.direction),
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "token": request.token,
            "execute_on": request.execute_on.isoformat(),
        }
        return json.dumps(content, sort_keys=True).encode()

    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        """Take a request, or not, and answer, or not."""
        # As it is handed over: what stands at the boundary may reach the processor long after.
        in_doubt = idempotency_key in self.unanswered
        self.unanswered.add(idempotency_key)
        self.submissions[idempotency_key] = self.submissions.get(idempotency_key, 0) + 1
        self.effects.boundary(outside=True)
        self.seen(idempotency_key, body, in_doubt)
        answer = self._answer()
        if answer == "lost_request":
            raise PayoutOutcomeUnknownError("no answer")
        if answer in _PAUSES:
            self.unanswered.discard(idempotency_key)
            raise ProcessorUnavailableError("503 or 429", retry_after_s=_PAUSES[answer])
        payment = self._take(body, idempotency_key, rejected=answer == "rejected")
        self.effects.boundary(outside=True)
        if answer == "lost_response":
            raise PayoutOutcomeUnknownError("no answer")
        self.unanswered.discard(idempotency_key)
        if payment.rejected:
            raise PayoutRejectedError("refused", code="account_closed")
        return Acknowledgement(f"ref {idempotency_key}")

    def _answer(self) -> str:
        if self.down:
            self._count("processor_down")
            return "unavailable"
        if not self.answers:
            return ""
        answer = self.answers.popleft()
        self._count(answer)
        return answer

    def _count(self, fault: str) -> None:
        self.injected[fault] = self.injected.get(fault, 0) + 1

    def _take(self, body: bytes, key: str, *, rejected: bool) -> Payment:
        known = self._find(key)
        if known is not None:
            assert known.body == body, f"key {key} came with two requests"
            self._count("same_key_again")
            return known
        payment = Payment(key, json.loads(body), body, self.now(), rejected=rejected, over=rejected)
        self.payments.append(payment)
        return payment

    def _find(self, key: str) -> Payment | None:
        """Find what is remembered under a key: the newest request whose key has not died."""
        known = [payment for payment in self.payments if payment.key == key]
        alive = [payment for payment in known if self.now() < payment.accepted_at + KEY_LIFETIME]
        if known and not alive:
            self._count("key_expired")
        return alive[-1] if alive else None

    async def look_up(self, idempotency_key: str) -> LookUp:
        """Say what became of a key that has not died."""
        self.effects.boundary(outside=True)
        if self.down:
            self._count("look_up_unanswered")
            raise ProcessorUnavailableError("503")
        self.unanswered.discard(idempotency_key)
        payment = self._find(idempotency_key)
        if payment is None:
            return LookUp(LookUpStatus.NEVER_SEEN)
        sha256 = hashlib.sha256(payment.body).hexdigest()
        if payment.rejected:
            return LookUp(LookUpStatus.REJECTED, code="account_closed", request_sha256=sha256)
        return LookUp(LookUpStatus.ACCEPTED, f"ref {idempotency_key}", request_sha256=sha256)

    async def report_digests(self, first: date, last: date) -> list[ReportDigest]:
        """List reports that have lines."""
        dates = sorted({line["report_date"] for line in self.lines if first <= line["report_date"] <= last})
        return [ReportDigest(day, len(self._of(day)), self._digest(day)) for day in dates]

    async def report(self, report_date: date) -> SettlementReport:
        """Give one date's report as it is now."""
        self.effects.boundary(outside=True)
        if self.down:
            self._count("report_unanswered")
            raise ProcessorUnavailableError("503")
        of_date = self._of(report_date)
        self._reported[report_date] = len(of_date)
        lines = pd.DataFrame(
            {name: np.array([line[name] for line in of_date], _DTYPES.get(name, object)) for name in _LINE_COLUMNS}
        )
        each = {line["entry_reference"]: line for line in self.lines}.values()  # one that comes twice is one
        before = [line for line in each if line["report_date"] <= report_date]
        currencies = sorted({line["currency"] for line in before})
        closing = [sum(line["amount_minor"] for line in before if line["currency"] == code) for code in currencies]
        opening = [
            sum(
                line["amount_minor"]
                for line in before
                if line["currency"] == code and line["report_date"] < report_date
            )
            for code in currencies
        ]
        balances = pd.DataFrame({"currency": currencies, "opening_minor": opening, "closing_minor": closing})
        return SettlementReport(
            report_date,
            self._digest(report_date),
            lines,
            balances.astype({"opening_minor": "int64", "closing_minor": "int64"}),
        )

    def _of(self, day: date) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["report_date"] == day]

    def _digest(self, day: date) -> str:
        return hashlib.sha256(repr(self._of(day)).encode()).hexdigest()

    # What the processor does on its own ------------------------------------------------------------------------------

    def report_line(
        self, day: date, kind: str, amount_minor: int, currency: str, *, key: str | None = None, subject: str = ""
    ) -> None:
        """Put a line on a date's report."""
        if self._reported.get(day):
            self._count("report_grown")
        self.lines.append(
            {
                "processor": NAME,
                "entry_reference": f"entry {len(self.lines) + 1}",
                "report_date": day,
                "kind": kind,
                "idempotency_key": key,
                "processor_reference": f"ref {key}" if key else None,
                "subject": subject or None,
                "amount_minor": amount_minor,
                "currency": currency,
                "reason": "account_closed" if kind in ("failed", "returned") else None,
                "occurred_at": pd.Timestamp(day, tz="UTC"),
            }
        )

    def move(self, payment: Payment, day: date, kind: str, amount_minor: int) -> None:
        """Move cash for a payment (> 0 as it was instructed, < 0 back) and report it, or report no cash."""
        payment.moved_minor += amount_minor
        payment.over = True
        sign = -1 if payment.request["direction"] == Direction.CREDIT else 1
        self.report_line(day, kind, sign * amount_minor, payment.request["currency"], key=payment.key)

    def paid_twice(self) -> list[str]:
        """Give the keys under which the processor took more than one request."""
        keys = [payment.key for payment in self.payments if not payment.rejected]
        return sorted({key for key in keys if keys.count(key) > 1})


_Given = TypeVar("_Given")


class _Call(Generic[_Given]):
    """A call that is made when its answer is first wanted."""

    def __init__(self, make: Callable[[], _Given]) -> None:
        self._make = make
        self._given: list[_Given] = []

    def result(self) -> _Given:
        """Give the answer."""
        if not self._given:
            self._given.append(self._make())
        return self._given[0]


class InlinePortal:
    """Makes the processor's calls in the caller's own thread, so that what comes when is the scheduler's to say."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, eager: bool) -> None:
        self._loop = loop
        self._eager = eager

    def start_task_soon(self, call: Callable[..., Awaitable[_Given]], *arguments: Any) -> _Call[_Given]:
        """Make a call at once, or once the caller waits for it: what a thread of its own does lies between."""

        async def made() -> _Given:
            return await call(*arguments)

        pending = _Call(lambda: self._loop.run_until_complete(made()))
        if self._eager:
            pending.result()
        return pending


@contextmanager
def inline_portal(*, eager: bool) -> Iterator[InlinePortal]:
    """Open a portal of the caller's own thread."""
    loop = asyncio.new_event_loop()
    try:
        yield InlinePortal(loop, eager=eager)
    finally:
        loop.close()
