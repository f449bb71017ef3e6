"""Certificates beside the tables: each posting, and each acceptance of refunds, has its own, which says what was posted
and where the chain then ended.

Belongs here: what a certificate has to say, worked out a second time. Does not belong here: the chain itself
(`rules_audit`), the landing files, which may have been replaced since (`checker/` compares them).
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime
from typing import Any

import psycopg

from payments_pipeline.storage.objects import LocalStore, ObjectStore
from payments_pipeline.verify.found import Found
from payments_pipeline.verify.rules_audit import AUDITED

CERTIFICATES = "each posting has its certificate, and it says what was posted"
_FOLDER = "certificates/"
#: Day, and what the certificate is of: `posting` with its number in the day, or `refunds` with the commit's.
Subject = tuple[date, str, int]
_OF_SCHEDULE = ("competition_id", "version", "rules_hash", "matches")
_OF_TOTAL = ("kind", "pot", "currency", "entries", "debit_minor", "credit_minor")

_ENTRY = """table_name = 'day_postings' AND NOT by_migration
            AND row_keys[1] = '(' || to_char(p.match_day, 'YYYY-MM-DD') || ',' || p.seq || ')'"""
_POSTINGS = f"""
    SELECT p.match_day, p.seq, p.posted_at, p.run_id, p.code_version, p.input_hashes, p.matches, p.shares,
           (SELECT count(*) FROM posting_breaks b WHERE (b.match_day, b.seq) = (p.match_day, p.seq)),
           p.entries_posted > 0, e.by_migration IS NULL, head.day::text, head.seq, head.commit_no, head.hash
    FROM day_postings p
    LEFT JOIN LATERAL (SELECT * FROM audit_entries WHERE {_ENTRY} ORDER BY entry_id LIMIT 1) e ON true
    LEFT JOIN audit_chain own USING (entry_id)
    LEFT JOIN LATERAL (SELECT * FROM audit_chain c WHERE c.commit_no = own.commit_no ORDER BY c.day DESC, c.seq DESC LIMIT 1)
        head ON true
    ORDER BY p.match_day, p.seq
"""
_SCHEDULES = """
    SELECT match_day, 'posting', day_seq, competition_id::text, schedule_version, rules_hash, count(*)
    FROM match_postings GROUP BY 1, 2, 3, 4, 5, 6
"""
#: Refunds by the commit that accepted them.
_ACCEPTED = """
    refunds r JOIN (SELECT c.commit_no, e.transaction_id, key FROM audit_entries e JOIN audit_chain c USING (entry_id),
                    unnest(e.row_keys) AS key WHERE e.table_name = 'refunds' AND NOT e.by_migration) t ON t.key = r.refund_id
"""
_ACCEPTANCES = f"""
    SELECT r.accepted_day, t.commit_no, max(r.accepted_at), min(r.run_id), min(r.code_version), min(r.input_hash), count(*),
           encode(sha256(string_agg({{digest}}, '' ORDER BY r.refund_id COLLATE "C")), 'hex'),
           max(head.day::text), max(head.seq), t.commit_no, max(head.hash)
    FROM {_ACCEPTED} JOIN LATERAL (SELECT * FROM audit_chain c WHERE c.commit_no = t.commit_no ORDER BY c.day DESC, c.seq DESC LIMIT 1)
        head ON true GROUP BY 1, 2
"""
#: The journals that each one's transaction made: not what the trail says of them.
_JOURNALS = f"""
    SELECT p.match_day AS day, 'posting' AS of, p.seq::bigint AS number, j.journal_id, j.match_id, j.posting_no
    FROM day_postings p JOIN LATERAL (SELECT * FROM audit_entries WHERE {_ENTRY} ORDER BY entry_id LIMIT 1) a ON true
    JOIN journals j ON j.created_xid = a.transaction_id AND j.run_id = p.run_id
    UNION ALL
    SELECT r.accepted_day, 'refunds', t.commit_no, j.journal_id, j.match_id, j.posting_no
    FROM {_ACCEPTED} JOIN journals j ON j.refund_id = r.refund_id AND j.created_xid = t.transaction_id
