"""The store of `payout_submissions`: attempts committed before a request leaves, outcomes after it returns.

Belongs here: the two transactions around each sending. Does not belong here: whether an instruction holds
(`storage.dispatch_gate`), sending (`processors.dispatch`), postings as values (`domain.payout_submissions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg
import pyarrow as pa

from payments_pipeline.domain.errors import LedgerFaultError
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.payout_submissions import submission_entries, within_limits
from payments_pipeline.domain.policy import Policy
from payments_pipeline.storage.dispatch_gate import faults, refuse
from payments_pipeline.storage.payout_instructions import cancel, release, write_events
from payments_pipeline.storage.postgres import Lock, RunInfo, copy_frame, read_frame, transaction_lock

_STRING, _INT, _DATE = pa.string(), pa.int64(), pa.date32()


@dataclass(frozen=True)
class Attempt:
    """One request that is committed and may leave, until `not_after`.

    Attributes:
        instruction_id: our instruction.
        attempt_no: from 1.
        idempotency_key: the same for each attempt of an instruction.
        request: the bytes to send, the same for each attempt.
        not_after: instant after which they are never sent.
    """

    instruction_id: str
    attempt_no: int
    idempotency_key: str
    request: bytes
    not_after: datetime


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        attempt: which.
        outcome: acknowledged, rejected, unavailable, unknown or not_sent.
        processor_reference: where acknowledged.
        code: the processor's reason code.
        message: words for a person.
        retry_after_s: seconds that the processor asked to be left alone.
    """

    attempt: Attempt
    outcome: str
    processor_reference: str | None = None
    code: str | None = None
    message: str | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class LookedUp:
    """What was said of an instruction when it was looked up.

    Attributes:
        instruction_id: which.
        answer: accepted, rejected, never_seen, doubtful (it says something else or more than one thing), unanswered.
        processor_reference: where accepted.
        code: the processor's reason code.
        request_sha256: of the request that it has, where it says so.
        message: words for a person.
    """

    instruction_id: str
    answer: str
    processor_reference: str | None = None
    code: str | None = None
    request_sha256: str | None = None
    message: str | None = None


_APPROVED = """
    SELECT i.instruction_id, i.sweep_day, i.party_id, i.currency, i.direction, i.amount_minor, i.processor, i.token,
           s.seq
    FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
    WHERE s.state = 'approved' AND i.sweep_day <= {day} AND i.processor = {processor}
    ORDER BY i.sweep_day, i.sweep_seq, i.party_id, i.currency
"""
_APPROVED_SCHEMA = {
    "instruction_id": _STRING,
    "sweep_day": _DATE,
    "party_id": _STRING,
    "currency": _STRING,
    "direction": _STRING,
    "amount_minor": _INT,
    "processor": _STRING,
    "token": _STRING,
    "seq": _INT,
}

#: What left on the calendar day in {zone}, by Postgres's clock, for the first time or again; each instruction once.
_SENT_TODAY = """
    SELECT i.party_id, i.currency, sum(i.amount_minor)::bigint
    FROM payout_instructions i
    WHERE EXISTS (
        SELECT FROM payout_attempts a WHERE a.instruction_id = i.instruction_id
        AND a.started_at >= date_trunc('day', clock_timestamp(), {zone}))
    GROUP BY 1, 2
"""

_SENT_SCHEMA = {"party_id": _STRING, "currency": _STRING, "amount_minor": _INT}
_AGAIN_SCHEMA = {"instruction_id": _STRING, **_SENT_SCHEMA, "counted": pa.bool_()}


def check_ledger(connection: psycopg.Connection) -> None:
    """Refuse to send anything while the ledger as a whole breaks a rule.

    Raises:
        LedgerFaultError: names the currency and the difference; nothing was sent.
    """
    row = connection.execute(
        """SELECT currency, sum(debit_minor - credit_minor) FROM ledger_entries
           GROUP BY currency HAVING sum(debit_minor - credit_minor) <> 0 LIMIT 1"""
    ).fetchone()
    if row is not None:
        raise LedgerFaultError(
            f"the ledger's debits and credits differ by {row[1]} in {row[0]}. Nothing was sent. "
            "Run `payments-pipeline verify` and restore the ledger before dispatching again."
        )


