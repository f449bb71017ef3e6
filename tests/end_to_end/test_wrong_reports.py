"""Reports that are wrong in what they say, over HTTP into the assets of settlement: no cent is lost or posted twice.

A day has been run, and each of its four payouts is with the sandbox, to be carried out on the next. What is expected is
read from the sandbox's own books, from Postgres, and from what `verify` says.
"""

import datetime as dt
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from money_zone import DAY, NEXT, POLICY, RUN, SANDBOX, MoneyZone
from sandbox_process import API_KEY, SandboxProcess, running_sandbox

from payments_pipeline.day_runs import DayFailedError, DayRuns
from payments_pipeline.definitions import build_defs
from payments_pipeline.defs import resources
from payments_pipeline.defs.io_managers import PostgresIOManager
from payments_pipeline.defs.jobs import TAKE_REPORT_IN
from payments_pipeline.domain.proposals import Match
from payments_pipeline.local import postgres
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor
from payments_pipeline.settings import Settings
from payments_pipeline.storage import approvals
from payments_pipeline.storage.postgres import close_connections
from payments_pipeline.verify import verify

THIRD = NEXT + dt.timedelta(days=1)
OVERDUE = NEXT + dt.timedelta(days=POLICY.dispatch.overdue_days)
PARTIES = """party_id,party_type,name,country,status,payout_token,collection_token
A,club,A,GB,active,{A},
B,club,B,GB,active,{B},
org,organiser,Org,GB,active,{org},
ref,referee,Ref,GB,active,{ref},
"""
COMPETITIONS = """competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy
c1,Cup,org,,,GBP,immediate
"""
SCHEDULES = """competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
c1,v1,2024-01-01,,1,revenue,each_referee,fixed,1000,,
c1,v1,2024-01-01,,2,revenue,organiser,percent,1000,,
c1,v1,2024-01-01,,3,revenue,home_club,remainder,2,,
c1,v1,2024-01-01,,4,revenue,away_club,remainder,1,,
"""
RESULTS = """match_id,competition_id,kicked_off_at,home_club_id,away_club_id,status,home_score,away_score,revenue_minor
m-{day},c1,{day}T15:00:00+01:00,A,B,completed,1,0,10000
"""
#: What the day owes; all of it is sent.
OWED = {"A": 5400, "B": 2700, "org": 900, "ref": 1000}
PLAIN = {party: f"tok_{party}" for party in OWED}
STRANGE = PLAIN | {"A": "tok_test_over_50", "B": "tok_test_in_EUR", "ref": "tok_test_twice"}
SETTLED = dict.fromkeys(OWED, "settled")
#: The ledger once all is paid.
ALL_PAID = {("cash:sandbox", "GBP"): -10_000, ("pot:c1", "GBP"): 10_000}
ALL_SENT = {("in_transit:sandbox", "GBP"): -10_000, ("pot:c1", "GBP"): 10_000}


