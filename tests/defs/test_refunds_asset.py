"""The asset `refunds`: what a day's files ask for, in a real run on a real database."""

import datetime as dt
import json
from pathlib import Path

import dagster as dg
import pytest
from money_zone import DAY, NEXT, RUN, MoneyZone, fee, match

from payments_pipeline.defs import resources
from payments_pipeline.defs.assets.refunds import refunds
from payments_pipeline.defs.partitions import match_day_partitions
from payments_pipeline.domain.refund_requests import request_frame
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage import refunds as store
from payments_pipeline.storage.landing import hash_landing_day
from payments_pipeline.storage.objects import LocalStore

SETTINGS = Settings(home=Path("unused"), config=None, start_date=DAY)
HEADER = "refund_id,match_id,party_id,amount_minor,reason\n"


@pytest.fixture
def zone(database_url: str) -> MoneyZone:
    zone = MoneyZone(database_url)
    zone.post([match("m", revenue_minor=0)], fee("m", "p1", {"a": 1000}))
    return zone


def land(landing: Path, text: str, name: str = "a.csv", day: dt.date = NEXT) -> None:
    folder = landing / "refund_requests" / f"date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, "utf-8")


def stored(landing: Path) -> Path:
    return landing.parent / "stored"


def materialise(zone: MoneyZone, landing: Path, day: dt.date = NEXT) -> dg.ExecuteInProcessResult:
    landing.mkdir(exist_ok=True)
    stored(landing).mkdir(exist_ok=True)
    given = {
        "inputs": resources.Inputs(landing_url=str(landing), reference_url="", timezone=SETTINGS.timezone),
        "certificates": resources.Certificates(storage_url=str(stored(landing))),
        "money_zone": resources.MoneyZone(named_url=zone.url, policy_json=load_policy(SETTINGS).model_dump_json()),
    }
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [refunds(match_day_partitions(SETTINGS))],
            partition_key=day.isoformat(),
            resources=given,
            instance=instance,
            tags={resources.MAKER_TAG: "joe"},
            raise_on_error=False,
        )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def test_requests_of_the_day_are_accepted_in_the_name_of_who_started_the_run(zone: MoneyZone, tmp_path: Path) -> None:
    land(tmp_path / "landing", HEADER + "r1,m,p1,400,rained off\n")
    result = materialise(zone, tmp_path / "landing")
    assert result.success
    said = metadata(result)
    assert (said["requests_read"], said["refunds"], said["refunded_minor GBP"]) == (1, 1, 400)
    assert {name: check.passed for name, check in checks(result).items()} == {
        "refunds_bounded": True,
        "no_refused_requests": True,
    }
    assert zone.rows("SELECT requester, accepted_day, source FROM refunds") == [
        ("joe", NEXT, f"refund_requests/date={NEXT}/a.csv")
    ]


def test_a_requester_whom_a_file_names_is_kept_whoever_starts_the_run(zone: MoneyZone, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    header = HEADER.replace("reason", "reason,requester")
    land(landing, header + "r1,m,p1,400,x,jane\nr2,m,p1,100,x,\n")
    assert materialise(zone, landing).success
    assert zone.rows("SELECT refund_id, requester FROM refunds ORDER BY 1") == [("r1", "jane"), ("r2", "joe")]
    land(landing, header + "r1,m,p1,400,x,\nr2,m,p1,100,x,jane\n")
    rows = str(checks(materialise(zone, landing))["no_refused_requests"].metadata["rows"].value)
    assert "r2" in rows
    assert "other_content" in rows
    assert "r1" not in rows
    assert zone.rows("SELECT refund_id, requester FROM refunds ORDER BY 1") == [("r1", "jane"), ("r2", "joe")]


@pytest.mark.rule("refunds/refused")
def test_refused_requests_are_listed_with_reason_and_words_and_hold_up_nothing(zone: MoneyZone, tmp_path: Path) -> None:
    land(tmp_path / "landing", HEADER + "r1,m,p1,400,rained off\nr2,m,p1,601,x\nr3,unknown,p1,,x\nr4,m,p1,1.5,x\n")
    result = materialise(zone, tmp_path / "landing")
    assert result.success
    check = checks(result)["no_refused_requests"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    rows = str(check.metadata["rows"].value)
    for words in ("amount_invalid", "more_than_left", "of which 600 is left", "match_not_posted", "a.csv", "| 5 |"):
        assert words in rows
    said = metadata(result)
    assert said["requests_refused"] == 3
    refusals = said["refusals"]
    assert isinstance(refusals, list)
    assert sum("of which 600 is left" in words for words in refusals) == 1
    assert zone.value("SELECT count(*) FROM refunds") == 1


def test_a_file_that_cannot_be_read_stops_the_day_before_its_sweep_and_refunds_nothing(
    zone: MoneyZone, tmp_path: Path
) -> None:
    land(tmp_path / "landing", HEADER + "r1,m,p1,400,rained off\n")
    land(tmp_path / "landing", "", "b.csv")
    assert not materialise(zone, tmp_path / "landing").success
    assert zone.value("SELECT count(*) FROM refunds") == 0


def test_a_day_without_requests_and_refunds_asks_the_database_once_and_lists_once(
    zone: MoneyZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("there is nothing to accept")

    monkeypatch.setattr(store, "connect", refused)
    result = materialise(zone, tmp_path / "landing")
    assert result.success
    assert metadata(result)["refunds"] == 0
    assert metadata(result)["certificates_written"] == []


def test_refunds_of_the_command_are_listed_with_their_day(zone: MoneyZone, tmp_path: Path) -> None:
    asked = request_frame("c1", "m", "p1", 250, "rained off", "command line")
    store.accept_refunds(zone.url, NEXT, asked, "jane", RUN)
    said = metadata(materialise(zone, tmp_path / "landing"))
    assert said["refunded_minor GBP"] == 250
    assert len(said["certificates_written"]) == 1, "what a command that died left out"


def test_what_is_accepted_is_certified_with_the_files_it_was_read_from(zone: MoneyZone, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    land(landing, HEADER + "r1,m,p1,400,rained off\n")
    [address] = metadata(materialise(zone, landing))["certificates_written"]
    said = json.loads(Path(address).read_bytes())
    assert said["input_hashes"] == {"refund_requests": hash_landing_day(LocalStore(landing), "refund_requests", NEXT)}
    assert (said["refunds"], said["day"], said["run_id"]) == (1, str(NEXT), zone.value("SELECT run_id FROM refunds"))
    assert metadata(materialise(zone, landing))["certificates_written"] == [], "nothing was accepted again"
