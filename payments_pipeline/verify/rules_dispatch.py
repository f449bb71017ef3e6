"""Rules over sending: nothing leaves but under a committed attempt, and nothing twice."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import NET, SIGNED, TableRule

RULES = {
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
            FROM ({NET}) n
            LEFT JOIN LATERAL (
                SELECT sum(CASE n.direction WHEN 'credit' THEN {SIGNED} ELSE -{SIGNED} END) AS back
                FROM journals j JOIN ledger_entries e USING (journal_id)
                WHERE j.instruction_id = n.instruction_id AND j.kind <> 'submission' AND e.party_id = n.party_id
                  AND NOT e.is_item) b ON true
            WHERE coalesce(b.back, 0) <> CASE WHEN n.state IN ('failed', 'returned')
                AND EXISTS (SELECT FROM payout_attempts a WHERE a.instruction_id = n.instruction_id)
                THEN n.amount_minor ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
}
