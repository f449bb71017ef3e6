"""Histories: what happens in a world, one operation after the other, drawn from a seed.

Belongs here: operations as plain values that print as code, and the drawing. Does not belong here: carrying them out
(`world`). Each operation means something wherever it stands, so that a history stays one when others are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from simulation.effects import NO_FATE, Fate
from simulation.inputs import COMPETITIONS, PARTIES, PLAYERS
from simulation.processor import ANSWERS

ACTS = ("post", "sweep", "dispatch", "settle", "reconcile")
#: What people do, each with the n-th thing that waits for it: `day` is n.
DECISIONS = ("approve", "refuse", "resolve", "write_off", "retry", "match", "accept", "accept", "decline")
UNLIMITED = 10**9
#: The n-th request for a refund: the same again asks for the same.
REFUND = "refund"
REFUNDS = 12
#: What happens for every unit of trouble between two steps of a run; refunds have a place of their own after each day.
_CHANCE = {"refunds": 0.06, "fates": 0.1}
#: What becomes of a party.
CHANGES = ("on_hold", "active", "new_token", "no_token", "new_mandate", "no_collection", "collection", "closed")
#: What a bank does with a payment that it took.
HABITS = (
    "settle",
    "fail",
    "settle_short",
    "settle_in_parts",
    "settle_then_return",
    "return_before_settled",
    "settle_then_fail",
    "fail_then_settle",
    "settle_twice",
)


#: Of each kind of act, how many boundaries some of it have come to.
Boundaries = Mapping[str, Sequence[int]]
#: Nothing was recorded: for drawing what has no fates, or whose fates are left out.
UNRECORDED: Boundaries = defaultdict(lambda: (20,))


@dataclass(frozen=True)
class Deliver:
    """A match is delivered: new, corrected (`bump` 1), contradicting (0) or outdated (-1)."""

    match_id: str
    competition_id: str
    day: int
    bump: int
    status: str
    revenue_minor: int | None
    players: tuple[str, ...]


@dataclass(frozen=True)
class Spoil:
    """A match's row is lost, or cannot be accepted any more."""

    match_id: str
    how: str


@dataclass(frozen=True)
class ChangeRules:
    """The rules of a delivered match change with effect in the past, or back."""

    match_id: str
    rules: int


@dataclass(frozen=True)
class ChangeParty:
    """A party's reference data change."""

    party_id: str
    how: str


@dataclass(frozen=True)
class Act:
    """One step of a day's run, or a person's decision."""

    kind: str
    day: int
    fate: Fate = NO_FATE


@dataclass(frozen=True)
class Overlap:
    """Several steps at once, overtaking each other at boundaries as `order` has it."""

    acts: tuple[Act, ...]
    order: int


@dataclass(frozen=True)
class Resume:
    """A stalled step goes on, after its sessions were ended or not; or its process dies."""

    how: str


@dataclass(frozen=True)
class Jump:
    """The true time goes on; Postgres's clock comes to be so many minutes off it, the sender's so many hours more."""

    hours: int
    skew_minutes: int
    sender_hours: int = 0


@dataclass(frozen=True)
class Weather:
    """What the processor will answer to the next submissions, or whether it is down."""

    answers: tuple[str, ...]
    down: bool


@dataclass(frozen=True)
class Bank:
    """The processor does something with a payment that it took, reported so many days off the date asked for."""

    pick: int
    habit: str
    late: int


@dataclass(frozen=True)
class OtherLine:
    """A report line that is about no instruction, or comes twice."""

    kind: str
    day: int


Operation = Deliver | Spoil | ChangeRules | ChangeParty | Act | Overlap | Resume | Jump | Weather | Bank | OtherLine


@dataclass(frozen=True)
class History:
    """A world's settings and what happens in it.

    Attributes:
        days: match days.
        operations: in order.
        limit_minor: an instruction above this is held.
        day_limit_minor: most that is sent on a calendar day.
        party_day_limit_minor: most that is sent to a party on a calendar day.
    """

    days: int
    operations: tuple[Operation, ...] = ()
    limit_minor: int = UNLIMITED
    day_limit_minor: int = UNLIMITED
    party_day_limit_minor: int = UNLIMITED

    def __str__(self) -> str:
        """Give it as code, an operation a line."""
        settings = repr(replace(self, operations=())).replace("operations=()", "operations=(...)")
        return "\n    ".join([settings, *map(repr, self.operations)])


