"""Mistakes that were made elsewhere with other people's money, each held here by name against the real code.

Seen in:

- hyperswitch #2380, #11342: an unknown payment is marked failed and paid again; retries run out and nobody is told;
- spree #14500, gumroad #6620: funds are released while the outcome is unknown, and then paid twice;
- KeeperHub #2495: a partly failed run is resumed and pays legs again that had settled;
- blnk #73: 50 / 45 / the rest does not add up; #61: precision differs between rows; #152: a refund twice is two;
- hordak: 0.02 divided by 3:3:3:1 gives somebody a negative cent;
- stripe-node #2135: a payout cannot be traced to the charge behind it;
- many: `failed` arrives after `paid`; events come twice, late, out of order;
- OCA bank-statement-import #157: a batch's total is used for each of its lines; metasfresh #1947: only the first entry
  of a statement is read;
- banks, from 15 November 2026: a payment is refused for an address without structure, by some for a hybrid one too;
- the prototype of this program: "yesterday" computed once at load time and days off; a query error that leaves a
  promise unresolved for ever; an error path that reports success and failure; a placeholder left in the query of fees;
  the competition missing from the message; any exception, a timeout too, written down as FAILED.

The laws behind them are tested at length where their code is; here stands the mistake itself, as short as it can be.
"""

import asyncio
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dispatches import later
from money_zone import (
    DAY,
    HASHES,
    NEXT,
    POLICY,
    RUN,
    SANDBOX,
    FakeProcessor,
    MoneyZone,
    fee,
    frame,
    line,
    match,
    matches_frame,
    participants_frame,
    parties_frame,
    policy,
    share,
    shares_frame,
)
from sandbox_process import API_KEY, SandboxProcess, running_sandbox

from payments_pipeline import status
from payments_pipeline.day_runs import DayFailedError, DayRuns
from payments_pipeline.definitions import build_defs
from payments_pipeline.defs.automation import build_schedules
from payments_pipeline.defs.io_managers import PostgresIOManager
from payments_pipeline.defs.resources import MoneyZone as MoneyZoneResource
from payments_pipeline.defs.resources import PayoutGateway
from payments_pipeline.domain import schemas
from payments_pipeline.domain.alerts import instructions_in_trouble
from payments_pipeline.domain.allocation import NO_CAP, PERCENT, REMAINDER, Claims, divide
from payments_pipeline.domain.errors import PayoutOutcomeUnknownError, ProcessorUnavailableError
from payments_pipeline.domain.parties import PARTIES as PARTIES_LAYOUT
from payments_pipeline.domain.refund_requests import request_frame
from payments_pipeline.processors.base import SettlementReport
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor
from payments_pipeline.settings import Settings
from payments_pipeline.storage.alerts import LOG_CHANNEL, instructions_waiting, raise_alerts, undelivered
from payments_pipeline.storage.ledger_entries import DayInput, post_day
from payments_pipeline.storage.refunds import accept_refunds
from payments_pipeline.storage.settlement_records import take_report_in

NAMES = ("a", "b", "c")
PARTIES = parties_frame(**{name: {"payout_token": f"tok_{name}"} for name in (*NAMES, "payer")})
DAYS = [DAY + dt.timedelta(days=number) for number in range(6)]


@pytest.fixture
def zone(database_url: str) -> MoneyZone:
    """a, b and c are owed; three payouts are approved and none is sent."""
    zone = MoneyZone(database_url)
    zone.owe(a=600, b=500, c=300)
    zone.sweep(PARTIES)
    return zone


def raising(error: BaseException) -> Callable[[str], Any]:
    def answer(_key: str) -> Any:
        raise error

    return answer


NO_ANSWER = raising(PayoutOutcomeUnknownError("no answer"))
DOWN = raising(ProcessorUnavailableError("503"))


def times_sent(processor: FakeProcessor) -> Counter[str]:
    return Counter(key for key, _ in processor.requests)


