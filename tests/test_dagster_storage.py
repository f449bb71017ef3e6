"""Dagster's storage on real PostgreSQL: pooled, complete, and held to the release it was written against."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy

from payments_pipeline import dagster_storage
from payments_pipeline.dagster_storage import PooledPostgresStorage, StorageNotFoundError
from payments_pipeline.defs.check_results import check_spec
from payments_pipeline.storage import postgres

ROOT = Path(__file__).parents[1]
DAYS = dg.DailyPartitionsDefinition("2024-01-01")


@dg.asset(partitions_def=DAYS, check_specs=[check_spec(DAYS, "rows", "not_empty", "There are rows.")])
def rows() -> Iterator[object]:
    yield dg.MaterializeResult(metadata={"rows": 3})
    yield dg.AssetCheckResult(check_name="not_empty", passed=True)


DEFS = dg.Definitions(assets=[rows], jobs=[dg.define_asset_job("days", executor_def=dg.in_process_executor)])


@pytest.fixture
def dagster_url(empty_database_url: str) -> str:
    return empty_database_url.replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture
def instance(dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance that the project's own dagster.yaml describes."""
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("PAYMENTS_POSTGRES_URL", "postgresql://unused@127.0.0.1:1/unused")
    monkeypatch.setenv("PAYMENTS_PROCESSOR", "none")
    monkeypatch.setenv("PAYMENTS_DAGSTER_POSTGRES_URL", dagster_url)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def run_day(instance: dg.DagsterInstance, day: str) -> dg.ExecuteInProcessResult:
    return DEFS.resolve_job_def("days").execute_in_process(instance=instance, partition_key=day)


def connections(url: str) -> int:
    address = sqlalchemy.make_url(url)
    plain = address.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        query = b"SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        [(count,)] = connection.execute(query, (address.database,)).fetchall()
    return int(count)


def test_the_release_whose_inside_is_used_is_the_one_installed() -> None:
    installed = {name: importlib.metadata.version(name) for name in dagster_storage.PINNED}
    assert installed == dagster_storage.PINNED, "read dagster_storage.py against the new release, then move the pin"


def test_everything_that_a_run_reports_is_stored(instance: dg.DagsterInstance) -> None:
    result = run_day(instance, "2024-03-31")
    assert result.success
    record = instance.get_run_record_by_id(result.run_id)
    assert record is not None
    assert record.dagster_run.status is dg.DagsterRunStatus.SUCCESS
    [materialised] = instance.fetch_materializations(dg.AssetKey("rows"), limit=10).records
    assert materialised.partition_key == "2024-03-31"
    kinds = {entry.dagster_event.event_type for entry in instance.all_logs(result.run_id) if entry.dagster_event}
    assert {dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.ASSET_CHECK_EVALUATION} <= kinds


