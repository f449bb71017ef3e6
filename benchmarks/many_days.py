"""Many days: a league season day by day by `backfill`, beside a graph of the same shape that does nothing.

The two take turns by stretches of days on one server, so that what grows meanwhile falls on both. Uses the league
season that lies beside the checkout.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from benchmarks.big_day import PROGRAM, home
from benchmarks.figures import ROUNDS, note, say

LEAGUES = Path(__file__).resolve().parents[2] / "shared" / "data" / "leagues"
DAY_TARGET_S, AGAINST_HOLLOW, SLOWER, START_TARGET_S = 0.8, 1.5, 1.2, 2.5
_STRETCHES = 6


def run(last_day: str = "") -> bool:
    """Measure; say whether every target is met.

    Args:
        last_day: where the season ends; empty for its own end.
    """
    results = LEAGUES / "landing" / "match_results"
    if not results.exists():
        note("the league season is not beside the checkout: many days are not measured")
        return False
    played = sorted(folder.name.removeprefix("date=") for folder in results.iterdir())
    first, last = date.fromisoformat(played[0]), date.fromisoformat(last_day or played[-1])
    count = (last - first).days + 1
    size = -(-count // _STRETCHES)
    rows: list[dict[str, Any]] = []
    hollow: list[float] = []
    with tempfile.TemporaryDirectory(prefix="payments-bench-") as folder, home(Path(folder), LEAGUES, played[0]) as of:
        started = time.perf_counter()
        real_s = 0.0
        for start in range(0, count, size):
            begin, end = first + timedelta(days=start), min(last, first + timedelta(days=start + size - 1))
            began = time.perf_counter()
            rows += _backfill(of.of_commands, begin, end)
            real_s += time.perf_counter() - began
            hollow += _hollow(of.environment, begin, end)
            note(f"many days: {len(rows)} of {count} after {time.perf_counter() - started:.0f} s")
        starts = [_start_up(of.of_commands, last) for _ in range(ROUNDS + 1)][1:]
        of.verify()
    seconds = [row["seconds"] for row in rows]
    median, beside = statistics.median(seconds), statistics.median(hollow)
    with_matches = [row["seconds"] for row in rows if row["matches"]]
    met = [
        say(
            "many_days",
            real_s / len(rows),
            "s/day",
            target=DAY_TARGET_S,
            against=f"{len(rows)} days, {len(with_matches)} with matches, by the command line, all in all",
        ),
        say(
            "many_days_median",
            median,
            "s",
            target=AGAINST_HOLLOW,
            ratio=median / beside,
            against=f"the same graph doing nothing, {beside:.3f} s",
        ),
        say(
            "match_days_median",
            statistics.median(with_matches),
            "s",
            target=DAY_TARGET_S,
            against=f"{len(with_matches)} days with matches",
        ),
        say(
            "last_hundred_days",
            statistics.median(seconds[-100:]),
            "s",
            target=SLOWER,
            ratio=statistics.median(seconds[-100:]) / statistics.median(seconds[:100]),
            against="the first hundred days",
        ),
        say(
            "start_up",
            statistics.median(starts),
            "s",
            target=START_TARGET_S,
            against="of a command, to the start of its first run and after its end",
        ),
    ]
    return all(met)


def _backfill(environment: Mapping[str, str], first: date, last: date) -> list[dict[str, Any]]:
    done = subprocess.run(
        [PROGRAM, "backfill", "--from", first.isoformat(), "--to", last.isoformat(), "--json"],
        env=dict(environment),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _hollow(environment: Mapping[str, str], first: date, last: date) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hollow", first.isoformat(), last.isoformat()],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _start_up(environment: Mapping[str, str], day: date) -> float:
    started = time.perf_counter()
    [row] = _backfill(environment, day, day)
    return time.perf_counter() - started - float(row["seconds"])
