"""The sensors on real instances, real runs of small assets, a real database and a real folder for a landing zone."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import dagster as dg
import psycopg
import pytest
from payout_rows import Addresses, PayoutRows

from payments_pipeline.defs import resources
from payments_pipeline.defs.automation import build_sensors, history
from payments_pipeline.defs.io_managers import ParquetIOManager
from payments_pipeline.defs.jobs import DAILY, TAKE_REPORT_IN
from payments_pipeline.defs.partitions import match_day_partitions
from payments_pipeline.defs.resources import LANDING_DATASETS, MAKER_TAG, Inputs, MoneyZone, PayoutGateway
from payments_pipeline.domain.alerts import Alert, AlertKind
from payments_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, ProcessorUnavailableError
from payments_pipeline.domain.schemas import MATCH_RESULTS
from payments_pipeline.processors.base import ReportDigest
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage import postgres
from payments_pipeline.storage.alerts import undelivered
from payments_pipeline.storage.landing import hash_landing_day
from payments_pipeline.storage.objects import open_store

DOWN = "postgresql://nobody:x@127.0.0.1:1/none"
SETTINGS = Settings(timezone="Europe/London", start_date=date(2024, 1, 1))
DAY = date(2024, 3, 10)
NOW = datetime(2024, 3, 20, 12, tzinfo=UTC)


def module(sensor: str) -> ModuleType:
    """Give a sensor's module; in the package its name is that of the function."""
    return importlib.import_module(f"payments_pipeline.defs.automation.{sensor}")


def days(first: date, count: int) -> list[date]:
    return [first + timedelta(days=offset) for offset in range(count)]


