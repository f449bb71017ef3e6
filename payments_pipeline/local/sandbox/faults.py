"""What the sandbox can be told to do wrong, as processors do: each fault for a number of requests.

Belongs here: which fault the next request meets. Does not belong here: how a fault looks on the wire (`server`).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Kinds, and what each does; docs/reference/sandbox.md holds them, a test compares the two.
KINDS = {
    "status": "answers with `status` (429, 500, 502, 503, 504) and does nothing",
    "drop_before": "closes the connection before doing anything",
    "drop_after": "does the work, then closes the connection without an answer",
    "hang_after": "does the work, then answers only after `seconds`",
    "delay": "waits `seconds`, then does the work and answers",
    "malformed": "does the work, then answers with what is no JSON",
}


@dataclass
class Fault:
    """One fault.

    Attributes:
        kind: of KINDS.
        count: requests that meet it.
        status: of `status`.
        seconds: of `hang_after` and `delay`.
    """

    kind: str
    count: int = 1
    status: int = 503
    seconds: float = 1.0


class Faults:
    """Faults in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Queue a fault."""
        self._waiting.append(fault)

    def clear(self) -> None:
        """Behave again."""
        self._waiting.clear()

    def next(self) -> Fault | None:
        """Give the fault that this request meets, if any."""
        while self._waiting:
            fault = self._waiting[0]
            if fault.count > 0:
                fault.count -= 1
                return fault
            self._waiting.pop(0)
        return None
