"""Effects and their boundaries: where a run can be crashed, severed, stalled or overtaken.

Every act of the program runs in a greenlet. Each exchange with Postgres and each call of the processor is a boundary:
there the greenlet hands over to the scheduler, which lets it go on, lets another go first, or never comes back to it.
A crash is just that: the greenlet is kept and never resumed, so no `except`, `finally` or `__exit__` of it runs, and
its sessions are ended on the server. No boundary is listed anywhere: psycopg sends everything through
`Connection.wait`, and the simulated processor is the only other thing outside.
"""

from __future__ import annotations

import asyncio
import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import FrameType
from typing import Any

import psycopg
from greenlet import greenlet  # type: ignore[import-untyped]  # it has no stubs
from psycopg import waiting

from simulation.rules import RuleBroken

_PACKAGE = "payments_pipeline"
#: Greenlets that crashed. Whatever frees one throws into it, which would run its handlers: they outlive their process.
_CRASHED: list[greenlet] = []
_POLL_S = 0.003


class Status(StrEnum):
    """Where a task stands."""

    READY = "ready"
    STALLED = "stalled"
    BLOCKED = "blocked"
    DONE = "done"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Fate:
    """What becomes of a task on its way; a number is that of a boundary, from 1, and 0 is never.

    Attributes:
        crash_at: it ends there, without a handler.
        sever_at: its sessions are ended there, and it goes on to find out.
        lose_at: what it asks of Postgres there is done, a commit too, and its sessions end before it hears so.
        stall_at: it stays there until it is resumed, or until somebody waits for its locks.
        within: the function of the product whose boundaries alone are counted; empty for all.
    """

    crash_at: int = 0
    sever_at: int = 0
    lose_at: int = 0
    stall_at: int = 0
    within: str = ""

    def comes(self, sites: Sequence[str]) -> int:
        """Give the number of the last of the boundaries come to, 0 where it is not counted."""
        if not self.within:
            return len(sites)
        mine = [site.endswith(f" {self.within}") for site in sites]
        return sum(mine) if mine[-1] else 0


NO_FATE = Fate()


@dataclass(eq=False)
class Task:
    """One act of the program under way.

    Attributes:
        name: for people.
        status: where it stands.
        fate: what becomes of it.
        sites: the boundaries that it came to, as places in the source.
        error: what it raised.
        severed: whether its sessions were ended under it.
        deaf: whether it will not hear the answer to its next exchange.
        outside: whether it stands at a call of the processor.
    """

    name: str
    fate: Fate
    status: Status = Status.READY
    sites: list[str] = field(default_factory=list)
    error: BaseException | None = None
    severed: bool = False
    deaf: bool = False
    outside: bool = False
    body: greenlet | None = field(default=None, repr=False)
    sessions: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False)


class SimulatedConnection(psycopg.Connection[Any]):
    """A connection each of whose exchanges is a boundary."""

    effects: Effects

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Come to a boundary, then do the exchange; wait for locks without holding up other tasks."""
        effects = self.effects
        if effects.current is None:
            return super().wait(gen, interval, timeout)
        effects.boundary()
        answer = self._wait_beside_others(gen) if effects.has_others() else super().wait(gen, interval, timeout)
        effects.hear()
        return answer

    def _wait_beside_others(self, gen: Any) -> Any:
        socket, pid = self.pgconn.socket, self.pgconn.backend_pid
        try:
            wanted = next(gen)
            while True:
                # Tasks that crashed keep their files: there may be more than `select` can look at.
                poll = select.poll()
                poll.register(
                    socket,
                    (select.POLLIN if wanted & waiting.Wait.R else 0)
                    | (select.POLLOUT if wanted & waiting.Wait.W else 0),
                )
                events = sum(event for _, event in poll.poll(_POLL_S * 1000))
                if not events:
                    while self.effects.is_blocked(pid):
                        self.effects.block()
                    continue
                # An end or an error shows when it is read.
                readable = events & ~select.POLLOUT
                ready = (waiting.Ready.R if readable else 0) | (waiting.Ready.W if events & select.POLLOUT else 0)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class SimulatedPool:
    """Lends connections to tasks, and knows which task has which."""

    def __init__(self, url: str, effects: Effects, search_path: str, idle: list[psycopg.Connection[Any]]) -> None:
        self._url = url
        self._search_path = search_path
        self._effects = effects
        #: Kept from world to world: a session has much to learn before it is fast.
        self._idle = idle

    def getconn(self) -> psycopg.Connection[Any]:
        """Lend a connection that no crashed or severed task has had."""
        connection = self._idle.pop() if self._idle else self._open()
        assert isinstance(connection, SimulatedConnection)
        connection.effects = self._effects
        task = self._effects.current
        if task is not None:
            task.sessions.append(connection)
        return connection

    def _open(self) -> SimulatedConnection:
        options = f"-c search_path={self._search_path} -c timezone=UTC"
        return SimulatedConnection.connect(self._url, autocommit=True, options=options)

    def putconn(self, conn: psycopg.Connection[Any]) -> None:
        """Take a connection back; what its user left behind is undone, as the product's pool does."""
        assert isinstance(conn, SimulatedConnection)
        task, self._effects.current = self._effects.current, None
        try:
            if task is not None:
                task.sessions.remove(conn)
            if conn.closed or conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.close()
                return
            conn.execute("SELECT pg_advisory_unlock_all()")
            self._idle.append(conn)
        except psycopg.OperationalError:
            conn.close()
        finally:
            self._effects.current = task

    def close(self) -> None:
        """Keep the connections for the next world."""