def refuse_unpayable(
    connection: psycopg.Connection, day: date, processor: str, parties: pd.DataFrame, run: RunInfo
) -> int:
    """Cancel approved instructions that no longer hold: party, token, items. Their items wait for a later day's sweep.

    Args:
        connection: of the dispatch.
        day: dispatching day.
        processor: whose instructions.
        parties: party_id, status, payout_token, collection_token as of now.
        run: who dispatches.

    Returns:
        How many were cancelled.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        rows = cursor.execute(
            """SELECT instruction_id::text FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
               WHERE s.state = 'approved' AND i.sweep_day <= %s AND i.processor = %s""",
            (day, processor),
        ).fetchall()
        return len(refuse(cursor, day, [row[0] for row in rows], parties, run))


def refuse_unwritable(connection: psycopg.Connection, day: date, faults: Mapping[str, str], run: RunInfo) -> int:
    """Cancel approved instructions that no request can be written for; their items wait for a later day's sweep.

    Args:
        connection: of the dispatch.
        day: dispatching day.
        faults: why, in words, by instruction.
        run: who dispatches.

    Returns:
        How many were cancelled.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        rows = cursor.execute(
            """SELECT instruction_id, state, seq FROM instruction_states
               WHERE state = 'approved' AND instruction_id = ANY(%s::uuid[])""",
            (list(faults),),
        ).fetchall()
        for row in rows:
            cancel(cursor, [row], day=day, actor="gate", reason=faults[str(row[0])], by_sweep=False, run=run)
    return len(rows)


def may_leave_again(
    connection: psycopg.Connection, day: date, instruction_ids: list[str], parties: pd.DataFrame, run: RunInfo
) -> list[str]:
    """Give those of instructions sent before that may still leave: their party may be sent them, and their items hold.

    Of the others, one that the processor definitely never accepted fails, and its items are free for a later day. One
    whose outcome was ever in doubt stays as it is, locked: it is asked about again.

    Args:
        connection: of the dispatch.
        day: dispatching day.
        instruction_ids: `submitting`, or `unknown` and never seen.
        parties: party_id, status, payout_token, collection_token as of now.
        run: who dispatches.
    """
    if not instruction_ids:
        return []
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        found = faults(cursor, instruction_ids, parties)
        ended = [
            (fault.instruction_id, f"never accepted, and not sent again: {fault.reason}")
            for fault in found
            if fault.was_never_accepted
        ]
        _move(
            cursor,
            day,
            pd.DataFrame(ended, columns=["instruction_id", "reason"], dtype=object).assign(to_state=str(State.FAILED)),
            from_state=State.SUBMITTING,
            actor="dispatch",
            run=run,
        )
    refused = {fault.instruction_id for fault in found}
    return [each for each in instruction_ids if each not in refused]


def within_limits_again(
    connection: psycopg.Connection, instruction_ids: list[str], zone: ZoneInfo, policy: Policy
) -> list[str]:
    """Give those of instructions sent before that fit under today's sending limits; the others wait as they are.

    Args:
        connection: of the dispatch, which holds its lock.
        instruction_ids: which may leave again.
        zone: whose calendar day counts; what left on it counts already.
        policy: limits.
    """
    if not instruction_ids:
        return []
    with connection.cursor() as cursor:
        again = read_frame(
            cursor,
            """SELECT i.instruction_id, i.party_id, i.currency, i.amount_minor, EXISTS (
                   SELECT FROM payout_attempts a
                   WHERE a.instruction_id = i.instruction_id
                     AND a.started_at >= date_trunc('day', clock_timestamp(), {zone})) AS counted
               FROM payout_instructions i WHERE i.instruction_id = ANY({ids}::uuid[])
               ORDER BY i.sweep_day, i.sweep_seq, i.party_id, i.currency""",
            {"zone": zone.key, "ids": instruction_ids},
            _AGAIN_SCHEMA,
        )
        sent = read_frame(cursor, _SENT_TODAY, {"zone": zone.key}, _SENT_SCHEMA)
    new = again[~again["counted"]].reset_index(drop=True)
    fits = new.loc[within_limits(new, sent, policy).to_numpy(), "instruction_id"]
    passes = {*again.loc[again["counted"], "instruction_id"], *fits}
    return [each for each in instruction_ids if each in passes]


