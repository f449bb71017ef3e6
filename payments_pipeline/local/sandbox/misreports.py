"""What reports say that is not so: a report as faults make it, while the books stay right.

Belongs here: keeping those faults, and what each makes of lines and balances. Does not belong here: reports that are
right (`reports`), which faults there are (`faults`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

from payments_pipeline.local.sandbox import reports
from payments_pipeline.local.sandbox.answers import Answer
from payments_pipeline.local.sandbox.faults import Fault

#: A kind that no client knows.
STRANGE_KIND = "adjustment"
#: More than a report has.
_WHOLE = 2**40
Json = dict[str, Any]


class _Misreport(NamedTuple):
    """One such fault, as kept.

    Attributes:
        kind: of `faults.OF_REPORTS`.
        report_date: date of the report that is wrong.
        entry_reference: its line, where it is about one.
        minor: by how much an amount or a balance is wrong, where one is.
    """

    kind: str
    report_date: str
    entry_reference: str | None
    minor: int | None


def keep(db: sqlite3.Connection, fault: Fault) -> Answer:
    """Keep a fault until they are cleared; for use within a transaction."""
    day = fault.date
    if fault.entry_reference is not None:
        found = db.execute("SELECT report_date FROM entries WHERE entry_reference = ?", (fault.entry_reference,))
        row = found.fetchone()
        if row is None:
            return Answer.error("no_such_entry")
        day = row[0]
    values = (fault.kind, day, fault.entry_reference, fault.minor)
    db.execute("INSERT INTO misreports (kind, report_date, entry_reference, minor) VALUES (?, ?, ?, ?)", values)
    return Answer.of(200, {})


def kept(db: sqlite3.Connection) -> list[dict[str, object]]:
    """Give the faults that are kept, as they were asked for."""
    return [
        Fault(
            kind=wrong.kind,
            entry_reference=wrong.entry_reference,
            date=None if wrong.entry_reference else wrong.report_date,
            minor=wrong.minor,
        ).model_dump(mode="json")
        for wrong in _up_to(db, date.max)
    ]


def clear(db: sqlite3.Connection) -> Answer:
    """Let reports be right again; for use within a transaction."""
    db.execute("DELETE FROM misreports")
    return Answer.of(200, {})


def list_reports(
    db: sqlite3.Connection, first: date, last: date, today: date, page_dates: int = reports.PAGE_ENTRIES
) -> dict[str, Any]:
    """List reports as `reports.list_reports` does, each as faults make it."""
    days = {wrong.report_date for wrong in _up_to(db, min(last, today))}
    if not days:
        return reports.list_reports(db, first, last, today, page_dates)
    rows: Json = reports.list_reports(db, first, last, today, _WHOLE)
    listed: list[Json] = []
    for row in rows["reports"]:
        told = report(db, date.fromisoformat(row["date"]), today, page_entries=_WHOLE) if row["date"] in days else row
        listed += [{name: told[name] for name in row}] if told["entry_count"] else []
    shown = listed[:page_dates]
    return {"reports": shown, "next": shown[-1]["date"] if len(listed) > page_dates else None}


def report(
    db: sqlite3.Connection, day: date, today: date, after: str = "", page_entries: int = reports.PAGE_ENTRIES
) -> dict[str, Any]:
    """Give a page of a report as `reports.report` does, as faults make it: those of its date, and of dates before."""
    wrong = _up_to(db, min(day, today))
    if not wrong:
        return reports.report(db, day, today, after, page_entries)
    told: Json = reports.report(db, day, today, page_entries=_WHOLE)
    balances = {row["currency"]: row for row in told["balances"]}
    for each in sorted({one.report_date for one in wrong}):
        right: Json = reports.report(db, date.fromisoformat(each), today, page_entries=_WHOLE)
        cash = _cash(_as_told(right["entries"], wrong))
        cash.subtract(_cash(right["entries"]))
        for currency, minor in cash.items():
            balances[currency]["opening_minor"] += minor if each < told["date"] else 0
            balances[currency]["closing_minor"] += minor
    for one in wrong:
        if one.kind == "misbalances" and one.report_date == told["date"]:
            for row in balances.values():
                row["closing_minor"] += one.minor
    lines = _as_told(told["entries"], wrong)
    totals = _cash(lines, "batch_reference")
    told["batches"] = [row | {"total_minor": totals[row["batch_reference"]]} for row in told["batches"]]
    return {**told, **_page(lines, after, page_entries)}


def _up_to(db: sqlite3.Connection, day: date) -> list[_Misreport]:
    rows = db.execute(
        "SELECT kind, report_date, entry_reference, minor FROM misreports WHERE report_date <= ? ORDER BY serial",
        (day.isoformat(),),
    )
    return [_Misreport(*row) for row in rows]


def _as_told(lines: Iterable[Json], wrong: Iterable[_Misreport]) -> list[Json]:
    for one in wrong:
        lines = [told for line in lines for told in _line_as_told(line, one)]
    return list(lines)


def _line_as_told(line: Json, wrong: _Misreport) -> list[Json]:
    if line["entry_reference"] != wrong.entry_reference:
        return [line]
    if wrong.kind == "withholds":
        return []
    if wrong.kind == "mislabels":
        return [line | {"kind": STRANGE_KIND}]
    other = line | {"amount_minor": line["amount_minor"] + wrong.minor}
    return [line, other] if wrong.kind == "contradicts" else [other]


def _cash(lines: Iterable[Json], by: str = "currency") -> Counter[str]:
    """Add up what lines move; of one reference the first counts."""
    cash: Counter[str] = Counter()
    for line in {line["entry_reference"]: line for line in reversed(list(lines))}.values():
        cash[line[by]] += line["amount_minor"]
    return cash


def _page(lines: list[Json], after: str, page_entries: int) -> Mapping[str, object]:
    values = [tuple(line[name] for name in reports.Entry._fields) for line in lines]
    references = sorted({line["entry_reference"] for line in lines if line["entry_reference"] > after})
    shown = set(references[:page_entries])
    return {
        "entry_count": len(lines),
        "digest": reports.digest_of(values),
        "entries": [line for line in lines if line["entry_reference"] in shown],
        "next": max(shown) if len(references) > page_entries else None,
    }
