"""What is done once under an idempotency key: accepting payments and booking wires; asking what became of a key.

Belongs here: keys, acceptance, the entries that follow from it. Does not belong here: HTTP, checking fields
(`requests`), reading entries (`reports`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, timedelta

import orjson

from payments_pipeline.local.sandbox.answers import Answer
from payments_pipeline.local.sandbox.reports import Clock, Entry, write_entry
from payments_pipeline.local.sandbox.requests import Payment, RefusedError, read_funding, read_payment
from payments_pipeline.local.sandbox.tokens import Kind, PlannedLine

#: How long an idempotency key lives, unless the sandbox is started with another lifetime.
KEY_LIFETIME = timedelta(hours=24)
_PAYMENTS, _FUNDINGS = "payments", "fundings"


@dataclass(frozen=True)
class _Kept:
    """What is kept under a key, dead or alive.

    Attributes:
        body_sha256: digest of the body that it came with.
        answer: what was answered.
        payment_id: what was accepted, if anything was.
        first_seen_us: when, in microseconds since 1970.
        uses: how often it has been used, each time after it had died.
    """

    body_sha256: str
    answer: Answer
    payment_id: str | None
    first_seen_us: int
    uses: int


@dataclass(frozen=True)
class Desk:
    """Where requests under a key are dealt with.

    Attributes:
        key_lifetime: after it a key is new again, and a payment sent once more under it is a second payment.
        clock: date and time.
    """

    key_lifetime: timedelta
    clock: Clock

    def pay(self, db: sqlite3.Connection, key: str, body: bytes) -> Answer:
        """Accept a payment once per key; for use within a transaction.

        The same key and bytes get the answer given first, a refusal too; other bytes are refused.
        """
        return self._once(db, _PAYMENTS, key, body, lambda uses: self._accept(db, key, uses, read_payment(body)))

    def fund(self, db: sqlite3.Connection, key: str, body: bytes) -> Answer:
        """Book a wire received, once per key; for use within a transaction."""
        return self._once(db, _FUNDINGS, key, body, lambda uses: self._book(db, key, uses, body))

    def look_up(self, db: sqlite3.Connection, key: str) -> Answer:
        """Say what became of a payment's key, while it lives, and of which body."""
        kept = self._kept(db, _PAYMENTS, key)
        if kept is None or not self._is_alive(kept):
            return Answer.error("never_seen")
        if kept.payment_id is None:
            refusal = orjson.loads(kept.answer.body)
            return Answer.of(200, {"status": "rejected", "body_sha256": kept.body_sha256, **refusal})
        return Answer.of(200, {"status": "accepted", "id": kept.payment_id, "body_sha256": kept.body_sha256})

    def expire(self, db: sqlite3.Connection, key: str) -> Answer:
        """Let a payment's key die now, as its lifetime would; for use within a transaction."""
        kept = self._kept(db, _PAYMENTS, key)
        if kept is None or not self._is_alive(kept):
            return Answer.error("never_seen")
        db.execute("UPDATE answers SET first_seen_us = 0 WHERE route = ? AND idempotency_key = ?", (_PAYMENTS, key))
        return Answer.of(200, {"expired": key})

    def _once(
        self,
        db: sqlite3.Connection,
        route: str,
        key: str,
        body: bytes,
        work: Callable[[int], tuple[Answer, str | None]],
    ) -> Answer:
        body_sha256 = hashlib.sha256(body).hexdigest()
        kept = self._kept(db, route, key)
        if kept is not None and self._is_alive(kept):
            return kept.answer if kept.body_sha256 == body_sha256 else Answer.error("idempotency_key_reuse")
        uses = 1 if kept is None else kept.uses + 1
        try:
            answer, payment_id = work(uses)
        except RefusedError as refusal:
            answer, payment_id = Answer.error(refusal.code, message=refusal.message), None
        db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (route, key, body_sha256, answer.status, answer.body, payment_id, self._now_us(), uses),
        )
        return answer

    def _kept(self, db: sqlite3.Connection, route: str, key: str) -> _Kept | None:
        row = db.execute(
            "SELECT body_sha256, status, body, payment_id, first_seen_us, uses FROM answers "
            "WHERE route = ? AND idempotency_key = ?",
            (route, key),
        ).fetchone()
        return None if row is None else _Kept(row[0], Answer(row[1], row[2]), *row[3:])

    def _is_alive(self, kept: _Kept) -> bool:
        return self._now_us() - kept.first_seen_us < self.key_lifetime // timedelta(microseconds=1)

    def _now_us(self) -> int:
        return int(self.clock.now().timestamp() * 1_000_000)

    def _accept(self, db: sqlite3.Connection, key: str, uses: int, payment: Payment) -> tuple[Answer, str]:
        suffix = _suffix(key, uses)
        payment_id = f"pay_{suffix}"
        db.execute(
            "INSERT INTO payments (payment_id, idempotency_key, direction, amount_minor, currency, token, execute_on, "
            "reference, accepted_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                payment_id,
                key,
                payment.direction,
                payment.amount_minor,
                payment.currency,
                payment.token,
                payment.execute_on.isoformat(),
                payment.reference,
                self.clock.now().astimezone(UTC).isoformat(timespec="microseconds"),
            ),
        )
        for number, line in enumerate(payment.outcome.lines, start=1):
            write_entry(db, _entry(f"ent_{suffix}_{number}", payment_id, key, payment, line), line.copies)
        content = {
            "id": payment_id,
            "status": "accepted",
            "execute_on": payment.execute_on.isoformat(),
            "idempotency_key": key,
        }
        return Answer.of(201, content), payment_id

    def _book(self, db: sqlite3.Connection, key: str, uses: int, body: bytes) -> tuple[Answer, None]:
        funding = read_funding(body)
        reference = f"wire_{_suffix(key, uses)}"
        write_entry(
            db,
            Entry(
                entry_reference=reference,
                report_date=funding.received_on.isoformat(),
                kind=Kind.FUNDING,
                idempotency_key=None,
                payment_id=None,
                amount_minor=funding.amount_minor,
                currency=funding.currency,
                subject=funding.subject,
                reason=None,
                occurred_at=_start_of(funding.received_on),
            ),
        )
        return Answer.of(201, {"entry_reference": reference}), None


def _suffix(key: str, uses: int) -> str:
    """Name what a key brings about, by the key alone: the same requests have the same references in any order."""
    return hashlib.sha256(f"{uses} {key}".encode()).hexdigest()[:24]


def _entry(reference: str, payment_id: str, key: str, payment: Payment, line: PlannedLine) -> Entry:
    day = payment.execute_on + timedelta(days=line.after_days)
    return Entry(
        entry_reference=reference,
        report_date=day.isoformat(),
        kind=line.kind,
        idempotency_key=key,
        payment_id=payment_id,
        amount_minor=line.cash_minor(payment.direction, payment.amount_minor),
        currency=payment.currency,
        subject=None,
        reason=line.reason,
        occurred_at=_start_of(day),
    )


def _start_of(day: date) -> str:
    """Give the instant at which a date comes, in UTC: that is when its lines happen."""
    return f"{day.isoformat()}T00:00:00Z"
