"""Days run by the command out of their order: what a report lacked when it was read is taken in all the same."""

from datetime import date
from pathlib import Path

import pytest
from home import Home

from payments_pipeline.local.sample_data import write_sample_season

FIRST, SECOND = "2025-08-15", "2025-08-16"


@pytest.mark.rule("settlement/grown-taken-in")
def test_a_report_that_grew_while_an_earlier_day_ran_is_taken_in_by_that_run(home: Home, tmp_path: Path) -> None:
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=date(2025, 8, 15), match_days=3, seed=5)
    home.point_at(tmp_path)
    home.rows("run", "--date", SECOND)
    told = home.run("run", "--date", FIRST)
    assert f"the report of {SECOND} had grown: its new lines were taken in" in " ".join(told.stderr.split())
    states = {row["state"] for row in home.rows("status", "--date", FIRST) if row["part"] == "instructions"}
    assert "settled" in states
    assert states <= {"settled", "failed", "returned", "netted"}, "nothing waits for a report that was read too early"
    assert all(row["ok"] for row in home.rows("verify"))
