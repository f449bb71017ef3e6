"""Rules over report lines and reconciliation: only they settle, and each moves its own cash once."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import NET, SIGNED, TableRule

RULES = {
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
            FROM ({NET}) n
            LEFT JOIN LATERAL (
                SELECT sum(CASE n.direction WHEN 'credit' THEN -{SIGNED} ELSE {SIGNED} END) AS excess
                FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = n.instruction_id AND e.is_item) x ON true
            WHERE coalesce(x.excess, 0) <> CASE WHEN n.state IN ('failed', 'returned') THEN greatest(n.net, 0)
                                                WHEN n.state = 'settled' THEN greatest(n.net - n.amount_minor, 0) ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "nothing stays in transit unexplained": TableRule(
        f"""SELECT format('%s %s in transit of instruction %s, which is %s, and no break says so', t.left_minor, n.currency,
                          n.instruction_id, n.state)
            FROM ({NET}) n
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
                    SELECT e.party_id, e.currency::text, {SIGNED} AS balance, 0 AS items FROM ledger_entries e
                    WHERE e.party_id IS NOT NULL
                    UNION ALL
                    SELECT o.party_id, o.currency::text, 0, o.amount_minor FROM open_items o
                    UNION ALL
                    SELECT e.party_id, e.currency::text, 0, {SIGNED}
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
}
