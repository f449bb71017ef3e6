"""Input that cannot be used: the day stops before anything is posted, in one clear message, and is repaired."""

from datetime import date
from pathlib import Path

import pytest
from home import Home

from payments_pipeline.local.sample_data import write_sample_season

FIRST_DAY = date(2025, 8, 15)
DAY = FIRST_DAY.isoformat()


@pytest.fixture(scope="module")
def season(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("season")
    write_sample_season(data / "landing", data / "reference", first_day=FIRST_DAY, match_days=7, seed=3)
    home.point_at(data)
    return data


def test_a_truncated_file_stops_its_day_before_posting_and_no_other_day(home: Home, season: Path) -> None:
    folder = season / "landing" / "match_results" / f"date={DAY}"
    broken = folder / "sakura-2025.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    done = home.run("backfill", "--from", DAY, "--to", "2025-08-16", "--json", expect=1)
    assert "sakura-2025.parquet" in done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if DAY in line[:30]] == []
    assert '"day": "2025-08-16"' in done.stdout

    broken.write_bytes(whole)
    (repaired,) = home.rows("run", "--date", DAY)
    assert repaired["entries_posted"] > 0
    (again,) = home.rows("run", "--date", DAY)
    assert (again["entries_posted"], again["instructions_created"]) == (0, 0)


@pytest.mark.rule("posting/absence")
def test_an_empty_landing_zone_claws_nothing_back(home: Home, season: Path, tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    home.environment["PAYMENTS_LANDING_URL"] = str(tmp_path / "landing")
    (summary,) = home.rows("run", "--date", DAY)
    home.point_at(season)
    assert (summary["matches"], summary["entries_posted"], summary["instructions_created"]) == (0, 0, 0)
    breaks = [row for row in home.rows("status", "--date", DAY) if row["part"] == "posting_breaks"]
    assert {row["reason"] for row in breaks} == {"absent"}


def test_a_day_that_has_no_partition_is_refused_in_one_line(home: Home, season: Path) -> None:
    done = home.run("run", "--date", "1999-01-01", expect=2)
    assert "is no range of match days" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
