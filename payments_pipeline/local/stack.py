"""Where a command finds its servers: those that the settings name, or the embedded ones, started when needed.

Belongs here: `Endpoints`, attaching to a home's keeper and letting go of it, the environment of child processes.
Does not belong here: the servers themselves (postgres, keeper), the Dagster processes (supervisor).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

import payments_pipeline
from payments_pipeline.domain.errors import ConfigurationError, StackError
from payments_pipeline.local import keeper, postgres, processes
from payments_pipeline.settings import Settings

#: A first start creates a cluster; one after a crash replays the log. Longer than either is a fault.
_ATTACH_TIMEOUT_S = postgres.START_TIMEOUT_S + 60
_LEAVE_TIMEOUT_S = 120


@dataclass(frozen=True)
class Endpoints:
    """Every address that a command needs, with its secrets; shown without them.

    `mark` is that of the keeper, empty where no embedded server is used.
    """

    postgres_url: str = field(repr=False)
    migrator_url: str = field(repr=False)
    dagster_postgres_url: str = field(repr=False)
    processor_url: str | None
    processor_key: str | None = field(repr=False)
    mark: str = field(default="", repr=False)
    find_approver_url: Callable[[], str | None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def approver_url(self) -> str | None:
        """The approver's own login, None where none is known.

        It is read at this moment and not before: only a command by which a person approves comes by its secret.

        Raises:
            StackError: the demo approver's password file cannot be read.
        """
        return self.find_approver_url()


@contextmanager
def stack(settings: Settings) -> Iterator[Endpoints]:
    """Give a command its servers, the business database's schema up to date.

    What the settings do not name runs embedded below the home: shared with any other command of that home, started by
    the first and stopped with the last.

    Raises:
        StackError: a server cannot be started or found.
        ConfigurationError: the settings name a server that cannot be used.
    """
    with attached(settings.home_dir, _needed(settings)) as state:
        endpoints = _endpoints(settings, state)
        _migrate(endpoints.migrator_url)
        yield endpoints


def locate(settings: Settings) -> Endpoints:
    """Give the servers that are up, starting none: for a process that a stack's command started, or a plain `dagster`.

    Raises:
        StackError: what the settings do not name is not running.
    """
    needed = _needed(settings)
    state = keeper.read_state(settings.home_dir) if needed else None
    if needed and (state is None or not set(needed) <= set(state.services)):
        raise StackError(
            f"no stack is running in {settings.home_dir}: start one with `make up`, or set PAYMENTS_POSTGRES_URL and "
            "PAYMENTS_PROCESSOR_URL to servers of your own."
        )
    return _endpoints(settings, state)


def environment(endpoints: Endpoints, settings: Settings) -> dict[str, str]:
    """Give the variables under which a child process finds what this one uses.

    An approver's or migrator's login is not among them. Folders are absolute: the child may work elsewhere.
    """
    variables = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None and name not in ("approver_url", "migrator_url"):
            variables[f"PAYMENTS_{name.upper()}"] = (
                value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            )
    variables |= {
        "PAYMENTS_HOME": str(settings.home_dir),
        "PAYMENTS_LANDING_URL": _absolute(settings.landing),
        "PAYMENTS_REFERENCE_URL": _absolute(settings.reference),
        "PAYMENTS_STORAGE_URL": _absolute(settings.storage),
        "PAYMENTS_POSTGRES_URL": endpoints.postgres_url,
        "PAYMENTS_DAGSTER_POSTGRES_URL": endpoints.dagster_postgres_url,
        "DAGSTER_HOME": str(dagster_home(settings)),
    }
    if settings.config is not None:
        variables["PAYMENTS_CONFIG"] = str(settings.config.expanduser().absolute())
    if endpoints.processor_url is not None:
        variables["PAYMENTS_PROCESSOR_URL"] = endpoints.processor_url
    if endpoints.processor_key is not None:
        variables["PAYMENTS_PROCESSOR_KEY"] = endpoints.processor_key
    return variables


def dagster_home(settings: Settings) -> Path:
    """Bring Dagster's own folder up to date with the project's dagster.yaml, which always wins, and give it.

    Raises:
        StackError: the project's dagster.yaml is missing.
    """
    source = Path(payments_pipeline.__file__).parents[1] / "dagster.yaml"
    folder = settings.home_dir / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        wanted = source.read_text("utf-8")
    except FileNotFoundError:
        raise StackError(f"{source} is missing: the program runs from its checkout. Put the file back.") from None
    target = folder / "dagster.yaml"
    if not target.exists() or target.read_text("utf-8") != wanted:
        processes.write_whole(target, wanted)
    return folder


@contextmanager
def attached(home: Path, services: Sequence[str]) -> Iterator[keeper.State | None]:
    """Use a home's embedded servers for a while; None where none are asked for.

    Raises:
        StackError: they cannot be started, or are up without one that is asked for.
    """
    if not services:
        yield None
        return
    folder = _usable(home) / "stack"
    users = None
    try:
        with processes.lock(folder / "start.lock", timeout_s=_ATTACH_TIMEOUT_S, meaning="another start of this stack"):
            users = _join(folder)
            state = _find(home) or _start(home, services)
        if missing := set(services) - set(state.services):
            raise StackError(
                f"the stack of {home} is up without {' and '.join(sorted(missing))}, for a command with other "
                "settings. Wait for that command, or use another PAYMENTS_HOME."
            )
        yield state
    finally:
        if users is not None:
            _leave(home, users)


def _usable(home: Path) -> Path:
    try:
        for folder in (home, home / "stack", home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home / "stack") as probe:
            probe.write(bytes(4096))  # a full disk still makes empty files
    except OSError as error:
        raise StackError(
            f"PAYMENTS_HOME {home} cannot be used: {error.strerror}. Nothing was started. "
            "Free some space or name a folder that can be written."
        ) from error
    return home


def _join(folder: Path) -> int:
    """Become a user; waits where the keeper has just decided to stop."""
    deadline = time.monotonic() + _LEAVE_TIMEOUT_S
    while (users := processes.try_lock(folder / "users.lock", shared=True)) is None:
        if time.monotonic() > deadline:
            raise StackError(f"the servers of {folder.parent} have been stopping for {_LEAVE_TIMEOUT_S} s. Try again.")
        time.sleep(0.02)
    return users


def _find(home: Path) -> keeper.State | None:
    """Give the living keeper's state; waits for one whose starter was killed before it was ready."""
    deadline = time.monotonic() + _ATTACH_TIMEOUT_S
    while keeper.is_kept(home):
        if (state := keeper.read_state(home)) is not None:
            return state
        if time.monotonic() > deadline:
            raise StackError(f"the servers of {home} are not getting ready. Log: {home / 'logs' / 'stack.log'}.")
        time.sleep(0.02)
    return None


