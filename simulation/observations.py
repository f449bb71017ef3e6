"""What a world sees of what was committed: each news is told to the model, and judged where it comes in.

Belongs here: reading news out of snapshots, what each of them means to the model, what can only be judged at that
moment. Does not belong here: what must hold of a snapshot whenever (`rules`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

from simulation.acts import ZONE
from simulation.database import Row, Snapshot
from simulation.inputs import Match
from simulation.model import Account, Instructed, Model, Refunds, RuleChange, charges
from simulation.rules import RuleBroken, accrued_of, came_back_in_a_row, goes_on

if TYPE_CHECKING:
    from simulation.world import World


def tell(world: World, before: Snapshot) -> None:
    """Tell the model what is new since a snapshot.

    Raises:
        RuleBroken: something new cannot be.
    """
    pots_before, open_before = _pots(world), world.model.open()
    _tell_decisions(world, before)
    _tell_postings(world, before)
    _tell_refunds(world, before, pots_before)
    _hold_write_offs(world, before, open_before)
    _tell_instructions(world, before)
    _tell_events(world, before)
    _tell_lines(world, before)
    _hold_day_limits(world, before)


def _hold_day_limits(world: World, before: Snapshot) -> None:
    sent: Counter[tuple[date, str, str]] = Counter()
    for row in world.snapshot["payout_attempts"]:
        if row["attempt_no"] == 1:
            instructed = world.model.instructed[str(row["instruction_id"])]
            day = datetime.fromisoformat(str(row["started_at"])).astimezone(ZONE).date()
            party_id, currency = instructed.party
            sent[day, currency, ""] += instructed.amount_minor
            sent[day, currency, party_id] += instructed.amount_minor
    if _new(world, before, "payout_attempts", "instruction_id", "attempt_no"):
        for (day, currency, party_id), minor in sent.items():
            policy = world.policy.of(currency)
            if minor > (policy.party_day_limit_minor if party_id else policy.day_limit_minor):
                raise RuleBroken(f"{minor} {currency} was sent on {day}, above the day's limit {party_id}".strip())


def _new(world: World, before: Snapshot, table: str, *key: str) -> list[Row]:
    rows = world.snapshot[table]
    if goes_on(before.get(table, []), rows):
        return rows[len(before.get(table, [])) :]
    known = {tuple(row[name] for name in key) for row in before[table]}
    return [row for row in rows if tuple(row[name] for name in key) not in known]


def _tell_decisions(world: World, before: Snapshot) -> None:
    proposals = {row["proposal_id"]: row["content"] for row in world.snapshot["proposals"]}
    for row in _new(world, before, "journals", "journal_id"):
        if row["kind"] == "write_off":
            asked = proposals[row["proposal_id"]]
            account = asked["party_id"], asked["currency"]
            world.model.by_hand[account] = world.model.by_hand.get(account, 0) + asked["amount_minor"]
        elif row["kind"] == "match":
            # A line may come twice.
            line = next(each for each in world.processor.lines if each["entry_reference"] == row["matched_reference"])
            account = proposals[row["proposal_id"]]["account"].removeprefix("party:"), line["currency"]
            world.model.by_hand[account] = world.model.by_hand.get(account, 0) + line["amount_minor"]
    for row in _new(world, before, "proposal_decisions", "proposal_id"):
        change = proposals[row["proposal_id"]]
        if row["decision"] == "accepted" and "effect" in change:
            world.model.accepted |= {_rule_change(change)}
            world.accepted.append(world.model.accepted)


def _tell_postings(world: World, before: Snapshot) -> None:
    new = _new(world, before, "day_postings", "match_day", "seq")
    for row in new:
        if row["input_hashes"] != world.hashed.get(str(row["run_id"])):
            raise RuleBroken(f"{row['run_id']} posted {row['match_day']} from what is not its input any more")
    runs = [world.inputs[str(row["run_id"])] for row in new]
    if not runs:
        return
    # Several days that were posted at once: some order of them explains what is stored. A run that stalled may
    # have asked what is accepted before something was; what was refunded meanwhile it may have seen or not.
    knew = [dict.fromkeys([world.model.accepted, *world.accepted[since:]]) for _, _, since in runs]
    tried = [
        _posted(world, [(day, landed, accepted) for (day, landed, _), accepted in order], refunds)
        for accepted in product(*knew)
        for refunds in _refunds(world, before)
        for order in permutations(zip(runs, accepted, strict=True))
    ]
    world.model = next((each for each in tried if _explains(world, each)), tried[0]) if len(tried) > 1 else tried[0]


def _refunds(world: World, before: Snapshot) -> list[Refunds]:
    """Give what the model knows was refunded of each fee, and that with what is new."""
    known = world.model.refunds
    more: Refunds = {pot: list(amounts) for pot, amounts in known.items()}
    for row in sorted(_new(world, before, "refunds", "refund_id"), key=lambda row: str(row["pot_no"])):
        more.setdefault((str(row["match_id"]), str(row["pot_party_id"])), []).append(row["amount_minor"])
    return [known, more] if more != known else [known]


def _posted(world: World, runs: list[tuple[int, tuple[Match, ...], frozenset[RuleChange]]], refunds: Refunds) -> Model:
    """Give the model after these postings, one after the other, each with what it found accepted."""
    now = world.model
    tried = replace(now, posted=dict(now.posted), postings=dict(now.postings), breaks=dict(now.breaks), refunds=refunds)
    for day, landed, accepted in runs:
        tried.accepted = accepted
        tried.post(day, landed)
    tried.accepted, tried.refunds = now.accepted, now.refunds
    return tried


def _explains(world: World, tried: Model) -> bool:
    posted = {match_id: (match.revision, match.payout_policy) for match_id, match in tried.posted.items()}
    return posted == _stored_matches(world) and tried.accrued() == {
        account: minor for account, minor in accrued_of(world.snapshot).items() if minor
    }


@dataclass(frozen=True)
class _Pot:
    """A player's fee of a match, as the model has it: whether that is posted, charges the player, and what is left."""

    posted: bool
    charged: bool
    left: int


