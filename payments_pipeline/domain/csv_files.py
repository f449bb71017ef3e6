"""CSV files: RFC 4180 with any line ending, every value as text.

Belongs here: finding rows, their first physical lines and their raw text, rows with another field count than the
header. Does not belong here: what a value means.

A file in which every line is a record and every quote encloses a whole value is plain, and Arrow takes it apart; any
other, with line breaks or quotes inside values, goes through the `csv` module, which knows at which line a record
begins. Both give the same records; a test holds them against each other.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from payments_pipeline.domain.bad_files import bad_file, header_names, unknown_names, without_bom
from payments_pipeline.domain.records import Coded, Layout, Records, RowFault, coded, single_source
from payments_pipeline.domain.values import WHITE_SPACE

# The module's own limit (128 KiB) would end a record in the middle; a value may be as long as its file.
csv.field_size_limit(2**31 - 1)

_COMMA, _QUOTE, _RETURN, _NEWLINE = b',"\r\n'
_LONE_RETURN = re.compile(rb"\r(?!\n)")
_SPACE_AFTER_QUOTE = re.compile(r'"[ \t]+(?=[,\r\n]|\Z)')
_BLOCK_SIZE = 1 << 24
_TEXT = pa.dictionary(pa.int32(), pa.string())


def read_csv(source: str, content: bytes, layout: Layout) -> Records:
    """Read a CSV file.

    Raises:
        BadFileError: not UTF-8, no header, a repeated header name, a required column missing, an unclosed quote.
    """
    content = without_bom(source, content)
    lines = None if _LONE_RETURN.search(content) else _plain_lines(content)
    return read_any(source, content, layout) if lines is None else read_plain(source, content, layout, lines)


def _no_header(source: str) -> Exception:
    return bad_file(source, "has no header", "Begin it with the column names")


def _salvage(layout: Layout, names: Sequence[str], faulty: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Read from rows that have another field count the fields that stand where the header says."""
    return {
        field.name: [row[place] if place < len(row) else "" for row in faulty]
        for field in layout.fields
        if field.salvaged and field.name in names
        for place in [names.index(field.name)]
    }


def _with_faulty(good: Coded, position: np.ndarray, salvaged: pa.StringArray) -> Coded:
    """Put the faulty rows back among the good ones: `position` is -1 where the next salvaged value belongs."""
    codes = np.append(good.codes, np.int32(-1))[position]
    extra = coded(salvaged)
    codes[position < 0] = np.where(extra.codes >= 0, extra.codes + len(good.distinct), -1)
    values = pa.concat_arrays([good.distinct, extra.distinct])
    return coded(pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), values).cast(pa.string()))


def _assemble(
    layout: Layout, names: list[str], good: dict[str, Coded], fault: np.ndarray, faulty: Sequence[Sequence[str]]
) -> dict[str, Coded]:
    """Give every column of the layout over all rows, good and faulty."""
    count, good_count = len(fault), int((fault == RowFault.NONE).sum())
    empty = Coded(np.full(good_count, -1, np.int32), pa.array([], pa.string()))
    columns = {name: good.get(name, empty) for name in layout.names}
    if good_count == count:
        return columns
    position = np.where(fault == RowFault.NONE, np.cumsum(fault == RowFault.NONE) - 1, -1)
    salvaged = _salvage(layout, names, faulty)
    nothing = [""] * len(faulty)
    return {
        name: _with_faulty(column, position, pa.array(salvaged.get(name, nothing), pa.string()))
        for name, column in columns.items()
    }


@dataclass(frozen=True)
class PlainLines:
    """Lines that are a record each: where they start and end (without LF), and how many fields they have."""

    starts: np.ndarray
    ends: np.ndarray
    fields: np.ndarray


def _plain_lines(content: bytes) -> PlainLines | None:
    """Find the lines of UTF-8 whose lines end in LF or CRLF; None where a quote does not enclose a whole value."""
    octets = np.frombuffer(content, np.uint8)
    newlines = np.flatnonzero(octets == _NEWLINE)
    ends = newlines if content.endswith(b"\n") else np.append(newlines, len(content))
    starts = np.append(0, newlines + 1)[: len(ends)]
    commas = np.flatnonzero(octets == _COMMA)
    quotes = np.flatnonzero(octets == _QUOTE)
    if len(quotes):
        if (np.diff(np.searchsorted(quotes, ends), prepend=0) % 2).any():
            return None
        before, after = octets[quotes[0::2] - 1], np.append(octets, _NEWLINE)[quotes[1::2] + 1]
        opens = (quotes[0::2] == 0) | np.isin(before, (_COMMA, _NEWLINE))
        if not (opens & np.isin(after, (_COMMA, _RETURN, _NEWLINE))).all():
            return None
        commas = commas[np.searchsorted(quotes, commas) % 2 == 0]
    return PlainLines(starts, ends, np.diff(np.searchsorted(commas, ends), prepend=0) + 1)


def read_plain(source: str, content: bytes, layout: Layout, lines: PlainLines) -> Records:
    """Read a file of plain lines."""
    starts, ends, fields = lines.starts, lines.ends, lines.fields

    def line(number: int) -> str:
        return content[starts[number] : ends[number]].decode().removesuffix("\r")

    def split(numbers: np.ndarray) -> list[list[str]]:
        return list(_reader(map(line, numbers.tolist()), strict=False))

    is_blank = np.zeros(len(ends), bool)
    suspects = np.flatnonzero(fields == 1)
    is_blank[suspects] = [not line(number).strip(WHITE_SPACE) for number in suspects.tolist()]
    rows = np.flatnonzero(~is_blank)
    if not len(rows):
        raise _no_header(source)
    names = header_names(source, split(rows[:1])[0], layout)
    header, rows = rows[0], rows[1:]
    is_good = fields[rows] == len(names)
    faulty = split(rows[~is_good])
    good = _split_lines(content, lines, np.append(header, rows[is_good]), names, layout)
    fault = np.where(is_good, RowFault.NONE, RowFault.FIELD_COUNT).astype(np.int8)

    def raw(positions: np.ndarray) -> list[str]:
        return [line(number) for number in rows[positions].tolist()]

    return single_source(
        source,
        _assemble(layout, names, good, fault, faulty),
        rows + 1,
        raw=raw,
        fault=fault,
        unknown=unknown_names(names, layout),
    )