def _start(home: Path, services: Sequence[str]) -> keeper.State:
    log = home / "logs" / "stack.log"
    processes.put_aside_when_long(log)
    told, tell = os.pipe()
    wanted = [part for service in services for part in ("--service", service)]
    try:
        with log.open("ab") as out:
            starter = subprocess.Popen(  # noqa: S603  # no shell, our own program
                [sys.executable, "-m", keeper.__name__, "--home", home, "--ready-fd", str(tell), *wanted],
                env=processes.child_environment({}, mark=""),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(tell,),
            )
    finally:
        os.close(tell)
    with os.fdopen(told, encoding="utf-8") as stream:
        answer = stream.read()
    starter.wait()
    if not answer:
        raise StackError(f"the stack did not start: {processes.last_lines(log)}. Log: {log}.")
    if fault := json.loads(answer)["fault"]:
        raise StackError(f"the stack of {home} did not start: {fault}")
    state = keeper.read_state(home)
    if state is None:
        raise StackError(f"the stack of {home} was stopped while it started. Try again.")
    return state


def _leave(home: Path, users: int) -> None:
    """Stop using the servers; the last user sees them stopped before it goes on."""
    os.close(users)
    deadline = time.monotonic() + _LEAVE_TIMEOUT_S
    last = None
    told = False
    try:
        while keeper.is_kept(home):
            last = last if last is not None else processes.try_lock(home / "stack" / "users.lock")
            state = keeper.read_state(home)
            if state is not None and last is None:
                return  # somebody else uses the servers
            if state is not None and not told:
                os.kill(state.keeper_pid, signal.SIGTERM)  # it lives: its lock is held
                told = True
            if time.monotonic() > deadline:
                raise StackError(f"the servers of {home} do not stop. Log: {home / 'logs' / 'stack.log'}.")
            time.sleep(0.01)
    finally:
        if last is not None:
            os.close(last)


