"""`up` on real processes: what it starts, what it refuses, and that nothing outlives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from payments_pipeline.local import keeper, processes, supervisor
from payments_pipeline.settings import Settings

HERE = Path(__file__).parent
PROGRAM = (
    "import sys; from payments_pipeline.local import supervisor; from payments_pipeline.settings import load_settings\n"
    "sys.exit(supervisor.up(load_settings(), definitions='tiny_definitions'))\n"
)


def eventually(condition: Callable[[], bool], *, timeout_s: float = 40) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def up_of(home: Path, port: int) -> subprocess.Popen[str]:
    """Start `up` as a shell without job control starts a background job: with SIGINT ignored."""
    environment = {
        **os.environ,
        "PAYMENTS_HOME": str(home),
        "PAYMENTS_UI_PORT": str(port),
        "PAYMENTS_PROCESSOR": "none",
        "PYTHONPATH": str(HERE),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0]


@contextmanager
def running(home: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Give a ready `up`, its port, and the mark of its servers."""
    port = free_port()
    process = up_of(home, port)
    try:
        assert process.stdout is not None
        said = ""
        while (line := process.stdout.readline()) and "Ctrl-C" not in line:
            said += line
        assert line, f"up ended with {process.wait()}: {said}"
        state = keeper.read_state(home)
        assert state is not None
        yield process, port, state.mark
    finally:
        process.kill()
        process.communicate()
        assert eventually(lambda: not keeper.is_kept(home))


def everything_of(mark: str) -> list[int]:
    return processes.marked(mark) + processes.marked(keeper.command_mark(mark))


def ask(port: int, query: str, **variables: object) -> dict[str, dict[str, object]]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    data: dict[str, dict[str, object]] = answer["data"]
    return data


LAUNCH = """
mutation ($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
  }
}
"""
LOCATION = {
    "repositoryName": "__repository__",
    "repositoryLocationName": supervisor.LOCATION,
    "pipelineName": "endless_job",
}
BEGUN = """
query ($id: ID!) {
  logsForRun(runId: $id) { ... on EventConnection { events { ... on LogMessageEvent { message } } } }
}
"""


def test_told_to_stop_in_the_middle_of_a_run_it_stops_everything_and_a_second_one_only_says_where_it_is(
    tmp_path: Path,
) -> None:
    home = tmp_path / "a home"
    with running(home) as (process, port, mark):
        second = up_of(home, free_port())
        said = output_of(second)
        assert second.returncode == supervisor.EXIT_ALREADY_RUNNING
        assert said.splitlines() == [f"already running: pid {process.pid}, UI at http://127.0.0.1:{port}"]

        launched = ask(port, LAUNCH, selector=LOCATION)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = launched["run"]
        assert isinstance(run, dict)
        assert eventually(lambda: "begun" in json.dumps(ask(port, BEGUN, id=run["runId"])))
        workers = len(everything_of(mark))

        process.send_signal(signal.SIGINT)
        said = output_of(process)
        assert process.returncode == supervisor.EXIT_STOPPED
        assert said.splitlines()[-1] == "stopped; nothing is left running"
        assert workers > 4
        assert everything_of(mark) == []
        assert not keeper.is_kept(home)
        assert "database system is shut down" in processes.last_lines(home / "logs" / "postgres.log")


def test_a_killed_child_is_started_again_and_a_killed_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    with running(tmp_path) as (process, port, mark):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        webserver = [pid for pid in children if b"dagster_webserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(webserver[0]), signal.SIGKILL)
        assert eventually(lambda: not keeper.answers(port, "/server_info"), timeout_s=5)
        assert eventually(lambda: keeper.answers(port, "/server_info"))

        process.kill()
        process.wait()
        assert eventually(lambda: everything_of(mark) == [] and not keeper.is_kept(tmp_path))


def test_a_port_in_use_is_one_sentence_and_nothing_is_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        taker.listen()
        port = taker.getsockname()[1]
        settings = Settings(home=tmp_path, ui_port=port, processor="none")
        assert supervisor.up(settings) == supervisor.EXIT_FAILED
    said = capfd.readouterr()
    assert said.err.splitlines() == [
        f"Error: port {port} is in use by another program; set PAYMENTS_UI_PORT. Nothing was started."
    ]
    assert not keeper.is_kept(tmp_path)


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = Settings(home=tmp_path / "file" / "home", ui_port=free_port(), processor="none")
    assert supervisor.up(settings) == supervisor.EXIT_FAILED
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: PAYMENTS_HOME {tmp_path / 'file' / 'home'}: Not a directory")


def test_definitions_that_cannot_be_loaded_are_one_sentence_and_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path, ui_port=free_port(), processor="none")
    assert supervisor.up(settings, definitions="no_such_module") == supervisor.EXIT_FAILED
    [line] = capfd.readouterr().err.splitlines()
    assert "code_server" in line
    assert "No module named 'no_such_module'" in line
    assert not keeper.is_kept(tmp_path)


def test_what_a_killed_up_wrote_does_not_hold_up_the_next(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "up.lock").touch()
    (tmp_path / "stack" / "up").write_text("pid 1, UI at http://127.0.0.1:3000\n")
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        taker.listen()
        settings = Settings(home=tmp_path, ui_port=taker.getsockname()[1], processor="none")
        assert supervisor.up(settings) == supervisor.EXIT_FAILED
    assert "is in use by another program" in capfd.readouterr().err  # it went past the lock, to the next question
    assert not (tmp_path / "stack" / "up").exists()


SAID = BEGUN.replace("LogMessageEvent", "MessageEvent")
RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"


@pytest.mark.slow
def test_a_run_that_died_with_everything_else_is_marked_as_failed_after_the_next_start_and_started_again(
    tmp_path: Path,
) -> None:
    home = tmp_path / "a home"
    with running(home) as (process, port, mark):
        launched = ask(port, LAUNCH, selector=LOCATION)["launchRun"]["run"]
        assert isinstance(launched, dict)
        first = str(launched["runId"])
        assert eventually(lambda: "begun" in json.dumps(ask(port, BEGUN, id=first)))
        time.sleep(1)  # what Dagster's log says is on the disk a moment later: it is no money
        state = keeper.read_state(home)
        assert state is not None
        for pid in [process.pid, state.keeper_pid, *everything_of(mark)]:
            with suppress(ProcessLookupError):  # it went with its parent
                os.kill(pid, signal.SIGKILL)

    with running(home) as (_process, port, _mark):

        def statuses() -> dict[str, str]:
            runs = ask(port, RUNS)["runsOrError"]["results"]
            assert isinstance(runs, list)
            return {run["runId"]: run["status"] for run in runs}

        assert eventually(lambda: statuses()[first] == "FAILURE", timeout_s=60)
        assert "Its process is gone" in json.dumps(ask(port, SAID, id=first))
        assert eventually(lambda: "STARTED" in statuses().values(), timeout_s=90), "nobody started it again"