@dataclass(frozen=True)
class World:
    """The day's books and files, the processor's, and the jobs over both."""

    folder: Path
    url: str
    approver_url: str
    sandbox: SandboxProcess
    instance: dg.DagsterInstance

    @property
    def zone(self) -> MoneyZone:
        return MoneyZone(self.url)

    @property
    def settings(self) -> Settings:
        return Settings(home=self.folder, config=None, start_date=DAY)

    @property
    def runs(self) -> DayRuns:
        given = {
            "money_zone": resources.MoneyZone(named_url=self.url, policy_json=POLICY.model_dump_json()),
            "gateway": resources.PayoutGateway(name=SANDBOX, named_url=self.sandbox.url, named_key=API_KEY),
            "postgres": PostgresIOManager(url=self.url),
        }
        return DayRuns(build_defs(self.settings, given), self.instance, self.url, "joe")

    def land(self, day: dt.date) -> None:
        played = f"match_id,party_id,club_id,role\nm-{day},ref,,referee\n"
        for name, text in (("match_results", RESULTS.format(day=day)), ("match_participants", played)):
            path = self.folder / "landing" / name / f"date={day}" / "a.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")

    def settle(self, day: dt.date = NEXT) -> set[str]:
        """Take a date's report in and reconcile, as the job does; gives the checks that fail."""
        result = self.runs._execute(TAKE_REPORT_IN, day)
        return {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}

    def refused(self, take_in: Callable[[], object] | None = None) -> str:
        """Have the report refused; gives the run's words."""
        with pytest.raises(DayFailedError) as refusal:
            (take_in or self.settle)()
        return str(refusal.value)

    def grown(self) -> list[dt.date]:
        return self.runs.take_grown_reports_in(SandboxProcessor(self.sandbox.url, API_KEY), SANDBOX)

    def entry(self, party: str) -> str:
        """Reference of the line of the party's payout."""
        key = self.zone.instruction(party)
        [reference] = {
            line["entry_reference"] for line in self.sandbox.entries(str(NEXT)) if line["idempotency_key"] == key
        }
        return str(reference)

    def write(self, key: str, kind: str, amount_minor: int, day: dt.date = NEXT, **other: Any) -> str:
        """Have the processor book a line of its own; gives its reference."""
        line = {"kind": kind, "amount_minor": amount_minor, "currency": "GBP", "date": str(day)} | other
        status, answer = self.sandbox.call("POST", "/v1/test_helpers/entries", line, key=key)
        assert status == 201, answer
        return str(answer["entry_reference"])

    def match(self, *references: str, day: dt.date = THIRD) -> None:
        """One person says what lines were for, another accepts."""
        for reference in references:
            found = Match(SANDBOX, reference, "fees:sandbox")
            identity = approvals.propose(self.url, found, "a mail of the processor's", "jane")
            approvals.decide(self.approver_url, identity, "accepted", "seen")
        assert approvals.carry_out_accepted(self.url, day, RUN).waiting == {}

    def states(self) -> dict[str, str]:
        return {party.split()[0]: state for party, state in self.zone.states().items()}

    def ledger(self) -> dict[tuple[str, str], int]:
        """Each account's balance, debits less credits, by currency."""
        rows = self.zone.rows(
            """SELECT account, currency, (sum(debit_minor) - sum(credit_minor))::bigint FROM ledger_entries
               GROUP BY 1, 2 HAVING sum(debit_minor) <> sum(credit_minor)"""
        )
        return {(account, currency): minor for account, currency, minor in rows}

    def breaks(self, day: dt.date = NEXT) -> dict[str, tuple[int, str]]:
        """The day's breaks: difference and words by account, instruction or entry."""
        rows = self.zone.rows(
            """SELECT subject_id, difference_minor, words FROM reconciliation
               WHERE report_date = %s AND status = 'break'""",
            day,
        )
        return {subject: (minor, words) for subject, minor, words in rows}

    def broken(self) -> dict[str, str]:
        """The rules that `verify` finds broken, and what it says."""
        return {found.rule: " ".join(found.breaches) for found in verify(self.url, self.settings) if not found.ok}

    def books_all_that_moved_once(self) -> None:
        """The ledger's cash is the processor's own, each line is booked once, and each party is owed the rest."""
        own = {row["currency"]: row["closing_minor"] for row in self.sandbox.get("/v1/books")["balances"]}
        cash = {currency: minor for (account, currency), minor in self.ledger().items() if account == "cash:sandbox"}
        assert cash == {currency: minor for currency, minor in own.items() if minor}
        for table in ("report_lines", "journals"):
            counted = f"SELECT count(entry_reference), count(DISTINCT entry_reference) FROM {table}"
            [(all_of_them, different)] = self.zone.rows(counted)
            assert all_of_them == different
        assert self.zone.party_balances_disagree() == []


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@dataclass(frozen=True)
class Begun:
    """What a day left behind that was run once for all tests of this module: each goes on from a copy."""

    server: Any  # of tests/conftest.py
    instance: dg.DagsterInstance
    folder: Path
    database: str

    @contextmanager
    def world(self, folder: Path, database: str) -> Iterator[World]:
        url = self.server.url(postgres.RUNTIME, database)
        with running_sandbox(folder / "sandbox") as sandbox:
            yield World(folder, url, self.server.url(postgres.APPROVER, database), sandbox, self.instance)

    @contextmanager
    def again(self, folder: Path) -> Iterator[World]:
        """Go on from a copy."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        close_connections()  # nobody is connected to a database that is copied
        with (
            self.server.new_database(postgres.MIGRATOR, template=self.database) as name,
            self.world(folder, name) as world,
        ):
            yield world


@contextmanager
def begun(
    server: Any, template: str, instance: dg.DagsterInstance, folder: Path, tokens: Mapping[str, str]
) -> Iterator[Begun]:
    """Run the day."""
    (folder / "reference").mkdir()
    for name, text in (
        ("parties", PARTIES.format(**tokens)),
        ("competitions", COMPETITIONS),
        ("fee_schedules", SCHEDULES),
    ):
        (folder / "reference" / f"{name}.csv").write_text(text, "utf-8")
    with server.new_database(postgres.MIGRATOR, template=template) as name:
        found = Begun(server, instance, folder, name)
        with found.world(folder, name) as world:
            world.land(DAY)
            world.runs.run(DAY)
            assert world.states() == dict.fromkeys(OWED, "submitted")
        yield found


@pytest.fixture(scope="module")
def plain(
    postgres_server: Any,
    migrated_template: str,
    instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Begun]:
    """Payouts that settle."""
    with begun(postgres_server, migrated_template, instance, tmp_path_factory.mktemp("plain"), PLAIN) as found:
        yield found


@pytest.fixture(scope="module")
def strange(
    postgres_server: Any,
    migrated_template: str,
    instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Begun]:
    """A is paid 50 too much, B in euro, the referee's line is listed twice."""
    with begun(postgres_server, migrated_template, instance, tmp_path_factory.mktemp("strange"), STRANGE) as found:
        yield found


