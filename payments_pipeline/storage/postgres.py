"""The business database: connections, locks, and moving frames in and out by COPY.

Belongs here: what every store needs. Does not belong here: any table's name, any rule.
"""

from __future__ import annotations

import atexit
import io
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import IntEnum
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from payments_pipeline.domain.errors import DatabaseUnavailableError

#: What a store's transaction may wait between two of its own statements; a stalled program gives its locks back.
IDLE_IN_TRANSACTION_TIMEOUT = "10min"


@dataclass(frozen=True)
class RunInfo:
    """Who writes: kept with every row.

    Attributes:
        run_id: Dagster's run.
        code_version: version of this program.
        maker: who started the run; `scheduler` for the schedule.
    """

    run_id: str
    code_version: str
    maker: str

    @property
    def stamp(self) -> dict[str, str]:
        """Give the columns that say which run of which code wrote a row."""
        return {"run_id": self.run_id, "code_version": self.code_version}


class Lock(IntEnum):
    """Advisory locks, first of their two keys."""

    #: One posting of a day at a time; second key: the day.
    DAY = 7_203_100
    #: The one lock of whoever writes instructions, events, claims or releases; held for a transaction.
    INSTRUCTIONS = 7_203_101
    #: One dispatch at a time; held across its transactions.
    DISPATCH = 7_203_102
    #: Whoever accepts refunds holds it for a transaction; postings share it with each other, for theirs.
    REFUNDS = 7_203_103
    #: Taken by Postgres itself, at each commit that wrote: the last lock of any transaction (`link_audit_entry`).
    AUDIT = 7_203_109


class Lender(Protocol):
    """Who lends connections in autocommit, and takes them back."""

    def getconn(self) -> psycopg.Connection:
        """Lend one that holds no lock."""
        ...

    def putconn(self, conn: psycopg.Connection) -> None:
        """Take one back, in whatever state."""
        ...

    def close(self) -> None:
        """Close those that are not lent."""
        ...


#: Connections that this process keeps, by address; one that is unused for long is closed.
_POOLS: dict[str, Lender] = {}
_MAKING_A_POOL = threading.Lock()
#: When each connection was last given back, and which have taken a lock that outlives a transaction.
_PUT_BACK: WeakKeyDictionary[psycopg.Connection, float] = WeakKeyDictionary()
_LOCKED: WeakSet[psycopg.Connection] = WeakSet()
#: A connection unused for longer is tried before use: the server may have been restarted meanwhile.
_TRUST_IDLE_S = 1.0
_MOST_CONNECTIONS = 8
_IDLE_S = 60.0
_WAIT_S = 15.0


def unavailable(why: str) -> str:
    """Say to an operator that the business database does not answer, by whichever login."""
    return (
        f"the business database does not answer: {why.strip().rstrip('.')}. What had been committed stands, and "
        "nothing is posted or sent twice. See to Postgres, or correct PAYMENTS_POSTGRES_URL and PAYMENTS_MIGRATOR_URL, "
        "then give the command again."
    )


@contextmanager
def connect(url: str) -> Iterator[psycopg.Connection]:
    """Lend a connection in autocommit; transactions are opened by name where they belong.

    Connections are kept for the next caller: opening one costs as much as most of what is asked of it.

    Raises:
        DatabaseUnavailableError: the server does not answer or refuses the login.
    """
    pool = _pool(url)
    try:
        connection = pool.getconn()
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise DatabaseUnavailableError(unavailable(_why(url, error))) from error
    try:
        yield connection
    finally:
        pool.putconn(connection)


def lend_from(url: str, lender: Lender) -> None:
    """Have `connect` borrow from `lender` at this address, instead of from a pool of its own."""
    with _MAKING_A_POOL:
        _POOLS[url] = lender


def close_connections() -> None:
    """Close every connection that this process keeps."""
    while _POOLS:
        _POOLS.popitem()[1].close()


def _pool(url: str) -> Lender:
    with _MAKING_A_POOL:
        if url not in _POOLS:
            _POOLS[url] = _new_pool(url)
        return _POOLS[url]


def _new_pool(url: str) -> ConnectionPool[psycopg.Connection]:
    pool = ConnectionPool(
        url,
        min_size=0,
        max_size=_MOST_CONNECTIONS,
        max_idle=_IDLE_S,
        timeout=_WAIT_S,
        reconnect_timeout=_WAIT_S,
        check=_check_idle,
        reset=_put_back,
        name="payments_pipeline",
        open=True,
        kwargs={
            "autocommit": True,
            "connect_timeout": 15,
            "application_name": "payments_pipeline",
            # Sorting and hashing a large day on disk takes longer than its rules.
            "options": "-c search_path=payments -c timezone=UTC -c work_mem=64MB "
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT}",
        },
    )
    atexit.register(pool.close)
    return pool


def _check_idle(connection: psycopg.Connection) -> None:
    """Ask the server whether it still knows a connection that was not used for a while, or on which it said something.

    A server that ends a connection says so on it; to look whether there is anything to read costs no round trip.
    """
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    unused_s = time.monotonic() - _PUT_BACK.get(connection, -_TRUST_IDLE_S)
    if unused_s >= _TRUST_IDLE_S or waiting.poll(0):
        ConnectionPool.check_connection(connection)