# An outcome that nobody knows


def test_an_unknown_payment_is_not_marked_failed_and_paid_again(zone: MoneyZone) -> None:
    processor = FakeProcessor(lose=NO_ANSWER, look=DOWN)
    for day in DAYS:
        zone.sweep(PARTIES, day)
        zone.dispatch(PARTIES, processor, day)
        assert list(zone.states().values()) == ["unknown"] * 3
    processor.look = lambda _key: None  # it answers look-ups again, and has them
    zone.dispatch(PARTIES, processor, DAYS[-1])
    assert list(zone.states().values()) == ["submitted"] * 3
    assert list(times_sent(processor).values()) == [1] * 3


def test_when_retries_run_out_nothing_is_called_failed_and_somebody_is_told(zone: MoneyZone, database) -> None:
    processor = FakeProcessor(answer=DOWN)
    for day in DAYS:
        zone.dispatch(PARTIES, processor, day)
        later(database, days=1)
    assert set(zone.states().values()) == {"unknown"}
    waiting = instructions_waiting(zone.url, overdue_on=NEXT, quiet_s=0)
    raise_alerts(zone.url, [instructions_in_trouble(group) for group in waiting])
    told = {alert.kind: alert for alert in undelivered(zone.url, LOG_CHANNEL)}
    assert set(told) == {"instructions_unknown", "instructions_overdue"}
    for party in NAMES:
        assert zone.instruction(party) in told["instructions_unknown"].body


@pytest.mark.rule("instructions/unknown-stays-locked")
def test_funds_are_not_released_while_the_outcome_is_unknown(zone: MoneyZone) -> None:
    processor = FakeProcessor(lose=NO_ANSWER, look=DOWN)
    zone.dispatch(PARTIES, processor)
    for day in DAYS[1:]:
        assert len(zone.sweep(PARTIES, day).plan.instructions) == 0
    assert zone.open_items() == {}
    assert zone.balances()["in_transit:sandbox"] == -1400
    with (
        psycopg.connect(zone.url, options="-c search_path=payments") as by_hand,
        pytest.raises(psycopg.errors.RestrictViolation, match="is unknown"),
    ):
        by_hand.execute(
            """INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
               SELECT item_id, claim_no, %s, false, 'by hand' FROM instruction_claims""",
            (NEXT,),
        )


@pytest.mark.rule("always/timeout-is-no-failure")
def test_any_exception_a_timeout_too_is_not_written_down_as_failed(zone: MoneyZone) -> None:
    processor = FakeProcessor(answer=raising(TimeoutError("too late")))
    done = zone.dispatch(PARTIES, processor)
    assert done.unknown == 3
    assert "TimeoutError: too late. It may have been carried out" in done.doubts
    assert set(zone.states().values()) == {"unknown"}
    assert zone.open_items() == {}
    processor.answer = lambda _key: None
    zone.dispatch(PARTIES, processor)
    assert set(zone.states().values()) == {"submitted"}
    assert set(processor.taken) == {zone.instruction(name) for name in NAMES}


# A run that got half-way


def test_a_partly_failed_run_that_is_resumed_pays_no_settled_leg_again(zone: MoneyZone) -> None:
    class Died(BaseException):
        pass

    def die_at_the_third(_key: str) -> None:
        if len(processor.requests) == 3:
            raise Died

    processor, one_by_one = FakeProcessor(answer=die_at_the_third), policy(dispatch={"batch_size": 1})
    with pytest.raises(Died):
        zone.dispatch(PARTIES, processor, policy=one_by_one)
    amounts = {zone.instruction(name): -minor for name, minor in (("a", 600), ("b", 500), ("c", 300))}
    settled = set(processor.taken)
    assert len(settled) == 2
    zone.take_in([line(key, amounts[key]) for key in settled])
    processor.answer = lambda _key: None
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, processor)
    zone.dispatch(PARTIES, processor)
    assert {key for key, times in times_sent(processor).items() if times > 1} <= set(amounts) - settled
    assert sorted(zone.states().values()) == ["settled", "settled", "submitted"]
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == 3


