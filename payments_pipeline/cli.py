"""The command line: arguments, printing, exit codes.

Belongs here: what a person types and sees. Does not belong here: what a command does, which its own module says.
Heavy imports stand inside the commands that need them, so that each starts as soon as it can.

Exit codes: 0 done; 1 a day failed or a rule is broken; 2 wrong usage; 3 a database or server cannot be used.
"""

from __future__ import annotations

import gc
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from payments_pipeline import code_version
from payments_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, PaymentsError, StackError
from payments_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from payments_pipeline.day_runs import DayRuns, DaySummary
    from payments_pipeline.domain.proposals import Match, Resolution, Retry, WriteOff
    from payments_pipeline.local.stack import Endpoints
    from payments_pipeline.storage.postgres import RunInfo

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
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        from payments_pipeline.dagster_storage import LOST  # not before: it takes a second to import

        if not isinstance(error, LOST):
            raise
        click.echo(
            "payments-pipeline: Dagster's database no longer answers. What had been committed stands, and nothing is "
            "posted or sent twice: see to Postgres, then give the command again.",
            err=True,
        )
        sys.exit(3)


def _exit_code(error: PaymentsError) -> int:
    if isinstance(error, DatabaseUnavailableError | StackError):
        return 3
    return 2 if isinstance(error, ConfigurationError) else 1


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
        from payments_pipeline.dagster_liveness import end_dead_runs
        from payments_pipeline.day_runs import DayRuns
        from payments_pipeline.definitions import build_defs
        from payments_pipeline.local.instance import open_instance

        with open_instance(endpoints, found) as instance:
            for dead in end_dead_runs(instance):
                day = dead.tags.get("dagster/partition", "no one day")
                click.echo(f"run {dead.run_id} of {day} had died, and is marked as failed", err=True)
            _spare_the_collector()
            yield DayRuns(build_defs(found), instance, endpoints.postgres_url, _user()), found, endpoints


