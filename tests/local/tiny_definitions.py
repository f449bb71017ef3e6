"""A code location as small as can be, for tests of the processes around it."""

import time

import dagster as dg


@dg.asset
def quick() -> int:
    return 1


@dg.asset
def endless(context: dg.AssetExecutionContext) -> None:
    context.log.info("begun")
    time.sleep(600)


defs = dg.Definitions(
    assets=[quick, endless],
    jobs=[dg.define_asset_job("endless_job", [endless], executor_def=dg.in_process_executor)],
)