"""
_REFUND_SCHEDULES = f"""
    SELECT j.day, j.of, j.number, m.competition_id::text, m.schedule_version, m.rules_hash, count(DISTINCT m.match_id)
    FROM ({_JOURNALS}) j JOIN match_postings m USING (match_id, posting_no) WHERE j.of = 'refunds' GROUP BY 1, 2, 3, 4, 5, 6
"""
_TOTALS = f"""
    SELECT j.day, j.of, j.number, l.kind, l.pot, l.currency::text, count(*), sum(l.debit_minor)::bigint, sum(l.credit_minor)::bigint
    FROM ({_JOURNALS}) j JOIN ledger_entries l USING (journal_id) GROUP BY 1, 2, 3, 4, 5, 6
"""


def _digest(table: str, alias: str) -> str:
    """Give the SQL of a row's digest."""
    columns = ", ".join(f"{alias}.{name}" for name in AUDITED[table][1].split(", "))
    return f"substr(sha256(convert_to(rtrim(ROW({columns})::text, ',)'), 'UTF8')), 1, 16)"


_DIGESTS = f"""
    SELECT j.day, j.of, j.number, encode(sha256(string_agg({_digest("ledger_entries", "l")}, '' ORDER BY l.entry_id)), 'hex')
    FROM ({_JOURNALS}) j JOIN ledger_entries l USING (journal_id) GROUP BY 1, 2, 3
"""


def certificate_keys(store: ObjectStore) -> list[str]:
    """Give the stored certificates; none in a folder that nothing was ever written to."""
    if isinstance(store, LocalStore) and not store.root.is_dir():
        return []
    return [found.key for found in store.list(_FOLDER)]


def certificates_say_what_was_posted(connection: psycopg.Connection, store: ObjectStore, keys: list[str]) -> Found:
    """What changed anything has one certificate each, of its own content, whose head the chain still has.

    Args:
        connection: in a transaction that sees one moment.
        store: where the certificates are.
        keys: those that were there before that moment: each is of what can be seen.
    """
    connection.execute("SELECT set_config('datestyle', 'ISO', true)")
    expected, left_out = _expected(connection)
    found = Found(
        left_out=[f"{left_out} postings from before there was an audit trail: they have no certificate"]
        * bool(left_out)
    )
    seen: set[Subject] = set()
    for key in keys:
        found.checked += 1
        data = store.read(key)
        said = _parsed(key, data)
        if said is None:
            found.breaches.append(f"{key} is not as it was written: its name or its content was changed; restore it")
            continue
        subject = _subject(said)
        if not _is_in_chain(connection, said["chain"]):
            found.breaches.append(
                f"{key}: the chain has no link {said['chain']['seq']} of {said['chain']['day']} with hash "
                f"{said['chain']['hash'][:16]}…: its end was cut off, or it was written anew; restore a backup"
            )
        if subject not in expected:
            found.breaches.append(f"{key}: {_words(subject)} is not there, or changed nothing; restore a backup")
        elif subject in seen:
            found.breaches.append(f"{key}: {_words(subject)} has another certificate; one is forged")
        else:
            due = expected[subject]
            found.breaches += [
                f"{key}: {name} is {json.dumps(said.get(name))}, and stored is {json.dumps(due.get(name))}; "
                "what is stored was changed, or the certificate forged"
                for name in sorted(due | said)
                if due.get(name) != said.get(name)
            ]
        seen.add(subject)
    found.breaches += _missing(store, expected.keys() - seen)
    return found


def _missing(store: ObjectStore, subjects: set[Subject]) -> list[str]:
    """Say which have none even now: one may have been on its way."""
    now = certificate_keys(store) if subjects else []
    return [
        f"{_words(subject)} has no certificate: {_CURES[subject[1]]}, which writes it"
        for subject in sorted(subjects)
        if not any(key.startswith(f"{_name(subject)}-") for key in now)
    ]


_CURES = {"posting": "run the day", "refunds": "run the day, or give the refund command again"}


def _words(subject: Subject) -> str:
    day, of, number = subject
    return (
        f"posting {number} of {day}"
        if of == "posting"
        else f"what of refunds was accepted for {day} in commit {number}"
    )


