"""A run whose process is gone is noticed, and one whose process lives is left alone, on real PostgreSQL."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from payments_pipeline.dagster_liveness import GONE, WatchedRunLauncher, end_dead_runs

ROOT = Path(__file__).parents[1]
#: A run in a process of its own, which waits in its only step.
WAITING = textwrap.dedent(
    """
    import sys, time
    import dagster as dg

    @dg.op
    def wait():
        print("begun", flush=True)
        time.sleep(60)

    @dg.job(executor_def=dg.in_process_executor)
    def waiting():
        wait()

    with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
        waiting.execute_in_process(instance=instance)
    """
)


@pytest.fixture
def instance(empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance that the project's own dagster.yaml describes."""
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("PAYMENTS_POSTGRES_URL", "postgresql://unused@127.0.0.1:1/unused")
    monkeypatch.setenv("PAYMENTS_PROCESSOR", "none")
    monkeypatch.setenv(
        "PAYMENTS_DAGSTER_POSTGRES_URL", empty_database_url.replace("postgresql://", "postgresql+psycopg2://")
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def health(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """What Dagster's own run monitoring is told."""
    launcher = instance.run_launcher
    assert isinstance(launcher, WatchedRunLauncher)
    assert launcher.supports_check_run_worker_health
    return launcher.check_run_worker_health(run).status.value


def test_a_killed_run_is_marked_as_failed_with_why_and_a_living_one_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert end_dead_runs(instance) == []
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        [run] = instance.get_runs()
        assert (end_dead_runs(instance), health(instance, run)) == ([], "RUNNING")
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 10
    while health(instance, run) == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert health(instance, run) == "NOT_FOUND"
    assert [dead.run_id for dead in end_dead_runs(instance)] == [run.run_id]
    [ended] = instance.get_runs()
    assert ended.status is dg.DagsterRunStatus.FAILURE
    [failure] = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert failure.get_dagster_event().message == GONE
    assert end_dead_runs(instance) == []


def locks(url: str) -> list[tuple[int, int]]:
    """Server process and key of each advisory lock that is held."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            """SELECT pid, objid::bigint FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE locktype = 'advisory' AND datname = current_database()"""
        ).fetchall()


def test_a_lock_that_the_server_forgot_is_taken_anew_by_the_next_step(
    instance: dg.DagsterInstance, empty_database_url: str
) -> None:
    seen: list[int] = []

    @dg.op
    def lose_it() -> int:
        [(pid, key)] = locks(empty_database_url)
        with psycopg.connect(empty_database_url) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert locks(empty_database_url) == []
        return key

    @dg.op
    def look(key: int) -> None:
        seen.extend(held for _, held in locks(empty_database_url) if held == key)

    @dg.job(executor_def=dg.in_process_executor)
    def losing() -> None:
        look(lose_it())

    assert losing.execute_in_process(instance=instance).success
    assert len(seen) == 1


def test_a_process_holds_one_lock_however_many_runs_it_has_ended(
    instance: dg.DagsterInstance, empty_database_url: str
) -> None:
    @dg.op
    def fail() -> None:
        raise ValueError("as it must")

    @dg.job(executor_def=dg.in_process_executor)
    def failing() -> None:
        fail()

    for _ in range(3):
        failing.execute_in_process(instance=instance, raise_on_error=False)
        assert len(locks(empty_database_url)) == 1
    assert end_dead_runs(instance) == []


def test_a_run_that_was_written_down_and_never_begun_is_dead_after_a_minute_and_not_before(
    instance: dg.DagsterInstance, empty_database_url: str
) -> None:
    @dg.job
    def nothing() -> None: ...

    run = instance.create_run_for_job(nothing)
    assert end_dead_runs(instance) == []
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("UPDATE runs SET create_timestamp = create_timestamp - interval '61 s'")
    young = instance.create_run_for_job(nothing)
    assert [dead.run_id for dead in end_dead_runs(instance)] == [run.run_id]
    assert {each.run_id: each.status for each in instance.get_runs()} == {
        run.run_id: dg.DagsterRunStatus.FAILURE,
        young.run_id: dg.DagsterRunStatus.NOT_STARTED,
    }