def _user() -> str:
    """Say who runs this: as the kernel has it, not as the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


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
        with progress(console, (last - first).days + 1) as (advance, say):
            for day in days(first, last):
                try:
                    summary = runs.run(day, say)
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
        for words in failed:
            click.echo(f"payments-pipeline: {words}", err=True)
        for grown in _take_grown_reports_in(runs, settings):
            console.print(f"the report of {grown} had grown: its new lines were taken in")
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


@contextmanager
def _approver() -> Iterator[tuple[str, str, date]]:
    """Give the database by the approver's own login, by the run-time login, and today in the pipeline's zone."""
    with _servers(load_settings()) as (settings, endpoints):
        url = endpoints.approver_url
        if url is None:
            raise ConfigurationError(
                "PAYMENTS_APPROVER_URL is not set: it is the business database by an approver's own login, which the "
                "pipeline itself never has. Nothing was changed."
            )
        yield url, endpoints.postgres_url, datetime.now(settings.zone).date()


@commands.command()
@click.argument("instruction_id")
@click.option("--digest", help="Of what was looked at, as `status --instruction` shows it; asked for without.")
@click.option("--reason", default="looked at and approved", show_default=True, help="Kept with the approval.")
@_json
def approve(instruction_id: str, digest: str | None, reason: str, as_json: bool) -> None:
    """Let an instruction that is over its limit pass; by an approver who did not make it."""
    from payments_pipeline.domain.money import format_minor
    from payments_pipeline.storage import approvals

    with _approver() as (approver_url, _url, today):
        row = approvals.looked_at(approver_url, instruction_id)
        amount = format_minor(row["amount_minor"], row["currency"])
        words = f"{row['direction']} {amount} {row['currency']}, party {row['party_id']}, sweep of {row['sweep_day']}"
        if digest is None:
            if as_json:
                raise click.UsageError("--json needs --digest: nobody is asked.")
            items = (row["claims"] or "").count("\n") + 1
            click.echo(f"{words}, {items} items, made by {row['maker']}, digest {row['digest']}")
            click.confirm("Approve it?", abort=True)
            digest = row["digest"]
        approvals.approve(approver_url, instruction_id, digest, reason, today)
    _said(
        as_json,
        {"instruction_id": instruction_id, "state": "approved"},
        f"approved: {words}; the next dispatch sends it",
    )


@commands.command()
@click.argument("identity", metavar="ID")
@click.option("--reason", required=True, help="Kept with the refusal.")
@_json
def refuse(identity: str, reason: str, as_json: bool) -> None:
    """Refuse ID: an instruction that has not been sent, or a proposal."""
    from payments_pipeline.storage import approvals

    with _approver() as (approver_url, url, today):
        if approvals.is_proposal(url, identity):
            approvals.decide(approver_url, identity, "refused", reason)
            said = {"proposal_id": identity, "decision": "refused"}, f"refused: proposal {identity}"
        else:
            approvals.refuse(approver_url, identity, reason, today)
            said = (
                {"instruction_id": identity, "state": "cancelled"},
                f"refused: instruction {identity} is cancelled; its items are free to sweeps of days after {today}",
            )
    _said(as_json, *said)


@commands.command()
@click.argument("proposal_id", required=False)
@click.option("--competition", help="All that changed rules of this competition would do, instead of one proposal.")
@click.option("--digest", help="With --competition: of what was looked at, as `status` shows it; asked for without.")
@click.option("--reason", default="looked at and accepted", show_default=True, help="Kept with the decision.")
@_json
def accept(proposal_id: str | None, competition: str | None, digest: str | None, reason: str, as_json: bool) -> None:
    """Accept a proposal that somebody else made, and carry it out."""
    from payments_pipeline.storage import approvals

    if (proposal_id is None) == (competition is None):
        raise click.UsageError("Name one proposal, or a competition.")
    if competition is not None:
        _accept_changes(competition, digest, reason, as_json=as_json)
        return
    assert proposal_id is not None
    with _approver() as (approver_url, url, today):
        decided = approvals.decide(approver_url, proposal_id, "accepted", reason)
        outcome = approvals.carry_out_accepted(url, today, _by_command())
    proposal_id = decided["proposal_id"]
    is_done, waits = proposal_id in outcome.done, outcome.waiting.get(proposal_id)
    if decided["kind"] == "rule_change":
        waits = f"the next run of {decided['content']['match_day']} posts it"
    elif decided["kind"] == "retry":
        waits = "the next sweep takes what waited"
    elif not is_done and waits is None:
        waits = "there is nothing to carry out: it was carried out before, or what became of it is known meanwhile"
    words = f"accepted and carried out: {decided['kind']} {proposal_id}" if is_done else f"accepted; {waits}"
    _said(as_json, decided | {"carried_out": is_done, "waits": waits}, words)


def _accept_changes(competition: str, digest: str | None, reason: str, *, as_json: bool) -> None:
    from payments_pipeline.domain.money import format_minor
    from payments_pipeline.storage import approvals

    with _approver() as (approver_url, url, _today):
        waiting = approvals.changes_waiting(url, competition)
        if digest is None:
            if as_json:
                raise click.UsageError("--json needs --digest: nobody is asked.")
            days = [day for _, day in waiting.proposals]
            click.echo(f"{competition}: {len(days)} days, {days[0]} to {days[-1]}; in all, digest {waiting.digest}")
            for account, currency, amount_minor in waiting.effect:
                click.echo(f"  {account} {format_minor(amount_minor, currency)} {currency}")
            click.confirm("Accept it for all of these days?", abort=True)
        elif digest != waiting.digest:
            raise approvals.NotApprovedError(
                f"what waits of {competition} has digest {waiting.digest}, and {digest} was looked at. Nothing was "
                "accepted. Look at it again."
            )
        for identity, day in waiting.proposals:
            decided = approvals.decide(approver_url, identity, "accepted", reason)
            row = decided | {"carried_out": False, "waits": f"the next run of {day} posts it"}
            _said(as_json, row, f"accepted; the next run of {day} posts it")


@commands.command()
@click.argument("instruction_id")
@click.option("--as", "to_state", type=click.Choice(["failed", "submitted"]), required=True, help="What became of it.")
@click.option("--evidence", required=True, help="Where that is written: a ticket, a letter, a statement.")
@click.option("--reason", default="the processor was asked", show_default=True, help="For who decides.")
@_json
def resolve(instruction_id: str, to_state: str, evidence: str, reason: str, as_json: bool) -> None:
    """Propose what became of an instruction whose outcome is unknown; an approver accepts it."""
    from payments_pipeline.domain.proposals import Resolution

    _propose(lambda _url: Resolution(instruction_id, to_state, evidence), reason, as_json=as_json)


@commands.command("write-off")
@click.option("--party", required=True, help="Who owes.")
@click.option("--currency", required=True, help="ISO 4217.")
@click.option("--amount-minor", type=click.IntRange(min=1), required=True, help="Minor units of the currency.")
@click.option("--reason", required=True, help="Why it will not be recovered.")
@_json
def write_off(party: str, currency: str, amount_minor: int, reason: str, as_json: bool) -> None:
    """Propose to write off what a party owes; an approver accepts it."""
    from payments_pipeline.storage import approvals

    _propose(lambda url: approvals.write_off(url, party, currency, amount_minor), reason, as_json=as_json)


@commands.command()
@click.argument("entry_reference")
@click.option("--to", "account", required=True, help="pot:<competition>, fees:<processor> or party:<id>.")
@click.option("--reason", required=True, help="What the line was for, and how that is known.")
@_json
def match(entry_reference: str, account: str, reason: str, as_json: bool) -> None:
    """Propose what a report line was for that belonged to nothing; an approver accepts it."""
    from payments_pipeline.domain.proposals import Match

    kind, _, named = account.partition(":")
    if kind not in ("pot", "fees", "party") or not named:
        raise click.UsageError("--to is pot:<competition>, fees:<processor> or party:<id>.")
    processor = load_settings().processor
    _propose(lambda _url: Match(processor, entry_reference, account), reason, as_json=as_json)


@commands.command()
@click.option("--party", required=True, help="Whose items wait after failures in a row.")
@click.option("--currency", required=True, help="ISO 4217.")
@click.option("--reason", required=True, help="Why its account works again, for who decides.")
@_json
def retry(party: str, currency: str, reason: str, as_json: bool) -> None:
    """Propose to pay, or collect from, a party again that waits after failures in a row; an approver accepts it."""
    from payments_pipeline.storage import approvals

    _propose(lambda url: approvals.retry(url, party, currency), reason, as_json=as_json)


@commands.command()
@click.option("--refund-id", required=True, help="Its id for ever; the same again with the same content is a no-op.")
@click.option("--match", "match_id", required=True, help="Match whose fee is refunded.")
@click.option("--party", required=True, help="Who was charged.")
@click.option("--amount-minor", type=click.IntRange(min=1, max=10**15), help="Minor units; without, all that is left.")
@click.option("--reason", required=True, help="Why it is refunded.")
@click.option("--date", "day", type=_DAY, help="Day of acceptance, whose sweep or a later one pays it; today without.")
@_json
def refund(
    refund_id: str,
    match_id: str,
    party: str,
    amount_minor: int | None,
    reason: str,
    day: datetime | None,
    as_json: bool,
) -> None:
    """Refund a match fee, or a part of it, to who was charged."""
    from payments_pipeline.domain.refund_requests import request_frame
    from payments_pipeline.printing import refund_line
    from payments_pipeline.storage.certificates import write_certificates
    from payments_pipeline.storage.objects import open_store
    from payments_pipeline.storage.refunds import accept_refunds

    request = request_frame(refund_id, match_id, party, amount_minor, reason, "command line")
    with _servers(load_settings()) as (settings, endpoints):
        on = _day(day) if day else datetime.now(settings.zone).date()
        accepted = accept_refunds(endpoints.postgres_url, on, request, _user(), _by_command())
        (decided,) = accepted.decisions.to_dict("records")
        refused = len(accepted.refused) > 0
        row = {"refund_id": refund_id, "decision": decided["decision"], "day": on.isoformat()}
        row |= {"amount_minor": decided["fixed_minor"] or None, "currency": decided["currency"] or None}
        if as_json:
            _print(row | {"words": decided["words"] or None})
        else:
            click.echo(decided["words"] if refused else refund_line(row), err=refused)
        if not refused:
            try:
                write_certificates(endpoints.postgres_url, open_store(settings.storage), on)
            except PaymentsError as error:
                click.echo(
                    f"payments-pipeline: the refund is accepted and posted, its certificate is not written: {error} "
                    "Give the same command again, or run the day.",
                    err=True,
                )
    sys.exit(1 if refused else 0)


def _propose(what: Callable[[str], Match | Resolution | Retry | WriteOff], reason: str, *, as_json: bool) -> None:
    from payments_pipeline.storage import approvals

    with _servers(load_settings()) as (_settings, endpoints):
        url = endpoints.postgres_url
        identity = approvals.propose(url, what(url), reason, _user())
    words = f"proposed: an approver other than {_user()} runs `payments-pipeline accept {identity}`"
    _said(as_json, {"proposal_id": identity, "decision": None}, words)


def _by_command() -> RunInfo:
    from payments_pipeline.storage.postgres import RunInfo

    return RunInfo(run_id="command line", code_version=code_version(), maker=_user())


def _said(as_json: bool, row: dict[str, Any], words: str) -> None:
    if as_json:
        _print(row)
    else:
        click.echo(words)


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
