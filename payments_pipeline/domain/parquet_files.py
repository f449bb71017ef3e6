"""Parquet files: typed columns brought to the text that the same value has in CSV.

Belongs here: which Parquet types are read for which kind of column. Does not belong here: what a value means. A value
of the wrong type becomes text that no check lets pass.
"""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from payments_pipeline.domain.bad_files import bad_file, header_names, unknown_names
from payments_pipeline.domain.records import Coded, Kind, Layout, Records, coded, single_source
from payments_pipeline.domain.values import WRONG_TYPE

_NUMBERS = (Kind.COUNT, Kind.MINOR)
#: First and last second of the years 1 to 9999.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def read_parquet(source: str, content: bytes, layout: Layout) -> Records:
    """Read a Parquet file.

    Raises:
        BadFileError: truncated or no Parquet at all, text that is not UTF-8, a repeated column name, a required column
            missing.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        said = "".join(each if each.isprintable() else " " for each in str(error)).strip()
        raise bad_file(source, f"cannot be read as Parquet ({said})", "Write it again") from None
    names = header_names(source, table.column_names, layout)
    columns = {
        field.name: coded(_text(table.column(names.index(field.name)), field.kind))
        if field.name in names
        else Coded(np.full(table.num_rows, -1, np.int32), pa.array([], pa.string()))
        for field in layout.fields
    }

    def raw(positions: np.ndarray) -> list[str]:
        rows = table.rename_columns([str(place) for place in range(len(names))]).take(pa.array(positions)).to_pylist()
        return [
            orjson.dumps(
                dict(zip(names, row.values(), strict=True)), default=str, option=orjson.OPT_NON_STR_KEYS
            ).decode()
            for row in rows
        ]

    return single_source(
        source, columns, np.arange(1, table.num_rows + 1), raw=raw, unknown=unknown_names(names, layout)
    )


def _is_text(type_: pa.DataType) -> bool:
    return any(test(type_) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _text(column: pa.ChunkedArray, kind: Kind) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    type_ = column.type
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_null(type_):
        return array.cast(pa.string())
    if _is_text(type_):
        text = array.cast(pa.string())
        return _wrong(text) if kind in _NUMBERS else text
    if pa.types.is_integer(type_) and kind in (*_NUMBERS, Kind.TEXT):
        return array.cast(pa.string())
    if pa.types.is_decimal(type_) and type_.scale == 0 and kind in _NUMBERS:
        return array.cast(pa.string())
    if pa.types.is_floating(type_) and kind is Kind.COUNT and array.null_count:
        return _whole(array.cast(pa.float64()))
    if pa.types.is_timestamp(type_) and kind is Kind.INSTANT:
        return _iso_8601(array)
    if pa.types.is_date(type_) and kind is Kind.DATE:
        return array.cast(pa.date32()).cast(pa.string())
    return _wrong(pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string()))


def _wrong(text: pa.StringArray) -> pa.StringArray:
    """Mark every value; one that is only white space is empty still."""
    return pc.if_else(
        pc.equal(pc.utf8_trim_whitespace(text), ""), None, pc.binary_join_element_wise(WRONG_TYPE, text, "")
    )


def _whole(array: pa.DoubleArray) -> pa.StringArray:
    """Read floats that stand for whole numbers, as writers store integers where cells are empty; never money."""
    is_whole = pc.and_(pc.equal(pc.floor(array), array), pc.less_equal(pc.abs(array), 2.0**53))
    whole = pc.if_else(is_whole, array, None).cast(pa.int64()).cast(pa.string())
    return pc.if_else(is_whole, whole, _wrong(array.cast(pa.string())))


def _iso_8601(array: pa.TimestampArray) -> pa.StringArray:
    """Write instants with their offset; a timestamp without a zone has none, and the row says so."""
    per_second = _UNITS[array.type.unit]
    ticks = array.cast(pa.int64())
    in_range = pc.and_(
        pc.greater_equal(ticks, _FIRST_S * per_second) if _FIRST_S * per_second > -(2**63) else pa.scalar(True),  # noqa: FBT003
        pc.less_equal(ticks, _LAST_S * per_second) if _LAST_S * per_second < 2**63 else pa.scalar(True),  # noqa: FBT003
    )
    naive = pc.if_else(in_range, ticks, None).cast(pa.timestamp(array.type.unit)).cast(pa.string())
    suffix = "" if array.type.tz is None else "Z"
    text = pc.binary_join_element_wise(pc.replace_substring(naive, " ", "T"), suffix, "")
    return pc.if_else(in_range, text, _wrong(ticks.cast(pa.string())))
