"""`up` with everything of the product: its UI takes a backfill through the daemon, and nothing is paid twice."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from home import PROGRAM, Home

from payments_pipeline.local.processes import port_is_free
from payments_pipeline.local.sample_data import write_sample_season

#: The last three days: the sensors find no other day to run meanwhile.
FIRST_DAY = datetime.now(ZoneInfo("Europe/London")).date() - timedelta(days=3)
DAYS = [(FIRST_DAY + timedelta(days=offset)).isoformat() for offset in range(3)]
ASSETS = [
    "match_results",
    "match_participants",
    "rejected_records",
    "participant_shares",
    "ledger_entries",
    "refunds",
    "payout_instructions",
    "payout_submissions",
    "settlement_reports",
    "settlement_records",
    "reconciliation",
]
LAUNCH = """mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
POLL = """query ($b: String!) { partitionBackfillOrError(backfillId: $b) { ... on PartitionBackfill { status
    runs(limit: 10) { status } } } }"""
INSTANCE = """{ instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } }
    schedulesOrError(
        repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "payments_pipeline"})
    { ... on Schedules { results { name scheduleState { status } } } }
    sensorsOrError(repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "payments_pipeline"})
    { ... on Sensors { results { name sensorState { status } } } } }"""


def free_port() -> int:
    return next(port for port in range(3100 + os.getpid() % 500, 4000) if port_is_free(port))


class Ui:
    """The GraphQL behind the UI."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return dict(answer["data"])


@pytest.fixture
def ui(home: Home, tmp_path: Path) -> Iterator[Ui]:
    """`up` on the home, as a child that a user would stop with SIGTERM."""
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=7, seed=5)
    home.point_at(tmp_path)
    port = free_port()
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [PROGRAM, "up"], env=home.full_environment() | {"PAYMENTS_UI_PORT": str(port)}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 120
        while f"127.0.0.1:{port}" not in log.read_text():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Ui(port)
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(90) == 0, log.read_text()
    assert "nothing is left running" in log.read_text()


def test_a_backfill_from_the_ui_runs_through_the_daemon_and_pays_nothing_twice(home: Home, ui: Ui) -> None:
    known = ui.ask(INSTANCE)
    assert {row["sensorState"]["status"] for row in known["sensorsOrError"]["results"]} == {"RUNNING"}
    assert [row["scheduleState"]["status"] for row in known["schedulesOrError"]["results"]] == ["RUNNING"]
    # Before the daemon: the days as the command line runs them, on the servers that are up.
    before = home.rows("backfill", "--from", DAYS[0], "--to", DAYS[-1])
    assert sum(row["instructions_created"] for row in before) > 0
    selection = [{"path": [asset]} for asset in ASSETS]
    launched = ui.ask(LAUNCH, p={"partitionNames": DAYS, "assetSelection": selection, "title": "once more"})
    backfill = launched["launchPartitionBackfill"]["backfillId"]
    deadline = time.monotonic() + 400
    while True:
        state = ui.ask(POLL, b=backfill)["partitionBackfillOrError"]
        if state["status"] not in ("REQUESTED", "REQUESTED_RUNS"):
            break
        assert time.monotonic() < deadline, state
        time.sleep(2)
    assert state["status"] == "COMPLETED_SUCCESS", state
    assert len(state["runs"]) == len(DAYS)
    again = home.rows("backfill", "--from", DAYS[0], "--to", DAYS[-1])
    assert [(row["entries_posted"], row["instructions_created"]) for row in again] == [(0, 0)] * len(DAYS)
    assert [row["settled"] for row in again] == [row["settled"] for row in before]
    assert all(row["ok"] for row in home.rows("verify"))


def test_a_second_up_on_the_same_home_is_one_clear_line(home: Home, ui: Ui) -> None:
    done = home.run("up", expect=3)
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
    assert "already running" in done.stdout + done.stderr
