"""The command `run` killed a hundred times, Postgres and the processor too: nothing is paid twice or left over.

Each kill is a SIGKILL of a real `payments-pipeline run` on the embedded servers, at a moment drawn from a seed: some
while it is starting, some when Dagster has stored so many events of its run, some within a step that writes, some while
requests are under way to the processor. Some take Postgres with them, as a power cut would; now and then Postgres or
the processor dies alone under a run. Days are drawn too: new ones, ones that were run before, one killed several times
in a row. Before each run something new arrives for its day, so that there is something to post, to claim and to send
when the kill comes; and the processor loses answers, is slow, or is not available for some of the requests. A failure
prints the seed, and where each run died; the same seed draws the same days, deliveries, faults and moments, though no
machine repeats the very instant.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from deliveries import Deliveries
from home import PROGRAM, Home

from payments_pipeline.local import keeper, postgres, processes
from payments_pipeline.local.sample_data import write_sample_season
from payments_pipeline.storage.objects import TEMPORARY_PREFIX, open_store

KILLS = 100
#: Every so many kills Postgres is killed with the run; every so many runs are left to themselves when a server dies.
WITH_POSTGRES, SERVER_ALONE = 8, 20
#: Set to repeat the draws of a run that failed.
SEED: int | None = None
FIRST_DAY = date(2025, 8, 15)
MATCH_DAYS = 9
DAYS = [FIRST_DAY + timedelta(days=offset) for offset in range(MATCH_DAYS)]
#: How many of them have come at first, and how likely another has before a run.
COME_AT_FIRST, NEXT_COMES = 3, 0.1
ENDED = {"netted", "cancelled", "failed", "returned", "settled"}
BEFORE, BETWEEN, AFTER = "before its first step", "between steps", "after its last step"
#: Steps that write what is owed and what is to be sent.
WRITING = ["ledger_entries", "payout_instructions"]
#: How often requests are kept under way until the kill.
SENDING = 0.25
#: How the processor fails the next requests, or not; and how it keeps them under way.
FAULTS: list[dict[str, Any] | None] = [
    None,
    None,
    {"kind": "status", "on": "payments", "status": 503},
    {"kind": "status", "on": "payments", "status": 503},
    {"kind": "status_after", "on": "payments", "status": 500},
    {"kind": "gateway_after", "on": "payments", "status": 502},
    {"kind": "drop_before", "on": "payments"},
    {"kind": "drop_after", "on": "payments"},
    {"kind": "malformed", "on": "payments"},
    {"kind": "in_progress", "on": "payments", "seconds": 0.5},
    {"kind": "status", "on": "look_ups", "status": 503},
    {"kind": "forgets", "on": "look_ups"},
]
SLOW: list[dict[str, Any] | None] = [
    {"kind": "delay_before", "on": "payments", "seconds": 0.5},
    {"kind": "delay_after", "on": "payments", "seconds": 0.5},
]


def eventually(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


@dataclass
class Servers:
    """The embedded servers of a home, looked at and killed from outside."""

    home: Home

    def url(self, login: postgres.Login, database: str) -> str | None:
        state = keeper.read_state(self.home.path)
        return None if state is None else postgres.url(self.home.path, login, database, state.postgres_port)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the business database, as its owner."""
        url = self.url(postgres.SUPERUSER, postgres.BUSINESS_DATABASE)
        assert url is not None
        with psycopg.connect(url, autocommit=True, options="-c search_path=payments") as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def answer(self) -> bool:
        """Say whether Postgres and the sandbox are up, or nobody keeps them: then the next command starts them."""
        state = keeper.read_state(self.home.path)
        if state is None:
            return not keeper.is_kept(self.home.path)
        try:
            self.rows("SELECT 1")
        except psycopg.OperationalError:
            return False
        return keeper.answers(int(state.sandbox_url.rpartition(":")[2]), "/v1/health")

    def kill_postgres(self) -> None:
        lines = (self.home.path / "postgres" / "data" / "postmaster.pid").read_text("utf-8").split("\n", 1)
        os.kill(int(lines[0]), signal.SIGKILL)

    def kill_sandbox(self) -> None:
        state = keeper.read_state(self.home.path)
        assert state is not None
        for pid in processes.marked(state.mark):
            if b"payments_pipeline.local.sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def all_ended(self) -> bool:
        """Say whether every instruction has ended, and as the processor's books have it.

        One whose sender was killed before its request left, and which was corrected since, waits for its deadline.
        """
        states = dict(self.rows("SELECT instruction_id::text, state FROM instruction_states"))
        for waiting in self.never_seen():
            del states[waiting]
        return set(states.values()) <= ENDED and all(
            payment["status"] == states.get(payment["idempotency_key"]) for payment in self.books()["payments"]
        )

    def never_seen(self) -> set[str]:
        """Give what is unknown and the processor has never seen, as it said when it was asked last."""
        rows = self.rows(
            """SELECT instruction_id::text FROM (
                   SELECT DISTINCT ON (instruction_id) instruction_id, answer FROM payout_look_ups
                   ORDER BY instruction_id, look_up_no DESC) newest
               JOIN instruction_states s USING (instruction_id)
               WHERE s.state = 'unknown' AND answer = 'never_seen'"""
        )
        return {row[0] for row in rows}

    def books(self) -> dict[str, list[dict[str, Any]]]:
        """Give the processor's own statement of what it carried out."""
        return self.ask_processor("GET", "/v1/books")

    def disturb(self, fault: dict[str, Any] | None, count: int) -> None:
        """Let the processor fail its next requests, this many at most; what it failed at before is over."""
        self.ask_processor("DELETE", "/v1/test_helpers/faults")
        if fault is not None:
            self.ask_processor("POST", "/v1/test_helpers/faults", json.dumps(fault | {"count": count}))

    def ask_processor(self, method: str, path: str, body: str | None = None) -> dict[str, list[dict[str, Any]]]:
        state = keeper.read_state(self.home.path)
        assert state is not None
        key = keeper.sandbox_key_file(self.home.path).read_text("ascii").strip()
        connection = HTTPConnection(state.sandbox_url.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, path, body, headers={"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            found: dict[str, list[dict[str, Any]]] = json.loads(response.read())
            assert response.status == 200, found
            return found
        finally:
            connection.close()


class Watch:
    """Sees in Dagster's own database how far a run that is begun from now on has come."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        url = servers.url(postgres.DAGSTER, postgres.DAGSTER_DATABASE)
        assert url is not None
        self.connection = psycopg.connect(url, autocommit=True)
        [(self.newest,)] = self.ask("SELECT coalesce(max(id), 0) FROM runs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.connection.close()

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), parameters).fetchall()

    def events(self) -> int | None:
        """Give how many events of the run begun since are stored; None before there is one."""
        found = self.ask(
            """SELECT (SELECT count(*) FROM event_logs e WHERE e.run_id = r.run_id) FROM runs r WHERE r.id > %s
               ORDER BY r.id LIMIT 1""",
            self.newest,
        )
        return found[0][0] if found else None

    def steps(self) -> dict[str, tuple[bool, float]]:
        """Give each step that it began: whether that ended, and how many seconds it took so far."""
        rows = self.ask(
            """SELECT step_key, bool_or(dagster_event_type IN ('STEP_SUCCESS', 'STEP_FAILURE')),
                      extract(epoch FROM max(timestamp) - min(timestamp) FILTER (
                          WHERE dagster_event_type = 'STEP_START'))::float
               FROM event_logs
               WHERE run_id = (SELECT run_id FROM runs WHERE id > %s ORDER BY id LIMIT 1) AND step_key IS NOT NULL
               GROUP BY 1 HAVING bool_or(dagster_event_type = 'STEP_START')""",
            self.newest,
        )
        return {step: (ended, took_s) for step, ended, took_s in rows}

    def is_sending(self) -> bool:
        """Say whether a request of its may be under way to the processor."""
        if "payout_submissions" not in self.steps():
            return False
        runs = self.ask("SELECT run_id FROM runs WHERE id > %s ORDER BY id LIMIT 1", self.newest)
        [(found,)] = self.servers.rows(
            """SELECT EXISTS (
                   SELECT FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
                   WHERE a.run_id = ANY(%s) AND o.outcome IS NULL)""",
            [run_id for (run_id,) in runs],
        )
        return bool(found)

    def place(self) -> str:
        """Say where that run is, or was when it died: in which step, or before, between or after them."""
        steps = self.steps()
        within = [step for step, (ended, _) in steps.items() if not ended]
        if within:
            return within[0]
        return BEFORE if not steps else AFTER if "reconciliation" in steps else BETWEEN


@dataclass
class Run:
    """One `run` of a day in a process of its own."""

    home: Home
    day: date
    process: subprocess.Popen[str] = field(init=False)
    said: Path = field(init=False)

    def __post_init__(self) -> None:
        self.said = self.home.path / "said.txt"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [PROGRAM, "run", "--date", str(self.day), "--json"],
                env=self.home.full_environment(),
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the run of {self.day} hangs") from None

    def kill(self) -> bool:
        """Kill it; say whether it still ran."""
        self.process.kill()
        code = self.process.wait(20)
        assert code in (0, -signal.SIGKILL), (self.day, code, self.said.read_text())
        return code == -signal.SIGKILL

    def ends_in_words(self) -> int:
        code, said = self.wait(), self.said.read_text("utf-8")
        assert code in (0, 1, 3), (code, said)
        assert "Traceback" not in said, said
        assert code == 0 or "payments-pipeline: " in said, said
        return code


@dataclass
class Killer:
    """Draws days, deliveries, faults and moments, kills, and writes down what was hit."""

    home: Home
    draw: random.Random
    deliveries: Deliveries
    kills: int = 0
    #: Kills of runs that left something approved and not sent, or being sent, of their day or one before.
    while_sending: int = 0
    places: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    come: list[date] = field(default_factory=lambda: DAYS[:COME_AT_FIRST])
    day: date = FIRST_DAY
    whole_s: float = 0
    working_s: float = 0
    events: int = 0
    step_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.servers = Servers(self.home)

    def measure(self) -> None:
        """Run a day to its end, to know how long that and its steps take here and how many events it stores."""
        self.home.rows("run", "--date", str(FIRST_DAY))
        self.deliveries.new_match(FIRST_DAY)
        with Watch(self.servers) as watch:
            started, begun = time.monotonic(), 0.0
            run = Run(self.home, FIRST_DAY)
            while run.process.poll() is None:
                begun = begun or (time.monotonic() if watch.events() else 0.0)
                time.sleep(0.005)
            assert run.wait() == 0, run.said.read_text()
            ended = time.monotonic()
            self.whole_s, self.working_s, self.events = ended - started, ended - begun, watch.events() or 0
            self.step_s = {step: took_s for step, (_, took_s) in watch.steps().items()}

    def moments(self) -> Callable[[Watch, float], bool]:
        """Draw a moment; gives whether it has come, asked with the watch and the time since the start."""
        how, part, step = self.draw.random(), self.draw.random(), self.draw.choice(WRITING)
        if how < 0.15:
            return lambda _watch, now: now >= part * self.whole_s
        if how < 0.5:
            return after(lambda watch: (watch.events() or 0) > part * self.events, self.draw.uniform(0, 0.03))
        if how < 0.65:
            return after(lambda watch: True, part * self.working_s)
        return after(lambda watch: step in watch.steps(), part * self.step_s[step])

    @contextmanager
    def next_run(self) -> Iterator[tuple[Run, Watch]]:
        """Start a run of a day that is drawn, for which something arrives, and give it at a moment that is drawn."""
        if self.draw.random() < NEXT_COMES and len(self.come) < len(DAYS):
            self.day = DAYS[len(self.come)]
            self.come.append(self.day)
        elif self.draw.random() < 0.7:  # else the same once more
            self.day = self.draw.choice(self.come)
        self.arrived = self.deliveries.arrive(self.day)
        is_sending = self.draw.random() < SENDING
        self.fault = self.draw.choice(SLOW if is_sending else FAULTS)
        self.servers.disturb(self.fault, self.draw.randint(1, 15))
        come = after(Watch.is_sending, self.draw.uniform(0, 0.3)) if is_sending else self.moments()
        with Watch(self.servers) as watch:
            started = time.monotonic()
            run = Run(self.home, self.day)
            while run.process.poll() is None and not come(watch, time.monotonic() - started):
                time.sleep(0.01)
            yield run, watch

    def kill_one(self) -> None:
        """Kill a run; one that was quicker counts for nothing."""
        with self.next_run() as (run, watch):
            killed = run.kill()
            place = watch.place()
        self.count(place if killed else "done", killed=killed)

    def kill_one_with_postgres(self) -> None:
        """Kill a run and Postgres, one just before the other."""
        with self.next_run() as (run, watch):
            place = watch.place()
            both = [self.servers.kill_postgres, run.process.kill]
            self.draw.shuffle(both)
            both[0]()
            time.sleep(self.draw.uniform(0, 0.02))
            both[1]()
            killed = run.process.wait(20) == -signal.SIGKILL
        self.count(place, "with Postgres", killed=killed)

    def kill_a_server(self) -> None:
        """Kill a server under a run that is left to itself."""
        server = self.draw.choice(["Postgres", "sandbox"])
        with self.next_run() as (run, watch):
            place = watch.place()
            self.servers.kill_postgres() if server == "Postgres" else self.servers.kill_sandbox()
            self.write_down(place, f"{server} alone; the run ended with {run.ends_in_words()}")

    def count(self, place: str, more: str = "", *, killed: bool) -> None:
        self.write_down(place, more)
        left = dict(
            self.servers.rows(
                """SELECT state, count(*) FROM instruction_states JOIN payout_instructions USING (instruction_id)
                   WHERE state IN ('approved', 'submitting', 'unknown') AND sweep_day <= %s GROUP BY 1""",
                self.day,
            )
        )
        self.told[-1] += f"; of its day and before {left or 'nothing'} to be sent"
        if killed:
            self.kills += 1
            self.places[place] += 1
            self.while_sending += "approved" in left or "submitting" in left

    def write_down(self, place: str, more: str = "") -> None:
        fault = self.fault["kind"] if self.fault else "no fault"
        self.told.append(f"{self.kills:3} {self.day} {self.arrived}, {fault}: {place} {more}")
        eventually(self.servers.answer)
        if keeper.read_state(self.home.path) is None:  # killed so often in so short a time, a server is given up
            self.home.run("status")
            self.told.append("    servers started anew by a command")


def after(begins: Callable[[Watch], bool], more_s: float) -> Callable[[Watch, float], bool]:
    """Say whether so much time has passed since a run has come so far."""
    begun: list[float] = []

    def come(watch: Watch, now: float) -> bool:
        if not begun:
            if watch.events() is None:
                time.sleep(0.03)  # it is starting: that takes a while
            elif begins(watch):
                begun.append(now)
        return bool(begun) and now >= begun[0] + more_s

    return come


@pytest.fixture
def killer(home: Home, tmp_path: Path) -> Iterator[Killer]:
    write_sample_season(
        tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=MATCH_DAYS, seed=23
    )
    home.point_at(tmp_path)
    seed = random.SystemRandom().randrange(10**9) if SEED is None else SEED
    draw = random.Random(seed)
    killer = Killer(home, draw, Deliveries(tmp_path / "landing", draw))
    yield killer
    print(f"seed {seed}; a run took {killer.whole_s:.1f} s, {killer.working_s:.1f} s of it worked")
    print("\n".join(killer.told))
    print(killer.places.most_common())


@pytest.mark.rule("dispatch/killed")
@pytest.mark.slow
def test_killed_a_hundred_times_each_instruction_is_carried_out_once_and_nothing_is_left_over(killer: Killer) -> None:
    home, servers = killer.home, killer.servers
    killer.measure()
    turn = 0
    while killer.kills < KILLS:
        turn += 1
        if turn % SERVER_ALONE == 0:
            killer.kill_a_server()
        elif turn % WITH_POSTGRES == 0:
            killer.kill_one_with_postgres()
        else:
            killer.kill_one()
    killed_at = time.monotonic()
    servers.disturb(None, 0)
    _died_while_there_was_something_to_do(killer)

    home.rows("backfill", "--from", str(FIRST_DAY), "--to", str(DAYS[-1]))
    day = DAYS[-1]
    give_a_token_that_settles(Path(home.environment["PAYMENTS_REFERENCE_URL"]) / "parties.csv")
    while not servers.all_ended():  # what failed or came back is sent again, or waits for a person
        day += timedelta(days=1)
        assert day < DAYS[-1] + timedelta(days=30)
        home.rows("backfill", "--from", str(day), "--to", str(day + timedelta(days=4)))
        day += timedelta(days=4)
    assert {row["entries_posted"] for row in home.rows("backfill", "--from", str(FIRST_DAY), "--to", str(day))} == {0}
    assert servers.all_ended()
    assert [row for row in home.rows("verify") if not row["ok"]] == []
    _carried_out_once(servers)
    # A run that died before it began is known to be dead once it ought to have begun; any later command says so.
    time.sleep(max(0.0, killed_at + 61 - time.monotonic()))
    home.rows("run", "--date", str(FIRST_DAY))
    _nothing_left_over(servers)


def give_a_token_that_settles(parties: Path) -> None:
    """What a person does for a party whose payouts settle and come back, again and again."""
    text = parties.read_text("utf-8")
    assert "tok_test_return_2d_fellside" in text
    parties.write_text(text.replace("tok_test_return_2d_fellside", "tok_fellside_new"), "utf-8")


def _died_while_there_was_something_to_do(killer: Killer) -> None:
    """By what is stored before the runs that nobody kills. What is asked for is far below what any seed comes to."""
    places = killer.places
    [(posted, corrected, abandoned, looked_up, resent, settled)] = killer.servers.rows(
        """SELECT (SELECT count(DISTINCT run_id) FROM journals WHERE kind IN ('accrual', 'refund')),
                  (SELECT count(*) FROM match_postings WHERE posting_no > 1),
                  (SELECT count(*) FROM payout_attempt_outcomes
                   WHERE outcome = 'unknown' AND message LIKE 'its sender ended%%'),
                  (SELECT count(*) FROM payout_look_ups),
                  (SELECT count(*) FROM payout_attempts WHERE attempt_no > 1),
                  (SELECT count(*) FROM instruction_states WHERE state = 'settled')"""
    )
    counted = {
        "kills before the first step": (places[BEFORE], 1, 10),
        "steps in which a run was killed": (len(set(places) - {BEFORE, BETWEEN, AFTER}), 6, 8),
        "kills within ledger_entries": (places["ledger_entries"], 1, 14),
        "kills within payout_instructions": (places["payout_instructions"], 1, 14),
        "kills within payout_submissions": (places["payout_submissions"], 5, 30),
        "kills that left something approved or being sent": (killer.while_sending, 25, 55),
        "runs that posted shares or refunds": (posted, 30, 65),
        "corrections of matches": (corrected, 8, 30),
        "attempts whose sender died": (abandoned, 50, 900),
        "look-ups": (looked_up, 50, 800),
        "attempts that were sent again": (resent, 1, 30),
        "instructions that settled": (settled, 200, 1300),
    }
    killer.told += [f"{what}: {found}" for what, (found, *_) in counted.items()]
    for what, (found, least, usual) in counted.items():
        assert found >= least, f"{what}: {found}. Some {usual} are usual, and {least} leave room for a slow machine."


def _carried_out_once(servers: Servers) -> None:
    """By the processor's own books: what it has are our instructions, each once, for our amounts."""
    ours = {
        row[0]: row[1:]
        for row in servers.rows(
            """SELECT i.instruction_id::text, i.direction, i.amount_minor, i.currency, s.state,
                      EXISTS (SELECT FROM payout_attempts a WHERE a.instruction_id = i.instruction_id)
                      AND NOT EXISTS (SELECT FROM payout_attempt_outcomes o WHERE o.instruction_id = i.instruction_id
                                      AND o.outcome = 'rejected')
                      AND NOT EXISTS (SELECT FROM payout_look_ups l WHERE l.instruction_id = i.instruction_id
                                      AND l.answer = 'rejected')
                      AND NOT EXISTS (SELECT FROM instruction_events e WHERE e.instruction_id = i.instruction_id
                                      AND e.reason LIKE 'never accepted, and not sent again:%%') AS was_taken
               FROM payout_instructions i JOIN instruction_states s USING (instruction_id)"""
        )
    }
    books = servers.books()
    assert books["scheduled"] == []
    carried_out = Counter(payment["idempotency_key"] for payment in books["payments"])
    assert set(carried_out.values()) == {1}
    assert set(carried_out) == {key for key, (*_, was_taken) in ours.items() if was_taken} - servers.never_seen()
    for payment in books["payments"]:
        direction, amount_minor, currency, state, *_ = ours[payment["idempotency_key"]]
        assert (payment["direction"], payment["amount_minor"], payment["currency"]) == (
            direction,
            amount_minor,
            currency,
        )
        assert payment["status"] == state
        assert payment["times_settled"] == (state != "failed")


def _nothing_left_over(servers: Servers) -> None:
    """No lock, no session, no object that is none of ours, and no run that seems to go on."""
    home = servers.home.path

    def no_sessions() -> bool:
        return servers.rows(
            """SELECT count(*) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
        ) == [(0,)]

    eventually(no_sessions)
    assert servers.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert servers.rows("SELECT count(*) FROM pg_prepared_xacts") == [(0,)]
    storage = home / "storage"
    keys = {found.key for found in open_store(str(storage)).list()}
    partition = re.compile(r"[a-z_]+/date=\d{4}-\d\d-\d\d/part-0\.parquet|certificates/[^/]+/[^/]+\.json")
    assert [key for key in keys if not partition.fullmatch(key)] == []
    files = {path.relative_to(storage).as_posix() for path in storage.rglob("*") if path.is_file()}
    assert [name for name in files - keys if not Path(name).name.startswith(TEMPORARY_PREFIX)] == []
    assert [path for path in home.rglob("*.partial") if path.is_file()] == []
    with Watch(servers) as watch:
        statuses = dict(watch.ask("SELECT status, count(*) FROM runs GROUP BY 1"))
        assert set(statuses) == {"SUCCESS", "FAILURE"}, statuses
        unsaid = watch.ask(
            """SELECT run_id FROM runs WHERE status = 'FAILURE' AND NOT EXISTS (
                   SELECT FROM event_logs e
                   WHERE e.run_id = runs.run_id AND e.dagster_event_type = 'PIPELINE_FAILURE')"""
        )
        assert unsaid == []
