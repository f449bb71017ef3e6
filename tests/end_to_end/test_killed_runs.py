"""The command `run` killed a hundred times, Postgres and the processor too: nothing is paid twice or left over.

Each kill is a SIGKILL of a real `payments-pipeline run` on the embedded servers, at a moment drawn from a seed: some
while it is starting, some when Dagster has stored so many events of its run, some after so much of a run's time. Some
take Postgres with them, as a power cut would; now and then Postgres or the processor dies alone under a run. Days are
drawn too: new ones, ones that are done, one killed several times in a row. A failure prints the seed, and where each
run died; the same seed draws the same days and moments, though no machine repeats the very instant.
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
MATCH_DAYS = 5
DAYS = [FIRST_DAY + timedelta(days=offset) for offset in range(MATCH_DAYS)]
ENDED = {"netted", "cancelled", "failed", "returned", "settled"}
BEFORE, BETWEEN, AFTER = "before its first step", "between steps", "after its last step"


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
        """Say whether every instruction has ended, and as the processor's books have it."""
        states = dict(self.rows("SELECT instruction_id::text, state FROM instruction_states"))
        return set(states.values()) <= ENDED and all(
            payment["status"] == states.get(payment["idempotency_key"]) for payment in self.books()["payments"]
        )

    def books(self) -> dict[str, list[dict[str, Any]]]:
        """Give the processor's own statement of what it carried out."""
        state = keeper.read_state(self.home.path)
        assert state is not None
        key = keeper.sandbox_key_file(self.home.path).read_text("ascii").strip()
        connection = HTTPConnection(state.sandbox_url.removeprefix("http://"), timeout=20)
        try:
            connection.request("GET", "/v1/books", headers={"Authorization": f"Bearer {key}"})
            found: dict[str, list[dict[str, Any]]] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


class Watch:
    """Sees in Dagster's own database how far the newest run has come."""

    def __init__(self, servers: Servers) -> None:
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
            "SELECT (SELECT count(*) FROM event_logs e WHERE e.run_id = r.run_id) FROM runs r WHERE r.id > %s",
            self.newest,
        )
        return found[0][0] if found else None

    def place(self) -> str:
        """Say where that run is, or was when it died: in which step, or before, between or after them."""
        steps = self.ask(
            """SELECT e.step_key, bool_or(e.dagster_event_type IN ('STEP_SUCCESS', 'STEP_FAILURE'))
               FROM event_logs e JOIN runs r USING (run_id) WHERE r.id > %s AND e.step_key IS NOT NULL
               GROUP BY 1 HAVING bool_or(e.dagster_event_type = 'STEP_START')""",
            self.newest,
        )
        within = [step for step, ended in steps if not ended]
        if within:
            return str(within[0])
        return BEFORE if not steps else AFTER if "reconciliation" in dict(steps) else BETWEEN


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
    """Draws days and moments, kills, and writes down what was hit."""

    home: Home
    draw: random.Random
    kills: int = 0
    places: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    day: date = FIRST_DAY
    whole_s: float = 0
    working_s: float = 0
    events: int = 0

    def __post_init__(self) -> None:
        self.servers = Servers(self.home)

    def measure(self) -> None:
        """Run a day to its end, to know how long that takes here and how many events it stores."""
        self.home.rows("run", "--date", str(FIRST_DAY))
        with Watch(self.servers) as watch:
            started, begun = time.monotonic(), 0.0
            run = Run(self.home, FIRST_DAY)
            while run.process.poll() is None:
                begun = begun or (time.monotonic() if watch.events() else 0.0)
                time.sleep(0.005)
            assert run.wait() == 0, run.said.read_text()
            ended = time.monotonic()
            self.whole_s, self.working_s, self.events = ended - started, ended - begun, watch.events() or 0

    def moments(self) -> Callable[[Watch, float], bool]:
        """Draw a moment; gives whether it has come, asked with the watch and the time since the start."""
        how = self.draw.random()
        if how < 0.15:
            at = self.draw.uniform(0, self.whole_s)
            return lambda _watch, now: now >= at
        after = self.draw.randrange(self.events) if how < 0.6 else 0
        more = self.draw.uniform(0, 0.03 if how < 0.6 else self.working_s)
        begun: list[float] = []

        def come(watch: Watch, now: float) -> bool:
            if not begun:
                events = watch.events()
                if events is None:
                    time.sleep(0.03)  # it is starting: that takes a while
                elif events >= after:
                    begun.append(now)
            return bool(begun) and now >= begun[0] + more

        return come

    @contextmanager
    def next_run(self) -> Iterator[tuple[Run, Watch]]:
        """Start a run of a day that is drawn, and give it at a moment that is drawn."""
        if self.draw.random() < 0.7:  # else the same once more
            self.day = self.draw.choice(DAYS)
        come = self.moments()
        with Watch(self.servers) as watch:
            started = time.monotonic()
            run = Run(self.home, self.day)
            while run.process.poll() is None and not come(watch, time.monotonic() - started):
                time.sleep(0.005)
            yield run, watch

    def kill_one(self) -> None:
        """Kill a run; one that was quicker counts for nothing."""
        with self.next_run() as (run, watch):
            killed = run.kill()
            place = watch.place()
        self.write_down(place if killed else "done")
        self.kills += killed
        self.places[place] += killed

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
        self.write_down(place, "with Postgres")
        self.kills += killed
        self.places[place] += killed

    def kill_a_server(self) -> None:
        """Kill a server under a run that is left to itself."""
        server = self.draw.choice(["Postgres", "sandbox"])
        with self.next_run() as (run, watch):
            place = watch.place()
            self.servers.kill_postgres() if server == "Postgres" else self.servers.kill_sandbox()
            self.write_down(place, f"{server} alone; the run ended with {run.ends_in_words()}")

    def write_down(self, place: str, more: str = "") -> None:
        self.told.append(f"{self.kills:3} {self.day} {place} {more}")
        eventually(self.servers.answer)
        if keeper.read_state(self.home.path) is None:  # killed so often in so short a time, a server is given up
            self.home.run("status")
            self.told.append("    servers started anew by a command")