def _pots(world: World) -> dict[tuple[str, str], _Pot]:
    """Give every fee that something was asked to be refunded of."""
    model = world.model
    return {
        (match_id, player): _Pot(
            match_id in model.posted, charges(model.posted.get(match_id), player), model.left((match_id, player))
        )
        for asked in world.asked.values()
        for match_id, player, _ in asked
    }


def _tell_refunds(world: World, before: Snapshot, pots_before: dict[tuple[str, str], _Pot]) -> None:
    """What was decided beside a posting was decided by what the fee charged before it, or after."""
    pots = _pots(world)
    known = {pot: [each.get(pot, _NO_POT) for each in (pots_before, pots)] for pot in pots}
    taken: Counter[tuple[str, str]] = Counter()
    # Beside more than one posting it may have been decided between them.
    one_posting = len(_new(world, before, "day_postings", "match_day", "seq")) < 2
    new = _new(world, before, "refunds", "refund_id")
    for row in sorted(new, key=lambda row: str(row["pot_no"])):
        pot = str(row["match_id"]), str(row["pot_party_id"])
        amount = row["amount_minor"]
        assert isinstance(amount, int)
        left = {each.left - taken[pot] for each in known[pot]}
        if one_posting and amount > max(left):
            raise RuleBroken(f"refund {row['refund_id']} of {amount} is above the {max(left)} that its fee charged")
        asked = {minor for *of, minor in world.asked[row["refund_id"]] if tuple(of) == pot}
        if amount not in asked and not (None in asked and (amount in left or not one_posting)):
            raise RuleBroken(f"refund {row['refund_id']} is of {amount}; asked was for {asked}, of {left}")
        taken[pot] += amount
        world.model.refunds.setdefault(pot, []).append(amount)
    accepted = {row["refund_id"] for row in world.snapshot["refunds"]}
    for refund_id, (match_id, player, minor), decision in world.told:
        pot, seen = (match_id, player), known[match_id, player]
        left_at_least = min(each.left for each in seen) - taken[pot]
        right = {
            "accepted": refund_id in accepted,
            "repeated": refund_id in accepted,
            "other_content": refund_id in accepted and len(world.asked[refund_id]) > 1,
            "match_not_posted": not all(each.posted for each in seen),
            "not_a_payer": not all(each.charged for each in seen),
            "nothing_left": left_at_least <= 0,
            "more_than_left": minor is not None and minor > left_at_least,
        }[decision]
        if one_posting and not right:
            raise RuleBroken(f"refund {refund_id} of {minor} of {pot} was told {decision}: {seen}, {taken[pot]} taken")
    world.told.clear()


_NO_POT = _Pot(posted=False, charged=False, left=0)


def _hold_write_offs(world: World, before: Snapshot, open_before: dict[Account, int]) -> None:
    """No more is written off than is owed, by what is known before or after what was posted beside it."""
    given: Counter[Account] = Counter()
    proposals = {row["proposal_id"]: row["content"] for row in world.snapshot["proposals"]}
    for row in _new(world, before, "journals", "journal_id"):
        if row["kind"] == "write_off":
            asked = proposals[row["proposal_id"]]
            given[asked["party_id"], asked["currency"]] += asked["amount_minor"]
    now = world.model.open()
    for account, minor in given.items():
        owed = max(-open_before.get(account, 0), minor - now.get(account, 0))
        if minor > owed:
            raise RuleBroken(f"{minor} was written off of {account}, which owed {max(owed, 0)}")


