"""The store of settlement: takes a report in, in one transaction; each line once.

Belongs here: finding what is new in a report and writing what follows. Does not belong here: what follows
(`domain.settlement_records`), fetching.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa

from payments_pipeline.domain.errors import ConflictError
from payments_pipeline.domain.settlement_records import plan_settlement
from payments_pipeline.storage.payout_instructions import release, write_events
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, copy_frame, read_frame, transaction_lock

_STRING, _INT, _DATE = pa.string(), pa.int64(), pa.date32()

_LINE_COLUMNS = [
    "processor",
    "entry_reference",
    "report_date",
    "kind",
    "idempotency_key",
    "processor_reference",
    "subject",
    "amount_minor",
    "currency",
    "reason",
    "occurred_at",
]
_INSTRUCTIONS = """
    SELECT a.idempotency_key, i.instruction_id, i.party_id, i.currency, i.direction, i.amount_minor, s.state, s.seq,
           coalesce((SELECT sum(l.amount_minor) FROM report_lines l WHERE l.instruction_id = i.instruction_id), 0)
               ::bigint * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END
    FROM payout_attempts a
    JOIN payout_instructions i USING (instruction_id)
    JOIN instruction_states s USING (instruction_id)
    WHERE a.attempt_no = 1 AND i.processor = {processor}
      AND a.idempotency_key IN (SELECT idempotency_key FROM received WHERE idempotency_key IS NOT NULL)
"""
_INSTRUCTIONS_SCHEMA = {
    "idempotency_key": _STRING,
    "instruction_id": _STRING,
    "party_id": _STRING,
    "currency": _STRING,
    "direction": _STRING,
    "amount_minor": _INT,
    "state": _STRING,
    "seq": _INT,
    "net_minor": _INT,
}
#: Settlement records are read from what was posted, so that a second run of the same report gives equal rows.
_RECORDS = """
    SELECT l.processor, l.entry_reference, l.report_date,
           CASE WHEN l.kind IN ('settled', 'failed', 'returned') AND l.instruction_id IS NOT NULL THEN l.kind
                ELSE coalesce(nullif(j.kind, 'failure'), 'unmatched') END,
           l.instruction_id, i.direction, i.party_id, l.currency, i.amount_minor, l.amount_minor, l.reason, l.journal_id
    FROM report_lines l
    LEFT JOIN payout_instructions i USING (instruction_id)
    LEFT JOIN journals j USING (journal_id)
    WHERE l.processor = {processor} AND l.report_date = {day}
"""
_RECEIVED = """
    CREATE TEMPORARY TABLE received ON COMMIT DROP AS
    SELECT processor, entry_reference, report_date, kind, idempotency_key, processor_reference, subject, amount_minor,
           currency, reason, occurred_at
    FROM report_lines WITH NO DATA
