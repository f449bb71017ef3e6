"""Frames in Postgres tables: a partition replaced, or rows inserted once; one transaction, or nothing.

Belongs here: writing a frame of a declared schema into its table, reading one back. Does not belong here: holding the
table to its declaration (`storage.table_declarations`), the business of any table, connections, Dagster.

Rows travel by COPY into a temporary table of the table's own types, so Postgres alone decides what a value is (a
string is a `uuid` where the column is one) and what is equal. Each call is one transaction of its own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, NoReturn

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from psycopg import errors, sql

from payments_pipeline.domain.errors import ConfigurationError, ConflictError, InvariantError
from payments_pipeline.domain.schemas import Column, TableSchema
from payments_pipeline.storage.frames import conform, to_frame
from payments_pipeline.storage.objects import StorageUnavailableError
from payments_pipeline.storage.table_declarations import Table, check_table, create_table, quoted, table_exists

_INCOMING = "incoming_rows"
_BATCH_ROWS = 65_536
#: The longest row that can be read; pyarrow parses block by block.
_BLOCK_BYTES = 1 << 26


class WriteMode(StrEnum):
    """What writing a partition does to the rows that are there."""

    #: The partition's rows are deleted and the frame's inserted.
    REPLACE_PARTITION = "replace_partition"
    #: Rows are only ever added: an equal one again is no-op, an unequal one of the same key an error.
    INSERT_ONCE = "insert_once"


@dataclass(frozen=True)
class Written:
    """What a write did.

    Attributes:
        inserted: rows that are new.
        unchanged: rows of the frame that were there, equal, or that it holds twice.
        deleted: rows of the partition that were there before.
        sent_bytes: what was sent to the server.
    """

    inserted: int
    unchanged: int
    deleted: int
    sent_bytes: int


def write_rows(
    connection: psycopg.Connection,
    table: Table,
    frame: pd.DataFrame | pa.Table,
    mode: WriteMode,
    partition: str | None = None,
    *,
    create: bool = False,
) -> Written:
    """Write a frame, whole or not at all.

    Args:
        connection: in autocommit; the call opens its own transaction.
        table: where to.
        frame: rows of the declared schema; of the partition alone, where one is given.
        mode: what becomes of the rows that are there.
        partition: value of the partition column as text; None where the table has no partitions.
        create: make the table where there is none.

    Raises:
        InvariantError: the frame is not what is declared, or holds rows of another partition.
        ConfigurationError: the table is not what is declared, or the login may not write to it.
        ConflictError: a row has a key that is stored, or in the frame, with other content; names it and both contents.
        StorageUnavailableError: the server went away, is full or gave up waiting; writing again is safe.
    """
    rows = conform(frame, table.schema)
    _check_partition(rows, table, partition)
    with _transaction(connection, table, "written") as cursor:
        # A key that is inserted once is looked for in all partitions.
        _lock(cursor, table.name, (partition or "") if mode is WriteMode.REPLACE_PARTITION else "")
        if create and not table_exists(cursor, table):
            _lock(cursor, table.schema_name)  # two writers may both find no table, or no schema
            create_table(cursor, table)
        check_table(cursor, table, unique_key=mode is WriteMode.INSERT_ONCE)
        sent = _send(cursor, table, rows)
        if mode is WriteMode.INSERT_ONCE:
            inserted, deleted = _insert_once(cursor, table), 0
        else:
            inserted, deleted = _replace(cursor, table, partition)
    unchanged = rows.num_rows - inserted
    assert mode is WriteMode.INSERT_ONCE or unchanged == 0, "every row of a replaced partition is inserted"
    return Written(inserted=inserted, unchanged=unchanged, deleted=deleted, sent_bytes=sent)


def read_rows(connection: psycopg.Connection, table: Table, partitions: Sequence[str] | None = None) -> pa.Table:
    """Read rows as the declared Arrow table, in the declared order.

    Args:
        connection: in autocommit.
        table: where from.
        partitions: values of the partition column as text; None is every row.

    Raises:
        ConfigurationError: the table is not what is declared, or the login may not read it.
        StorageUnavailableError: the server went away; may be tried again.
    """
    schema = table.schema
    with _transaction(connection, table, "read") as cursor:
        cursor.execute("SET LOCAL datestyle = 'ISO'")
        cursor.execute("SET LOCAL timezone = 'UTC'")
        check_table(cursor, table, unique_key=False)
        query = sql.SQL("SELECT {} FROM {}").format(quoted(schema.names), table.identifier)
        if partitions is not None:
            values = [sql.Literal(_partition_value(table, partition)) for partition in partitions]
            chosen = sql.SQL(", ").join(values) if values else sql.SQL("NULL")
            query += sql.SQL(" WHERE {} IN ({})").format(sql.Identifier(_partition_column(table).name), chosen)
        with cursor.copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(query)) as copy:
            data = b"".join(bytes(block) for block in copy)
    return conform(_parse(data, schema), schema)


def read_frame(connection: psycopg.Connection, table: Table, partitions: Sequence[str] | None = None) -> pd.DataFrame:
    """Read rows as a frame with the dtypes of `storage.frames.to_frame`; raises as `read_rows` does."""
    return to_frame(read_rows(connection, table, partitions))


# Transactions and errors -------------------------------------------------------------------------------------------


@contextmanager
def _transaction(connection: psycopg.Connection, table: Table, verb: str) -> Iterator[psycopg.Cursor[Any]]:
    try:
        with connection.transaction(), connection.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        _raise(error, table, verb)


def _raise(error: psycopg.Error, table: Table, verb: str) -> NoReturn:
    said = "; ".join(
        part
        for part in (error.diag.message_primary or str(error).strip(), error.diag.message_detail, error.diag.context)
        if part
    )
    if isinstance(error, errors.UniqueViolation):
        raise ConflictError(
            f"{table.name}: {said}. Nothing was written. The frame has two rows of one key, or another writer was "
            "faster: run it again, and if it stays report it."
        ) from error
    if isinstance(error, errors.InsufficientPrivilege):
        raise ConfigurationError(
            f"{table.name} cannot be {verb}: {said}. Nothing was written. Grant it to the login, or use the login that "
            "has it."
        ) from error
    if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
        raise StorageUnavailableError(
            f"{table.name} was not {verb}: {said}. Nothing was written in part; if the connection broke at the very "
            "commit, all of it may have been. Writing the same again is safe: run it again."
        ) from error
    raise InvariantError(
        f"{table.name} cannot be {verb}: {said}. Nothing was written. A defect of the program: report it."
    ) from error


def _lock(cursor: psycopg.Cursor[Any], *names: str) -> None:
    """Let one writer of what is named in at a time, until its transaction ends."""
    digest = hashlib.sha256("\0".join(names).encode("utf-8")).digest()
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(digest[:8], "big", signed=True),))


# Partitions --------------------------------------------------------------------------------------------------------


def _partition_column(table: Table) -> Column:
    for column in table.schema.columns:
        if column.name == table.schema.partition_column:
            return column
    raise ConfigurationError(
        f"{table.name}: the asset is partitioned, and its schema declares no partition column. Nothing was written. "
        "Declare which column holds the partition."
    )


def _partition_value(table: Table, partition: str) -> Any:
    column = _partition_column(table)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if pa.types.is_date32(kind):
            return date.fromisoformat(partition)
        if pa.types.is_integer(kind):
            return int(partition)
    except ValueError as error:
        raise ConfigurationError(
            f"{table.name}: partition {partition!r} is no value of {column.name}, which holds {kind}: {error}. "
            "Nothing was written."
        ) from error
    if not pa.types.is_string(kind):
        raise ConfigurationError(
            f"{table.name}: {column.name} holds {kind}; a partition column holds dates, strings or whole numbers. "
            "Nothing was written."
        )
    return str(partition)


def _check_partition(rows: pa.Table, table: Table, partition: str | None) -> None:
    if partition is None:
        return
    value = _partition_value(table, partition)
    column = rows.column(_partition_column(table).name)
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    other = pc.fill_null(pc.not_equal(plain, pa.scalar(value, plain.type)), fill_value=True)
    if pc.any(other).as_py():
        row = pc.index(other, value=True).as_py()
        key = ", ".join(f"{name} {rows.column(name)[row].as_py()}" for name in table.schema.key)
        raise InvariantError(
            f"{table.name}: partition {partition} was given a row of {table.schema.partition_column} "
            f"{plain[row].as_py()} ({key}). Nothing was written. A defect of the program: report it."
        )


# Rows --------------------------------------------------------------------------------------------------------------


def _send(cursor: psycopg.Cursor[Any], table: Table, rows: pa.Table) -> int:
    """Copy the rows into a temporary table with the columns of the table; gives the bytes sent."""
    incoming, names = sql.Identifier(_INCOMING), table.schema.names
    cursor.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
            incoming, quoted(names), table.identifier
        )
    )
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(incoming, quoted(names))
    options = pa_csv.WriteOptions(include_header=False, quoting_style="all_valid")
    sent = 0
    with cursor.copy(statement) as copy:
        for batch in _plain(rows).to_batches(max_chunksize=_BATCH_ROWS):
            buffer = io.BytesIO()
            pa_csv.write_csv(batch, buffer, options)
            sent += buffer.tell()
            copy.write(buffer.getbuffer())
    cursor.execute(sql.SQL("ANALYZE {}").format(incoming))
    return sent


def _plain(rows: pa.Table) -> pa.Table:
    arrays = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.table(arrays, names=rows.column_names)


def _replace(cursor: psycopg.Cursor[Any], table: Table, partition: str | None) -> tuple[int, int]:
    delete = sql.SQL("DELETE FROM {}").format(table.identifier)
    if partition is not None:
        column = sql.Identifier(_partition_column(table).name)
        delete += sql.SQL(" WHERE {} = {}").format(column, sql.Literal(_partition_value(table, partition)))
    deleted = cursor.execute(delete).rowcount
    names = quoted(table.schema.names)
    inserted = cursor.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
            table.identifier, names, names, sql.Identifier(_INCOMING)
        )
    ).rowcount
    return inserted, deleted


def _insert_once(cursor: psycopg.Cursor[Any], table: Table) -> int:
    key, names = quoted(table.schema.key), table.schema.names
    incoming = sql.Identifier(_INCOMING)
    twice = cursor.execute(
        sql.SQL("SELECT FROM {} GROUP BY {} HAVING count(*) > 1 LIMIT 1").format(incoming, key)
    ).fetchone()
    distinct: sql.Composable = incoming
    if twice is not None:
        distinct = sql.SQL("(SELECT DISTINCT * FROM {})").format(incoming)
        _refuse_conflict(cursor, table, distinct, distinct, "is in the frame twice,")
    _refuse_conflict(cursor, table, distinct, table.identifier, "is stored")
    return cursor.execute(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {values} FROM {incoming} AS i"
            " WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same_key})"
        ).format(
            table=table.identifier,
            names=quoted(names),
            values=quoted(names, "i"),
            incoming=distinct,
            same_key=_same_key(table),
        )
    ).rowcount


def _same_key(table: Table) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier("i", name), sql.Identifier("t", name)) for name in table.schema.key
    )


def _refuse_conflict(
    cursor: psycopg.Cursor[Any], table: Table, incoming: sql.Composable, other: sql.Composable, words: str
) -> None:
    schema = table.schema
    content = [name for name in schema.names if name not in schema.key]
    if not content:
        return
    differs = sql.SQL(" OR ").join(
        sql.SQL("{} IS DISTINCT FROM {}").format(sql.Identifier("i", name), sql.Identifier("t", name))
        for name in content
    )
    row = cursor.execute(
        sql.SQL("SELECT {}, {}, count(*) OVER () FROM {} AS i JOIN {} AS t ON {} WHERE {} ORDER BY {} LIMIT 1").format(
            quoted(schema.names, "i"),
            quoted(content, "t"),
            incoming,
            other,
            _same_key(table),
            differs,
            quoted(schema.key, "i"),
        )
    ).fetchone()
    if row is None:
        return
    new = dict(zip(schema.names, row, strict=False))
    old = dict(zip(content, row[len(schema.names) :], strict=False))
    changed = [name for name in content if new[name] != old[name]]
    raise ConflictError(
        f"{table.name}: {', '.join(f'{name} {new[name]}' for name in schema.key)} {words} with other content: "
        f"{'; '.join(f'{name} is {old[name]!s}, and now {new[name]!s}' for name in changed)} "
        f"({row[-1]} such). What is stored stands and nothing was written. Find out which of them holds."
    )


def _parse(data: bytes, schema: TableSchema) -> pa.Table:
    kinds = {
        column.name: column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        for column in schema.columns
    }
    if not data:
        return pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
    return pa_csv.read_csv(
        pa.BufferReader(data),
        pa_csv.ReadOptions(column_names=list(kinds), block_size=min(max(len(data), 1 << 20), _BLOCK_BYTES)),
        # With one column, an empty line is a row whose value is null.
        pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            column_types=kinds,
            true_values=["t"],
            false_values=["f"],
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
