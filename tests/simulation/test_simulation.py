"""The simulator finds nothing in what we ship, and shortens what it finds; a crash in it runs no handler."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from payments_pipeline.processors import dispatch
from payments_pipeline.storage import payout_submissions
from payments_pipeline.storage.postgres import RunInfo
from simulation import runner
from simulation.acts import post
from simulation.database import Database, server
from simulation.effects import Fate, Status
from simulation.history import Act, Bank, Deliver, History, Weather, draw
from simulation.inputs import Match
from simulation.model import shares
from simulation.world import World

ROOT = Path(__file__).resolve().parents[2]
POLICY = runner.shipped_policy()
MATCH = Deliver("match-1", "cup", 0, 1, "completed", 10_000, ("player:1",))
DAY = tuple(Act(kind, 0) for kind in ("post", "sweep", "dispatch", "settle"))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with server(tmp_path_factory.mktemp("simulation")) as running, runner.database_of(running, "simulation") as opened:
        yield opened


def live(database: Database, *operations, **settings) -> runner.Figures:
    figures = runner.Figures()
    limits = {"days": 1, "limit_minor": 10**9, "day_limit_minor": 10**9} | settings
    runner.live(database, History(operations=operations, **limits), POLICY, figures)
    return figures


@pytest.mark.rule("always/debits-are-credits")
@pytest.mark.slow
def test_two_hundred_seeds_break_no_rule_pay_nothing_twice_and_lose_no_cent():
    command = [sys.executable, "-m", "simulation", "--seeds", "200", "--from", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = dict(re.findall(r"^ *(\w+) +([\d,]+)", ended.stdout, re.MULTILINE))
    assert (figures["seeds"], figures["double_payments"], figures["cents_lost"]) == ("200", "0", "0")
    for fault in ("crash", "sever", "stall", "overlap", "lost_response", "lost_request", "correction", "clock_jump"):
        assert int(figures[fault].replace(",", "")) > 0, fault


def test_the_same_seed_gives_the_same_history():
    assert draw(17, {"post": 20}) == draw(17, {"post": 20})
    assert draw(17, {"post": 20}) != draw(18, {"post": 20})


def test_the_model_divides_the_worked_example():
    match = Match("m", "cup", 0, 1, "completed", 1_001, ())
    # 30 fixed; 12.5 % of 971 is 121.375; the rest 2 to 1 is 566.41… and 283.20…; one unit is left over.
    assert shares(match) == {"platform": 30, "organiser": 121, "club:home": 567, "club:away": 283}


@pytest.mark.rule("always/crash-anywhere")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["post", "sweep", "dispatch", "settle"])
def test_a_crash_at_every_boundary_of_a_step_loses_and_doubles_nothing(database, kind):
    small = Deliver("match-1", "cup", 0, 1, "completed", 400, ())
    before = DAY[: [act.kind for act in DAY].index(kind)]
    crashed = 0
    while True:
        act = Act(kind, 1 if kind == "settle" else 0, Fate(crash_at=crashed + 1))
        figures = live(database, small, *before, Bank(0, "settle", 0), act)
        assert (figures.double_payments, figures.lost_minor) == (0, 0)
        if not figures.faults["crash"]:
            break
        crashed += 1
    assert crashed > 10


def test_a_crash_runs_no_handler_and_ends_its_sessions(database):
    world = World(database, History(1, 10**9, 10**9, ()), POLICY)
    world.do(MATCH)
    ran = []

    def act():
        try:
            post(world, RunInfo("run", "1", "scheduler"), 0)
        finally:
            ran.append("finally")

    task = world.effects.start("post", act, Fate(crash_at=8))
    world.effects.run(task)
    assert task.status is Status.CRASHED
    assert ran == []
    sessions = [connection.pgconn for connection in task.sessions]
    assert len(sessions) == 1
    assert database.snapshot()["day_postings"] == []
    world.close()


def test_a_failing_history_is_shortened_to_what_it_takes(database, monkeypatch):
    def hopeful(attempt, outcome, *args, original=payout_submissions.Outcome, **other):
        return original(attempt, "rejected" if outcome == "unknown" else outcome, *args, **other)

    monkeypatch.setattr(dispatch, "Outcome", hopeful)
    noise = (Act("reconcile", 0), Act("sweep", 1), Bank(0, "settle", 0))
    storm = Weather(("lost_response",), down=False)
    history = History(1, 10**9, 10**9, (MATCH, *noise, *DAY[:2], storm, *noise, DAY[2], *noise))
    kept = runner.shorten(database, history, POLICY).operations
    assert set(kept) <= {MATCH, *DAY[:2], storm, DAY[2], Act("sweep", 1)}
    assert len(kept) <= 5
