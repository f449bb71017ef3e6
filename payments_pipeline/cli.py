"""The command line: arguments, printing, exit codes.

Belongs here: what a person types and sees. Does not belong here: what a command does, which its own module says.
Heavy imports stand inside the commands that need them, so that each starts as soon as it can.

Exit codes: 0 done; 1 a day failed or a rule is broken; 2 wrong usage; 3 the embedded servers cannot be used.
"""

from __future__ import annotations

import gc
import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from payments_pipeline import code_version
from payments_pipeline.domain.errors import ConfigurationError, PaymentsError, StackError
from payments_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from payments_pipeline.day_runs import DayRuns, DaySummary
    from payments_pipeline.local.stack import Endpoints

_DAY = click.DateTime(formats=["%Y-%m-%d"])
_json = click.option("--json", "as_json", is_flag=True, help="One object a line on standard output.")


def main() -> None:
    """Entry of the console script: an error raised on purpose is one line, never a traceback."""
    try:
        commands(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PaymentsError as error:
        click.echo(f"payments-pipeline: {error}", err=True)
        sys.exit(3 if isinstance(error, StackError) else 2 if isinstance(error, ConfigurationError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(code_version(), prog_name="payments-pipeline")
def commands() -> None:
    """Football match results into shares, payouts and settlement records; any day may be run again at any time."""


def _day(value: datetime) -> date:
    return value.date()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _print(row: dict[str, Any]) -> None:
    click.echo(json.dumps(row, default=str, ensure_ascii=False))


@contextmanager
def _servers(settings: Settings) -> Iterator[tuple[Settings, Endpoints]]:
    """Give the servers, and the settings with what was found filled in."""
    from pydantic import SecretStr

    from payments_pipeline.local.stack import stack

    with stack(settings) as endpoints:
        found: dict[str, object] = {
            "postgres_url": SecretStr(endpoints.postgres_url),
            "dagster_postgres_url": SecretStr(endpoints.dagster_postgres_url),
        }
        if endpoints.processor_url is not None:
            found["processor_url"] = endpoints.processor_url
        if endpoints.processor_key is not None:
            found["processor_key"] = SecretStr(endpoints.processor_key)
        yield settings.model_copy(update=found), endpoints


@contextmanager
def _day_runs(settings: Settings) -> Iterator[tuple[DayRuns, Settings, Endpoints]]:
    with _servers(settings) as (found, endpoints):
        from payments_pipeline.day_runs import DayRuns
        from payments_pipeline.definitions import build_defs
        from payments_pipeline.local.instance import open_instance

        with open_instance(endpoints, found) as instance:
            _spare_the_collector()
            yield DayRuns(build_defs(found), instance, endpoints.postgres_url, getpass.getuser()), found, endpoints


def _spare_the_collector() -> None:
    """Leave what the imports made out of garbage collection: it never dies, and looking it through costs a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@commands.command()
def up() -> None:
    """Start everything: Postgres, sandbox processor, Dagster webserver and daemon. Ctrl-C stops it."""
    from payments_pipeline.local.supervisor import up as supervise

    sys.exit(supervise(load_settings()))


@commands.command()
@click.option("--date", "day", type=_DAY, required=True, help="Match day, YYYY-MM-DD.")
@_json
def run(day: datetime, as_json: bool) -> None:
    """Run one match day in this process."""
    _run_days(_day(day), _day(day), as_json=as_json)


@commands.command()
@click.option("--from", "first", type=_DAY, required=True, help="First match day.")
@click.option("--to", "last", type=_DAY, required=True, help="Last match day.")
@_json
def backfill(first: datetime, last: datetime, as_json: bool) -> None:
    """Run a range of match days in date order, one run a day, in this process. Safe to repeat at any time."""
    if last < first:
        raise click.BadParameter(f"{_day(last)} is before {_day(first)}", param_hint="--to")
    _run_days(_day(first), _day(last), as_json=as_json)


def _run_days(first: date, last: date, *, as_json: bool) -> None:
    from payments_pipeline.printing import day_line, progress

    with _day_runs(load_settings()) as (runs, settings, _endpoints):
        from payments_pipeline.day_runs import DayFailedError, days

        runs.check_days(first, last)
        failed: list[str] = []
        console = _console()
        with progress(console, (last - first).days + 1) as advance:
            for day in days(first, last):
                try:
                    summary = runs.run(day)
                except DayFailedError as error:
                    # One day's bad input never holds up the others.
                    failed.append(str(error))
                    console.print(f"[red]failed[/red] {day}")
                else:
                    if as_json:
                        _print(summary.as_object())
                    else:
                        click.echo(day_line(summary))
                advance()
        for grown in _take_grown_reports_in(runs, settings):
            console.print(f"the report of {grown} had grown: its new lines were taken in")
    for words in failed:
        click.echo(f"payments-pipeline: {words}", err=True)
    if failed:
        sys.exit(1)


def _take_grown_reports_in(runs: DayRuns, settings: Settings) -> list[date]:
    from payments_pipeline.processors.registry import open_processor

    key = settings.processor_key.get_secret_value() if settings.processor_key else ""
    processor = open_processor(settings.processor, settings.processor_url or "", key)
    return runs.take_grown_reports_in(processor, settings.processor)


@commands.command()
@click.option("--date", "day", type=_DAY, help="Only what belongs to this day.")
@click.option("--party", help="Only what belongs to this party.")
@click.option("--instruction", "instruction_id", help="One instruction, whole: events, items, report lines.")
@_json
def status(day: datetime | None, party: str | None, instruction_id: str | None, as_json: bool) -> None:
    """Show what waits and why, what is under way, and what broke."""
    from payments_pipeline import status as queries
    from payments_pipeline.printing import tables_text

    with _servers(load_settings()) as (_settings, endpoints):
        if instruction_id is not None:
            parts = queries.instruction(endpoints.postgres_url, instruction_id)
        else:
            parts = queries.overall(endpoints.postgres_url, day=_day(day) if day else None, party=party)
    if as_json:
        for part, rows in parts.items():
            for row in rows:
                _print({"part": part, **row})
    else:
        click.echo(tables_text(parts))


@commands.command()
@_json
def verify(as_json: bool) -> None:
    """Recompute the rules from what is stored, by code of its own; exit 1 on any breach."""
    from payments_pipeline.printing import rule_line
    from payments_pipeline.verify import verify as rules

    broken = 0
    with _servers(load_settings()) as (settings, endpoints):
        for result in rules(endpoints.postgres_url, settings):
            broken += not result.ok
            if as_json:
                said = {
                    "rule": result.rule,
                    "ok": result.ok,
                    "checked": result.checked,
                    "breaches": list(result.breaches),
                }
                _print(said | ({"left_out": list(result.left_out)} if result.left_out else {}))
            else:
                click.echo(rule_line(result))
    sys.exit(1 if broken else 0)


@commands.command()
@click.argument("asset")
@click.option("--date", "day", type=_DAY, required=True, help="Partition.")
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "parquet", "jsonl"]), default="csv", show_default=True
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File; standard output where not given.")
@_json
def export(asset: str, day: datetime, file_format: str, out: Path | None, as_json: bool) -> None:
    """Write one partition of ASSET to a file."""
    from payments_pipeline.exports import read_partition, write_table

    if as_json and out is None:
        raise click.UsageError("--json needs --out: standard output cannot hold both.")
    with _servers(load_settings()) as (settings, endpoints):
        table = read_partition(asset, _day(day), storage_url=settings.storage, database_url=endpoints.postgres_url)
    rows = write_table(table, file_format, out)
    if as_json:
        _print({"asset": asset, "date": str(_day(day)), "format": file_format, "rows": rows, "out": str(out)})


@commands.command()
@click.option("--seed", type=int, default=7, show_default=True, help="Of the generated season.")
@_json
def demo(seed: int, as_json: bool) -> None:
    """Generate a sample season, run seven match days and those that settle them, and verify the result."""
    from payments_pipeline.demo import run_demo

    show, say = (_show_json, _to_people) if as_json else (_show_summary, click.echo)
    sys.exit(run_demo(load_settings(), seed=seed, day_runs=_day_runs, show=show, say=say))


def _to_people(words: str) -> None:
    """Keep standard output for objects."""
    click.echo(words, err=True)


def _show_json(summary: DaySummary) -> None:
    _print(summary.as_object())


def _show_summary(summary: DaySummary) -> None:
    from payments_pipeline.printing import day_line

    click.echo(day_line(summary))


if __name__ == "__main__":
    main()
