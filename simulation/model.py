"""The model: what each party must have been paid and has open, said without any code of the product.

It is told what was delivered, what the processor did, and which postings, sweeps and report lines were committed; it
knows nothing of tables, locks or runs. Four rules are all of it:

1. A match is posted as its shares say, unless that would contradict what is posted for it (`refusal`). Rules changed
   in the past contradict it until a person accepts what they do: to those matches, as their next posting, no more.
2. What a party is owed is what is posted for it, less what accepted refunds take from it, more what they give back:
   each as far as its fee still charges its payer, in order, from those who share it by what each still holds; and
   more what was written off of its debt, and what people found out that nobody's cash was for.
3. An instruction of amount A takes A from it from the moment it is made; once failed, returned or cancelled it takes
   only the cash that moved all the same; once settled, A, or the cash if that is more.
4. What is left of 2 after 3 is open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar

from simulation.inputs import (
    AWAY,
    AWAY_WEIGHT,
    FEE_BP,
    FEE_CAP_MINOR,
    HOME,
    HOME_WEIGHT,
    MATCH_FEE_MINOR,
    ORGANISER,
    ORGANISER_BP,
    PLATFORM,
    PLATFORM_MINOR,
    PLAYED_STATUSES,
    Match,
)

#: (party, currency)
Account = tuple[str, str]
#: Amounts given back of each fee, (match, payer), in their order.
Refunds = dict[tuple[str, str], list[int]]
_Key = TypeVar("_Key", bound=Hashable)


def shares(match: Match) -> dict[str, int]:
    """Give what each party gets (> 0) or owes (< 0) for a match, netted per party."""
    given: dict[str, int] = defaultdict(int)
    if match.status not in PLAYED_STATUSES:
        return {}
    revenue = match.revenue_minor or 0
    given[PLATFORM] += min(PLATFORM_MINOR, revenue)
    left = revenue - min(PLATFORM_MINOR, revenue)
    percent = Fraction(left * ORGANISER_BP, 10_000)
    rest = (left - percent) / (HOME_WEIGHT + AWAY_WEIGHT)
    _hand_out(given, left, {ORGANISER: percent, HOME: rest * HOME_WEIGHT, AWAY: rest * AWAY_WEIGHT})
    fee = MATCH_FEE_MINOR[match.rules]
    percent = min(Fraction(fee * FEE_BP, 10_000), Fraction(FEE_CAP_MINOR))
    for player in match.players:
        given[player] -= fee
        _hand_out(given, fee, {ORGANISER: percent, HOME: fee - percent})
    return {party: minor for party, minor in given.items() if minor}


def fee_parts(match: Match) -> dict[str, int]:
    """Give who shares each player's fee, in the order of lines."""
    parts: dict[str, int] = defaultdict(int)
    fee = MATCH_FEE_MINOR[match.rules]
    percent = min(Fraction(fee * FEE_BP, 10_000), Fraction(FEE_CAP_MINOR))
    _hand_out(parts, fee, {ORGANISER: percent, HOME: fee - percent})
    return {party: parts[party] for party in (ORGANISER, HOME)}


def charges(match: Match | None, player: str) -> bool:
    """Say whether a match charges a player."""
    return match is not None and match.status in PLAYED_STATUSES and player in match.players


def given_back(match: Match, amounts: list[int]) -> list[dict[str, int]]:
    """Give what each refund of one player's fee takes from those who share it."""
    holds = fee_parts(match)
    taken = []
    for amount in amounts:
        total = sum(holds.values())
        applied = min(amount, total)
        parts: dict[str, int] = defaultdict(int)
        if total:
            _hand_out(parts, applied, {party: Fraction(applied * held, total) for party, held in holds.items()})
        for party, part in parts.items():
            holds[party] -= part
        taken.append(dict(parts))
    return taken


def _hand_out(given: dict[str, int], amount: int, exact: dict[str, Fraction]) -> None:
    """Give everybody the floor, and the units left over to the largest fractions; the first named wins a tie."""
    units = amount - sum(int(part) for part in exact.values())
    by_fraction = sorted(exact, key=lambda party: int(exact[party]) - exact[party])
    for place, party in enumerate(by_fraction):
        given[party] += int(exact[party]) + (place < units)


@dataclass
class Instructed:
    """An instruction as the model knows it.

    Attributes:
        party: who, in which currency.
        amount_minor: of the instruction, > 0.
        sign: 1 where it pays the party, -1 where it collects.
        moved_minor: cash that report lines taken in say has moved, in its own direction.
        fate: unsent, sent, settled, undone or cancelled.
    """

    party: Account
    amount_minor: int
    sign: int
    moved_minor: int = 0
    fate: str = "unsent"

    @property
    def takes_minor(self) -> int:
        """What it takes from what its party is owed."""
        if self.fate in ("undone", "cancelled"):
            return self.sign * max(self.moved_minor, 0)
        if self.fate == "settled":
            return self.sign * max(self.moved_minor, self.amount_minor)
        return self.sign * self.amount_minor


@dataclass(frozen=True)
class RuleChange:
    """What rules changed in the past do to posted matches of a day and competition.

    Attributes:
        matches: match, version of the rules, content, and the number that its posting would have.
        effect: party and minor units, refunds too, where it changes.
    """

    matches: frozenset[tuple[str, int, str, int]]
    effect: frozenset[tuple[str, int]]


