"""A table in Postgres against what is declared of it: names, types, nullability, key.

Belongs here: comparing, and making a table from its declaration. Does not belong here: rows (`storage.tables`), the
pipeline's own tables, which migrations make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.domain.schemas import Column, TableSchema

#: Column types that hold a declared type; the first is the one that tables are created with.
_POSTGRES_TYPES: tuple[tuple[pa.DataType, tuple[str, ...]], ...] = (
    (pa.string(), ("text", "uuid", "character varying")),
    (pa.int64(), ("bigint",)),
    (pa.int32(), ("integer",)),
    (pa.bool_(), ("boolean",)),
    (pa.date32(), ("date",)),
    (pa.timestamp("us", tz="UTC"), ("timestamp with time zone",)),
    (pa.timestamp("us"), ("timestamp without time zone",)),
    (pa.float64(), ("double precision",)),
)


@dataclass(frozen=True)
class Table:
    """A table and what is declared of it.

    Attributes:
        schema_name: Postgres schema that it is in.
        schema: declared columns, key and partition column; its name is the table's.
    """

    schema_name: str
    schema: TableSchema

    @property
    def name(self) -> str:
        """Qualified name, for people."""
        return f"{self.schema_name}.{self.schema.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Qualified name, for statements."""
        return sql.Identifier(self.schema_name, self.schema.name)


def quoted(names: Sequence[str], alias: str | None = None) -> sql.Composed:
    """Give column names for a statement, of an alias where one is given."""
    return sql.SQL(", ").join(sql.Identifier(alias, name) if alias else sql.Identifier(name) for name in names)


def table_exists(cursor: psycopg.Cursor[Any], table: Table) -> bool:
    """Say whether there is a table of the name."""
    return cursor.execute("SELECT to_regclass(%s)", (table.identifier.as_string(),)).fetchone() != (None,)


def check_table(cursor: psycopg.Cursor[Any], table: Table, *, unique_key: bool) -> None:
    """Hold the table in the database to its declaration.

    A column that is not declared is admitted where it fills itself: it has a default, or is an identity.

    Args:
        cursor: any.
        table: what is declared.
        unique_key: whether a unique index has to stand on exactly the declared key.

    Raises:
        ConfigurationError: they differ; says in what.
    """
    found = cursor.execute(
        """SELECT a.attname, format_type(a.atttypid, NULL), a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attnum
           FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped""",
        (table.schema_name, table.schema.name),
    ).fetchall()
    if not found:
        raise ConfigurationError(
            f"there is no table {table.name}, or the login may not see it. Nothing was written. Migrate the database, "
            "or let the IO manager create tables."
        )
    columns = {name: (kind, not_null) for name, kind, not_null, _, _ in found}
    differs = [f"{name} is missing" for name in table.schema.names if name not in columns]
    differs += [
        f"{name} is not declared and has no default"
        for name, _, _, has_default, _ in found
        if name not in table.schema.names and not has_default
    ]
    for column in table.schema.columns:
        if column.name in columns:
            kind, not_null = columns[column.name]
            admitted = _postgres_types(column, table)
            if kind not in admitted:
                differs.append(f"{column.name} is {kind}, declared {column.type} (that is {' or '.join(admitted)})")
            if not_null == column.nullable:
                differs.append(
                    f"{column.name} {'does not admit' if not_null else 'admits'} null, the declaration does"
                    + (" not" if not column.nullable else "")
                )
    if unique_key and not differs:
        differs += _no_unique_key(cursor, table, {name: number for name, *_, number in found})
    if differs:
        raise ConfigurationError(
            f"the table {table.name} is not what is declared: {'; '.join(differs)}. Nothing was written. Migrate the "
            "database to this version of the program."
        )


def _no_unique_key(cursor: psycopg.Cursor[Any], table: Table, numbers: dict[str, int]) -> list[str]:
    key = sorted(numbers[name] for name in table.schema.key)
    unique = cursor.execute(
        """SELECT (string_to_array(i.indkey::text, ' ')::int[])[1:i.indnkeyatts]
           FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = %s AND c.relname = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL""",
        (table.schema_name, table.schema.name),
    ).fetchall()
    nullable = [column.name for column in table.schema.columns if column.name in table.schema.key and column.nullable]
    if nullable:
        return [f"the key column {', '.join(nullable)} admits null, and rows are inserted once by their key"]
    if not key or all(sorted(columns) != key for (columns,) in unique):
        return [f"there is no unique key on {', '.join(table.schema.key) or 'anything'}"]
    return []


def _postgres_types(column: Column, table: Table) -> tuple[str, ...]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    for declared, names in _POSTGRES_TYPES:
        if declared == kind:
            return names
    raise ConfigurationError(
        f"{table.name}: {column.name} is declared {column.type}, which no column type stands for. Nothing was written."
    )


def create_table(cursor: psycopg.Cursor[Any], table: Table) -> None:
    """Make the table from its declaration where there is none; who calls this lets one in at a time."""
    cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(table.schema_name)))
    parts = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column.name),
            sql.SQL(_postgres_types(column, table)[0]),
            sql.SQL("" if column.nullable else " NOT NULL"),
        )
        for column in table.schema.columns
    ]
    if table.schema.key:
        parts.append(sql.SQL("PRIMARY KEY ({})").format(quoted(table.schema.key)))
    cursor.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(table.identifier, sql.SQL(", ").join(parts)))
    cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table.identifier, sql.Literal(table.schema.description)))
    for column in table.schema.columns:
        words = f"{column.description} [{column.unit}]" if column.unit else column.description
        name = sql.Identifier(table.schema_name, table.schema.name, column.name)
        cursor.execute(sql.SQL("COMMENT ON COLUMN {} IS {}").format(name, sql.Literal(words)))
