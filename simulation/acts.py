"""What one step of a run does, and what people do: each act of a world by its name.

Belongs here: calling the product as its assets and commands do, with what the world has at that moment. Does not belong
here: tasks and fates (`effects`), what must hold afterwards (`observations`, `rules`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pandas as pd

from payments_pipeline.domain.proposals import Match, Resolution
from payments_pipeline.domain.schemas import RECONCILIATION, SETTLEMENT_RECORDS
from payments_pipeline.processors.base import SettlementReport
from payments_pipeline.processors.dispatch import Dispatch
from payments_pipeline.storage import approvals
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.ledger_entries import post_day
from payments_pipeline.storage.payout_instructions import sweep_day_items
from payments_pipeline.storage.postgres import RunInfo, connect
from payments_pipeline.storage.reconciliation import reconcile_day
from payments_pipeline.storage.refunds import accept_refunds
from payments_pipeline.storage.settlement_records import take_report_in
from payments_pipeline.storage.table_declarations import Table
from payments_pipeline.storage.tables import WriteMode, write_rows
from simulation.inputs import PLAYERS, POTS, day_input, day_of, input_hash, parties_frame
from simulation.processor import NAME, inline_portal

if TYPE_CHECKING:
    from simulation.world import World

ZONE = ZoneInfo("Europe/London")
_TABLES = {schema.name: Table("payments", schema) for schema in (SETTLEMENT_RECORDS, RECONCILIATION)}
#: What refunds are asked for; None is all that is left.
_ASKED = (None, 1, 57, 300, 1_200)


def post(world: World, run: RunInfo, day: int) -> None:
    """Compute a day from what is landed, post it, write its certificate."""
    landed = tuple(world.landing.get(day, {}).values())
    world.inputs[run.run_id] = (day, landed, len(world.accepted) - 1)
    computed = day_input(landed)
    world.effects.boundary()

    def hash_again() -> dict[str, str]:
        world.effects.boundary()
        world.hashed[run.run_id] = input_hash(world.landing.get(day, {}).values())
        return world.hashed[run.run_id]

    post_day(world.database.url, day_of(day), computed, hash_again, run)
    write_certificates(world.database.url, world.storage, day_of(day))


def sweep(world: World, run: RunInfo, day: int) -> None:
    """Sweep a day, after what was accepted by people is carried out."""
    parties = parties_frame(world.parties)
    world.effects.boundary()
    approvals.carry_out_accepted(world.database.url, world.now().date(), run)
    sweep_day_items(world.database.url, day_of(day), parties, NAME, world.policy, run)


def dispatch(world: World, run: RunInfo, day: int) -> None:
    """Dispatch a day, to whoever may be paid as of now."""
    world.payable[run.run_id] = {
        token
        for party_id, party in world.parties.items()
        for token in (party.payout_token(party_id), party.collection_token(party_id))
        if token is not None and party.status == "active"
    }
    parties = parties_frame(world.parties)
    world.effects.boundary()
    dispatch = Dispatch(
        world.database.url,
        day_of(day),
        world.processor,
        world.policy,
        ZONE,
        run,
        clock=world.sender_now,
        sleep=world.sleep,
        portal=partial(inline_portal, eager=bool(day % 2)),
    )
    dispatch(parties)


def settle(world: World, run: RunInfo, day: int) -> None:
    """Take in the report of a date and store its records."""
    report = asyncio.run(_fetch(world, day_of(day)))
    taken = take_report_in(
        world.database.url, day_of(day), NAME, report.lines, report.balances, report.digest, POTS, run
    )
    _store(world, SETTLEMENT_RECORDS.name, taken.records, WriteMode.INSERT_ONCE, day)


async def _fetch(world: World, day: date) -> SettlementReport:
    async with world.processor:
        return await world.processor.report(day)


def reconcile(world: World, _run: RunInfo, day: int) -> None:
    """Reconcile a date."""
    rows = reconcile_day(world.database.url, day_of(day), NAME, world.policy)
    _store(world, RECONCILIATION.name, rows, WriteMode.REPLACE_PARTITION, day)


def _store(world: World, table: str, frame: pd.DataFrame, mode: WriteMode, day: int) -> None:
    with connect(world.database.url) as connection:
        write_rows(connection, _TABLES[table], frame, mode, day_of(day).isoformat())


def refund(world: World, run: RunInfo, number: int) -> None:
    """Ask for the n-th refund, on a day of its own."""
    if not world.delivered:
        return
    match = world.delivered[sorted(world.delivered)[number % len(world.delivered)]]
    players = match.players or PLAYERS
    asked: dict[str, Any] = {
        "refund_id": f"refund-{number}",
        "match_id": match.match_id,
        "party_id": players[number // 3 % len(players)],
        "amount_minor": _ASKED[number % len(_ASKED)],
        "reason": "rained off",
        "source": "by hand",
    }
    requests = pd.DataFrame([asked]).astype({"amount_minor": "Int64"})
    content = asked["match_id"], asked["party_id"], asked["amount_minor"]
    world.asked[asked["refund_id"]].add(content)
    world.effects.boundary()
    day = min(day_of(number % (world.days + 1)), world.now().date())
    requester = world.database.approver if number % 3 == 0 else "somebody"
    # As if it had been read from a file by every other one.
    read_from = f"{number:064x}" if number % 2 else None
    accepted = accept_refunds(world.database.url, day, requests, requester, run, read_from)
    decision = accepted.decisions["decision"].iloc[0]
    world.told.append((asked["refund_id"], content, decision))
    world.faults[f"refund_{decision}"] += 1
    write_certificates(world.database.url, world.storage, day)


# Acts of people ------------------------------------------------------------------------------------------------


def approve(world: World, _run: RunInfo, number: int) -> None:
    """Approve the n-th instruction that is held."""
    for row in approvals.held(world.database.url)[number : number + 1]:
        world.faults["approved"] += 1
        approvals.approve(
            world.database.approver_url, str(row["instruction_id"]), row["digest"], "looked at", world.now().date()
        )


def refuse(world: World, _run: RunInfo, number: int) -> None:
    """Refuse the n-th instruction that is held."""
    for row in approvals.held(world.database.url)[number : number + 1]:
        world.faults["refused"] += 1
        approvals.refuse(world.database.approver_url, str(row["instruction_id"]), "not now", world.now().date())


def resolve(world: World, run: RunInfo, number: int) -> None:
    """A person asks the processor's people, who know what became of it; another accepts."""
    given_up = sorted(key for key in world.model.instructed if world.is_for_a_person(key))
    for key in given_up[number : number + 1]:
        world.faults["resolved_by_a_person"] += 1
        carried_out = any(payment.key == key and not payment.rejected for payment in world.processor.payments)
        found = Resolution(key, "submitted" if carried_out else "failed", "a letter")
        identity = approvals.propose(world.database.url, found, "asked", "somebody")
        approvals.decide(world.database.approver_url, identity, "accepted", "seen")
        approvals.carry_out_accepted(world.database.url, world.now().date(), run)


