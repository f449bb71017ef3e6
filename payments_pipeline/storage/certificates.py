"""The store of certificates: a small object for each posting and acceptance of refunds, written once, after its commit.

Belongs here: what is due one, reading what it says, writing it. Does not belong here: its content's shape
(`domain.certificates`), checking it (`verify`, and `checker/`, which needs nothing of this program).
"""

from __future__ import annotations

from datetime import date
from typing import Any, TypedDict

import psycopg

from payments_pipeline.domain.certificates import (
    Certificate,
    Head,
    PostingCertificate,
    RefundCertificate,
    Schedule,
    Total,
    day_prefix,
    posting_subject,
    refund_subject,
    subject_of,
)
from payments_pipeline.domain.refund_requests import DATASET as REFUND_REQUESTS
from payments_pipeline.storage.objects import ObjectStore
from payments_pipeline.storage.postgres import connect

#: Postings that say anything new: the first of a day, of other input than the one before, or that posted something.
#: Each was recorded when it was made: what was posted before there was an audit trail has no certificate.
_DUE = """
    WITH postings AS (
        SELECT match_day, seq, entries_posted, input_hashes, lag(input_hashes) OVER (ORDER BY seq) AS hashes_before
        FROM day_postings WHERE match_day = %(day)s)
    SELECT seq FROM postings p
    WHERE (hashes_before IS DISTINCT FROM input_hashes OR entries_posted > 0
           OR EXISTS (SELECT FROM match_postings m WHERE (m.match_day, m.day_seq) = (p.match_day, p.seq)))
      AND EXISTS (SELECT FROM audit_entries WHERE table_name = 'day_postings' AND NOT by_migration
                  AND row_keys[1] = format('(%%s,%%s)', to_char(p.match_day, 'YYYY-MM-DD'), p.seq))
    ORDER BY seq
"""
_POSTING = """
    SELECT p.posted_at::text, p.run_id, p.code_version, p.input_hashes, p.matches, p.shares,
           (SELECT count(*) FROM match_postings m WHERE (m.match_day, m.day_seq) = (p.match_day, p.seq)),
           (SELECT count(*) FROM posting_breaks b WHERE (b.match_day, b.seq) = (p.match_day, p.seq)), own.commit_no
    FROM day_postings p
    JOIN audit_entries e ON e.table_name = 'day_postings' AND NOT e.by_migration AND e.row_keys[1] = %(key)s
    JOIN audit_chain own USING (entry_id)
    WHERE p.match_day = %(day)s AND p.seq = %(seq)s
"""
_SCHEDULES = """
    SELECT competition_id::text, schedule_version, rules_hash, count(*) FROM match_postings
    WHERE match_day = %(day)s AND day_seq = %(seq)s GROUP BY 1, 2, 3
"""
#: Commits that accepted refunds of the day: those that made both a journal of one and an entry of the trail.
_ACCEPTANCES = """
    SELECT DISTINCT c.commit_no FROM refunds r
    JOIN journals j ON j.refund_id = r.refund_id AND j.kind = 'refund'
    JOIN audit_entries e ON e.transaction_id = j.created_xid AND e.table_name = 'refunds' AND NOT e.by_migration
    JOIN audit_chain c USING (entry_id)
    WHERE r.accepted_day = %(day)s
"""
_ACCEPTANCE = """
    SELECT max(r.accepted_at)::text, min(r.run_id), min(r.code_version), min(r.input_hash), count(*),
           encode(sha256(string_agg(line.digest, '' ORDER BY line.key COLLATE "C")), 'hex')
    FROM audit_chain c JOIN audit_entries e USING (entry_id), unnest(e.row_keys, e.row_digests) AS line (key, digest)
    JOIN refunds r ON r.refund_id = line.key
    WHERE c.commit_no = %(commit_no)s AND e.table_name = 'refunds' AND r.accepted_day = %(day)s
"""
#: Of the matches that something was given back of.
_REFUND_SCHEDULES = """
    SELECT competition_id::text, schedule_version, rules_hash, count(*) FROM match_postings
    WHERE (match_id, posting_no) IN (
        SELECT j.match_id, j.posting_no FROM audit_chain c JOIN audit_entries e USING (entry_id),
        unnest(e.row_keys) AS line (key) JOIN journals j ON j.journal_id = line.key::uuid
        WHERE c.commit_no = %(commit_no)s AND e.table_name = 'journals')
    GROUP BY 1, 2, 3
"""
_HEAD = """
    SELECT day, seq, commit_no, hash FROM audit_chain WHERE commit_no = %(commit_no)s
    ORDER BY day DESC, seq DESC LIMIT 1
"""
#: Lines of a commit, as the audit trail has them.
_ENTRIES = """
    SELECT count(*), encode(sha256(coalesce(string_agg(digest, '' ORDER BY key COLLATE "C"), '')), 'hex')
    FROM audit_chain c JOIN audit_entries e USING (entry_id), unnest(e.row_keys, e.row_digests) AS line (key, digest)
    WHERE c.commit_no = %(commit_no)s AND e.table_name = 'ledger_entries'
"""
#: By their journals, of which there are few, and which nothing is added to after their commit.
_TOTALS = """
    SELECT kind, pot, currency::text, count(*), sum(debit_minor)::bigint, sum(credit_minor)::bigint
    FROM ledger_entries WHERE journal_id IN (
        SELECT key::uuid FROM audit_chain c JOIN audit_entries e USING (entry_id), unnest(e.row_keys) AS journal (key)
        WHERE c.commit_no = %(commit_no)s AND e.table_name = 'journals') GROUP BY 1, 2, 3
"""


