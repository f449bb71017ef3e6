"""A long dispatch shows how far it has come: on standard error, never on standard output."""

import io
import json
import re
import subprocess
from datetime import date
from http.client import HTTPConnection

import pytest
from home import PROGRAM, Home
from rich.console import Console

from payments_pipeline.local import keeper
from payments_pipeline.local.sample_data import write_sample_season
from payments_pipeline.printing import progress

DAYS = ["2025-08-15", "2025-08-16", "2025-08-17"]


@pytest.fixture(scope="module", autouse=True)
def season(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("data")
    write_sample_season(
        data / "landing", data / "reference", first_day=date.fromisoformat(DAYS[0]), match_days=5, seed=3
    )
    home.point_at(data)


def be_slow(home: Home) -> None:
    """Let the processor take longer over one payment than the dispatch waits before it says how far it has come."""
    state = keeper.read_state(home.path)
    assert state is not None
    key = keeper.sandbox_key_file(home.path).read_text("ascii").strip()
    connection = HTTPConnection(state.sandbox_url.removeprefix("http://"), timeout=20)
    try:
        fault = json.dumps({"kind": "delay_after", "on": "payments", "seconds": 6})
        connection.request("POST", "/v1/test_helpers/faults", fault, {"Authorization": f"Bearer {key}"})
        assert connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.rule("dispatch/progress")
def test_a_run_says_on_standard_error_how_far_its_dispatch_has_come_and_nothing_of_it_on_standard_output(
    home: Home,
) -> None:
    be_slow(home)
    done = home.run("run", "--date", DAYS[0], "--json")
    [row] = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["day"] == DAYS[0]
    assert re.search(rf"^{DAYS[0]}: \d+ of \d+ instructions, \d+ a second, \d+ left: .*cancelled$", done.stderr, re.M)


def test_a_short_dispatch_says_nothing(home: Home) -> None:
    assert home.run("run", "--date", DAYS[1]).stderr == ""


def test_a_standard_error_that_nobody_reads_any_more_ends_no_dispatch(home: Home) -> None:
    be_slow(home)
    with subprocess.Popen(
        [PROGRAM, "run", "--date", DAYS[2], "--json"],
        env=home.full_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stderr.close()
        [line] = run.stdout.readlines()
    assert (run.returncode, json.loads(line)["day"]) == (0, DAYS[2])
    states = {row["state"] for row in home.rows("status", "--date", DAYS[2]) if row["part"] == "instructions"}
    assert states <= {"submitted", "netted", "failed", "settled", "returned"}


def test_on_a_terminal_it_stands_below_the_bar_until_the_day_is_over() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with progress(console, 2) as (_advance, say):
        say("512 of 20000 instructions" + 80 * ".")
    assert re.search(r"0/2.*\n.*512 of 20000 instructions\.+…", shown.getvalue())
    with progress(console, 2) as (advance, say):
        say("512 of 20000 instructions")
        advance()
    assert "instructions" not in shown.getvalue().rpartition("1/2")[2]