def approved(connection: psycopg.Connection, day: date, processor: str, zone: ZoneInfo, policy: Policy) -> pd.DataFrame:
    """Give the approved instructions in the order in which they are to be sent; `fits`: under the sending limits.

    Args:
        connection: of the dispatch, which holds its lock.
        day: dispatching day; instructions of later sweeps wait.
        processor: whose instructions.
        zone: whose calendar day the limits are for.
        policy: limits.
    """
    with connection.cursor() as cursor:
        waiting = read_frame(cursor, _APPROVED, {"day": day, "processor": processor}, _APPROVED_SCHEMA)
        sent = read_frame(cursor, _SENT_TODAY, {"zone": zone.key}, _SENT_SCHEMA)
    return waiting.assign(fits=within_limits(waiting, sent, policy))


def begin(
    connection: psycopg.Connection,
    day: date,
    instructions: pd.DataFrame,
    requests: list[bytes],
    execute_on: list[date],
    not_after: datetime,
    sendable_for: timedelta,
    parties: pd.DataFrame,
    run: RunInfo,
) -> tuple[list[Attempt], int]:
    """Commit the first attempts of approved instructions, with their postings; only then may they be sent.

    The gate is asked in the same transaction. A sweep may have cancelled one of them since they were read: it is left
    out.

    Args:
        connection: of the dispatch.
        day: dispatching day.
        instructions: rows of `approved`.
        requests: the bytes of each.
        execute_on: date each asks for.
        not_after: instant after which they are never sent, by the dispatch's clock.
        sendable_for: time after which they are never sent, by Postgres's clock; what is over first counts.
        parties: party_id, status, payout_token, collection_token as of now.
        run: who dispatches.

    Returns:
        What may be sent, and how many the gate cancelled.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        approved_now = cursor.execute(
            """SELECT instruction_id::text FROM instruction_states
               WHERE state = 'approved' AND instruction_id = ANY(%s::uuid[])""",
            (instructions["instruction_id"].tolist(),),
        ).fetchall()
        held_now = {row[0] for row in approved_now}
        refused = refuse(cursor, day, sorted(held_now), parties, run)
        still = instructions["instruction_id"].isin(held_now - refused)
        # A clock that is fast for a moment would let bytes leave again when their key has died at the processor.
        row = cursor.execute("SELECT least(%s, clock_timestamp() + %s)", (not_after, sendable_for)).fetchone()
        assert row is not None
        not_after = row[0]
        attempts = instructions[["instruction_id"]].assign(
            idempotency_key=instructions["instruction_id"],
            request=["\\x" + request.hex() for request in requests],
            request_sha256=[hashlib.sha256(request).hexdigest() for request in requests],
            execute_on=execute_on,
        )
        events = instructions[["instruction_id"]].assign(seq=instructions["seq"] + 1)
        journals, entries = submission_entries(instructions[still].reset_index(drop=True), day, reverse=False)
        write_events(
            cursor,
            events[still],
            day,
            run,
            from_state=str(State.APPROVED),
            to_state=str(State.SUBMITTING),
            actor="dispatch",
            reason="the gate let it pass",
        )
        copy_frame(cursor, "journals", journals, run.stamp)
        copy_frame(cursor, "ledger_entries", entries)
        sent = {"attempt_no": 1, "not_after": not_after, "dispatched_on": day}
        copy_frame(cursor, "payout_attempts", attempts[still], sent | {"run_id": run.run_id})
    begun = [
        Attempt(instruction_id, 1, instruction_id, request, not_after)
        for instruction_id, request, passes in zip(instructions["instruction_id"], requests, still, strict=True)
        if passes
    ]
    return begun, len(refused)


def begin_again(connection: psycopg.Connection, day: date, instruction_ids: list[str], run: RunInfo) -> list[Attempt]:
    """Commit further attempts: the same key, bytes and deadline. Nothing is posted again.

    One whose deadline has passed is left out: the next dispatch calls it unknown.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        cursor.execute(
            """INSERT INTO payout_attempts (instruction_id, attempt_no, idempotency_key, request, request_sha256,
                                            execute_on, not_after, dispatched_on, run_id)
               SELECT DISTINCT ON (instruction_id) instruction_id, attempt_no + 1, idempotency_key, request,
                      request_sha256, execute_on, not_after, %s, %s
               FROM payout_attempts JOIN instruction_states s USING (instruction_id)
               WHERE instruction_id = ANY(%s::uuid[]) AND s.state = 'submitting' AND not_after > clock_timestamp()
               ORDER BY instruction_id, attempt_no DESC
               RETURNING instruction_id::text, attempt_no, idempotency_key, request, not_after""",
            (day, run.run_id, instruction_ids),
        )
        return [Attempt(*row) for row in cursor.fetchall()]