def stored(
    url: str, run_id: str
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]], list[tuple[object, ...]]]:
    """What a run left in the database, ids as places in the log; planned events come before all others in any order."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        events = connection.execute(
            sqlalchemy.text(
                "SELECT id, dagster_event_type, step_key, asset_key, partition FROM event_logs "
                "WHERE run_id = :run ORDER BY id"
            ),
            {"run": run_id},
        ).all()
        checks = connection.execute(
            sqlalchemy.text(
                "SELECT check_name, asset_key, partition, execution_status, evaluation_event_storage_id, "
                "materialization_event_storage_id, evaluation_event::json->'dagster_event'->>'event_type_value' "
                "FROM asset_check_executions WHERE run_id = :run ORDER BY 1, 2, 3"
            ),
            {"run": run_id},
        ).all()
        keys = connection.execute(
            sqlalchemy.text("SELECT asset_key, last_run_id = :run, last_materialization IS NOT NULL FROM asset_keys"),
            {"run": run_id},
        ).all()
    engine.dispose()
    place = {row[0]: number for number, row in enumerate(events)}
    return (
        [tuple(row[1:]) for row in events],
        [(*row[:4], place[row[4]], place.get(row[5]), row[6]) for row in checks],
        sorted(tuple(row) for row in keys),
    )


def test_what_is_kept_back_leaves_what_the_release_itself_would_leave(
    instance: dg.DagsterInstance, dagster_url: str, tmp_path: Path
) -> None:
    home = tmp_path / "as_shipped"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        f"storage:\n  postgres:\n    postgres_url: {dagster_url}\ntelemetry:\n  enabled: false\n"
    )
    with dg.DagsterInstance.from_config(str(home)) as as_shipped:
        theirs = run_day(as_shipped, "2024-02-01")
    ours = run_day(instance, "2024-02-01")
    events, checks, keys = stored(dagster_url, ours.run_id)
    assert len(checks) == 1
    assert "ASSET_CHECK_EVALUATION" in {event[0] for event in events}
    their_events, their_checks, their_keys = stored(dagster_url, theirs.run_id)
    assert (events, checks) == (their_events, their_checks)
    assert [key[0] for key in keys] == [key[0] for key in their_keys]


def test_what_a_process_remembers_of_its_own_is_what_anybody_reads(
    instance: dg.DagsterInstance, dagster_url: str
) -> None:
    keys = [dg.AssetKey("rows")]
    for day in ("2024-02-05", "2024-02-06", "2024-02-05"):
        run_day(instance, day)
        fresh = PooledPostgresStorage(dagster_url)
        try:
            mine, others = instance.event_log_storage, fresh.event_log_storage
            assert mine.get_asset_records(keys) == others.get_asset_records(keys)
            last = dg.AssetRecordsFilter(keys[0], asset_partitions=[day])
            assert mine.fetch_materializations(last, limit=1) == others.fetch_materializations(last, limit=1)
            asked = (keys[0], dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"], [day])
            assert mine.get_latest_tags_by_partition(*asked) == others.get_latest_tags_by_partition(*asked)
        finally:
            for each in (fresh.run_storage, fresh.event_log_storage, fresh.schedule_storage):
                each.dispose()


def test_a_check_that_nobody_planned_is_recorded(instance: dg.DagsterInstance) -> None:
    result = run_day(instance, "2024-02-02")
    key = dg.AssetCheckKey(dg.AssetKey("rows"), "not_empty")
    evaluation = dg.AssetCheckEvaluation(asset_key=key.asset_key, check_name="unplanned", passed=False, metadata={})
    log = instance.event_log_storage
    entry = next(
        entry
        for entry in instance.all_logs(result.run_id)
        if entry.dagster_event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    event = entry.get_dagster_event()
    log.store_event(entry._replace(dagster_event=event._replace(event_specific_data=evaluation)))
    log.dispose()
    [found] = log.get_asset_check_execution_history(dg.AssetCheckKey(dg.AssetKey("rows"), "unplanned"), limit=2)
    assert found.status.value == "FAILED"


def test_what_a_killed_process_leaves_says_where_it_was(instance: dg.DagsterInstance, dagster_url: str) -> None:
    """Nothing but what the step under way said is kept back: its start, and the ends before it, are stored."""
    program = textwrap.dedent(
        """
        import os, sys
        import dagster as dg
        from payments_pipeline.dagster_storage import PooledPostgresStorage

        @dg.asset
        def first(): ...

        @dg.asset(deps=[first])
        def second():
            os.kill(os.getpid(), 9)

        with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
            dg.materialize([first, second], instance=instance)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, instance.root_directory], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    [run] = instance.get_runs()
    told = {
        (entry.step_key, entry.dagster_event_type.value)
        for entry in instance.all_logs(run.run_id)
        if entry.dagster_event_type
    }
    assert {("first", "STEP_SUCCESS"), ("first", "ASSET_MATERIALIZATION"), ("second", "STEP_START")} <= told


