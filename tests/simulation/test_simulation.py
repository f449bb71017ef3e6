"""The simulator finds nothing in what we ship, and shortens what it finds; a crash in it runs no handler."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from payments_pipeline.domain import ids, ledger, payout_instructions
from payments_pipeline.processors import dispatch
from payments_pipeline.storage import payout_submissions
from payments_pipeline.storage.postgres import RunInfo
from simulation import acts, backfills, runner, world
from simulation.acts import BODIES, post
from simulation.database import Database, server
from simulation.effects import Fate, Status
from simulation.history import (
    CHANGES,
    HABITS,
    UNLIMITED,
    UNRECORDED,
    Act,
    Bank,
    ChangeParty,
    ChangeRules,
    Deliver,
    History,
    Jump,
    OtherLine,
    Weather,
    draw,
    draw_backfill,
)
from simulation.inputs import Match
from simulation.model import shares
from simulation.processor import ANSWERS, SimulatedProcessor
from simulation.rules import RuleBroken
from simulation.world import World

#: What befalls a world, by the names under which it is counted.
KINDS = {
    *(
        "crash",
        "sever",
        "answer_lost",
        "stall",
        "stalled_go_on",
        "stalled_sever",
        "stalled_crash",
        "overlap",
        "clock_jump",
    ),
    *("correction", "contradiction", "outdated_delivery", "input_withdrawn", "input_rejected", "rules_changed"),
    *("voided", "reinstated", "moved_to_another_day", "key_expired", "report_grown", "down_for_hours"),
    *("processor_down", "look_up_unanswered", "report_unanswered", *ANSWERS),
    *(f"bank_{habit}" for habit in (*HABITS, "late", "early") if habit != "settle"),
    *(f"line_{kind}" for kind in ("fee", "funding", "unknown_key", "repeated", "other")),
    *(f"party_{how}" for how in CHANGES),
    *(f"refund_{how}" for how in ("accepted", "repeated", "match_not_posted", "not_a_payer", "more_than_left")),
    *("refund_nothing_left", "refund_other_content", "refused_NotApprovedError", "refused_past_its_deadline"),
    *("approved", "refused", "resolved_by_a_person", "matched", "retry_accepted"),
    *(f"{kind}_{decision}" for kind in ("rule_change", "write_off") for decision in ("accepted", "refused")),
}
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
    runner.live(database, History(1, operations, **settings), POLICY, figures)
    return figures


@pytest.mark.rule("always/debits-are-credits")
@pytest.mark.slow
def test_two_hundred_seeds_break_no_rule_pay_nothing_twice_and_lose_no_cent(database):
    command = [sys.executable, "-m", "simulation", "--seeds", "200", "--from", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = dict(re.findall(r"^ *(\w+) +([\d,]+)", ended.stdout, re.MULTILINE))
    assert (figures["seeds"], figures["double_payments"], figures["cents_lost"]) == ("200", "0", "0")
    assert {kind for kind in KINDS if kind not in figures} == set(), "no world of two hundred has it"
    # The list of places is what was come to: each is crashed at in these worlds, or at every boundary of an act below.
    left = set(re.findall(r"^ *not_crashed_at (\S+ \S+)$", ended.stdout, re.MULTILINE))
    below = runner.Figures()
    for before, act in [*((before, act) for act, before in CRASHED.items()), *CRASHED_BESIDES.values()]:
        limit = 200 if act.kind in ("approve", "refuse") else UNLIMITED
        runner.live(database, History(1, (CHARGED, *before, act), limit), POLICY, below)
    assert left - below.sites.keys() == set()


def test_the_same_seed_gives_the_same_history():
    assert draw(17, UNRECORDED) == draw(17, UNRECORDED)
    assert draw(17, UNRECORDED) != draw(18, UNRECORDED)


def test_the_model_divides_the_worked_example():
    match = Match("m", "cup", 0, 1, "completed", 1_001, ())
    # 30 fixed; 12.5 % of 971 is 121.375; the rest 2 to 1 is 566.41… and 283.20…; one unit is left over.
    assert shares(match) == {"platform": 30, "organiser": 121, "club:home": 567, "club:away": 283}


SMALL = Deliver("match-1", "cup", 0, 1, "completed", 400, ())
CHARGED = Deliver("match-1", "cup", 0, 1, "completed", 400, ("player:1",))
POST, SWEEP, DISPATCH, SETTLE = DAY
VOID = Deliver("match-1", "cup", 0, 1, "void", 0, ())
SETTLED = (*[Bank(0, "settle", 0)] * 4, Act("settle", 1))
ALL_FAIL = [Bank(0, "fail", 0)] * 4
#: What comes before each act, so that it has something to do.
CRASHED = {
    Act("post", 0): (),
    Act("sweep", 0): (POST,),
    Act("dispatch", 0): (POST, SWEEP),
    Act("settle", 1): (*DAY[:3], Bank(0, "settle", 0)),
    Act("reconcile", 1): (*DAY[:3], *SETTLED),
    Act("refund", 0): (POST, SWEEP),
    Act("approve", 0): (POST, SWEEP),
    Act("refuse", 0): (POST, SWEEP),
    Act("resolve", 0): (Weather(("lost_request",) * 4, down=False), *DAY[:3], Jump(30, 0), Act("dispatch", 1)),
    Act("write_off", 0): (*DAY[:3], *SETTLED, VOID, POST),
    Act("match", 0): (OtherLine("unknown_key", 0), SETTLE),
    Act("retry", 0): (
        *(*DAY[:3], *ALL_FAIL, Act("settle", 1), Act("sweep", 2), Act("dispatch", 2), *ALL_FAIL, Act("settle", 3)),
        *(Act("sweep", 4), Act("dispatch", 4), *ALL_FAIL, Act("settle", 5), Act("sweep", 6)),
    ),
    Act("accept", 0): (POST, ChangeRules("match-1", 1), POST),
    Act("decline", 0): (POST, ChangeRules("match-1", 1), POST),
}
#: The same acts where more than usual waits for them, by what it is.
_LOST, _DOWN = Weather(("lost_request",) * 4, down=False), Weather((), down=True)
CRASHED_BESIDES = {
    "what is unknown is looked up, and sent again": ((_LOST, *DAY[:3]), DISPATCH),
    "what is unknown is looked up, and was taken": ((Weather(("lost_response",) * 4, down=False), *DAY[:3]), DISPATCH),
    "what is unknown is past its deadline": ((_LOST, *DAY[:3], Jump(30, 0)), Act("dispatch", 1)),
    "what was put off is sent again": ((_DOWN, *DAY[:3], Weather((), down=False)), DISPATCH),
    "what was put off may not leave any more": (
        (_DOWN, *DAY[:3], Weather((), down=False), ChangeParty("club:home", "on_hold")),
        DISPATCH,
    ),
    "what is refused": ((POST, SWEEP, Weather(("rejected",) * 4, down=False)), DISPATCH),
    "what an account given up was to get": ((POST, SWEEP, ChangeParty("club:home", "new_token")), DISPATCH),
    "what was corrected is swept anew": ((POST, SWEEP, VOID, POST), SWEEP),
    "what was written off waits to be carried out": (
        (*DAY[:3], *SETTLED, VOID, POST, Act("write_off", 1), Act("write_off", 7), Act("accept", 0), Act("accept", 0)),
        SWEEP,
    ),
    "a correction with what was refunded of it": ((POST, SWEEP, Act("refund", 0), VOID), POST),
    "changed rules that were accepted": ((POST, ChangeRules("match-1", 1), POST, Act("accept", 0)), POST),
    "what failed after it was settled, and the reverse": (
        (*DAY[:3], Bank(0, "fail_then_settle", 0), Bank(0, "settle_then_fail", 0), Bank(0, "settle_twice", 0)),
        Act("settle", 2),
    ),
    "what came back": ((*DAY[:3], *[Bank(0, "settle_then_return", 0)] * 4, Act("settle", 1)), Act("settle", 2)),
    "a report that is taken in again": ((*DAY[:3], *SETTLED, OtherLine("fee", 1)), Act("settle", 1)),
    "a date that is reconciled again": ((*DAY[:3], *SETTLED, Act("reconcile", 1)), Act("reconcile", 1)),
    "a day that is posted again": ((POST,), POST),
}
#: How the world shows that an act had something to do.
DONE = {
    "refund": "refund_accepted",
    "approve": "approved",
    "refuse": "refused",
    "resolve": "resolved_by_a_person",
    "write_off": "write_off_accepted",
    "match": "matched",
    "retry": "retry_accepted",
    "accept": "rule_change_accepted",
    "decline": "rule_change_refused",
}


@pytest.mark.rule("always/crash-anywhere")
@pytest.mark.slow
@pytest.mark.parametrize("act", CRASHED, ids=lambda act: act.kind)
def test_a_crash_at_every_boundary_of_an_act_loses_and_doubles_nothing(database, act):
    # Nothing but what is approved or refused is held: what is held is refused at the end.
    limit = 200 if act.kind in ("approve", "refuse") else UNLIMITED
    crashed = 0
    while True:
        fated = replace(act, fate=Fate(crash_at=crashed + 1))
        match = CHARGED if act.kind in DONE else SMALL
        figures = live(database, match, *CRASHED[act], fated, limit_minor=limit)
        assert (figures.double_payments, figures.lost_minor) == (0, 0)
        if not figures.faults["crash"]:
            break
        crashed += 1
    assert crashed >= 4
    assert figures.faults[DONE.get(act.kind, "seen_through")] or act.kind not in DONE


@pytest.mark.rule("always/crash-anywhere")
@pytest.mark.slow
@pytest.mark.parametrize("what", CRASHED_BESIDES)
def test_a_crash_at_every_place_of_what_waits_loses_and_doubles_nothing(database, what):
    before, act = CRASHED_BESIDES[what]
    world = World(database, History(1), POLICY)
    for operation in (CHARGED, *before):
        world.perform(operation)
    task = world.start(act)
    world.finish(task)
    world.close()
    places = {site: number for number, site in reversed([*enumerate(task.sites, 1)])}
    assert len(places) >= 4
    for number in places.values():
        figures = live(database, CHARGED, *before, replace(act, fate=Fate(crash_at=number)))
        assert (figures.double_payments, figures.lost_minor, figures.faults["crash"]) == (0, 0, 1)


@pytest.mark.slow
def test_the_same_seed_twice_comes_to_the_same_places_and_the_same_books(database):
    for seed in range(40, 50):
        came_to, books = [], []
        for _ in range(2):
            figures = runner.Figures()
            runner.live(database, draw(seed, UNRECORDED), POLICY, figures)
            came_to.append((figures.acts, figures.sites, figures.faults, figures.crash_sites))
            ids = {row["entry_id"] for row in database.snapshot()["ledger_entries"]}
            books.append(ids | {row["instruction_id"] for row in database.snapshot()["payout_instructions"]})
        assert came_to[0] == came_to[1]
        assert books[0] == books[1]


def test_every_act_is_crashed_at_every_boundary():
    assert {act.kind for act in CRASHED} == BODIES.keys()


def test_a_crash_runs_no_handler_and_ends_its_sessions(database):
    lived = World(database, History(1), POLICY)
    lived.do(MATCH)
    ran = []

    def act():
        try:
            post(lived, RunInfo("run", "1", "scheduler"), 0)
        finally:
            ran.append("finally")

    task = lived.effects.start("post", act, Fate(crash_at=8))
    lived.effects.run(task)
    assert task.status is Status.CRASHED
    assert ran == []
    sessions = [connection.pgconn for connection in task.sessions]
    assert len(sessions) == 1
    assert database.snapshot()["day_postings"] == []
    lived.close()


def test_a_failing_history_is_shortened_to_what_it_takes(database, monkeypatch):
    def hopeful(attempt, outcome, *args, original=payout_submissions.Outcome, **other):
        return original(attempt, "rejected" if outcome == "unknown" else outcome, *args, **other)

    monkeypatch.setattr(dispatch, "Outcome", hopeful)
    noise = (Act("reconcile", 0), Act("sweep", 1), Bank(0, "settle", 0))
    storm = Weather(("lost_response",), down=False)
    history = History(1, (MATCH, *noise, *DAY[:2], storm, *noise, DAY[2], *noise))
    kept = runner.shorten(history, runner.broken_by(database, POLICY)).operations
    assert set(kept) <= {MATCH, *DAY[:2], storm, DAY[2], Act("sweep", 1)}
    assert len(kept) <= 5


#: Stands for the command itself, with one statement of the product changed.
PLANTED = """
import runpy, sys
from payments_pipeline.domain import ids, ledger, payout_instructions
from payments_pipeline.processors import dispatch
from payments_pipeline.storage import payout_submissions