def finish(connection: psycopg.Connection, day: date, outcomes: list[Outcome], run: RunInfo) -> None:
    """Commit what came of attempts, with what follows for their instructions.

    A report line may have been faster: an instruction that is no longer `submitting` keeps its state.
    """
    if not outcomes:
        return
    frame = pd.DataFrame(
        {
            "instruction_id": [outcome.attempt.instruction_id for outcome in outcomes],
            "attempt_no": [outcome.attempt.attempt_no for outcome in outcomes],
            "outcome": [outcome.outcome for outcome in outcomes],
            "processor_reference": [outcome.processor_reference for outcome in outcomes],
            "code": [outcome.code for outcome in outcomes],
            "message": [outcome.message for outcome in outcomes],
        },
        dtype=object,
    )
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        copy_frame(cursor, "payout_attempt_outcomes", frame)
        follows = {
            "acknowledged": State.SUBMITTED,
            "rejected": State.FAILED,
            "unknown": State.UNKNOWN,
        }
        moved = frame[frame["outcome"].isin(list(follows))]
        reasons = (moved["outcome"] + ": " + moved["message"].fillna("")).str.removesuffix(": ")
        _move(
            cursor,
            day,
            moved[["instruction_id"]].assign(
                to_state=moved["outcome"].map({k: str(v) for k, v in follows.items()}), reason=reasons
            ),
            from_state=State.SUBMITTING,
            actor="dispatch",
            run=run,
        )


def _move(
    cursor: psycopg.Cursor[Any], day: date, moves: pd.DataFrame, *, from_state: State, actor: str, run: RunInfo
) -> None:
    """Move instructions that are still in `from_state`; a failed one is posted back and its items are freed."""
    if moves.empty:
        return
    states = read_frame(
        cursor,
        """SELECT s.instruction_id, s.seq, i.party_id, i.currency, i.direction, i.amount_minor, i.processor
           FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
           WHERE s.state = {state} AND s.instruction_id = ANY({ids}::uuid[])""",
        {"state": str(from_state), "ids": moves["instruction_id"].tolist()},
        {
            "instruction_id": _STRING,
            "seq": _INT,
            "party_id": _STRING,
            "currency": _STRING,
            "direction": _STRING,
            "amount_minor": _INT,
            "processor": _STRING,
        },
    )
    moves = moves.merge(states, on="instruction_id", how="inner")
    if moves.empty:
        return
    said = [name for name in ("instruction_id", "to_state", "reason", "evidence") if name in moves]
    events = moves[said].assign(seq=moves["seq"] + 1)
    write_events(cursor, events, day, run, from_state=str(from_state), actor=actor)
    failed = moves[moves["to_state"] == str(State.FAILED)].reset_index(drop=True)
    if len(failed):
        journals, entries = submission_entries(failed, day, reverse=True)
        copy_frame(cursor, "journals", journals, run.stamp)
        copy_frame(cursor, "ledger_entries", entries)
        release(cursor, failed["instruction_id"].tolist(), day=day, by_sweep=False, run=run)