@pytest.fixture
def killer(home: Home, tmp_path: Path) -> Iterator[Killer]:
    write_sample_season(
        tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=MATCH_DAYS, seed=23
    )
    home.point_at(tmp_path)
    seed = random.SystemRandom().randrange(10**9) if SEED is None else SEED
    killer = Killer(home, random.Random(seed))
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
    steps = set(killer.places) - {BEFORE, BETWEEN, AFTER}
    assert killer.places[BEFORE] > 0
    assert len(steps) >= 6, killer.places

    killed_at = time.monotonic()
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


def _carried_out_once(servers: Servers) -> None:
    """By the processor's own books: what it has are our instructions, each once, for our amounts."""
    ours = {
        row[0]: row[1:]
        for row in servers.rows(
            """SELECT i.instruction_id::text, i.direction, i.amount_minor, i.currency, s.state,
                      EXISTS (SELECT FROM payout_attempt_outcomes o WHERE o.instruction_id = i.instruction_id
                              AND o.outcome = 'rejected') AS rejected,
                      EXISTS (SELECT FROM payout_attempts a WHERE a.instruction_id = i.instruction_id) AS sent
               FROM payout_instructions i JOIN instruction_states s USING (instruction_id)"""
        )
    }
    books = servers.books()
    assert books["scheduled"] == []
    carried_out = Counter(payment["idempotency_key"] for payment in books["payments"])
    assert set(carried_out.values()) == {1}
    assert set(carried_out) == {key for key, (*_, rejected, sent) in ours.items() if sent and not rejected}
    for payment in books["payments"]:
        direction, amount_minor, currency, state, *_ = ours[payment["idempotency_key"]]
        assert (payment["direction"], payment["amount_minor"], payment["currency"]) == (
            direction,
            amount_minor,
            currency,
        )
        assert payment["status"] == state
        assert payment["times_settled"] == (state != "failed")
    assert sum(state == "settled" for *_, state, _, _ in ours.values()) > 100


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