def write_off(world: World, run: RunInfo, number: int) -> None:
    """A person gives up a debt, a part of it or more than it; another accepts at once, or it waits."""
    debts = sorted((account, -minor) for account, minor in world.model.open().items() if minor < 0)
    for (party_id, currency), owed in debts[number // 3 :][:1]:
        amount = (owed, max(1, owed // 2), owed + 1)[number % 3]
        asked = approvals.write_off(world.database.url, party_id, currency, amount)
        maker = world.database.approver if number == 4 else "somebody"
        identity = approvals.propose(world.database.url, asked, "insolvent", maker)
        world.faults["write_off_proposed"] += 1
        if number % 2 == 0:
            world.faults["write_off_accepted"] += 1
            approvals.decide(world.database.approver_url, identity, "accepted", "seen")
            approvals.carry_out_accepted(world.database.url, world.now().date(), run)


def match(world: World, run: RunInfo, number: int) -> None:
    """A person finds out what cash of nobody was for: a party paid, or was paid, by hand; another accepts at once."""
    url = world.database.url
    with connect(url) as connection:
        loose = connection.execute(
            """SELECT l.entry_reference FROM report_lines l JOIN journals j USING (journal_id)
               WHERE j.kind = 'unmatched' AND NOT EXISTS (
                   SELECT FROM journals m WHERE m.matched_reference = l.entry_reference) ORDER BY 1"""
        ).fetchall()
    for (reference,) in loose[number : number + 1]:
        found = Match(NAME, reference, f"party:{PLAYERS[number % len(PLAYERS)]}")
        identity = approvals.propose(url, found, "a mail", "somebody")
        approvals.decide(world.database.approver_url, identity, "accepted", "seen")
        approvals.carry_out_accepted(url, world.now().date(), run)
        world.faults["matched"] += 1


def retry(world: World, _run: RunInfo, number: int) -> None:
    """A person says that an account works again which waits after failures in a row; another accepts at once."""
    url = world.database.url
    with connect(url) as connection:
        waiting = connection.execute(
            "SELECT DISTINCT party_id, currency FROM sweep_deferrals WHERE reason = 'failures_in_a_row' ORDER BY 1, 2"
        ).fetchall()
    for party_id, currency in waiting[number : number + 1]:
        identity = approvals.propose(url, approvals.retry(url, party_id, currency), "it works", "somebody")
        approvals.decide(world.database.approver_url, identity, "accepted", "seen")
        world.faults["retry_accepted"] += 1


def accept(world: World, _run: RunInfo, number: int) -> None:
    """Accept the n-th proposal that waits."""
    _decide(world, number, "accepted")


def decline(world: World, _run: RunInfo, number: int) -> None:
    """Refuse the n-th proposal that waits."""
    _decide(world, number, "refused")


def _decide(world: World, number: int, decision: str) -> None:
    for row in approvals.pending(world.database.url)[number:][:1]:
        world.faults[f"{row['kind']}_{decision}"] += 1
        approvals.decide(world.database.approver_url, str(row["proposal_id"]), decision, "looked at")


#: By the name that a history has for it. The number is a day, or which of those that wait.
BODIES: dict[str, Callable[[World, RunInfo, int], None]] = {
    "post": post,
    "sweep": sweep,
    "dispatch": dispatch,
    "settle": settle,
    "reconcile": reconcile,
    "refund": refund,
    "approve": approve,
    "refuse": refuse,
    "resolve": resolve,
    "write_off": write_off,
    "match": match,
    "retry": retry,
    "accept": accept,
    "decline": decline,
}
