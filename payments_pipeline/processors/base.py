"""What every payment processor's adapter offers: a contract of data and five calls.

Belongs here: the protocol, its values, the encoding of none of them. Does not belong here: HTTP, a processor's own
words, the ledger. Errors are `PayoutRejectedError`, `ProcessorUnavailableError` and `PayoutOutcomeUnknownError` of
`payments_pipeline.domain.errors` (and `PayoutKeyConflictError`, an unknown outcome that says why); an adapter raises
no other for what a processor does. Reading raises `ProcessorUnavailableError`: nothing is known, ask again; only a
look-up raises `PayoutOutcomeUnknownError` too, where the processor itself holds more than one payment under the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

import pandas as pd

from payments_pipeline.domain.errors import PayoutOutcomeUnknownError


class PayoutKeyConflictError(PayoutOutcomeUnknownError):
    """The processor has another request under this key: nothing was done with ours, but money may have moved under it.

    Neither a rejection (something may have been carried out) nor to be sent again (it would be refused again): it is
    looked up, and where the look-up's `request_sha256` is not that of our bytes, a person decides.
    """


class Direction(StrEnum):
    """Which way money moves, seen from us."""

    CREDIT = "credit"  # we pay the party
    DEBIT = "debit"  # we collect from the party


@dataclass(frozen=True)
class Capabilities:
    """What a processor promises; data of the adapter, never of the caller.

    Attributes:
        key_lifetime: how long the processor remembers an idempotency key, at least.
        max_concurrency: requests under way at once.
        requests_per_second: sustained rate.
        timeout_s: seconds after which a call counts as unanswered.
    """

    key_lifetime: timedelta
    max_concurrency: int
    requests_per_second: int
    timeout_s: float


@dataclass(frozen=True)
class PayoutRequest:
    """What is asked for, before encoding.

    Attributes:
        instruction_id: our instruction.
        idempotency_key: one per instruction; a resend uses the same.
        direction: credit or debit.
        amount_minor: > 0, minor units of `currency`.
        currency: ISO 4217.
        token: the processor's opaque token of the party's account.
        execute_on: date asked for.
    """

    instruction_id: str
    idempotency_key: str
    direction: Direction
    amount_minor: int
    currency: str
    token: str
    execute_on: date


@dataclass(frozen=True)
class Acknowledgement:
    """The processor has the instruction and will act on it; acknowledged is not settled."""

    processor_reference: str


class LookUpStatus(StrEnum):
    """What the processor knows of a key."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NEVER_SEEN = "never_seen"


@dataclass(frozen=True)
class LookUp:
    """Answer to a look-up by idempotency key.

    Attributes:
        status: what the processor knows.
        processor_reference: its reference of what it accepted.
        code: its code of what it rejected.
        message: its words on that.
        request_sha256: SHA-256 (hexadecimal) of the body that it has under the key, where it says so; another than that
            of the bytes we sent means that the answer is about another request.
    """

    status: LookUpStatus
    processor_reference: str | None = None
    code: str | None = None
    message: str | None = None
    request_sha256: str | None = None


@dataclass(frozen=True)
class ReportDigest:
    """One report as listed: enough to see that it has grown."""

    report_date: date
    entry_count: int
    digest: str


@dataclass(frozen=True)
class SettlementReport:
    """One date's report as received.

    Attributes:
        report_date: its date.
        digest: digest of its entries (the one that the listing gives).
        lines: frame of `schemas.SETTLEMENT_REPORTS`.
        balances: currency, opening_minor, closing_minor (int64; the processor's own view of our balance).
    """

    report_date: date
    digest: str
    # Not shown: `asyncio.run` words its result as it ends, for no one, and a table takes 4 ms to be put into words.
    lines: pd.DataFrame = field(repr=False)
    balances: pd.DataFrame = field(repr=False)


class PayoutProcessor(Protocol):
    """One processor; an asynchronous context manager that holds its connections."""

    name: str
    capabilities: Capabilities

    async def __aenter__(self) -> Self:
        """Open connections."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        ...

    def encode(self, request: PayoutRequest) -> bytes:
        """Give the bytes to send; the same request always gives the same bytes. Pure."""
        ...

    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        """Send once, never retrying by itself.

        Raises:
            PayoutRejectedError: refused for good.
            ProcessorUnavailableError: definitely not accepted; the same bytes may be sent again.
            PayoutOutcomeUnknownError: no answer, or one that cannot be read or is not the processor's own.
            PayoutKeyConflictError: the key stands for another request.
        """
        ...

    async def look_up(self, idempotency_key: str) -> LookUp:
        """Ask what became of a key.

        Raises:
            ProcessorUnavailableError: no answer, or none that can be relied on; nothing is known.
            PayoutOutcomeUnknownError: more than one payment stands under the key; a person must ask the processor.
        """
        ...

    async def report_digests(self, first: date, last: date) -> list[ReportDigest]:
        """List the reports of a range of dates, both included, in order of date, empty ones left out.

        Raises:
            ProcessorUnavailableError: no answer, or none that can be relied on.
        """
        ...

    async def report(self, report_date: date) -> SettlementReport:
        """Fetch one date's report; one without lines where nothing happened.

        A line that the processor lists twice is given twice.

        Raises:
            ProcessorUnavailableError: no answer, or none that can be relied on; nothing of it may be taken in.
        """
        ...