# Division


def divided(amount_minor: int, *lines: tuple[int, int]) -> list[int]:
    """Divide one pot between lines of (method, value), one recipient each."""
    rows = [(0, method, number, value, NO_CAP, 1) for number, (method, value) in enumerate(lines, 1)]
    given, left = divide(np.array([amount_minor]), Claims(*np.array(rows, dtype=np.int64).T.copy()))
    assert left.tolist() == [0]
    return [int(part) for part in given]


@pytest.mark.parametrize("amount_minor", [1, 7, 33, 99, 101, 12_345, 999_999_999_999_999])
def test_fifty_forty_five_and_the_rest_add_up(amount_minor: int) -> None:
    parts = divided(amount_minor, (PERCENT, 5000), (PERCENT, 4500), (REMAINDER, 1))
    assert sum(parts) == amount_minor
    assert min(parts) >= 0


def test_a_ratio_split_of_two_cents_over_3_3_3_1_gives_nobody_a_negative_cent() -> None:
    assert divided(2, *((REMAINDER, weight) for weight in (3, 3, 3, 1))) == [1, 1, 0, 0]


def test_precision_is_not_mixed_between_rows_every_amount_is_a_whole_number_of_minor_units(zone: MoneyZone) -> None:
    tables = [value for value in vars(schemas).values() if isinstance(value, schemas.TableSchema)]
    minor = [column for table in tables for column in table.columns if column.name.endswith("_minor")]
    assert len(minor) > 5
    assert {column.type for column in minor} == {pa.int64()}
    stored = zone.rows(
        """SELECT table_name, column_name, data_type FROM information_schema.columns
           WHERE table_schema = 'payments' AND column_name LIKE '%%\\_minor'"""
    )
    assert len(stored) > 10
    assert {kind for _, _, kind in stored} == {"bigint"}


# Refunds


def test_a_refund_twice_is_one(database_url: str) -> None:
    zone = MoneyZone(database_url)
    zone.post([match("m", revenue_minor=0)], fee("m", "payer", {"a": 1000}))
    asked = request_frame("r1", "m", "payer", 400, "rained off", "support")
    decisions = [accept_refunds(zone.url, NEXT, asked, "jane", RUN).decisions["decision"].tolist() for _ in range(2)]
    assert decisions == [["accepted"], ["repeated"]]
    assert zone.open_items() == {"payer": -600, "a": 600}
    other = request_frame("r1", "m", "payer", 500, "rained off", "support")
    assert accept_refunds(zone.url, NEXT, other, "jane", RUN).decisions["decision"].tolist() == ["other_content"]
    assert zone.open_items() == {"payer": -600, "a": 600}


# Whence a cent came


@pytest.mark.rule("always/traced")
def test_a_payout_is_traced_to_the_charge_behind_it(database_url: str) -> None:
    zone = MoneyZone(database_url)
    zone.post([match("m", revenue_minor=0), match("other", revenue_minor=9)], fee("m", "payer", {"a": 1000}))
    zone.sweep(PARTIES)
    zone.dispatch(PARTIES, FakeProcessor())
    paid, charged = zone.instruction("a"), zone.instruction("payer")
    zone.take_in([line(paid, -1000, entry_reference="bank 7"), line(charged, 1000, entry_reference="bank 8")])
    told = status.instruction(zone.url, paid)
    assert [row["entry_reference"] for row in told["report_lines"]] == ["bank 7"]
    [item] = told["items"]
    assert (item["match_id"], item["pot"], item["line_no"], item["amount_minor"]) == ("m", "match_fee", 2, 1000)
    # The pot of the item names who was charged, and the charge is an item of the collection.
    [(payer, minor, by)] = zone.rows(
        """SELECT charge.party_id, charge.debit_minor, claim.instruction_id::text
           FROM ledger_entries item
           JOIN ledger_entries charge USING (match_id, pot, pot_party_id)
           JOIN instruction_claims claim ON claim.item_id = charge.entry_id
           WHERE item.entry_id = %s AND charge.recipient = 'payer'""",
        item["item_id"],
    )
    assert (payer, minor, by) == ("payer", 1000, charged)


