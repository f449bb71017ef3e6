"""Rules over report lines and reconciliation: only they settle, and each moves its own cash once.

Belongs here: report lines, what they did, and the processor's own balance. Does not belong here: sending.
"""

from __future__ import annotations

from payments_pipeline.verify.table_rule import NET, SIGNED, TableRule

#: Per processor, currency and date with an intake: what its newest intake says beside what the ledger booked. A currency
#: that a report does not name stands at 0. `is_behind`: lines of earlier dates came in after it, which its balances need
#: not have. `is_known`: reconciliation has the difference as a break. `was_…`: of the date before.
_CASH = """
    WITH newest AS (
        SELECT DISTINCT ON (processor, report_date) processor, report_date, seq, taken_at FROM report_intakes
        ORDER BY processor, report_date, seq DESC
    ), moved AS (
        SELECT substr(account, 6) AS processor, currency::text, day, sum(debit_minor - credit_minor) AS amount
        FROM ledger_entries WHERE account LIKE 'cash:%' AND party_id IS NULL GROUP BY 1, 2, 3
    ), arrived AS (
        SELECT processor, currency::text, report_date, max(taken_at) AS last_at FROM report_lines GROUP BY 1, 2, 3
    ), currencies AS (
        SELECT processor, currency FROM moved UNION SELECT processor, currency::text FROM report_balances
    ), stated AS (
        SELECT n.processor, n.report_date, n.taken_at, c.currency, coalesce(b.opening_minor, 0) AS opening_minor,
               coalesce(b.closing_minor, 0) AS closing_minor,
               (SELECT coalesce(sum(m.amount), 0) FROM moved m WHERE m.processor = n.processor
                AND m.currency = c.currency AND m.day <= n.report_date) AS booked_up_to,
               (SELECT coalesce(sum(m.amount), 0) FROM moved m WHERE m.processor = n.processor
                AND m.currency = c.currency AND m.day = n.report_date) AS booked,
               EXISTS (SELECT FROM arrived a WHERE a.processor = n.processor AND a.currency = c.currency
                       AND a.report_date < n.report_date AND a.last_at > n.taken_at) AS is_behind,
               EXISTS (SELECT FROM reconciliation r WHERE r.subject_type = 'cash' AND r.subject_id = 'cash:' || n.processor
                       AND r.currency = c.currency AND r.report_date = n.report_date AND r.status = 'break') AS is_known
        FROM newest n JOIN currencies c USING (processor)
        LEFT JOIN report_balances b ON (b.processor, b.report_date, b.seq, b.currency::text)
                                     = (n.processor, n.report_date, n.seq, c.currency)
    ), dates AS (
        SELECT *, lag(report_date) OVER w AS before_on, lag(closing_minor) OVER w AS before_minor,
               lag(is_behind) OVER w AS was_behind, lag(is_known) OVER w AS was_known
        FROM stated WINDOW w AS (PARTITION BY processor, currency ORDER BY report_date))
"""

