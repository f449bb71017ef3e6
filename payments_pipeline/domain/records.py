"""Records as read from files, before anything is judged: coded columns, origin, faults, raw text.

Belongs here: the shape that all readers produce, and putting files together. Does not belong here: reading bytes
(csv_files, json_lines, parquet_files), what a value means (values), which rows are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.values import WHITE_SPACE, to_numpy


class Kind(StrEnum):
    """What a column holds; decides which types of JSON and Parquet are read for it."""

    TEXT = "text"
    COUNT = "count"  # whole number that may come as a Parquet float where cells are empty
    MINOR = "minor"  # whole number of minor units, never from a float
    INSTANT = "instant"
    DATE = "date"


@dataclass(frozen=True)
class Field:
    """One column of an input table.

    Attributes:
        name: as the header says it.
        kind: what it holds.
        required: whether a CSV or Parquet file without the column is a bad file.
        salvaged: whether it is read, by its place in the header, even from a row with another field count.
    """

    name: str
    kind: Kind = Kind.TEXT
    required: bool = True
    salvaged: bool = False


@dataclass(frozen=True)
class Layout:
    """The columns of an input table."""

    name: str
    fields: tuple[Field, ...]

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [field.name for field in self.fields]


class RowFault(IntEnum):
    """Why a row could not be taken apart; NONE where it could."""

    NONE = 0
    BROKEN_JSON_LINE = 1
    MISPLACED_QUOTE = 2
    FIELD_COUNT = 3


@dataclass(frozen=True)
class Coded:
    """A column of text as codes into its distinct values.

    Attributes:
        codes: int32 per row; -1 where empty.
        distinct: the values that `codes` stand for: not null, not empty, trimmed, each once.
    """

    codes: np.ndarray
    distinct: pa.StringArray

    def spread(self, per_value: np.ndarray, *, empty: object) -> np.ndarray:
        """Give each row what its value has, `empty` where it has none."""
        spread: np.ndarray = np.append(per_value, np.array([empty], dtype=per_value.dtype))[self.codes]
        return spread

    def take(self, rows: np.ndarray) -> pa.StringArray:
        """Give the text of rows, null where empty."""
        codes = self.codes[rows]
        return self.distinct.take(pa.array(codes, mask=codes < 0))

    def find(self, known: pa.StringArray) -> np.ndarray:
        """Give each value's position in `known`, -1 where it is not there."""
        return to_numpy(pc.index_in(self.distinct, value_set=known).fill_null(-1))


def coded(column: pa.Array | pa.ChunkedArray) -> Coded:
    """Code a column of text, dropping white space around values; what is empty then is null."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if not pa.types.is_dictionary(chunked.type):
        chunked = chunked.dictionary_encode()
    array = chunked.unify_dictionaries().combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.dictionary(pa.int32(), pa.string()))
    codes = to_numpy(array.indices.cast(pa.int32()).fill_null(-1))
    values = array.dictionary.cast(pa.string())
    trimmed = pc.utf8_trim(values, characters=WHITE_SPACE)
    if trimmed.equals(values) and not pc.any(pc.equal(values, "")).as_py() and values.null_count == 0:
        return Coded(codes, values)
    encoded = pc.if_else(pc.equal(trimmed, ""), None, trimmed).dictionary_encode()
    renumbered = to_numpy(encoded.indices.cast(pa.int32()).fill_null(-1))
    return Coded(np.append(renumbered, np.int32(-1))[codes], encoded.dictionary)


RawText = Callable[[np.ndarray], list[str]]


@dataclass(frozen=True)
class Records:
    """Rows of one file or several; every row that was read, the faulty ones too.

    Attributes:
        columns: by name, one for every field of the layout; empty throughout in a faulty row, but for salvaged fields.
        sources: names of the files.
        source_no: int32 per row, into `sources`.
        line_number: int64 per row: first physical line (CSV, JSON Lines) or row (Parquet), from 1.
        fault: int8 per row, a `RowFault`.
        unknown_columns: (source, column) that the layout does not know; left out.
        raw: gives the text of rows as read, by their positions.
    """

    columns: dict[str, Coded]
    sources: tuple[str, ...]
    source_no: np.ndarray
    line_number: np.ndarray
    fault: np.ndarray
    unknown_columns: tuple[tuple[str, str], ...]
    raw: RawText

    def __len__(self) -> int:
        return len(self.line_number)


def single_source(
    source: str,
    columns: dict[str, Coded],
    line_number: np.ndarray,
    *,
    raw: RawText,
    fault: np.ndarray | None = None,
    unknown: Sequence[str] = (),
) -> Records:
    """Make the records of one file."""
    count = len(line_number)
    return Records(
        columns=columns,
        sources=(source,),
        source_no=np.zeros(count, np.int32),
        line_number=line_number.astype(np.int64),
        fault=np.zeros(count, np.int8) if fault is None else fault,
        unknown_columns=tuple((source, name) for name in unknown),
        raw=raw,
    )


def concatenate(layout: Layout, parts: Sequence[Records]) -> Records:
    """Put the records of several files together, in the order given."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    first_source = np.cumsum([0, *(len(part.sources) for part in parts)])

    def raw(rows: np.ndarray) -> list[str]:
        texts = np.empty(len(rows), dtype=object)
        owner = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            mine = owner == number
            texts[mine] = parts[number].raw(rows[mine] - starts[number])
        return texts.tolist()

    def joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate(arrays) if arrays else np.empty(0, dtype)

    return Records(
        columns={name: _joined([part.columns[name] for part in parts]) for name in layout.names},
        sources=tuple(source for part in parts for source in part.sources),
        source_no=joined(
            [part.source_no + np.int32(first) for part, first in zip(parts, first_source[:-1], strict=True)], np.int32
        ),
        line_number=joined([part.line_number for part in parts], np.int64),
        fault=joined([part.fault for part in parts], np.int8),
        unknown_columns=tuple(pair for part in parts for pair in part.unknown_columns),
        raw=raw,
    )


def _joined(columns: list[Coded]) -> Coded:
    chunks = [
        pa.DictionaryArray.from_arrays(pa.array(column.codes, pa.int32(), mask=column.codes < 0), column.distinct)
        for column in columns
    ]
    return coded(pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string())))