@pytest.fixture
def world(plain: Begun, tmp_path: Path) -> Iterator[World]:
    with plain.again(tmp_path) as world:
        yield world


@pytest.fixture
def strange_world(strange: Begun, tmp_path: Path) -> Iterator[World]:
    with strange.again(tmp_path) as world:
        yield world


def failed_check(world: World, name: str) -> dg.AssetCheckEvaluation:
    """Give the newest result of a check of `NEXT`, by `asset:check`; it must have failed."""
    asset, _, check = name.partition(":")
    key = dg.AssetCheckKey(dg.AssetKey(asset), check)
    history = world.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    evaluation = history[0].event and history[0].event.asset_check_evaluation
    assert evaluation is not None
    assert not evaluation.passed
    return evaluation


# Cash that is not what was instructed


@pytest.mark.rule("accounts/suspense")
def test_cash_of_a_key_that_nobody_sent_and_of_kind_other_is_in_suspense_until_a_person_says_what_it_was(
    world: World,
) -> None:
    nobodys = world.write("n", "settled", -77, idempotency_key="nobody")
    other = world.write("o", "other", 31, subject="see our letter")
    for _ in range(2):
        assert world.settle() == {"all_matched", "no_breaks"}
        assert world.states() == SETTLED
        assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -10_046, ("suspense", "GBP"): 46}
        world.books_all_that_moved_once()
    words = "a report line that belongs to no instruction: {}; its cash is in suspense"
    assert world.breaks() == {
        nobodys: (-77, words.format("no instruction was sent under its key")),
        other: (31, words.format("nothing is known of it")),
    }
    [(rule, said)] = world.broken().items()
    assert rule == "no money is in suspense"
    for line, minor in ((nobodys, -77), (other, 31)):
        assert f"{minor} GBP in suspense of entry {line} of sandbox: match the report line" in said
    # The next day's report is in order, and the breaks stay.
    world.settle(THIRD)
    assert world.breaks(THIRD).keys() == {nobodys, other}
    world.match(nobodys, other)
    assert world.settle(THIRD) == set()
    assert world.settle() == {"no_breaks"}, "matched by now, though not by the end of that day"
    assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -10_046, ("fees:sandbox", "GBP"): 46}
    world.books_all_that_moved_once()
    assert world.broken() == {}


@pytest.mark.rule("accounts/overpaid")
def test_what_one_line_pays_beyond_its_instruction_is_told_on_its_day_and_taken_from_the_next_payout(
    strange_world: World,
) -> None:
    world = strange_world
    assert "no_breaks" in world.settle()
    assert world.states()["A"] == "settled"
    assert world.breaks()[world.zone.instruction("A")] == (
        50,
        "5400 should have moved by now and 5450 has, in the instruction's direction: ask the processor",
    )
    assert world.zone.open_items() == {"A": -50}
    world.books_all_that_moved_once()
    world.land(THIRD)
    world.runs.run(THIRD)
    assert world.zone.rows(
        "SELECT amount_minor FROM payout_instructions WHERE party_id = 'A' AND sweep_day = %s", THIRD
    ) == [(OWED["A"] - 50,)]
    assert world.zone.open_items() == {}
    assert world.zone.instruction("A") not in world.breaks(THIRD)
    assert world.broken().keys() == {"no money is in suspense"}, "the euro of B"


