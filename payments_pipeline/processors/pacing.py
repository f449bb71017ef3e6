"""How fast a processor is asked, and when a dispatch stops asking it.

Belongs here: rate, concurrency, the breaker and the sizes of batches that follow from it. Does not belong here: what is
sent and what comes of it (`processors.dispatch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from payments_pipeline.domain.policy import DispatchPolicy
from payments_pipeline.processors.base import Capabilities

Sleep = Callable[[float], Awaitable[None]]
_Each = TypeVar("_Each")
#: A batch may be so many times the one before it, as long as nothing fails.
_GROWTH = 4


class Lane:
    """Lets calls through one after the other, at most so many a second, evenly, and at most so many at once."""

    def __init__(self, capabilities: Capabilities, sleep: Sleep) -> None:
        """Start with nothing under way."""
        self._slots = asyncio.Semaphore(capabilities.max_concurrency)
        self._gap_s = 1 / capabilities.requests_per_second
        self._next_s = 0.0
        self._sleep = sleep

    async def __aenter__(self) -> None:
        """Wait for a turn."""
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
        """Let the next one through."""
        self._slots.release()


class Breaker:
    """Opens after a run of failures of the processor; what was not begun by then is left untouched.

    What is begun together is small while the processor has not shown that it works, or has failed: of a batch that is
    committed before it is sent, the rest is touched when the breaker opens.

    Attributes:
        why: in words, once it is open; empty before.
    """

    def __init__(self, processor: str, policy: DispatchPolicy) -> None:
        """Start closed."""
        self.why = ""
        self._processor = processor
        self._policy = policy
        self._in_a_row = 0
        self._has_failed = False
        self._size = min(policy.batch_size, policy.breaker_failures)

    def judge(self, *, failed: bool) -> None:
        """Take the processor's answer into account; one that refuses is no failure of the processor."""
        if not failed:
            self._in_a_row = 0
            return
        self._has_failed = True
        self._in_a_row += 1
        if self._in_a_row >= self._policy.breaker_failures and not self.why:
            self.why = (
                f"{self._processor} failed {self._in_a_row} times in a row: dispatch stopped, and the rest was left "
                "untouched. It goes on with the next run."
            )

    def batches(self, everything: Sequence[_Each]) -> Iterator[Sequence[_Each]]:
        """Give what is to be begun together, until all is begun or the breaker is open."""
        start = 0
        while start < len(everything) and not self.why:
            end = start + self._size
            yield everything[start:end]
            start = end
            smallest = min(self._policy.batch_size, self._policy.breaker_failures)
            grown = min(self._policy.batch_size, self._size * _GROWTH)
            self._size = smallest if self._has_failed else grown
            self._has_failed = False
