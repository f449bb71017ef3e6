"""Reads both sides of a day for `domain.reconciliation`.

Belongs here: the queries. Does not belong here: what is compared and said of it; writing, which the IO manager does.
"""

from __future__ import annotations

from datetime import date

import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.policy import Policy
from payments_pipeline.domain.reconciliation import reconcile
from payments_pipeline.storage.postgres import connect, read_frame

_STRING, _INT, _DATE, _BOOL = pa.string(), pa.int64(), pa.date32(), pa.bool_()

#: The processor's own closing balance against the ledger's cash; a currency that only one side knows counts as 0.
_CASH = """
    WITH reported AS (
        SELECT 'cash:' || b.processor AS account, b.currency, b.closing_minor
        FROM report_balances b
        WHERE b.processor = {processor} AND b.report_date = {day} AND b.seq = (
            SELECT max(i.seq) FROM report_intakes i WHERE i.processor = {processor} AND i.report_date = {day})
    ), booked AS (
        SELECT account, currency, (sum(debit_minor) - sum(credit_minor))::bigint AS balance
        FROM ledger_entries
        WHERE account = 'cash:' || {processor} AND party_id IS NULL AND day <= {day}
        GROUP BY 1, 2
    )
    SELECT coalesce(r.account, b.account), coalesce(r.currency, b.currency), coalesce(b.balance, 0),
           coalesce(r.closing_minor, 0)
    FROM reported r FULL JOIN booked b ON b.account = r.account AND b.currency = r.currency
"""

#: Instructed and settled up to the day, in the instruction's direction; what failed or came back is to have moved
#: nothing. The state is the day's, not today's, so that a day reconciled again says the same. Those that the report of
#: the day is about, the overdue ones, and those that any day before found broken and of which something still is in
#: transit, whichever day was run when. What was paid beyond an instruction is an item against its party from then on.
_INSTRUCTIONS = """
    SELECT i.instruction_id, i.currency,
           CASE WHEN s.state IN ('failed', 'returned') THEN 0 ELSE i.amount_minor END,
           coalesce(l.cash_minor, 0) * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END,
           coalesce(l.first_on, a.execute_on), s.state IN ('submitting', 'submitted', 'unknown')
    FROM payout_instructions i
    JOIN payout_attempts a ON a.instruction_id = i.instruction_id AND a.attempt_no = 1
    CROSS JOIN LATERAL (
        SELECT e.to_state AS state FROM instruction_events e
        WHERE e.instruction_id = i.instruction_id AND e.occurred_on <= {day} ORDER BY e.seq DESC LIMIT 1
    ) s
    CROSS JOIN LATERAL (
        SELECT sum(r.amount_minor)::bigint AS cash_minor, min(r.report_date) AS first_on
        FROM report_lines r WHERE r.instruction_id = i.instruction_id AND r.report_date <= {day}
    ) l
    WHERE i.processor = {processor} AND i.instruction_id IN (
        SELECT instruction_id FROM report_lines WHERE processor = {processor} AND report_date = {day}
        UNION ALL
        SELECT p.subject_id::uuid FROM reconciliation p
        WHERE p.report_date < {day} AND p.subject_type = 'instruction' AND p.status = 'break'
        UNION ALL
        SELECT late.instruction_id FROM instruction_states waiting JOIN payout_attempts late USING (instruction_id)
        WHERE waiting.state IN ('submitting', 'submitted', 'unknown') AND late.attempt_no = 1
          AND late.execute_on <= {day}::date - {overdue_days}::integer)
      AND (s.state IN ('submitting', 'submitted', 'unknown')
           OR coalesce(l.cash_minor, 0) * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END
              < CASE WHEN s.state IN ('failed', 'returned') THEN 0 ELSE i.amount_minor END
           OR EXISTS (SELECT FROM report_lines t WHERE t.instruction_id = i.instruction_id AND t.report_date = {day}))
"""

_UNMATCHED = """
    SELECT l.entry_reference, l.currency, l.amount_minor, l.report_date, coalesce(l.note, '')
    FROM report_lines l JOIN journals j USING (journal_id)
    WHERE j.kind = 'unmatched' AND l.processor = {processor} AND l.report_date <= {day} AND NOT EXISTS (
        SELECT FROM journals m
        WHERE (m.processor, m.matched_reference) = (l.processor, l.entry_reference) AND m.day <= {day})
"""

_BREAKS = """
    SELECT b.match_id, b.words, b.match_day
    FROM posting_breaks b
    WHERE b.match_day <= {day} AND b.seq = (SELECT max(seq) FROM day_postings WHERE match_day = b.match_day)
"""

#: What was broken when the last date before this one was reconciled.
_BEFORE = """
    SELECT subject_type, subject_id, currency, since_on FROM reconciliation
    WHERE report_date = (SELECT max(report_date) FROM reconciliation WHERE report_date < {day}) AND status = 'break'
"""


def reconcile_day(url: str, day: date, processor: str, policy: Policy) -> pd.DataFrame:
    """Give the frame of `schemas.RECONCILIATION` for a day, from what is stored now.

    Args:
        url: business database.
        day: day to reconcile.
        processor: whose reports.
        policy: from when an instruction without outcome is overdue.
    """
    parameters = {
        "day": day,
        "processor": processor,
        "overdue_days": policy.dispatch.overdue_days,
    }
    amounts = {"currency": _STRING, "expected_minor": _INT, "actual_minor": _INT}
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        # One moment of both sides: a posting between two of these queries would look like a break.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cash = read_frame(cursor, _CASH, parameters, {"account": _STRING} | amounts)
        instructions = read_frame(
            cursor,
            _INSTRUCTIONS,
            parameters,
            {"instruction_id": _STRING} | amounts | {"since_on": _DATE, "overdue": _BOOL},
        )
        unmatched = read_frame(
            cursor,
            _UNMATCHED,
            parameters,
            {"subject_id": _STRING, "currency": _STRING, "amount_minor": _INT, "since_on": _DATE, "note": _STRING},
        )
        breaks = read_frame(cursor, _BREAKS, parameters, {"match_id": _STRING, "words": _STRING, "since_on": _DATE})
        before = read_frame(
            cursor,
            _BEFORE,
            parameters,
            {"subject_type": _STRING, "subject_id": _STRING, "currency": _STRING, "since_on": _DATE},
        )
    return reconcile(day, cash, instructions, unmatched, breaks, before)
