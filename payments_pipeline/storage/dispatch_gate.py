"""The gate: what an instruction must fulfil in Postgres itself before it leaves, for the first time or again.

Belongs here: judging instructions on what is stored and on the parties as of now, and ending those that do not hold.
Does not belong here: attempts and outcomes (`storage.payout_submissions`), the order of a dispatch
(`processors.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pandas as pd
import psycopg

from payments_pipeline.domain.errors import LedgerFaultError
from payments_pipeline.storage.payout_instructions import cancel
from payments_pipeline.storage.postgres import RunInfo

_KNOWN_OF_PARTIES = ["status", "payout_token", "collection_token"]
#: Parties up to which all are told to Postgres, whoever is asked about.
_FEW_PARTIES = 1_000


@dataclass(frozen=True)
class Fault:
    """Why an instruction may not leave.

    Attributes:
        instruction_id: which.
        state: its state.
        seq: number of its last event.
        reason: why, in words.
        was_never_accepted: whether the processor definitely took none of its attempts; true where there are none.
    """

    instruction_id: str
    state: str
    seq: int
    reason: str
    was_never_accepted: bool


_RELEASED = "an item of it was released"
#: Instructions that must not leave, and why; judged on what is stored and on the parties given. All is looked for
#: item by item (`LATERAL … OFFSET 0`): on tables that a large day has just filled Postgres takes an instruction for
#: hundreds of items, and would go through claims and ledger as a whole for each batch.
_FAULTS = """
    WITH gated AS (
        SELECT unnest(%(instructions)s::uuid[]) AS instruction_id
    ), broken_matches AS MATERIALIZED (
        SELECT b.match_id, b.match_day FROM posting_breaks b
        WHERE b.seq = (SELECT max(d.seq) FROM day_postings d WHERE d.match_day = b.match_day)
    ), items AS (
        SELECT c.instruction_id, e.entry_id, e.journal_id, e.credit_minor - e.debit_minor AS amount_minor,
               r.released_on IS NOT NULL AS is_released,
               -- A refund is of the day of its acceptance, and its match of another.
               EXISTS (
                   SELECT FROM broken_matches b WHERE b.match_id = e.match_id AND b.match_day = CASE e.kind
                   WHEN 'refund' THEN (SELECT m.match_day FROM match_postings m WHERE m.match_id = e.match_id
                                       ORDER BY m.posting_no DESC LIMIT 1)
                   ELSE e.day END) AS is_broken
        FROM gated g
        CROSS JOIN LATERAL (
            SELECT * FROM instruction_claims c WHERE c.instruction_id = g.instruction_id OFFSET 0) c
        CROSS JOIN LATERAL (SELECT * FROM ledger_entries e WHERE e.entry_id = c.item_id OFFSET 0) e
        LEFT JOIN LATERAL (
            SELECT r.released_on FROM claim_releases r WHERE (r.item_id, r.claim_no) = (c.item_id, c.claim_no)
            OFFSET 0) r ON true
    ), unbalanced AS (
        -- A pot whose shares do not sum to it, or another journal whose sides differ.
        SELECT DISTINCT i.instruction_id FROM items i JOIN (
            SELECT j.journal_id FROM (SELECT DISTINCT journal_id FROM items) j CROSS JOIN LATERAL (
                SELECT FROM ledger_entries e WHERE e.journal_id = j.journal_id
                GROUP BY e.pot, e.pot_party_id, e.currency
                HAVING sum(e.debit_minor - e.credit_minor) <> 0 LIMIT 1) b) bad USING (journal_id)
    ), claimed AS (
        SELECT instruction_id, sum(amount_minor) AS net, bool_or(is_released) AS is_released,
               bool_or(is_broken) AS is_broken
        FROM items GROUP BY instruction_id
    ), corrected AS (
        -- What corrects an item, or what it corrects, is open or about to leave by itself: they are netted first.
        SELECT DISTINCT i.instruction_id
        FROM items i CROSS JOIN LATERAL (SELECT s.other_id FROM item_siblings s WHERE s.item_id = i.entry_id OFFSET 0) b
        CROSS JOIN LATERAL (
            SELECT FROM open_items o WHERE o.item_id = b.other_id
            UNION ALL
            SELECT FROM unsent_claims u WHERE u.item_id = b.other_id AND u.instruction_id <> i.instruction_id
            LIMIT 1) w
        UNION
        -- What was sent for an item before moved cash after it was over.
        SELECT i.instruction_id FROM items i JOIN late_settlements l ON l.item_id = i.entry_id
    ), judged AS (
        SELECT i.instruction_id, CASE
            WHEN c.is_released THEN %(released)s
            WHEN p.known IS NULL THEN 'the party is not in the reference data'
            WHEN p.known ->> 'status' <> 'active' THEN 'the party is ' || (p.known ->> 'status')
            WHEN i.token IS DISTINCT FROM p.known ->> CASE i.direction
                WHEN 'credit' THEN 'payout_token' ELSE 'collection_token' END THEN 'the party''s token changed'
            WHEN c.net <> CASE i.direction WHEN 'credit' THEN i.amount_minor ELSE -i.amount_minor END
                THEN 'its items net to ' || c.net
            WHEN c.is_broken THEN 'the match of an item of it has a break'
            WHEN k.instruction_id IS NOT NULL THEN 'an item of it was corrected'
            WHEN u.instruction_id IS NOT NULL THEN 'the journal of an item of it does not balance'
        END AS reason
        FROM gated g JOIN payout_instructions i USING (instruction_id)
        CROSS JOIN LATERAL (SELECT %(parties)s::jsonb -> i.party_id::text AS known) p
        LEFT JOIN claimed c USING (instruction_id)
        LEFT JOIN corrected k USING (instruction_id)
        LEFT JOIN unbalanced u USING (instruction_id)
    )
    SELECT j.instruction_id::text, s.state, s.seq, j.reason,
           NOT EXISTS (
               SELECT FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
               WHERE a.instruction_id = j.instruction_id
                 AND coalesce(o.outcome, 'unknown') NOT IN ('unavailable', 'not_sent'))
    FROM judged j JOIN instruction_states s USING (instruction_id)
    WHERE j.reason IS NOT NULL
    ORDER BY j.instruction_id