def _name(subject: Subject) -> str:
    day, of, number = subject
    return f"{_FOLDER}date={day}/" + (f"{number:04d}" if of == "posting" else f"refunds-{number:06d}")


def _subject(said: dict[str, Any]) -> Subject:
    of, number = ("posting", said["posting"]) if "posting" in said else ("refunds", said["chain"]["commit_no"])
    if type(number) is not int:
        raise TypeError(number)
    return date.fromisoformat(said["day"]), of, number


def _parsed(key: str, data: bytes) -> dict[str, Any] | None:
    """Read a certificate; None where its name does not follow from its content."""
    try:
        said: dict[str, Any] = json.loads(data)
        name = f"{_name(_subject(said))}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        whole = {"day", "seq", "hash"} <= said["chain"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return said if name == key and whole else None


def _is_in_chain(connection: psycopg.Connection, head: dict[str, Any]) -> bool:
    row = connection.execute(
        "SELECT FROM audit_chain WHERE day::text = %s AND seq::text = %s AND hash = %s",
        tuple(str(head[name]) for name in ("day", "seq", "hash")),
    ).fetchone()
    return row is not None


def _expected(connection: psycopg.Connection) -> tuple[dict[Subject, dict[str, Any]], int]:
    """Give what each certificate that is due has to say, and how many postings are older than the audit trail."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query.encode()).fetchall()

    schedules: dict[Subject, list[dict[str, Any]]] = {}
    for day, of, number, *what in sorted(rows(_SCHEDULES) + rows(_REFUND_SCHEDULES)):
        schedules.setdefault((day, of, number), []).append(dict(zip(_OF_SCHEDULE, what, strict=True)))
    totals: dict[Subject, list[dict[str, Any]]] = {}
    for day, of, number, *what in sorted(rows(_TOTALS)):
        totals.setdefault((day, of, number), []).append(dict(zip(_OF_TOTAL, what, strict=True)))
    digests = {(day, of, number): digest for day, of, number, digest in rows(_DIGESTS)}

    def of_commit(subject: Subject, head: list[Any]) -> dict[str, Any]:
        of_lines = totals.get(subject, [])
        return {
            "version": 1,
            "day": str(subject[0]),
            "schedules": schedules.get(subject, []),
            "entries": sum(each["entries"] for each in of_lines),
            "entries_sha256": digests.get(subject, hashlib.sha256(b"").hexdigest()),
            "totals": of_lines,
            "chain": dict(zip(("day", "seq", "commit_no", "hash"), head, strict=True)),
        }

    expected: dict[Subject, dict[str, Any]] = {}
    before: tuple[date | None, Any] = (None, None)
    left_out = 0
    for day, seq, posted_at, run_id, code, hashes, matches, shares, breaks, has_entries, is_older, *head in rows(
        _POSTINGS
    ):
        subject, is_new = (day, "posting", seq), before != (day, hashes)
        before = (day, hashes)
        if is_older:
            left_out += 1
        elif is_new or has_entries or subject in schedules:
            expected[subject] = of_commit(subject, head) | {
                "posting": seq,
                "posted_at": _instant(posted_at),
                "run_id": run_id,
                "code_version": code,
                "input_hashes": hashes,
                "matches_accepted": matches,
                "matches_posted": sum(each["matches"] for each in schedules.get(subject, [])),
                "matches_left_alone": breaks,
                "shares": shares,
            }
    acceptances = rows(_ACCEPTANCES.format(digest=_digest("refunds", "r")))
    for day, commit_no, accepted_at, run_id, code, input_hash, refunds, digest, *head in acceptances:
        subject = (day, "refunds", commit_no)
        expected[subject] = of_commit(subject, head) | {
            "accepted_at": _instant(accepted_at),
            "run_id": run_id,
            "code_version": code,
            "input_hashes": {"refund_requests": input_hash} if input_hash else {},
            "refunds": refunds,
            "refunds_sha256": digest,
        }
    return expected, left_out


def _instant(at: datetime) -> str:
    """Write an instant as Postgres does, in UTC."""
    utc = at.astimezone(UTC)
    fraction = f".{utc:%f}".rstrip("0").rstrip(".")
    return f"{utc:%Y-%m-%d %H:%M:%S}{fraction}+00"
