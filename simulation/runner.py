"""Running seeds: one world each, several processes, figures at the end; a failure is shortened before it is shown.

Belongs here: seeds, processes, counting, shortening. Does not belong here: what happens in a world.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from payments_pipeline.domain.policy import Policy
from payments_pipeline.settings import Settings, load_policy
from simulation.backfills import check_backfills
from simulation.database import Database, Server
from simulation.effects import Fate
from simulation.ending import calm, verify_all
from simulation.history import ACTS, Act, Deliver, History, Operation, draw, draw_backfill
from simulation.inputs import COMPETITIONS, PLAYERS
from simulation.rules import RuleBroken
from simulation.world import World

#: A process that crashed tasks keeps them for ever: it is let go after so many seeds.
_SEEDS_A_PROCESS = 100
#: Every so many seeds the law of backfills is checked too.
_BACKFILLS_EVERY = 40
#: And every so many, beginning with the sixth, `verify` is run at the end.
_VERIFY_EVERY = 20
_SHORTEN_S = 120.0


@dataclass
class Figures:
    """What was simulated.

    Attributes:
        seeds: worlds.
        operations: of their histories.
        acts: of the program.
        boundaries: come to.
        payments: taken by the processor.
        double_payments: requests carried out twice.
        lost_minor: owed, and neither paid nor open at the end, nor named as a break.
        backfills: worlds whose days were run in several orders.
        faults: of each kind.
        crash_sites: places in the source at which a run crashed.
        sites: places in the source at which one could have.
        failures: of each seed that broke a rule.
    """

    seeds: int = 0
    operations: int = 0
    acts: int = 0
    boundaries: int = 0
    payments: int = 0
    double_payments: int = 0
    lost_minor: int = 0
    backfills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    crash_sites: Counter[str] = field(default_factory=Counter)
    sites: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Add another's figures to these."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def shipped_policy() -> Policy:
    """Give the policy as shipped."""
    return load_policy(Settings(home=Path("unused"), config=None))


def live(database: Database, history: History, policy: Policy, figures: Figures, *, verify: bool = False) -> None:
    """Live through a history, and its end.

    Args:
        database: emptied first.
        history: what happens.
        policy: as shipped; limits are the history's.
        figures: added to.
        verify: whether `verify` looks at everything at the end too.

    Raises:
        RuleBroken: something does not hold.
    """
    world = World(database, history, policy)
    try:
        for number, operation in enumerate(history.operations):
            with _told(f"after operation {number + 1}: "):
                world.perform(operation)
        with _told("at the end: "):
            calm(world)
        if verify:
            with _told(""):
                verify_all(world)
    finally:
        world.close()
        figures.operations += len(history.operations)
        figures.acts += world.acts
        figures.payments += sum(not payment.rejected for payment in world.processor.payments)
        figures.double_payments += len(world.processor.paid_twice())
        figures.lost_minor += world.lost_minor
        figures.faults += world.faults + Counter(world.processor.injected) + Counter(world.effects.befell)
        figures.sites += Counter(world.effects.sites)
        figures.boundaries += sum(world.effects.sites.values())
        figures.crash_sites += Counter(world.effects.crash_sites)


@contextmanager
def _told(when: str) -> Iterator[None]:
    """Say when a rule was broken; whatever fails, the seed and its history are told of it."""
    try:
        yield
    except RuleBroken as broken:
        raise RuleBroken(f"{when}{broken}") from broken
    except Exception as error:
        raise RuleBroken(f"{when}{type(error).__name__}: {error}") from error


def record_boundaries(database: Database, policy: Policy) -> dict[str, int]:
    """Give how many boundaries each kind of act comes to, in a world without faults in which every day has work."""
    deliveries = [
        Deliver(f"match-{day}", competition, day, 1, "completed", 10_000, PLAYERS)
        for day, competition in enumerate([*COMPETITIONS] * 2)
    ]
    most: dict[str, int] = {}
    world = World(database, History(4, 10**9, 10**9, ()), policy)
    try:
        for delivery in deliveries:
            world.do(delivery)
        for day in range(4):
            for kind in ACTS:
                before = world.effects.count()
                world.perform(Act(kind, day))
                most[kind] = max(most.get(kind, 0), world.effects.count() - before)
            for payment in [payment for payment in world.processor.payments if not payment.over]:
                world.bank(payment, "settle", 0)
    finally:
        world.close()
    return most


def shorten(database: Database, history: History, policy: Policy, *, verify: bool = False) -> History:
    """Leave out what a failing history can do without, as long as it still fails and there is time."""
    until = time.monotonic() + _SHORTEN_S

    def fails(operations: tuple[Operation, ...]) -> bool:
        try:
            live(database, replace(history, operations=operations), policy, Figures(), verify=verify)
        except RuleBroken:
            return True
        return False

    kept = history.operations
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept) and time.monotonic() < until:
            without = kept[:start] + kept[start + size :]
            if fails(without):
                kept = without
            else:
                start += size
        size //= 2
    for number, operation in enumerate(kept):
        if isinstance(operation, Act) and operation.fate != Fate() and time.monotonic() < until:
            plain = (*kept[:number], replace(operation, fate=Fate()), *kept[number + 1 :])
            kept = plain if fails(plain) else kept
    return replace(history, operations=kept)


def _run_seed(database: Database, seed: int, boundaries: dict[str, int], policy: Policy, figures: Figures) -> None:
    figures.seeds += 1
    history = draw(seed, boundaries)
    try:
        live(database, history, policy, figures, verify=seed % _VERIFY_EVERY == 5)
    except RuleBroken as broken:
        shortest = shorten(database, history, policy, verify=seed % _VERIFY_EVERY == 5)
        lines = [f"seed {seed}: {broken}", f"days={shortest.days} limit_minor={shortest.limit_minor}"]
        figures.failures.append("\n    ".join([*lines, *map(repr, shortest.operations)]))
    if seed % _BACKFILLS_EVERY == 0:
        figures.backfills += 1
        try:
            figures.acts += check_backfills(database, seed, policy)
        except RuleBroken as broken:
            deliveries = draw_backfill(seed).operations
            figures.failures.append("\n    ".join([f"seed {seed}, backfilled: {broken}", *map(repr, deliveries)]))


@contextmanager
def database_of(running: Server, name: str) -> Iterator[Database]:
    """Give a fresh database of the server, and drop it."""
    database = Database(running, name)
    try:
        yield database
    finally:
        database.close()
        with running.superuser() as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _batch(given: tuple[Server, range, dict[str, int]]) -> Figures:
    running, seeds, boundaries = given
    # What the imports made is never garbage, and little of what a world makes is.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    figures, policy = Figures(), shipped_policy()
    with database_of(running, f"simulation_{seeds.start}") as database:
        for seed in seeds:
            _run_seed(database, seed, boundaries, policy, figures)
    return figures


def run_seeds(running: Server, seeds: range, workers: int) -> Iterator[Figures]:
    """Run seeds in processes of their own; gives each batch's figures as it ends."""
    size = max(1, min(_SEEDS_A_PROCESS, -(-len(seeds) // workers)))
    with database_of(running, "simulation_boundaries") as database:
        boundaries = record_boundaries(database, shipped_policy())
    batches = [(running, seeds[start : start + size], boundaries) for start in range(0, len(seeds), size)]
    # A forked process has its imports done, and ends without clearing up: crashed tasks stay as they are.
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_batch, batches, chunksize=1)
