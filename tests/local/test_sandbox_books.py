"""The sandbox's books against a model of them: whatever is asked in whatever order, they agree."""

import asyncio
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sandbox_process import payment

from payments_pipeline.local.sandbox import reports
from payments_pipeline.local.sandbox.answers import Answer
from payments_pipeline.local.sandbox.database import Database, WrongFileError
from payments_pipeline.local.sandbox.payments import Desk
from payments_pipeline.local.sandbox.reports import NO_ENTRIES, Clock
from payments_pipeline.local.sandbox.server import Server

LIFETIME = timedelta(hours=24)
FIRST = date(2024, 3, 1)
KEYS = st.sampled_from(["k1", "k2", "k3"])
DAYS = st.integers(0, 5).map(lambda days: FIRST + timedelta(days=days))
#: Lines of each token, said once more: kind, days after execution, cash of 1000 seen as money moved, copies.
LINES = {
    "tok_club": [("settled", 0, 1000, 1)],
    "tok_test_fail": [("failed", 0, 0, 1)],
    "tok_test_return_2d": [("settled", 0, 1000, 1), ("returned", 2, -1000, 1)],
    "tok_test_short_300": [("settled", 0, 700, 1)],
    "tok_test_over_300": [("settled", 0, 1300, 1)],
    "tok_test_twice": [("settled", 0, 1000, 2)],
    "tok_test_double": [("settled", 0, 1000, 1), ("settled", 0, 1000, 1)],
    "tok_test_lines_f1s0": [("failed", 1, 0, 1), ("settled", 0, 1000, 1)],
}
BODIES = st.builds(
    lambda token, day, direction: orjson.dumps(
        payment(token=token, execute_on=day.isoformat(), direction=direction, amount_minor=1000)
    ),
    st.sampled_from([*LINES, "tok_test_decline", "bad"]),
    DAYS,
    st.sampled_from(["credit", "debit"]),
)


@dataclass
class Model:
    """What the books should hold."""

    answers: dict[str, tuple[bytes, Answer, datetime]] = field(default_factory=dict)
    payments: list[tuple[str, str]] = field(default_factory=list)
    lines: dict[date, list[tuple[str, str | None, int, int]]] = field(default_factory=lambda: defaultdict(list))
    ids: dict[str, list[str]] = field(default_factory=dict)
    dies_on: dict[str, date] = field(default_factory=dict)


class BooksMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.now = datetime(2024, 3, 4, 12, tzinfo=UTC)
        self.today = self.now.date()
        self.follows = True
        self.clock = Clock(lambda: self.now)
        self.desk = Desk(LIFETIME, self.clock)
        self.database = Database(Path(":memory:"))
        self.db = self.database.connection
        self.model = Model()

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()

    def commit(self, work: Any) -> Any:
        [result] = self.database.each_alone([work])
        assert not isinstance(result, Exception)
        return result

    def alive(self, key: str) -> tuple[bytes, Answer] | None:
        kept = self.model.answers.get(key)
        if kept is None or self.now - kept[2] >= LIFETIME or self.today >= self.model.dies_on.get(key, date.max):
            return None
        return kept[:2]

    @rule(key=KEYS, body=BODIES)
    def pay(self, key: str, body: bytes) -> None:
        answer = self.commit(lambda: self.desk.pay(self.db, key, body))
        kept = self.alive(key)
        if kept is not None:
            assert answer == (kept[1] if kept[0] == body else Answer.error("idempotency_key_reuse"))
            return
        content = orjson.loads(body)
        self.model.answers[key] = (body, answer, self.now)
        self.model.ids[key] = []
        self.model.dies_on.pop(key, None)
        if content["token"] not in LINES:
            code = "account_closed" if content["token"] == "tok_test_decline" else "invalid_token"
            assert orjson.loads(answer.body)["error"]["code"] == code
            return
        assert answer.status == 201
        self.carried_out(key, orjson.loads(answer.body)["id"], content)

    def carried_out(self, key: str, payment_id: str, content: dict[str, Any]) -> None:
        self.model.ids[key].append(payment_id)
        self.model.payments.append((payment_id, key))
        for kind, days, moved, copies in LINES[content["token"]]:
            day = date.fromisoformat(content["execute_on"]) + timedelta(days=days)
            cash = -moved if content["direction"] == "credit" else moved
            self.model.lines[day].append((kind, key, cash, copies))

    @rule(key=KEYS)
    def pay_the_same_twice(self, key: str) -> None:
        """What was accepted once stands under the key twice then, and never a third time."""
        kept = self.alive(key)
        if kept is None:
            return
        assert self.commit(lambda: self.desk.pay_twice(self.db, key, kept[0])) == kept[1]
        if len(self.model.ids[key]) == 1:
            statement: Any = reports.statement(self.db, self.today)
            known = {payment_id for payment_id, _ in self.model.payments}
            [second] = {row["id"] for row in statement["payments"] + statement["scheduled"]} - known
            self.carried_out(key, second, orjson.loads(kept[0]))

    @rule(key=KEYS, day=DAYS)
    def expire_on(self, key: str, day: date) -> None:
        alive = self.alive(key) is not None
        assert self.commit(lambda: self.desk.expire(self.db, key, on=day)).status == (200 if alive else 404)
        if alive:
            self.model.dies_on[key] = day

    @rule(key=KEYS, day=DAYS, amount_minor=st.integers(1, 9))
    def fund(self, key: str, day: date, amount_minor: int) -> None:
        content = {"currency": "GBP", "amount_minor": amount_minor, "subject": "pot:a", "date": day.isoformat()}
        body = orjson.dumps(content)
        before = self.model.answers.get(f"funding {key}")
        answer = self.commit(lambda: self.desk.fund(self.db, key, body))
        if before and self.now - before[2] < LIFETIME:
            assert answer == (before[1] if before[0] == body else Answer.error("idempotency_key_reuse"))
            return
        assert answer.status == 201
        self.model.answers[f"funding {key}"] = (body, answer, self.now)
        self.model.lines[day].append(("funding", None, amount_minor, 1))

    @rule(key=KEYS, day=DAYS, kind=st.sampled_from(["other", "settled"]), named=st.sampled_from([None, "k1", "nobody"]))
    def write_line(self, key: str, day: date, kind: str, named: str | None) -> None:
        content = {"kind": kind, "amount_minor": -5, "currency": "GBP", "date": str(day), "idempotency_key": named}
        body = orjson.dumps(content)
        before = self.model.answers.get(f"line {key}")
        answer = self.commit(lambda: self.desk.write_line(self.db, key, body))
        if before and self.now - before[2] < LIFETIME:
            assert answer == (before[1] if before[0] == body else Answer.error("idempotency_key_reuse"))
            return
        assert answer.status == 201
        self.model.answers[f"line {key}"] = (body, answer, self.now)
        self.model.lines[day].append((kind, named, -5, 1))

    @rule(key=KEYS)
    def expire(self, key: str) -> None:
        answer, alive = self.commit(lambda: self.desk.expire(self.db, key)), self.alive(key) is not None
        assert answer.status == (200 if alive else 404)
        if alive:
            del self.model.answers[key]

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        if self.follows:
            self.today = self.now.date()

    @rule(day=DAYS)
    def set_today(self, day: date) -> None:
        self.commit(lambda: self.clock.set_today(self.db, day))
        self.today, self.follows = day, False

    @precondition(lambda self: not self.follows)
    @rule()
    def follow_the_machine(self) -> None:
        self.commit(lambda: self.clock.set_today(self.db, None))
        self.today, self.follows = self.now.date(), True

    @rule(key=KEYS)
    def look_up(self, key: str) -> None:
        answer = self.desk.look_up(self.db, key)
        content, kept = orjson.loads(answer.body), self.alive(key)
        if kept is None:
            assert (answer.status, content["error"]["code"]) == (404, "never_seen")
            return
        assert content["body_sha256"] == hashlib.sha256(kept[0]).hexdigest()
        assert content["status"] == ("accepted" if kept[1].status == 201 else "rejected")
        ids = self.model.ids[key]
        assert content.get("ids", [content["id"]] if "id" in content else []) == ids
        assert ("ids" in content) == (len(ids) > 1)

    @invariant()
    def reports_say_what_has_come_to_pass(self) -> None:
        if not hasattr(self, "database"):
            return
        assert self.clock.today(self.db) == self.today
        listed = reports.list_reports(self.db, date(1970, 1, 1), date(2999, 12, 31), self.today)["reports"]
        digests = {row["date"]: (row["entry_count"], row["digest"]) for row in listed}  # type: ignore[attr-defined]
        total, references = 0, set()
        for offset in range(10):
            day = FIRST + timedelta(days=offset)
            report: Any = reports.report(self.db, day, self.today)
            expected = sorted(self.model.lines[day], key=str) if day <= self.today else []
            found = report["entries"]
            unique = {entry["entry_reference"]: entry for entry in found}
            assert not references & unique.keys()
            references |= unique.keys()
            copies = [sum(other is entry or other == entry for other in found) for entry in unique.values()]
            assert expected == sorted(
                (
                    (e["kind"], e["idempotency_key"], e["amount_minor"], n)
                    for e, n in zip(unique.values(), copies, strict=True)
                ),
                key=str,
            )
            totals: Counter[str] = Counter()
            for entry in unique.values():
                totals[entry["batch_reference"]] += entry["amount_minor"]
            assert {batch["batch_reference"]: batch["total_minor"] for batch in report["batches"]} == totals
            assert len(totals) == len({line[0] for line in expected})
            values = [[entry[name] for name in entry if name != "batch_reference"] for entry in found]
            digest = sum(int(hashlib.sha256(orjson.dumps(each)).hexdigest(), 16) for each in values) % 2**256
            assert digests.get(day.isoformat(), (0, NO_ENTRIES)) == (len(found), f"{digest:064x}")
            assert (report["entry_count"], report["digest"]) == (len(found), f"{digest:064x}")
            cash = sum(line[2] for line in expected)
            assert [(b["opening_minor"], b["closing_minor"]) for b in report["balances"]] in (
                [(total, total + cash)],
                [] if total == cash == 0 else None,
            )
            total += cash

    @invariant()
    def what_was_accepted_is_carried_out_and_nothing_else(self) -> None:
        if hasattr(self, "database"):
            statement: Any = reports.statement(self.db, self.today)
            both = statement["payments"] + statement["scheduled"]
            assert sorted((row["id"], row["idempotency_key"]) for row in both) == sorted(self.model.payments)
            assert all(row["execute_on"] <= self.today.isoformat() for row in statement["payments"])
            assert all(row["execute_on"] > self.today.isoformat() for row in statement["scheduled"])


