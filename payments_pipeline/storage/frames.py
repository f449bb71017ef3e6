"""Frames held to their declared schema, in Arrow and in pandas: what is admitted, in which order, with which dtypes.

Belongs here: the strict way from pandas to Arrow, the exact way back, row order, stable dictionaries. Does not belong
here: Parquet, Postgres, Dagster.

| declared        | admitted from pandas                                        | given back               |
| --------------- | ----------------------------------------------------------- | ------------------------ |
| int64           | whole-number dtypes within 63 bits; objects that are `int`  | `int64`; nullable `Int64` |
| string          | objects that are `str`, string dtypes, categories of them   | `object` of `str`        |
| dictionary      | the same                                                    | `category`, sorted       |
| date32          | `datetime.date`; naive timestamps at midnight               | `object` of `datetime.date` |
| timestamp UTC   | datetimes with a zone, whole microseconds                   | `datetime64[us, UTC]`    |
| bool            | `bool`, `boolean`                                           | `bool`; nullable `boolean` |
| another type    | the same family, where the cast loses nothing               | pyarrow's own mapping    |

A float column is never a column of whole numbers, whatever it holds. A missing string is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.errors import InvariantError
from payments_pipeline.domain.schemas import CATEGORY, Column, TableSchema

_Of = TypeVar("_Of")
_Made = TypeVar("_Made")
#: Rows from which threads pay.
_LONG = 1 << 17
_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


def conform(frame: pd.DataFrame | pa.Table, schema: TableSchema) -> pa.Table:
    """Give a frame as the declared Arrow table, rows in the declared order; equal rows give equal tables.

    Rows whose sort columns are equal are put in order by all columns, so the order they came in never shows.

    Raises:
        InvariantError: columns are missing or extra, or a column is not what is declared; names the column and the
            row (its position from 0) and its key.
    """
    names = [str(name) for name in (frame.column_names if isinstance(frame, pa.Table) else frame.columns)]
    missing = [name for name in schema.names if name not in names]
    extra = [name for name in names if name not in schema.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing or extra or twice:
        faults = [
            f"{label} {', '.join(columns)}"
            for label, columns in (("missing", missing), ("not declared", extra), ("more than once", twice))
            if columns
        ]
        raise _refusal(schema.name, f"the columns are not those declared: {'; '.join(faults)}")
    if not len(frame):
        return schema.arrow().empty_table()
    arrays = _each(lambda column: _conform_column(frame, column, schema), schema.columns, len(frame))
    return _in_order(pa.table(arrays, schema=schema.arrow()), schema)


def infer_schema(name: str, frame: pd.DataFrame | pa.Table) -> TableSchema:
    """Describe a frame that nobody has declared: its own types, rows in the order they have.

    A column is nullable unless its dtype cannot hold null (whole numbers and booleans of numpy).

    Raises:
        InvariantError: a column's type cannot be told, or the index is named and would be lost.
    """
    if isinstance(frame, pa.Table):
        arrow, full = frame.schema, {field.name for field in frame.schema if not field.nullable}
    else:
        if any(level is not None for level in frame.index.names):
            raise _refusal(name, f"the index {frame.index.names} would be lost: reset_index() first")
        try:
            arrow = pa.Schema.from_pandas(frame, preserve_index=False)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise _refusal(name, f"its types cannot be told: {error}") from error
        full = {
            str(column) for column, kind in frame.dtypes.items() if isinstance(kind, np.dtype) and kind.kind in "iub"
        }
    columns = [Column(field.name, _declarable(field.type), "", nullable=field.name not in full) for field in arrow]
    return TableSchema(name=name, description="", columns=tuple(columns), key=(), sort_by=())


def _declarable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return CATEGORY if pa.types.is_null(kind.value_type) else pa.dictionary(pa.int32(), kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.string()
    return kind


def difference(found: pa.Schema, schema: TableSchema) -> list[str]:
    """Say in words how an Arrow schema differs from the declared one in names, order, types and nullability."""
    declared = schema.arrow()
    words = [f"{name} is missing" for name in declared.names if name not in found.names]
    words += [f"{name} is not declared" for name in found.names if name not in declared.names]
    for field in declared:
        if field.name in found.names:
            other = found.field(field.name)
            if other.type != field.type:
                words.append(f"{field.name} is {other.type}, declared {field.type}")
            if other.nullable != field.nullable:
                words.append(f"{field.name} is {_null(other.nullable)}, declared {_null(field.nullable)}")
    if not words and found.names != declared.names:
        words.append(f"the order of columns is {', '.join(found.names)}")
    return words


def _null(nullable: bool) -> str:  # noqa: FBT001 - a predicate's own value
    return "nullable" if nullable else "not nullable"


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Give an Arrow table as a frame, with the dtypes of the table above; exact, so `conform` gives it back."""
    if not table.num_rows:
        return _empty_frame(table.schema.remove_metadata()).copy()
    return _frame(table)