@pytest.mark.rule("always/currencies-apart")
def test_a_line_in_another_currency_settles_nothing_and_is_a_break_until_it_is_put_right(strange_world: World) -> None:
    world = strange_world
    key, line = world.zone.instruction("B"), world.entry("B")
    assert world.settle() == {"all_matched", "no_breaks"}
    assert world.states() == SETTLED | {"B": "submitted"}
    assert world.breaks()[line] == (
        -2700,
        "a report line that belongs to no instruction: its currency is not its instruction's; its cash is in suspense",
    )
    sent = {("cash:sandbox", "EUR"): -2700, ("suspense", "EUR"): 2700, ("in_transit:sandbox", "GBP"): -2700}
    assert sent.items() <= world.ledger().items()
    world.books_all_that_moved_once()
    assert world.zone.open_items() == {"A": -50}, "nothing of B is free to be paid once more"
    assert "-2700 EUR in suspense" in world.broken()["no money is in suspense"]
    world.settle(OVERDUE)
    assert world.breaks(OVERDUE).keys() == {line, key}
    assert world.breaks(OVERDUE)[key] == (
        -2700,
        f"asked for {NEXT}, and no report says what became of it: ask the processor",
    )
    # The processor takes the euro back and pays what it was asked for.
    day = OVERDUE + dt.timedelta(days=1)
    back = world.write("back", "returned", 2700, day, idempotency_key=key, currency="EUR")
    world.write("paid", "settled", -2700, day, idempotency_key=key)
    assert world.settle(day) == {"all_matched", "no_breaks"}
    assert world.states() == SETTLED
    assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -10_050, ("party:A", "GBP"): 50}
    assert world.breaks(day).keys() == {line, back}, "each until a person has said what it was"
    said = world.broken()["no money is in suspense"]
    for each, minor in ((line, -2700), (back, 2700)):
        assert f"{minor} EUR in suspense of entry {each} of sandbox: match the report line" in said
    world.match(line, back, day=day)
    assert "no_breaks" not in world.settle(day)
    world.books_all_that_moved_once()
    assert world.broken() == {}


@pytest.mark.rule("always/late-and-twice")
def test_a_line_that_stands_twice_in_a_report_moves_its_cash_once(strange_world: World) -> None:
    world = strange_world
    line = world.entry("ref")
    assert [entry["entry_reference"] for entry in world.sandbox.entries(str(NEXT))].count(line) == 2
    for _ in range(2):
        world.settle()
        assert world.states()["ref"] == "settled"
        cash = "SELECT credit_minor FROM ledger_entries JOIN journals USING (journal_id) WHERE entry_reference = %s"
        assert world.zone.rows(f"{cash} AND account = 'cash:sandbox'", line) == [(OWED["ref"],)]
        world.books_all_that_moved_once()
    assert line not in world.breaks()
    assert world.zone.instruction("ref") not in world.breaks()


# Reports that are not what moved


@pytest.mark.rule("settlement/same-reference")
def test_a_line_that_comes_again_with_another_amount_is_refused_by_name_and_its_report_waits(world: World) -> None:
    line = world.entry("A")
    world.settle()
    world.sandbox.fault("alters", entry_reference=line, minor=-50)
    world.write("f", "fee", -5)
    for take_in in (world.settle, world.grown):
        words = world.refused(take_in)
        assert f"entry {line} was taken in on {NEXT} as settled of -5400 GBP" in words
        assert f"the report of {NEXT} gives it as settled of -5450 GBP" in words
        assert "Nothing of the report was posted. Ask the processor which holds." in words
        assert world.ledger() == ALL_PAID, "not even the fee"
    # The balances of the days to come have it too.
    world.settle(THIRD)
    minor, words = world.breaks(THIRD)["cash:sandbox"]
    assert minor == -55
    assert "the ledger's cash is -10000, the processor's closing balance -10055" in words
    assert f"entry {line}: taken in with amount_minor -5400, reported as -5450; ask the processor" in " ".join(
        world.broken().values()
    )
    world.sandbox.behave()
    assert [world.settle(day) for day in (NEXT, THIRD)] == [set(), set()]
    assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -10_005, ("fees:sandbox", "GBP"): 5}
    world.books_all_that_moved_once()
    assert world.broken() == {}


