"""Rules over acts: what is written in one transaction says the same day and run of it, wherever it is written.

Belongs here: days and runs of events, releases, journals, attempts. Does not belong here: amounts, states.
"""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

RULES = {
    "events are of the day and run of their act": TableRule(
        """SELECT format('instruction %s: event %s to %s of %s by %s, run %s, and no such act is stored', e.instruction_id,
                         e.seq, e.to_state, e.occurred_on, e.actor, e.run_id)
           FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
           WHERE NOT CASE
               WHEN e.seq = 1 THEN (e.occurred_on, e.run_id, e.actor) = (i.sweep_day, i.run_id, 'sweep')
               WHEN e.seq = 2 AND e.from_state = 'created' AND e.to_state IN ('netted', 'held', 'approved')
                   THEN (e.occurred_on, e.run_id, e.actor) = (i.sweep_day, i.run_id, 'policy ' || i.policy_version)
               WHEN e.from_state = 'approved' AND e.to_state = 'submitting' THEN EXISTS (
                   SELECT FROM payout_attempts a WHERE a.attempt_no = 1
                   AND (a.instruction_id, a.dispatched_on, a.run_id) = (e.instruction_id, e.occurred_on, e.run_id))
               WHEN e.actor LIKE 'report of %' THEN EXISTS (
                   SELECT FROM report_lines l
                   WHERE (l.instruction_id, l.kind, l.report_date, l.run_id, 'report of ' || l.processor)
                       = (e.instruction_id, e.to_state, e.occurred_on, e.run_id, e.actor))
               ELSE true END""",
        "SELECT count(*) FROM instruction_events",
    ),
    "first attempts are of an event and due the day after": TableRule(
        """SELECT format('attempt %s of instruction %s: dispatched %s by run %s for %s, and it is not so', a.attempt_no,
                         a.instruction_id, a.dispatched_on, a.run_id, a.execute_on)
           FROM payout_attempts a JOIN payout_instructions i USING (instruction_id)
           WHERE a.attempt_no = 1 AND (
                   a.execute_on <> greatest(i.sweep_day, a.dispatched_on) + 1
                   OR NOT EXISTS (SELECT FROM instruction_events e
                                  WHERE (e.instruction_id, e.from_state, e.to_state, e.occurred_on, e.run_id)
                                      = (a.instruction_id, 'approved', 'submitting', a.dispatched_on, a.run_id)))
           UNION ALL
           SELECT format('outcome %s of attempt %s of instruction %s, and there is no such attempt', o.outcome, o.attempt_no,
                         o.instruction_id)
           FROM payout_attempt_outcomes o LEFT JOIN payout_attempts a USING (instruction_id, attempt_no)
           WHERE a.instruction_id IS NULL""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "a release is of the day and run of what ended its instruction": TableRule(
        """SELECT format('release of item %s, claim %s: %s by run %s, its instruction %s ended %s by run %s', r.item_id,
                         r.claim_no, r.released_on, r.run_id, c.instruction_id, e.occurred_on, e.run_id)
           FROM claim_releases r JOIN instruction_claims c USING (item_id, claim_no)
           JOIN instruction_events e ON e.instruction_id = c.instruction_id
                                    AND e.to_state IN ('cancelled', 'failed', 'returned')
           WHERE (r.released_on, r.run_id) <> (e.occurred_on, e.run_id) OR (r.by_sweep AND e.actor <> 'sweep')""",
        "SELECT count(*) FROM claim_releases",
    ),
    "journals and instructions are of the run of their act": TableRule(
        """SELECT format('journal %s, %s: run %s, its act is of run %s', j.journal_id, j.kind, j.run_id, act.run_id)
           FROM journals j
           JOIN (SELECT 'submission' AS kind, instruction_id, NULL AS processor, NULL AS entry_reference, run_id
                 FROM payout_attempts WHERE attempt_no = 1
                 UNION ALL
                 SELECT NULL, instruction_id, processor, entry_reference, run_id FROM report_lines) act
               ON (act.kind = j.kind AND act.instruction_id = j.instruction_id)
               OR (act.processor, act.entry_reference) = (j.processor, j.entry_reference)
           WHERE j.run_id <> act.run_id
           UNION ALL
           SELECT format('instruction %s: run %s, its sweep is of run %s', i.instruction_id, i.run_id, s.run_id)
           FROM payout_instructions i JOIN sweeps s ON (s.sweep_day, s.seq) = (i.sweep_day, i.sweep_seq)
           WHERE (i.run_id, i.code_version) <> (s.run_id, s.code_version)""",
        "SELECT count(*) FROM journals",
    ),
    "only accruals and refunds are of a share": TableRule(
        """SELECT format('entry %s of kind %s on %s says match %s, %s line %s, posting %s; it moves money and is of none',
                         entry_id, kind, account, match_id, pot, line_no, posting_no)
           FROM ledger_entries
           WHERE kind NOT IN ('accrual', 'refund')
             AND num_nonnulls(match_id, pot, pot_party_id, line_no, recipient, schedule_version, posting_no) > 0
           UNION ALL
           SELECT format('journal %s of kind %s says match %s, posting %s', journal_id, kind, match_id, posting_no)
           FROM journals WHERE kind NOT IN ('accrual', 'refund', 'write_off') AND num_nonnulls(match_id, posting_no) > 0
           UNION ALL
           SELECT format('entry %s of match %s is of schedule version %s, under which the match was not posted', e.entry_id,
                         e.match_id, e.schedule_version)
           FROM ledger_entries e
           WHERE e.kind = 'accrual' AND e.schedule_version <> ALL (
               SELECT m.schedule_version FROM match_postings m WHERE m.match_id = e.match_id)
             AND e.match_id IN (SELECT m.match_id FROM match_postings m)""",
        "SELECT count(*) FROM ledger_entries",
    ),
}
