"""Dagster's own storage on PostgreSQL, with pooled connections.

Belongs here: everything that leans on the inside of the pinned Dagster release, so that an upgrade is checked in one
place; a test holds it to `PINNED`. Does not belong here: anything about payments.

As shipped, the storages open a connection for every event: some 670 statements a run cost 4.8 s. Here a process keeps
its connections, and asks once, not per event, which tables and columns there are.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import sqlalchemy
from dagster import AssetKey
from dagster._config import Field, StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._core.event_api import AssetRecordsFilter, EventLogCursor, EventLogRecord, EventRecordsResult
from dagster._core.events import ASSET_EVENTS, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException

from payments_pipeline.dagster_liveness import RunLocks
from payments_pipeline.domain.errors import PaymentsError, StackError
from payments_pipeline.local.stack import locate
from payments_pipeline.settings import load_settings

__all__ = ["LOST", "PINNED", "NoOpComputeLogManager", "PooledPostgresStorage"]

#: What Dagster raises, wherever it is just then, once its database no longer answers.
LOST = (DagsterPostgresException, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
#: The releases whose inside this module was written against.
PINNED = {"dagster": "1.13.27", "dagster-postgres": "0.29.27"}
#: A connection unused for longer is tried before use: the server may have been restarted meanwhile.
_TRUST_IDLE_S = 1.0
#: What another process writes meanwhile is seen after this long; what this one writes, at once.
_TRUST_ANSWER_S = 1.0
#: Events that are written with the next of another type, so that a step's own cost one statement.
_DEFERRED = frozenset(
    {
        DagsterEventType.STEP_INPUT,
        DagsterEventType.STEP_OUTPUT,
        DagsterEventType.LOADED_INPUT,
        DagsterEventType.HANDLED_OUTPUT,
        DagsterEventType.RESOURCE_INIT_STARTED,
        DagsterEventType.RESOURCE_INIT_SUCCESS,
        DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
        DagsterEventType.ASSET_CHECK_EVALUATION,
    }
)
_BEGINS = (DagsterEventType.RUN_START, DagsterEventType.STEP_START)
_ENDS = (DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED)
_PLANNED = DagsterEventType.ASSET_MATERIALIZATION_PLANNED
_CHECK_PLANNED = DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
_CHECK_DONE = DagsterEventType.ASSET_CHECK_EVALUATION
#: One statement object each, so that SQLAlchemy compiles it once.
_INSERT_EVENT = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
_INSERT_CHECKS = AssetCheckExecutionsTable.insert()
_PLAN_ASSETS = sqlalchemy.text(
    """INSERT INTO asset_keys (asset_key, last_run_id, last_materialization_timestamp)
       SELECT * FROM unnest(CAST(:asset_key AS text[]), CAST(:run_id AS text[]), CAST(:at AS timestamp[]))
       ON CONFLICT (asset_key) DO UPDATE SET last_run_id = excluded.last_run_id,
           last_materialization_timestamp = excluded.last_materialization_timestamp"""
)
_UPDATE_CHECKS = sqlalchemy.text(
    """UPDATE asset_check_executions AS planned
       SET execution_status = done.status, evaluation_event = done.event, evaluation_event_timestamp = done.at,
           evaluation_event_storage_id = done.event_id, materialization_event_storage_id = done.target_id
       FROM unnest(CAST(:asset_key AS text[]), CAST(:check_name AS text[]), CAST(:run_id AS text[]),
                   CAST(:partition AS text[]), CAST(:status AS text[]), CAST(:event AS text[]),
                   CAST(:at AS timestamp[]), CAST(:event_id AS bigint[]), CAST(:target_id AS bigint[]))
            AS done (asset_key, check_name, run_id, partition, status, event, at, event_id, target_id)
       WHERE planned.asset_key = done.asset_key AND planned.check_name = done.check_name
         AND planned.run_id = done.run_id AND planned.partition IS NOT DISTINCT FROM done.partition
       RETURNING planned.asset_key, planned.check_name, planned.run_id"""
)
#: Materialisations that a process remembers by what it wrote: a few runs' worth.
_WRITTEN_KEPT = 64
#: Several processes that meet an empty database take turns at creating its tables.
_CREATE_LOCK = 7_203_002


def pooled_engine(
    url: str, *, statement_timeout_ms: int = 0, pool_recycle_s: int = 3600, max_overflow: int = 20
) -> sqlalchemy.Engine:
    """Make an engine that keeps a connection and survives a restart of the server between two uses.

    A commit does not wait for the disk: a run's log is some seventy commits, none of them about money. A process that
    is killed loses nothing by it; a server that loses power, the log's last moments, and the day is run again.
    """
    options = "-c synchronous_commit=off"
    if statement_timeout_ms:
        options += f" -c statement_timeout={statement_timeout_ms}"
    address = sqlalchemy.make_url(url)
    given = address.query.get("options")
    joined = " ".join(part for part in (given if isinstance(given, str) else "", options) if part)
    engine = sqlalchemy.create_engine(
        address,
        isolation_level="AUTOCOMMIT",
        pool_size=1,
        max_overflow=max_overflow,
        pool_recycle=pool_recycle_s,
        connect_args={"options": joined},
    )

    @sqlalchemy.event.listens_for(engine, "checkin")
    def remember(_connection: Any, record: Any) -> None:  # the driver's own objects
        record.info["idle_since"] = time.monotonic()

    @sqlalchemy.event.listens_for(engine, "checkout")
    def try_when_idle(connection: Any, record: Any, _proxy: Any) -> None:  # the driver's own objects
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) < _TRUST_IDLE_S:
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except Exception as error:
            raise sqlalchemy.exc.DisconnectionError("the server closed the connection") from error

    return engine


def _remember_yes(storage: object, *questions: str) -> None:
    """Let `storage` ask the database each of these yes-or-no methods until the answer is yes, and no more after that.

    A yes is for ever; a no may become one by `dagster instance migrate`.
    """
    for name in questions:
        ask: Callable[..., bool] = getattr(storage, name)
        yes: set[tuple[object, ...]] = set()

        def answer(*question: object, ask: Callable[..., bool] = ask, yes: set[tuple[object, ...]] = yes) -> bool:
            if question not in yes and ask(*question):
                yes.add(question)
            return question in yes

        setattr(storage, name, answer)


class _Pooled:
    """Gives a storage an engine that pools, at start and when the webserver asks for its own limits."""

    postgres_url: str
    _engine: sqlalchemy.Engine

    def pool(self) -> None:
        """Swap the engine that opens a connection a statement for one that keeps them."""
        self._engine.dispose()
        self._engine = pooled_engine(self.postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Take the limits that the webserver was started with."""
        self._engine.dispose()
        self._engine = pooled_engine(
            self.postgres_url,
            statement_timeout_ms=statement_timeout,
            pool_recycle_s=pool_recycle,
            max_overflow=max_overflow,
        )

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()  # type: ignore[misc]  # of the storage beside which this class stands
        self._engine.dispose()