def test_a_report_that_lacks_lines_settles_what_it_has_and_takes_in_the_rest_once_it_has_grown(world: World) -> None:
    withheld = {party: world.entry(party) for party in ("A", "ref")}
    for line in withheld.values():
        world.sandbox.fault("withholds", entry_reference=line)
    for day in (NEXT, THIRD):
        assert world.settle(day) == set()
    assert world.states() == SETTLED | dict.fromkeys(withheld, "submitted")
    assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -3600, ("in_transit:sandbox", "GBP"): -6400}
    assert world.zone.open_items() == {}
    assert world.broken() == {}
    # Were it never to grow, it would be told.
    world.settle(OVERDUE)
    told = f"asked for {NEXT}, and no report says what became of it: ask the processor"
    assert world.breaks(OVERDUE) == {world.zone.instruction(party): (-OWED[party], told) for party in withheld}
    world.sandbox.behave()
    assert world.grown() == [NEXT]
    assert world.states() == SETTLED
    assert world.ledger() == ALL_PAID
    for day in (THIRD, OVERDUE):
        assert world.settle(day) == set()
    world.books_all_that_moved_once()
    assert world.broken() == {}


@pytest.mark.rule("settlement/grown-taken-in")
def test_a_grown_report_that_is_refused_holds_up_no_other_that_has_grown(world: World) -> None:
    assert [world.settle(day) for day in (NEXT, THIRD)] == [set(), set()]
    world.sandbox.fault("alters", entry_reference=world.entry("A"), minor=-50)
    world.write("f", "fee", -5, THIRD)
    words = world.refused(world.grown)
    assert words.startswith(f"{NEXT} failed at settlement_records: ")
    assert str(THIRD) not in words
    assert world.ledger() == ALL_PAID | {("cash:sandbox", "GBP"): -10_005, ("fees:sandbox", "GBP"): 5}
    world.sandbox.behave()
    assert world.grown() == []
    world.books_all_that_moved_once()


def test_a_line_that_was_taken_in_and_is_gone_from_the_report_stands_and_is_named(world: World) -> None:
    line = world.entry("A")
    world.settle()
    world.sandbox.fault("withholds", entry_reference=line)
    for _ in range(2):
        words = world.refused()
        assert "settlement_records: equal_reports: 1 of 3: the report and the records of this date differ" in words
        assert "what was posted of it stands, and the processor mends it" in words
        said = failed_check(world, "settlement_records:equal_reports")
        assert f"| {line} | -5400 | GBP | the records alone |" in str(said.metadata["rows"].value)
        assert (world.states(), world.ledger()) == (SETTLED, ALL_PAID)
    assert f"entry {line}: reported nowhere, taken in {NEXT} as settled of -5400 GBP" in " ".join(
        world.broken().values()
    )
    world.sandbox.behave()
    assert world.grown() == [NEXT]
    assert world.settle(THIRD) == set()
    world.books_all_that_moved_once()
    assert world.broken() == {}


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("misbalances", {"minor": 7}, "its GBP balance opens at 0 and closes at -9993, and its entries move -10000"),
        ("mislabels", {}, "kind 'adjustment' is not known"),
        ("contradicts", {"minor": -50}, "ask the processor which of these lines holds"),
    ],
)
def test_a_report_that_cannot_be_relied_on_is_taken_in_no_part_of_it_and_waits_until_it_can(
    world: World, kind: str, fields: dict[str, Any], told: str
) -> None:
    line = world.entry("A")
    named = {"date": str(NEXT)} if kind == "misbalances" else {"entry_reference": line}
    world.sandbox.fault(kind, **named, **fields)
    words = world.refused()
    if kind == "contradicts":
        assert "settlement_reports: schema: " in words
        assert f" of 5: the processor's report is not one that can be taken in: {told}" in words
        said = failed_check(world, "settlement_reports:schema")
        assert line in str(said.metadata["rows"].value)
        assert told in str(said.metadata["cure"].value)
    else:
        assert f"sandbox: the report of {NEXT} cannot be read: {told}. Nothing was taken in." in words
    assert world.states() == dict.fromkeys(OWED, "submitted")
    assert world.ledger() == ALL_SENT
    assert world.zone.open_items() == {}
    assert world.zone.value("SELECT count(*) FROM report_lines") == 0
    # The report of the day after is in order, and its balance says that cash is missing.
    assert world.settle(THIRD) == {"no_breaks"}
    [(minor, words)] = world.breaks(THIRD).values()
    assert minor == -10_000
    assert "cash is 0, the processor's closing balance -10000: a report was not taken in" in words
    assert "run its day again" in words
    world.sandbox.behave()
    assert [world.settle(day) for day in (NEXT, THIRD)] == [set(), set()]
    assert world.states() == SETTLED
    assert world.ledger() == ALL_PAID
    world.books_all_that_moved_once()
    assert world.broken() == {}
