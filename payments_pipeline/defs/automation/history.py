"""What Dagster remembers of runs, materialisations and checks: the one place where sensors read the instance.

Belongs here: reading, and turning records into the values that decisions take. Does not belong here: deciding.

Public API offers runs, their status changes and materialisations. Two readings have none in this release: the check
evaluations of a run (`DagsterInstance.all_logs`) and the partitions ever materialised (`get_materialized_partitions`;
the public `get_status_by_partition` forgets a materialisation once a later run has failed). Both are methods without
deprecation, and are used here alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeAlias

import dagster as dg

from payments_pipeline.domain.alerts import FailedCheck, FailedRun
from payments_pipeline.domain.automation import DayRun, RunOutcome

#: The asset whose materialisation says that a day has run.
FIRST_ASSET = dg.AssetKey("match_results")
#: The asset that takes refund requests in, whose input is its own.
REFUNDS = dg.AssetKey("refunds")

_PARTITION_TAG = "dagster/partition"
_RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_STARTER_TAGS = ("dagster/schedule_name", "dagster/sensor_name")
_WILL_RETRY_TAG = "dagster/will_retry"
_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_OUTCOMES = {
    dg.DagsterRunStatus.SUCCESS: RunOutcome.SUCCEEDED,
    dg.DagsterRunStatus.FAILURE: RunOutcome.FAILED,
    dg.DagsterRunStatus.CANCELED: RunOutcome.CANCELED,
}
Ending: TypeAlias = Literal[
    dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED
]
ENDINGS: tuple[Ending, ...] = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)
#: Events are numbered when written and seen when committed, so that a lower number can appear after a higher one was
#: read. Each reading goes back by so many numbers; what it sees again has the same alert ids.
_OVERLAP = 200
#: Records read at once of each kind of ending; above the overlap, so that every reading gets on.
_LIMIT = 250
#: Dagster states whether it will retry a run just after it has stored the failure.
_UNDECIDED = timedelta(seconds=15)


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended.

    Attributes:
        run_id: the run.
        day: its partition, where it has one.
        job: its job.
        tags: its tags now.
        ended_at: when it ended.
        error: why it failed; empty where it did not.
    """

    run_id: str
    day: date | None
    job: str
    tags: Mapping[str, str]
    ended_at: datetime
    error: str

    @property
    def will_retry(self) -> bool | None:
        """Whether Dagster starts it again by itself; None where that is not stated."""
        stated = self.tags.get(_WILL_RETRY_TAG)
        return None if stated is None else stated == "true"

    def as_failed(self) -> FailedRun:
        """Give it as alerts take it."""
        root = self.tags.get("dagster/root_run_id", self.run_id)
        return FailedRun(self.run_id, root, self.job, self.day, bool(self.will_retry), self.error)


@dataclass(frozen=True)
class EndingsRead:
    """Runs that ended since a cursor, and the cursor after them."""

    runs: list[FinishedRun]
    cursor: str


def runs_ended_since(
    instance: dg.DagsterInstance, cursor: str | None, endings: Iterable[Ending], now: datetime
) -> EndingsRead:
    """Give the runs that ended since a cursor, oldest first; some of them may have been given before.

    A failure of the last seconds whose retry is not decided yet is left to the next reading.

    Args:
        instance: Dagster's storage.
        cursor: that of the reading before; None reads from the beginning.
        endings: which endings, of `ENDINGS`.
        now: aware.
    """
    after: dict[str, int] = json.loads(cursor) if cursor else {}
    found: list[tuple[int, dg.EventLogRecord]] = []
    for ending in endings:
        last = after.get(ending.value, 0)
        records = instance.fetch_run_status_changes(
            dg.RunStatusChangeRecordsFilter(ending, after_storage_id=max(0, last - _OVERLAP)), _LIMIT, ascending=True
        ).records
        found += [(record.storage_id, record) for record in records]
    runs_by_id = _runs(instance, [record.run_id for _, record in found])
    runs: list[FinishedRun] = []
    stopped: set[dg.DagsterEventType] = set()
    for storage_id, record in sorted(found, key=lambda each: each[0]):
        event = record.event_log_entry.get_dagster_event()
        run = runs_by_id.get(record.run_id)
        ended_at = datetime.fromtimestamp(record.timestamp, UTC)
        if event.event_type in stopped:
            continue
        if run is not None:  # a run deleted by hand since has nothing to tell
            finished = FinishedRun(run.run_id, run_day(run), run.job_name, run.tags, ended_at, _error_words(event))
            failed = event.event_type is dg.DagsterEventType.RUN_FAILURE
            if failed and finished.will_retry is None and now - ended_at < _UNDECIDED:
                stopped.add(event.event_type)
                continue
            runs.append(finished)
        after[event.event_type_value] = max(storage_id, after.get(event.event_type_value, 0))
    return EndingsRead(runs, json.dumps(after, sort_keys=True))


