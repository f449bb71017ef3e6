"""Running seeds: one world each, several processes, figures at the end; a failure is shortened before it is shown.

Belongs here: seeds, processes, counting, shortening. Does not belong here: what happens in a world.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from payments_pipeline.domain.policy import Policy
from payments_pipeline.settings import Settings, load_policy
from simulation.acts import BODIES
from simulation.backfills import check_backfills
from simulation.database import Database, Server
from simulation.effects import NO_FATE
from simulation.ending import calm, verify_all
from simulation.history import (
    UNRECORDED,
    Act,
    Boundaries,
    History,
    Operation,
    Overlap,
    draw,
    draw_backfill,
)
from simulation.rules import RuleBroken
from simulation.world import World

#: A process that crashed tasks keeps them for ever: it is let go after so many seeds.
_SEEDS_A_PROCESS = 100
#: Every so many seeds the law of backfills is checked too.
_BACKFILLS_EVERY = 40
#: And every so many, beginning with the sixth, `verify` is run at the end.
_VERIFY_EVERY = 20
#: Worlds at least in which boundaries are recorded.
_RECORDED, _RECORDED_AT_MOST = 20, 200
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


def record_boundaries(database: Database, policy: Policy) -> tuple[Boundaries, list[str]]:
    """Give how many boundaries acts of each kind come to, in worlds with every trouble but what befalls acts.

    Returns:
        That, and the failures of those worlds that broke a rule.
    """
    came_to: dict[str, set[int]] = {kind: set() for kind in BODIES}
    failures: list[str] = []
    for seed in range(-1, -_RECORDED_AT_MOST, -1):
        history = draw(seed, UNRECORDED)
        world = World(database, history, policy)
        try:
            with _told(""):
                for operation in map(_unharmed, history.operations):
                    world.perform(operation)
        except RuleBroken as broken:
            failures.append(f"seed {seed}, while boundaries were counted: {broken}\n{history}")
        finally:
            world.close()
        for kind, lengths in world.lengths.items():
            came_to[kind] |= lengths
        if seed <= -_RECORDED and all(came_to.values()):
            break
    return {kind: tuple(sorted(lengths)) or UNRECORDED[kind] for kind, lengths in came_to.items()}, failures


def _unharmed(operation: Operation) -> Operation:
    if isinstance(operation, Overlap):
        return replace(operation, acts=tuple(replace(act, fate=NO_FATE) for act in operation.acts))
    return replace(operation, fate=NO_FATE) if isinstance(operation, Act) else operation


def shorten(history: History, fails: Callable[[History], str]) -> History:
    """Leave out what a failing history can do without, as long as it fails in the same way and there is time.

    Args:
        history: fails.
        fails: says what rule a history breaks; empty where it breaks none.
    """
    until = time.monotonic() + _SHORTEN_S
    way = _way(fails(history))
    kept = history.operations

    def still(operations: tuple[Operation, ...]) -> bool:
        return time.monotonic() < until and _way(fails(replace(history, operations=operations))) == way

    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept):
            without = kept[:start] + kept[start + size :]
            if still(without):
                kept = without
            else:
                start += size
        size //= 2
    for number, operation in enumerate(kept):
        plain = _unharmed(operation)
        if plain != operation and still((*kept[:number], plain, *kept[number + 1 :])):
            kept = (*kept[:number], plain, *kept[number + 1 :])
    return replace(history, operations=kept)


def _way(broken: str) -> tuple[str, ...]:
    """Give the words of a broken rule that are of the rule: not where it broke, nor whose record it is."""
    said = re.sub(r"^(after operation \d+|at the end): ", "", broken)
    return tuple(re.findall(r"(?<![\w:-])[a-z]+(?![\w:-])", said)[:4])


def broken_by(database: Database, policy: Policy, *, verify: bool = False) -> Callable[[History], str]:
    """Give what says which rule a history breaks."""

    def fails(history: History) -> str:
        try:
            live(database, history, policy, Figures(), verify=verify)
        except RuleBroken as broken:
            return str(broken)
        return ""

    return fails


def _run_seed(database: Database, seed: int, boundaries: Boundaries, policy: Policy, figures: Figures) -> None:
    figures.seeds += 1
    history = draw(seed, boundaries)
    verify = seed % _VERIFY_EVERY == 5
    try:
        live(database, history, policy, figures, verify=verify)
    except RuleBroken as broken:
        shortest = shorten(history, broken_by(database, policy, verify=verify))
        figures.failures.append(f"seed {seed}: {broken}\n{shortest}")
    if seed % _BACKFILLS_EVERY == 0:
        _run_backfills(database, seed, policy, figures)


def _run_backfills(database: Database, seed: int, policy: Policy, figures: Figures) -> None:
    figures.backfills += 1
    settings, later = draw_backfill(seed)
    apart = len(settings.operations)

    def fails(history: History) -> str:
        # What is left out of either half stays out; what was delivered first stays before what came later.
        first = [operation for operation in history.operations if operation in settings.operations]
        try:
            with _told(""):
                deliveries = replace(settings, operations=tuple(first))
                figures.acts += check_backfills(database, seed, policy, deliveries, history.operations[len(first) :])
        except RuleBroken as broken:
            return str(broken)
        return ""

    both = replace(settings, operations=settings.operations + later)
    if broken := fails(both):
        shortest = shorten(both, fails)
        figures.failures.append(f"seed {seed}, backfilled, the first {apart} before it: {broken}\n{shortest}")


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


def _batch(given: tuple[Server, range, Boundaries]) -> Figures:
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
        boundaries, failures = record_boundaries(database, shipped_policy())
    yield Figures(failures=failures)
    batches = [(running, seeds[start : start + size], boundaries) for start in range(0, len(seeds), size)]
    # A forked process has its imports done, and ends without clearing up: crashed tasks stay as they are.
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_batch, batches, chunksize=1)