@dataclass
class Stage:
    """Small definitions with the sensors, their instance, and what stands for the outside world.

    Attributes:
        failing: days whose runs fail.
        failing_checks: (check, severity) of checks that fail.
        now: what the sensors take for the present.
        url: the business database, or an address where there is none.
    """

    instance: dg.DagsterInstance
    landing: Path
    url: str
    failing: set[date] = field(default_factory=set)
    failing_checks: dict[str, dg.AssetCheckSeverity] = field(default_factory=dict)
    now: datetime = NOW
    cursors: dict[str, str | None] = field(default_factory=dict)
    reports: dict[date, str] = field(default_factory=dict)
    processor_down: bool = False

    def __post_init__(self) -> None:
        self.sensors = {sensor.name: sensor for sensor in build_sensors(SETTINGS, clock=lambda: self.now)}
        self.definitions = self._definitions()

    def _definitions(self) -> dg.Definitions:
        match_days = match_day_partitions(SETTINGS)

        @dg.asset(
            partitions_def=match_days,
            check_specs=[dg.AssetCheckSpec(name, asset="match_results") for name in ("one", "two")],
        )
        def match_results(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            day = date.fromisoformat(context.partition_key)
            if day in self.failing:
                raise ValueError(f"no luck on {day}")
            return dg.MaterializeResult(
                metadata={"lineage": dg.MetadataValue.json({"input_hashes": self.hashes(day), "counts": {}})},
                check_results=[
                    dg.AssetCheckResult(
                        check_name=name,
                        passed=name not in self.failing_checks,
                        severity=self.failing_checks.get(name, dg.AssetCheckSeverity.ERROR),
                        description="3 of 4: mend them",
                    )
                    for name in ("one", "two")
                ],
            )

        @dg.asset(partitions_def=match_days)
        def settlement_reports() -> None: ...

        return dg.Definitions(
            assets=[match_results, settlement_reports],
            jobs=[
                dg.define_asset_job(DAILY, selection=[match_results], executor_def=dg.in_process_executor),
                dg.define_asset_job(TAKE_REPORT_IN, selection=[settlement_reports]),
            ],
            sensors=list(self.sensors.values()),
            resources=self.resources(),
        )

    @contextmanager
    def database_down(self) -> Iterator[None]:
        """Nobody answers at the database's address, and nobody waits long for it."""
        url, self.url = self.url, DOWN
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(postgres, "_WAIT_S", 0.2)
                yield
        finally:
            self.url = url

    def resources(self) -> dict[str, Any]:
        return {
            "inputs": Inputs(landing_url=str(self.landing), reference_url="", timezone=SETTINGS.timezone),
            "money_zone": MoneyZone(named_url=self.url, policy_json=load_policy(SETTINGS).model_dump_json()),
            "gateway": PayoutGateway(name="sandbox", named_url="http://127.0.0.1:1", named_key="key"),
        }

    def hashes(self, day: date) -> dict[str, str]:
        store = open_store(str(self.landing))
        return {dataset: hash_landing_day(store, dataset, day) for dataset in LANDING_DATASETS}

    def land(self, day: date, text: str, name: str = "a.csv", dataset: str = "match_results") -> None:
        folder = self.landing / dataset / f"date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")

    def run(self, *run_days: date, tags: dict[str, str] | None = None) -> list[str]:
        """Run days here and now; gives the runs' ids."""
        job = self.definitions.resolve_job_def(DAILY)
        return [
            job.execute_in_process(
                partition_key=day.isoformat(), instance=self.instance, raise_on_error=False, tags=tags or {}
            ).run_id
            for day in run_days
        ]

    def have_run(self, *run_days: date) -> None:
        """Record days as materialised, as quickly as can be."""
        for day in run_days:
            event = dg.AssetMaterialization("match_results", partition=day.isoformat())
            self.instance.report_runless_asset_event(event)

    def start(self, day: date, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
        """Record a run that stands at a status; only its record, nothing runs."""
        return self.instance.create_run_for_job(
            self.definitions.resolve_job_def(DAILY),
            status=status,
            tags={"dagster/partition": day.isoformat(), **{name.replace("__", "/"): tag for name, tag in tags.items()}},
        )

    def tick(self, name: str) -> Any:
        """Evaluate a sensor as the daemon does: from the cursor of its last good tick."""
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            repository_def=repository,
            resources=self.resources(),
        )
        execution = repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = execution.cursor
        return execution

    def requested(self, name: str) -> list[date]:
        return [date.fromisoformat(str(request.partition_key)) for request in self.tick(name).run_requests or []]

    def alerts(self, kind: AlertKind | None = None) -> list[Alert]:
        return [alert for alert in undelivered(self.url, "nowhere") if kind in (None, alert.kind)]


