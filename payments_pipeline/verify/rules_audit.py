"""Rules over the audit trail: its hash chain is whole, and the tables hold what it recorded, row for row.

Belongs here: what is audited and how it is hashed, written a second time. Does not belong here: the triggers that write
it; certificates, which pin the chain from outside (`certificates`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.table_rule import TableCheck, TableRule

#: Key and columns of each audited table, in the order in which they are hashed.
AUDITED: dict[str, tuple[str, str]] = {
    "day_postings": (
        "match_day, seq",
        "match_day, seq, input_hashes, matches, shares, entries_posted, run_id, code_version, posted_at",
    ),
    "posting_breaks": ("match_day, seq, match_id", "match_day, seq, match_id, reason, words"),
    "match_postings": (
        "match_id, posting_no",
        "match_id, posting_no, match_day, day_seq, competition_id, revision, content_hash, rules_hash, schedule_version, currency, payout_policy, revenue_minor, participants, is_open",
    ),
    "journals": (
        "journal_id",
        "journal_id, kind, day, match_id, posting_no, instruction_id, processor, entry_reference, run_id, code_version, posted_at, created_xid, proposal_id, refund_id, matched_reference",
    ),
    "ledger_entries": (
        "entry_id",
        "entry_id, journal_id, kind, day, account, party_id, currency, debit_minor, credit_minor, is_item, match_id, pot, pot_party_id, line_no, recipient, schedule_version, posting_no, refund_id",
    ),
    "sweeps": ("sweep_day, seq", "sweep_day, seq, instructions, run_id, code_version, swept_at, posting_seq"),
    "sweep_deferrals": (
        "sweep_day, seq, party_id, currency, reason",
        "sweep_day, seq, party_id, currency, reason, items, amount_minor",
    ),
    "payout_instructions": (
        "instruction_id",
        "instruction_id, sweep_day, sweep_seq, party_id, currency, direction, amount_minor, processor, token, digest, policy_version, maker, run_id, code_version, created_at, created_xid, approval_days, token_changed_by",
    ),
    "instruction_claims": ("item_id, claim_no", "item_id, claim_no, instruction_id"),
    "claim_releases": ("item_id, claim_no", "item_id, claim_no, released_on, by_sweep, run_id, recorded_at"),
    "instruction_events": (
        "instruction_id, seq",
        "instruction_id, seq, from_state, to_state, occurred_on, actor, reason, evidence, run_id, login, recorded_at",
    ),
    "payout_attempts": (
        "instruction_id, attempt_no",
        "instruction_id, attempt_no, idempotency_key, request, request_sha256, execute_on, not_after, dispatched_on, run_id, started_at",
    ),
    "payout_attempt_outcomes": (
        "instruction_id, attempt_no",
        "instruction_id, attempt_no, outcome, processor_reference, code, message, recorded_at",
    ),
    "payout_look_ups": (
        "instruction_id, look_up_no",
        "instruction_id, look_up_no, answer, processor_reference, code, request_sha256, message, run_id, asked_at",
    ),
    "report_intakes": (
        "processor, report_date, seq",
        "processor, report_date, seq, digest, entry_count, run_id, taken_at",
    ),
    "report_balances": (
        "processor, report_date, seq, currency",
        "processor, report_date, seq, currency, opening_minor, closing_minor",
    ),
    "report_lines": (
        "processor, entry_reference",
        "processor, entry_reference, report_date, kind, idempotency_key, processor_reference, subject, amount_minor, currency, reason, occurred_at, instruction_id, journal_id, note, run_id, taken_at",
    ),
    "settlement_records": (
        "processor, entry_reference",
        "processor, entry_reference, report_date, outcome, instruction_id, direction, party_id, currency, instructed_minor, cash_minor, reason, journal_id",
    ),
    "alerts": ("alert_id", "alert_id, kind, day, title, body, run_id, raised_at"),
    "alert_deliveries": ("alert_id, channel", "alert_id, channel, delivered_at"),
    "refunds": (
        "refund_id",
        "refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, requested_minor, reason, requester, accepted_day, source, run_id, code_version, login, accepted_at, input_hash",
    ),
    "proposals": ("proposal_id", "proposal_id, kind, content, reason, maker, login, proposed_at"),
    "proposal_decisions": ("proposal_id", "proposal_id, decision, reason, actor, login, decided_at"),
}
_FIRST_HASH = "0" * 64
#: Links read at once; an entry may be of a million rows.
_BLOCK_LINKS = 10
_LINKS = """
    SELECT c.day, c.seq, c.commit_no, c.hash, e.entry_id, e.recorded_at, e.login, e.transaction_id::text, e.table_name,
           e.by_migration, e.row_count, e.row_keys, e.row_digests, e.content_sha256
    FROM audit_chain c LEFT JOIN audit_entries e USING (entry_id)
    WHERE (c.day, c.seq) > (%s, %s) ORDER BY c.day, c.seq LIMIT %s