RULES = {
    "only report lines settle and return": TableRule(
        """SELECT format('instruction %s became %s without a report line; ask the processor', e.instruction_id, e.to_state)
           FROM instruction_events e
           WHERE (e.to_state IN ('settled', 'returned') OR (e.from_state = 'submitted' AND e.to_state = 'failed'))
             AND NOT EXISTS (
               SELECT FROM report_lines l WHERE l.instruction_id = e.instruction_id AND l.kind = e.to_state)""",
        "SELECT count(*) FROM instruction_events WHERE to_state IN ('settled', 'returned')",
    ),
    "a report line ends the sending of its instruction": TableRule(
        f"""SELECT format('instruction %s of %s %s is %s, and a report of %s is about it', n.instruction_id, n.amount_minor,
                          n.currency, n.state, n.last_on)
            FROM ({NET}) n
            WHERE n.last_on IS NOT NULL AND n.state NOT IN ('settled', 'failed', 'returned')""",
        "SELECT count(DISTINCT instruction_id) FROM report_lines",
    ),
    "a report line is about the instruction sent under its key": TableRule(
        """SELECT format('%s entry %s of %s %s: key %s was sent for instruction %s, and it is booked for %s', l.processor,
                         l.entry_reference, l.amount_minor, l.currency, l.idempotency_key, sent.instruction_id,
                         l.instruction_id)
           FROM report_lines l
           LEFT JOIN (
               SELECT a.idempotency_key, a.instruction_id, i.processor, i.currency
               FROM payout_attempts a JOIN payout_instructions i USING (instruction_id) WHERE a.attempt_no = 1) sent
               ON (sent.idempotency_key, sent.processor, sent.currency) = (l.idempotency_key, l.processor, l.currency)
                  AND l.kind IN ('settled', 'failed', 'returned')
           WHERE sent.instruction_id IS DISTINCT FROM l.instruction_id""",
        "SELECT count(*) FROM report_lines",
    ),
    "each report line moves its own cash once": TableRule(
        """WITH booked AS (
               SELECT l.processor, l.entry_reference, l.currency, l.amount_minor, l.journal_id IS NOT NULL AS has_journal,
                      j.journal_id IS NOT NULL AS is_its_own, count(e.entry_id) AS entries,
                      coalesce(sum(e.debit_minor - e.credit_minor)
                          FILTER (WHERE e.account = 'cash:' || l.processor AND e.currency = l.currency), 0) AS moved
               FROM report_lines l
               LEFT JOIN journals j ON (j.journal_id, j.processor, j.entry_reference, j.day)
                                     = (l.journal_id, l.processor, l.entry_reference, l.report_date)
                                   AND j.instruction_id IS NOT DISTINCT FROM l.instruction_id
               LEFT JOIN ledger_entries e ON e.journal_id = l.journal_id AND e.account LIKE 'cash:%'
               GROUP BY 1, 2, 3, 4, 5, 6)
           SELECT format('%s entry %s: reported %s %s, posted %s in %s cash entries; journal its own: %s', processor,
                         entry_reference, amount_minor, currency, moved, entries, is_its_own)
           FROM booked
           WHERE moved <> amount_minor OR entries <> CASE WHEN amount_minor = 0 THEN 0 ELSE 1 END
              OR has_journal <> is_its_own OR (amount_minor <> 0 AND NOT is_its_own)
           UNION ALL
           SELECT format('entry %s moves %s %s on %s and no report line stands for it', e.entry_id,
                         e.debit_minor - e.credit_minor, e.currency, e.account)
           FROM ledger_entries e LEFT JOIN report_lines l USING (journal_id)
           WHERE e.account LIKE 'cash:%' AND l.entry_reference IS NULL""",
        "SELECT count(*) FROM report_lines",
    ),
    "what is paid beyond what is owed is an item": TableRule(
        f"""SELECT format('instruction %s of %s is %s: %s moved of %s %s, items for the excess %s', n.instruction_id,
                          n.party_id, n.state, n.net, n.amount_minor, n.currency, coalesce(x.excess, 0))
            FROM ({NET}) n
            LEFT JOIN (
                SELECT i.instruction_id, sum(CASE i.direction WHEN 'credit' THEN -{SIGNED} ELSE {SIGNED} END) AS excess
                FROM payout_instructions i JOIN journals j USING (instruction_id)
                JOIN ledger_entries e ON e.journal_id = j.journal_id AND e.is_item AND e.party_id = i.party_id
                GROUP BY 1) x USING (instruction_id)
            WHERE coalesce(x.excess, 0) <> CASE WHEN n.state IN ('failed', 'returned') THEN greatest(n.net, 0)
                                                WHEN n.state = 'settled' THEN greatest(n.net - n.amount_minor, 0) ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "nothing stays in transit unexplained": TableRule(
        f"""SELECT format('instruction %s of %s is %s: %s %s is left in transit, and no break says so; reconcile %s',
                          n.instruction_id, n.party_id, n.state, t.left_minor, n.currency, n.last_on)
            FROM ({NET}) n
            JOIN (SELECT j.instruction_id, sum(e.debit_minor - e.credit_minor) AS left_minor
                  FROM journals j JOIN ledger_entries e USING (journal_id)
                  WHERE e.account LIKE 'in_transit:%' GROUP BY 1) t USING (instruction_id)
            WHERE t.left_minor <> 0 AND n.state IN ('settled', 'failed', 'returned') AND NOT EXISTS (
                SELECT FROM reconciliation r
                WHERE r.subject_type = 'instruction' AND r.subject_id = n.instruction_id::text
                  AND r.status = 'break' AND r.report_date >= n.last_on)
            UNION ALL
            SELECT format('entry %s: %s %s on %s belongs to no instruction', e.entry_id, e.debit_minor - e.credit_minor,
                          e.currency, e.account)
            FROM ledger_entries e JOIN journals j USING (journal_id)
            WHERE e.account LIKE 'in_transit:%' AND j.instruction_id IS NULL""",
        "SELECT count(DISTINCT instruction_id) FROM journals",
    ),
    "settlement records equal report lines": TableRule(
        """SELECT format('%s entry %s: report line %s %s of %s, record %s %s of %s as %s', processor, entry_reference,
                         l.amount_minor, l.currency, l.report_date, s.cash_minor, s.currency, s.report_date, s.outcome)
           FROM (SELECT l.*, i.direction, i.party_id, i.amount_minor AS instructed_minor,
                        CASE WHEN i.instruction_id IS NOT NULL THEN l.kind
                             WHEN j.kind IN ('fee', 'funding') THEN j.kind ELSE 'unmatched' END AS outcome
                 FROM report_lines l LEFT JOIN payout_instructions i USING (instruction_id)
                 LEFT JOIN journals j USING (journal_id)) l
           FULL JOIN settlement_records s USING (processor, entry_reference)
           WHERE (l.amount_minor, l.currency::text, l.report_date, l.instruction_id::text, l.direction, l.party_id,
                  l.instructed_minor, l.outcome, l.reason, l.journal_id::text)
                 IS DISTINCT FROM (s.cash_minor, s.currency, s.report_date, s.instruction_id, s.direction, s.party_id,
                                   s.instructed_minor, s.outcome, s.reason, s.journal_id)""",
        "SELECT count(*) FROM report_lines",
    ),
    "cash equals the processor's closing balance": TableRule(
        f"""{_CASH}
            SELECT format('cash:%s on %s: ledger %s %s, closing balance %s; a report was not taken in, or before it grew: run '
                          'its day again', processor, report_date, booked_up_to, currency, closing_minor)
            FROM dates WHERE booked_up_to <> closing_minor AND NOT is_behind AND NOT is_known
            UNION ALL
            SELECT format('cash:%s on %s: opening balance %s %s, moved %s, closing balance %s; ask the processor', processor,
                          report_date, opening_minor, currency, booked, closing_minor)
            FROM dates WHERE opening_minor + booked <> closing_minor AND NOT is_known
            UNION ALL
            SELECT format('cash:%s on %s: opening balance %s %s, closing balance of %s was %s; a report between them was not '
                          'taken in, or ask the processor', processor, report_date, opening_minor, currency, before_on, before_minor)
            FROM dates
            WHERE opening_minor <> before_minor AND NOT (is_behind OR was_behind) AND NOT (is_known OR was_known)
            UNION ALL
            SELECT format('%s: a balance of %s in %s for intake %s, and there is no such intake', processor, report_date, currency,
                          seq)
            FROM report_balances LEFT JOIN report_intakes i USING (processor, report_date, seq) WHERE i.digest IS NULL""",
        "SELECT count(*) FROM report_balances",
        f"""{_CASH}
            SELECT format('cash:%s on %s: ledger %s %s, closing balance %s, and lines of earlier dates were taken in since; take '
                          'the report in again', processor, report_date, booked_up_to, currency, closing_minor)
            FROM dates WHERE booked_up_to <> closing_minor AND is_behind AND NOT is_known""",
    ),
    "reconciliation's differences are right": TableRule(
        """SELECT format('%s %s of %s: %s less %s is given as %s (%s), %s days after %s; run the day again', subject_type,
                         subject_id, report_date, actual_minor, expected_minor, difference_minor, status, age_days, since_on)
           FROM reconciliation WHERE difference_minor <> actual_minor - expected_minor
              OR (status = 'matched' AND difference_minor <> 0) OR age_days <> report_date - since_on
           UNION ALL
           SELECT format('%s %s of %s in %s: there is no such thing; run the day again', subject_type, subject_id, report_date,
                         currency)
           FROM reconciliation r
           WHERE NOT CASE subject_type
               WHEN 'cash' THEN EXISTS (SELECT FROM report_intakes i WHERE r.subject_id = 'cash:' || i.processor)
               WHEN 'instruction' THEN EXISTS (SELECT FROM payout_instructions i
                   WHERE (i.instruction_id::text, i.currency::text) = (r.subject_id, r.currency))
               WHEN 'unmatched' THEN EXISTS (SELECT FROM report_lines l
                   WHERE (l.entry_reference, l.currency::text) = (r.subject_id, r.currency))
               WHEN 'posting' THEN EXISTS (SELECT FROM posting_breaks b
                   WHERE b.match_id::text = r.subject_id AND b.match_day <= r.report_date)
               ELSE false END""",
        "SELECT count(*) FROM reconciliation",
    ),
}