def hopeful(attempt, outcome, *args, original=payout_submissions.Outcome, **other):
    return original(attempt, "rejected" if outcome == "unknown" else outcome, *args, **other)

dispatch.Outcome = hopeful
sys.argv = ["simulation", "--seeds", "8", "--from", "40"]
runpy.run_module("simulation", run_name="__main__")
"""


@pytest.mark.slow
def test_the_command_tells_a_fault_with_its_seed_and_the_shortest_history_and_fails():
    command = [sys.executable, "-c", PLANTED]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    seed = re.search(
        r"^FAILED seed (\d+): .*rule 8: instruction .* failed, and the processor", ended.stdout, re.MULTILINE
    )
    assert seed is not None, ended.stdout
    assert 40 <= int(seed[1]) < 48
    assert re.search(r"^failures +[1-9]", ended.stdout, re.MULTILINE)
    story = ended.stdout[seed.end() :].split("\n\n")[0].splitlines()[2:]
    assert any("lost_response" in line or "lost_request" in line for line in story)
    assert len(story) <= 12


@pytest.fixture
def worlds(monkeypatch):
    """The worlds of a backfill, in which nothing but their ends is looked at."""
    built = []

    def build(*given):
        built.append(World(*given))
        return built[-1]

    monkeypatch.setattr(backfills, "World", build)
    monkeypatch.setattr(world, "breaches", lambda *_: ())
    return built


@pytest.mark.parametrize("seed", [1, 25])
def test_days_in_another_order_that_post_other_accruals_are_told(database, monkeypatch, worlds, seed):
    def poor_once_a_later_day_is_posted(landed, original=acts.day_input):
        days = {posted.day for posted in worlds[-1].model.posted.values()}
        late = any(match.day < max(days, default=0) for match in landed)
        return original(tuple(replace(match, players=("player:1",)) if late else match for match in landed))

    monkeypatch.setattr(acts, "day_input", poor_once_a_later_day_is_posted)
    with pytest.raises(RuleBroken, match=r"^order \[.*\] ends with other accruals"):
        backfills.check_backfills(database, seed, POLICY, *draw_backfill(seed))


def test_days_in_another_order_that_pay_otherwise_are_told(database, monkeypatch, worlds):
    def a_cent_less(processor, payment, day, kind, amount, original=SimulatedProcessor.move):
        original(processor, payment, day, kind, amount - (len(worlds) == 3 and amount > 1))

    monkeypatch.setattr(SimulatedProcessor, "move", a_cent_less)
    with pytest.raises(RuleBroken, match=r"^order \[.*\] ends with other paid_and_open"):
        backfills.check_backfills(database, 25, POLICY, *draw_backfill(25))


def test_date_order_twice_that_gives_other_ids_is_told(database, monkeypatch, worlds):
    def of_its_world(kind, *columns, original=ids.business_ids):
        return original(f"{kind} {len(worlds)}", *columns)

    for module in (ids, payout_instructions, ledger):
        monkeypatch.setattr(module, "business_ids", of_its_world)
    with pytest.raises(RuleBroken, match=r"^date order twice gives other ids"):
        backfills.check_backfills(database, 25, POLICY, *draw_backfill(25))


def test_without_a_fault_the_same_backfills_end_alike(database):
    for seed in (0, 25):
        assert backfills.check_backfills(database, seed, POLICY, *draw_backfill(seed)) > 10
