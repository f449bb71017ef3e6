"""The sandbox's own books: payments, idempotency keys and report entries in SQLite, durable before they are answered.

Belongs here: what is stored, and what one request does to it. Does not belong here: HTTP, deliberate faults.

Outcomes follow from tokens, so every entry of a payment is known when it is accepted; an entry shows in the report of
its date once that date has come. Nothing happens in the background.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from iso4217 import Currency

from payments_pipeline.local.sandbox.tokens import outcome_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    payment_id TEXT PRIMARY KEY, idempotency_key TEXT NOT NULL, direction TEXT NOT NULL, amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL, token TEXT NOT NULL, execute_on TEXT NOT NULL, reference TEXT NOT NULL,
    accepted_at TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS payments_key ON payments (idempotency_key);
CREATE TABLE IF NOT EXISTS answers (
    idempotency_key TEXT PRIMARY KEY, body_sha256 TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
    payment_id TEXT, kept_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    entry_reference TEXT PRIMARY KEY, report_date TEXT NOT NULL, kind TEXT NOT NULL, idempotency_key TEXT,
    payment_id TEXT, amount_minor INTEGER NOT NULL, currency TEXT NOT NULL, subject TEXT, reason TEXT,
    occurred_at TEXT NOT NULL, copies INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS entries_date ON entries (report_date, currency);
CREATE TABLE IF NOT EXISTS clock (today TEXT NOT NULL) STRICT;
"""
_ENTRY_COLUMNS = (
    "entry_reference",
    "report_date",
    "kind",
    "idempotency_key",
    "payment_id",
    "amount_minor",
    "currency",
    "subject",
    "reason",
    "occurred_at",
)
_SQL_ENTRIES = f"SELECT {', '.join(_ENTRY_COLUMNS)}, copies FROM entries"  # noqa: S608 - the names stand above
#: No amount is above this, as everywhere in the pipeline.
_LARGEST = 10**15
_FIELDS = {
    "direction": str,
    "amount_minor": int,
    "currency": str,
    "token": str,
    "execute_on": str,
    "reference": str,
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: its code.
        body: JSON.
    """

    status: int
    body: bytes

    @classmethod
    def of(cls, status: int, content: object) -> Answer:
        """Encode an answer."""
        return cls(status, orjson.dumps(content))

    @classmethod
    def error(cls, status: int, code: str, message: str) -> Answer:
        """Encode an error as every error looks."""
        return cls.of(status, {"error": {"code": code, "message": message}})


class Books:
    """The books in one SQLite file; used from one thread at a time."""

    def __init__(self, path: Path, key_lifetime: timedelta, now: Callable[[], datetime]) -> None:
        self._lifetime_s = key_lifetime.total_seconds()
        self._now = now
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        # An answer is given only for what a power cut cannot take back.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def in_one_commit(self, works: Sequence[Callable[[], Answer]]) -> list[Answer]:
        """Do several requests' work in one durable commit; none of their answers leaves before it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            answers = [work() for work in works]
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return answers

    # Payments

    def pay(self, key: str, body: bytes) -> Answer:
        """Accept a payment once per key: the same key and body get the same answer, another body is refused."""
        return self._once(key, body, lambda: self._pay(key, body))

    def fund(self, key: str, body: bytes) -> Answer:
        """Book a wire received, once per key."""
        return self._once(key, body, lambda: self._fund(key, body))

    def _once(self, key: str, body: bytes, work: Callable[[], tuple[Answer, str | None]]) -> Answer:
        digest = hashlib.sha256(body).hexdigest()
        known = self._alive(key)
        if known is not None:
            if known["body_sha256"] != digest:
                return Answer.error(
                    409, "idempotency_key_reuse", "this key was used with another body; nothing was done with this one"
                )
            return Answer(known["status"], known["body"])
        answer, payment_id = work()
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
            (key, digest, answer.status, answer.body, payment_id, self._now().timestamp()),
        )
        return answer

    def _alive(self, key: str) -> dict[str, Any] | None:
        """Give what is kept under a key, unless it has expired: then the key is new again."""
        oldest = self._now().timestamp() - self._lifetime_s
        row = self._db.execute(
            "SELECT body_sha256, status, body, payment_id FROM answers WHERE idempotency_key = ? AND kept_at > ?",
            (key, oldest),
        ).fetchone()
        return None if row is None else dict(zip(("body_sha256", "status", "body", "payment_id"), row, strict=True))

    def _pay(self, key: str, body: bytes) -> tuple[Answer, str | None]:
        request, fault = _checked(body, _FIELDS)
        if request is None:
            return fault, None
        outcome = outcome_of(request["token"])
        day = _date(request["execute_on"])
        problems = [
            ("invalid_direction", request["direction"] not in ("credit", "debit")),
            ("invalid_amount", not 0 < request["amount_minor"] <= _LARGEST),
            ("invalid_currency", not _is_currency(request["currency"])),
            ("invalid_token", outcome is None),
            ("invalid_date", day is None),
            ("account_closed", outcome is not None and outcome.declined),
        ]
        code = next((code for code, wrong in problems if wrong), None)
        if code is not None or outcome is None or day is None:
            return Answer.error(402 if code == "account_closed" else 422, str(code), f"refused: {code}"), None
        serial = self._db.execute("SELECT count(*) FROM payments").fetchone()[0]
        payment_id = "pay_" + hashlib.sha256(f"{serial}:{key}".encode()).hexdigest()[:24]
        accepted_at = self._now().isoformat()
        self._db.execute(
            "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (payment_id, key, *(request[name] for name in _FIELDS), accepted_at),
        )
        sign = -1 if request["direction"] == "credit" else 1
        amount = request["amount_minor"]
        cash = max(amount - outcome.short_minor, 1)
        if outcome.failed:
            self._enter(payment_id, 1, day, "failed", key, 0, request["currency"], reason="account_closed")
        else:
            for number in range(1, outcome.settlements + 1):
                self._enter(
                    payment_id, number, day, "settled", key, sign * cash, request["currency"], copies=outcome.copies
                )
        if outcome.returned_after_days is not None:
            back = day + timedelta(days=outcome.returned_after_days)
            self._enter(
                payment_id, 2, back, "returned", key, -sign * cash, request["currency"], reason="no_such_account"
            )
        if outcome.fee_minor:
            self._enter(payment_id, 3, day, "fee", key, -outcome.fee_minor, request["currency"])
        return Answer.of(201, {"id": payment_id, "status": "accepted", "execute_on": request["execute_on"]}), payment_id

    def _fund(self, key: str, body: bytes) -> tuple[Answer, str | None]:
        request, fault = _checked(body, {"currency": str, "amount_minor": int, "subject": str, "date": str})
        if request is None:
            return fault, None
        day = _date(request["date"])
        if day is None or not _is_currency(request["currency"]) or not 0 < request["amount_minor"] <= _LARGEST:
            return Answer.error(422, "invalid_funding", "currency, amount_minor or date cannot be used"), None
        reference = "wire_" + hashlib.sha256(key.encode()).hexdigest()[:24]
        self._db.execute(
            "INSERT INTO entries VALUES (?, ?, 'funding', NULL, NULL, ?, ?, ?, NULL, ?, 1)",
            (
                reference,
                day.isoformat(),
                request["amount_minor"],
                request["currency"],
                request["subject"],
                _noon(day),
            ),
        )
        return Answer.of(201, {"entry_reference": reference}), None

    def _enter(
        self,
        payment_id: str,
        number: int,
        day: date,
        kind: str,
        key: str,
        amount_minor: int,
        currency: str,
        *,
        reason: str | None = None,
        copies: int = 1,
    ) -> None:
        self._db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
            (
                f"ent_{payment_id.removeprefix('pay_')}_{number}",
                day.isoformat(),
                kind,
                key,
                payment_id,
                amount_minor,
                currency,
                reason,
                _noon(day),
                copies,
            ),
        )

    def look_up(self, key: str) -> Answer:
        """Say what became of a key, while it is alive."""
        known = self._alive(key)
        if known is None:
            return Answer.error(404, "never_seen", "no request was seen under this key, or the key has expired")
        if known["payment_id"] is None:
            return Answer.of(200, {"status": "rejected", **orjson.loads(known["body"])})
        return Answer.of(200, {"status": "accepted", "id": known["payment_id"]})

    def payment(self, payment_id: str) -> Answer:
        """Give one payment."""
        row = self._db.execute("SELECT * FROM payments WHERE payment_id = ?", (payment_id,)).fetchone()
        if row is None:
            return Answer.error(404, "no_such_payment", f"there is no payment {payment_id}")
        return Answer.of(200, dict(zip(("id", "idempotency_key", *_FIELDS, "accepted_at"), row, strict=True)))

    def expire(self, key: str) -> Answer:
        """Let a key die now, as its lifetime would."""
        self._db.execute("UPDATE answers SET kept_at = 0 WHERE idempotency_key = ?", (key,))
        return Answer.of(200, {"expired": key})

    # Reports

    def today(self) -> date:
        """Give the processor's date: the wall clock's in UTC, unless it was set."""
        row = self._db.execute("SELECT today FROM clock").fetchone()
        return date.fromisoformat(row[0]) if row else self._now().astimezone(UTC).date()

    def set_today(self, day: date | None) -> Answer:
        """Set the processor's date, or let it follow the wall clock again."""
        self._db.execute("DELETE FROM clock")
        if day is not None:
            self._db.execute("INSERT INTO clock VALUES (?)", (day.isoformat(),))
        return Answer.of(200, {"today": self.today().isoformat()})

    def digests(self, first: date, last: date) -> Answer:
        """List the reports of a range: entry_count and a digest of the entries, whatever their order."""
        days: dict[str, tuple[int, int]] = {}
        for day, *rest in self._db.execute(
            f"SELECT report_date, {', '.join(_ENTRY_COLUMNS)} FROM entries WHERE report_date BETWEEN ? AND ?",  # noqa: S608 - names
            (first.isoformat(), min(last, self.today()).isoformat()),
        ):
            count, mixed = days.get(day, (0, 0))
            days[day] = (count + 1, mixed ^ _entry_hash(rest))
        return Answer.of(
            200,
            {
                "reports": [
                    {"date": day, "entry_count": count, "digest": f"{mixed:064x}"}
                    for day, (count, mixed) in sorted(days.items())
                ]
            },
        )

    def report(self, day: date) -> Answer:
        """Give one date's entries, and what our balance was before and after it, per currency with any history."""
        if day > self.today():
            return Answer.of(
                200, {"date": day.isoformat(), "entry_count": 0, "digest": f"{0:064x}", "entries": [], "balances": []}
            )
        rows = self._db.execute(
            _SQL_ENTRIES + " WHERE report_date = ? ORDER BY entry_reference", (day.isoformat(),)
        ).fetchall()
        mixed = 0
        entries = []
        for *entry, copies in rows:
            mixed ^= _entry_hash(entry)
            entries += [dict(zip(_ENTRY_COLUMNS, entry, strict=True))] * copies
        balances = self._db.execute(
            """SELECT currency, coalesce(sum(amount_minor) FILTER (WHERE report_date < ?), 0), sum(amount_minor)
               FROM entries WHERE report_date <= ? GROUP BY currency ORDER BY currency""",
            (day.isoformat(), day.isoformat()),
        ).fetchall()
        return Answer.of(
            200,
            {
                "date": day.isoformat(),
                "entry_count": len(rows),
                "digest": f"{mixed:064x}",
                "entries": entries,
                "balances": [
                    {"currency": currency, "opening_minor": opening, "closing_minor": closing}
                    for currency, opening, closing in balances
                ],
            },
        )

    def books(self) -> Answer:
        """Give the processor's own statement of every payment it accepted, and of the cash that each has moved."""
        rows = self._db.execute(
            """SELECT p.payment_id, p.idempotency_key, p.reference, p.direction, p.amount_minor, p.currency, p.execute_on,
                      coalesce(sum(e.amount_minor) FILTER (WHERE e.kind IN ('settled', 'returned')), 0)
               FROM payments p LEFT JOIN entries e ON e.payment_id = p.payment_id AND e.report_date <= ?
               GROUP BY p.payment_id ORDER BY p.rowid""",
            (self.today().isoformat(),),
        ).fetchall()
        names = (
            "id",
            "idempotency_key",
            "reference",
            "direction",
            "amount_minor",
            "currency",
            "execute_on",
            "cash_minor",
        )
        return Answer.of(200, {"payments": [dict(zip(names, row, strict=True)) for row in rows]})


def _entry_hash(entry: Sequence[object]) -> int:
    return int.from_bytes(hashlib.sha256(orjson.dumps(list(entry))).digest())


def _noon(day: date) -> str:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC).isoformat()


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _is_currency(code: str) -> bool:
    try:
        Currency(code)
    except ValueError:
        return False
    return True


def _checked(body: bytes, fields: dict[str, type]) -> tuple[dict[str, Any] | None, Answer]:
    """Read a request's fields, each there and of its type."""
    bad = Answer.error(400, "invalid_request", f"the body must be JSON with {', '.join(fields)}")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, bad
    if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in fields.items()):
        return None, bad
    return content, bad
