"""What is done once under an idempotency key: accepting payments, booking wires and other lines; what became of a key.

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
from payments_pipeline.local.sandbox.requests import Payment, RefusedError, read_funding, read_own_line, read_payment
from payments_pipeline.local.sandbox.tokens import Kind, PlannedLine

#: How long an idempotency key lives, unless the sandbox is started with another lifetime.
KEY_LIFETIME = timedelta(hours=24)
_PAYMENTS, _FUNDINGS, _LINES = "payments", "fundings", "entries"


@dataclass(frozen=True)
class _Kept:
    """What is kept under a key, dead or alive.

    Attributes:
        body_sha256: digest of the body that it came with.
        answer: what was answered.
        payment_id: what was accepted, if anything was.
        first_seen_us: when, in microseconds since 1970.
        uses: how many payments it has stood for: one each time that it was used after it had died, and one more where
            it was carried out twice.
        dies_on: the processor's date on which it dies, where it was told one.
    """

    body_sha256: str
    answer: Answer
    payment_id: str | None
    first_seen_us: int
    uses: int
    dies_on: str | None


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

    def pay_twice(self, db: sqlite3.Connection, key: str, body: bytes) -> Answer:
        """Accept as `pay` does, and once more under an id of its own; for use within a transaction.

        A key stands for two payments at most: once more changes nothing.
        """
        answer = self.pay(db, key, body)
        kept = self._kept(db, _PAYMENTS, key)
        if kept is not None and kept.answer == answer and len(_payment_ids(key, kept)) == 1:
            self._accept(db, key, kept.uses + 1, read_payment(body))
            db.execute("UPDATE answers SET uses = uses + 1 WHERE route = ? AND idempotency_key = ?", (_PAYMENTS, key))
        return answer

    def fund(self, db: sqlite3.Connection, key: str, body: bytes) -> Answer:
        """Book a wire received, once per key; for use within a transaction."""
        return self._once(db, _FUNDINGS, key, body, lambda uses: self._book(db, key, uses, body))

    def write_line(self, db: sqlite3.Connection, key: str, body: bytes) -> Answer:
        """Book a line of the processor's own, once per key; for use within a transaction."""
        return self._once(db, _LINES, key, body, lambda uses: self._write(db, key, uses, body))

    def look_up(self, db: sqlite3.Connection, key: str) -> Answer:
        """Say what became of a payment's key, while it lives, and of which body."""
        kept = self._kept(db, _PAYMENTS, key)
        if kept is None or not self._is_alive(db, kept):
            return Answer.error("never_seen")
        ids = _payment_ids(key, kept)
        if not ids:
            refusal = orjson.loads(kept.answer.body)
            return Answer.of(200, {"status": "rejected", "body_sha256": kept.body_sha256, **refusal})
        found = {"id": ids[0]} if len(ids) == 1 else {"ids": ids}
        return Answer.of(200, {"status": "accepted", **found, "body_sha256": kept.body_sha256})

    def expire(self, db: sqlite3.Connection, key: str, after_s: float = 0, on: date | None = None) -> Answer:
        """Let a payment's key die as its lifetime would; for use within a transaction.

        Args:
            db: connection.
            key: which.
            after_s: seconds from now, by the machine's time.
            on: the processor's date on which it dies, instead; its lifetime may end before.
        """
        kept = self._kept(db, _PAYMENTS, key)
        if kept is None or not self._is_alive(db, kept):
            return Answer.error("never_seen")
        if on is not None:
            db.execute("INSERT OR REPLACE INTO key_ends VALUES (?, ?, ?)", (_PAYMENTS, key, on.isoformat()))
        else:
            seen_us = self._now_us() - self._lifetime_us + int(after_s * 1_000_000)
            db.execute(
                "UPDATE answers SET first_seen_us = ? WHERE route = ? AND idempotency_key = ?",
                (seen_us, _PAYMENTS, key),
            )
        return Answer.of(200, {"expires": key})

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
        if kept is not None and self._is_alive(db, kept):
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
        if kept is not None:
            db.execute("DELETE FROM key_ends WHERE route = ? AND idempotency_key = ?", (route, key))
        return answer

    def _kept(self, db: sqlite3.Connection, route: str, key: str) -> _Kept | None:
        row = db.execute(
            "SELECT body_sha256, status, body, payment_id, first_seen_us, uses, dies_on "
            "FROM answers LEFT JOIN key_ends USING (route, idempotency_key) WHERE route = ? AND idempotency_key = ?",
            (route, key),
        ).fetchone()
        return None if row is None else _Kept(row[0], Answer(row[1], row[2]), *row[3:])

    def _is_alive(self, db: sqlite3.Connection, kept: _Kept) -> bool:
        if self._now_us() - kept.first_seen_us >= self._lifetime_us:
            return False
        return kept.dies_on is None or self.clock.today(db).isoformat() < kept.dies_on

    @property
    def _lifetime_us(self) -> int:
        return self.key_lifetime // timedelta(microseconds=1)

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

    def _write(self, db: sqlite3.Connection, key: str, uses: int, body: bytes) -> tuple[Answer, None]:
        line = read_own_line(body)
        reference = f"line_{_suffix(key, uses)}"
        write_entry(
            db,
            Entry(
                entry_reference=reference,
                report_date=line.date,
                kind=line.kind,
                idempotency_key=line.idempotency_key,
                payment_id=None,
                amount_minor=line.amount_minor,
                currency=line.currency,
                subject=line.subject,
                reason=line.reason,
                occurred_at=_start_of(date.fromisoformat(line.date)),
            ),
        )
        return Answer.of(201, {"entry_reference": reference}), None


def _payment_ids(key: str, kept: _Kept) -> list[str]:
    """Give the payments that a key stands for: none, one, or the two of one that was carried out twice."""
    if kept.payment_id is None:
        return []
    newest = f"pay_{_suffix(key, kept.uses)}"
    return [kept.payment_id] if newest == kept.payment_id else [kept.payment_id, newest]


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
        currency=line.currency or payment.currency,
        subject=None,
        reason=line.reason,
        occurred_at=_start_of(day),
    )


def _start_of(day: date) -> str:
    """Give the instant at which a date comes, in UTC: that is when its lines happen."""
    return f"{day.isoformat()}T00:00:00Z"
