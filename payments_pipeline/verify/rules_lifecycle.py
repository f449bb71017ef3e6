"""Rules over instructions and their states.

Belongs here: events and the states they lead to. Does not belong here: what an act must have done besides.
"""

from __future__ import annotations

from payments_pipeline.verify.table_rule import STATES, TableRule

#: The transitions as the design states them; the table `lifecycle` is held against it.
_TRANSITIONS = """
    (NULL, 'created'), ('created', 'netted'), ('created', 'held'), ('created', 'approved'), ('held', 'approved'),
    ('created', 'cancelled'), ('held', 'cancelled'), ('approved', 'cancelled'), ('approved', 'submitting'),
    ('submitting', 'submitted'), ('submitting', 'failed'), ('submitting', 'unknown'), ('unknown', 'submitting'),
    ('unknown', 'submitted'), ('unknown', 'failed'), ('submitting', 'settled'), ('submitted', 'settled'),
    ('unknown', 'settled'), ('submitted', 'failed'), ('submitting', 'returned'), ('submitted', 'returned'),
    ('unknown', 'returned'), ('settled', 'returned')
"""

RULES = {
    "the lifecycle in Postgres is the one designed": TableRule(
        f"""SELECT format('%s to %s is %s: migrate again', coalesce(from_state, 'nothing'), to_state, what) FROM (
                SELECT *, 'let pass, and should not' AS what FROM (
                    SELECT from_state, to_state FROM lifecycle EXCEPT VALUES {_TRANSITIONS}) more
                UNION ALL
                SELECT *, 'refused, and should not' FROM (
                    VALUES {_TRANSITIONS} EXCEPT SELECT from_state, to_state FROM lifecycle) fewer (from_state, to_state)) d""",
        "SELECT count(*) FROM lifecycle",
    ),
    "events follow the lifecycle": TableRule(
        """SELECT format('instruction %s: event %s from %s to %s after %s', n.instruction_id, n.seq, n.from_state, n.to_state,
                         p.to_state)
           FROM instruction_events n
           LEFT JOIN instruction_events p ON p.instruction_id = n.instruction_id AND p.seq = n.seq - 1
           LEFT JOIN lifecycle l ON l.from_state IS NOT DISTINCT FROM n.from_state AND l.to_state = n.to_state
           WHERE p.to_state IS DISTINCT FROM n.from_state OR (n.seq > 1) <> (p.seq IS NOT NULL) OR l.to_state IS NULL
           UNION ALL
           SELECT format('instruction %s of %s %s has no event', instruction_id, amount_minor, currency)
           FROM payout_instructions i
           WHERE NOT EXISTS (SELECT FROM instruction_events e WHERE e.instruction_id = i.instruction_id)""",
        "SELECT count(*) FROM instruction_events",
    ),
    "states are where the events lead": TableRule(
        f"""SELECT format('instruction %s: state %s since %s, its last event says %s since %s', instruction_id, s.state,
                          s.since_on, n.state, n.occurred_on)
            FROM instruction_states s FULL JOIN ({STATES}) n USING (instruction_id)
            WHERE (s.state, s.seq, s.since_on) IS DISTINCT FROM (n.state, n.seq, n.occurred_on)""",
        "SELECT count(*) FROM instruction_states",
    ),
    "netted is for a sum of zero, and for that alone": TableRule(
        """SELECT format('instruction %s, %s of %s %s, became %s', i.instruction_id, i.direction, i.amount_minor, i.currency,
                         e.to_state)
           FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
           WHERE e.to_state NOT IN ('created', 'cancelled') AND (e.to_state = 'netted') <> (i.direction = 'none')""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "over the limit the approver is not the maker": TableRule(
        """SELECT format('instruction %s, made by %s, was approved by %s', i.instruction_id, i.maker, e.actor)
           FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
           WHERE e.from_state = 'held' AND e.to_state = 'approved' AND i.maker IN (e.actor, e.login)""",
        "SELECT count(*) FROM instruction_events WHERE from_state = 'held' AND to_state = 'approved'",
    ),
}