class Effects:
    """Tasks under way, and the hand-over between them; all in one thread."""

    def __init__(self, admin: psycopg.Connection[Any]) -> None:
        self.current: Task | None = None
        self.under_way: list[Task] = []
        #: Boundaries at which a task crashed, and how often.
        self.crash_sites: dict[str, int] = {}
        self.sites: dict[str, int] = {}
        self.befell: dict[str, int] = {}
        self._admin = admin
        self._hub = greenlet.getcurrent()

    # Called within a task ------------------------------------------------------------------------------------------

    def boundary(self, *, outside: bool = False) -> None:
        """Come to a boundary; may never return."""
        task = self.current
        if task is None:
            return
        site = _site()
        task.sites.append(site)
        self.sites[site] = self.sites.get(site, 0) + 1
        task.outside = outside
        self._leave(task)
        task.outside = False

    def hear(self) -> None:
        """Hear the answer of an exchange that is done, or never.

        Raises:
            psycopg.OperationalError: the sessions ended before it came.
        """
        task = self.current
        if task is not None and task.deaf:
            task.deaf = False
            self.sever(task)
            for connection in task.sessions:
                connection.pgconn.finish()
            raise psycopg.OperationalError("the connection was lost before the answer came")

    def block(self) -> None:
        """Say that the current task waits for a lock."""
        task = self.current
        assert task is not None
        task.status = Status.BLOCKED
        self._leave(task)

    def _leave(self, task: Task) -> None:
        # asyncio knows of one running loop a thread, and here several tasks may each be within theirs.
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        self._hub.switch()
        asyncio._set_running_loop(loop)
        self.current = task

    # Called by the scheduler ---------------------------------------------------------------------------------------

    def has_others(self) -> bool:
        """Say whether anything but the current task is under way, and may hold a lock."""
        return len(self.under_way) > 1

    def count(self) -> int:
        """Give how many boundaries were come to so far."""
        return sum(self.sites.values())

    def is_blocked(self, pid: int) -> bool:
        """Ask Postgres whether a session waits for another's lock."""
        row = self._admin.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone()
        assert row is not None
        return bool(row[0])

    def start(self, name: str, act: Callable[[], object], fate: Fate) -> Task:
        """Begin a task; it runs to its first boundary when it is stepped."""
        task = Task(name, fate)

        def body() -> None:
            try:
                act()
            except (Exception, RuleBroken) as error:  # noqa: BLE001 - it is judged by the scheduler's caller
                task.error = error

        task.body = greenlet(body)
        self.under_way.append(task)
        return task

    def step(self, task: Task, *, stalled: bool = False) -> None:
        """Let a task go on to its next boundary, its end, or a lock; then let its fate befall it.

        Args:
            task: under way.
            stalled: whether it is to stay stalled after this one step.
        """
        assert task.body is not None
        task.status = Status.READY
        self.current = task
        task.body.switch()
        self.current = None
        if task.body.dead:
            task.status = Status.DONE
            self.under_way.remove(task)
        elif task.status is Status.READY:
            number = task.fate.comes(task.sites) or -1
            if number == task.fate.crash_at:
                self._count("crash")
                self.crash(task)
            elif number == task.fate.sever_at:
                self._count("sever")
                self.sever(task)
            elif number == task.fate.lose_at:
                self._count("answer_lost")
                task.deaf = True
            elif number == task.fate.stall_at or stalled:
                if not stalled:
                    self._count("stall")
                task.status = Status.STALLED

    def _count(self, fate: str) -> None:
        self.befell[fate] = self.befell.get(fate, 0) + 1

    def run(self, task: Task) -> None:
        """Let a task go on until it ends, crashes or stalls; whoever holds a lock that it needs goes on first."""
        self.overlap([task], lambda _of: 0)

    def overlap(self, tasks: list[Task], choose: Callable[[int], int]) -> None:
        """Let tasks overtake each other at boundaries until each ends, crashes or stalls.

        Args:
            tasks: under way.
            choose: gives which of so many goes next.
        """
        for task in tasks:
            task.status = Status.READY
        while any(task.status in (Status.READY, Status.BLOCKED) for task in tasks):
            blocked = [task for task in self.under_way if task.status is Status.BLOCKED]
            ready = [task for task in tasks if task.status is Status.READY]
            # A stalled task that holds the lock everybody waits for is waited for: it goes on.
            stalled = [task for task in self.under_way if task.status is Status.STALLED]
            if ready:
                self.step(ready[choose(len(ready))])
            elif stalled:
                self.step(stalled[0], stalled=True)
            else:
                time.sleep(_POLL_S)  # Postgres ends a deadlock
            for task in blocked:
                if task in self.under_way:
                    self.step(task, stalled=task not in tasks)

    def crash(self, task: Task) -> None:
        """End a task where it stands: its sessions are ended, none of its code runs again."""
        assert task.body is not None
        self._end_sessions(task)
        for connection in task.sessions:
            connection.pgconn.finish()
        site = task.sites[-1] if task.sites else "start"
        self.crash_sites[site] = self.crash_sites.get(site, 0) + 1
        task.status = Status.CRASHED
        _CRASHED.append(task.body)
        self.under_way.remove(task)

    def sever(self, task: Task) -> None:
        """End a task's sessions under it; it goes on, and finds out at its next exchange."""
        self._end_sessions(task)
        task.severed = True

    def _end_sessions(self, task: Task) -> None:
        for connection in task.sessions:
            if not connection.closed:
                pid = connection.pgconn.backend_pid
                self._admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                while self._admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None:
                    time.sleep(0.001)


def _site() -> str:
    """Name the innermost place in the product that is about to act."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        at = path.rfind(f"/{_PACKAGE}/")
        if at >= 0:
            return f"{path[at + len(_PACKAGE) + 2 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside the product"
