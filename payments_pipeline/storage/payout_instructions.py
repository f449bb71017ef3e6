"""The store of `payout_instructions`: the sweep, in one transaction under the one lock of instructions.

Belongs here: reading open items once, writing instructions with their claims. Does not belong here: amounts and
reasons (`domain.payout_instructions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa

from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.payout_instructions import SweepPlan, no_longer_payable, plan_sweep
from payments_pipeline.domain.policy import Policy
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, copy_frame, read_frame, transaction_lock

_STRING, _INT = pa.string(), pa.int64()

#: Unsent instructions that claim an item of which another posting is open, and may be taken by a sweep of {day} or came
#: later, or stands under another unsent instruction: they are netted first.
_CORRECTED = """
    SELECT DISTINCT c.instruction_id, s.state, s.seq
    FROM instruction_states s
    JOIN instruction_claims c USING (instruction_id)
    JOIN item_siblings b ON b.item_id = c.item_id
    LEFT JOIN open_items o ON o.item_id = b.other_id
        AND (b.is_later OR o.day <= %(day)s AND (o.available_after IS NULL OR o.available_after < %(day)s))
    LEFT JOIN unsent_claims u ON u.item_id = b.other_id AND u.instruction_id <> c.instruction_id
    WHERE s.state IN ('created', 'held', 'approved') AND (o.item_id IS NOT NULL OR u.item_id IS NOT NULL)
    UNION
    -- What failed or came back was carried out all the same: to send its items again would pay them twice.
    SELECT c.instruction_id, s.state, s.seq
    FROM late_settlements l JOIN unsent_claims c USING (item_id) JOIN instruction_states s USING (instruction_id)
"""

#: Instructions that waited too long for an approver: by the days of sweeps, and by the clock by which an approver is in
#: time. Days of a backfill go by within minutes.
_EXPIRED = """
    SELECT s.instruction_id, s.state, s.seq FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
    WHERE s.state = 'held' AND s.since_on + coalesce(i.approval_days, 1) <= %s
      AND i.created_at + make_interval(days => coalesce(i.approval_days, 1)) <= clock_timestamp()
