"""The end of a world: all troubles are over, and everybody has what they are owed, once.

Belongs here: ending troubles, letting days run until nothing waits, holding the whole against what was owed. Does not
belong here: what holds at any moment (`rules`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date, timedelta

from payments_pipeline.storage import approvals
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify.rules_certificates import CERTIFICATES
from payments_pipeline.verify.tables import TABLE_RULES
from simulation.certificates import breaches_of_certificates
from simulation.effects import Fate
from simulation.history import Act, History
from simulation.inputs import FIRST_DAY, Party, day_of
from simulation.model import Account, shares
from simulation.rules import RuleBroken, states_of, unswept_days
from simulation.world import World, policy_of

#: What was held has been refused by then, and what was released is free.
_CALM_AFTER_DAYS = 22
_CALM_ROUNDS = 8
#: Rules of `verify` that a world may end in breach of: report lines that belong to nobody wait for a person.
_EXPLAINED = frozenset({"no money is in suspense"})


def calm(world: World) -> None:
    """End every trouble, let the days run, and hold that everybody was paid what they are owed.

    Raises:
        RuleBroken: somebody was not, or not once.
    """
    _end_troubles(world)
    for day in sorted({match.day for match in world.delivered.values()}):
        landed = world.landing.get(day, {})
        if world.model.breaks.get(day) != set() or any(world.model.posted.get(m) != landed[m] for m in landed):
            _calm_act(world, "post", day)
    world.observe()
    due = [match for matches in world.landing.values() for match in matches.values()]
    unposted = sorted(match.match_id for match in due if world.model.posted.get(match.match_id) != match)
    if unposted:
        raise RuleBroken(f"{unposted} can be posted and is not")
    unswept = unswept_days(world.snapshot["sweeps"], world.snapshot["day_postings"])
    swept = {str(row["sweep_day"]) for row in world.snapshot["sweeps"]} - unswept.keys()
    posted = {str(row["match_day"]) for row in world.snapshot["day_postings"]}
    for on in sorted(posted | {day_of(match.day).isoformat() for match in world.delivered.values()}):
        if on not in swept:
            _calm_act(world, "sweep", (date.fromisoformat(on) - FIRST_DAY).days)
    for _ in approvals.held(world.database.url):
        _calm_act(world, "refuse", 0)
    for number in range(_CALM_ROUNDS):
        day = world.days + _CALM_AFTER_DAYS + 3 * number
        _calm_act(world, "sweep", day)
        _calm_act(world, "dispatch", day)
        world.observe()
        for _ in list(filter(world.is_for_a_person, world.model.instructed)):
            _calm_act(world, "resolve", 0)
            world.observe()
        if left := list(filter(world.is_for_a_person, world.model.instructed)):
            raise RuleBroken(f"{left} wait for a person, and a person cannot end them")
        waiting = [payment for payment in world.processor.payments if not payment.over]
        last = max((date.fromisoformat(payment.request["execute_on"]) for payment in waiting), default=FIRST_DAY)
        for payment in waiting:
            world.processor.move(payment, last, "settled", payment.request["amount_minor"])
        _take_in_all(world)
        world.observe()
        if _is_quiet(world):
            break
        world.true_now += timedelta(hours=26)
        world.database.set_clock(world.now())
    _reconcile_residues(world)
    _hold_everybody_paid(world)


def verify_all(world: World) -> None:
    """Take every report in once more, as a day that is run again does, and let `verify` look at everything.

    Raises:
        RuleBroken: `verify` finds a breach that the world's own troubles do not explain.
    """
    dates = {line["report_date"] for line in world.processor.lines}
    dates |= {date.fromisoformat(str(row["report_date"])) for row in world.snapshot["report_intakes"]}
    for day in sorted(dates):
        _calm_act(world, "settle", (day - FIRST_DAY).days)
    world.observe()
    with connect(world.database.url) as connection:
        found = {name: rule(connection).breaches for name, rule in TABLE_RULES.items() if name not in _EXPLAINED}
    posted = sorted(
        {date.fromisoformat(str(row["match_day"])) for row in world.snapshot["day_postings"]}
        | {date.fromisoformat(str(row["accepted_day"])) for row in world.snapshot["refunds"]}
    )
    found[CERTIFICATES] = breaches_of_certificates(world.database.url, world.storage, posted)
    broken = [f"{name}: {breaches[0]}" for name, breaches in found.items() if breaches]
    if broken:
        raise RuleBroken("verify: " + "; ".join(broken))


def _end_troubles(world: World) -> None:
    world.processor.answers.clear()
    world.processor.down = False
    for task in list(world.effects.under_way):
        if task in world.effects.under_way:
            task.fate = Fate()
            world.effects.run(task)
    world.observe()
    world.skew = world.sender_skew = timedelta()
    world.database.set_clock(world.now())
    # Who shares a fee that is paid out when it is collected waits for a payer whose net is below the minimum.
    world.policy = policy_of(world.policy, History(world.days), minimum_minor=1, batch_size=100)
    world.parties = {
        party_id: Party(token=(party.token or 0) + 1_000, mandate=party.mandate + 1_000)
        for party_id, party in world.parties.items()
    }
    for match in list(world.delivered.values()):
        posted = world.model.posted.get(match.match_id)
        if posted is not None:
            match = replace(match, rules=posted.rules)
            if shares(posted):
                match = replace(match, day=posted.day)
            if match.revenue_minor is None and posted.revenue_minor is not None:
                match = replace(match, revenue_minor=0)
        if world.landing.get(match.day, {}).get(match.match_id) != match or world.model.refusal(match):
            world.land(replace(match, revision=match.revision + 1, rejected=False))


def _calm_act(world: World, kind: str, day: int) -> None:
    task = world.start(Act(kind, day))
    world.finish(task)


def _take_in_all(world: World) -> None:
    taken = {row["entry_reference"] for row in world.snapshot["report_lines"]}
    dates = sorted({line["report_date"] for line in world.processor.lines if line["entry_reference"] not in taken})
    for day in dates:
        _calm_act(world, "settle", (day - FIRST_DAY).days)


def _is_quiet(world: World) -> bool:
    return not any(world.waits(key) for key in world.model.instructed) and not _open_beyond_minimum(world)


def _open_beyond_minimum(world: World) -> dict[Account, int]:
    """Give what is open and has no right to be."""
    return {
        account: minor
        for account, minor in world.model.open().items()
        if abs(minor) >= world.policy.of(account[1]).minimum_minor
    }


def _reconcile_residues(world: World) -> None:
    """Name what is left in transit as a break, on the last date that a report said something of it."""
    lines = [row for row in world.snapshot["report_lines"] if row["instruction_id"] is not None]
    odd = {
        key
        for key, instruction in world.model.instructed.items()
        if instruction.fate in ("settled", "undone") and instruction.moved_minor != instruction.amount_minor
    }
    last = {row["instruction_id"]: row["report_date"] for row in sorted(lines, key=lambda row: row["report_date"])}
    dates = {date.fromisoformat(on) for key, on in last.items() if key in odd}
    for day in sorted(dates):
        _calm_act(world, "reconcile", (day - FIRST_DAY).days)
    if dates:
        world.observe()
    short = {
        key
        for key in odd
        if world.model.instructed[key].takes_minor
        != world.model.instructed[key].sign * world.model.instructed[key].moved_minor
    }
    breaks = {row["subject_id"] for row in world.snapshot["reconciliation"] if row["status"] == "break"}
    if short - breaks:
        raise RuleBroken(f"no break names {sorted(short - breaks)}")


def _hold_everybody_paid(world: World) -> None:
    """Hold what the processor moved against what is owed: the whole of it, once, to the last minor unit."""
    lost = Counter(world.model.owed())
    for payment in world.processor.payments:
        instruction = world.model.instructed[payment.key]
        lost[instruction.party] -= instruction.sign * payment.moved_minor
    for account, minor in world.model.open().items():
        lost[account] -= minor
    for instruction in world.model.instructed.values():
        left = instruction.takes_minor - instruction.sign * instruction.moved_minor
        if left and instruction.fate in ("settled", "undone"):
            lost[instruction.party] -= left  # in transit: a break, which reconciliation names
    world.lost_minor = sum(map(abs, lost.values()))
    waiting = [key for key in world.model.instructed if world.waits(key)]
    found = [
        f"{account} was owed {minor} that was neither paid nor is open" for account, minor in lost.items() if minor
    ]
    found += [f"{account} still has {minor} open" for account, minor in _open_beyond_minimum(world).items()]
    found += [f"instruction {key} still is {states_of(world.snapshot)[key]}" for key in waiting]
    if found:
        raise RuleBroken("; ".join(found[:5]))