# What the processor reports


@pytest.fixture
def sent(zone: MoneyZone) -> MoneyZone:
    """All three payouts are with the processor."""
    zone.dispatch(PARTIES, FakeProcessor())
    return zone


def money(zone: MoneyZone) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    return zone.balances(), zone.open_items(), zone.states()


def test_a_failed_that_arrives_after_paid_gives_nothing_back(sent: MoneyZone) -> None:
    key = sent.instruction("a")
    sent.take_in([line(key, -600)])
    before = money(sent)
    sent.take_in([line(key, 0, "failed")], DAYS[2])
    assert money(sent) == before
    assert sent.states()[f"a {DAY}"] == "settled"
    assert len(sent.sweep(PARTIES, DAYS[3]).plan.instructions) == 0


@pytest.mark.rule("always/late-and-twice")
def test_an_event_that_comes_twice_counts_once(sent: MoneyZone) -> None:
    paid, back = line(sent.instruction("a"), -600), line(sent.instruction("b"), 0, "failed")
    sent.take_in([paid, back, paid])
    before = money(sent)
    sent.take_in([paid, back])
    assert money(sent) == before
    assert sent.balances()["cash:sandbox"] == -600
    assert sent.open_items() == {"b": 500}


@pytest.mark.rule("always/late-and-twice")
def test_an_event_that_comes_late_loses_no_cash(sent: MoneyZone) -> None:
    key = sent.instruction("a")
    sent.take_in([line(key, 0, "failed")])
    [again] = sent.sweep(PARTIES, DAYS[2]).plan.instructions["amount_minor"].tolist()
    assert again == 600
    # Told that it had failed, we owed it again; it had been paid all the same: what is paid beyond is owed to us.
    sent.take_in([line(key, -600)], DAYS[3])
    assert sent.balances()["cash:sandbox"] == -600
    assert sent.open_items() == {"a": -600}
    assert sent.party_balances_disagree() == []


@pytest.mark.rule("always/late-and-twice")
def test_events_out_of_order_come_to_what_they_come_to_in_order(sent: MoneyZone) -> None:
    paid = {name: line(sent.instruction(name), -minor) for name, minor in (("a", 600), ("b", 500))}
    back = {name: line(sent.instruction(name), minor, "returned") for name, minor in (("a", 600), ("b", 500))}
    sent.take_in([paid["a"], back["b"]])
    sent.take_in([back["a"], paid["b"]], DAYS[2])
    assert [sent.states()[f"{name} {DAY}"] for name in ("a", "b")] == ["returned", "returned"]
    assert sent.open_items() == {"a": 600, "b": 500}
    assert sent.balances().get("cash:sandbox", 0) == 0


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with running_sandbox(tmp_path / "sandbox") as sandbox:
        yield sandbox


def reported(zone: MoneyZone, sandbox: SandboxProcess) -> SettlementReport:
    """Send what is approved to the sandbox, and fetch the report of the day on which it is carried out."""
    zone.dispatch(PARTIES, SandboxProcessor(sandbox.url, API_KEY))  # type: ignore[arg-type]  # it does all a fake does

    async def fetch() -> SettlementReport:
        async with SandboxProcessor(sandbox.url, API_KEY) as processor:
            return await processor.report(NEXT)

    return asyncio.run(fetch())