class PooledRunStorage(_Pooled, PostgresRunStorage):
    """Run storage that keeps its connections."""


class PooledEventLogStorage(_Pooled, PostgresEventLogStorage):
    """Event log that keeps its connections, and writes what a step reports in one go.

    An event that nothing waits for is written with the next that is not of `_DEFERRED`: at the latest when its step
    ends. A process that is killed in between loses what its step said since, and no end of a step or of a run.
    """

    def __init__(self, postgres_url: str, *, should_autocreate_tables: bool) -> None:
        self._pending: dict[str, list[EventLogEntry]] = {}
        self._locks = RunLocks(postgres_url)
        self._taking = threading.Lock()
        #: The last answer of `fetch_materializations`, with its question and when it was given.
        self._answered: tuple[float, object, EventRecordsResult] | None = None
        #: What this process materialised last of each partition, and when.
        self._materialised: dict[tuple[AssetKey, str], tuple[float, EventLogRecord]] = {}
        #: The newest materialisations that this process wrote, by what it wrote.
        self._written: dict[str, EventLogRecord] = {}
        super().__init__(postgres_url, should_autocreate_tables=should_autocreate_tables)

    def fetch_materializations(
        self,
        records_filter: AssetKey | AssetRecordsFilter,
        limit: int,
        cursor: str | None = None,
        ascending: bool = False,  # noqa: FBT001, FBT002 - the signature that is overridden
    ) -> EventRecordsResult:
        """Answer the same question in a row once: every check of a step asks, twice, what it is a check of."""
        if isinstance(records_filter, AssetRecordsFilter) and limit == 1 and cursor is None and not ascending:
            partitions = records_filter.asset_partitions or ()
            if records_filter == AssetRecordsFilter(records_filter.asset_key, asset_partitions=partitions):
                own = self._just_materialised(records_filter.asset_key, partitions)
                if own is not None and len(own) == 1:
                    newest = EventLogCursor.from_storage_id(own[0].storage_id).to_string()
                    return EventRecordsResult(own, cursor=newest, has_more=True)
        question = (records_filter, limit, cursor, ascending)
        known = self._answered
        if known is not None and known[1] == question and time.monotonic() - known[0] < _TRUST_ANSWER_S:
            return known[2]
        answer = super().fetch_materializations(records_filter, limit, cursor, ascending)
        self._answered = (time.monotonic(), question, answer)
        return answer

    def get_latest_tags_by_partition(
        self,
        asset_key: AssetKey,
        event_type: DagsterEventType,
        tag_keys: Sequence[str],
        asset_partitions: Sequence[str] | None = None,
        before_cursor: int | None = None,
        after_cursor: int | None = None,
    ) -> Mapping[str, Mapping[str, str]]:
        """Say of what this process has just materialised what it was told: each step asks this of all its inputs."""
        if event_type is DagsterEventType.ASSET_MATERIALIZATION and before_cursor is None and after_cursor is None:
            own = self._just_materialised(asset_key, asset_partitions or ())
            if own:
                tags = {record.partition_key: _tags_of(record) for record in own}
                if all(set(tag_keys) <= set(of_one) for of_one in tags.values()):
                    return {
                        partition: {key: of_one[key] for key in tag_keys}
                        for partition, of_one in tags.items()
                        if partition is not None
                    }
        return super().get_latest_tags_by_partition(
            asset_key, event_type, tag_keys, asset_partitions, before_cursor, after_cursor
        )

    def _just_materialised(self, asset_key: AssetKey, partitions: Sequence[str]) -> list[EventLogRecord] | None:
        """Give the newest materialisation of each partition, where all are this process's own and fresh."""
        oldest = time.monotonic() - _TRUST_ANSWER_S
        known = [self._materialised.get((asset_key, partition)) for partition in partitions]
        fresh = [each[1] for each in known if each is not None and each[0] > oldest]
        return fresh if len(fresh) == len(known) else None

    def _remember_materialised(self, stored: Sequence[tuple[EventLogEntry, int]]) -> None:
        oldest = time.monotonic() - _TRUST_ANSWER_S
        kept = {key: each for key, each in self._materialised.items() if each[0] > oldest}
        for event, event_id in stored:
            asset_event = event.get_dagster_event()
            if event.dagster_event_type is DagsterEventType.ASSET_MATERIALIZATION and asset_event.partition is not None:
                assert asset_event.asset_key is not None
                kept[asset_event.asset_key, asset_event.partition] = (
                    time.monotonic(),
                    EventLogRecord(storage_id=event_id, event_log_entry=event),
                )
        self._materialised = kept

    def wipe_asset(self, asset_key: AssetKey) -> None:
        """Forget an asset's history, here too."""
        self._materialised = {}
        self._answered = None
        super().wipe_asset(asset_key)

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, with those of its run that were kept back for it.

        As the release does, but for its NOTIFY: nothing of the release listens any more, it is kept there for older
        webservers, and is a fourth of all statements of a run. The run's lock says that its process lives.
        """
        if event.dagster_event_type in _BEGINS:
            self._locks.hold(event.run_id)
        with self._taking:
            pending = self._pending.setdefault(event.run_id, [])
            pending.append(event)
            if event.run_id and event.dagster_event_type in _DEFERRED:
                return
            del self._pending[event.run_id]
        self._store(pending)
        if event.dagster_event_type in _ENDS:
            self._locks.end(event.run_id)

    def dispose(self) -> None:
        """Write what is kept back, and close the connections."""
        with self._taking:
            kept = [event for pending in self._pending.values() for event in pending]
            self._pending = {}
        if kept:
            self._store(kept)
        self._locks.close()
        super().dispose()

    def _store(self, events: Sequence[EventLogEntry]) -> None:
        with self._connect() as connection:
            rows = [self._event_to_row(event) for event in events]
            # The ids come in the order of the rows; one alone needs no statement of many.
            result = connection.execute(_INSERT_EVENT, rows[0] if len(rows) == 1 else rows)
            ids = list(result.scalars())
        stored = [(event, event_id) for event, event_id in zip(events, ids, strict=True) if event.dagster_event]
        # What was written once is not serialized a second time for the table of checks.
        texts = {event_id: row["event"] for row, event_id in zip(rows, ids, strict=True)}
        of_assets = [
            (event, event_id)
            for event, event_id in stored
            if event.dagster_event_type in ASSET_EVENTS and event.get_dagster_event().asset_key
        ]
        if of_assets:
            self._answered = None
            with self.index_transaction() as connection:
                self._store_asset_event_tags(connection, *map(list, zip(*of_assets, strict=True)))
                planned = [event for event, _ in of_assets if event.dagster_event_type is _PLANNED]
                self._plan_assets(connection, planned)
                for event, event_id in of_assets:
                    if event.dagster_event_type is not _PLANNED:
                        self._store_asset_event(connection, event, event_id)
            self._remember_materialised(of_assets)
        self._plan_checks([row for row in stored if row[0].dagster_event_type is _CHECK_PLANNED], texts)
        self._record_checks([row for row in stored if row[0].dagster_event_type is _CHECK_DONE], texts)

    def _plan_assets(self, connection: sqlalchemy.Connection, planned: Sequence[EventLogEntry]) -> None:
        """Say of all assets of a run at once that it will make them; the release does so one by one."""
        of_asset = {str(event.get_dagster_event().asset_key.to_string()): event for event in planned}  # type: ignore[union-attr]  # of_assets have one
        if of_asset:
            connection.execute(
                _PLAN_ASSETS,
                {
                    "asset_key": list(of_asset),
                    "run_id": [event.run_id for event in of_asset.values()],
                    "at": [_instant(event) for event in of_asset.values()],
                },
            )

    def _get_asset_entry_values(
        self,
        event: EventLogEntry,
        event_id: int,
        has_asset_key_index_cols: bool,  # noqa: FBT001 - the signature that is overridden
    ) -> dict[str, Any]:
        values = super()._get_asset_entry_values(event, event_id, has_asset_key_index_cols)
        text = values.get("last_materialization")
        if text is not None:
            with self._taking:
                while len(self._written) >= _WRITTEN_KEPT:
                    self._written.pop(next(iter(self._written)))
                self._written[text] = EventLogRecord(storage_id=event_id, event_log_entry=event)
        return values

    def _get_latest_materialization_records(
        self, raw_asset_rows: Sequence[Mapping[str, Any]]
    ) -> Mapping[AssetKey, EventLogRecord | None]:
        """Read no record that this process wrote, word for word: each step asks for all of its inputs'."""
        own: dict[AssetKey, EventLogRecord | None] = {}
        for row in raw_asset_rows:
            asset_key = AssetKey.from_db_string(row["asset_key"])
            record = self._written.get(row["last_materialization"])
            if asset_key is None or record is None or row["asset_details"]:
                return super()._get_latest_materialization_records(raw_asset_rows)
            own[asset_key] = record
        return own

    def _plan_checks(self, planned: Sequence[tuple[EventLogEntry, int]], texts: Mapping[int, str]) -> None:
        rows = []
        for event, event_id in planned:
            check: Any = event.get_dagster_event().event_specific_data
            partitions = check.partitions_subset.get_partition_keys() if check.partitions_subset else [None]
            rows += [
                {
                    "asset_key": check.asset_key.to_string(),
                    "check_name": check.check_name,
                    "partition": partition,
                    "run_id": event.run_id,
                    "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
                    "evaluation_event": texts[event_id],
                    "evaluation_event_timestamp": _instant(event),
                    "evaluation_event_storage_id": event_id,
                }
                for partition in partitions
            ]
        if rows:
            with self.index_connection() as connection:
                connection.execute(_INSERT_CHECKS, rows)

    def _record_checks(self, done: Sequence[tuple[EventLogEntry, int]], texts: Mapping[int, str]) -> None:
        rows = []
        for event, event_id in done:
            check: Any = event.get_dagster_event().event_specific_data
            target = check.target_materialization_data
            status = (
                AssetCheckExecutionRecordStatus.SUCCEEDED if check.passed else AssetCheckExecutionRecordStatus.FAILED
            )
            rows.append(
                {
                    "asset_key": check.asset_key.to_string(),
                    "check_name": check.check_name,
                    "run_id": event.run_id,
                    "partition": check.partition,
                    "status": status.value,
                    "event": texts[event_id],
                    "at": _instant(event),
                    "event_id": event_id,
                    "target_id": target.storage_id if target else None,
                }
            )
        if not rows:
            return
        with self.index_connection() as connection:
            found = connection.execute(_UPDATE_CHECKS, {name: [row[name] for row in rows] for name in rows[0]})
            updated = Counter(tuple(row) for row in found)
        for (event, event_id), row in zip(done, rows, strict=True):
            if updated[row["asset_key"], row["check_name"], row["run_id"]] != 1:
                # Not planned, or planned twice: the release says what is done then.
                self.store_asset_check_event(event, event_id)