class ListedReports:
    """A processor that lists the reports of its stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def report_digests(self, first: date, last: date) -> list[ReportDigest]:
        if self.stage.processor_down:
            raise ProcessorUnavailableError("sandbox does not answer.")
        return [ReportDigest(day, 1, digest) for day, digest in self.stage.reports.items() if first <= day <= last]


@pytest.fixture
def stage(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    landing = tmp_path / "landing"
    landing.mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        stage = Stage(instance, landing, database_url)
        monkeypatch.setattr(resources, "open_processor", lambda *_: ListedReports(stage))
        yield stage


@pytest.fixture
def rows(database: Addresses) -> PayoutRows:
    return PayoutRows(database.superuser_url)


# Failed runs ---------------------------------------------------------------------------------------------------------

DECIDED = {"dagster/will_retry": "false"}


def test_a_failed_run_becomes_one_alert_however_often_it_is_looked_at(stage: Stage) -> None:
    stage.failing = {DAY}
    good, bad = stage.run(DAY + timedelta(days=1), DAY, tags=DECIDED)
    for _ in range(3):
        stage.tick("run_failure_alerts")
    (alert,) = stage.alerts()
    assert (alert.kind, alert.day, alert.run_id) == (AlertKind.RUN_FAILED, DAY, bad)
    assert f"match_results: ValueError: no luck on {DAY}" in alert.body
    assert good not in alert.body


def test_the_alert_of_a_failed_run_says_how_much_money_its_day_is_about(stage: Stage, rows: PayoutRows) -> None:
    rows.add("approved", DAY, amount_minor=12_345)
    stage.failing = {DAY}
    stage.run(DAY, tags=DECIDED)
    stage.tick("run_failure_alerts")
    assert "GBP: instructions 1, to pay 123.45, to collect 0.00, of them sent 0" in stage.alerts()[0].body


def test_no_alert_is_lost_while_the_database_is_down(stage: Stage) -> None:
    stage.failing = {DAY, DAY + timedelta(days=1)}
    stage.run(DAY, tags=DECIDED)
    stage.tick("run_failure_alerts")
    before = stage.cursors["run_failure_alerts"]
    stage.run(DAY + timedelta(days=1), tags=DECIDED)
    with stage.database_down(), pytest.raises(DatabaseUnavailableError):
        stage.tick("run_failure_alerts")
    assert stage.cursors["run_failure_alerts"] == before
    stage.tick("run_failure_alerts")
    assert {alert.day for alert in stage.alerts()} == stage.failing


def test_a_sensor_that_cannot_look_says_so_in_one_line(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    with stage.database_down(), pytest.raises(DatabaseUnavailableError):
        stage.tick("payout_alerts")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "could not look" in line]
    assert "payout_alerts could not look: the business database does not answer" in line
    assert "the next tick tries again" in line


def test_attempts_that_dagster_retries_are_one_alert_and_their_last_failure_is_another(stage: Stage) -> None:
    stage.failing = {DAY}
    (first,) = stage.run(DAY, tags={"dagster/will_retry": "true"})
    stage.run(DAY, tags={"dagster/will_retry": "true", "dagster/root_run_id": first})
    stage.tick("run_failure_alerts")
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.RUN_RETRYING]
    stage.run(DAY, tags={"dagster/will_retry": "false", "dagster/root_run_id": first})
    stage.tick("run_failure_alerts")
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.RUN_RETRYING, AlertKind.RUN_FAILED]


def test_a_failure_whose_retry_is_not_decided_yet_is_told_of_a_moment_later(stage: Stage) -> None:
    stage.failing = {DAY}
    stage.now = datetime.now(UTC)
    stage.run(DAY)
    stage.tick("run_failure_alerts")
    assert stage.alerts() == []
    stage.now += timedelta(seconds=30)
    stage.tick("run_failure_alerts")
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.RUN_FAILED]


def test_more_failures_than_one_tick_reads_are_all_told_of(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_OVERLAP", 1)
    monkeypatch.setattr(history, "_LIMIT", 2)
    stage.failing = set(days(DAY, 5))
    stage.run(*sorted(stage.failing), tags=DECIDED)
    for _ in range(6):
        stage.tick("run_failure_alerts")
    assert {alert.day for alert in stage.alerts()} == stage.failing


def test_a_run_that_was_ended_from_outside_is_told_of_in_the_words_of_who_ended_it(stage: Stage) -> None:
    run = stage.start(DAY, dg.DagsterRunStatus.STARTED, dagster__will_retry="false")
    stage.instance.report_run_failed(run, "the run's process is gone")
    stage.tick("run_failure_alerts")
    (alert,) = stage.alerts()
    assert (alert.run_id, alert.day) == (run.run_id, DAY)
    assert "Error: the run's process is gone" in alert.body


# Failed checks -------------------------------------------------------------------------------------------------------


def test_a_failed_check_becomes_an_alert_and_one_that_only_warns_does_not(stage: Stage) -> None:
    stage.failing_checks = {"one": dg.AssetCheckSeverity.ERROR, "two": dg.AssetCheckSeverity.WARN}
    (run_id,) = stage.run(DAY)
    for _ in range(2):
        stage.tick("check_failure_alerts")
    (alert,) = stage.alerts()
    assert (alert.kind, alert.day, alert.run_id) == (AlertKind.CHECK_FAILED, DAY, run_id)
    assert alert.title == f"check one on match_results of {DAY} failed"
    assert "3 of 4: mend them" in alert.body


def test_checks_that_pass_raise_nothing(stage: Stage) -> None:
    stage.run(DAY)
    stage.tick("check_failure_alerts")
    assert stage.alerts() == []


def test_a_failed_check_of_a_run_that_failed_later_is_told_of_too(stage: Stage) -> None:
    stage.failing_checks = {"one": dg.AssetCheckSeverity.ERROR}
    (run_id,) = stage.run(DAY)
    run = stage.instance.get_run_by_id(run_id)
    assert run is not None
    stage.instance.report_run_failed(run)
    stage.tick("check_failure_alerts")
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.CHECK_FAILED]


def test_no_failed_check_is_lost_while_the_database_is_down(stage: Stage) -> None:
    stage.failing_checks = {"one": dg.AssetCheckSeverity.ERROR}
    stage.run(DAY)
    with stage.database_down(), pytest.raises(DatabaseUnavailableError):
        stage.tick("check_failure_alerts")
    stage.tick("check_failure_alerts")
    assert [alert.day for alert in stage.alerts()] == [DAY]


# Payouts -------------------------------------------------------------------------------------------------------------


def test_payouts_in_trouble_are_one_alert_for_each_kind_and_day(stage: Stage, rows: PayoutRows) -> None:
    for state in ("held", "held", "failed", "returned", "settled"):
        rows.add(state, DAY)
    rows.add("unknown", DAY, execute_on=DAY + timedelta(days=1))
    stage.run(DAY)
    for _ in range(2):
        stage.tick("payout_alerts")
    assert sorted(alert.title for alert in stage.alerts()) == [
        f"payout instructions of {DAY} failed: 1",
        f"payout instructions of {DAY} held for an approver: 2",
        f"payout instructions of {DAY} overdue: 1",
        f"payout instructions of {DAY} returned: 1",
        f"payout instructions of {DAY} without an answer: 1",
    ]


@pytest.mark.parametrize(("overdue", "alerts"), [(-1, 0), (0, 1)])
def test_payouts_are_overdue_by_the_days_of_the_policy_in_the_pipelines_zone(
    stage: Stage, rows: PayoutRows, overdue: int, alerts: int
) -> None:
    allowed = load_policy(SETTINGS).dispatch.overdue_days
    rows.add("submitted", DAY, execute_on=NOW.date() - timedelta(days=allowed + overdue))
    stage.tick("payout_alerts")
    assert len(stage.alerts()) == alerts


def test_no_failed_payout_is_lost_while_the_database_is_down(stage: Stage, rows: PayoutRows) -> None:
    rows.add("failed", DAY)
    stage.run(DAY)
    with stage.database_down(), pytest.raises(DatabaseUnavailableError):
        stage.tick("payout_alerts")
    stage.tick("payout_alerts")
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.INSTRUCTIONS_FAILED]


# Missed days ---------------------------------------------------------------------------------------------------------


def test_missed_days_are_run_oldest_first_and_told_of_once(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 10), date(2024, 3, 12))
    assert stage.requested("missed_days") == [date(2024, 3, 11), *days(date(2024, 3, 13), 4)]
    (alert,) = stage.alerts()
    assert alert.kind is AlertKind.DAY_MISSED
    assert alert.title == "5 days were missed, 2024-03-11 to 2024-03-16"


def test_days_asked_for_are_not_asked_for_again_and_the_rest_follows(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 12))
    first = stage.tick("missed_days").run_requests or []
    for request in first:  # as the daemon starts them
        stage.start(
            date.fromisoformat(str(request.partition_key)),
            dg.DagsterRunStatus.STARTED,
            dagster__sensor_name="missed_days",
        )
    assert stage.requested("missed_days") == days(date(2024, 3, 18), 2)
    assert len(stage.alerts()) == 2


def test_a_request_for_a_missed_day_names_the_sensor_as_its_maker(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 18))
    (request,) = stage.tick("missed_days").run_requests or []
    assert request.job_name == DAILY
    assert request.run_key == "missed:2024-03-19"
    assert request.tags[MAKER_TAG] == "missed_days"
    assert request.tags["dagster/partition"] == "2024-03-19"


def test_a_day_that_failed_is_run_once_more_whoever_ran_it_and_is_not_called_missed(stage: Stage) -> None:
    first, second, third = days(date(2024, 3, 17), 3)
    stage.have_run(first)
    by_schedule = stage.start(second, dg.DagsterRunStatus.STARTED, dagster__schedule_name="daily_at_three")
    by_backfill = stage.instance.create_run_for_job(
        stage.definitions.resolve_job_def(DAILY),
        status=dg.DagsterRunStatus.STARTED,
        tags={f"dagster/asset_partition_range_{end}": third.isoformat() for end in ("start", "end")},
    )
    for run in (by_schedule, by_backfill):
        stage.instance.report_run_failed(run)
    assert stage.requested("missed_days") == [second, third]
    assert stage.alerts() == []


def test_a_day_whose_run_was_cancelled_is_left_to_who_cancelled_it(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 18))
    stage.instance.report_run_canceled(stage.start(date(2024, 3, 19), dg.DagsterRunStatus.STARTED))
    assert stage.requested("missed_days") == []


def test_nothing_is_missed_where_no_day_has_run_or_all_have(stage: Stage) -> None:
    assert stage.requested("missed_days") == []
    stage.have_run(*days(date(2024, 3, 1), 19))
    assert stage.requested("missed_days") == []
    assert stage.alerts() == []


def test_a_backfill_under_way_is_not_overtaken(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 10))
    stage.start(date(2024, 3, 11), dg.DagsterRunStatus.STARTED, dagster__backfill="abc")
    assert stage.requested("missed_days") == []


def test_days_longer_ago_than_a_month_are_reported_once_and_not_run(stage: Stage) -> None:
    stage.have_run(date(2024, 1, 10), *days(date(2024, 2, 10), 39))
    for _ in range(2):
        assert stage.requested("missed_days") == []
    (alert,) = stage.alerts()
    assert alert.kind is AlertKind.DAYS_NEVER_RUN
    assert "payments-pipeline backfill --from 2024-01-11 --to 2024-02-09" in alert.body


def test_no_day_is_run_whose_alert_could_not_be_stored(stage: Stage) -> None:
    stage.have_run(date(2024, 3, 18))
    with stage.database_down(), pytest.raises(DatabaseUnavailableError):
        stage.tick("missed_days")


# Changed input -------------------------------------------------------------------------------------------------------


def test_input_that_is_as_it_was_asks_for_nothing(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    assert stage.requested("changed_input") == []
    stage.land(DAY, "a")  # delivered again, word for word
    assert stage.requested("changed_input") == []


@pytest.mark.rule("corrections/new-input")
@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("a.csv", "match_results"),
        ("b.csv", "match_results"),
        ("a.csv", "match_participants"),
        ("a.csv", "refund_requests"),
    ],
    ids=["corrected", "new", "participants", "refunds"],
)
def test_new_or_corrected_input_of_a_day_that_ran_asks_for_it_once(stage: Stage, name: str, dataset: str) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    stage.tick("changed_input")
    stage.land(DAY, "b", name, dataset)
    execution = stage.tick("changed_input")
    (request,) = execution.run_requests
    assert (request.job_name, request.partition_key) == (DAILY, DAY.isoformat())
    assert request.run_key.startswith(f"changed:{DAY}:")
    assert stage.requested("changed_input") == []


def test_refund_requests_that_a_day_has_run_on_ask_for_nothing_and_corrected_ones_do(stage: Stage) -> None:
    stage.land(DAY, "a", dataset="refund_requests")
    stage.run(DAY)
    seen = {
        "input_hashes": {"refund_requests": hash_landing_day(open_store(str(stage.landing)), "refund_requests", DAY)}
    }
    metadata = {"lineage": dg.MetadataValue.json(seen)}
    stage.instance.report_runless_asset_event(
        dg.AssetMaterialization("refunds", partition=DAY.isoformat(), metadata=metadata)
    )
    assert stage.requested("changed_input") == []
    stage.land(DAY, "b", dataset="refund_requests")
    assert stage.requested("changed_input") == [DAY]


def test_a_correction_taken_back_and_made_again_runs_each_time(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    keys = []
    for text in ("b", "a", "b", "a", "b"):
        stage.land(DAY, text)
        (request,) = stage.tick("changed_input").run_requests
        keys.append(request.run_key)
        stage.run(DAY)
    assert len(set(keys)) == 5  # Dagster starts one run for a key, ever


def test_input_that_changed_before_the_first_look_is_seen(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    stage.land(DAY, "b")
    assert stage.requested("changed_input") == [DAY]


def test_a_day_that_never_ran_is_left_to_the_schedule(stage: Stage) -> None:
    stage.land(DAY, "a")
    assert stage.requested("changed_input") == []


def test_a_day_that_is_being_run_is_looked_at_afterwards(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    stage.land(DAY, "b")
    under_way = stage.start(DAY, dg.DagsterRunStatus.STARTED)
    assert stage.requested("changed_input") == []
    stage.instance.report_run_failed(under_way)
    assert stage.requested("changed_input") == [DAY]


def test_a_day_whose_materialisation_does_not_say_what_it_ran_on_is_run_again(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.have_run(DAY)
    assert stage.requested("changed_input") == [DAY]


@pytest.mark.parametrize("seen", [True, False])
def test_an_empty_landing_zone_asks_for_nothing_and_says_so(stage: Stage, seen: bool) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    if seen:
        stage.tick("changed_input")
    moved = stage.landing.rename(stage.landing.with_name("elsewhere"))
    stage.landing.mkdir()
    for _ in range(2):
        execution = stage.tick("changed_input")
        assert not execution.run_requests
        assert "lists no day at all though 1 days have run" in execution.skip_message
    assert [alert.kind for alert in stage.alerts()] == [AlertKind.INPUT_GONE]
    stage.landing.rmdir()
    moved.rename(stage.landing)
    assert stage.requested("changed_input") == []


def test_a_landing_zone_that_cannot_be_read_is_not_an_empty_one(stage: Stage) -> None:
    stage.land(DAY, "a")
    stage.run(DAY)
    stage.tick("changed_input")
    cursor = stage.cursors["changed_input"]
    stage.landing.rename(stage.landing.with_name("elsewhere"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        stage.tick("changed_input")
    assert stage.cursors["changed_input"] == cursor
    assert stage.alerts() == []


def test_a_day_whose_files_are_gone_is_told_of_once_and_not_run(stage: Stage) -> None:
    for day in days(DAY, 2):
        stage.land(day, "a")
        stage.run(day)
    stage.tick("changed_input")
    (stage.landing / "match_results" / f"date={DAY}" / "a.csv").unlink()
    for _ in range(2):
        assert stage.requested("changed_input") == []
    (alert,) = stage.alerts()
    assert (alert.kind, alert.day) == (AlertKind.INPUT_GONE, DAY)


def test_many_changed_days_are_asked_for_a_few_at_a_time_and_all_in_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("changed_input"), "REQUESTED_AT_ONCE", 2)
    monkeypatch.setattr(module("changed_input"), "COMPARED_AT_ONCE", 3)
    changed = days(DAY, 5)
    for day in changed:
        stage.land(day, "a")
    stage.have_run(*changed)
    ticks = [stage.requested("changed_input") for _ in range(4)]
    assert [len(requested) for requested in ticks] == [2, 2, 1, 0]
    assert sorted(day for requested in ticks for day in requested) == changed


def test_what_a_day_ran_on_is_read_from_what_the_io_manager_stated(stage: Stage, tmp_path: Path) -> None:
    @dg.asset(
        name=MATCH_RESULTS.name,
        partitions_def=match_day_partitions(SETTINGS),
        io_manager_key="s3_parquet",
        dagster_type=dg.Any,
    )
    def asset() -> dg.MaterializeResult:
        frame = MATCH_RESULTS.arrow().empty_table().to_pandas()
        frame.attrs = {"input_hashes": stage.hashes(DAY), "counts": {}}
        return dg.MaterializeResult(value=frame)

    stage.land(DAY, "a")
    run = dg.materialize(
        [asset],
        partition_key=DAY.isoformat(),
        instance=stage.instance,
        resources={"s3_parquet": ParquetIOManager(storage_url=str(tmp_path / "storage"))},
    )
    assert history.last_input(stage.instance, DAY) == history.LastInput(run.run_id, stage.hashes(DAY))


# Grown reports -------------------------------------------------------------------------------------------------------


def take_in(database: Addresses, day: date, digest: str, seq: int = 1) -> None:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO payments.report_intakes (processor, report_date, seq, digest, entry_count, run_id) "
            "VALUES ('sandbox', %s, %s, %s, 1, 'r')",
            (day, seq, digest),
        )


@pytest.mark.rule("settlement/grown-taken-in")
def test_a_report_that_has_grown_is_taken_in_again(stage: Stage, database: Addresses) -> None:
    first, second, third = days(DAY, 3)
    take_in(database, first, "a")
    take_in(database, second, "old")
    take_in(database, second, "b", seq=2)
    take_in(database, third, "c")
    stage.reports = {first: "a", second: "B", third: "c", DAY + timedelta(days=9): "never taken in"}
    (request,) = stage.tick("grown_reports").run_requests or []
    assert (request.job_name, request.partition_key) == (TAKE_REPORT_IN, second.isoformat())
    assert request.run_key == f"report:sandbox:{second}:B"
    assert request.tags[MAKER_TAG] == "grown_reports"


def test_grown_reports_are_bounded_per_tick(stage: Stage, database: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("grown_reports"), "REQUESTED_AT_ONCE", 2)
    for day in days(DAY, 3):
        take_in(database, day, "a")
        stage.reports[day] = "b"
    assert stage.requested("grown_reports") == days(DAY, 2)


def test_no_report_taken_in_asks_the_processor_nothing(stage: Stage) -> None:
    stage.processor_down = True
    assert stage.requested("grown_reports") == []


def test_a_processor_that_does_not_answer_is_not_one_without_reports(stage: Stage, database: Addresses) -> None:
    take_in(database, DAY, "a")
    stage.processor_down = True
    with pytest.raises(ProcessorUnavailableError):
        stage.tick("grown_reports")


# All of them ---------------------------------------------------------------------------------------------------------


def test_alerts_reach_the_log_and_are_recorded_as_delivered(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.failing = {DAY}
    stage.run(DAY, tags=DECIDED)
    stage.tick("run_failure_alerts")
    for _ in range(2):
        stage.tick("alert_delivery")
    said = [record.getMessage() for record in caplog.records if record.name == "payments_pipeline.alerts"]
    assert len(said) == 1
    assert f"daily for {DAY} failed" in said[0]
    assert undelivered(stage.url, "log") == []


def test_every_sensor_runs_from_the_start_at_a_stated_interval(stage: Stage) -> None:
    for sensor in stage.sensors.values():
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds is not None
        assert sensor.minimum_interval_seconds >= 30


def test_nothing_is_asked_for_on_an_installation_without_a_run(stage: Stage) -> None:
    for name in stage.sensors:
        assert not stage.tick(name).run_requests
    assert stage.alerts() == []
