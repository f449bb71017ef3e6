"""Rules over the tables of the money zone: each a query for what breaks it, and one that counts what was looked at."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

#: What nobody may ever change.
APPEND_ONLY = (
    "day_postings",
    "posting_breaks",
    "match_postings",
    "journals",
    "ledger_entries",
    "sweeps",
    "sweep_deferrals",
    "payout_instructions",
    "instruction_claims",
    "claim_releases",
    "lifecycle",
    "instruction_events",
    "payout_attempts",
    "payout_attempt_outcomes",
    "report_intakes",
    "report_balances",
    "report_lines",
    "settlement_records",
    "alerts",
    "alert_deliveries",
)
_PROJECTIONS = ("open_items", "instruction_states", "lifecycle")


@dataclass(frozen=True)
class TableRule:
    """A rule as SQL.

    Attributes:
        breaches: gives one text a row, each what is wrong with one record and what to do.
        checked: counts what was looked at.
    """

    breaches: str
    checked: str

    def check(self, connection: psycopg.Connection) -> tuple[int, list[str]]:
        """Give how many were looked at, and the breaches."""
        row = connection.execute(self.checked.encode()).fetchone()
        assert row is not None
        return row[0], [text for (text,) in connection.execute(self.breaches.encode()).fetchall()]


_SIGNED = "(e.credit_minor - e.debit_minor)"
_NET = """
    SELECT i.instruction_id, i.party_id, i.processor, i.currency, i.direction, i.amount_minor, newest.to_state AS state,
           coalesce(l.cash, 0) * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END AS net
    FROM payout_instructions i
    JOIN LATERAL (SELECT to_state FROM instruction_events e WHERE e.instruction_id = i.instruction_id
                  ORDER BY seq DESC LIMIT 1) newest ON true
    LEFT JOIN (SELECT instruction_id, sum(amount_minor) AS cash FROM report_lines GROUP BY 1) l USING (instruction_id)
