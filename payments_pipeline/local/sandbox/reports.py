"""Entries by date: writing them, the processor's date, reports, balances, and the statement of what was carried out.

Belongs here: what a report says. Does not belong here: why an entry is there (`payments`), HTTP.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import NamedTuple

import orjson

from payments_pipeline.local.sandbox.tokens import Kind

#: Digest of a report without entries.
NO_ENTRIES = "0" * 64
#: Entries on one page of a report, at most, unless the sandbox is started with another number.
PAGE_ENTRIES = 10_000


class Entry(NamedTuple):
    """One report line, as reported.

    Attributes:
        entry_reference: its own for ever.
        report_date: date of the report that it stands in.
        kind: of `tokens.Kind`.
        idempotency_key: key of its payment, where it is about one.
        payment_id: its payment.
        amount_minor: effect on our balance, > 0 in, < 0 out.
        currency: ISO 4217.
        subject: what a line without payment is about.
        reason: why it failed or was returned.
        occurred_at: ISO 8601, UTC.
    """

    entry_reference: str
    report_date: str
    kind: Kind
    idempotency_key: str | None
    payment_id: str | None
    amount_minor: int
    currency: str
    subject: str | None
    reason: str | None
    occurred_at: str


_COLUMNS = Entry._fields
_SELECT_ENTRIES = (
    f"SELECT {', '.join(_COLUMNS)}, copies FROM entries "  # noqa: S608 - the names of a class
    "WHERE report_date = ? AND entry_reference > ? ORDER BY entry_reference LIMIT ?"
)
_INSERT_ENTRY = f"INSERT INTO entries VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"  # noqa: S608 - question marks


def write_entry(db: sqlite3.Connection, entry: Entry, copies: int = 1) -> None:
    """Write an entry and carry it to its date's cash and digest; for use within a transaction.

    Args:
        db: connection.
        entry: the line.
        copies: how often the report lists it; its cash counts once.
    """
    db.execute(_INSERT_ENTRY, (*entry, copies))
    db.execute(
        "INSERT INTO daily_cash VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET amount_minor = amount_minor + excluded.amount_minor",
        (entry.report_date, entry.kind, entry.currency, entry.amount_minor),
    )
    db.execute(
        "INSERT INTO daily_digests VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
        "entry_count = entry_count + excluded.entry_count, digest = add_digests(digest, excluded.digest)",
        (entry.report_date, copies, digest_of([tuple(entry)] * copies)),
    )


def digest_of(entries: Iterable[tuple[object, ...]]) -> str:
    """Give the digest of entries as listed: the sum, modulo 2**256, of the SHA-256 of each one's values."""
    hashes = (hashlib.sha256(orjson.dumps(entry)).digest() for entry in entries)
    return f"{sum(int.from_bytes(each) for each in hashes) % 2**256:064x}"


class Clock:
    """The processor's date and time: the machine's in UTC, unless a test has set the date."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.now = now

    def today(self, db: sqlite3.Connection) -> date:
        """Give the processor's date."""
        row = db.execute("SELECT today FROM clock").fetchone()
        return date.fromisoformat(row[0]) if row else self.now().astimezone(UTC).date()

    def set_today(self, db: sqlite3.Connection, day: date | None) -> None:
        """Set the date, or with None let it follow the machine's again; for use within a transaction."""
        db.execute("DELETE FROM clock")
        if day is not None:
            db.execute("INSERT INTO clock VALUES (?)", (day.isoformat(),))


def list_reports(
    db: sqlite3.Connection, first: date, last: date, today: date, page_dates: int = PAGE_ENTRIES
) -> dict[str, object]:
    """List the reports of a range of dates, those without entries left out, a page at a time.

    Returns:
        `reports`: per date `date`, `entry_count` (as listed, so a line listed twice counts twice) and `digest`, which
        depends on the entries alone, neither on their order nor on balances. `next`: the last date of the page, null on
        the last page.
    """
    rows = db.execute(
        "SELECT report_date, entry_count, digest FROM daily_digests WHERE report_date BETWEEN ? AND ? ORDER BY 1 "
        "LIMIT ?",
        (first.isoformat(), min(last, today).isoformat(), page_dates + 1),
    ).fetchall()
    shown = rows[:page_dates]
    return {
        "reports": [dict(zip(("date", "entry_count", "digest"), row, strict=True)) for row in shown],
        "next": shown[-1][0] if len(rows) > page_dates else None,
    }