@lru_cache(maxsize=64)
def _empty_frame(schema: pa.Schema) -> pd.DataFrame:
    return _frame(schema.empty_table())


def _frame(table: pa.Table) -> pd.DataFrame:
    def to_pandas(position: int) -> Any:  # what pandas makes a column of
        field, column = table.schema.field(position), table.column(position)
        if field.nullable and field.type in _NULLABLE:
            return column.to_pandas(types_mapper=_NULLABLE.get)
        return column.to_pandas(date_as_object=True)

    columns = dict(zip(table.column_names, _each(to_pandas, range(table.num_columns), table.num_rows), strict=True))
    return pd.DataFrame(columns, columns=table.column_names, index=pd.RangeIndex(table.num_rows), copy=False)


def _each(work: Callable[[_Of], _Made], columns: Sequence[_Of], rows: int) -> list[_Made]:
    """Do something with each column, with several at once where they are long."""
    if rows < _LONG:
        return [work(column) for column in columns]
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        return list(pool.map(work, columns))


def stable_dictionaries(table: pa.Table) -> pa.Table:
    """Give dictionary columns one dictionary each, sorted by bytes and without values that no row has."""
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(position, field, _stable_dictionary(table.column(position), field.type))
    return table


def concat(tables: list[pa.Table]) -> pa.Table:
    """Give the rows of tables of one schema, one table after the other; dictionaries made one."""
    return stable_dictionaries(pa.concat_tables([table.replace_schema_metadata() for table in tables]))


def _refusal(name: str, words: str) -> InvariantError:
    return InvariantError(f"{name}: {words}. Nothing was written. A defect of the program: report it.")


def _row(frame: pd.DataFrame | pa.Table, row: int, schema: TableSchema) -> str:
    names = [name for name in schema.key if name in set(map(str, getattr(frame, "column_names", frame.columns)))]
    values = (
        {name: frame.column(name)[row].as_py() for name in names}
        if isinstance(frame, pa.Table)
        else {name: frame[name].iloc[row] for name in names}
    )
    key = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"row {row} ({key})" if key else f"row {row}"


def _conform_column(frame: pd.DataFrame | pa.Table, column: Column, schema: TableSchema) -> pa.Array:
    where = f"{schema.name}.{column.name}"
    try:
        array = frame.column(column.name) if isinstance(frame, pa.Table) else _to_arrow(frame[column.name], column.type)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        array = _admit(array, column.type)
    except _NotAdmittedError as error:
        at = f", {_row(frame, error.row, schema)}" if error.row is not None else ""
        raise _refusal(where, f"{error}; declared {column.type}{at}") from error
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        row = _first_refused(frame, column)
        at = f", {_row(frame, row, schema)}" if row is not None else ""
        raise _refusal(where, f"{error}; declared {column.type}{at}") from error
    if array.null_count and not column.nullable:
        row = pc.index(pc.is_null(array), value=True).as_py()
        raise _refusal(where, f"null where none is allowed, {_row(frame, row, schema)}")
    return array


class _NotAdmittedError(Exception):
    def __init__(self, words: str, row: int | None = None) -> None:
        super().__init__(words)
        self.row = row


def _to_arrow(series: pd.Series, kind: pa.DataType) -> pa.Array:
    array = pa.array(series, from_pandas=True)
    if series.dtype == object and pa.types.is_timestamp(kind) and not pa.types.is_null(array.type):
        # Among objects with a zone Arrow reads one without as UTC.
        raise _NotAdmittedError("objects, where a dtype with a zone is needed: pandas.to_datetime(…, utc=True)")
    if series.dtype == object and pa.types.is_date32(array.type):
        # Among dates Arrow reads a datetime as its date.
        times = {kind for kind in set(map(type, series.dropna())) if issubclass(kind, datetime)}
        if times:
            row = next(row for row, value in enumerate(series) if type(value) in times)
            raise _NotAdmittedError("a time of day where a date is needed", row)
    return array


