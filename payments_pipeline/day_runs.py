"""Running days in this process: one Dagster run a day, its event log as usual, so that the UI shows them.

Belongs here: executing the jobs, and what a day's run came to. Does not belong here: printing, servers.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any

import dagster as dg

from payments_pipeline.dagster_storage import LOST
from payments_pipeline.defs.assets.payout_submissions import PROGRESS
from payments_pipeline.defs.jobs import DAILY, TAKE_REPORT_IN
from payments_pipeline.defs.resources import MAKER_TAG
from payments_pipeline.domain.errors import ConfigurationError, PaymentsError
from payments_pipeline.processors.base import PayoutProcessor, ReportDigest
from payments_pipeline.storage.day_summary import amounts_of_run, taken_in_digests

#: Runs print nothing of their own; their events are in Dagster's log.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
#: The daemon cannot start again what a command started, and is not to say that it will.
_RETRIES_TAG = "dagster/max_retries"


class DayFailedError(PaymentsError):
    """A day's run failed; says at which step, why, and what to do."""


@dataclass(frozen=True)
class DaySummary:
    """What a day's run came to.

    Attributes:
        day: the match day.
        matches: accepted.
        rejected: input rows rejected.
        superseded: input rows that an equal or newer row replaces.
        shares: rows of participant_shares.
        entries_posted: ledger lines posted for the shares; 0 where everything was posted before.
        instructions_created: by this run's sweep.
        amounts: per currency, what this run's instructions pay (credit_minor) and collect (debit_minor).
        settled: the day's settlement records.
        open_items: left open after the sweep, of this day and before.
        seconds: wall-clock.
        steps: seconds of each step; not part of the printed object.
        failed_checks: names of asset checks that failed; not part of the printed object.
        refunds: accepted on the day; not part of the printed object.
        refusals: why requests for refunds were refused, in words; not part of the printed object.
    """

    day: str
    matches: int
    rejected: int
    superseded: int
    shares: int
    entries_posted: int
    instructions_created: int
    amounts: dict[str, dict[str, int]]
    settled: int
    open_items: int
    seconds: float
    steps: dict[str, float] = field(default_factory=dict)
    failed_checks: tuple[str, ...] = ()
    refunds: int = 0
    refusals: tuple[str, ...] = ()

    def as_object(self) -> dict[str, Any]:
        """Give the object that `--json` prints."""
        shown = asdict(self)
        for name in ("steps", "failed_checks", "refunds", "refusals"):
            del shown[name]
        return shown


@contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C came since it was last asked.

    While a run is under way Dagster has a handler of its own in place, which forgets what comes as the run ends. Python
    tells every signal here, whoever handles it.
    """
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.settimeout(0)
        writing.settimeout(0)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

        def came() -> bool:
            try:
                return signal.SIGINT in reading.recv(4096)
            except BlockingIOError:
                return False

        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)


class _Telling(logging.Handler):
    """Hands on what is logged, in words; that nobody can be told ends no dispatch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one record."""
        try:
            self.say(record.getMessage())
        except Exception:  # noqa: BLE001 - such as standard error that nobody reads any more
            self.handleError(record)


@contextmanager
def _telling(say: Callable[[str], None]) -> Iterator[None]:
    """Have `say` called with how far a long dispatch in this process has come."""
    handler = _Telling(say)
    PROGRESS.addHandler(handler)
    PROGRESS.setLevel(logging.INFO)
    try:
        yield
    finally:
        PROGRESS.setLevel(logging.NOTSET)
        PROGRESS.removeHandler(handler)


@dataclass(frozen=True)
class DayRuns:
    """Runs days on one instance.

    Attributes:
        definitions: the code location.
        instance: Dagster's storage.
        url: business database.
        maker: who started the runs.
    """

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    url: str
    maker: str

    def check_days(self, first: date, last: date) -> None:
        """Refuse days that there is no partition for.

        Raises:
            ConfigurationError: names the days there are.
        """
        partitions = self._job(DAILY).partitions_def
        assert partitions is not None
        start, end = partitions.get_first_partition_key(), partitions.get_last_partition_key()
        if start is None or end is None or not start <= first.isoformat() <= last.isoformat() <= end:
            raise ConfigurationError(
                f"{first} to {last} is no range of match days: there are {start} to {end}, yesterday. "
                "Set PAYMENTS_START_DATE for earlier days. Nothing ran."
            )

    def run(self, day: date, say: Callable[[str], None] = lambda _words: None) -> DaySummary:
        """Run a whole day.

        Args:
            day: the match day.
            say: told in words, every few seconds, how far a long dispatch has come.

        Raises:
            DayFailedError: a step failed or a blocking check stopped the run; what had been committed stands.
            KeyboardInterrupt: Ctrl-C; what had been committed before stands.
        """
        started = time.perf_counter()
        with _telling(lambda words: say(f"{day}: {words}")):
            result = self._execute(DAILY, day)
        metadata = _metadata(result)
        rejects = metadata["rejected_records"]
        return DaySummary(
            day=day.isoformat(),
            matches=_whole(metadata["match_results"], "dagster/partition_row_count"),
            rejected=_whole(rejects, "rejected"),
            superseded=_whole(rejects, "superseded"),
            shares=_whole(metadata["participant_shares"], "dagster/partition_row_count"),
            entries_posted=_whole(metadata["ledger_entries"], "entries_posted"),
            instructions_created=_whole(metadata["payout_instructions"], "instructions_created"),
            amounts=amounts_of_run(self.url, result.run_id),
            settled=_whole(metadata["settlement_records"], "records"),
            open_items=_whole(metadata["payout_instructions"], "open_items"),
            seconds=round(time.perf_counter() - started, 3),
            steps=_step_seconds(result),
            failed_checks=tuple(
                sorted(
                    f"{check.asset_key.to_user_string()}: {check.check_name}"
                    for check in result.get_asset_check_evaluations()
                    if not check.passed
                )
            ),
            refunds=_whole(metadata["refunds"], "refunds"),
            refusals=tuple(metadata["refunds"]["refusals"]),
        )

    def take_grown_reports_in(self, processor: PayoutProcessor, name: str) -> list[date]:
        """Take in again the reports that have grown since they were taken in; gives their dates.

        Raises:
            DayFailedError: some could not be; the others were.
        """
        taken = taken_in_digests(self.url, name)
        if not taken:
            return []
        now = asyncio.run(_digests(processor, min(taken), max(taken)))
        grown = sorted(r.report_date for r in now if taken.get(r.report_date, r.digest) != r.digest)
        failed = []
        for day in grown:
            try:
                self._execute(TAKE_REPORT_IN, day)
            except DayFailedError as error:
                # One date's bad report never holds up the others.
                failed.append(str(error))
        if failed:
            raise DayFailedError("; ".join(failed))
        return grown

    def _job(self, name: str) -> dg.JobDefinition:
        return self.definitions.resolve_job_def(name)

    def _execute(self, job: str, day: date) -> dg.ExecuteInProcessResult:
        try:
            with noticing_interrupts() as interrupted:
                result = self._job(job).execute_in_process(
                    partition_key=day.isoformat(),
                    instance=self.instance,
                    tags={MAKER_TAG: self.maker, _RETRIES_TAG: "0"},
                    run_config=_QUIET,
                    raise_on_error=False,
                )
                if interrupted():
                    raise KeyboardInterrupt
        except LOST as error:
            raise DayFailedError(_lost(day)) from error
        record: dg.DagsterRun | None = result.dagster_run
        if record is None:  # a server that was killed has forgotten that the run ever began
            raise DayFailedError(_lost(day))
        if not result.success:
            if _was_interrupted(result):
                raise KeyboardInterrupt  # Dagster takes Ctrl-C for the failure of a step: it is meant for all days
            raise DayFailedError(_failure_words(day, result))
        return result


async def _digests(processor: PayoutProcessor, first: date, last: date) -> list[ReportDigest]:
    async with processor:
        return await processor.report_digests(first, last)


def days(first: date, last: date) -> Iterator[date]:
    """Give each day of a range, both ends included."""
    for offset in range((last - first).days + 1):
        yield first + timedelta(days=offset)


def _metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return {
        event.asset_key.to_user_string(): {key: value.value for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def _whole(metadata: dict[str, Any], name: str) -> int:
    value = metadata[name]
    assert isinstance(value, int)
    return value


def _step_seconds(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    return {
        str(event.step_key): round(event.step_success_data.duration_ms / 1000, 3)
        for event in result.all_events
        if event.is_step_success
    }


def _lost(day: date) -> str:
    return (
        f"{day} stopped: Dagster's database no longer answers, or lost the run. What had been committed stands, and "
        "nothing is posted or sent twice: see to Postgres, then run the day again."
    )


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    names = {error.cls_name for error in errors if error is not None}
    return bool(names & {"DagsterExecutionInterruptedError", "KeyboardInterrupt"})


_OURS = "payments_pipeline."


def _failure_words(day: date, result: dg.ExecuteInProcessResult) -> str:
    """Say in one message which step failed and why: in our own words where we have some, else in the cause's.

    Of a blocking check, what it found.
    """
    found = [
        f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.blocking
    ]
    failures: Sequence[dg.DagsterEvent] = [event for event in result.all_events if event.is_step_failure]
    words = []
    for event in failures:
        error = event.step_failure_data.error
        while error is not None and error.cause is not None and not error.message.startswith(_OURS):
            error = error.cause
        # Dagster puts the class before the words; of our own errors the words are enough.
        text = "no error was recorded" if error is None else error.message.strip()
        if text.startswith(_OURS):
            text = text.partition(": ")[2]
        if found and "DagsterAssetCheckFailedError" in text:
            continue  # what the check found says more
        words.append(f"{event.step_key}: {text}")
    return f"{day} failed at {'; '.join(words + found) or 'no step: see the run'} (run {result.run_id})"
