"""Sensor `changed_rules` on real reference data and a real database."""

import sys
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from money_zone import HASHES, MoneyZone, match, share

from payments_pipeline.defs.automation.changed_rules import changed_rules
from payments_pipeline.defs.resources import Inputs
from payments_pipeline.defs.resources import MoneyZone as MoneyZoneResource
from payments_pipeline.local.sample_data import write_sample_season
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage import approvals

FIRST = date(2025, 8, 15)


@pytest.fixture
def season(tmp_path: Path) -> Path:
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=FIRST, match_days=3, seed=5)
    return tmp_path


def tick(season: Path, url: str, cursor: str | None = None) -> dg.SensorResult:
    context = dg.build_sensor_context(
        cursor=cursor,
        resources={
            "inputs": Inputs(
                landing_url=str(season / "landing"),
                reference_url=str(season / "reference"),
                timezone="Europe/London",
            ),
            "money_zone": MoneyZoneResource(
                policy_json=load_policy(Settings(home=season)).model_dump_json(), named_url=url
            ),
        },
    )
    found = changed_rules()(context)
    assert isinstance(found, dg.SensorResult)
    return found


def asked(result: dg.SensorResult) -> list[str | None]:
    return [request.partition_key for request in result.run_requests or ()]


def post(zone: MoneyZone, day: date, rules: str, amount: int = 1000) -> None:
    row = match(f"m-{day}", competition_id="northern-2025", rules_hash=rules)
    zone.post([row], [share(row["match_id"], "a", amount, competition_id="northern-2025")], day)


def test_nothing_is_asked_for_where_nothing_is_posted(tmp_path: Path, database_url: str) -> None:
    assert asked(tick(tmp_path, database_url)) == []


def test_days_under_other_rules_are_asked_for_one_tick_after_the_other_and_again_once_accepted(
    season: Path, database, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = MoneyZone(database.url)
    days = [date(2025, 8, number) for number in (15, 16, 17)]
    for day in days:
        post(zone, day, "before")
    monkeypatch.setattr(sys.modules[changed_rules.__module__], "REQUESTED_AT_ONCE", 2)
    first = tick(season, database.url)
    assert asked(first) == ["2025-08-15", "2025-08-16"]
    second = tick(season, database.url, first.cursor)
    assert asked(second) == ["2025-08-17"]
    again = tick(season, database.url, second.cursor)
    assert [r.run_key for r in again.run_requests or ()] == [r.run_key for r in first.run_requests or ()]

    schedules = season / "reference" / "fee_schedules.csv"
    schedules.write_bytes(schedules.read_bytes() + b"\n")
    changed = tick(season, database.url)
    assert asked(changed) == asked(first)
    assert {r.run_key for r in changed.run_requests or ()}.isdisjoint(r.run_key for r in first.run_requests or ())

    # The day runs: its effect is proposed, and accepted.
    post(zone, days[0], "after", 900)
    [proposal] = approvals.pending(database.url)
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "x")
    accepted = tick(season, database.url)
    assert asked(accepted)[0] == "2025-08-15"
    assert (accepted.run_requests or ())[0].run_key != (changed.run_requests or ())[0].run_key
    assert HASHES == {"landing": "1"}, "what the days last ran on names no reference data"