def abandon_unanswered(connection: psycopg.Connection, day: date, processor: str, run: RunInfo) -> int:
    """Call unknown what a sender left without an outcome; it died, or its answer was lost.

    The caller holds the lock of dispatch, so nobody is sending under these attempts now.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        cursor.execute(
            """INSERT INTO payout_attempt_outcomes (instruction_id, attempt_no, outcome, message)
               SELECT a.instruction_id, a.attempt_no, 'unknown', 'its sender ended before the answer was written down'
               FROM instruction_states s JOIN payout_attempts a USING (instruction_id)
               JOIN payout_instructions i USING (instruction_id)
               LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
               WHERE o.outcome IS NULL AND i.processor = %s
                 AND s.state IN ('submitting', 'submitted', 'unknown', 'settled', 'failed', 'returned')
               RETURNING instruction_id::text""",
            (processor,),
        )
        ids = [row[0] for row in cursor.fetchall()]
        _move(
            cursor,
            day,
            pd.DataFrame(
                {"instruction_id": ids, "to_state": str(State.UNKNOWN), "reason": "found without an answer"},
                dtype=object,
            ),
            from_state=State.SUBMITTING,
            actor="dispatch",
            run=run,
        )
    return len(ids)


def give_up_expired(connection: psycopg.Connection, day: date, processor: str, now: datetime, run: RunInfo) -> int:
    """Call unknown what was never accepted until its deadline: its bytes may not leave again, so it is asked about.

    What the processor says it never saw then is a person's to end, as with any other unknown outcome. Its deadline is
    over once it is by the dispatch's clock and by Postgres's.
    """
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        rows = cursor.execute(
            """SELECT a.instruction_id::text
               FROM instruction_states s JOIN payout_attempts a USING (instruction_id)
               JOIN payout_instructions i USING (instruction_id)
               WHERE s.state = 'submitting' AND i.processor = %s AND a.attempt_no = 1
                 AND a.not_after <= least(%s, clock_timestamp())""",
            (processor, now),
        ).fetchall()
        _move(
            cursor,
            day,
            pd.DataFrame(
                {
                    "instruction_id": [row[0] for row in rows],
                    "to_state": str(State.UNKNOWN),
                    "reason": "its deadline passed before the processor accepted it",
                },
                dtype=object,
            ),
            from_state=State.SUBMITTING,
            actor="dispatch",
            run=run,
        )
    return len(rows)


def unknown(connection: psycopg.Connection, day: date, processor: str) -> list[Attempt]:
    """Give the newest attempt of each instruction whose outcome is unknown, of any sweep up to the day."""
    rows = connection.execute(
        """SELECT DISTINCT ON (a.instruction_id)
                  a.instruction_id::text, a.attempt_no, a.idempotency_key, a.request, a.not_after
           FROM instruction_states s JOIN payout_attempts a USING (instruction_id)
           JOIN payout_instructions i USING (instruction_id)
           WHERE s.state = 'unknown' AND i.processor = %s AND i.sweep_day <= %s
           ORDER BY a.instruction_id, a.attempt_no DESC""",
        (processor, day),
    ).fetchall()
    return [Attempt(*row) for row in rows]


def unavailable(connection: psycopg.Connection, day: date, processor: str, now: datetime) -> list[str]:
    """Give the instructions that were never accepted so far and whose bytes may still be sent."""
    rows = connection.execute(
        """SELECT instruction_id::text FROM (
               SELECT DISTINCT ON (a.instruction_id) a.instruction_id, a.not_after, o.outcome
               FROM instruction_states s JOIN payout_attempts a USING (instruction_id)
               JOIN payout_instructions i USING (instruction_id)
               LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
               WHERE s.state = 'submitting' AND i.processor = %s AND i.sweep_day <= %s
               ORDER BY a.instruction_id, a.attempt_no DESC) newest
           WHERE outcome IN ('unavailable', 'not_sent', 'unknown') AND not_after > %s""",
        (processor, day, now),
    ).fetchall()
    return [row[0] for row in rows]


def resolve(
    connection: psycopg.Connection, day: date, looked_up: Sequence[LookedUp], moves: pd.DataFrame, run: RunInfo
) -> int:
    """Write down what look-ups said, and move unknown instructions to where that leads.

    What was never seen stays where it is once its deadline is over by Postgres's clock, or about to be.

    Args:
        connection: of the dispatch.
        day: dispatching day.
        looked_up: every look-up, answered or not.
        moves: instruction_id, to_state (submitting, submitted or failed), reason.
        run: who asked.

    Returns:
        How many were moved.
    """
    if not looked_up:
        return 0
    with connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        columns = [list(column) for column in zip(*(astuple(each) for each in looked_up), strict=True)]
        numbers = cursor.execute(
            """INSERT INTO payout_look_ups (instruction_id, look_up_no, answer, processor_reference, code,
                                            request_sha256, message, run_id)
               SELECT n.instruction_id, 1 + coalesce(max(l.look_up_no), 0), n.answer, n.processor_reference, n.code,
                      n.request_sha256, n.message, %s
               FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
                    AS n (instruction_id, answer, processor_reference, code, request_sha256, message)
               LEFT JOIN payout_look_ups l USING (instruction_id)
               GROUP BY n.instruction_id, n.answer, n.processor_reference, n.code, n.request_sha256, n.message
               RETURNING instruction_id::text, look_up_no""",
            (run.run_id, *columns),
        ).fetchall()
        said = {instruction_id: f'{{"look_up": {number}}}' for instruction_id, number in numbers}
        over = cursor.execute(
            """SELECT instruction_id::text FROM payout_attempts
               WHERE attempt_no = 1 AND not_after <= clock_timestamp() + interval '1 minute'
                 AND instruction_id = ANY(%s::uuid[])""",
            (moves.loc[moves["to_state"] == str(State.SUBMITTING), "instruction_id"].tolist(),),
        ).fetchall()
        is_over = moves["instruction_id"].isin([row[0] for row in over])
        moves = moves[~(is_over & moves["to_state"].eq(str(State.SUBMITTING)))]
        moves = moves.assign(evidence=moves["instruction_id"].map(said))
        _move(cursor, day, moves, from_state=State.UNKNOWN, actor="resolver", run=run)
    return len(moves)


def resolve_by_hand(
    cursor: psycopg.Cursor[Any], day: date, instruction_id: str, to_state: str, reason: str, proposal: str, run: RunInfo
) -> None:
    """Move an unknown instruction to what two people say became of it.

    Args:
        cursor: in a transaction under the lock of instructions.
        day: day of the act.
        instruction_id: which.
        to_state: submitted or failed.
        reason: where that is written, and who says so.
        proposal: the accepted proposal.
        run: who carries it out.
    """
    move = {"instruction_id": instruction_id, "to_state": to_state, "reason": reason}
    evidence = f'{{"proposal": "{proposal}"}}'
    moves = pd.DataFrame([move | {"evidence": evidence}], dtype=object)
    _move(cursor, day, moves, from_state=State.UNKNOWN, actor="resolver", run=run)