def _runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> dict[str, dg.DagsterRun]:
    if not run_ids:
        return {}
    records = instance.get_run_records(dg.RunsFilter(run_ids=list(set(run_ids))))
    return {record.dagster_run.run_id: record.dagster_run for record in records}


def _error_words(event: dg.DagsterEvent) -> str:
    """Give the innermost error's own words, with its step where there is one."""
    if event.event_type is not dg.DagsterEventType.RUN_FAILURE:
        return ""
    step = error = None
    if event.event_specific_data is not None:  # a run that was ended from outside has a message and nothing else
        failure = event.job_failure_data
        step = failure.first_step_failure_event
        error = step.step_failure_data.error if step is not None else failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    said = error.message.strip() if error is not None else event.message or "no error was recorded"
    return f"{step.step_key}: {said}" if step is not None else said


def run_day(run: dg.DagsterRun) -> date | None:
    """Give the day a run is about: its partition, or the one day of its range."""
    key = run.tags.get(_PARTITION_TAG)
    if key is None:
        start, end = (run.tags.get(tag) for tag in _RANGE_TAGS)
        key = start if start == end else None
    return as_day(key)


def as_day(partition_key: str | None) -> date | None:
    """Give a partition key as a date; None where it is none."""
    try:
        return date.fromisoformat(partition_key) if partition_key else None
    except ValueError:
        return None


def day_runs(records: Iterable[dg.RunRecord]) -> list[DayRun]:
    """Give run records as decisions take them."""
    return [
        DayRun(
            run_day(run),
            _OUTCOMES.get(run.status, RunOutcome.UNFINISHED),
            next((run.tags[tag] for tag in _STARTER_TAGS if tag in run.tags), None),
        )
        for run in (record.dagster_run for record in records)
    ]


def unfinished_runs(instance: dg.DagsterInstance) -> list[DayRun]:
    """Give the runs that are queued or in progress."""
    return day_runs(instance.get_run_records(dg.RunsFilter(statuses=list(_UNFINISHED))))


def runs_of_days(instance: dg.DagsterInstance, days: Sequence[date]) -> dict[date, list[DayRun]]:
    """Give every run of each day, newest first; days without any are left out."""
    if not days:
        return {}
    keys = [day.isoformat() for day in days]
    # A backfill names a run's day as a range that begins and ends with it.
    records = {
        record.storage_id: record
        for tag in (_PARTITION_TAG, _RANGE_TAGS[0])
        for record in instance.get_run_records(dg.RunsFilter(tags={tag: keys}))
    }
    found: dict[date, list[DayRun]] = {}
    for run in day_runs(records[storage_id] for storage_id in sorted(records, reverse=True)):
        if run.day is not None:
            found.setdefault(run.day, []).append(run)
    return found


def days_run(instance: dg.DagsterInstance) -> frozenset[date]:
    """Give the days whose first asset was ever materialised."""
    keys = instance.get_materialized_partitions(FIRST_ASSET)
    return frozenset(day for day in map(as_day, keys) if day is not None)


@dataclass(frozen=True)
class LastInput:
    """What a day last ran on.

    Attributes:
        run_id: run of the day's newest materialisation.
        hashes: content hash by dataset; empty where the materialisation states none.
    """

    run_id: str
    hashes: Mapping[str, str]


def last_input(instance: dg.DagsterInstance, day: date) -> LastInput:
    """Give the input of a day's newest materialisation, from its metadata `lineage`.

    Raises:
        LookupError: the day was never materialised.
    """
    found = _last_input(instance, FIRST_ASSET, day)
    if found is None:
        raise LookupError(f"{FIRST_ASSET.to_user_string()} of {day} was never materialised")
    return found


def last_refund_input(instance: dg.DagsterInstance, day: date) -> Mapping[str, str]:
    """Give the content hash of the refund requests that a day last ran on; empty where it ran before there were any."""
    found = _last_input(instance, REFUNDS, day)
    return {} if found is None else found.hashes


def _last_input(instance: dg.DagsterInstance, asset: dg.AssetKey, day: date) -> LastInput | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset, asset_partitions=[day.isoformat()]), limit=1
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    lineage = records[0].asset_materialization.metadata.get("lineage")
    stated: Any = lineage.value if lineage is not None else {}
    if isinstance(stated, str):
        stated = json.loads(stated)
    return LastInput(records[0].run_id, dict(stated.get("input_hashes", {})))


def failed_checks(instance: dg.DagsterInstance, run: FinishedRun) -> list[FailedCheck]:
    """Give the checks of a run that failed with severity ERROR."""
    failed = []
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        evaluation = entry.get_dagster_event().asset_check_evaluation_data
        if evaluation.passed or evaluation.severity is not dg.AssetCheckSeverity.ERROR:
            continue
        failed.append(
            FailedCheck(
                run_id=run.run_id,
                asset=evaluation.asset_key.to_user_string(),
                check=evaluation.check_name,
                day=as_day(evaluation.partition) or run.day,
                blocking=bool(evaluation.blocking),
                description=evaluation.description or "the check gives no description",
            )
        )
    return failed