def _needed(settings: Settings) -> tuple[str, ...]:
    sandbox = settings.processor == "sandbox" and settings.processor_url is None
    return tuple(name for name, wanted in (("postgres", settings.postgres_url is None), ("sandbox", sandbox)) if wanted)


def _endpoints(settings: Settings, state: keeper.State | None) -> Endpoints:
    home = settings.home_dir
    own = settings.postgres_url
    if own is not None:
        runtime = own.get_secret_value()
        migrator = settings.migrator_url.get_secret_value() if settings.migrator_url else runtime
        dagster = _beside(runtime)
    else:
        assert state is not None
        port = state.postgres_port
        runtime = postgres.url(home, postgres.RUNTIME, postgres.BUSINESS_DATABASE, port)
        migrator = postgres.url(home, postgres.MIGRATOR, postgres.BUSINESS_DATABASE, port)
        dagster = postgres.url(home, postgres.DAGSTER, postgres.DAGSTER_DATABASE, port)
    if settings.dagster_postgres_url is not None:
        dagster = settings.dagster_postgres_url.get_secret_value()
    processor_url, processor_key = settings.processor_url, settings.processor_key
    embedded_sandbox = state is not None and state.sandbox_url and processor_url is None
    return Endpoints(
        postgres_url=runtime,
        migrator_url=migrator,
        dagster_postgres_url=_with_driver(dagster),
        processor_url=state.sandbox_url if state is not None and embedded_sandbox else processor_url,
        processor_key=processor_key.get_secret_value() if processor_key else _sandbox_key(home, embedded_sandbox),
        mark=state.mark if state is not None else "",
        find_approver_url=lambda: _approver(settings, state),
    )


def _approver(settings: Settings, state: keeper.State | None) -> str | None:
    if settings.approver_url is not None:
        return settings.approver_url.get_secret_value()
    if settings.postgres_url is not None or state is None:
        return None
    return postgres.url(settings.home_dir, postgres.APPROVER, postgres.BUSINESS_DATABASE, state.postgres_port)


def _sandbox_key(home: Path, embedded: object) -> str | None:
    if not embedded:
        return None
    path = keeper.sandbox_key_file(home)
    try:
        return path.read_text("ascii").strip()
    except OSError as error:
        raise StackError(f"the sandbox's key cannot be read from {path}: {error.strerror}.") from error


def _beside(url: str) -> str:
    """Give the address of Dagster's own database beside the business one."""
    parts = urlsplit(url)
    if not parts.path.strip("/"):
        raise ConfigurationError("PAYMENTS_POSTGRES_URL names no database. Append one: postgresql://…/payments")
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}_dagster"))


def _with_driver(url: str) -> str:
    """Name the driver that Dagster needs; without it a newer SQLAlchemy would take another."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg2{separator}{rest}" if scheme in ("postgres", "postgresql") else url


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _migrate(url: str) -> None:
    # Alembic takes a third of a second to import: commands that only look need not pay for it.
    from payments_pipeline.storage.migrations import migrate

    migrate(url)