"""

#: What a sweep of {day} may take, each with a reason of its own to wait. Releases and settlements dated on or after the
#: day are left for later days, so that a second sweep of the day takes nothing that the first could not.
#:
#: What a day posted belongs to its own run, which checks may stop before its sweep: until a sweep of its own came after
#: it, other days leave it alone, and with it whatever of its party it may have to be netted with.
_ITEMS = """
    WITH unswept AS MATERIALIZED (
        SELECT match_day, was_swept FROM unswept_days WHERE match_day <> {day}
    ), due AS MATERIALIZED (
        -- A refund is of the day of its acceptance, and its match of another: nothing of a fee is given back before the
        -- day of the fee is swept.
        SELECT o.*, CASE WHEN o.kind = 'refund' THEN (
            SELECT m.match_day FROM match_postings m WHERE m.match_id = o.match_id ORDER BY m.posting_no DESC LIMIT 1)
            WHEN o.match_id IS NOT NULL THEN o.day END AS of_day
        FROM open_items o
        WHERE o.day <= {day}
    ), loose AS MATERIALIZED (
        -- What is of no match may make up for others, or they for it: what of them is free to later days only.
        SELECT l.party_id, l.currency, (
            SELECT coalesce(sum(o.amount_minor), 0)::bigint FROM open_items o
            WHERE (o.party_id, o.currency) = (l.party_id, l.currency)
              AND (o.available_after >= {day} OR o.day > {day} AND o.day <= l.newest)) AS later_minor
        FROM (SELECT party_id, currency, max(day) AS newest FROM open_items WHERE match_id IS NULL GROUP BY 1, 2) l
    )
    SELECT o.item_id, o.next_claim_no, o.party_id, o.currency, o.amount_minor,
        CASE
            WHEN u.match_day IS NOT NULL OR o.match_id IS NULL AND EXISTS (
                -- What is of no match may make up for what is: taken by itself it would move what nobody owes.
                SELECT FROM due b JOIN unswept ON unswept.match_day = b.of_day
                WHERE (b.party_id, b.currency) = (o.party_id, o.currency)
            ) THEN 'day_not_swept'
            WHEN EXISTS (
                SELECT FROM posting_breaks b
                WHERE b.match_id = o.match_id AND b.match_day = o.of_day
                AND b.seq = (SELECT max(p.seq) FROM day_postings p WHERE p.match_day = b.match_day)
            ) THEN 'posting_break'
            -- Posted while this sweep runs: what it corrects is cancelled by the next, which nets the two.
            WHEN o.item_id IN (SELECT b.item_id FROM unsent_claims u JOIN item_siblings b ON b.other_id = u.item_id)
                THEN 'correction_under_way'
            WHEN o.pot = 'match_fee' AND o.recipient <> 'payer' AND (
                SELECT m.payout_policy FROM match_postings m WHERE m.match_id = o.match_id
                ORDER BY m.posting_no DESC LIMIT 1
            ) = 'when_collected' AND (
                -- A correction or refund of what waits waits with it: taken by itself it would collect what was never
                -- paid. A refund of a later day than this is not taken now, and frees nothing.
                SELECT sum(own.amount_minor) FROM open_items own
                WHERE (own.party_id, own.currency) = (o.party_id, o.currency) AND own.recipient <> 'payer'
                  AND (own.match_id, own.pot, own.pot_party_id) = (o.match_id, o.pot, o.pot_party_id)
                  AND own.day <= {day}
            ) > 0 AND EXISTS (
                SELECT FROM ledger_entries payer
                WHERE payer.kind = 'accrual' AND payer.match_id = o.match_id AND payer.pot = o.pot
                  AND payer.pot_party_id = o.pot_party_id AND payer.recipient = 'payer' AND payer.debit_minor > 0
                  AND NOT EXISTS (
                      SELECT FROM instruction_claims c JOIN instruction_states s USING (instruction_id)
                      WHERE c.item_id = payer.entry_id AND s.state IN ('settled', 'netted') AND s.since_on < {day})
            ) THEN 'not_collected'
            WHEN o.recipient = 'payer' AND (o.match_id, o.pot, o.pot_party_id, o.party_id, o.currency) IN (
                SELECT back.match_id, back.pot, back.pot_party_id, back.party_id, back.currency FROM open_items back
                WHERE back.recipient = 'payer' AND back.amount_minor > 0 AND back.day <= {day}
            ) AND (
                -- What is charged again waits with it: taken by itself it would collect what was never given back.
                SELECT sum(own.amount_minor) FROM open_items own
                WHERE (own.party_id, own.currency) = (o.party_id, o.currency) AND own.recipient = 'payer'
                  AND (own.match_id, own.pot, own.pot_party_id) = (o.match_id, o.pot, o.pot_party_id)
                  AND own.day <= {day} AND (own.available_after IS NULL OR own.available_after < {day})
            ) > 0 AND EXISTS (
                -- What was charged is under way, or is free to a later day only, which nets the two.
                SELECT FROM (
                    SELECT e.* FROM ledger_entries e WHERE e.kind = 'accrual' AND e.match_id = o.match_id
                    UNION ALL
                    SELECT e.* FROM ledger_entries e WHERE e.kind = 'refund' AND e.match_id = o.match_id) charged
                WHERE (charged.pot, charged.pot_party_id) = (o.pot, o.pot_party_id) AND charged.recipient = 'payer'
                  AND (charged.party_id, charged.currency) = (o.party_id, o.currency) AND charged.debit_minor > 0
                  AND (EXISTS (
                          SELECT FROM open_items w WHERE w.item_id = charged.entry_id AND w.available_after >= {day})
                       OR EXISTS (
                          SELECT FROM instruction_claims c JOIN payout_instructions i USING (instruction_id)
                          JOIN instruction_states s USING (instruction_id)
                          LEFT JOIN claim_releases r ON (r.item_id, r.claim_no) = (c.item_id, c.claim_no)
                          WHERE c.item_id = charged.entry_id AND i.direction = 'debit' AND r.item_id IS NULL
                            AND NOT (s.state = 'settled' AND s.since_on < {day})))
            ) THEN 'collection_not_settled'
        END,
        l.later_minor
    FROM due o LEFT JOIN unswept u ON u.match_day = o.of_day LEFT JOIN loose l USING (party_id, currency)
    WHERE (o.available_after IS NULL OR o.available_after < {day}) AND (u.match_day IS NULL OR u.was_swept)