def _put_back(connection: psycopg.Connection) -> None:
    """A lock that outlived its block would hold up every other run: the next user starts without any."""
    if connection in _LOCKED:
        connection.execute("SELECT pg_advisory_unlock_all()")
        _LOCKED.discard(connection)
    _PUT_BACK[connection] = time.monotonic()


def _why(url: str, error: Exception) -> str:
    """Ask once without the pool: its own time-out does not say what the server said."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError as cause:
        return str(cause).strip()
    return str(error)


@contextmanager
def session_lock(connection: psycopg.Connection, lock: Lock, key: int = 0) -> Iterator[None]:
    """Hold an advisory lock for a block, across its transactions; waits for whoever holds it."""
    _LOCKED.add(connection)  # before: an interrupt may fall between the lock and the block
    connection.execute("SELECT pg_advisory_lock(%s, %s)", (int(lock), key))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", (int(lock), key))


def transaction_lock(cursor: psycopg.Cursor[Any], lock: Lock, key: int = 0) -> None:
    """Take an advisory lock until the end of the transaction; waits for whoever holds it."""
    cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (int(lock), key))


def day_key(day: date) -> int:
    """Give a day's second lock key."""
    return day.toordinal()


def copy_frame(
    cursor: psycopg.Cursor[Any], table: str, frame: pd.DataFrame, same: Mapping[str, object] | None = None
) -> int:
    """Insert a frame by COPY, in one statement.

    Args:
        cursor: inside the caller's transaction.
        table: table of schema payments, or a temporary one.
        frame: values as Postgres reads them; None is null, an empty string is one.
        same: further columns, with the one value that all rows have.

    Returns:
        Rows inserted.
    """
    if frame.empty:
        return 0
    same = same or {}
    names = [*frame.columns, *same]
    with cursor.copy(_copying(table, tuple(names))) as copy:
        # In parts: as text a large frame takes more memory than it does itself.
        for start in range(0, len(frame), _ROWS_AT_ONCE):
            part = frame.iloc[start : start + _ROWS_AT_ONCE] if len(frame) > _ROWS_AT_ONCE else frame
            columns = [_sent(part[name]) for name in frame.columns]
            columns += [pa.repeat(pa.scalar(value), len(part)) for value in same.values()]
            buffer = io.BytesIO()
            pa_csv.write_csv(
                pa.table(columns, names=names),
                buffer,
                pa_csv.WriteOptions(include_header=False, quoting_style="all_valid"),
            )
            copy.write(buffer.getbuffer())
    return len(frame)


#: Of a frame that is sent.
_ROWS_AT_ONCE = 1 << 17


@cache
def _copying(table: str, names: tuple[str, ...]) -> bytes:
    """Give the statement that takes rows in; composing it takes longer than sending a small frame."""
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(sql.Identifier(table), columns).as_bytes()


def _sent(column: pd.Series) -> pa.Array:
    """Give a column as it is sent; column by column, a small frame takes a fifth of what `Table.from_pandas` takes."""
    values = pa.array(column.to_numpy() if isinstance(column.dtype, np.dtype) else column, from_pandas=True)
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


_TYPES = {pa.int64(): pd.Int64Dtype()}
#: Rows from which it pays that pandas keeps each distinct text once; below, a series takes longer than its values.
_FEW = 1_000


def read_frame(
    cursor: psycopg.Cursor[Any], query: str, parameters: Mapping[str, Any], schema: Mapping[str, pa.DataType]
) -> pd.DataFrame:
    """Read a query's rows by COPY.

    Args:
        cursor: any.
        query: a SELECT with `{name}` where a parameter goes.
        parameters: values, quoted by psycopg.
        schema: each column's name and Arrow type, in order; int64 becomes pandas' Int64 where it holds null.

    Returns:
        A frame of those columns; strings as objects, dates as `datetime.date`.
    """
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(
        sql.SQL(query).format(**{name: sql.Literal(value) for name, value in parameters.items()})
    )
    with cursor.copy(statement) as copy:
        data = b"".join(bytes(block) for block in copy)
    if not data:
        table = pa.table({name: pa.array([], kind) for name, kind in schema.items()})
    else:
        table = pa_csv.read_csv(
            io.BytesIO(data),
            pa_csv.ReadOptions(column_names=list(schema), use_threads=False),
            pa_csv.ParseOptions(newlines_in_values=True),
            pa_csv.ConvertOptions(
                column_types={
                    name: pa.string() if pa.types.is_boolean(kind) else kind for name, kind in schema.items()
                },
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    return pd.DataFrame(
        {name: _column(table[name], kind) for name, kind in schema.items()}, pd.RangeIndex(len(table)), copy=False
    )


def _column(column: pa.ChunkedArray, kind: pa.DataType) -> Any:  # what pandas makes a column of
    if pa.types.is_integer(kind):
        return column.to_pandas(types_mapper=_TYPES.get) if column.null_count else column.to_numpy().astype("int64")
    if not len(column):
        return np.empty(0, dtype=bool if pa.types.is_boolean(kind) else object)
    if len(column) < _FEW:
        values = np.array(column.to_pylist(), dtype=object)
    else:
        values = column.to_pandas(date_as_object=True).to_numpy(object)
    return values == "t" if pa.types.is_boolean(kind) else values