def test_a_run_opens_no_connection_that_the_process_does_not_keep(
    instance: dg.DagsterInstance, dagster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_day(instance, "2024-01-01")
    before = connections(dagster_url)
    opened: list[int] = []
    monkeypatch.setattr(
        sqlalchemy.dialects.postgresql.psycopg2.PGDialect_psycopg2,
        "connect",
        lambda self, *args, **given: (opened.append(1), self.loaded_dbapi.connect(*args, **given))[1],
    )
    run_day(instance, "2024-01-02")
    assert opened == []
    assert 1 <= before == connections(dagster_url) <= 3
    fresh = dagster_storage.pooled_engine(dagster_url)
    fresh.connect().close()
    fresh.dispose()
    assert opened == [1], "an opened connection is counted"


def test_the_connections_are_closed_with_the_instance(dagster_url: str) -> None:
    storage = PooledPostgresStorage(dagster_url)
    assert storage.run_storage.get_runs_count() == 0
    assert connections(dagster_url) > 0
    for each in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        each.dispose()
    assert connections(dagster_url) == 0


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced(
    dagster_url: str, postgres_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_storage, "_TRUST_IDLE_S", 0.0)
    engine = dagster_storage.pooled_engine(dagster_url)
    with engine.connect() as connection:
        first = connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one()
    with psycopg.connect(dagster_url.replace("+psycopg2", "")) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (first,))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one() != first
    engine.dispose()


def test_dagsters_log_does_not_wait_for_the_disk_and_money_does(dagster_url: str, database_url: str) -> None:
    storage = PooledPostgresStorage(dagster_url)
    with storage.run_storage.connect() as connection:
        assert connection.execute(sqlalchemy.text("SHOW synchronous_commit")).scalar_one() == "off"
    for each in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        each.dispose()
    with postgres.connect(database_url) as connection:
        asked = connection.execute("SELECT source FROM pg_settings WHERE name = 'synchronous_commit'").fetchone()
        assert asked != ("client",), "what is durable there is the server's to say"


def test_the_webservers_own_limits_are_taken(dagster_url: str) -> None:
    storage = PooledPostgresStorage(dagster_url)
    storage.run_storage.optimize_for_webserver(statement_timeout=1234, pool_recycle=60, max_overflow=2)
    with storage.run_storage.connect() as connection:
        assert connection.execute(sqlalchemy.text("SHOW statement_timeout")).scalar_one() == "1234ms"
    assert storage.run_storage.get_runs_count() == 0
    storage.run_storage.dispose()


def test_processes_that_meet_an_empty_database_together_all_get_storage(dagster_url: str) -> None:
    made: list[PooledPostgresStorage] = []
    threads = [threading.Thread(target=lambda: made.append(PooledPostgresStorage(dagster_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.run_storage.get_runs_count() for storage in made] == [0, 0, 0, 0]
    for storage in made:
        for each in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
            each.dispose()


def test_without_an_address_and_without_a_stack_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYMENTS_HOME", str(tmp_path))
    for name in ("PAYMENTS_POSTGRES_URL", "PAYMENTS_DAGSTER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageNotFoundError, match="make up"):
        PooledPostgresStorage.from_config_value(None, {})


def test_the_instance_is_configured_as_the_documents_say(instance: dg.DagsterInstance) -> None:
    assert instance.telemetry_enabled is False
    assert instance.nux_enabled is False
    assert instance.run_retries_enabled is True
    assert instance.run_retries_max_retries == 2
    assert instance.run_retries_retry_on_asset_or_op_failure is False
    assert instance.run_monitoring_enabled is True
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs == 2
    assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"
    assert isinstance(instance.run_coordinator, dg.QueuedRunCoordinator)


def dagster(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PAYMENTS_", "DAGSTER_", "PYTHOND"))
    }
    return subprocess.run(
        [Path(sys.executable).with_name("dagster"), *arguments],
        cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_project_loads_by_its_own_workspace_file_with_nothing_running(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    (tmp_path / "dagster").mkdir()
    variables = {"PAYMENTS_HOME": home, "DAGSTER_HOME": str(tmp_path / "dagster")}
    asked = dagster("definitions", "validate", "-w", "workspace.yaml", cwd=ROOT, **variables)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "Validation successful for code location payments_pipeline" in asked.stdout + asked.stderr
    assert not Path(home).exists(), "loading the definitions made something"


def test_dagsters_own_command_without_a_stack_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    (tmp_path / "workspace.yaml").write_text("load_from: [{python_module: {module_name: json}}]\n")
    asked = dagster("dev", cwd=tmp_path, PAYMENTS_HOME=str(tmp_path / "home"))
    assert asked.returncode == 1
    said = [line for line in asked.stderr.splitlines() if "Error" in line]
    assert len(said) == 1
    assert said[0].startswith("Error: no stack is running in ")
    assert "Traceback" not in asked.stderr