@dataclass
class Model:
    """Everything that was committed so far, and what follows."""

    posted: dict[str, Match] = field(default_factory=dict)
    postings: dict[str, int] = field(default_factory=dict)
    accepted: frozenset[RuleChange] = frozenset()
    by_hand: dict[Account, int] = field(default_factory=dict)
    instructed: dict[str, Instructed] = field(default_factory=dict)
    breaks: dict[int, set[str]] = field(default_factory=dict)
    refunds: Refunds = field(default_factory=dict)

    def post(self, day: int, landed: tuple[Match, ...]) -> None:
        """Post a day from what was landed for it."""
        accepted = {match.match_id: match for match in landed if not match.rejected}
        refused = {match_id for match_id, match in accepted.items() if self.refusal(match)}
        for change in self.rule_changes(accepted[match_id] for match_id in refused) & self.accepted:
            refused -= {match_id for match_id, *_ in change.matches}
        held = {match_id for match_id, match in self.posted.items() if match.day == day and shares(match)}
        self.breaks[day] = (held - accepted.keys()) | {
            match_id
            for match_id in refused
            if shares(accepted[match_id])
            or self.refusal(accepted[match_id]) != "posted under another day"
            or accepted[match_id].revision > self.posted[match_id].revision
        }
        for match_id in accepted.keys() - refused:
            if self.posted.get(match_id) != accepted[match_id]:
                self.posted[match_id] = accepted[match_id]
                self.postings[match_id] = self.postings.get(match_id, 0) + 1

    def rule_changes(self, matches: Iterable[Match]) -> frozenset[RuleChange]:
        """Give what a person is asked about matches of one day, one question a competition."""
        waiting: dict[str, list[Match]] = defaultdict(list)
        for match in matches:
            if self.refusal(match) == "rules changed":
                waiting[match.competition_id].append(match)
        return frozenset(
            RuleChange(
                frozenset((m.match_id, m.rules, m.content, self.postings[m.match_id] + 1) for m in of_one),
                frozenset(
                    _sums(
                        (party, sign * minor)
                        for match in of_one
                        for sign, each in ((1, match), (-1, self.posted[match.match_id]))
                        for party, minor in self.due(each).items()
                    ).items()
                ),
            )
            for of_one in waiting.values()
        )

    def refusal(self, match: Match) -> str:
        """Say why a match may not be posted now; empty where it may."""
        before = self.posted.get(match.match_id)
        if before is None:
            return ""
        if shares(before) and before.day != match.day:
            return "posted under another day"
        if match.revision < before.revision:
            return "older revision"
        if match.revision == before.revision and match.content != before.content:
            return "same revision, other content"
        if match.revenue_minor is None and before.revenue_minor is not None:
            return "revenue missing"
        if match.revision == before.revision and set(before.players) - set(match.players):
            return "participant missing"
        asked = bool(shares(before)) or match.revision == before.revision
        other_policy = bool(shares(before)) and match.payout_policy != before.payout_policy
        if asked and match.rules != before.rules and (other_policy or shares(match) != shares(before)):
            return "rules changed"
        return ""

    def take_in(self, key: str, kind: str, moved_minor: int) -> None:
        """Take in one report line about an instruction; cash in the instruction's own direction."""
        instruction = self.instructed[key]
        instruction.moved_minor += moved_minor
        if instruction.fate == "sent":
            instruction.fate = "settled" if kind == "settled" else "undone"
        elif instruction.fate == "settled" and kind == "returned":
            instruction.fate = "undone"

    def left(self, pot: tuple[str, str]) -> int:
        """Give what a player's fee of a match still charges."""
        match = self.posted.get(pot[0])
        if match is None or not charges(match, pot[1]):
            return 0
        taken = sum(sum(parts.values()) for parts in given_back(match, self.refunds.get(pot, [])))
        return MATCH_FEE_MINOR[match.rules] - taken

    def accrued(self) -> dict[Account, int]:
        """Give what the matches posted come to for each party."""
        return _sums(
            ((party, match.currency), minor) for match in self.posted.values() for party, minor in shares(match).items()
        )

    def due(self, match: Match) -> dict[str, int]:
        """Give what each party is owed of a match, after the refunds of it."""
        back = []
        for (match_id, player), amounts in self.refunds.items():
            if match_id == match.match_id and charges(match, player):
                for parts in given_back(match, amounts):
                    back += [(party, -minor) for party, minor in parts.items()]
                    back.append((player, sum(parts.values())))
        return _sums([*shares(match).items(), *back])

    def owed(self) -> dict[Account, int]:
        """Give what is posted for each party, refunds and write-offs too."""
        due = [
            ((party, match.currency), minor)
            for match in self.posted.values()
            for party, minor in self.due(match).items()
        ]
        return _sums([*due, *self.by_hand.items()])

    def open(self) -> dict[Account, int]:
        """Give what each party must have open."""
        taken = [(instruction.party, -instruction.takes_minor) for instruction in self.instructed.values()]
        return _sums([*self.owed().items(), *taken])


def _sums(amounts: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    totals: dict[_Key, int] = defaultdict(int)
    for account, minor in amounts:
        totals[account] += minor
    return {account: minor for account, minor in totals.items() if minor}
