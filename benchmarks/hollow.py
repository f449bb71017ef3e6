"""A graph of the same shape that does nothing: `python -m benchmarks.hollow FIRST LAST` runs its days.

The same assets, dependencies and checks, on the same storage with the same pooling: what is left is Dagster's own cost.
Prints seconds of each day, one JSON list.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg

from payments_pipeline.day_runs import days
from payments_pipeline.definitions import build_defs
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.local.instance import open_instance
from payments_pipeline.local.stack import locate
from payments_pipeline.settings import load_settings


def hollow(of: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """Give assets of the same names, dependencies and checks that do nothing."""
    keys = [spec.key for spec in of.specs]
    specs = [
        dg.AssetSpec(
            spec.key, deps=[dep for dep in spec.deps if dep.asset_key not in keys], partitions_def=of.partitions_def
        )
        for spec in of.specs
    ]
    checks = [dg.AssetCheckSpec(spec.name, asset=spec.asset_key, blocking=spec.blocking) for spec in of.check_specs]

    @dg.multi_asset(name=of.node_def.name, specs=specs, check_specs=checks, partitions_def=of.partitions_def)
    def run() -> Iterator[dg.MaterializeResult[Any]]:
        for key in keys:
            yield dg.MaterializeResult(
                asset_key=key,
                check_results=[
                    dg.AssetCheckResult(asset_key=key, check_name=spec.name, passed=True)
                    for spec in checks
                    if spec.asset_key == key
                ],
            )

    return run


def main(first: date, last: date) -> None:
    """Run the days and print."""
    settings = load_settings()
    real = build_defs(settings)
    assets = [hollow(of) for of in real.assets or () if isinstance(of, dg.AssetsDefinition)]
    job = dg.define_asset_job("hollow", selection=dg.AssetSelection.all(), executor_def=dg.in_process_executor)
    seconds = []
    with open_instance(locate(settings), settings) as instance:
        resolved = dg.Definitions(assets=assets, jobs=[job]).resolve_job_def("hollow")
        assert len(real.resolve_job_def(DAILY).nodes) == len(resolved.nodes)
        for day in days(first, last):
            started = time.perf_counter()
            result = resolved.execute_in_process(
                partition_key=day.isoformat(),
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            assert result.success
            seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(date.fromisoformat(sys.argv[1]), date.fromisoformat(sys.argv[2]))
