"""Certificates beside the tables: each posting has its own, which says what was posted and where the chain then ended.

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
#: Match day and number of a posting.
Posting = tuple[date, int]
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
    SELECT match_day, day_seq, competition_id::text, schedule_version, rules_hash, count(*)
    FROM match_postings GROUP BY 1, 2, 3, 4, 5
"""
#: A posting's lines are those of the journals that its transaction made: not what the trail says of them.
_LINES = f"""
    day_postings p JOIN LATERAL (SELECT * FROM audit_entries WHERE {_ENTRY} ORDER BY entry_id LIMIT 1) a ON true
    JOIN journals j ON j.created_xid = a.transaction_id AND j.run_id = p.run_id
    JOIN ledger_entries l USING (journal_id)
"""
_TOTALS = f"""
    SELECT p.match_day, p.seq, l.kind, l.pot, l.currency::text, count(*), sum(l.debit_minor)::bigint, sum(l.credit_minor)::bigint
    FROM {_LINES} GROUP BY 1, 2, 3, 4, 5
"""
_DIGESTS = f"""
    SELECT p.match_day, p.seq, encode(sha256(string_agg(
               substr(sha256(convert_to(rtrim(ROW({", ".join(f"l.{name}" for name in AUDITED["ledger_entries"][1].split(", "))})::text, ',)'),
                                        'UTF8')), 1, 16), '' ORDER BY l.entry_id)), 'hex')
    FROM {_LINES} GROUP BY 1, 2
"""


def certificate_keys(store: ObjectStore) -> list[str]:
    """Give the stored certificates; none in a folder that nothing was ever written to."""
    if isinstance(store, LocalStore) and not store.root.is_dir():
        return []
    return [found.key for found in store.list(_FOLDER)]


def certificates_say_what_was_posted(connection: psycopg.Connection, store: ObjectStore, keys: list[str]) -> Found:
    """Each posting that changed anything has one certificate, of its own content, whose head the chain still has.

    Args:
        connection: in a transaction that sees one moment.
        store: where the certificates are.
        keys: those that were there before that moment: each is of a posting that can be seen.
    """
    connection.execute("SELECT set_config('datestyle', 'ISO', true)")
    expected, left_out = _expected(connection)
    found = Found(
        left_out=[f"{left_out} postings from before there was an audit trail: they have no certificate"]
        * bool(left_out)
    )
    seen: set[Posting] = set()
    for key in keys:
        found.checked += 1
        data = store.read(key)
        said = _parsed(key, data)
        if said is None:
            found.breaches.append(f"{key} is not as it was written: its name or its content was changed; restore it")
            continue
        posting = (date.fromisoformat(said["day"]), int(said["posting"]))
        if not _is_in_chain(connection, said["chain"]):
            found.breaches.append(
                f"{key}: the chain has no link {said['chain']['seq']} of {said['chain']['day']} with hash "
                f"{said['chain']['hash'][:16]}…: its end was cut off, or it was written anew; restore a backup"
            )
        if posting not in expected:
            found.breaches.append(f"{key}: there is no such posting, or none that changed anything; restore a backup")
        elif posting in seen:
            found.breaches.append(f"{key}: posting {posting[1]} of {posting[0]} has another certificate; one is forged")
        else:
            differs = sorted(name for name in expected[posting] | said if expected[posting].get(name) != said.get(name))
            found.breaches += [
                f"{key}: {name} is {json.dumps(said.get(name))}, and stored is {json.dumps(expected[posting].get(name))}; "
                "what is stored was changed, or the certificate forged"
                for name in differs
            ]
        seen.add(posting)
    found.breaches += _missing(store, expected.keys() - seen)
    return found


def _missing(store: ObjectStore, postings: set[Posting]) -> list[str]:
    """Say which have none even now: one may have been on its way."""
    now = certificate_keys(store) if postings else []
    return [
        f"posting {seq} of {day} has no certificate: run the day, which writes it"
        for day, seq in sorted(postings)
        if not any(key.startswith(f"{_FOLDER}date={day}/{seq:04d}-") for key in now)
    ]


def _parsed(key: str, data: bytes) -> dict[str, Any] | None:
    """Read a certificate; None where its name does not follow from its content."""
    try:
        said: dict[str, Any] = json.loads(data)
        name = f"{_FOLDER}date={said['day']}/{said['posting']:04d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        date.fromisoformat(said["day"])
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


def _expected(connection: psycopg.Connection) -> tuple[dict[Posting, dict[str, Any]], int]:
    """Give what each certificate that is due has to say, and how many postings are older than the audit trail."""
    schedules: dict[Posting, list[dict[str, Any]]] = {}
    for day, seq, *of in sorted(connection.execute(_SCHEDULES.encode()).fetchall()):
        schedules.setdefault((day, seq), []).append(dict(zip(_OF_SCHEDULE, of, strict=True)))
    totals: dict[Posting, list[dict[str, Any]]] = {}
    for day, seq, *of in sorted(connection.execute(_TOTALS.encode()).fetchall()):
        totals.setdefault((day, seq), []).append(dict(zip(_OF_TOTAL, of, strict=True)))
    digests = {(day, seq): digest for day, seq, digest in connection.execute(_DIGESTS.encode()).fetchall()}
    expected: dict[Posting, dict[str, Any]] = {}
    before: tuple[date | None, Any] = (None, None)
    left_out = 0
    for (
        day,
        seq,
        posted_at,
        run_id,
        code_version,
        hashes,
        matches,
        shares,
        breaks,
        has_entries,
        is_older,
        *head,
    ) in connection.execute(_POSTINGS.encode()).fetchall():
        posting, is_new = (day, seq), before != (day, hashes)
        before = (day, hashes)
        if is_older:
            left_out += 1
        elif is_new or has_entries or posting in schedules:
            of_posting = totals.get(posting, [])
            expected[posting] = {
                "version": 1,
                "day": str(day),
                "posting": seq,
                "posted_at": _instant(posted_at),
                "run_id": run_id,
                "code_version": code_version,
                "input_hashes": hashes,
                "matches_accepted": matches,
                "matches_posted": sum(each["matches"] for each in schedules.get(posting, [])),
                "matches_left_alone": breaks,
                "shares": shares,
                "schedules": schedules.get(posting, []),
                "entries": sum(each["entries"] for each in of_posting),
                "entries_sha256": digests.get(posting, hashlib.sha256(b"").hexdigest()),
                "totals": of_posting,
                "chain": dict(zip(("day", "seq", "commit_no", "hash"), head, strict=True)),
            }
    return expected, left_out


def _instant(at: datetime) -> str:
    """Write an instant as Postgres does, in UTC."""
    utc = at.astimezone(UTC)
    fraction = f".{utc:%f}".rstrip("0").rstrip(".")
    return f"{utc:%Y-%m-%d %H:%M:%S}{fraction}+00"
