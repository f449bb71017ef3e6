"""The instance of a command: the project's configuration on the stack that the command uses."""

import os
from pathlib import Path
from unittest import mock

import dagster as dg
from pydantic import SecretStr

from payments_pipeline.dagster_storage import PooledRunStorage
from payments_pipeline.local import stack
from payments_pipeline.local.instance import open_instance
from payments_pipeline.settings import Settings, load_settings


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job(executor_def=dg.in_process_executor)
def nothing_job() -> None:
    nothing()


def test_a_commands_runs_are_stored_where_the_ui_looks_and_its_children_find_the_stack(
    tmp_path: Path, empty_database_url: str
) -> None:
    settings = Settings(
        home=tmp_path,
        postgres_url=SecretStr("postgresql://unused@127.0.0.1:1/payments"),
        dagster_postgres_url=SecretStr(empty_database_url),
        processor_url="http://127.0.0.1:1",
    )
    with mock.patch.dict(os.environ):
        endpoints = stack.locate(settings)
        with open_instance(endpoints, settings) as instance:
            run_id = nothing_job.execute_in_process(instance=instance).run_id
            assert isinstance(instance.run_storage, PooledRunStorage)
        assert stack.locate(load_settings()) == endpoints
        with dg.DagsterInstance.get() as seen_by_ui:
            run = seen_by_ui.get_run_by_id(run_id)
            assert run is not None
            assert run.is_success