def _tags_of(record: EventLogRecord) -> Mapping[str, str]:
    materialization = record.asset_materialization
    return materialization.tags or {} if materialization is not None else {}


def _instant(event: EventLogEntry) -> datetime:
    """Give an event's instant as the tables hold it: UTC without saying so."""
    return datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None)


class PooledScheduleStorage(_Pooled, PostgresScheduleStorage):
    """Schedule storage that keeps its connections."""


class StorageNotFoundError(StackError, click.ClickException):
    """Dagster's database is not known; Dagster's own commands print it as one line."""


class PooledPostgresStorage(DagsterPostgresStorage):
    """All of Dagster's storage in one PostgreSQL database; named in dagster.yaml."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        self.postgres_url = postgres_url
        self.should_autocreate_tables = True
        self._inst_data = inst_data
        with _turn_to_create(postgres_url) as missing:
            self._run_storage = PooledRunStorage(postgres_url, should_autocreate_tables=missing)
            self._event_log_storage = PooledEventLogStorage(postgres_url, should_autocreate_tables=missing)
            self._schedule_storage = PooledScheduleStorage(postgres_url, should_autocreate_tables=missing)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage.pool()
        _remember_yes(self._event_log_storage, "has_table", "has_asset_key_col")
        _remember_yes(
            self._run_storage,
            "has_run_stats_index_cols",
            "has_bulk_actions_selector_cols",
            "has_backfill_id_column",
            "has_bulk_action_job_name_column",
            "has_backfill_tags_table",
        )
        _remember_yes(self._schedule_storage, "has_instigators_table", "has_secondary_index_table")

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Take an address; without one it is that of the settings, else of the stack that is up."""
        return {"postgres_url": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PooledPostgresStorage":
        """Make the storage that dagster.yaml asks for.

        Raises:
            StorageNotFoundError: no address is given and no stack is up.
        """
        url = config_value.get("postgres_url")
        if not url:
            try:
                url = locate(load_settings()).dagster_postgres_url
            except PaymentsError as error:
                raise StorageNotFoundError(str(error)) from error
        return cls(url, inst_data)


@contextmanager
def _turn_to_create(url: str) -> Iterator[bool]:
    """Say whether tables are missing; then nobody else creates them meanwhile."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    present = sqlalchemy.text("SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(:names) AS name")
    present = present.bindparams(names=["runs", "instance_info", "event_logs", "jobs"])
    with engine.connect() as connection:
        if connection.execute(present).scalar_one():
            yield False
            return
        connection.execute(
            sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_CREATE_LOCK))
        )  # given back with the connection
        yield not connection.execute(present).scalar_one()