"""
_ITEMS_SCHEMA = {
    "item_id": _STRING,
    "claim_no": _INT,
    "party_id": _STRING,
    "currency": _STRING,
    "amount_minor": _INT,
    "wait": _STRING,
    "later_minor": _INT,
}

#: Tokens with which {count} instructions or more have failed or come back since the newest that proves the account, by
#: what is dated before the day and no accepted retry has put aside. A settlement may still come back: it proves the
#: account only if it stands, and if every failure of what was sent no later than it was known before it was sent.
_FAILING = """
    WITH suspects AS (
        SELECT i.party_id, i.currency, i.token
        FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
        WHERE s.state IN ('failed', 'returned') AND s.since_on < {day}
          AND i.instruction_id NOT IN (SELECT instruction_id FROM retried_instructions)
        GROUP BY i.party_id, i.currency, i.token HAVING count(*) >= {count}
    ), known AS (
        SELECT i.party_id, i.currency, i.token,
               min(e.occurred_on) FILTER (WHERE e.to_state = 'submitting') AS sent_on,
               min(e.occurred_on) FILTER (WHERE e.to_state IN ('failed', 'returned')) AS failed_on,
               bool_or(e.to_state = 'settled') AS is_settled
        FROM suspects
        JOIN payout_instructions i USING (party_id, currency, token)
        JOIN instruction_events e USING (instruction_id)
        WHERE e.occurred_on < {day} AND e.to_state IN ('submitting', 'settled', 'failed', 'returned')
          AND i.instruction_id NOT IN (SELECT instruction_id FROM retried_instructions)
        GROUP BY i.instruction_id
    ), proven AS (
        SELECT s.party_id, s.currency, s.token, max(s.sent_on) AS sent_on
        FROM known s
        WHERE s.is_settled AND s.failed_on IS NULL AND NOT EXISTS (
            SELECT FROM known f
            WHERE (f.party_id, f.currency, f.token) = (s.party_id, s.currency, s.token)
              AND f.sent_on <= s.sent_on AND f.failed_on >= s.sent_on)
        GROUP BY s.party_id, s.currency, s.token
    )
    SELECT party_id, currency, token
    FROM known f LEFT JOIN proven p USING (party_id, currency, token)
    WHERE f.failed_on IS NOT NULL AND (p.sent_on IS NULL OR f.sent_on > p.sent_on)
    GROUP BY party_id, currency, token HAVING count(*) >= {count}
"""


_HELD = """
    SELECT i.instruction_id, s.state, s.seq, i.party_id, i.direction, i.token
    FROM instruction_states s JOIN payout_instructions i USING (instruction_id) WHERE s.state = 'held'
"""
_HELD_SCHEMA = {
    "instruction_id": _STRING,
    "state": _STRING,
    "seq": _INT,
    "party_id": _STRING,
    "direction": _STRING,
    "token": _STRING,
}
_NEW_SWEEP = """
    INSERT INTO sweeps (sweep_day, seq, instructions, run_id, code_version, posting_seq)
    SELECT %(day)s, coalesce(max(seq), 0) + 1, %(instructions)s, %(run_id)s, %(code_version)s, %(posting)s
    FROM sweeps WHERE sweep_day = %(day)s RETURNING seq