"""
_UNLINKED = """
    SELECT format('entry %s of %s, written by %s at %s, is in no link of the chain: its link was removed, or the entry '
                  'inserted behind the triggers', entry_id, table_name, login, recorded_at)
    FROM audit_entries e WHERE NOT EXISTS (SELECT FROM audit_chain c WHERE c.entry_id = e.entry_id) ORDER BY entry_id
"""


def the_chain_is_whole(connection: psycopg.Connection) -> Found:
    """Each link's hash is over the link before it and its own entry, each day's links are numbered from 1."""
    found = Found(breaches=[text for (text,) in connection.execute(_UNLINKED.encode()).fetchall()])
    previous, day_before, seq_before, commit_before = _FIRST_HASH, date.min, 0, 0
    for day, seq, commit_no, stored, entry_id, *entry in _links(connection):
        found.checked += 1
        expected = (seq_before + 1) if day == day_before else 1
        if seq != expected or commit_no not in (commit_before, commit_before + 1):
            found.breaches.append(
                f"the chain of {day} has link {seq} where {expected} is due (commit {commit_no} after {commit_before}): "
                "links between were removed; compare with a backup and the certificates"
            )
        content = entry[-1]
        if entry_id is None:
            found.breaches.append(f"link {seq} of {day} is of an entry that is gone; restore it from a backup")
        elif (own := _content_sha256(entry_id, *entry[:-1])) != content:
            found.breaches.append(
                f"entry {entry_id} (link {seq} of {day}) of {entry[3]} was changed: its content gives {own[:16]}…, and "
                f"{content[:16]}… was linked; restore it from a backup"
            )
        link = f"{previous} {day} {seq} {commit_no} {content}"
        if entry_id is not None and hashlib.sha256(link.encode()).hexdigest() != stored:
            found.breaches.append(
                f"the chain breaks at link {seq} of {day}: its hash is not of the link before it and its entry; one of "
                "them was changed, removed or put in; compare with a backup and the certificates"
            )
        previous, day_before, seq_before, commit_before = stored, day, seq, commit_no
    return found


def _links(connection: psycopg.Connection) -> Iterator[tuple[Any, ...]]:
    day, seq = date.min, 0
    while links := connection.execute(_LINKS.encode(), (day, seq, _BLOCK_LINKS)).fetchall():
        yield from links
        day, seq = links[-1][:2]


def _content_sha256(
    entry_id: int,
    recorded_at: datetime,
    login: str,
    transaction_id: str,
    table_name: str,
    by_migration: bool,  # noqa: FBT001 - a column of the row
    row_count: int,
    row_keys: list[str],
    row_digests: list[bytes],
) -> str:
    keys = json.dumps(row_keys, ensure_ascii=False, separators=(",", ":")).encode()
    at = recorded_at.astimezone(UTC)
    microseconds = f".{at:%f}".rstrip("0").rstrip(".")
    words = (
        *(entry_id, f"{at:%Y-%m-%d %H:%M:%S}{microseconds}+00", transaction_id, table_name),
        *("t" if by_migration else "f", row_count),
        *(hashlib.sha256(keys).hexdigest(), hashlib.sha256(b"".join(row_digests)).hexdigest(), login),
    )
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def rows_are_as_recorded(connection: psycopg.Connection) -> Found:
    """Each row of an audited table has the digest that was recorded when it was inserted, and none is missing or new."""
    # A value's text depends on these; both are back as they were when the transaction ends.
    connection.execute("SELECT set_config('datestyle', 'ISO', true), set_config('bytea_output', 'hex', true)")
    found = Found()
    for table, (key, columns) in AUDITED.items():
        key_text = f"ROW({key})::text" if "," in key else f"{key}::text"
        rows = connection.execute(
            f"""SELECT format(CASE
                    WHEN r.key IS NULL THEN '{table} %1$s is in no entry of the audit trail: it was inserted behind the triggers'
                    WHEN p.key IS NULL THEN '{table} %2$s is gone, and entry %3$s recorded it at %4$s, written by %5$s: restore it from a backup'
                    ELSE '{table} %2$s is not as entry %3$s recorded it at %4$s, written by %5$s: it was changed after; restore it from a backup'
                    END, p.key, r.key, r.entry_id, r.recorded_at, r.login)
                FROM (SELECT k.key, k.digest, e.entry_id, e.recorded_at, e.login
                      FROM audit_entries e CROSS JOIN LATERAL unnest(e.row_keys, e.row_digests) AS k (key, digest)
                      WHERE e.table_name = '{table}') r
                FULL JOIN (SELECT {key_text} AS key, substr(sha256(convert_to(rtrim(ROW({columns})::text, ',)'), 'UTF8')), 1, 16) AS digest
                           FROM {table}) p ON p.key = r.key
                WHERE r.digest IS DISTINCT FROM p.digest ORDER BY coalesce(p.key, r.key)""".encode()
        ).fetchall()
        found.breaches += [text for (text,) in rows]
        (stored, recorded), *_ = connection.execute(
            f"""SELECT (SELECT count(*) FROM {table}),
                       (SELECT coalesce(sum(row_count), 0) FROM audit_entries WHERE table_name = '{table}')""".encode()
        ).fetchall()
        found.checked += max(stored, recorded)
        if stored != recorded and not rows:
            found.breaches += _recorded_twice(connection, table)
    return found


def _recorded_twice(connection: psycopg.Connection, table: str) -> list[str]:
    rows = connection.execute(
        f"""SELECT format('{table} %s was recorded by entries %s: it was taken out behind the triggers and inserted again',
                          key, string_agg(entry_id::text, ', ' ORDER BY entry_id))
            FROM (SELECT entry_id, unnest(row_keys) AS key FROM audit_entries WHERE table_name = '{table}') r
            GROUP BY key HAVING count(*) > 1 ORDER BY key""".encode()
    ).fetchall()
    return [text for (text,) in rows]


_COLUMNS = [f"{table}.{column}" for table, (_, columns) in AUDITED.items() for column in columns.split(", ")]

RULES: dict[str, TableCheck] = {
    "the audit trail is one unbroken hash chain": the_chain_is_whole,
    "every row is as the audit trail recorded it, and no other is there": rows_are_as_recorded,
    "every column of what is append-only is in the audit trail": TableRule(
        f"""SELECT format('payments.%s.%s is in no digest: a change of it would not be found; migrate to a version that audits it',
                          c.relname, a.attname)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'payments'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
              AND EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                          WHERE t.tgrelid = c.oid AND p.proname = 'refuse_change')
              AND c.relname NOT IN ('lifecycle', 'audit_entries', 'audit_chain')
              AND c.relname || '.' || a.attname <> ALL (ARRAY{_COLUMNS})
            ORDER BY 1""",
        f"SELECT {len(_COLUMNS)}",
    ),
}