def draw(seed: int, boundaries: Boundaries) -> History:
    """Draw a history.

    Args:
        seed: same seed and boundaries, same history.
        boundaries: how many boundaries acts of each kind have come to, as recorded.
    """
    return _Drawing(Random(seed), boundaries).history()  # noqa: S311 - reproducible is what it is to be


def draw_backfill(seed: int) -> tuple[History, tuple[Operation, ...]]:
    """Draw several days of matches, and what happens between running them once and again.

    Nothing is delivered under two days: a match that moves between days under way belongs to the day that posted it
    first, and no order can change that.
    """
    drawing = _Drawing(Random(seed), UNRECORDED, days=(2, 2, 3), matches=(2, 5))  # noqa: S311 - reproducible
    rng = drawing.rng
    deliveries = tuple(drawing.delivery(match_id, 1) for match_id in drawing.matches)
    limit = rng.choice((10**9, 5_000))
    days = {delivery.match_id: delivery.day for delivery in deliveries}
    later: list[Operation] = [ChangeParty(rng.choice(PARTIES), rng.choice(CHANGES)) for _ in range(rng.randrange(3))]
    later += [Act(REFUND, number) for number in rng.sample(range(REFUNDS), rng.randrange(4))]
    for match_id in rng.sample(list(days), rng.randrange(len(days))):
        later.append(replace(drawing.delivery(match_id, 1), day=days[match_id]))
    return History(drawing.days, deliveries, limit), tuple(later)