def _split_lines(
    content: bytes, lines: PlainLines, rows: np.ndarray, names: list[str], layout: Layout
) -> dict[str, Coded]:
    """Split the given lines into the columns that the layout knows.

    The first is the header, left out: Arrow drops a byte order mark from wherever it begins. Each of the others has as
    many fields as there are names.
    """
    starts, ends = lines.starts, lines.ends
    known = [name for name in layout.names if name in names]
    if len(rows) == 1:
        return {}
    if rows[-1] - rows[0] + 1 == len(rows):
        body = pa.py_buffer(content).slice(int(starts[rows[0]]), int(ends[rows[-1]] - starts[rows[0]]))
    else:
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = pairwise([0, *breaks.tolist(), len(rows)])
        body = pa.py_buffer(b"\n".join(content[starts[rows[a]] : ends[rows[b - 1]]] for a, b in runs))
    longest = int((ends - starts)[rows].max())
    # Columns are known by place: a header may leave several names empty.
    places = [str(place) for place in range(len(names))]
    table = pa_csv.read_csv(
        pa.BufferReader(body),
        read_options=pa_csv.ReadOptions(column_names=places, skip_rows=1, block_size=max(_BLOCK_SIZE, longest + 2)),
        parse_options=pa_csv.ParseOptions(double_quote=False, escape_char=False, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            include_columns=[str(names.index(name)) for name in known],
            column_types=dict.fromkeys(places, _TEXT),
            null_values=[],
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    return {name: coded(table.column(place)) for place, name in enumerate(known)}


def _lines(text: str) -> list[str]:
    """Give the physical lines, with their endings: LF, CRLF or CR."""
    return list(io.StringIO(text, newline=""))


def _reader(lines: Iterable[str], *, strict: bool) -> Any:
    """Make a reader that, as all values are, drops white space before a quote."""
    return csv.reader(lines, strict=strict, skipinitialspace=True)


def _is_misplaced(lines: list[str]) -> bool:
    """Tell whether one record has a quote inside a value; white space after a closing quote is no part of it."""
    try:
        list(_reader(_lines(_SPACE_AFTER_QUOTE.sub('"', "".join(lines))), strict=True))
    except csv.Error:
        return True
    return False


def _records_of(lines: list[str], *, strict: bool) -> list[tuple[int, int, list[str]]]:
    """Give (line before the first, last line, fields) of each record that is not blank."""
    reader = _reader(lines, strict=strict)
    before, found = 0, []
    for fields in reader:
        if len(fields) > 1 or "".join(lines[before : reader.line_num]).strip(WHITE_SPACE):
            found.append((before, reader.line_num, fields))
        before = reader.line_num
    return found


def read_any(source: str, content: bytes, layout: Layout) -> Records:
    """Read any UTF-8 CSV: quotes and line breaks inside values, lone carriage returns.

    Raises:
        BadFileError: a quote is never closed, or the header cannot be used.
    """
    lines = _lines(content.decode())
    misplaced: set[int] = set()
    try:
        found = _records_of(lines, strict=True)
    except csv.Error:
        found = _records_of(lines, strict=False)
        misplaced = {place for place, (a, b, _) in enumerate(found) if _is_misplaced(lines[a:b])}
        last = found[-1]
        # A quote that is never closed swallows the rest of the file; one more quote would close it.
        if len(found) - 1 in misplaced and _is_unclosed(lines[last[0] : last[1]]):
            raise bad_file(
                source, f"has a quote that is never closed (record from line {last[0] + 1})", "Close it"
            ) from None
    if not found:
        raise _no_header(source)
    names = header_names(source, found[0][2], layout)
    if 0 in misplaced:
        raise bad_file(source, "has a misplaced quote in its header", "Quote whole values, and double quotes in them")
    del found[0]
    fault = np.array(
        [
            RowFault.MISPLACED_QUOTE
            if place in misplaced
            else RowFault.NONE
            if len(fields) == len(names)
            else RowFault.FIELD_COUNT
            for place, (_, _, fields) in enumerate(found, start=1)
        ],
        np.int8,
    )
    is_good = (fault == RowFault.NONE).tolist()
    columns = list(zip(*(record[2] for record, good in zip(found, is_good, strict=True) if good), strict=True))
    good = {
        name: coded(pa.array(columns[names.index(name)], pa.string()))
        for name in layout.names
        if name in names and columns
    }
    faulty = [record[2] for record, is_fine in zip(found, is_good, strict=True) if not is_fine]

    def raw(positions: np.ndarray) -> list[str]:
        spans = [found[position] for position in positions.tolist()]
        return ["".join(lines[before:last]).rstrip("\r\n") for before, last, _ in spans]

    return single_source(
        source,
        _assemble(layout, names, good, fault, faulty),
        np.array([before + 1 for before, _, _ in found], np.int64),
        raw=raw,
        fault=fault,
        unknown=unknown_names(names, layout),
    )


def _is_unclosed(lines: list[str]) -> bool:
    """Tell whether a record ends inside quotes: there, and only there, a following line would belong to it."""
    reader = _reader([*lines, "x\n"], strict=False)
    next(reader)
    return int(reader.line_num) > len(lines)
