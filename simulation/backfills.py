"""The law of backfills: any order of days ends with the same accruals and the same paid plus open; date order twice
ends with the same ids.

Belongs here: one world's days run in an order, and the comparison. Does not belong here: faults (`world`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from payments_pipeline.domain.policy import Policy
from simulation import history as ops
from simulation.database import Database
from simulation.model import Account
from simulation.rules import RuleBroken, accrued_of
from simulation.world import World


@dataclass(frozen=True)
class Ended:
    """What a backfill ended with.

    Attributes:
        accruals: what is posted, by party and currency.
        paid_and_open: cash that the processor moved, what is on its way and what is open, by the same.
        ids: of instructions and ledger entries.
    """

    accruals: dict[Account, int]
    paid_and_open: dict[Account, int]
    ids: frozenset[str]


def check_backfills(
    database: Database, seed: int, policy: Policy, settings: ops.History, later: tuple[ops.Operation, ...]
) -> int:
    """Run several days twice over, in date order, in date order again, and in others; give how many acts that took.

    Args:
        database: emptied first, each time.
        seed: draws the other orders.
        policy: as shipped.
        settings: the deliveries, each match once.
        later: what happens between the two runs of each day.

    Raises:
        RuleBroken: they end differently.
    """
    days = list(range(settings.days))
    others = [days.copy(), days.copy()]
    draw = Random(seed)  # noqa: S311 - reproducible
    while others[0] == days:
        for other in others:
            draw.shuffle(other)
    acts = 0
    ended = []
    for orders in ([days, days], [days, days], others):
        world = World(database, settings, policy)
        try:
            ended.append(_backfill(world, settings, later, orders))
            acts += world.acts
        finally:
            world.close()
    first, again, other_order = ended
    if first.ids != again.ids:
        raise RuleBroken(f"date order twice gives other ids: {sorted(first.ids ^ again.ids)[:5]}")
    for name in ("accruals", "paid_and_open"):
        if getattr(first, name) != getattr(other_order, name):
            raise RuleBroken(
                f"order {others} ends with other {name}: {getattr(other_order, name)}, not {getattr(first, name)}"
            )
    return acts


def _backfill(world: World, settings: ops.History, later: tuple[ops.Operation, ...], orders: list[list[int]]) -> Ended:
    for happenings, order in zip((settings.operations, later), orders, strict=True):
        for happening in happenings:
            world.perform(happening)
        for day in order:
            for kind in ops.ACTS[:-2]:
                world.perform(ops.Act(kind, day))
            for payment in [payment for payment in world.processor.payments if not payment.over]:
                # Its key decides, so that equal instructions fare equally.
                world.bank(payment, "fail" if payment.key < "2" else "settle", 0)
            world.perform(ops.Act("settle", day))
    for number in range(settings.days + 1):
        world.perform(ops.Act("settle", number))
    snapshot = world.snapshot
    held: Counter[Account] = Counter()
    for row in snapshot["open_items"]:
        held[row["party_id"], row["currency"]] += row["amount_minor"]
    for payment in world.processor.payments:
        instruction = world.model.instructed[payment.key]
        held[instruction.party] += instruction.sign * payment.moved_minor
    for key in filter(world.waits, world.model.instructed):
        instruction = world.model.instructed[key]
        held[instruction.party] += instruction.sign * (instruction.amount_minor - instruction.moved_minor)
    ids = {row["instruction_id"] for row in snapshot["payout_instructions"]}
    ids |= {row["entry_id"] for row in snapshot["ledger_entries"]}
    return Ended(accrued_of(snapshot), {account: minor for account, minor in held.items() if minor}, frozenset(ids))
