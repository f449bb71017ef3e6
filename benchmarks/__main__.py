"""`make bench`: a real day, and many days, by the command line on the embedded stack.

Uses the league season that lies beside the checkout.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("payments-pipeline")
LEAGUES = Path(__file__).resolve().parents[2] / "shared" / "data" / "leagues"
DAY_TARGET_S = 3.0
SEASON_TARGET_S = 480.0
MANY_DAYS_TARGET_S = 0.8


def main() -> int:
    """Run every benchmark; exit 1 where a target is missed or a rule is broken."""
    if not LEAGUES.exists():
        sys.stderr.write("the league season is not beside the checkout: nothing to measure\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="payments-bench-") as home:
        environment = os.environ | {
            "PAYMENTS_HOME": home,
            "PAYMENTS_LANDING_URL": str(LEAGUES / "landing"),
            "PAYMENTS_REFERENCE_URL": str(LEAGUES / "reference"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        days = sorted(folder.name.removeprefix("date=") for folder in (LEAGUES / "landing" / "match_results").iterdir())
        started = time.perf_counter()
        rows = _backfill(environment, days[0], days[-1])
        season_s = time.perf_counter() - started
        seconds = [row["seconds"] for row in rows]
        largest = sorted(rows, key=lambda row: -row["shares"])[:5]
        met = [
            _print("season_backfill_s", season_s, "s", SEASON_TARGET_S, against=f"{len(rows)} days"),
            _print(
                "match_days_s",
                sum(row["seconds"] for row in rows if row["matches"]),
                "s",
                SEASON_TARGET_S,
                against=f"{sum(row['matches'] > 0 for row in rows)} days with matches, of those {len(rows)}",
            ),
            _print("day_median_s", statistics.median(seconds), "s", MANY_DAYS_TARGET_S, against="all days"),
            _print(
                "match_day_median_s",
                statistics.median(row["seconds"] for row in rows if row["matches"]),
                "s",
                MANY_DAYS_TARGET_S,
                against=f"{sum(row['matches'] > 0 for row in rows)} days with matches",
            ),
            _print(
                "largest_days_s",
                statistics.median(row["seconds"] for row in largest),
                "s",
                DAY_TARGET_S,
                against=f"days of {largest[-1]['shares']} to {largest[0]['shares']} shares",
            ),
            _print(
                "last_hundred_to_first_hundred",
                statistics.median(seconds[-100:]) / statistics.median(seconds[:100]),
                "ratio",
                1.2,
                against="first hundred days",
            ),
        ]
        verified = subprocess.run(
            [PROGRAM, "verify", "--json"], env=environment, capture_output=True, text=True, check=False
        )
        if verified.returncode:
            sys.stderr.write(verified.stdout + verified.stderr)
        met.append(_big_day(environment, Path(home)))
    return 0 if all(met) and verified.returncode == 0 else 1


def _big_day(environment: dict[str, str], home: Path) -> bool:
    """A day of 150 real matches: three full Saturdays played on one, several times; the first run posts and pays."""
    landing = home / "big-day"
    day, played = "2025-06-07", ("2024-09-21", "2025-03-08", "2025-04-05")
    folder = landing / "match_results" / f"date={day}"
    folder.mkdir(parents=True)
    for saturday in played:
        for file in (LEAGUES / "landing" / "match_results" / f"date={saturday}").iterdir():
            # The date stands in each match's id and in its kick-off.
            lines = file.read_text("utf-8").splitlines()
            moved = [
                line.replace(f":{saturday}:", f":{saturday}-{day}:").replace(f",{saturday}T", f",{day}T")
                for line in lines
            ]
            (folder / f"{saturday}-{file.name}").write_text("\n".join(moved) + "\n", "utf-8")
    runs = [_backfill(environment | {"PAYMENTS_LANDING_URL": str(landing)}, day, day)[0] for _ in range(5)]
    return _print(
        "big_day_first_run_s", runs[0]["seconds"], "s", DAY_TARGET_S, against=f"{runs[0]['matches']} matches"
    ) and _print(
        "big_day_again_s",
        statistics.median(run["seconds"] for run in runs[1:]),
        "s",
        DAY_TARGET_S,
        against=f"{runs[0]['matches']} matches, posted before",
    )


def _backfill(environment: dict[str, str], first: str, last: str) -> list[dict[str, float]]:
    done = subprocess.run(
        [PROGRAM, "backfill", "--from", first, "--to", last, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _print(bench: str, value: float, unit: str, target: float, *, against: str) -> bool:
    met = value <= target
    print(
        json.dumps(
            {
                "bench": bench,
                "value": round(value, 3),
                "unit": unit,
                "ratio": round(value / target, 3),
                "against": against,
                "target": target,
                "met": met,
            }
        ),
        flush=True,
    )
    return met


if __name__ == "__main__":
    sys.exit(main())
