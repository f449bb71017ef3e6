"""The store of what people decide: approvals, refusals, proposals and decisions, and carrying out what was accepted.

Belongs here: SQL, and under which login. Does not belong here: what a proposal says (`domain.proposals`), prompts. Who
may decide what is Postgres's to refuse.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import pandas as pd
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from payments_pipeline.domain.errors import ConfigurationError, ConflictError, PaymentsError
from payments_pipeline.domain.lifecycle import UNSENT, State
from payments_pipeline.domain.payout_instructions import instruction_digest
from payments_pipeline.domain.proposals import (
    Match,
    ProposalKind,
    Resolution,
    Retry,
    RuleChange,
    WriteOff,
    match_entries,
    proposal_id,
    write_off_entries,
)
from payments_pipeline.storage.payout_instructions import cancel, write_events
from payments_pipeline.storage.payout_submissions import resolve_by_hand
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, copy_frame, transaction_lock

Row = dict[str, Any]


class NotApprovedError(PaymentsError):
    """An approval, refusal, proposal or decision was not taken; says why, and that nothing was changed."""


@dataclass(frozen=True)
class CarriedOut:
    """What came of accepted proposals.

    Attributes:
        done: ids of those carried out now.
        waiting: ids of those that no longer fit what is stored, and why; they are looked at again by the next run.
    """

    done: tuple[str, ...]
    waiting: dict[str, str]


_HELD = """
    SELECT i.instruction_id::text, i.sweep_day, i.party_id, i.currency, i.direction, i.amount_minor, i.token, i.digest,
           i.maker, s.state, s.seq, i.created_at + make_interval(days => i.approval_days) AS approve_until,
           (SELECT string_agg(c.item_id || ':' || c.claim_no, E'\\n' ORDER BY c.item_id::text COLLATE "C", c.claim_no)
            FROM instruction_claims c WHERE c.instruction_id = i.instruction_id) AS claims
    FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
"""
_PENDING = """
    SELECT p.proposal_id::text, p.kind, p.content, p.reason, p.maker, p.proposed_at
    FROM proposals p LEFT JOIN proposal_decisions d USING (proposal_id) WHERE d.proposal_id IS NULL
    ORDER BY p.proposed_at, p.proposal_id
"""
#: Accepted and not carried out: no journal of it, or its instruction is still unknown.
_ACCEPTED = """
    SELECT p.proposal_id::text, p.kind, p.content, p.maker, d.actor
    FROM proposals p JOIN proposal_decisions d USING (proposal_id)
    LEFT JOIN journals j USING (proposal_id)
    LEFT JOIN instruction_states s
        ON p.kind = 'resolution' AND s.instruction_id = (p.content ->> 'instruction_id')::uuid
    WHERE d.decision = 'accepted' AND (p.kind IN ('write_off', 'match') AND j.journal_id IS NULL
                                       OR p.kind = 'resolution' AND s.state = 'unknown')
    ORDER BY d.decided_at, p.proposal_id
"""


#: A report line: its cash, what it was posted as, and whether it was matched since.
_LINE = """
    SELECT l.amount_minor, l.currency::text, j.kind, EXISTS (
        SELECT FROM journals m WHERE (m.processor, m.matched_reference) = (l.processor, l.entry_reference))
    FROM report_lines l LEFT JOIN journals j USING (journal_id)
    WHERE l.processor = %s AND l.entry_reference = %s
"""
#: What a party owes in open items, and which they are.
_DEBT = """
    SELECT coalesce(-sum(amount_minor), 0) AS owed_minor,
           encode(sha256(convert_to(coalesce(string_agg(item_id::text, E'\n' ORDER BY item_id::text COLLATE "C"), ''),
                                    'UTF8')), 'hex') AS items_sha256
    FROM open_items WHERE party_id = %s AND currency = %s
"""
#: What of a party failed or came back, and no accepted retry has put aside.
_FAILED = """
    SELECT i.instruction_id::text FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
    WHERE i.party_id = %s AND i.currency = %s AND s.state IN ('failed', 'returned')
      AND i.instruction_id NOT IN (SELECT instruction_id FROM retried_instructions)
    ORDER BY i.instruction_id::text
