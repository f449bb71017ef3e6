"""The peers that speeds are compared with do the same work, and what is measured is a day like any other."""

from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from benchmarks.division import Day, agreed, made_day
from benchmarks.made_day import DAY, write_day


@pytest.mark.parametrize("seed", range(4))
def test_duckdb_and_polars_divide_as_we_do_to_the_last_unit(seed: int) -> None:
    assert agreed(made_day(300, seed)) == 300 * 25


def test_they_do_where_somebody_is_missing_and_where_nobody_is_entitled_to_the_rest() -> None:
    day = made_day(300, 7)
    draws = np.arange(300) % 3 == 0
    column = day.matches.column_names.index("away_score")
    scores = np.where(draws, day.matches["home_score"].to_numpy(), day.matches["away_score"].to_numpy())
    matches = day.matches.set_column(column, "away_score", [scores])
    without = day.schedule_lines.filter(
        np.array([each != "remainder" for each in day.schedule_lines["method"].to_pylist()])
    )
    nobody = Day(matches, day.participants.slice(0, 3_000), without, day.competitions)
    assert agreed(Day(matches, day.participants, day.schedule_lines, day.competitions)) < 300 * 25
    assert agreed(nobody) > 0


def test_a_made_day_has_as_many_participants_as_it_says_and_nobody_twice_in_a_match(tmp_path: Path) -> None:
    write_day(tmp_path, matches=700, people=25, parties=8_500)
    people = pa_csv.read_csv(
        tmp_path / "landing" / "match_participants" / f"date={DAY}" / "participants.csv"
    ).to_pandas()
    assert len(people) == 700 * 25
    assert not people.duplicated(["match_id", "party_id"]).any()
    assert people.groupby("match_id").size().eq(25).all()