"""
_RECORDS_SCHEMA = {
    "processor": _STRING,
    "entry_reference": _STRING,
    "report_date": _DATE,
    "outcome": _STRING,
    "instruction_id": _STRING,
    "direction": _STRING,
    "party_id": _STRING,
    "currency": _STRING,
    "instructed_minor": _INT,
    "cash_minor": _INT,
    "reason": _STRING,
    "journal_id": _STRING,
}


@dataclass(frozen=True)
class TakenIn:
    """What taking a report in did.

    Attributes:
        new_lines: lines not taken in before.
        entries: ledger lines posted.
        records: frame of `schemas.SETTLEMENT_RECORDS`: every line of this date taken in so far.
    """

    new_lines: int
    entries: int
    records: pd.DataFrame


def take_report_in(
    url: str,
    day: date,
    processor: str,
    report: pd.DataFrame,
    balances: pd.DataFrame,
    digest: str,
    pots: frozenset[str],
    run: RunInfo,
) -> TakenIn:
    """Post the new lines of a report and what follows from them.

    Args:
        url: business database.
        day: report date.
        processor: who reports.
        report: frame of `schemas.SETTLEMENT_REPORTS`; a line may stand in it twice.
        balances: currency, opening_minor, closing_minor.
        digest: the processor's digest of the entries.
        pots: accounts that a funding can be for.
        run: who takes it in.

    Raises:
        ConflictError: a line comes with other content than it was taken in with; nothing was posted.
    """
    lines = _lines(day, processor, report)
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        cursor.execute(_RECEIVED)
        copy_frame(cursor, "received", lines)
        fresh = lines[lines["entry_reference"].isin(_new_references(cursor, day, processor))]
        entries = 0
        if len(fresh):
            instructions = read_frame(cursor, _INSTRUCTIONS, {"processor": processor}, _INSTRUCTIONS_SCHEMA)
            plan = plan_settlement(day, processor, fresh, instructions, pots)
            copy_frame(cursor, "journals", plan.journals, run.stamp)
            copy_frame(cursor, "ledger_entries", plan.entries)
            extra = ["instruction_id", "journal_id", "note"]
            copy_frame(cursor, "report_lines", plan.lines[[*_LINE_COLUMNS, *extra]], {"run_id": run.run_id})
            write_events(cursor, plan.events, day, run, actor=f"report of {processor}")
            if plan.released:
                release(cursor, plan.released, day=day, by_sweep=False, run=run)
            entries = len(plan.entries)
        _intake(cursor, day, processor, digest, len(lines), balances, run)
        records = read_frame(cursor, _RECORDS, {"processor": processor, "day": day}, _RECORDS_SCHEMA)
    return TakenIn(new_lines=len(fresh), entries=entries, records=records)


def _lines(day: date, processor: str, report: pd.DataFrame) -> pd.DataFrame:
    """Give the report's lines once each; a line reported twice with one reference is one line."""
    lines = pd.DataFrame(
        {
            name: report[name].to_numpy(np.int64 if name == "amount_minor" else object, copy=True)
            for name in _LINE_COLUMNS
        }
    )
    twice = lines[lines.duplicated("entry_reference", keep=False)]
    if len(twice):
        lines = lines.drop_duplicates(ignore_index=True)
        twice = lines[lines.duplicated("entry_reference", keep=False)]
    if len(twice):
        raise ConflictError(
            f"{processor}: the report of {day} gives entry {twice['entry_reference'].iloc[0]} twice with different "
            "content. None of the report was posted. Ask the processor which one holds."
        )
    return lines


def _new_references(cursor: psycopg.Cursor[Any], day: date, processor: str) -> list[str]:
    changed = cursor.execute(
        """SELECT r.entry_reference, l.report_date, l.kind, l.amount_minor, l.currency,
                  r.kind, r.amount_minor, r.currency
           FROM received r JOIN report_lines l USING (processor, entry_reference)
           WHERE (l.report_date, l.kind, l.amount_minor, l.currency, l.occurred_at, l.idempotency_key, l.subject,
                  l.processor_reference, l.reason)
                 IS DISTINCT FROM
                 (r.report_date, r.kind, r.amount_minor, r.currency, r.occurred_at, r.idempotency_key, r.subject,
                  r.processor_reference, r.reason)
           LIMIT 1"""
    ).fetchone()
    if changed is not None:
        reference, old_date, *content = changed
        raise ConflictError(
            f"{processor}: entry {reference} was taken in on {old_date} as {content[0]} of {content[1]} {content[2]}, "
            f"and the report of {day} gives it as {content[3]} of {content[4]} {content[5]}, or with another key, "
            "subject, reason, reference or instant. Nothing of the report was posted. Ask the processor which holds."
        )
    cursor.execute(
        """SELECT entry_reference FROM received r
           WHERE NOT EXISTS (SELECT FROM report_lines l
                             WHERE l.processor = r.processor AND l.entry_reference = r.entry_reference)"""
    )
    return [row[0] for row in cursor.fetchall()]


def _intake(
    cursor: psycopg.Cursor[Any],
    day: date,
    processor: str,
    digest: str,
    entry_count: int,
    balances: pd.DataFrame,
    run: RunInfo,
) -> None:
    row = cursor.execute(
        """INSERT INTO report_intakes (processor, report_date, seq, digest, entry_count, run_id)
           SELECT %(processor)s, %(day)s, coalesce(max(seq), 0) + 1, %(digest)s, %(entry_count)s, %(run_id)s
           FROM report_intakes WHERE processor = %(processor)s AND report_date = %(day)s RETURNING seq""",
        {
            "processor": processor,
            "day": day,
            "digest": digest,
            "entry_count": entry_count,
            "run_id": run.run_id,
        },
    ).fetchone()
    assert row is not None
    named = balances[["currency", "opening_minor", "closing_minor"]]
    copy_frame(cursor, "report_balances", named, {"processor": processor, "report_date": day, "seq": row[0]})
