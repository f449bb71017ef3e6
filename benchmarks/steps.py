"""Some steps of one day in a process of their own, so that their memory can be told: `python -m benchmarks.steps`.

Uses the servers that its parent has up. Prints one JSON object: seconds of each step, all in all, and the most memory
that this process had.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

#: From landing files to approved instructions.
TO_INSTRUCTIONS = (
    "match_results",
    "match_participants",
    "rejected_records",
    "participant_shares",
    "ledger_entries",
    "refunds",
    "payout_instructions",
)
SUBMISSIONS = ("payout_submissions",)


def run_steps(environment: Mapping[str, str], day: str, assets: Sequence[str]) -> dict[str, Any]:
    """Run them in a process of their own.

    Args:
        environment: where the servers are.
        day: partition.
        assets: what is materialised.

    Returns:
        steps: seconds by step; seconds; peak_bytes; failed_checks: names.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps", day, *assets],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def main(day: str, assets: Sequence[str]) -> None:
    """Materialise and print."""
    from payments_pipeline.definitions import build_defs
    from payments_pipeline.defs.jobs import DAILY
    from payments_pipeline.defs.resources import MAKER_TAG
    from payments_pipeline.local.instance import open_instance
    from payments_pipeline.local.stack import locate
    from payments_pipeline.settings import load_settings

    settings = load_settings()
    with open_instance(locate(settings), settings) as instance:
        job = build_defs(settings).resolve_job_def(DAILY)
        started = time.perf_counter()
        result = job.execute_in_process(
            partition_key=day,
            instance=instance,
            tags={MAKER_TAG: "benchmark"},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            asset_selection=[dg.AssetKey(asset) for asset in assets],
        )
        seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "steps": {
                    str(event.step_key): round(event.step_success_data.duration_ms / 1000, 3)
                    for event in result.all_events
                    if event.is_step_success
                },
                "seconds": seconds,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "failed_checks": [
                    check.check_name for check in result.get_asset_check_evaluations() if not check.passed
                ],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