def _stored_matches(world: World) -> dict[str, tuple[int, str]]:
    newest = sorted(world.snapshot["match_postings"], key=lambda row: row["posting_no"])
    return {row["match_id"]: (row["revision"], row["payout_policy"]) for row in newest}


def _tell_instructions(world: World, before: Snapshot) -> None:
    for row in _new(world, before, "payout_instructions", "instruction_id"):
        amount = row["amount_minor"]
        assert isinstance(amount, int)
        if 0 < amount < world.policy.of(str(row["currency"])).minimum_minor:
            raise RuleBroken(f"instruction {row['instruction_id']} of {amount} is below the minimum")
        payee, most = (row["party_id"], row["currency"], row["token"]), world.policy.sweep.failures_in_a_row
        # What was committed while it was swept may have been known to it, or not.
        known = [came_back_in_a_row(each, payee, row["sweep_day"]) for each in (before, world.snapshot) if each]
        if row["token"] is not None and min(known) >= most:
            raise RuleBroken(f"instruction {row['instruction_id']} is for {payee}, which came back {most} times")
        world.model.instructed[str(row["instruction_id"])] = Instructed(
            (str(row["party_id"]), str(row["currency"])),
            amount,
            -1 if row["direction"] == "debit" else 1,
            fate="netted" if amount == 0 else "unsent",
        )


def _tell_events(world: World, before: Snapshot) -> None:
    accepted = {payment.key for payment in world.processor.payments if not payment.rejected}
    rejected = {payment.key for payment in world.processor.payments if payment.rejected}
    for row in _new(world, before, "instruction_events", "instruction_id", "seq"):
        instruction, state = str(row["instruction_id"]), row["to_state"]
        by_report = str(row["actor"]).startswith("report of")
        instructed = world.model.instructed[instruction]
        limit = world.policy.of(instructed.party[1]).instruction_limit_minor
        if state == "approved" and row["from_state"] == "created" and instructed.amount_minor > limit:
            raise RuleBroken(f"rule 13: instruction {instruction} is over its limit, and nobody approved it")
        if state == "submitting":
            world.model.instructed[instruction].fate = "sent"
        elif state == "cancelled":
            world.model.instructed[instruction].fate = "cancelled"
        elif state == "submitted" and instruction not in accepted:
            raise RuleBroken(f"instruction {instruction} is submitted, and the processor never took it")
        elif state == "failed" and not by_report:
            certain = world.was_never_seen(instruction) or world.never_accepted(instruction)
            if instruction not in rejected and (instruction in accepted or not certain):
                raise RuleBroken(f"rule 8: instruction {instruction} failed, and the processor never refused it")
            world.model.instructed[instruction].fate = "undone"


def _tell_lines(world: World, before: Snapshot) -> None:
    known = {line["entry_reference"]: line for line in world.processor.lines}
    new = _new(world, before, "report_lines", "entry_reference")
    rank = {"settled": 0, "failed": 1, "returned": 2}
    runs = [str(row["run_id"]) for row in world.snapshot["report_intakes"]]
    new.sort(key=lambda row: (runs.index(str(row["run_id"])), rank.get(str(row["kind"]), 3), row["entry_reference"]))
    for row in new:
        line = known[str(row["entry_reference"])]
        said = (row["kind"], row["amount_minor"], row["currency"], row["idempotency_key"])
        if said != (line["kind"], line["amount_minor"], line["currency"], line["idempotency_key"]):
            raise RuleBroken(f"report line {row} is not what the processor said: {line}")
        if row["instruction_id"] is not None:
            instruction = world.model.instructed[str(row["instruction_id"])]
            amount = line["amount_minor"] * -instruction.sign
            world.model.take_in(str(row["instruction_id"]), line["kind"], amount)


def _rule_change(content: dict[str, Any]) -> RuleChange:
    """Read a change of rules as it was proposed; what it does to pots follows from what it does to parties."""
    matches = [(match_id, int(rules.removeprefix("rules ")), *rest) for match_id, rules, *rest in content["matches"]]
    effect = [
        (account.removeprefix("party:"), minor)
        for account, _, minor in content["effect"]
        if account.startswith("party:") and minor
    ]
    return RuleChange(frozenset(matches), frozenset(effect))
