"""Which of Dagster's runs live: the process of each holds a lock of Dagster's database from the run's start to its end.

Belongs here: those locks, and ending the runs whose process is gone, for Dagster's daemon and for commands without one.
Does not belong here: storing events (`dagster_storage`, which has the locks taken), anything about payments.

As shipped only the code server that spawned a run's process tells that it was killed. Where it died too, and for a run
of a command, nobody does: the run stays "started" until `max_runtime_seconds`, for ever without a daemon, keeps its
place in the queue, and holds up the sensors that wait for its day. Postgres gives the locks back with the connection,
however its process ends.

It leans on the inside of the release that `dagster_storage.PINNED` names: what a launcher answers about health.
"""

import select
import threading
import time
from collections.abc import Collection, Iterable

import dagster as dg
import sqlalchemy
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

#: Advisory lock, first of two keys; the second is made of the run's id.
_LOCK = 7_203_003
#: A run that was written down and not begun for longer never will be; a queued one has a status of its own.
_BEGUN_WITHIN_S = 60
GONE = (
    "Its process is gone: it was killed, or its machine went down. What it had committed stands, and nothing is posted "
    "or sent twice by running the day again."
)
# Shared: whoever else is in the same run, or has its key by chance, never waits.
_HOLD = sqlalchemy.text(
    "SELECT pg_advisory_lock_shared(:lock, hashtext(run_id)) FROM unnest(CAST(:runs AS text[])) AS run_id"
).bindparams(lock=_LOCK)
_RELEASE = sqlalchemy.text(
    "SELECT pg_advisory_unlock_shared(:lock, hashtext(run_id)) FROM unnest(CAST(:runs AS text[])) AS run_id"
).bindparams(lock=_LOCK)
_LIVING = sqlalchemy.text(
    """SELECT run_id FROM unnest(CAST(:runs AS text[])) AS run_id WHERE EXISTS (
           SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
           WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
             AND l.classid = :lock AND l.objid::bigint = hashtext(run_id)::bigint & 4294967295)"""
).bindparams(lock=_LOCK)


class RunLocks:
    """The locks of the runs of this process, on a connection of their own."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
        self._connection: sqlalchemy.Connection | None = None
        self._held: set[str] = set()
        self._ended: set[str] = set()
        self._taking = threading.Lock()

    def hold(self, run_id: str) -> None:
        """Hold a run's lock from now on, and give those of ended runs back; costs nothing where it is held.

        A server that was restarted has forgotten the locks: they are taken anew.
        """
        with self._taking:
            if self._connection is not None and _says_something(self._connection):
                self._connection.invalidate()
                self._connection.close()
                self._connection, self._held, self._ended = None, self._held - self._ended, set()
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.execute(_HOLD, {"runs": sorted(self._held | {run_id})})
            elif run_id not in self._held:
                self._connection.execute(_HOLD, {"runs": [run_id]})
                self._connection.execute(_RELEASE, {"runs": sorted(self._ended)})
                self._held -= self._ended
                self._ended = set()
            self._held.add(run_id)

    def end(self, run_id: str) -> None:
        """Have the lock of an ended run given back with the next one's taking: its status is not written yet."""
        with self._taking:
            if run_id in self._held:
                self._ended.add(run_id)

    def close(self) -> None:
        """Give all back."""
        with self._taking:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._held, self._ended = None, set(), set()


def _says_something(connection: sqlalchemy.Connection) -> bool:
    """Say whether the server has written to an idle connection, as it does when it ends it; no round trip."""
    waiting = select.poll()
    driver = connection.connection.dbapi_connection
    assert driver is not None
    waiting.register(driver.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def living_runs(connection: sqlalchemy.Connection, run_ids: Iterable[str]) -> set[str]:
    """Give those of the runs whose process lives."""
    return set(connection.execute(_LIVING, {"runs": list(run_ids)}).scalars())


def _living(instance: dg.DagsterInstance, run_ids: Collection[str]) -> set[str]:
    from payments_pipeline.dagster_storage import PooledEventLogStorage  # it has the locks taken

    storage = instance.event_log_storage
    if not isinstance(storage, PooledEventLogStorage):
        return set(run_ids)  # a storage that takes no locks says nothing about its runs
    with storage.index_connection() as connection:
        return living_runs(connection, run_ids)


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Launches runs as the release does, and tells run monitoring when a run's process is gone.

    Named in dagster.yaml.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Say that it can tell."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Look at the lock of a run that was begun."""
        if run.run_id in _living(self._instance, [run.run_id]):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, GONE)


def end_dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Mark the runs whose process is gone as failed, as the daemon's run monitoring would; gives them.

    Call it while this process has no run under way that has not begun.
    """
    records = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
    )
    if not records:
        return []
    living = _living(instance, [record.dagster_run.run_id for record in records])
    dead = []
    for record in records:
        run = record.dagster_run
        begun = run.status is dg.DagsterRunStatus.STARTED
        age_s = time.time() - record.create_timestamp.timestamp()
        if run.run_id in living or (not begun and age_s < _BEGUN_WITHIN_S):
            continue
        now = instance.get_run_by_id(run.run_id)
        if now is not None and now.status is run.status:  # else it ended since it was read
            instance.report_run_failed(run, GONE)
            dead.append(run)
    return dead