"""


@dataclass(frozen=True)
class Swept:
    """What a sweep did.

    Attributes:
        seq: its number for the day, from 1.
        plan: what was written.
        cancelled: unsent instructions cancelled: an item of theirs was corrected, or nobody approved them in time.
        open_items: items left open, of this day and before.
    """

    seq: int
    plan: SweepPlan
    cancelled: int
    open_items: int


def sweep_day_items(url: str, day: date, parties: pd.DataFrame, processor: str, policy: Policy, run: RunInfo) -> Swept:
    """Sweep a day: one instruction per party and currency over the items it claims.

    Args:
        url: business database.
        day: day of the sweep.
        parties: party_id, status, payout_token, collection_token, token_changed_by as of now.
        processor: who will be asked to carry them out.
        policy: minimums and limits.
        run: who sweeps.
    """
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        cancelled = cancel(
            cursor,
            cursor.execute(_CORRECTED, {"day": day}).fetchall(),
            day=day,
            actor="sweep",
            reason="an item of it was corrected",
            by_sweep=True,
            run=run,
        )
        cancelled += cancel(
            cursor,
            cursor.execute(_EXPIRED, (day,)).fetchall(),
            day=day,
            actor="sweep",
            reason="nobody approved it in time",
            by_sweep=False,
            run=run,
        )
        cancelled += _cancel_unpayable(cursor, day, parties, run)
        posting = cursor.execute(
            "SELECT coalesce(max(seq), 0) FROM day_postings WHERE match_day = %s", (day,)
        ).fetchone()
        assert posting is not None
        items = read_frame(cursor, _ITEMS, {"day": day}, _ITEMS_SCHEMA)
        failing = read_frame(
            cursor,
            _FAILING,
            {"day": day, "count": policy.sweep.failures_in_a_row},
            {"party_id": _STRING, "currency": _STRING, "token": _STRING},
        )
        plan = plan_sweep(day, items, parties, failing, policy)
        row = cursor.execute(
            _NEW_SWEEP,
            {
                "day": day,
                "instructions": len(plan.instructions),
                "run_id": run.run_id,
                "code_version": run.code_version,
                "posting": posting[0],
            },
        ).fetchone()
        assert row is not None
        seq: int = row[0]
        _write(cursor, day, seq, plan, processor, policy, run)
        left = cursor.execute("SELECT count(*) FROM open_items WHERE day <= %s", (day,)).fetchone()
        assert left is not None
        return Swept(seq=seq, plan=plan, cancelled=cancelled, open_items=left[0])


def _cancel_unpayable(cursor: psycopg.Cursor[Any], day: date, parties: pd.DataFrame, run: RunInfo) -> int:
    """Cancel what is held for a party, or an account, that may not be paid any more; its items are swept anew."""
    held = read_frame(cursor, _HELD, {}, _HELD_SCHEMA)
    reasons = no_longer_payable(held, parties)
    cancelled = 0
    for reason in sorted({*reasons} - {""}):
        rows = held.loc[reasons.eq(reason), ["instruction_id", "state", "seq"]].itertuples(index=False, name=None)
        cancelled += cancel(cursor, list(rows), day=day, actor="sweep", reason=reason, by_sweep=True, run=run)
    return cancelled


def _write(
    cursor: psycopg.Cursor[Any], day: date, seq: int, plan: SweepPlan, processor: str, policy: Policy, run: RunInfo
) -> None:
    made = plan.instructions
    copy_frame(cursor, "sweep_deferrals", plan.deferrals, {"sweep_day": day, "seq": seq})
    if made.empty:
        return
    copy_frame(
        cursor,
        "payout_instructions",
        made.drop(columns=["state", "reason"]).assign(
            approval_days=made["currency"]
            .map({currency: policy.of(currency).expires_days for currency in made["currency"].unique()})
            .astype("Int64")
            .where(made["state"] == State.HELD)
        ),
        {
            "sweep_day": day,
            "sweep_seq": seq,
            "processor": processor,
            "policy_version": policy.version,
            "maker": run.maker,
        }
        | run.stamp,
    )
    copy_frame(cursor, "instruction_claims", plan.claims)
    count, created = len(made), str(State.CREATED)
    events = {
        "instruction_id": np.tile(made["instruction_id"].to_numpy(object), 2),
        "seq": np.repeat([1, 2], count),
        "from_state": np.repeat(np.array([None, created], object), count),
        "to_state": np.append(np.full(count, created, object), made["state"].to_numpy(object)),
        "reason": np.append(np.full(count, "swept", object), made["reason"].to_numpy(object)),
        "actor": np.repeat(np.array(["sweep", f"policy {policy.version}"], object), count),
    }
    write_events(cursor, pd.DataFrame(events), day, run)


def write_events(
    cursor: psycopg.Cursor[Any], events: pd.DataFrame, day: date, run: RunInfo, **same: str | int | None
) -> None:
    """Append events: instruction_id, seq, from_state, to_state, actor, reason and, where there is any, evidence.

    Args:
        cursor: in a transaction under the lock of instructions.
        events: those columns of them that differ from row to row.
        day: day of the events.
        run: who writes.
        same: those columns of them that all rows have alike.
    """
    copy_frame(cursor, "instruction_events", events, {"occurred_on": day, "run_id": run.run_id} | same)


def cancel(
    cursor: psycopg.Cursor[Any],
    instructions: list[tuple[Any, str, int]],
    *,
    day: date,
    actor: str,
    reason: str,
    by_sweep: bool,
    run: RunInfo,
) -> int:
    """Cancel unsent instructions and release their items.

    Args:
        cursor: in a transaction that holds the lock of instructions.
        instructions: instruction_id, state and last event's seq of each.
        day: date of the act.
        actor: who cancels.
        reason: why, in words.
        by_sweep: whether the items are free again to this very sweep; else to later days alone.
        run: who writes.
    """
    if not instructions:
        return 0
    frame = pd.DataFrame(instructions, columns=["instruction_id", "from_state", "seq"])
    frame["instruction_id"] = frame["instruction_id"].astype(str)
    frame["seq"] = frame["seq"] + 1
    write_events(cursor, frame, day, run, to_state=str(State.CANCELLED), actor=actor, reason=reason)
    release(cursor, frame["instruction_id"].tolist(), day=day, by_sweep=by_sweep, run=run)
    return len(frame)


def release(
    cursor: psycopg.Cursor[Any], instruction_ids: list[str], *, day: date, by_sweep: bool, run: RunInfo
) -> None:
    """Free the items of instructions that are cancelled, failed or returned, once."""
    cursor.execute(
        """INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
           SELECT item_id, claim_no, %s, %s, %s FROM instruction_claims WHERE instruction_id = ANY(%s::uuid[])""",
        (day, by_sweep, run.run_id, instruction_ids),
    )
