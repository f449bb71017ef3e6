"""Rules over sending: nothing leaves but under a committed attempt, and nothing twice.

Belongs here: attempts, outcomes, and the posting of sending and failing. Does not belong here: report lines.
"""

from __future__ import annotations

import json

import psycopg

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.table_rule import NET, SIGNED, TableCheck, TableRule

#: What a request says of its instruction, where it names it.
_ASKED_FOR = ("amount_minor", "currency", "direction", "token", "execute_on")


def requests_ask_for_what_was_instructed(connection: psycopg.Connection) -> Found:
    """The bytes that leave say amount, currency, direction and token of their instruction, where they are JSON.

    A token is never printed: whoever reads a breach need not be let see it.
    """
    checked, breaches = 0, []
    for instruction_id, request, *instructed in connection.execute(
        """SELECT a.instruction_id, a.request, i.amount_minor, i.currency::text, i.direction, i.token,
                  a.execute_on::text
           FROM payout_attempts a JOIN payout_instructions i USING (instruction_id) ORDER BY i.sweep_day, 1"""
    ).fetchall():
        try:
            content = json.loads(request)
        except ValueError:
            continue  # an adapter may send another format, which this rule cannot read
        checked += 1
        for name, value in zip(_ASKED_FOR, instructed, strict=True):
            if name in content and content[name] != value:
                said = "" if name == "token" else f", {content[name]} for {value}"
                breaches.append(
                    f"instruction {instruction_id}: its request differs from it in {name}{said}; ask the processor"
                )
    return Found(checked, breaches)


