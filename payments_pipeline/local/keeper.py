"""The keeper of one home's servers: a small process that stops them when the last command that uses them is gone.

Belongs here: holding, restarting and stopping Postgres and the sandbox processor, and saying where they listen.
Does not belong here: what a command does with them (stack), the Dagster processes (supervisor).

Locks below <home>/stack, all given back by the kernel however their holder dies:

    keeper.lock  exclusive, while a keeper lives
    users.lock   shared by every command that uses the servers; once the keeper has it alone, it stops
    start.lock   exclusive, for the moment in which a command looks for a keeper or starts one

So two commands on one home share the servers, the first to finish takes nothing from the second, and a command that
is killed leaves nothing behind.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Protocol

import click

from payments_pipeline.domain.errors import PaymentsError, StackError
from payments_pipeline.local import processes
from payments_pipeline.local.postgres import EmbeddedPostgres

SERVICES = ("postgres", "sandbox")
_POLL_S = 0.2
#: A server that dies more often than this in the window is given up: something is wrong that starting does not mend.
_RESTARTS = 5
_RESTART_WINDOW_S = 120.0


@dataclass(frozen=True)
class State:
    """Where the servers of a home listen, as its keeper wrote it; holds no secret."""

    keeper_pid: int
    mark: str
    services: tuple[str, ...]
    postgres_port: int
    sandbox_url: str


class Service(Protocol):
    """A server that the keeper looks after."""

    process: subprocess.Popen[bytes] | None

    def start(self) -> None:
        """Start it and wait until it answers."""

    def stop(self) -> None:
        """Stop it in order."""


class Sandbox:
    """The sandbox processor's own process."""

    def __init__(self, home: Path, *, mark: str) -> None:
        self.folder = home / "sandbox"
        self.key_file = sandbox_key_file(home)
        self.log = home / "logs" / "sandbox.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = mark

    def start(self) -> None:
        """Start it, with a key of its own made at the first start, and wait until it answers."""
        for folder in (self.folder, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.key_file.parent.mkdir(mode=0o700, exist_ok=True)
        if not self.key_file.exists():
            processes.write_whole(self.key_file, f"{secrets.token_urlsafe(32)}\n")
        self.port = processes.kept_port(self.folder / "port")
        program: list[str | Path] = [sys.executable, "-m", "payments_pipeline.local.sandbox"]
        where: list[str | Path] = [
            "--db",
            self.folder / "sandbox.db",
            "--port",
            str(self.port),
            "--api-key-file",
            self.key_file,
        ]
        self.process = processes.spawn(
            [*program, *where],
            environment=processes.child_environment({}, mark=self._mark),
            log=self.log,
            death_signal=signal.SIGTERM,
        )
        processes.wait_until(self._answers, self.process, name="the sandbox", log=self.log, timeout_s=60)

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            processes.stop(self.process, timeout_s=10, how=signal.SIGTERM)

    def _answers(self) -> bool:
        return answers(self.port, "/v1/health")


def sandbox_key_file(home: Path) -> Path:
    """Say where the sandbox's API key is kept."""
    return home / "secrets" / "sandbox.key"


def answers(port: int, path: str) -> bool:
    """Say whether a server on this port of 127.0.0.1 answers a GET of `path` with 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def read_state(home: Path) -> State | None:
    """Read what the keeper of this home wrote; None where none is up and ready."""
    try:
        raw = json.loads((home / "stack" / "state.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    state = State(**{**raw, "services": tuple(raw["services"])})
    return state if is_kept(home) else None


def is_kept(home: Path) -> bool:
    """Say whether a keeper of this home lives."""
    path = home / "stack" / "keeper.lock"
    if not path.exists():
        return False
    held = processes.try_lock(path, shared=True)
    if held is None:
        return True
    os.close(held)
    return False


class Keeper:
    """One home's keeper; runs in a process of its own."""

    def __init__(self, home: Path, services: Sequence[str]) -> None:
        self.home = home
        self.folder = home / "stack"
        self.mark = secrets.token_hex(16)
        self.names = tuple(services)
        self.postgres = EmbeddedPostgres(home, mark=self.mark) if "postgres" in services else None
        self.sandbox = Sandbox(home, mark=self.mark) if "sandbox" in services else None
        self.services: dict[str, Service] = {}
        for name, service in (("postgres", self.postgres), ("sandbox", self.sandbox)):
            if service is not None:
                self.services[name] = service
        self._deaths: dict[str, list[float]] = {name: [] for name in self.services}
        self._told_to_stop = False

    def run(self, ready: Callable[[str], None]) -> None:
        """Keep the servers until nobody uses them; `ready` is told once, an empty text or the fault."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._stop_soon)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        own = processes.try_lock(self.folder / "keeper.lock")
        if own is None:
            ready("another keeper was quicker; try again.")
            return
        users = None
        try:
            self._end_leftovers()
            for service in self.services.values():
                service.start()
            self._write_state()
            ready("")
            while not self._told_to_stop:
                if (users := processes.try_lock(self.folder / "users.lock")) is not None:
                    break
                self._revive()
                time.sleep(_POLL_S)
        finally:
            # The locks are held to the end: a command that comes now waits, and then starts anew.
            (self.folder / "state.json").unlink(missing_ok=True)
            try:
                self._stop_all()
            finally:
                if users is not None:
                    os.close(users)
                os.close(own)

    def _stop_soon(self, *_: object) -> None:
        self._told_to_stop = True

    def _end_leftovers(self) -> None:
        """End what an earlier keeper of this home left when it was killed, then leave our own mark for the next."""
        (self.folder / "state.json").unlink(missing_ok=True)
        path = self.folder / "mark"
        if path.exists():
            earlier = path.read_text("ascii").strip()
            processes.end_marked(command_mark(earlier))
            left = processes.end_marked(earlier, timeout_s=60, hard=False)
            if left:
                raise StackError(
                    f"servers of an earlier start do not end (processes {left}). End them, then try again."
                )
        processes.write_whole(path, f"{self.mark}\n")

    def _write_state(self) -> None:
        state = State(
            keeper_pid=os.getpid(),
            mark=self.mark,
            services=self.names,
            postgres_port=self.postgres.port if self.postgres else 0,
            sandbox_url=f"http://127.0.0.1:{self.sandbox.port}" if self.sandbox else "",
        )
        processes.write_whole(self.folder / "state.json", json.dumps(asdict(state)))

    def _revive(self) -> None:
        for name, service in self.services.items():
            if service.process is None or service.process.poll() is None:
                continue
            now = time.monotonic()
            deaths = [at for at in self._deaths[name] if now - at < _RESTART_WINDOW_S] + [now]
            self._deaths[name] = deaths
            if len(deaths) > _RESTARTS:
                raise StackError(f"{name} died {len(deaths)} times in {_RESTART_WINDOW_S:.0f} s and is given up.")
            _say(f"{name} died (exit {service.process.returncode}); starting it again")
            time.sleep(0.1 * 2 ** (len(deaths) - 1))
            service.start()
            self._write_state()
            _say(f"{name} is up again")

    def _stop_all(self) -> None:
        processes.end_marked(command_mark(self.mark))
        for service in reversed(list(self.services.values())):  # Postgres last: the others may still write
            service.stop()


def command_mark(mark: str) -> str:
    """Give the mark of what a command started beside the servers of this keeper: it ends before they do."""
    return f"{mark}-command"


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}")


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--service", "services", multiple=True, type=click.Choice(SERVICES))
@click.option("--ready-fd", type=int, required=True, help="Told when all is up: one JSON object, then end of file.")
def main(home: Path, services: tuple[str, ...], ready_fd: int) -> None:
    """Keep a home's servers for as long as somebody uses them."""
    if os.fork():  # the command that started us is not our parent: it may end before we do
        os._exit(0)
    os.set_inheritable(ready_fd, False)  # noqa: FBT003  # the standard library's own signature
    told = False

    def ready(fault: str) -> None:
        nonlocal told
        told = True
        with os.fdopen(ready_fd, "w", encoding="utf-8") as stream:
            json.dump({"fault": fault}, stream)

    try:
        Keeper(home, services).run(ready)
    except (PaymentsError, OSError) as error:
        fault = describe(error)
        _say(fault)
        if not told:
            ready(fault)
        sys.exit(1)


def describe(error: PaymentsError | OSError) -> str:
    """Put a fault of a server or of the disk into one line for an operator."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}. Nothing that was committed is lost."
    return str(error)


if __name__ == "__main__":
    main()
