"""Figures: how they are taken and how they are said, one JSON object a line.

Belongs here: rounds, medians, ratios, printing. Does not belong here: what is measured.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping

ROUNDS = 5


def seconds_of(contenders: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Time contenders in turn, one round after the other, so that what the machine does meanwhile falls on all of them.

    Args:
        contenders: by name, what to run.
        rounds: how often each counts; one round before them warms up.

    Returns:
        Median seconds of each.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for counts in [False] + [True] * rounds:
        for name, run in contenders.items():
            gc.collect()
            started = time.perf_counter()
            result = run()
            if counts:
                taken[name].append(time.perf_counter() - started)
            del result
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def say(
    bench: str,
    value: float,
    unit: str,
    *,
    target: float,
    against: str,
    ratio: float | None = None,
    at_least: bool = False,
) -> bool:
    """Print a figure, and say whether it meets its target.

    Args:
        bench: its name.
        value: the figure.
        unit: of the figure.
        target: of the ratio where one is given, of the figure otherwise.
        against: what it is compared with.
        ratio: what the target is of, where that is not the figure; otherwise the figure's to its target.
        at_least: whether more is better.
    """
    compared = value if ratio is None else ratio
    met = compared >= target if at_least else compared <= target
    said = {
        "bench": bench,
        "value": round(value, 3),
        "unit": unit,
        "ratio": round(value / target if ratio is None else ratio, 3),
        "against": against,
        "target": target,
        "met": met,
    }
    print(json.dumps(said), flush=True)
    return met


def note(words: str) -> None:
    """Tell whoever waits what is under way; standard output has figures alone."""
    print(words, file=sys.stderr, flush=True)