def _admit(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast where nothing is lost and no kind is taken for another.

    Raises:
        _NotAdmittedError: it is another kind of thing.
        pa.ArrowInvalid: a value does not fit.
    """
    found = array.type
    if not len(array) or pa.types.is_null(found) or (pa.types.is_dictionary(found) and array.null_count == len(array)):
        return pa.nulls(len(array), kind) if not pa.types.is_dictionary(kind) else _empty_dictionary(len(array), kind)
    if isinstance(kind, pa.DictionaryType):
        return _stable_dictionary(pa.chunked_array([array]), kind)
    if pa.types.is_dictionary(found):
        array, found = array.dictionary_decode(), found.value_type
    if not _same_family(found, kind):
        raise _NotAdmittedError(f"{found}")
    if pa.types.is_date32(kind) and pa.types.is_timestamp(found):
        days = array.cast(kind)
        lost = pc.not_equal(days.cast(found), array)
        if pc.any(lost).as_py():
            raise _NotAdmittedError("a time of day where a date is needed", pc.index(lost, value=True).as_py())
        return days
    return array.cast(kind)


def _same_family(found: pa.DataType, kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_timestamp(kind):
        return bool(types.is_timestamp(found)) and (found.tz is None) == (kind.tz is None)
    if types.is_date(kind):
        return bool(types.is_date(found)) or (bool(types.is_timestamp(found)) and found.tz is None)
    if types.is_string(kind):
        return bool(types.is_string(found) or types.is_large_string(found) or types.is_string_view(found))
    for family in (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean):
        if family(kind):
            return bool(family(found))
    return bool(found.equals(kind))


def _empty_dictionary(length: int, kind: pa.DictionaryType) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.nulls(length, kind.index_type), pa.array([], kind.value_type))


def _stable_dictionary(column: pa.ChunkedArray, kind: pa.DictionaryType) -> pa.DictionaryArray:
    if not pa.types.is_dictionary(column.type):
        if not _same_family(column.type, kind.value_type):
            raise _NotAdmittedError(f"{column.type}")
        column = column.dictionary_encode()
    elif not _same_family(column.type.value_type, kind.value_type) and column.null_count < len(column):
        raise _NotAdmittedError(f"{column.type.value_type}")
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else _empty_dictionary(0, kind)
    values = array.dictionary
    indices = array.indices
    used = np.zeros(len(values), dtype=bool)
    positions = (indices.drop_null() if indices.null_count else indices).to_numpy()
    # In parts: numpy widens positions before it follows them, and a whole column of them leaves the cache.
    for start in range(0, len(positions), _AT_ONCE):
        used[positions[start : start + _AT_ONCE]] = True
    if used.all() and _strictly_ascending(values):
        return array if array.type == kind else array.cast(kind)
    # A null among the values is a null, and two equal values are one.
    kept = values.filter(pa.array(used)).drop_null().unique().cast(kind.value_type)
    kept = kept.take(pc.sort_indices(kept))
    mapping = pc.index_in(values.cast(kind.value_type), value_set=kept).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(mapping.take(indices), kept)


_AT_ONCE = 1 << 16


def _strictly_ascending(values: pa.Array) -> bool:
    if values.null_count:
        return False
    return len(values) < 2 or bool(pc.all(pc.less(values[:-1], values[1:])).as_py())


def _first_refused(frame: pd.DataFrame | pa.Table, column: Column) -> int | None:
    """Find the first value that is refused alone; only ever called to word an error."""
    if isinstance(frame, pa.Table):
        values: Any = (frame.column(column.name).slice(row, 1) for row in range(frame.num_rows))
    else:
        values = (frame[column.name].iloc[row : row + 1] for row in range(len(frame)))
    for row, value in enumerate(values):
        try:
            array = value if isinstance(value, pa.ChunkedArray) else _to_arrow(value, column.type)
            _admit(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array, column.type)
        except (pa.ArrowException, OverflowError, UnicodeError, _NotAdmittedError):
            return row
    return None


def _codes(array: pa.ChunkedArray) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """Give whole numbers in the order of the values; where there are nulls, which rows they are comes first."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        # Conformed dictionaries are sorted.
        numbers = pa.chunked_array([chunk.indices for chunk in array.chunks], kind.index_type)
    elif pa.types.is_integer(kind):
        numbers = array
    elif pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        numbers = array.cast(pa.int64())
    elif pa.types.is_date32(kind):
        numbers = array.cast(pa.int32())
    else:
        return _codes(pa.chunked_array([_stable_dictionary(array, pa.dictionary(pa.int32(), kind))]))
    if not numbers.null_count:
        return [numbers.to_numpy()]
    return [pc.is_null(numbers).to_numpy(), pc.fill_null(numbers, 0).to_numpy()]


def _in_order(table: pa.Table, schema: TableSchema) -> pa.Table:
    if table.num_rows < 2 or not schema.sort_by:
        return table
    codes = [code for name in schema.sort_by for code in _codes(table.column(name))]
    ordered, tied = _order(codes)
    if ordered and not tied:
        return table
    order = np.lexsort(codes[::-1])
    if not tied:
        _, tied = _order([code[order] for code in codes])
    if tied:
        rest = [name for name in schema.names if name not in schema.sort_by]
        codes += [code for name in rest for code in _codes(table.column(name))]
        order = np.lexsort(codes[::-1])
    return table.take(pa.array(order))


def _order(codes: list[np.ndarray[Any, np.dtype[Any]]]) -> tuple[bool, bool]:
    """Say whether rows are in order, and whether two neighbours are equal."""
    equal = np.ones(len(codes[0]) - 1, dtype=bool)
    for code in codes:
        if np.any(equal & (code[:-1] > code[1:])):
            return False, False
        equal &= code[:-1] == code[1:]
    return True, bool(equal.any())
