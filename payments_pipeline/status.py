"""`status`: what waits and why, what is under way, what broke; of everything, a day, a party or an instruction.

Belongs here: the queries and their shape. Does not belong here: printing.
"""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.domain.payout_instructions import WAIT_WORDS, WaitReason
from payments_pipeline.storage.checks import CORRECTIONS
from payments_pipeline.storage.postgres import connect

#: Why an open item is open: the newest sweep that could take it says so, else none has looked at it since it was free.
_OPEN_ITEMS = """
    SELECT o.currency,
           coalesce(d.reason, CASE WHEN o.available_after IS NULL THEN 'not_swept_yet' ELSE 'for_a_later_day' END)
               AS reason,
           count(*) AS items, sum(o.amount_minor) AS amount_minor, min(o.day) AS oldest_on,
           max(o.available_after) AS free_after
    FROM open_items o
    LEFT JOIN LATERAL (
        SELECT w.reason FROM sweep_deferrals w
        WHERE w.party_id = o.party_id AND w.currency = o.currency AND w.sweep_day >= o.day
          AND (o.available_after IS NULL OR w.sweep_day > o.available_after)
        ORDER BY w.sweep_day DESC, w.seq DESC LIMIT 1
    ) d ON true
    WHERE (%(party)s::text IS NULL OR o.party_id = %(party)s) AND (%(day)s::date IS NULL OR o.day = %(day)s)
    GROUP BY 1, 2 ORDER BY 1, 2
"""
_DAYS_TO_RUN = """
    SELECT u.match_day, u.posting_seq AS posting,
           (SELECT count(*) FROM open_items o WHERE o.day = u.match_day) AS open_items,
           'was posted and not swept since: run it again, unless its run is under way' AS words
    FROM unswept_days u WHERE %(day)s::date IS NULL OR u.match_day = %(day)s ORDER BY 1 LIMIT 100
"""
_INSTRUCTIONS = """
    SELECT s.state, i.currency, i.direction, count(*) AS instructions, sum(i.amount_minor)::bigint AS amount_minor,
           min(s.since_on) AS since_on
    FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
    WHERE (%(party)s::text IS NULL OR i.party_id = %(party)s) AND (%(day)s::date IS NULL OR i.sweep_day = %(day)s)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
_UNKNOWN = """
    SELECT i.instruction_id, i.sweep_day, i.party_id, i.currency, i.direction, i.amount_minor, s.since_on, a.not_after,
           (SELECT l.answer FROM payout_look_ups l WHERE l.instruction_id = s.instruction_id
            ORDER BY l.look_up_no DESC LIMIT 1) AS last_answer
    FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
    JOIN payout_attempts a ON a.instruction_id = s.instruction_id AND a.attempt_no = 1
    WHERE s.state = 'unknown' AND (%(party)s::text IS NULL OR i.party_id = %(party)s)
      AND (%(day)s::date IS NULL OR i.sweep_day = %(day)s)
    ORDER BY s.since_on, i.party_id, i.currency LIMIT 100
"""
_BREAKS = """
    SELECT report_date, subject_type, subject_id, currency, difference_minor, age_days, words FROM reconciliation
    WHERE status = 'break' AND report_date = coalesce(%(day)s::date, (SELECT max(report_date) FROM reconciliation))
    ORDER BY age_days DESC, subject_type, subject_id LIMIT 100
"""
_POSTING_BREAKS = """
    SELECT b.match_day, b.match_id, b.reason, b.words FROM posting_breaks b
    WHERE b.seq = (SELECT max(p.seq) FROM day_postings p WHERE p.match_day = b.match_day)
      AND (%(day)s::date IS NULL OR b.match_day = %(day)s)
    ORDER BY b.match_day DESC, b.match_id LIMIT 100
"""
_HELD = """
    SELECT i.instruction_id, i.sweep_day, i.party_id, i.currency, i.direction, i.amount_minor, i.maker,
           i.created_at + make_interval(days => i.approval_days) AS approve_until
    FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
    WHERE s.state = 'held' AND (%(party)s::text IS NULL OR i.party_id = %(party)s)
      AND (%(day)s::date IS NULL OR i.sweep_day = %(day)s)
    ORDER BY i.sweep_day, i.party_id, i.currency LIMIT 100
"""
_PROPOSALS = """
    SELECT p.proposal_id, p.kind, p.content, p.reason, p.maker, p.proposed_at, d.decision, d.actor
    FROM proposals p LEFT JOIN proposal_decisions d USING (proposal_id) LEFT JOIN journals j USING (proposal_id)
    LEFT JOIN instruction_states s
        ON p.kind = 'resolution' AND s.instruction_id = (p.content ->> 'instruction_id')::uuid
    WHERE d.decision IS NULL
       OR d.decision = 'accepted' AND (p.kind IN ('write_off', 'match') AND j.journal_id IS NULL OR s.state = 'unknown')
       -- Refused, and the matches still wait: until their rules are restored or changed otherwise.
       OR d.decision = 'refused' AND p.kind = 'rule_change' AND EXISTS (
           SELECT FROM jsonb_array_elements(p.content -> 'matches') AS m
           JOIN posting_breaks b ON b.match_id = m ->> 0 AND b.match_day = (p.content ->> 'match_day')::date
           WHERE b.reason = 'rules_changed'
             AND b.seq = (SELECT max(o.seq) FROM day_postings o WHERE o.match_day = b.match_day)
       ) AND NOT EXISTS (
           SELECT FROM proposals q WHERE q.kind = 'rule_change' AND q.proposed_at > p.proposed_at
             AND q.content ->> 'match_day' = p.content ->> 'match_day'
             AND q.content ->> 'competition_id' = p.content ->> 'competition_id')
    ORDER BY p.proposed_at, p.proposal_id LIMIT 100
