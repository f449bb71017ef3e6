"""Rows of the small, effective-dated reference tables, and what is wrong with them.

Belongs here: what competitions and fee schedules have in common: a row by column name, its interval, its problem.
Does not belong here: the tables' own rules; tables of many rows (parties) are not read row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np

from payments_pipeline.domain.records import Layout, Records, RowFault
from payments_pipeline.domain.values import WRONG_TYPE, calendar_date

#: Words and cure for a row that could not be taken apart.
SHAPE_FAULTS = {
    RowFault.BROKEN_JSON_LINE: "is not one JSON object. Write each record as one JSON object on one line",
    RowFault.MISPLACED_QUOTE: "has a quote inside a value. Quote the whole value and double each quote in it",
    RowFault.FIELD_COUNT: "has another number of fields than the header. Quote values that hold commas",
}


@dataclass(frozen=True)
class ReferenceProblem:
    """A reference row that cannot be used.

    Attributes:
        source: the file.
        line_number: first line or row.
        key: what the row is about, as far as it can be read; empty where it cannot.
        words: what is wrong, and the cure.
    """

    source: str
    line_number: int
    key: str
    words: str

    def __str__(self) -> str:
        return f"{self.source} line {self.line_number} {self.words}."


@dataclass(frozen=True)
class Interval:
    """Days in force, both ends included; None is open."""

    first: date | None = None
    last: date | None = None

    def covers(self, day: date) -> bool:
        """Tell whether the day is in it."""
        return (self.first is None or self.first <= day) and (self.last is None or day <= self.last)

    def __str__(self) -> str:
        return f"{self.first or 'the beginning'} to {self.last or 'open'}"


NO_BOUND = Interval()


@dataclass(frozen=True)
class Row:
    """One row; text by column, None where empty."""

    values: dict[str, str | None]
    source: str
    line_number: int
    fault: RowFault
    key: str

    def __getitem__(self, name: str) -> str | None:
        return self.values[name]

    @property
    def shape_fault(self) -> str:
        """Words for a row that could not be taken apart."""
        return SHAPE_FAULTS[self.fault]

    def problem(self, words: str) -> ReferenceProblem:
        """Say what is wrong with this row; values of a wrong type are shown without their mark."""
        return ReferenceProblem(self.source, self.line_number, self.key, words.replace(WRONG_TYPE, ""))


def rows_of(records: Records, layout: Layout) -> list[Row]:
    """Give the rows of a small table; its key is made of the layout's salvaged fields."""
    everything = np.arange(len(records))
    columns = [records.columns[name].take(everything).to_pylist() for name in layout.names]
    keys = [layout.names.index(field.name) for field in layout.fields if field.salvaged]
    return [
        Row(
            dict(zip(layout.names, values, strict=True)),
            records.sources[source],
            line,
            RowFault(fault),
            " ".join(values[place] or "" for place in keys).replace(WRONG_TYPE, "").strip(),
        )
        for source, line, fault, *values in zip(
            records.source_no.tolist(), records.line_number.tolist(), records.fault.tolist(), *columns, strict=True
        )
    ]


def read_interval(row: Row) -> tuple[Interval, str | None]:
    """Read effective_from and effective_to; with words where that cannot be done.

    A date that cannot be read counts as open: the row may be in force on any day that its other date leaves.
    """
    first = calendar_date(row["effective_from"]) if row["effective_from"] else None
    last = calendar_date(row["effective_to"]) if row["effective_to"] else None
    for name, read in (("effective_from", first), ("effective_to", last)):
        if row[name] and read is None:
            return Interval(first, last), f"has the {name} {row[name]!r}. Write a date as YYYY-MM-DD"
    if first and last and last < first:
        return NO_BOUND, f"ends on {last}, before it begins on {first}. Correct effective_from or effective_to"
    return Interval(first, last), None