"""

TABLE_RULES = {
    "debits equal credits per currency": TableRule(
        """SELECT format('%s: debits %s, credits %s; restore the ledger before anything is sent', currency,
                         sum(debit_minor), sum(credit_minor))
           FROM ledger_entries GROUP BY currency HAVING sum(debit_minor) <> sum(credit_minor)""",
        "SELECT count(DISTINCT currency) FROM ledger_entries",
    ),
    "debits equal credits per journal": TableRule(
        """SELECT format('journal %s, %s: debits %s, credits %s', j.journal_id, e.currency, sum(e.debit_minor),
                         sum(e.credit_minor))
           FROM journals j LEFT JOIN ledger_entries e USING (journal_id) GROUP BY j.journal_id, e.currency
           HAVING sum(e.debit_minor) IS DISTINCT FROM sum(e.credit_minor) OR count(e.entry_id) < 2""",
        "SELECT count(*) FROM journals",
    ),
    "entries belong to the journal they say": TableRule(
        """SELECT format('entry %s: kind %s, day %s, its journal says %s, %s', e.entry_id, e.kind, e.day, j.kind, j.day)
           FROM ledger_entries e LEFT JOIN journals j USING (journal_id)
           WHERE j.journal_id IS NULL OR (e.kind, e.day) <> (j.kind, j.day)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "amounts are whole and above zero on one side": TableRule(
        """SELECT format('entry %s: debit %s, credit %s', entry_id, debit_minor, credit_minor) FROM ledger_entries
           WHERE debit_minor < 0 OR credit_minor < 0 OR (debit_minor = 0) = (credit_minor = 0)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "an item is a line that says what is owed, never one that moves money": TableRule(
        """SELECT format('entry %s of kind %s on %s: is_item %s', e.entry_id, e.kind, e.account, e.is_item)
           FROM ledger_entries e
           WHERE (e.kind = 'accrual' AND e.is_item <> (e.party_id IS NOT NULL))
              OR (e.kind IN ('submission', 'fee', 'funding', 'unmatched') AND e.is_item)
              OR (e.party_id IS NOT NULL AND e.account <> 'party:' || e.party_id)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "each match sums to zero": TableRule(
        """SELECT format('match %s, %s %s: its postings sum to %s', match_id, pot, pot_party_id,
                         sum(credit_minor) - sum(debit_minor))
           FROM ledger_entries WHERE kind = 'accrual' GROUP BY match_id, pot, pot_party_id
           HAVING sum(credit_minor) <> sum(debit_minor)""",
        "SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id FROM ledger_entries WHERE kind = 'accrual') p",
    ),
    "postings of a key are numbered without gap": TableRule(
        """SELECT format('match %s, %s %s line %s %s: postings %s of %s', match_id, pot, pot_party_id, line_no, account,
                         count(*), max(posting_no))
           FROM ledger_entries WHERE kind = 'accrual'
           GROUP BY match_id, pot, pot_party_id, line_no, account, currency
           HAVING count(*) <> max(posting_no) OR count(DISTINCT posting_no) <> count(*)""",
        """SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id, line_no, account, currency
                                 FROM ledger_entries WHERE kind = 'accrual') k""",
    ),
    "a match is posted under one day": TableRule(
        """SELECT format('match %s has money under %s days', match_id, count(*)) FROM (
               SELECT match_id, day FROM (
                   SELECT match_id, day, account, sum(credit_minor) - sum(debit_minor) AS net FROM ledger_entries
                   WHERE kind = 'accrual' GROUP BY 1, 2, 3) a WHERE net <> 0 GROUP BY 1, 2) d
           GROUP BY match_id HAVING count(*) > 1""",
        "SELECT count(DISTINCT match_id) FROM match_postings",
    ),
    "revisions posted of a match never go back": TableRule(
        """SELECT format('match %s: posting %s has revision %s after %s', n.match_id, n.posting_no, n.revision, p.revision)
           FROM match_postings n LEFT JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
           WHERE p.revision > n.revision OR (n.posting_no > 1 AND p.match_id IS NULL)""",
        "SELECT count(*) FROM match_postings",
    ),
    "no money is in suspense": TableRule(
        """SELECT format('%s %s in suspense: give the pot a recipient, or match the report line',
                         sum(credit_minor) - sum(debit_minor), currency)
           FROM ledger_entries WHERE account = 'suspense' GROUP BY currency HAVING sum(credit_minor) <> sum(debit_minor)""",
        "SELECT count(*) FROM ledger_entries WHERE account = 'suspense'",
    ),
    "open items are the items without a live claim": TableRule(
        f"""WITH live AS (
                SELECT c.item_id FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
                WHERE r.item_id IS NULL
            ), truth AS (
                SELECT e.entry_id AS item_id, e.party_id, e.currency::text, {_SIGNED} AS amount_minor,
                       1 + (SELECT count(*) FROM instruction_claims c WHERE c.item_id = e.entry_id) AS next_claim_no
                FROM ledger_entries e WHERE e.is_item AND e.entry_id NOT IN (SELECT item_id FROM live)
            ), kept AS (SELECT item_id, party_id, currency::text, amount_minor, next_claim_no FROM open_items)
            SELECT format('item %s of %s: %s %s is %s', item_id, party_id, amount_minor, currency, what) FROM (
                SELECT t.*, 'open, and open_items lacks it' AS what FROM (SELECT * FROM truth EXCEPT SELECT * FROM kept) t
                UNION ALL
                SELECT k.*, 'in open_items and not open' FROM (SELECT * FROM kept EXCEPT SELECT * FROM truth) k) d""",
        "SELECT count(*) FROM ledger_entries WHERE is_item",
    ),
    "no item is under two live instructions": TableRule(
        """SELECT format('item %s is under %s', c.item_id, string_agg(c.instruction_id::text, ' and '))
           FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
           WHERE r.item_id IS NULL GROUP BY c.item_id HAVING count(*) > 1""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "claim n + 1 follows the release of n": TableRule(
        """SELECT format('item %s: claim %s though claim %s was not released', c.item_id, c.claim_no, c.claim_no - 1)
           FROM instruction_claims c LEFT JOIN claim_releases r ON r.item_id = c.item_id AND r.claim_no = c.claim_no - 1
           WHERE c.claim_no > 1 AND r.item_id IS NULL""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "only cancelled, failed and returned instructions release their items, all of them": TableRule(
        """SELECT format('instruction %s is %s: %s of %s claims released', c.instruction_id, n.to_state, count(r.item_id),
                         count(*))
           FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
           JOIN LATERAL (SELECT to_state FROM instruction_events e WHERE e.instruction_id = c.instruction_id
                         ORDER BY seq DESC LIMIT 1) n ON true
           GROUP BY c.instruction_id, n.to_state
           HAVING count(r.item_id) <> CASE WHEN n.to_state IN ('cancelled', 'failed', 'returned') THEN count(*) ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "an instruction is the net of its items": TableRule(
        f"""SELECT format('instruction %s of %s: %s %s %s, its items net to %s', i.instruction_id, i.party_id, i.direction,
                          i.amount_minor, i.currency, coalesce(sum({_SIGNED}), 0))
            FROM payout_instructions i LEFT JOIN instruction_claims c USING (instruction_id)
            LEFT JOIN ledger_entries e ON e.entry_id = c.item_id AND e.is_item AND e.party_id = i.party_id
                                      AND e.currency = i.currency
            GROUP BY i.instruction_id
            HAVING coalesce(sum({_SIGNED}), 0) <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
                OR count(c.item_id) <> count(e.entry_id) OR count(c.item_id) = 0""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "events follow the lifecycle": TableRule(
        """SELECT format('instruction %s: event %s from %s to %s after %s', n.instruction_id, n.seq, n.from_state, n.to_state,
                         p.to_state)
           FROM instruction_events n
           LEFT JOIN instruction_events p ON p.instruction_id = n.instruction_id AND p.seq = n.seq - 1
           WHERE p.to_state IS DISTINCT FROM n.from_state OR (n.seq > 1 AND p.seq IS NULL) OR NOT EXISTS (
               SELECT FROM lifecycle l WHERE l.from_state IS NOT DISTINCT FROM n.from_state AND l.to_state = n.to_state)
           UNION ALL
           SELECT format('instruction %s has no event', instruction_id) FROM payout_instructions i
           WHERE NOT EXISTS (SELECT FROM instruction_events e WHERE e.instruction_id = i.instruction_id)""",
        "SELECT count(*) FROM instruction_events",
    ),
    "states are where the events lead": TableRule(
        """SELECT format('instruction %s: state %s, its last event says %s', i.instruction_id, s.state, n.to_state)
           FROM payout_instructions i LEFT JOIN instruction_states s USING (instruction_id)
           LEFT JOIN LATERAL (SELECT to_state, seq, occurred_on FROM instruction_events e
                              WHERE e.instruction_id = i.instruction_id ORDER BY seq DESC LIMIT 1) n ON true
           WHERE (s.state, s.seq, s.since_on) IS DISTINCT FROM (n.to_state, n.seq, n.occurred_on)""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "nothing is sent but under a committed attempt": TableRule(
        """SELECT format('instruction %s is %s without an attempt', e.instruction_id, e.to_state) FROM instruction_events e
           WHERE e.to_state = 'submitting' AND NOT EXISTS (
               SELECT FROM payout_attempts a WHERE a.instruction_id = e.instruction_id AND a.attempt_no = 1)
           UNION ALL
           SELECT format('attempt %s of instruction %s that never was submitting', a.attempt_no, a.instruction_id)
           FROM payout_attempts a WHERE NOT EXISTS (
               SELECT FROM instruction_events e WHERE e.instruction_id = a.instruction_id AND e.to_state = 'submitting')""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "each attempt of an instruction has one key, the same bytes and deadline": TableRule(
        """SELECT format('instruction %s: %s keys, %s requests, %s deadlines', instruction_id,
                         count(DISTINCT idempotency_key), count(DISTINCT request), count(DISTINCT not_after))
           FROM payout_attempts GROUP BY instruction_id
           HAVING (count(DISTINCT idempotency_key), count(DISTINCT request), count(DISTINCT not_after)) <> (1, 1, 1)
               OR bool_or(request_sha256 <> encode(sha256(request), 'hex')) OR max(attempt_no) <> count(*)
           UNION ALL
           SELECT format('key %s stands for %s instructions', idempotency_key, count(DISTINCT instruction_id))
           FROM payout_attempts GROUP BY idempotency_key HAVING count(DISTINCT instruction_id) > 1""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "an instruction has one live attempt at most": TableRule(
        """SELECT format('instruction %s has %s attempts without an outcome', a.instruction_id, count(*))
           FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
           WHERE o.outcome IS NULL GROUP BY a.instruction_id HAVING count(*) > 1
           UNION ALL
           SELECT format('instruction %s was sent again after attempt %s was %s', a.instruction_id, a.attempt_no, o.outcome)
           FROM payout_attempts a JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
           WHERE o.outcome IN ('acknowledged', 'rejected') AND EXISTS (
               SELECT FROM payout_attempts n WHERE n.instruction_id = a.instruction_id AND n.attempt_no > a.attempt_no)""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "sending is posted once, for the instruction's amount": TableRule(
        """SELECT format('instruction %s of %s %s: its submission moves %s of the party', i.instruction_id, i.amount_minor,
                          i.currency, coalesce(p.moved, 0))
            FROM payout_instructions i
            JOIN LATERAL (SELECT bool_or(e.to_state = 'submitting') AS sent FROM instruction_events e
                          WHERE e.instruction_id = i.instruction_id) s ON true
            LEFT JOIN LATERAL (
                SELECT sum(e.debit_minor - e.credit_minor) AS moved FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = i.instruction_id AND j.kind = 'submission' AND e.party_id = i.party_id
                  AND e.currency = i.currency) p ON true
            WHERE coalesce(p.moved, 0) <> CASE WHEN NOT s.sent THEN 0 WHEN i.direction = 'credit' THEN i.amount_minor
                                               ELSE -i.amount_minor END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "a failed or returned instruction is posted back once": TableRule(
        f"""SELECT format('instruction %s is %s: the party got back %s of %s', n.instruction_id, n.state, coalesce(b.back, 0),
                          n.amount_minor)
            FROM ({_NET}) n
            LEFT JOIN LATERAL (
                SELECT sum(CASE n.direction WHEN 'credit' THEN {_SIGNED} ELSE -{_SIGNED} END) AS back
                FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = n.instruction_id AND j.kind <> 'submission' AND e.party_id = n.party_id
                  AND NOT e.is_item) b ON true
            WHERE coalesce(b.back, 0) <> CASE WHEN n.state IN ('failed', 'returned')
                AND EXISTS (SELECT FROM payout_attempts a WHERE a.instruction_id = n.instruction_id)
                THEN n.amount_minor ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "only report lines settle and return": TableRule(
        """SELECT format('instruction %s became %s without a report line', e.instruction_id, e.to_state)
           FROM instruction_events e WHERE e.to_state IN ('settled', 'returned') AND NOT EXISTS (
               SELECT FROM report_lines l WHERE l.instruction_id = e.instruction_id AND l.kind = e.to_state)""",
        "SELECT count(*) FROM instruction_events WHERE to_state IN ('settled', 'returned')",
    ),
    "each report line moves its own cash once": TableRule(
        """SELECT format('%s entry %s: reported %s %s, posted %s', l.processor, l.entry_reference, l.amount_minor, l.currency,
                         coalesce(sum(e.debit_minor - e.credit_minor), 0))
           FROM report_lines l
           LEFT JOIN ledger_entries e ON e.journal_id = l.journal_id AND e.account = 'cash:' || l.processor
                                     AND e.currency = l.currency
           GROUP BY l.processor, l.entry_reference
           HAVING coalesce(sum(e.debit_minor - e.credit_minor), 0) <> l.amount_minor
           UNION ALL
           SELECT format('entry %s moves cash and no report line stands for it', e.entry_id) FROM ledger_entries e
           WHERE e.account LIKE 'cash:%' AND NOT EXISTS (SELECT FROM report_lines l WHERE l.journal_id = e.journal_id)""",
        "SELECT count(*) FROM report_lines",
    ),
    "what is paid beyond what is owed is an item": TableRule(
        f"""SELECT format('instruction %s is %s: %s moved of %s, items for the excess %s', n.instruction_id, n.state, n.net,
                          n.amount_minor, coalesce(x.excess, 0))
            FROM ({_NET}) n
            LEFT JOIN LATERAL (
                SELECT sum(CASE n.direction WHEN 'credit' THEN -{_SIGNED} ELSE {_SIGNED} END) AS excess
                FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = n.instruction_id AND e.is_item) x ON true
            WHERE coalesce(x.excess, 0) <> CASE WHEN n.state IN ('failed', 'returned') THEN greatest(n.net, 0)
                                                WHEN n.state = 'settled' THEN greatest(n.net - n.amount_minor, 0) ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "nothing stays in transit unexplained": TableRule(
        f"""SELECT format('%s %s in transit of instruction %s, which is %s, and no break says so', t.left_minor, n.currency,
                          n.instruction_id, n.state)
            FROM ({_NET}) n
            JOIN LATERAL (
                SELECT sum(e.debit_minor - e.credit_minor) AS left_minor FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = n.instruction_id AND e.account = 'in_transit:' || n.processor) t ON true
            WHERE t.left_minor <> 0 AND n.state IN ('settled', 'failed', 'returned') AND NOT EXISTS (
                SELECT FROM reconciliation r WHERE r.subject_id = n.instruction_id::text AND r.status = 'break')""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "a party's balance is its open items and those under instructions not yet sent": TableRule(
        f"""SELECT format('%s: balance %s %s, items %s', party_id, balance, currency, items) FROM (
                SELECT party_id, currency, sum(balance) AS balance, sum(items) AS items FROM (
                    SELECT e.party_id, e.currency::text, {_SIGNED} AS balance, 0 AS items FROM ledger_entries e
                    WHERE e.party_id IS NOT NULL
                    UNION ALL
                    SELECT o.party_id, o.currency::text, 0, o.amount_minor FROM open_items o
                    UNION ALL
                    SELECT e.party_id, e.currency::text, 0, {_SIGNED}
                    FROM instruction_claims c JOIN ledger_entries e ON e.entry_id = c.item_id
                    LEFT JOIN claim_releases r USING (item_id, claim_no)
                    WHERE r.item_id IS NULL AND NOT EXISTS (
                        SELECT FROM instruction_events v WHERE v.instruction_id = c.instruction_id
                        AND v.to_state IN ('submitting', 'netted'))) parts
                GROUP BY 1, 2) p WHERE balance <> items""",
        "SELECT count(*) FROM (SELECT DISTINCT party_id, currency FROM ledger_entries WHERE party_id IS NOT NULL) p",
    ),
    "settlement records equal report lines": TableRule(
        """SELECT format('%s entry %s: report line %s %s, record %s %s', processor, entry_reference, l.amount_minor,
                         l.currency, s.cash_minor, s.currency)
           FROM report_lines l FULL JOIN settlement_records s USING (processor, entry_reference)
           WHERE (l.amount_minor, l.currency::text, l.report_date, l.instruction_id::text)
                 IS DISTINCT FROM (s.cash_minor, s.currency, s.report_date, s.instruction_id)""",
        "SELECT count(*) FROM report_lines",
    ),
    "cash equals the processor's closing balance": TableRule(
        """WITH newest AS (
               SELECT DISTINCT ON (processor) processor, report_date, seq, taken_at FROM report_intakes
               ORDER BY processor, taken_at DESC
           ), reported AS (
               SELECT n.processor, n.report_date, b.currency::text, b.closing_minor FROM newest n
               JOIN report_balances b USING (processor, report_date, seq)
           ), booked AS (
               SELECT n.processor, n.report_date, e.currency::text, sum(e.debit_minor - e.credit_minor) AS balance
               FROM newest n JOIN ledger_entries e ON e.account = 'cash:' || n.processor AND e.day <= n.report_date
               GROUP BY 1, 2, 3
           )
           SELECT format('cash:%s on %s: ledger %s %s, closing balance %s; a report was not taken in, or before it grew',
                         processor, report_date, coalesce(balance, 0), currency, coalesce(closing_minor, 0))
           FROM (SELECT * FROM reported FULL JOIN booked USING (processor, report_date, currency)) d
           WHERE coalesce(balance, 0) <> coalesce(closing_minor, 0) AND NOT EXISTS (
               SELECT FROM reconciliation c WHERE c.subject_type = 'cash' AND c.subject_id = 'cash:' || d.processor
               AND c.currency = d.currency AND c.report_date = d.report_date AND c.status = 'break')""",
        "SELECT count(*) FROM report_balances",
    ),
    "reconciliation's differences are right": TableRule(
        """SELECT format('%s %s of %s: %s - %s is not %s', subject_type, subject_id, report_date, actual_minor,
                         expected_minor, difference_minor)
           FROM reconciliation WHERE difference_minor <> actual_minor - expected_minor
              OR (status = 'matched' AND difference_minor <> 0) OR age_days <> report_date - since_on""",
        "SELECT count(*) FROM reconciliation",
    ),
    "append-only tables refuse change": TableRule(
        f"""SELECT format('payments.%s has no trigger that refuses UPDATE, DELETE and TRUNCATE: migrate again', name)
            FROM unnest(ARRAY{list(APPEND_ONLY)}) AS name
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = to_regclass('payments.' || name) AND p.proname = 'refuse_change' AND t.tgenabled IN ('O', 'A')
                  AND (t.tgtype & 56) = 56)""",
        f"SELECT {len(APPEND_ONLY)}",
    ),
    "the run-time login can only insert and read": TableRule(
        f"""SELECT format('payments_runtime may %s payments.%s: revoke it', privilege, name)
            FROM unnest(ARRAY{[*APPEND_ONLY, "open_items", "instruction_states", "reconciliation"]}) AS name
            CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'INSERT']) AS privilege
            WHERE has_table_privilege('payments_runtime', 'payments.' || name, privilege)
              AND NOT (privilege = 'INSERT' AND name NOT IN ({", ".join(f"'{name}'" for name in _PROJECTIONS)}))
              AND NOT (privilege = 'DELETE' AND name = 'reconciliation')""",
        f"SELECT {len(APPEND_ONLY) + 3}",
    ),
}
