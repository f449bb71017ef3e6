"""Dagster's own storage on PostgreSQL, with pooled connections.

Belongs here: everything that leans on the inside of the pinned Dagster release, so that an upgrade is checked in one
place; a test holds it to `PINNED`. Does not belong here: anything about payments.

As shipped, the storages open a connection for every event: some 670 statements a run cost 4.8 s. Here a process keeps
its connections, and asks once, not per event, which tables and columns there are.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import sqlalchemy
from dagster import AssetKey
from dagster._config import Field, StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._core.event_api import AssetRecordsFilter, EventRecordsResult
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage

from payments_pipeline.domain.errors import PaymentsError, StackError
from payments_pipeline.local.stack import locate
from payments_pipeline.settings import load_settings

__all__ = ["PINNED", "NoOpComputeLogManager", "PooledPostgresStorage"]

#: The releases whose inside this module was written against.
PINNED = {"dagster": "1.13.27", "dagster-postgres": "0.29.27"}
#: A connection unused for longer is tried before use: the server may have been restarted meanwhile.
_TRUST_IDLE_S = 1.0
#: What another process writes meanwhile is seen after this long; what this one writes, at once.
_TRUST_ANSWER_S = 1.0
#: One statement object, so that SQLAlchemy compiles it once.
_INSERT_EVENT = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id)
#: Several processes that meet an empty database take turns at creating its tables.
_CREATE_LOCK = 7_203_002


def pooled_engine(
    url: str, *, statement_timeout_ms: int = 0, pool_recycle_s: int = 3600, max_overflow: int = 20
) -> sqlalchemy.Engine:
    """Make an engine that keeps a connection and survives a restart of the server between two uses."""
    options = f"-c statement_timeout={statement_timeout_ms}" if statement_timeout_ms else ""
    address = sqlalchemy.make_url(url)
    given = address.query.get("options")
    joined = " ".join(part for part in (given if isinstance(given, str) else "", options) if part)
    engine = sqlalchemy.create_engine(
        address,
        isolation_level="AUTOCOMMIT",
        pool_size=1,
        max_overflow=max_overflow,
        pool_recycle=pool_recycle_s,
        connect_args={"options": joined} if joined else {},
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
    """Event log that keeps its connections, and writes an event in one statement."""

    #: The last answer of `fetch_materializations`, with its question and when it was given.
    _answered: tuple[float, object, EventRecordsResult] | None = None

    def fetch_materializations(
        self,
        records_filter: AssetKey | AssetRecordsFilter,
        limit: int,
        cursor: str | None = None,
        ascending: bool = False,  # noqa: FBT001, FBT002 - the signature that is overridden
    ) -> EventRecordsResult:
        """Answer the same question in a row once: every check of a step asks, twice, what it is a check of."""
        question = (records_filter, limit, cursor, ascending)
        known = self._answered
        if known is not None and known[1] == question and time.monotonic() - known[0] < _TRUST_ANSWER_S:
            return known[2]
        answer = super().fetch_materializations(records_filter, limit, cursor, ascending)
        self._answered = (time.monotonic(), question, answer)
        return answer

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event as the release does, by a statement compiled once and without its NOTIFY.

        Nothing of the release listens any more: it is kept there for older webservers, and is a fourth of all
        statements of a run.
        """
        with self._connect() as connection:
            event_id = connection.execute(_INSERT_EVENT, self._event_to_row(event)).scalar_one()
        if not event.is_dagster_event or event.dagster_event is None:
            return
        if event.dagster_event_type in ASSET_EVENTS and event.dagster_event.asset_key:
            self._answered = None
            with self.index_transaction() as connection:
                self._store_asset_event_tags(connection, [event], [event_id])
                self._store_asset_event(connection, event, event_id)
        if event.dagster_event_type in ASSET_CHECK_EVENTS:
            self.store_asset_check_event(event, event_id)


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