class _OfCommit(TypedDict):
    """What every certificate says of its commit."""

    schedules: tuple[Schedule, ...]
    entries: int
    entries_sha256: str
    totals: tuple[Total, ...]
    chain: Head


def write_certificates(url: str, store: ObjectStore, day: date) -> list[str]:
    """Write the certificates of a day that are not there yet; each is written once and never replaced.

    A run that died between its commit and the writing left one out: the next run of the day writes it, the same bytes.

    Args:
        url: business database.
        store: where assets are stored.
        day: match day of postings, day of acceptance of refunds.

    Returns:
        Addresses of those written now.

    Raises:
        ConflictError: there is an object of that very name with other content; it stands.
        StorageUnavailableError: not written; what is posted stands, and the next run of the day writes it.
    """
    with connect(url) as connection:
        postings, acceptances = (
            sorted(number for (number,) in connection.execute(query.encode(), {"day": day}).fetchall())
            for query in (_DUE, _ACCEPTANCES)
        )
        is_any = bool(postings or acceptances)
        written = {subject_of(found.key) for found in store.list(day_prefix(day))} if is_any else set()
        missing: list[Certificate] = [
            _read_posting(connection, day, seq) for seq in postings if posting_subject(seq) not in written
        ]
        for commit_no in acceptances:
            accepted = None if refund_subject(commit_no) in written else _read_acceptance(connection, day, commit_no)
            missing += [accepted] if accepted is not None else []
    for certificate in missing:
        store.write_new(certificate.key, certificate.encode())
    return [store.uri(certificate.key) for certificate in missing]


def _read_posting(connection: psycopg.Connection, day: date, seq: int) -> PostingCertificate:
    of = {"day": day, "seq": seq}
    with connection.transaction():
        [(posted_at, run_id, code_version, input_hashes, matches, shares, posted, left_alone, commit_no)] = _rows(
            connection, _POSTING, of | {"key": f"({day},{seq})"}
        )
        return PostingCertificate(
            day=day,
            posting=seq,
            posted_at=posted_at,
            run_id=run_id,
            code_version=code_version,
            input_hashes=input_hashes,
            matches_accepted=matches,
            matches_posted=posted,
            matches_left_alone=left_alone,
            shares=shares,
            **_read_commit(connection, commit_no, _SCHEDULES, of),
        )


def _read_acceptance(connection: psycopg.Connection, day: date, commit_no: int) -> RefundCertificate | None:
    of = {"day": day, "commit_no": commit_no}
    with connection.transaction():
        [(accepted_at, run_id, code_version, input_hash, refunds, digest)] = _rows(connection, _ACCEPTANCE, of)
        if not refunds:
            # In a restored database a transaction may have the number of an older one.
            return None
        return RefundCertificate(
            day=day,
            accepted_at=accepted_at,
            run_id=run_id,
            code_version=code_version,
            input_hashes={REFUND_REQUESTS: input_hash} if input_hash else {},
            refunds=refunds,
            refunds_sha256=digest,
            **_read_commit(connection, commit_no, _REFUND_SCHEDULES, of),
        )


def _read_commit(connection: psycopg.Connection, commit_no: int, schedules: str, of: dict[str, Any]) -> _OfCommit:
    of = of | {"commit_no": commit_no}
    [(entries, entries_sha256)] = _rows(connection, _ENTRIES, of)
    [head] = _rows(connection, _HEAD, of)
    return _OfCommit(
        schedules=tuple(Schedule(*row) for row in sorted(_rows(connection, schedules, of))),
        entries=entries,
        entries_sha256=entries_sha256,
        totals=tuple(Total(*row) for row in sorted(_rows(connection, _TOTALS, of))),
        chain=Head(*head),
    )


def _rows(connection: psycopg.Connection, query: str, of: dict[str, Any]) -> list[tuple[Any, ...]]:
    # Dates and instants become text; all that is read is append-only, and so of one moment.
    connection.execute("SET LOCAL datestyle = 'ISO'")
    return connection.execute(query.encode(), of).fetchall()