RULES: dict[str, TableCheck] = {
    "nothing is sent but under a committed attempt": TableRule(
        """SELECT format('instruction %s was submitting without a first attempt', e.instruction_id)
           FROM (SELECT DISTINCT instruction_id FROM instruction_events WHERE to_state = 'submitting') e
           LEFT JOIN payout_attempts a ON a.instruction_id = e.instruction_id AND a.attempt_no = 1
           WHERE a.instruction_id IS NULL
           UNION ALL
           SELECT format('attempt %s of instruction %s, which never was submitting', a.attempt_no, a.instruction_id)
           FROM payout_attempts a WHERE NOT EXISTS (
               SELECT FROM instruction_events e WHERE e.instruction_id = a.instruction_id AND e.to_state = 'submitting')""",
        "SELECT count(*) FROM (SELECT DISTINCT instruction_id FROM instruction_events WHERE to_state = 'submitting') e",
    ),
    "each attempt of an instruction has one key, the same bytes and deadline": TableRule(
        """SELECT format('instruction %s: %s keys, %s requests, %s deadlines in %s attempts; never send it again',
                         instruction_id, count(DISTINCT idempotency_key), count(DISTINCT request),
                         count(DISTINCT not_after), count(*))
           FROM payout_attempts GROUP BY instruction_id
           HAVING (count(DISTINCT idempotency_key), count(DISTINCT request), count(DISTINCT not_after)) <> (1, 1, 1)
               OR bool_or(request_sha256 <> encode(sha256(request), 'hex'))
               OR (min(attempt_no), max(attempt_no)) <> (1, count(*))
           UNION ALL
           SELECT format('key %s stands for %s instructions', idempotency_key, count(DISTINCT instruction_id))
           FROM payout_attempts GROUP BY idempotency_key HAVING count(DISTINCT instruction_id) > 1""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "requests ask for what was instructed": requests_ask_for_what_was_instructed,
    "nothing is sent after its deadline": TableRule(
        """SELECT format('attempt %s of instruction %s began %s, its deadline was %s: %s; look its key up', a.attempt_no,
                         a.instruction_id, a.started_at, a.not_after, o.outcome)
           FROM payout_attempts a JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
           WHERE a.started_at >= a.not_after AND o.outcome NOT IN ('unknown', 'not_sent')""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "an instruction has one unanswered attempt at most": TableRule(
        """SELECT format('instruction %s: attempt %s was %s, and it was sent again; ask the processor what it has',
                         a.instruction_id, a.attempt_no, coalesce(o.outcome, 'not answered'))
           FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
           WHERE (o.outcome IS NULL OR o.outcome IN ('acknowledged', 'rejected')) AND EXISTS (
               SELECT FROM payout_attempts n WHERE n.instruction_id = a.instruction_id AND n.attempt_no > a.attempt_no)""",
        "SELECT count(*) FROM payout_attempts",
    ),
    "states of sending follow from an outcome or a look-up": TableRule(
        """SELECT format('instruction %s: event %s from %s to %s by %s, and no attempt was %s', e.instruction_id, e.seq,
                         e.from_state, e.to_state, e.actor, w.outcome)
           FROM instruction_events e
           JOIN (VALUES ('submitted', 'acknowledged'), ('failed', 'rejected'), ('unknown', 'unknown')) w (to_state, outcome)
               USING (to_state)
           WHERE NOT (e.from_state = 'unknown' AND e.actor <> 'dispatch') AND NOT EXISTS (
                   SELECT FROM payout_attempt_outcomes o
                   WHERE o.instruction_id = e.instruction_id AND o.outcome = w.outcome)
             AND NOT (e.to_state = 'failed' AND EXISTS (
                   SELECT FROM report_lines l WHERE l.instruction_id = e.instruction_id AND l.kind = 'failed'))
             -- Never accepted, and not sent again: its party may no longer be sent it.
             AND NOT (e.to_state = 'failed' AND e.from_state = 'submitting' AND NOT EXISTS (
                   SELECT FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
                   WHERE a.instruction_id = e.instruction_id
                     AND coalesce(o.outcome, 'unknown') NOT IN ('unavailable', 'not_sent')))
             -- Never accepted until its deadline: it is asked about, though no attempt of it went without an answer.
             AND NOT (e.to_state = 'unknown' AND EXISTS (
                   SELECT FROM payout_attempts a
                   WHERE a.instruction_id = e.instruction_id AND a.not_after <= e.recorded_at))""",
        "SELECT count(*) FROM instruction_events WHERE to_state IN ('submitted', 'failed', 'unknown')",
    ),
    "what was unknown ends as a look-up or two people say": TableRule(
        """SELECT format('instruction %s: event %s from unknown to %s, and no look-up or accepted resolution before it says '
                         'so; its items were freed or sent on nobody''s word: ask the processor', e.instruction_id, e.seq,
                         e.to_state)
           FROM instruction_events e
           WHERE e.from_state = 'unknown' AND e.to_state IN ('submitting', 'submitted', 'failed')
             AND NOT EXISTS (
                 SELECT FROM payout_look_ups l
                 JOIN (VALUES ('submitting', 'never_seen'), ('submitted', 'accepted'), ('failed', 'rejected')) w (state, answer)
                     ON w.state = e.to_state AND w.answer = l.answer
                 WHERE l.instruction_id = e.instruction_id AND l.asked_at <= e.recorded_at)
             AND NOT EXISTS (
                 SELECT FROM proposals p JOIN proposal_decisions d USING (proposal_id)
                 JOIN payout_attempts a ON a.instruction_id = e.instruction_id AND a.attempt_no = 1
                 WHERE p.kind = 'resolution' AND d.decision = 'accepted' AND d.decided_at <= e.recorded_at
                   AND p.content ->> 'instruction_id' = e.instruction_id::text AND p.content ->> 'to_state' = e.to_state
                   AND (e.to_state = 'submitted' OR a.not_after <= e.recorded_at))
             AND NOT (e.to_state = 'failed' AND EXISTS (
                 SELECT FROM report_lines t WHERE t.instruction_id = e.instruction_id AND t.kind = 'failed'))""",
        "SELECT count(*) FROM instruction_events WHERE from_state = 'unknown'",
    ),
    "sending is posted once, for the instruction's amount": TableRule(
        """SELECT format('instruction %s, %s of %s %s, %s: %s submissions move %s of the party and %s in transit',
                         i.instruction_id, i.direction, i.amount_minor, i.currency,
                         CASE WHEN s.instruction_id IS NULL THEN 'never sent' ELSE 'sent' END, coalesce(p.journals, 0),
                         coalesce(p.party, 0), coalesce(p.transit, 0))
           FROM payout_instructions i
           LEFT JOIN (SELECT DISTINCT instruction_id FROM instruction_events WHERE to_state = 'submitting') s
               USING (instruction_id)
           LEFT JOIN (
               SELECT i.instruction_id, count(DISTINCT j.journal_id) AS journals, count(e.entry_id) AS entries,
                      sum(e.debit_minor - e.credit_minor)
                          FILTER (WHERE e.account = 'party:' || i.party_id AND e.currency = i.currency) AS party,
                      sum(e.debit_minor - e.credit_minor)
                          FILTER (WHERE e.account = 'in_transit:' || i.processor AND e.currency = i.currency) AS transit
               FROM payout_instructions i JOIN journals j USING (instruction_id)
               LEFT JOIN ledger_entries e USING (journal_id)
               WHERE j.kind = 'submission' GROUP BY 1) p USING (instruction_id)
           CROSS JOIN LATERAL (SELECT CASE i.direction WHEN 'credit' THEN i.amount_minor ELSE -i.amount_minor END AS moved) a
           WHERE (coalesce(p.journals, 0), coalesce(p.entries, 0), coalesce(p.party, 0), coalesce(p.transit, 0))
               <> CASE WHEN s.instruction_id IS NULL THEN ROW(0::bigint, 0::bigint, 0::numeric, 0::numeric)
                       ELSE ROW(1::bigint, 2::bigint, a.moved::numeric, -a.moved::numeric) END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "a failed or returned instruction is posted back once": TableRule(
        f"""SELECT format('instruction %s is %s: the party got back %s of %s %s', n.instruction_id, n.state,
                          coalesce(b.back, 0), n.amount_minor, n.currency)
            FROM ({NET}) n
            LEFT JOIN (
                SELECT i.instruction_id, sum(CASE i.direction WHEN 'credit' THEN {SIGNED} ELSE -{SIGNED} END) AS back
                FROM payout_instructions i JOIN journals j USING (instruction_id)
                JOIN ledger_entries e ON e.journal_id = j.journal_id AND e.party_id = i.party_id AND NOT e.is_item
                WHERE j.kind <> 'submission' GROUP BY 1) b USING (instruction_id)
            WHERE coalesce(b.back, 0) <> CASE WHEN n.state IN ('failed', 'returned') THEN n.amount_minor ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
}