class _Drawing:
    def __init__(
        self,
        rng: Random,
        boundaries: Boundaries,
        days: Sequence[int] = (1, 1, 1, 1, 1, 2, 2, 3),
        matches: tuple[int, int] = (1, 3),
    ) -> None:
        self.rng = rng
        self.boundaries = boundaries
        self.days = rng.choice(days)
        self.matches = {
            f"match-{number}": (rng.choice(list(COMPETITIONS)), rng.randrange(self.days))
            for number in range(rng.randint(*matches))
        }
        #: How much of each kind of trouble this world has.
        self.trouble = {
            name: rng.choice((0, 0, 1, 3, 5))
            for name in ("input", "people", "fates", "weather", "time", "bank", "refunds")
        }

    def history(self) -> History:
        rng = self.rng
        operations: list[Operation] = [self.delivery(match_id, 1) for match_id in self.matches]
        days = list(range(self.days))
        if rng.random() < 0.3:
            rng.shuffle(days)
        for day in days:
            for kind in ACTS[:-1]:
                operations += [*self.happenings(), *self.before(kind), self.act(kind, day)]
            operations += self.happenings()
            if rng.random() < 0.16 * self.trouble["refunds"]:
                operations += [self.refund(), self.overlapping_refund()]
            if rng.random() < 0.12 * self.trouble["people"]:
                operations += rng.choice(self.stories())(day)
        limits = [rng.choice((UNLIMITED, UNLIMITED, *some)) for some in ((500, 5_000), (20_000,), (7_000,))]
        return History(self.days, tuple(operations), *limits)

    def happenings(self) -> list[Operation]:
        rng = self.rng
        kinds: dict[str, tuple[Callable[[], Operation], ...]] = {
            "input": (self.deliver_again, self.spoil, self.change_rules, self.change_party, self.change_party),
            "people": (self.decide,),
            "fates": (self.overlap, self.overlap, self.again, self.again, self.resume),
            "weather": (self.weather,),
            "time": (self.jump,),
            "bank": (self.bank, self.bank, self.bank, self.other_line),
            "refunds": (self.refund, self.refund, self.overlapping_refund),
        }
        drawn: list[Operation] = []
        for kind, makers in kinds.items():
            if rng.random() < _CHANCE.get(kind, 0.16) * self.trouble[kind]:
                drawn.append(rng.choice(makers)())
        if rng.random() < 0.25:
            drawn.append(Bank(rng.randrange(8), "settle", 0))
        return drawn

    def before(self, kind: str) -> list[Operation]:
        """Trouble where it tells: answers before something is sent, what the bank does before its report is read."""
        makers: dict[str, tuple[str, Callable[[], Operation]]]
        makers = {"dispatch": ("weather", self.weather), "settle": ("bank", self.bank)}
        if kind not in makers or self.rng.random() > 0.2 * self.trouble[makers[kind][0]]:
            return []
        return [makers[kind][1]() for _ in range(self.rng.randint(1, 2))]

    def any_match(self) -> str:
        return self.rng.choice(list(self.matches))

    def any_day(self) -> int:
        return self.rng.randrange(self.days + 2)

    def delivery(self, match_id: str, bump: int) -> Deliver:
        rng = self.rng
        competition, day = self.matches[match_id]
        if rng.random() < 0.1:
            day = rng.randrange(self.days)
        status = rng.choice(("completed", "completed", "completed", "awarded", "void"))
        revenue = rng.choice((None, 0, 1, 29, 1_001, 10_000, 99_999))
        players = tuple(player for player in PLAYERS if rng.random() < 0.5)
        return Deliver(match_id, competition, day, bump, status, revenue, players)

    def deliver_again(self) -> Deliver:
        return self.delivery(self.any_match(), self.rng.choice((1, 1, 1, 1, 0, -1)))

    def spoil(self) -> Spoil:
        return Spoil(self.any_match(), self.rng.choice(("withdrawn", "rejected")))

    def change_rules(self) -> ChangeRules:
        return ChangeRules(self.any_match(), self.rng.randrange(3))

    def change_party(self) -> ChangeParty:
        return ChangeParty(self.rng.choice(PARTIES), self.rng.choice(CHANGES))

    def act(self, kind: str, day: int) -> Act:
        rng = self.rng
        fate = NO_FATE
        if rng.random() < 0.16 * self.trouble["fates"]:
            at = rng.randint(1, rng.choice(self.boundaries[kind]) + 1)
            fate = rng.choice(
                (Fate(crash_at=at), Fate(crash_at=at), Fate(sever_at=at), Fate(lose_at=at), Fate(stall_at=at))
            )
        return Act(kind, day, fate)

    def decide(self) -> Act:
        kind = self.rng.choice(("approve", *DECISIONS))
        return self.act(kind, self.rng.randrange(6 if kind == "write_off" else 3))

    def stories(self) -> tuple[Callable[[int], list[Operation]], ...]:
        """Give what people do where it tells; drawn one by one their acts would seldom find something that waits."""
        return (
            self.rules_story,
            self.rules_story,
            self.debt_story,
            self.cash_story,
            self.limit_story,
            self.retry_story,
            self.outage_story,
            self.late_story,
            self.forgotten_story,
            self.reinstated_story,
        )

    def rules_story(self, day: int) -> list[Operation]:
        """Rules change with effect in the past; what that would do is accepted or not, and the day is run again."""
        decision = self.act(self.rng.choice(("accept", "accept", "decline")), 0)
        run = [self.act(kind, day) for kind in ("post", "sweep")]
        rules = self.rng.choice((1, 1, 2))
        return [*(ChangeRules(match_id, rules) for match_id in self.matches), self.act("post", day), decision, *run]

    def debt_story(self, day: int) -> list[Operation]:
        """What was paid is owed back after a void, and a person gives it up; another accepts now, later or never."""
        match_id = self.any_match()
        competition, at = self.matches[match_id]
        paid = [Bank(0, "settle", 0)] * 3
        void = Deliver(match_id, competition, at, 1, "void", 0, ())
        decisions = [self.act(kind, self.rng.randrange(6)) for kind in ("write_off", "write_off")]
        late = self.act(self.rng.choice(("accept", "decline")), 0)
        return [
            *paid,
            self.act("settle", day + 1),
            void,
            self.act("post", at),
            *decisions,
            late,
            self.act("sweep", day),
        ]

    def cash_story(self, day: int) -> list[Operation]:
        """Cash comes that belongs to nothing, and a person finds out what it was for."""
        line = OtherLine(self.rng.choice(("unknown_key", "other")), day)
        return [line, self.act("settle", day), self.act("match", 0), self.act("reconcile", day)]

    def limit_story(self, day: int) -> list[Operation]:
        """What is held is approved, and sent."""
        decisions = [self.act("approve", 0), self.act("approve", self.rng.randrange(2))]
        return [self.act("sweep", day), *decisions, self.act("dispatch", day)]

    def retry_story(self, day: int) -> list[Operation]:
        """An account fails time and again until its party waits; a person says that it works again."""
        failing: list[Operation] = []
        for on in range(day + 1, day + 7, 2):
            run = (self.act(kind, on + 1) for kind in ("sweep", "dispatch"))
            failing += [*[Bank(0, "fail", 0)] * 6, self.act("settle", on), *run]
        return [*failing, self.act("retry", 0), self.act("sweep", day + 9), self.act("dispatch", day + 9)]

    def outage_story(self, day: int) -> list[Operation]:
        """The processor answers nothing for hours, and each run of them tries."""
        down, up = Weather((), down=True), Weather((), down=False)
        tries = [self.act("dispatch", day), self.act("settle", day + 1), self.act("dispatch", day + 1)]
        return [down, tries[0], Jump(self.rng.choice((2, 6)), 0), *tries[1:], up, self.act("dispatch", day + 1)]

    def forgotten_story(self, day: int) -> list[Operation]:
        """What had no answer is asked about when the processor has forgotten its key."""
        lost = Weather((self.rng.choice(("lost_response", "lost_request")),) * 3, down=False)
        tries = [self.act("dispatch", day + number) for number in range(2)]
        return [lost, self.act("sweep", day), tries[0], Jump(self.rng.choice((23, 26, 50)), 0), tries[1]]

    def late_story(self, day: int) -> list[Operation]:
        """What failed is about to be paid again, and is settled late: before that leaves, or after."""
        failed: list[Operation] = [
            *[Bank(0, "fail_then_settle", 0)] * 3,
            self.act("settle", day + 1),
            self.act("sweep", day + 2),
        ]
        return [*failed, self.act("settle", day + 2), self.act("dispatch", day + 2), self.act("sweep", day + 3)]

    def reinstated_story(self, day: int) -> list[Operation]:
        """A match is void after it was paid, what was paid is recovered, and then it was played all the same."""
        match_id = self.any_match()
        competition, at = self.matches[match_id]
        played = Deliver(match_id, competition, at, 1, "completed", 10_000, PLAYERS)
        told: list[Operation] = []
        for number, delivery in enumerate((replace(played, status="void", revenue_minor=0, players=()), played)):
            on = max(at, day) + 2 * number + 1
            told += [*[Bank(0, "settle", 0)] * 4, self.act("settle", on), delivery, self.act("post", at)]
            told += [self.act("sweep", at), self.act("sweep", on + 1), self.act("dispatch", on + 1)]
        return told

    def refund(self) -> Act:
        return self.act(REFUND, self.rng.randrange(REFUNDS))

    def overlapping_refund(self) -> Overlap:
        rng = self.rng
        other = self.act("post", self.any_day()) if rng.random() < 0.7 else self.refund()
        return Overlap((self.refund(), other), rng.randrange(1_000_000))

    def again(self) -> Act:
        return self.act(self.rng.choice(ACTS), self.any_day())

    def overlap(self) -> Overlap:
        rng = self.rng
        first = self.act(rng.choice(ACTS), self.any_day())
        day = first.day if rng.random() < 0.6 else self.any_day()
        kind = first.kind if rng.random() < 0.6 else rng.choice(ACTS)
        return Overlap((first, self.act(kind, day)), rng.randrange(1_000_000))

    def resume(self) -> Resume:
        return Resume(self.rng.choice(("go on", "sever", "crash")))

    def jump(self) -> Jump:
        return Jump(
            self.rng.choice((0, 1, 6, 22, 24, 50)),
            self.rng.choice((-25, 0, 0, 25)),
            self.rng.choice((0, 0, 0, 0, -30, 30)),
        )

    def weather(self) -> Weather:
        rng = self.rng
        if rng.random() < 0.2:
            return Weather((), down=True)
        if rng.random() < 0.2:
            return Weather((rng.choice(("unavailable", "too_many", "come_later")),) * rng.randint(1, 12), down=False)
        return Weather(tuple(rng.choice(ANSWERS) for _ in range(rng.randint(1, 4))), down=False)

    def bank(self) -> Bank:
        rng = self.rng
        return Bank(rng.randrange(8), rng.choice(HABITS), rng.choice((0, 0, 0, 1, 2, -1)))

    def other_line(self) -> OtherLine:
        return OtherLine(self.rng.choice(("fee", "funding", "unknown_key", "repeated", "other")), self.any_day())