"""
#: That the newest sweep which left anything of a party open left it after failures in a row.
_NEWEST_WAIT = """
    SELECT FROM (
        SELECT reason FROM sweep_deferrals WHERE party_id = %s AND currency = %s
        ORDER BY sweep_day DESC, seq DESC LIMIT 1) newest
    WHERE reason = 'failures_in_a_row'
"""


def held(url: str) -> list[Row]:
    """Give the instructions that wait for an approver, oldest first."""
    return _read(url, _HELD + "WHERE s.state = 'held' ORDER BY i.sweep_day, i.party_id, i.currency", ())


def pending(url: str) -> list[Row]:
    """Give the proposals that nobody has decided, oldest first."""
    return _read(url, _PENDING, ())


@dataclass(frozen=True)
class ChangesWaiting:
    """What changed rules of a competition would do, over all the days that nobody has decided about.

    Attributes:
        proposals: id and match day of each, in order of day.
        effect: account, currency and amount_minor (> 0 a credit) in all, the largest first.
        digest: over the ids: what was looked at is what is accepted.
    """

    proposals: list[tuple[str, str]]
    effect: list[tuple[str, str, int]]
    digest: str


def changes_waiting(url: str, competition_id: str) -> ChangesWaiting:
    """Give the undecided changes of rules of a competition.

    Raises:
        NotApprovedError: there is none.
    """
    mine = [
        row
        for row in pending(url)
        if row["kind"] == ProposalKind.RULE_CHANGE and row["content"]["competition_id"] == competition_id
    ]
    if not mine:
        raise NotApprovedError(f"no change of rules of {competition_id} waits for a decision. Nothing was accepted.")
    totals: Counter[tuple[str, str]] = Counter()
    for row in mine:
        for account, currency, amount_minor in row["content"]["effect"]:
            totals[account, currency] += amount_minor
    ids = sorted(row["proposal_id"] for row in mine)
    return ChangesWaiting(
        sorted(((row["proposal_id"], row["content"]["match_day"]) for row in mine), key=lambda each: each[1]),
        sorted(((*account, minor) for account, minor in totals.items()), key=lambda each: (-abs(each[2]), each)),
        hashlib.sha256("\n".join(ids).encode()).hexdigest(),
    )


def looked_at(url: str, instruction_id: str) -> Row:
    """Give an instruction as an approver must see it.

    Raises:
        NotApprovedError: there is none of this id, or what is stored of it is not what its digest says.
    """
    found = _read(url, _HELD + "WHERE i.instruction_id = %s", (_uuid(instruction_id),))
    if not found:
        raise NotApprovedError(f"there is no instruction {instruction_id}. Nothing was changed.")
    row = found[0]
    digest = instruction_digest(
        party_id=row["party_id"],
        token=row["token"],
        currency=row["currency"],
        direction=row["direction"],
        amount_minor=row["amount_minor"],
        claims=row["claims"] or "",
    )
    if digest != row["digest"]:
        raise NotApprovedError(
            f"instruction {instruction_id} is not what it was made as: its party, token, currency, amount and items "
            f"give digest {digest}, and it has {row['digest']}. Nothing was approved. Run `payments-pipeline verify`."
        )
    return row


def approve(approver_url: str, instruction_id: str, digest: str, reason: str, today: date) -> Row:
    """Let an instruction over its limit pass, by the approver whose login `approver_url` is.

    Args:
        approver_url: business database, by the approver's own login.
        instruction_id: what to approve; approved already by the same login is a no-op.
        digest: of what the approver looked at.
        reason: kept with the event.
        today: calendar day of the act.

    Raises:
        NotApprovedError: it is not held, has another digest, has expired, or the login may not; nothing was changed.
    """
    row = looked_at(approver_url, instruction_id)
    if digest != row["digest"]:
        raise NotApprovedError(
            f"instruction {instruction_id} has digest {row['digest']}, and {digest} was looked at. Nothing was "
            "approved. Look at it again."
        )
    with _deciding(approver_url) as (cursor, login):
        state, seq, last_actor = _state(cursor, instruction_id)
        if state == State.APPROVED and last_actor == login:
            return row
        if state != State.HELD:
            raise NotApprovedError(f"instruction {instruction_id} is {state}, not held. Nothing was approved.")
        write_events(
            cursor,
            pd.DataFrame([{"instruction_id": instruction_id, "seq": seq + 1}], dtype=object),
            today,
            _by_hand(login),
            from_state=str(State.HELD),
            to_state=str(State.APPROVED),
            actor=login,
            reason=reason,
            evidence=f'{{"digest": "{digest}"}}',
        )
    return row


def refuse(approver_url: str, instruction_id: str, reason: str, today: date) -> None:
    """Cancel an instruction that has not been sent; its items are free to sweeps of later days.

    Raises:
        NotApprovedError: it was sent, is cancelled already, or the login may not; nothing was changed.
    """
    with _deciding(approver_url) as (cursor, login):
        state, seq, _ = _state(cursor, instruction_id)
        if state not in UNSENT:
            raise NotApprovedError(
                f"instruction {instruction_id} is {state}: only what has not been sent can be refused. Nothing was "
                "changed."
            )
        cancel(
            cursor,
            [(instruction_id, state, seq)],
            day=today,
            actor=login,
            reason=reason,
            by_sweep=False,
            run=_by_hand(login),
        )


def propose(url: str, proposal: WriteOff | Resolution | Retry | Match, reason: str, maker: str) -> str:
    """Ask for something that another person decides; asked again before the decision it is the same proposal.

    Args:
        url: business database, by the run-time login.
        proposal: what is asked for.
        reason: why, for who decides.
        maker: who asks.

    Returns:
        The proposal's id.

    Raises:
        NotApprovedError: the party owes less or does not wait for a retry, or the instruction's outcome is known or
            not yet given up on.
    """
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        transaction_lock(cursor, Lock.INSTRUCTIONS)
        fault = _fault(cursor, proposal)
        if fault:
            raise NotApprovedError(f"{fault} Nothing was proposed.")
        return write_proposal(cursor, proposal, reason, maker)


def write_off(url: str, party_id: str, currency: str, amount_minor: int) -> WriteOff:
    """Give what is to be proposed for a debt, as it is made up now, to be written off."""
    ((_, items_sha256),) = (tuple(row.values()) for row in _read(url, _DEBT, (party_id, currency)))
    return WriteOff(party_id, currency, amount_minor, items_sha256)


def retry(url: str, party_id: str, currency: str) -> Retry:
    """Give what is to be proposed for a party to be paid, or collected from, again: all that failed until now."""
    rows = _read(url, _FAILED, (party_id, currency))
    return Retry(party_id, currency, [row["instruction_id"] for row in rows])


_KINDS = {
    WriteOff: ProposalKind.WRITE_OFF,
    Resolution: ProposalKind.RESOLUTION,
    Retry: ProposalKind.RETRY,
    RuleChange: ProposalKind.RULE_CHANGE,
    Match: ProposalKind.MATCH,
}


def write_proposal(
    cursor: psycopg.Cursor[Any], proposal: WriteOff | Resolution | Retry | RuleChange | Match, reason: str, maker: str
) -> str:
    """Write a proposal, in the caller's transaction; one that says the same and is not decided is that one.

    Returns:
        Its id.
    """
    kind, content = _KINDS[type(proposal)], dataclasses.asdict(proposal)
    decided = cursor.execute(
        """SELECT count(*) FROM proposals JOIN proposal_decisions USING (proposal_id)
           WHERE kind = %s AND content = %s""",
        (str(kind), Jsonb(content)),
    ).fetchone()
    assert decided is not None
    identity = proposal_id(kind, content, decided[0] + 1)
    cursor.execute(
        """INSERT INTO proposals (proposal_id, kind, content, reason, maker) VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT DO NOTHING""",
        (identity, str(kind), Jsonb(content), reason, maker),
    )
    return identity


def is_proposal(url: str, identity: str) -> bool:
    """Say whether a proposal has this id, decided or not."""
    with connect(url) as connection:
        found = connection.execute("SELECT FROM proposals WHERE proposal_id = %s", (_uuid(identity),)).fetchone()
    return found is not None


def decide(approver_url: str, identity: str, decision: str, reason: str) -> Row:
    """Accept or refuse a proposal, by the approver whose login `approver_url` is; the same decision again is a no-op.

    Args:
        approver_url: business database, by the approver's own login.
        identity: the proposal.
        decision: `accepted` or `refused`.
        reason: kept with the decision.

    Raises:
        NotApprovedError: there is none of this id, it is decided otherwise, or the login may not; nothing was changed.
    """
    with _deciding(approver_url) as (cursor, login):
        row = cursor.execute(
            """SELECT p.kind, p.content, p.maker, d.decision FROM proposals p LEFT JOIN proposal_decisions d
               USING (proposal_id) WHERE p.proposal_id = %s""",
            (_uuid(identity),),
        ).fetchone()
        if row is None:
            raise NotApprovedError(f"there is no proposal {identity}. Nothing was changed.")
        kind, content, maker, already = row
        if already not in (None, decision):
            raise NotApprovedError(f"proposal {identity} is {already} already: a decision stands. Nothing was changed.")
        if already is None:
            cursor.execute(
                "INSERT INTO proposal_decisions (proposal_id, decision, reason, actor) VALUES (%s, %s, %s, %s)",
                (identity, decision, reason, login),
            )
    identity = str(_uuid(identity))
    return {"proposal_id": identity, "kind": kind, "content": content, "maker": maker, "decision": decision}


def carry_out_accepted(url: str, today: date, run: RunInfo) -> CarriedOut:
    """Carry out every accepted proposal once; what was carried out before is left alone.

    Args:
        url: business database, by the run-time login.
        today: calendar day of the act.
        run: who carries it out.
    """
    carried: list[str] = []
    waiting: dict[str, str] = {}
    with connect(url) as connection:
        for row in connection.execute(_ACCEPTED.encode()).fetchall():
            identity, kind, content, maker, approver = row
            with _told_if_refused(identity, waiting), connection.transaction(), connection.cursor() as cursor:
                transaction_lock(cursor, Lock.INSTRUCTIONS)
                if not any(identity == again[0] for again in cursor.execute(_ACCEPTED.encode()).fetchall()):
                    continue  # somebody else carried it out meanwhile
                proposal = _CARRIED_OUT[kind](**content)
                fault = _fault(cursor, proposal)
                if fault:
                    waiting[identity] = fault
                    continue
                if isinstance(proposal, WriteOff | Match):
                    journals, entries = _posted_by(cursor, identity, proposal, today)
                    copy_frame(cursor, "journals", journals, run.stamp)
                    copy_frame(cursor, "ledger_entries", entries)
                else:
                    words = f"{proposal.evidence}: proposed by {maker}, accepted by {approver} (proposal {identity})"
                    resolve_by_hand(cursor, today, proposal.instruction_id, proposal.to_state, words, identity, run)
                carried.append(identity)
    return CarriedOut(tuple(identity for identity in carried if identity not in waiting), waiting)


@contextmanager
def _told_if_refused(identity: str, waiting: dict[str, str]) -> Iterator[None]:
    """What Postgres refuses was changed while it was carried out: it waits, in its words, and holds up no other."""
    try:
        yield
    except psycopg.errors.RestrictViolation as error:
        waiting[identity] = f"Postgres refused it: {str(error).strip()}"


_CARRIED_OUT: dict[str, type[WriteOff | Resolution | Match]] = {
    ProposalKind.WRITE_OFF: WriteOff,
    ProposalKind.RESOLUTION: Resolution,
    ProposalKind.MATCH: Match,
}


def _posted_by(
    cursor: psycopg.Cursor[Any], identity: str, proposal: WriteOff | Match, today: date
) -> tuple[pd.DataFrame, pd.DataFrame]:
    if isinstance(proposal, WriteOff):
        return write_off_entries(identity, proposal, today)
    row = cursor.execute(_LINE, (proposal.processor, proposal.entry_reference)).fetchone()
    assert row is not None
    return match_entries(identity, proposal, row[0], row[1], today)


def _fault(cursor: psycopg.Cursor[Any], proposal: WriteOff | Resolution | Retry | Match) -> str:
    """Say why a proposal does not fit what is stored; empty where it does."""
    if isinstance(proposal, WriteOff):
        row = cursor.execute(_DEBT, (proposal.party_id, proposal.currency)).fetchone()
        assert row is not None
        owed, items_sha256 = row
        if not 0 < proposal.amount_minor <= owed:
            return (
                f"{proposal.party_id} owes {max(owed, 0)} {proposal.currency} (minor units) in open items, and "
                f"{proposal.amount_minor} is to be written off."
            )
        if proposal.items_sha256 != items_sha256:
            return (
                f"what {proposal.party_id} owes in {proposal.currency} is made up of other items now than when it was "
                "to be written off: propose it again if it still is."
            )
        return ""
    if isinstance(proposal, Match):
        return _match_fault(cursor, proposal)
    if isinstance(proposal, Retry):
        party_id, currency = proposal.party_id, proposal.currency
        if proposal.failed and cursor.execute(_NEWEST_WAIT, (party_id, currency)).fetchone() is not None:
            return ""
        return f"{party_id} does not wait in {currency} after failures in a row: `status` says why its items are open."
    found = cursor.execute(
        """SELECT s.state, a.not_after, a.not_after < clock_timestamp(),
                  (SELECT l.answer FROM payout_look_ups l
                   WHERE l.instruction_id = s.instruction_id AND l.answer <> 'unanswered' AND l.asked_at > a.not_after
                   ORDER BY l.look_up_no DESC LIMIT 1), i.processor
           FROM instruction_states s JOIN payout_instructions i USING (instruction_id)
           JOIN LATERAL (SELECT not_after FROM payout_attempts p WHERE p.instruction_id = s.instruction_id
                         ORDER BY attempt_no DESC LIMIT 1) a ON true
           WHERE s.instruction_id = %s""",
        (_uuid(proposal.instruction_id),),
    ).fetchone()
    if found is None:
        return f"there is no instruction {proposal.instruction_id} that was sent."
    state, not_after, is_past, answer, processor = found
    if state != State.UNKNOWN:
        return f"instruction {proposal.instruction_id} is {state}: only an unknown outcome is resolved by hand."
    if proposal.to_state == State.FAILED and not is_past:
        return (
            f"instruction {proposal.instruction_id} may still be sent until {not_after:%Y-%m-%d %H:%M:%S %Z}: a "
            "dispatch asks about it."
        )
    if proposal.to_state == State.FAILED and answer in (None, "accepted"):
        return (
            f"{processor} has not said that it does not have instruction {proposal.instruction_id} since that could "
            f"last be sent, {not_after:%Y-%m-%d %H:%M:%S %Z} ({answer or 'not asked'}): a dispatch by {processor} asks "
            "about it."
        )
    return ""


def _match_fault(cursor: psycopg.Cursor[Any], match: Match) -> str:
    name = f"entry {match.entry_reference} of {match.processor}"
    row = cursor.execute(_LINE, (match.processor, match.entry_reference)).fetchone()
    if row is None:
        return f"there is no {name} in any report that was taken in."
    kind, is_matched = row[2:]
    if kind != "unmatched":
        return f"{name} was posted as {kind or 'a line without cash'}: only what belonged to nothing is matched."
    if is_matched:
        return f"{name} was matched before."
    if match.account.startswith("fees:") and match.account != f"fees:{match.processor}":
        return f"{name} is no fee of {match.account.removeprefix('fees:')}."
    return ""


@contextmanager
def _deciding(approver_url: str) -> Iterator[tuple[psycopg.Cursor[Any], str]]:
    """Open a transaction under an approver's login that holds the lock of instructions; give its cursor and the login.

    What Postgres refuses is said in its own words.
    """
    try:
        with connect(approver_url) as connection, connection.transaction(), connection.cursor() as cursor:
            transaction_lock(cursor, Lock.INSTRUCTIONS)
            row = cursor.execute("SELECT session_user").fetchone()
            assert row is not None
            yield cursor, row[0]
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation) as error:
        raise NotApprovedError(f"{str(error).strip()}. Nothing was changed.") from error
    except psycopg.errors.UniqueViolation as error:
        raise ConflictError(f"{str(error).strip()}. Somebody else was faster; nothing was changed.") from error


def _state(cursor: psycopg.Cursor[Any], instruction_id: str) -> tuple[str, int, str]:
    row = cursor.execute(
        """SELECT s.state, s.seq, e.actor
           FROM instruction_states s JOIN instruction_events e USING (instruction_id, seq)
           WHERE s.instruction_id = %s""",
        (_uuid(instruction_id),),
    ).fetchone()
    if row is None:
        raise NotApprovedError(f"there is no instruction {instruction_id}. Nothing was changed.")
    state, seq, actor = row
    return str(state), int(seq), str(actor)


def _by_hand(login: str) -> RunInfo:
    return RunInfo(run_id=f"by {login}", code_version="", maker=login)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no id: it is a UUID, as `payments-pipeline status` shows it.") from None


def _read(url: str, query: str, parameters: tuple[object, ...]) -> list[Row]:
    with connect(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()
