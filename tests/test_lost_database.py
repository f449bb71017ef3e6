"""Dagster's database may go away at any statement: that is said in one line, never as a traceback."""

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace

import click
import pytest
import sqlalchemy
from dagster_postgres.utils import DagsterPostgresException

from payments_pipeline import cli
from payments_pipeline.day_runs import DayFailedError, DayRuns

DAY = dt.date(2024, 8, 17)
LOST = [
    DagsterPostgresException("too many retries for DB connection"),
    sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly")),
]


def _executing(execute_in_process: Callable[..., object]) -> DayRuns:
    job = SimpleNamespace(execute_in_process=execute_in_process)
    definitions = SimpleNamespace(resolve_job_def=lambda _name: job)
    return DayRuns(definitions, None, "postgresql://nowhere", "joe")  # type: ignore[arg-type]  # nothing of it is used


@pytest.mark.parametrize("error", LOST, ids=["retries", "statement"])
def test_a_day_that_loses_its_database_names_itself_and_what_to_do(error: Exception) -> None:
    def execute_in_process(**_given: object) -> None:
        raise error

    with pytest.raises(DayFailedError, match=r"2024-08-17 stopped: .* see to Postgres, then run the day again"):
        _executing(execute_in_process).run(DAY)


def test_a_day_whose_run_a_killed_server_has_forgotten_says_so_too() -> None:
    runs = _executing(lambda **_given: SimpleNamespace(dagster_run=None))
    with pytest.raises(DayFailedError, match=r"2024-08-17 stopped: .* lost the run.* then run the day again"):
        runs.run(DAY)


@pytest.mark.parametrize("error", LOST, ids=["retries", "statement"])
def test_a_command_that_loses_its_database_says_so_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def loses() -> None:
        raise error

    monkeypatch.setattr(cli, "commands", loses)
    monkeypatch.setattr("sys.argv", ["payments-pipeline"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert said.startswith("payments-pipeline: Dagster's database no longer answers.")
    assert said.count("\n") == 1


def test_what_is_no_lost_database_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def breaks() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "commands", breaks)
    monkeypatch.setattr("sys.argv", ["payments-pipeline"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
