"""What the sandbox has been asked, counted: how much, how fast, how much at once.

Belongs here: counting. Does not belong here: which requests are counted (`server`: those that a fault may meet).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from payments_pipeline.local.sandbox.faults import Route


class Traffic:
    """Counters since the process began or since they were cleared; used by one event loop."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Count nothing yet.

        Args:
            now_s: gives seconds that never go back.
        """
        self._now_s = now_s
        self._under_way = 0
        self.clear()

    def clear(self) -> None:
        """Count anew; what is under way stays counted as such."""
        self._requests: Counter[Route] = Counter()
        self._last_second: deque[float] = deque()
        self._most_under_way = self._under_way
        self._most_in_a_second = 0

    @contextmanager
    def request(self, route: Route) -> Iterator[None]:
        """Count a request, under way for as long as the block lasts."""
        now_s = self._now_s()
        self._requests[route] += 1
        self._last_second.append(now_s)
        while now_s - self._last_second[0] >= 1:
            self._last_second.popleft()
        self._most_in_a_second = max(self._most_in_a_second, len(self._last_second))
        self._under_way += 1
        self._most_under_way = max(self._most_under_way, self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1

    def counted(self) -> dict[str, object]:
        """Give the counters.

        Returns:
            `requests` by route; `under_way` now and `most_under_way` at once; `most_in_a_second`, in any second.
        """
        return {
            "requests": {str(route): self._requests[route] for route in Route if route is not Route.ANY},
            "under_way": self._under_way,
            "most_under_way": self._most_under_way,
            "most_in_a_second": self._most_in_a_second,
        }
