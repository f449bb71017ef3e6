"""Data-quality rules over the money zone: each a query for the rows that break it, scoped to one day.

Belongs here: rules over tables. Does not belong here: rules over frames (`domain.checks`); `verify`, which recomputes
the rules of the whole store by code of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.ledger import ENTRY_KEY
from payments_pipeline.storage.postgres import connect, read_frame

#: The whole ledger's balance is looked at where money is about to leave (`payout_submissions.check_ledger`).
JOURNALS_OF_DAY = """
    SELECT journal_id::text, currency, sum(debit_minor) AS debits_minor, sum(credit_minor) AS credits_minor
    FROM ledger_entries WHERE day = %(day)s GROUP BY 1, 2 HAVING sum(debit_minor) <> sum(credit_minor)
"""
COUNT_OF_JOURNALS = "SELECT count(*) AS journals FROM journals WHERE day = %(day)s"
POSTING_BREAKS = """
    SELECT match_id, reason, words FROM posting_breaks
    WHERE match_day = %(day)s AND seq = (SELECT max(seq) FROM day_postings WHERE match_day = %(day)s) ORDER BY match_id
"""
#: What later postings of matches changed, party by party, and why: newest first, largest first.
CORRECTIONS = """
    SELECT m.match_day, m.day_seq AS posting, m.match_id, e.account, e.currency,
           (sum(e.credit_minor) - sum(e.debit_minor))::bigint AS amount_minor,
           concat_ws('; ',
               CASE WHEN m.match_day <> p.match_day THEN format('was posted under %%s', p.match_day) END,
               CASE WHEN m.revision > p.revision THEN format('revision %%s after %%s', m.revision, p.revision) END,
               CASE WHEN m.content_hash <> p.content_hash THEN 'its result says something else' END,
               CASE WHEN m.revenue_minor IS DISTINCT FROM p.revenue_minor
                    THEN format('revenue %%s after %%s', coalesce(m.revenue_minor::text, 'not declared'),
                                coalesce(p.revenue_minor::text, 'not declared')) END,
               CASE WHEN m.participants <> p.participants THEN 'others took part' || coalesce(': ' || (
                   SELECT string_agg(CASE WHEN was.it IS NULL THEN '+' ELSE '-' END || (coalesce(n.it, was.it) ->> 0),
                                     ', ' ORDER BY coalesce(n.it, was.it) ->> 0)
                   FROM (SELECT jsonb_array_elements(m.participants::jsonb) AS it) n
                   FULL JOIN (SELECT jsonb_array_elements(p.participants::jsonb) AS it) was ON n.it = was.it
                   WHERE n.it IS NULL OR was.it IS NULL), '') END,
               CASE WHEN m.payout_policy <> p.payout_policy
                    THEN format('paid out %%s after %%s', m.payout_policy, p.payout_policy) END,
               CASE WHEN m.rules_hash <> p.rules_hash
                    THEN 'other rules' || coalesce((
                        SELECT format(', accepted by %%s: %%s', d.actor, d.reason)
                        FROM proposals q JOIN proposal_decisions d USING (proposal_id)
                        WHERE q.kind = 'rule_change' AND d.decision = 'accepted'
                          AND q.content -> 'matches' @> jsonb_build_array(
                              jsonb_build_array(m.match_id, m.rules_hash, m.content_hash, m.posting_no))
                        LIMIT 1), '') END,
               CASE WHEN bool_or(e.kind = 'refund')
                    THEN 'with what was refunded of it, taken anew from what it holds now' END) AS words
    FROM match_postings m
    JOIN match_postings p ON p.match_id = m.match_id AND p.posting_no = m.posting_no - 1
    JOIN journals a ON a.kind = 'accrual' AND a.match_id = m.match_id AND a.posting_no = m.posting_no
    -- What was refunded of it is posted anew in the same transaction.
    JOIN journals j ON j.journal_id = a.journal_id
        OR j.kind = 'refund' AND j.match_id = a.match_id AND j.created_xid = a.created_xid
    JOIN ledger_entries e ON e.journal_id = j.journal_id
    WHERE (%(day)s::date IS NULL OR m.match_day = %(day)s) AND (%(party)s::text IS NULL OR e.party_id = %(party)s)
    GROUP BY m.match_id, m.posting_no, p.match_id, p.posting_no, e.account, e.currency
    HAVING sum(e.credit_minor) <> sum(e.debit_minor)
    ORDER BY m.match_day DESC, m.day_seq DESC, abs(sum(e.credit_minor) - sum(e.debit_minor)) DESC, m.match_id, e.account
    LIMIT 100
"""
#: Report lines of the day that belonged to nothing, and that people have found out about since.
MATCHED_LINES = """
    SELECT l.entry_reference FROM report_lines l
    JOIN journals m ON (m.processor, m.matched_reference) = (l.processor, l.entry_reference)
    WHERE l.report_date = %(day)s
"""
_POSTED = """
    SELECT match_id, pot, pot_party_id, line_no, account, currency,
           (sum(credit_minor) - sum(debit_minor))::bigint AS amount_minor
    FROM ledger_entries WHERE kind = 'accrual' AND day = {day} GROUP BY 1, 2, 3, 4, 5, 6
    HAVING sum(credit_minor) <> sum(debit_minor)
