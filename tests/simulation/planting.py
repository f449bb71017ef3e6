"""Planting: a fault is one statement of the product changed, in Python or in Postgres, for as long as a test lasts."""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import count
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from payments_pipeline.domain.errors import StaleInputError
from simulation import runner, world
from simulation.database import Database, Server
from simulation.effects import NO_FATE
from simulation.history import UNLIMITED, Act, History, Operation

POLICY = runner.shipped_policy()
_numbers = count()


def _changed(name: str, words: str, old: str, new: str) -> str:
    assert words.count(old) == 1, f"{name} has {old!r} {words.count(old)} times: the fault is planted nowhere"
    return words.replace(old, new)


@dataclass(frozen=True)
class Edit:
    """Words that stand once in a function, method or constant of the product, and what is put for them."""

    module: ModuleType
    name: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        *owners, last = self.name.split(".")
        owner: Any = reduce(getattr, owners, self.module)
        target = getattr(owner, last)
        if isinstance(target, str):
            monkeypatch.setattr(owner, last, _changed(self.name, target, self.old, self.new))
            return
        function = getattr(target, "py_func", target)
        source = _changed(self.name, textwrap.dedent(inspect.getsource(function)), self.old, self.new)
        # Under its own file's name, since the simulation knows the product's boundaries by it.
        module = compile(f"from __future__ import annotations\n{source}", function.__code__.co_filename, "exec")
        [code] = [part for part in module.co_consts if isinstance(part, CodeType) and part.co_name == last]
        if function is target:
            # The function stays, so that whoever imported it by name has the fault too.
            monkeypatch.setattr(function, "__code__", code)
        else:  # what numba compiled goes on uncompiled
            monkeypatch.setattr(owner, last, FunctionType(code, function.__globals__))


@dataclass(frozen=True)
class PostgresEdit:
    """Words that stand once in a function of Postgres, and what is put for them."""

    name: str
    old: str
    new: str

    def plant(self, database: Database) -> None:
        asked = "SELECT pg_get_functiondef(%s::regproc)"
        row = database.admin.execute(asked, (f"payments.{self.name}",)).fetchone()
        assert row is not None
        database.admin.execute(_changed(self.name, row[0], self.old, self.new).encode())


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what the program does wrong, in words.
        history: the shortest that shows it.
        edits: what is planted.
        refused_by: words of whoever refuses to do it, the program or Postgres, as a pattern; empty where nobody does.
        letting: what is planted besides so that nobody refuses; a string is a statement run in Postgres.
        caught_by: words of the rule that finds it then, as a pattern; empty where it is not asked.
        limit_minor: an instruction above this is held.
        day_limit_minor: most that is sent on a calendar day.
        party_day_limit_minor: most that is sent to a party on a calendar day.
    """

    name: str
    history: tuple[Operation, ...]
    edits: tuple[Edit, ...]
    refused_by: str = ""
    letting: tuple[Edit | PostgresEdit | str, ...] = ()
    caught_by: str = ""
    limit_minor: int = UNLIMITED
    day_limit_minor: int = UNLIMITED
    party_day_limit_minor: int = UNLIMITED

    def words(self, said: str) -> str:
        """Give the pattern of all that is said: after the last operation, unless it is at the end."""
        return (
            rf"(?s)^{said}" if said.startswith("at the end") else rf"(?s)^after operation {len(self.history)}: .*{said}"
        )


def live(fault: Fault, database: Database) -> None:
    """Live through a fault's history; fails too where money moved twice or was lost."""
    figures = runner.Figures()
    limits = fault.limit_minor, fault.day_limit_minor, fault.party_day_limit_minor
    runner.live(database, History(1, fault.history, *limits), POLICY, figures)
    assert (figures.double_payments, figures.lost_minor) == (0, 0)
    fated = sum(isinstance(operation, Act) and operation.fate != NO_FATE for operation in fault.history)
    befell = sum(figures.faults[kind] for kind in ("crash", "sever", "stall"))
    assert befell == fated, "a boundary named in the history is beyond the end of its act"


def tell_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a refusal of the program end the world; else it goes on, and the program tries again."""
    monkeypatch.setattr(world, "PaymentsError", StaleInputError)


@contextmanager
def letting(fault: Fault, running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give a database of the fault's own in which nobody refuses it, and drop it."""
    with runner.database_of(running, f"planted_{next(_numbers)}") as database:
        for each in fault.letting:
            if isinstance(each, Edit):
                each.plant(monkeypatch)
            elif isinstance(each, PostgresEdit):
                each.plant(database)
            else:
                database.admin.execute(each.encode())
        yield database