def report(
    db: sqlite3.Connection, day: date, today: date, after: str = "", page_entries: int = PAGE_ENTRIES
) -> dict[str, object]:
    """Give one page of one date's report.

    Args:
        db: connection.
        day: date of the report.
        today: the processor's date.
        after: `next` of the page before; empty for the first.
        page_entries: entries of a page, at most; a line listed twice stands twice on one page and counts once.

    Returns:
        Of the whole report, on each page: `date`, `entry_count`, `digest` as listed, and `balances`: per currency with
        an entry up to the date, `opening_minor` (all entries dated before) and `closing_minor` (and those of the date);
        `batches`: `batch_reference`, `currency` and `total_minor` of the lines of each kind and currency, a line listed
        twice once. Of the page: `entries`, each with its `batch_reference`, and `next`, null on the last.
    """
    text = day.isoformat()
    head, rows = None, []
    if day <= today:
        head = db.execute("SELECT entry_count, digest FROM daily_digests WHERE report_date = ?", (text,)).fetchone()
        rows = db.execute(_SELECT_ENTRIES, (text, after, page_entries + 1)).fetchall()
    count, digest = head or (0, NO_ENTRIES)
    shown = rows[:page_entries]
    return {
        "date": text,
        "entry_count": count,
        "digest": digest,
        "entries": [entry for *values, copies in shown for entry in [_told(Entry(*values))] * copies],
        "batches": _batches(db, text) if day <= today else [],
        "balances": _balances(db, text, min(day, today).isoformat()),
        "next": shown[-1][0] if len(rows) > page_entries else None,
    }


def _told(entry: Entry) -> dict[str, object]:
    return {**entry._asdict(), "batch_reference": _batch(entry.report_date, entry.kind, entry.currency)}


def _batch(report_date: str, kind: str, currency: str) -> str:
    return f"batch_{report_date}_{kind}_{currency}"


def _batches(db: sqlite3.Connection, day: str) -> list[dict[str, object]]:
    rows = db.execute("SELECT kind, currency, amount_minor FROM daily_cash WHERE report_date = ? ORDER BY 1, 2", (day,))
    return [
        {"batch_reference": _batch(day, kind, currency), "currency": currency, "total_minor": total_minor}
        for kind, currency, total_minor in rows
    ]


def _balances(db: sqlite3.Connection, before: str, up_to: str) -> list[dict[str, object]]:
    rows = db.execute(
        "SELECT currency, coalesce(sum(amount_minor) FILTER (WHERE report_date < ?), 0), sum(amount_minor) "
        "FROM daily_cash WHERE report_date <= ? GROUP BY currency ORDER BY currency",
        (before, up_to),
    )
    return [dict(zip(("currency", "opening_minor", "closing_minor"), row, strict=True)) for row in rows]


_SELECT_PAYMENTS = """
SELECT p.payment_id, p.idempotency_key, p.reference, p.direction, p.amount_minor, p.currency, p.execute_on,
    p.accepted_at, count(*) FILTER (WHERE e.kind = 'settled'),
    coalesce(sum(e.amount_minor) FILTER (WHERE e.currency = p.currency), 0),
    CASE WHEN p.execute_on > :today THEN 'scheduled' ELSE coalesce(
        (SELECT kind FROM entries l WHERE l.payment_id = p.payment_id AND l.report_date <= :today AND l.kind != 'fee'
         ORDER BY l.report_date DESC, l.entry_reference DESC LIMIT 1), 'executing') END
FROM payments p LEFT JOIN entries e ON e.payment_id = p.payment_id AND e.report_date <= :today
"""
_PAYMENT_COLUMNS = (
    "id",
    "idempotency_key",
    "reference",
    "direction",
    "amount_minor",
    "currency",
    "execute_on",
    "accepted_at",
    "times_settled",
    "cash_minor",
    "status",
)


def payment(db: sqlite3.Connection, payment_id: str, today: date) -> dict[str, object] | None:
    """Give one payment as `statement` does; None where there is none."""
    row = db.execute(
        f"{_SELECT_PAYMENTS} WHERE p.payment_id = :payment_id GROUP BY p.serial",
        {"today": today.isoformat(), "payment_id": payment_id},
    ).fetchone()
    return dict(zip(_PAYMENT_COLUMNS, row, strict=True)) if row else None


def statement(db: sqlite3.Connection, today: date) -> dict[str, object]:
    """Give the processor's own statement of what it carried out.

    Returns:
        `payments`: each that was executed (its date has come), in the order of acceptance, with `times_settled`,
        `cash_minor` (all that it moved in its currency, fees too) and `status` (its last line's kind; `executing`
        before its first). `scheduled`: those to come. `balances`: per currency, of today.
    """
    rows = db.execute(f"{_SELECT_PAYMENTS} GROUP BY p.serial ORDER BY p.serial", {"today": today.isoformat()})
    payments = [dict(zip(_PAYMENT_COLUMNS, row, strict=True)) for row in rows]
    return {
        "payments": [row for row in payments if row["status"] != "scheduled"],
        "scheduled": [row for row in payments if row["status"] == "scheduled"],
        "balances": _balances(db, today.isoformat(), today.isoformat()),
    }