"""


def faults(cursor: psycopg.Cursor[Any], instruction_ids: Sequence[str], parties: pd.DataFrame) -> list[Fault]:
    """Give those of instructions that may not leave, and why.

    Args:
        cursor: in a transaction under the lock of instructions.
        instruction_ids: which to look at.
        parties: party_id, status, payout_token, collection_token as of now.
    """
    if not instruction_ids:
        return []
    if len(parties) > _FEW_PARTIES:
        rows = cursor.execute(
            "SELECT DISTINCT party_id FROM payout_instructions WHERE instruction_id = ANY(%s::uuid[])",
            (list(instruction_ids),),
        )
        parties = parties[parties["party_id"].isin([row[0] for row in rows.fetchall()])]
    told = {
        "instructions": list(instruction_ids),
        # Looked up by id: joined as rows, whose number Postgres does not know, they are gone through for each other.
        "parties": parties.set_index("party_id")[_KNOWN_OF_PARTIES].astype(object).to_json(orient="index"),
        "released": _RELEASED,
    }
    return [Fault(*row) for row in cursor.execute(_FAULTS.encode(), told).fetchall()]


def refuse(
    cursor: psycopg.Cursor[Any], day: date, instruction_ids: Sequence[str], parties: pd.DataFrame, run: RunInfo
) -> set[str]:
    """Cancel those of approved instructions that do not hold; their items wait for a later day's sweep.

    Args:
        cursor: in a transaction under the lock of instructions.
        day: dispatching day.
        instruction_ids: approved ones.
        parties: party_id, status, payout_token, collection_token as of now.
        run: who dispatches.

    Returns:
        Which were cancelled.

    Raises:
        LedgerFaultError: an item is free though its instruction is not over; no release can follow it.
    """
    found = faults(cursor, instruction_ids, parties)
    for fault in found:
        if fault.reason == _RELEASED:
            raise LedgerFaultError(
                f"instruction {fault.instruction_id} is {fault.state}, and an item of it is given back: somebody "
                "changed the tables behind their triggers. Nothing was sent. Run `payments-pipeline verify` and "
                "restore them before dispatching again."
            )
    for reason in sorted({fault.reason for fault in found}):
        rows = [(fault.instruction_id, fault.state, fault.seq) for fault in found if fault.reason == reason]
        cancel(cursor, rows, day=day, actor="gate", reason=reason, by_sweep=False, run=run)
    return {fault.instruction_id for fault in found}