def test_a_batchs_total_is_not_used_for_its_lines_and_every_entry_is_read_not_the_first_alone(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    report = reported(zone, sandbox)
    # The total is there to be mistaken for an amount: it stands beside the lines, and each names its batch.
    told = sandbox.get(f"/v1/reports/{NEXT}")
    [batch] = told["batches"]
    assert (batch["total_minor"], batch["currency"]) == (-1400, "GBP")
    assert [entry["batch_reference"] for entry in told["entries"]] == [batch["batch_reference"]] * 3
    assert sorted(report.lines["amount_minor"]) == [-600, -500, -300]
    take_report_in(zone.url, NEXT, SANDBOX, report.lines, report.balances, report.digest, frozenset(), RUN)
    assert report.balances["closing_minor"].tolist() == [-1400]
    assert set(zone.states().values()) == {"settled"}
    assert zone.rows(
        """SELECT i.party_id, l.amount_minor FROM report_lines l JOIN payout_instructions i USING (instruction_id)
           ORDER BY 1"""
    ) == [("a", -600), ("b", -500), ("c", -300)]
    assert zone.balances() == {"pot:c1": 1400, "cash:sandbox": -1400}


def test_no_payment_can_be_refused_for_its_address_none_leaves_with_one(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    reported(zone, sandbox)
    sent = [json.loads(bytes(request)) for (request,) in zone.rows("SELECT request FROM payout_attempts")]
    assert len(sent) == 3
    for request in sent:
        # The processor knows by its token where a party lives; bank details and addresses are its own to keep.
        assert request.keys() == {"reference", "token", "direction", "amount_minor", "currency", "execute_on"}
        assert request["token"] in {f"tok_{name}" for name in NAMES}
    # And nothing of a party could become one: all that is taken in is its country.
    assert {field.name for field in PARTIES_LAYOUT.fields} == {
        "party_id", "party_type", "name", "country", "status", "payout_token", "collection_token", "token_changed_by",
    }  # fmt: skip


# The prototype's own


def test_yesterday_is_not_computed_once_at_load_time() -> None:
    [schedule] = build_schedules(Settings(config=None, start_date=dt.date(2024, 1, 1)))
    ticks = [dt.datetime(2024, 8, number, 2, tzinfo=dt.UTC) for number in range(17, 22)]  # 03:00 in London
    requests: list[Any] = [schedule(dg.build_schedule_context(scheduled_execution_time=tick)) for tick in ticks]
    assert [request.partition_key for request in requests] == [f"2024-08-{number}" for number in range(16, 21)]


def test_a_query_error_is_raised_at_once_and_holds_up_nobody_for_ever(zone: MoneyZone, database: Any) -> None:
    def lose_the_server() -> dict[str, str]:
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()"""
            )
            # Until each has ended, and its client can know.
            others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            while connection.execute(others).fetchall():
                pass
        return HASHES

    rejected = frame([], {"dataset": "", "outcome": "", "match_id": "", "reason": ""})
    rows = [match("late", match_day=NEXT, revenue_minor=50)], [share("late", "a", 50)]
    read = DayInput(matches_frame(rows[0]), participants_frame([]), shares_frame(rows[1]), rejected, HASHES)
    with pytest.raises(psycopg.OperationalError):
        post_day(zone.url, NEXT, read, lose_the_server, RUN)
    # Whoever comes next does not wait for it: its locks went with its connection.
    assert post_day(zone.url, NEXT, read, lambda: HASHES, RUN).entries == 2


PEOPLE = """party_id,party_type,name,country,status,payout_token,collection_token
club:a,club,A,GB,active,tok_a,tok_a
club:b,club,B,GB,active,tok_b,tok_b
organiser:1,organiser,O,GB,active,tok_o,
player:1,player,P,GB,active,tok_p,tok_p
"""
COMPETITIONS = """competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy
cup,Cup,organiser:1,,,GBP,immediate
league,League,organiser:1,,,GBP,immediate
friendly,Friendly,organiser:1,,,GBP,immediate
"""
SCHEDULES = """competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
cup,v1,2024-07-01,,1,match_fee,each_player,charge,700,,
cup,v1,2024-07-01,,2,match_fee,own_club,remainder,1,,
league,v1,2024-07-01,,1,match_fee,each_player,charge,250,,
league,v1,2024-07-01,,2,match_fee,own_club,remainder,1,,
"""
RESULTS = """match_id,competition_id,kicked_off_at,home_club_id,away_club_id,status,home_score,away_score
m-cup,cup,2024-08-17T15:00:00+01:00,club:a,club:b,completed,1,0
m-league,league,2024-08-17T15:00:00+01:00,club:a,club:b,completed,1,0
m-friendly,friendly,2024-08-17T15:00:00+01:00,club:a,club:b,completed,1,0
"""
PLAYED = """match_id,party_id,club_id,role
m-cup,player:1,club:a,player
m-league,player:1,club:a,player
m-friendly,player:1,club:a,player
"""


@pytest.fixture
def days(database_url: str, tmp_path: Path) -> Iterator[DayRuns]:
    """The whole pipeline on a small landing zone: a cup, a league with another fee, a friendly without any."""
    for name, text in {
        "reference/parties.csv": PEOPLE,
        "reference/competitions.csv": COMPETITIONS,
        "reference/fee_schedules.csv": SCHEDULES,
        f"landing/match_results/date={DAY}/a.csv": RESULTS,
        f"landing/match_participants/date={DAY}/a.csv": PLAYED,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    settings = Settings(home=tmp_path, config=None, start_date=DAY)
    with running_sandbox(tmp_path / "sandbox") as sandbox, dg.DagsterInstance.ephemeral() as instance:
        given = {
            "money_zone": MoneyZoneResource(named_url=database_url, policy_json=POLICY.model_dump_json()),
            "gateway": PayoutGateway(name=SANDBOX, named_url=sandbox.url, named_key=API_KEY),
            "postgres": PostgresIOManager(url=database_url),
        }
        yield DayRuns(build_defs(settings, given), instance, database_url, "joe")


def test_no_placeholder_is_left_in_the_query_of_fees_each_match_is_charged_by_its_own_competition(
    days: DayRuns,
) -> None:
    summary = days.run(DAY)
    assert (summary.matches, summary.shares) == (2, 4)
    charged = MoneyZone(days.url).rows(
        "SELECT match_id, debit_minor FROM ledger_entries WHERE kind = 'accrual' AND recipient = 'payer' ORDER BY 1"
    )
    assert charged == [("m-cup", 700), ("m-league", 250)]


def test_the_competition_is_missing_from_no_message_share_or_rejection(days: DayRuns, tmp_path: Path) -> None:
    assert days.run(DAY).rejected == 2  # the friendly, and who played in it
    stored = {
        name: pq.read_table(next((tmp_path / "storage" / name).rglob("*.parquet"))).to_pylist()
        for name in ("participant_shares", "rejected_records")
    }
    assert {(row["match_id"], row["competition_id"]) for row in stored["participant_shares"]} == {
        ("m-cup", "cup"),
        ("m-league", "league"),
    }
    [told] = [row["words"] for row in stored["rejected_records"] if row["dataset"] == "match_results"]
    assert "friendly" in told
    assert "fee schedule" in told


def test_an_error_path_reports_failure_and_no_success(days: DayRuns, tmp_path: Path) -> None:
    broken = tmp_path / "landing" / "match_results" / f"date={DAY}" / "b.csv"
    broken.write_bytes(b"match_id,competition_id\n\xff\xfe\n")
    with pytest.raises(DayFailedError, match=r"b\.csv"):
        days.run(DAY)
    [run] = days.instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    events = {entry.dagster_event_type for entry in days.instance.all_logs(run.run_id)}
    assert dg.DagsterEventType.RUN_FAILURE in events
    assert dg.DagsterEventType.RUN_SUCCESS not in events
    assert MoneyZone(days.url).value("SELECT count(*) FROM journals") == 0
    broken.unlink()
    assert days.run(DAY).matches == 2
