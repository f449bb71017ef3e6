"""What the sandbox can be told to do wrong, as processors do: each for a number of requests, or until cleared.

Belongs here: which fault the next request meets. Does not belong here: how a fault looks on the wire (`server`), what
one makes of a report (`misreports`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from payments_pipeline.local.sandbox.requests import LARGEST_MINOR

#: Kinds, and what each does; docs/reference/sandbox.md holds them, a test compares the two.
KINDS = {
    "status": (
        "does nothing and answers with `status` (408, 429, 500, 502, 503 or 504); says `retry_after_s` where given"
    ),
    "status_after": "does the work, then answers with `status` (408, 500, 502 or 504) all the same",
    "gateway": "does nothing; a proxy in front of it answers with `status` (502, 503 or 504) and an HTML page",
    "gateway_after": "does the work; a proxy in front of it answers with `status` (502, 503 or 504) and an HTML page",
    "drop_before": "does nothing and closes the connection without an answer",
    "drop_after": "does the work, then closes the connection without an answer",
    "delay_before": "waits `seconds`, then does the work and answers",
    "delay_after": "does the work, waits `seconds`, then answers",
    "malformed": "does the work, then answers with its status and a body that is no JSON",
    "cut": "does the work, then closes the connection in the middle of the answer's body",
    "html": "does the work, then answers with its status and an HTML page",
    "empty": "does the work, then answers with its status and no body",
    "shapeless": "does the work, then answers with its status and JSON of another shape",
    "drip": "does the work, then sends its answer a byte at a time, each `seconds` after the one before",
    "misaddressed": "does the work, then gives an acceptance that names another payment and key",
    "in_progress": (
        "answers request_in_progress and does the work `seconds` later; until then every submission and look-up under "
        "the key is answered so"
    ),
    "pays_twice": "does the work twice, under two ids, and answers with the first; a look-up by key gives both",
    "forgets": "a look-up by key answers never_seen, whatever was done; other requests are answered as ever",
    "withholds": "a report lacks the line `entry_reference`, as if still to come; count, digest and balances agree",
    "alters": "a report gives the line `entry_reference` with `minor` added to its amount; digest and balances agree",
    "contradicts": (
        "a report gives the line `entry_reference` once more with `minor` added to its amount; count and digest agree, "
        "balances go by the first"
    ),
    "mislabels": "a report gives the line `entry_reference` as of kind `adjustment`, which no client knows",
    "misbalances": "the report of `date` closes at `minor` more than its lines come to, in each currency",
}
_STATUSES = {
    "status": (408, 429, 500, 502, 503, 504),
    "status_after": (408, 500, 502, 504),
    "gateway": (502, 503, 504),
    "gateway_after": (502, 503, 504),
}
_DELAYS = ("delay_before", "delay_after", "drip", "in_progress")
#: Kinds that only a submission can meet.
_OF_PAYMENTS = ("in_progress", "pays_twice")
#: Kinds of what reports say: no request uses one up, it holds until faults are cleared.
OF_REPORTS = ("withholds", "alters", "contradicts", "mislabels", "misbalances")
#: The kinds that each field goes with, and that need it.
_NEEDED_BY = {
    "status": tuple(_STATUSES),
    "seconds": _DELAYS,
    "entry_reference": OF_REPORTS[:-1],
    "date": OF_REPORTS[-1:],
    "minor": ("alters", "contradicts", "misbalances"),
}


class Route(StrEnum):
    """Which requests a fault is for."""

    ANY = "any"  # all of those below
    PAYMENTS = "payments"  # submissions
    LOOK_UPS = "look_ups"  # by idempotency key or by id
    REPORTS = "reports"  # the list and the reports


class Fault(BaseModel):
    """One fault; as JSON it is what the test helper takes.

    Attributes:
        kind: of KINDS.
        on: requests that it is for.
        count: how many of them meet it; null until faults are cleared.
        status: of `status`, `status_after`, `gateway` and `gateway_after`.
        seconds: of `delay_before`, `delay_after`, `drip` and `in_progress`.
        retry_after_s: of `status`: what its Retry-After says.
        for_s: seconds from now after which none meets it any more, however many did; null without end.
        entry_reference: line that a report has wrong.
        date: of the report whose balance is wrong, YYYY-MM-DD.
        minor: by how much an amount or a balance is wrong.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    on: Route = Field(Route.ANY, strict=False)
    count: int | None = Field(1, ge=1)
    status: int | None = None
    seconds: float | None = Field(None, gt=0, le=3600)
    retry_after_s: int | None = Field(None, ge=0, le=86_400)
    for_s: float | None = Field(None, gt=0, le=3600)
    entry_reference: str | None = None
    date: str | None = None
    minor: int | None = Field(None, ge=-LARGEST_MINOR, le=LARGEST_MINOR)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}")
        for name, kinds in _NEEDED_BY.items():
            if (getattr(self, name) is None) == (self.kind in kinds):
                raise ValueError(f"{name} goes with {' and '.join(kinds)}, and they need it")
        if self.minor == 0:
            raise ValueError("minor is not 0: nothing would be wrong")
        if self.status is not None and self.status not in _STATUSES[self.kind]:
            raise ValueError(f"status of {self.kind} is one of {', '.join(map(str, _STATUSES[self.kind]))}")
        if self.retry_after_s is not None and self.kind != "status":
            raise ValueError("retry_after_s goes with status")
        if self.kind in _OF_PAYMENTS and self.on is not Route.PAYMENTS:
            raise ValueError(f"{self.kind} is of submissions: on is payments")
        if self.kind in OF_REPORTS:
            if self.model_fields_set & {"on", "count", "for_s"}:
                raise ValueError(f"{self.kind} is of reports until faults are cleared: no on, count or for_s")
            self.on, self.count = Route.REPORTS, None
        return self


class Faults:
    """Faults to come, in the order in which they were asked for; they are forgotten when the process ends."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Take no faults yet.

        Args:
            now_s: gives seconds that never go back.
        """
        self._now_s = now_s
        self._queued: list[tuple[Fault, float | None]] = []

    def add(self, fault: Fault) -> None:
        """Queue a fault."""
        self._queued.append((fault, None if fault.for_s is None else self._now_s() + fault.for_s))

    def clear(self) -> None:
        """Behave again."""
        self._queued.clear()

    def waiting(self) -> list[dict[str, object]]:
        """Give what is left of them."""
        return [fault.model_dump(mode="json") for fault, _ in self._still_to_come()]

    def next(self, route: Route) -> Fault | None:
        """Give the fault that a request to this route meets, if any: the first that is for it."""
        for queued in self._still_to_come():
            fault = queued[0]
            if fault.on in (Route.ANY, route):
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        self._queued.remove(queued)
                return fault
        return None

    def _still_to_come(self) -> list[tuple[Fault, float | None]]:
        now_s = self._now_s()
        self._queued = [queued for queued in self._queued if queued[1] is None or now_s < queued[1]]
        return list(self._queued)
