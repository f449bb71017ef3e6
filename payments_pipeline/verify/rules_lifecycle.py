"""Rules over instructions and their states."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

RULES = {
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
}