"""
#: `digest` is of all that waits of the competition: `accept --competition` takes it for what was looked at.
_RULE_CHANGES = """
    WITH waiting AS (
        SELECT p.proposal_id, p.content, p.content ->> 'competition_id' AS competition_id
        FROM proposals p LEFT JOIN proposal_decisions d USING (proposal_id)
        WHERE p.kind = 'rule_change' AND d.proposal_id IS NULL
    ), looked_at AS (
        SELECT competition_id, encode(sha256(convert_to(string_agg(
                   proposal_id::text, E'\n' ORDER BY proposal_id::text COLLATE "C"), 'UTF8')), 'hex') AS digest
        FROM waiting GROUP BY 1
    )
    SELECT w.competition_id, effect ->> 0 AS account, effect ->> 1 AS currency,
           sum((effect ->> 2)::bigint)::bigint AS amount_minor, count(*) AS days, l.digest
    FROM waiting w JOIN looked_at l USING (competition_id), jsonb_array_elements(w.content -> 'effect') AS effect
    GROUP BY 1, 2, 3, 6 ORDER BY 1, abs(sum((effect ->> 2)::bigint)) DESC, 2 LIMIT 100
"""
#: Without a day or party, those of which corrections left less than was accepted.
_REFUNDS = """
    SELECT * FROM (
        SELECT r.refund_id, r.accepted_day, r.match_id, r.pot_party_id AS party_id, r.currency, r.amount_minor,
               (SELECT coalesce(sum(e.credit_minor) - sum(e.debit_minor), 0)::bigint FROM ledger_entries e
                WHERE e.kind = 'refund' AND e.refund_id = r.refund_id AND e.recipient = 'payer') AS applied_minor,
               r.requester, r.reason
        FROM refunds r
        WHERE (%(party)s::text IS NULL OR r.pot_party_id = %(party)s)
          AND (%(day)s::date IS NULL OR r.accepted_day = %(day)s)
    ) found
    WHERE amount_minor <> applied_minor OR %(party)s::text IS NOT NULL OR %(day)s::date IS NOT NULL
    ORDER BY accepted_day DESC, refund_id LIMIT 100
"""
_INSTRUCTION = """
    SELECT i.instruction_id, i.sweep_day, i.party_id, i.currency, i.direction, i.amount_minor, i.processor, s.state,
           i.digest, i.policy_version, i.maker, i.run_id
    FROM payout_instructions i JOIN instruction_states s USING (instruction_id) WHERE i.instruction_id = %(id)s
"""
_EVENTS = """
    SELECT seq, from_state, to_state, occurred_on, actor, reason, run_id, recorded_at FROM instruction_events
    WHERE instruction_id = %(id)s ORDER BY seq
"""
_ITEMS = """
    SELECT c.item_id, c.claim_no, e.day, e.kind, e.match_id, e.pot, e.line_no, e.recipient,
           (e.credit_minor - e.debit_minor) AS amount_minor, r.released_on
    FROM instruction_claims c JOIN ledger_entries e ON e.entry_id = c.item_id
    LEFT JOIN claim_releases r USING (item_id, claim_no)
    WHERE c.instruction_id = %(id)s ORDER BY e.day, e.match_id, e.pot, e.line_no, c.item_id
"""
_LINES = """
    SELECT entry_reference, report_date, kind, amount_minor, currency, reason, note FROM report_lines
    WHERE instruction_id = %(id)s ORDER BY report_date, entry_reference
"""

Rows = list[dict[str, Any]]


def overall(url: str, *, day: date | None = None, party: str | None = None) -> dict[str, Rows]:
    """Give open items, instructions, what waits for an approver, and breaks, narrowed to a day or a party.

    Of a day or a party also what corrections changed (amount_minor > 0 is a credit), and why.
    """
    parameters = {"day": day, "party": party}
    parts = {"open_items": _OPEN_ITEMS, "instructions": _INSTRUCTIONS, "held": _HELD, "unknown": _UNKNOWN}
    parts |= {"refunds": _REFUNDS}
    if day is not None or party is not None:
        parts |= {"corrections": CORRECTIONS}
    if party is None:
        parts |= {
            "days_to_run": _DAYS_TO_RUN,
            "proposals": _PROPOSALS,
            "rule_changes": _RULE_CHANGES,
            "posting_breaks": _POSTING_BREAKS,
            "reconciliation_breaks": _BREAKS,
        }
    found = _read(url, parts, parameters)
    for row in found["open_items"]:
        row["amount_minor"] = int(row["amount_minor"])
        row["words"] = (
            WAIT_WORDS[WaitReason(row["reason"])]
            if row["reason"] in set(WaitReason)
            else f"given back: free to sweeps of days after {row['free_after']}"
            if row["free_after"] is not None
            else "posted since their day was last swept, and no other day takes them: if its run stopped, run it again"
        )
    return found


def instruction(url: str, instruction_id: str) -> dict[str, Rows]:
    """Give an instruction with its events, items and report lines.

    Raises:
        ConfigurationError: there is no such instruction.
    """
    try:
        parameters = {"id": UUID(instruction_id)}
    except ValueError:
        raise ConfigurationError(f"{instruction_id} is no instruction's id: it is a UUID.") from None
    parts = {"instruction": _INSTRUCTION, "events": _EVENTS, "items": _ITEMS, "report_lines": _LINES}
    found = _read(url, parts, parameters)
    if not found["instruction"]:
        raise ConfigurationError(f"there is no instruction {instruction_id}.")
    return found


def _read(url: str, queries: dict[str, str], parameters: dict[str, Any]) -> dict[str, Rows]:
    with connect(url) as connection, connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return {name: cursor.execute(query, parameters).fetchall() for name, query in queries.items()}