"""
_POSTED_SCHEMA = dict.fromkeys(ENTRY_KEY, pa.string()) | {"line_no": pa.int64(), "amount_minor": pa.int64()}
#: Refunds accepted on the day: what applies of each, and what its pot charges and has given back in all.
REFUNDS_OF_DAY = """
    SELECT r.refund_id, r.match_id, r.pot_party_id, r.currency, r.amount_minor,
           (SELECT coalesce(sum(greatest(k.minor, 0)), 0)::bigint FROM (
                SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
                WHERE e.kind = 'refund' AND e.refund_id = r.refund_id
                GROUP BY e.line_no, e.account) k) AS applied_minor,
           (SELECT coalesce(-sum(least(k.minor, 0)), 0)::bigint FROM (
                SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
                WHERE e.kind = 'accrual' AND (e.match_id, e.pot, e.pot_party_id, e.currency)
                    = (r.match_id::text, r.pot, r.pot_party_id::text, r.currency)
                GROUP BY e.line_no, e.account) k) AS pot_charged_minor,
           (SELECT coalesce(sum(greatest(k.minor, 0)), 0)::bigint FROM (
                SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
                WHERE e.kind = 'refund' AND (e.match_id, e.pot, e.pot_party_id, e.currency)
                    = (r.match_id::text, r.pot, r.pot_party_id::text, r.currency)
                GROUP BY e.line_no, e.account) k) AS pot_refunded_minor
    FROM refunds r WHERE r.accepted_day = %(day)s ORDER BY r.match_id, r.pot_party_id, r.pot_no
"""
COUNT_OF_INSTRUCTIONS = "SELECT count(*) AS instructions FROM payout_instructions WHERE sweep_day = %(day)s"
INSTRUCTION_IS_NOT_ITS_ITEMS = """
    SELECT i.instruction_id::text, i.party_id, i.currency, i.direction, i.amount_minor,
           coalesce(sum(e.credit_minor - e.debit_minor), 0) AS items_minor
    FROM payout_instructions i
    LEFT JOIN instruction_claims c USING (instruction_id)
    LEFT JOIN ledger_entries e ON e.entry_id = c.item_id AND e.party_id = i.party_id AND e.currency = i.currency
    WHERE i.sweep_day = %(day)s
    GROUP BY i.instruction_id
    HAVING coalesce(sum(e.credit_minor - e.debit_minor), 0)
           <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
        OR count(c.item_id) <> count(e.entry_id)
"""
COUNT_OF_CLAIMS = """
    SELECT count(*) AS claims FROM instruction_claims JOIN payout_instructions USING (instruction_id)
    WHERE sweep_day = %(day)s
"""
CLAIMED_TWICE = """
    SELECT c.item_id::text, count(*) AS live_claims, string_agg(c.instruction_id::text, ', ') AS instructions
    FROM instruction_claims c
    LEFT JOIN claim_releases r USING (item_id, claim_no)
    WHERE r.item_id IS NULL AND c.item_id IN (
        SELECT item_id FROM instruction_claims JOIN payout_instructions USING (instruction_id)
        WHERE sweep_day = %(day)s)
    GROUP BY c.item_id HAVING count(*) > 1
"""
WAITING = """
    SELECT party_id, currency, reason, items, amount_minor FROM sweep_deferrals
    WHERE sweep_day = %(day)s AND seq = (SELECT max(seq) FROM sweeps WHERE sweep_day = %(day)s)
    ORDER BY reason, abs(amount_minor) DESC, party_id
"""
UNANSWERED = """
    SELECT i.instruction_id::text, i.party_id, i.currency, i.direction, i.amount_minor, s.state, s.since_on
    FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
    WHERE s.state IN ('submitting', 'unknown') AND i.sweep_day <= %(day)s
"""
REFUSED = """
    SELECT i.instruction_id::text, i.party_id, i.currency, i.direction, i.amount_minor, e.to_state AS state, e.reason
    FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
    WHERE e.occurred_on = %(day)s AND e.actor IN ('dispatch', 'gate', 'resolver')
      AND e.to_state IN ('failed', 'cancelled')
"""
ATTEMPTS_OF_DAY = """
    SELECT a.instruction_id::text, a.attempt_no, i.party_id, i.currency, i.direction, i.amount_minor,
           coalesce(o.outcome, 'none') AS outcome, a.execute_on
    FROM payout_attempts a JOIN payout_instructions i USING (instruction_id)
    LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
    WHERE a.dispatched_on = %(day)s
"""
BREAKS = """
    SELECT subject_type, subject_id, currency, difference_minor, age_days, words FROM reconciliation
    WHERE report_date = %(day)s AND status = 'break' ORDER BY age_days DESC, subject_id
"""


@dataclass(frozen=True)
class DayTables:
    """The money zone as the checks of one day see it.

    Attributes:
        url: business database.
        day: the day that queries are scoped to.
    """

    url: str
    day: date

    def __call__(self, query: str) -> pd.DataFrame:
        """Give a query's rows; amounts are int64, whatever width Postgres sums them to."""
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(query, {"day": self.day, "party": None})
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        columns = {}
        for position, name in enumerate(names):
            # Value by value: numpy would take a column of lists apart.
            columns[name] = np.empty(len(rows), dtype="int64" if name.endswith("_minor") else object)
            columns[name][:] = [row[position] for row in rows]
        return pd.DataFrame(columns, copy=False)

    def posted(self) -> pd.DataFrame:
        """Give what is posted of the day's accruals: ENTRY_KEY and amount_minor, > 0 a credit."""
        with connect(self.url) as connection, connection.cursor() as cursor:
            return read_frame(cursor, _POSTED, {"day": self.day}, _POSTED_SCHEMA)

    def count(self, query: str) -> int:
        """Give the number that a query counts."""
        return int(self(query).to_numpy()[0, 0])
