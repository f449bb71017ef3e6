"""`payments-pipeline up`: the embedded servers with Dagster's UI and daemon, watched until told to stop.

Belongs here: the Dagster processes of one home, their order, restarts and end. Does not belong here: Postgres and the
sandbox (keeper), which go on for as long as any command uses them.

One code server is shared by UI and daemon: it saves a process of some 250 MB and the second import of the project.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click

from payments_pipeline.domain.errors import PaymentsError, StackError
from payments_pipeline.local import keeper, processes
from payments_pipeline.local.stack import environment, stack
from payments_pipeline.settings import Settings

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3
LOCATION = "payments_pipeline"
DEFINITIONS = "payments_pipeline.definitions"
_READY_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 15
_RESTARTS = 5
_RESTART_WINDOW_S = 300.0
_POLL_S = 0.2


def up(settings: Settings, *, definitions: str = DEFINITIONS) -> int:
    """Run everything, with the UI on 127.0.0.1, until SIGINT, SIGTERM or SIGHUP; then stop all of it in order.

    Args:
        settings: home, UI port and any servers of one's own.
        definitions: module whose definitions are served.

    Returns:
        0 when told to stop, 1 when something cannot be started or kept up (one line on standard error says what), 3
        when this home's `up` is running already.
    """
    home = settings.home_dir
    try:
        (home / "stack").mkdir(parents=True, exist_ok=True)
        own = processes.try_lock(home / "stack" / "up.lock")
        if own is None:
            click.echo(f"already running: {_who_is_up(home)}")
            return EXIT_ALREADY_RUNNING
        try:
            with _told_to_stop() as stopping:
                return _Supervisor(settings, definitions, stopping).run()
        finally:
            (home / "stack" / "up").unlink(missing_ok=True)
            os.close(own)
    except PaymentsError as error:
        click.echo(f"Error: {error}", err=True)
    except OSError as error:
        click.echo(f"Error: PAYMENTS_HOME {home}: {keeper.describe(error)}", err=True)
    return EXIT_FAILED


def _who_is_up(home: Path) -> str:
    try:
        return (home / "stack" / "up").read_text("utf-8").strip()
    except FileNotFoundError:
        return f"it is just starting or stopping (PAYMENTS_HOME {home})"


class _Stop(BaseException):
    """A signal came before everything was up."""


@dataclass
class _Stopping:
    """Whether a signal to stop has come, and whether it may break into what is being done."""

    told: bool = False
    interrupts: bool = True


@contextmanager
def _told_to_stop() -> Iterator[_Stopping]:
    """Catch the signals that end the program.

    They are set explicitly: a shell without job control starts background jobs with SIGINT ignored.
    """
    stopping = _Stopping()

    def note(_signum: int, _frame: FrameType | None) -> None:
        first = not stopping.told
        stopping.told = True
        if first and stopping.interrupts:
            raise _Stop

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stopping
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class _Child:
    """One Dagster process: how to start it, how to see that it is ready, and how often it died."""

    name: str
    command: list[str | Path]
    log: Path
    ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)
    start_again_at: float = 0.0


class _Supervisor:
    def __init__(self, settings: Settings, definitions: str, stopping: _Stopping) -> None:
        self.settings = settings
        self.home = settings.home_dir
        self.definitions = definitions
        self.stopping = stopping
        self.children: list[_Child] = []
        self.mark = ""
        self.variables: dict[str, str] = {}

    def run(self) -> int:
        port = self.settings.ui_port
        if not processes.port_is_free(port):
            raise StackError(f"port {port} is in use by another program; set PAYMENTS_UI_PORT. Nothing was started.")
        status = self.home / "stack" / "up"
        processes.write_whole(status, f"pid {os.getpid()}, starting\n")
        try:
            with stack(self.settings) as endpoints:
                # A stack of one's own servers has no keeper; then the mark is that of this process alone.
                self.mark = keeper.command_mark(endpoints.mark or f"up-{os.getpid()}-{time.time_ns()}")
                processes.end_marked(self.mark)  # runs of an `up` that was killed while other commands went on
                self.variables = environment(endpoints, self.settings)
                try:
                    self._start_all()
                    url = f"http://127.0.0.1:{port}"
                    processes.write_whole(status, f"pid {os.getpid()}, UI at {url}\n")
                    click.echo(f"UI         {url}")
                    click.echo(f"processor  {endpoints.processor_url or self.settings.processor}")
                    click.echo(f"home       {self.home}")
                    click.echo(f"logs       {self.home / 'logs'}")
                    click.echo("Ctrl-C stops everything.")
                    self.stopping.interrupts = False
                    self._watch(kept=bool(endpoints.mark))
                finally:
                    self.stopping.interrupts = False
                    self._stop_all()
        except _Stop:
            self.stopping.interrupts = False
        click.echo("stopped; nothing is left running")
        return EXIT_STOPPED

    def _start_all(self) -> None:
        code_port = processes.kept_port(self.home / "stack" / "code_server.port")
        workspace = self.home / "stack" / "workspace.yaml"
        processes.write_whole(
            workspace,
            "# Written by `payments-pipeline up` at each start.\n"
            f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: {LOCATION}}}\n",
        )
        logs = self.home / "logs"
        ui_port = self.settings.ui_port
        python: list[str | Path] = [sys.executable, "-m"]
        code_server = ["dagster", "api", "grpc", "-m", self.definitions, "-h", "127.0.0.1", "-p", str(code_port)]
        webserver: list[str | Path] = ["dagster_webserver", "-h", "127.0.0.1", "-p", str(ui_port), "-w", workspace]
        daemon = Path(sys.executable).with_name("dagster-daemon")
        self._start(
            _Child(
                "code_server",
                [*python, *code_server, "--location-name", LOCATION, "--use-python-environment-entry-point"],
                logs / "code_server.log",
                lambda: _listens(code_port),
            )
        )
        self._start(
            _Child(
                "webserver",
                [*python, *webserver],
                logs / "webserver.log",
                lambda: keeper.answers(ui_port, "/server_info"),
            )
        )
        self._start(_Child("daemon", [daemon, "run", "-w", workspace], logs / "daemon.log", lambda: True))

    def _start(self, child: _Child) -> None:
        self.children.append(child)
        process = self._spawn(child)
        processes.wait_until(child.ready, process, name=f"the {child.name}", log=child.log, timeout_s=_READY_TIMEOUT_S)

    def _spawn(self, child: _Child) -> subprocess.Popen[bytes]:
        child.process = processes.spawn(
            child.command,
            environment=processes.child_environment(self.variables, mark=self.mark),
            log=child.log,
        )
        return child.process

    def _watch(self, *, kept: bool) -> None:
        """Keep the children up until told to stop.

        Raises:
            StackError: one of them dies again and again, or the servers are gone.
        """
        while not self.stopping.told:
            if kept and not keeper.is_kept(self.home):
                log = self.home / "logs" / "stack.log"
                raise StackError(
                    f"the embedded servers are gone: {processes.last_lines(log, count=1)}. Log: {log}. "
                    "What was committed is intact."
                )
            for child in self.children:
                if child.process is not None and child.process.poll() is not None:
                    self._died(child)
                elif child.process is None and time.monotonic() >= child.start_again_at:
                    self._spawn(child)  # not waited for: meanwhile the others are watched too
            time.sleep(_POLL_S)

    def _died(self, child: _Child) -> None:
        assert child.process is not None
        now = time.monotonic()
        child.deaths = [at for at in child.deaths if now - at < _RESTART_WINDOW_S] + [now]
        if len(child.deaths) > _RESTARTS:
            raise StackError(
                f"the {child.name} died {len(child.deaths)} times in {_RESTART_WINDOW_S:.0f} s: "
                f"{processes.last_lines(child.log)}. Log: {child.log}."
            )
        wait_s = 0.5 * 2 ** (len(child.deaths) - 1)
        click.echo(f"the {child.name} died (exit {child.process.returncode}); starting it again in {wait_s:.1f} s")
        child.process = None
        child.start_again_at = now + wait_s

    def _stop_all(self) -> None:
        """Stop the daemon first, so that nothing new is begun, then the UI, then runs and the code server."""
        for child in reversed(self.children):
            if child.process is None:
                continue
            if child.name == "code_server":
                ours = [each.process.pid for each in self.children if each.process is not None]
                processes.end_marked(self.mark, spare=ours, timeout_s=_STOP_TIMEOUT_S)
            processes.stop(child.process, timeout_s=_STOP_TIMEOUT_S)
        processes.end_marked(self.mark, timeout_s=1)


def _listens(port: int) -> bool:
    return not processes.port_is_free(port)
