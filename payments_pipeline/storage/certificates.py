"""The store of certificates: one small object for each posting, written once, after its commit.

Belongs here: which postings are due one, reading what it says, writing it. Does not belong here: its content's shape
(`domain.certificates`), checking it (`verify`, and `checker/`, which needs nothing of this program).
"""

from __future__ import annotations

from datetime import date
from typing import Any

import psycopg

from payments_pipeline.domain.certificates import Certificate, Head, Schedule, Total, day_prefix, posting_of
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
           (SELECT count(*) FROM posting_breaks b WHERE (b.match_day, b.seq) = (p.match_day, p.seq)),
           head.day, head.seq, head.commit_no, head.hash
    FROM day_postings p
    JOIN audit_entries e ON e.table_name = 'day_postings' AND NOT e.by_migration AND e.row_keys[1] = %(key)s
    JOIN audit_chain own USING (entry_id)
    JOIN audit_chain head ON head.commit_no = own.commit_no
    WHERE p.match_day = %(day)s AND p.seq = %(seq)s
    ORDER BY head.day DESC, head.seq DESC LIMIT 1
"""
_SCHEDULES = """
    SELECT competition_id::text, schedule_version, rules_hash, count(*) FROM match_postings
    WHERE match_day = %(day)s AND day_seq = %(seq)s GROUP BY 1, 2, 3
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


def write_certificates(url: str, store: ObjectStore, day: date) -> list[str]:
    """Write the certificates of a day's postings that are not there yet; each is written once and never replaced.

    A run that died between its commit and the writing left one out: the next run of the day writes it, the same bytes.

    Args:
        url: business database.
        store: where assets are stored.
        day: match day.

    Returns:
        Addresses of those written now.

    Raises:
        ConflictError: there is an object of that very name with other content; it stands.
        StorageUnavailableError: not written; what is posted stands, and the next run of the day writes it.
    """
    with connect(url) as connection:
        due = [seq for (seq,) in connection.execute(_DUE, {"day": day}).fetchall()]
        written = {posting_of(found.key) for found in store.list(day_prefix(day))} if due else set()
        missing = [_read(connection, day, seq) for seq in due if seq not in written]
    for certificate in missing:
        store.write_new(certificate.key, certificate.encode())
    return [store.uri(certificate.key) for certificate in missing]


def _read(connection: psycopg.Connection, day: date, seq: int) -> Certificate:
    with connection.transaction():
        # Dates and instants become text; all that is read is append-only, and so of one moment.
        connection.execute("SET LOCAL datestyle = 'ISO'")

        def rows(query: str, **more: object) -> list[tuple[Any, ...]]:
            return connection.execute(query.encode(), {"day": day, "seq": seq} | more).fetchall()

        [(posted_at, run_id, code_version, input_hashes, matches, shares, posted, left_alone, *head)] = rows(
            _POSTING, key=f"({day},{seq})"
        )
        chain = Head(*head)
        [(entries, entries_sha256)] = rows(_ENTRIES, commit_no=chain.commit_no)
        return Certificate(
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
            schedules=tuple(Schedule(*row) for row in sorted(rows(_SCHEDULES))),
            entries=entries,
            entries_sha256=entries_sha256,
            totals=tuple(Total(*row) for row in sorted(rows(_TOTALS, commit_no=chain.commit_no))),
            chain=chain,
        )