TestBooks = BooksMachine.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def report_after(keys: list[str]) -> Any:
    database = Database(Path(":memory:"))
    desk = Desk(LIFETIME, Clock())
    try:
        for key in keys:
            desk.pay(database.connection, key, orjson.dumps(payment(reference=key, token="tok_test_double")))
        return reports.report(database.connection, date(2024, 3, 2), date(2024, 3, 2))
    finally:
        database.close()


def test_the_same_requests_in_another_order_have_the_same_references_and_digests() -> None:
    assert report_after(["a", "b", "c"]) == report_after(["c", "a", "b"])


def test_one_requests_fault_harms_no_other_of_its_commit(tmp_path: Path) -> None:
    database = Database(tmp_path / "sandbox.db")
    desk = Desk(LIFETIME, Clock())

    def broken() -> Answer:
        database.connection.execute("INSERT INTO clock VALUES ('2024-01-01')")
        raise ZeroDivisionError

    def pay(key: str) -> Answer:
        return desk.pay(database.connection, key, orjson.dumps(payment()))

    with pytest.raises(ZeroDivisionError):
        database.do([lambda: pay("a"), broken, lambda: pay("b")])
    assert reports.statement(database.connection, date(2024, 3, 2))["payments"] == []
    first, fault, last = database.each_alone([lambda: pay("a"), broken, lambda: pay("b")])
    assert isinstance(fault, ZeroDivisionError)
    assert [getattr(first, "status", 0), getattr(last, "status", 0)] == [201, 201]
    assert desk.clock.now().date() == desk.clock.today(database.connection)
    assert len(reports.statement(database.connection, date(2024, 3, 2))["payments"]) == 2  # type: ignore[arg-type]
    database.close()


def test_a_strange_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database, but somebody's notes " * 50)
    with pytest.raises(WrongFileError, match="move this one away"):
        Database(file)
    assert file.read_text().startswith("not a database")


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.db"
    database = Database(file)
    database.connection.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(WrongFileError, match="another version"):
        Database(file)


def test_a_file_of_the_version_before_is_brought_up_to_date_with_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.db"
    desk, body = Desk(LIFETIME, Clock()), orjson.dumps(payment())
    database = Database(file)
    before = desk.pay(database.connection, "k", body)
    told = reports.report(database.connection, date(2024, 3, 2), date(2024, 3, 2))
    for statement in (
        "DROP TABLE key_ends",
        "DROP TABLE misreports",
        "DROP TABLE daily_cash",
        "CREATE TABLE daily_cash (report_date TEXT NOT NULL, currency TEXT NOT NULL, amount_minor INTEGER NOT NULL)",
        "INSERT INTO daily_cash VALUES ('2024-03-02', 'GBP', -12345)",
        "PRAGMA user_version = 2",
    ):
        database.connection.execute(statement)
    database.close()
    for _ in range(2):
        database = Database(file)
        assert desk.pay(database.connection, "k", body) == before
        assert reports.report(database.connection, date(2024, 3, 2), date(2024, 3, 2)) == told
        database.close()


def test_every_commit_reaches_the_disk_before_it_is_answered(tmp_path: Path) -> None:
    database = Database(tmp_path / "sandbox.db")
    pragmas = [database.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    database.close()
    assert pragmas == ["wal", 2]  # 2 is FULL: the log is synced at each commit


def test_requests_that_arrive_together_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    do = Database.do

    def recorded(self: Database, works: Any) -> Any:
        together.append(len(works))
        return do(self, works)

    monkeypatch.setattr(Database, "do", recorded)
    server = Server(tmp_path / "sandbox.db", "key", Desk(LIFETIME, Clock()))

    async def post_many() -> set[int]:
        async with TestClient(TestServer(server.application())) as client:
            headers = {"Authorization": "Bearer key"}
            posts = [
                client.post("/v1/payments", json=payment(), headers={**headers, "Idempotency-Key": f"k{number}"})
                for number in range(100)
            ]
            return {response.status for response in await asyncio.gather(*posts)}

    assert asyncio.run(post_many()) == {201}
    assert sum(together) == 100
    assert len(together) < 100
