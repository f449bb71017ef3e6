"""Real match days, whole: what is exported equals what an independent program worked out."""

import csv
from pathlib import Path

import pytest
from home import Home


def rows_of(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        return sorted(tuple(row) for row in csv.reader(file))


def test_the_shares_of_real_days_equal_an_independent_computation_to_the_last_unit(
    home: Home, real_data: Path, tmp_path: Path
) -> None:
    for expected in sorted((real_data / "expected").glob("*.csv")):
        data, _, day = expected.stem.partition("-")
        home.point_at(real_data / data)
        (summary,) = home.rows("run", "--date", day)
        assert summary["entries_posted"] > 0
        assert summary["rejected"] == 0
        out = tmp_path / expected.name
        home.run("export", "participant_shares", "--date", day, "--format", "csv", "--out", str(out))
        assert rows_of(out) == rows_of(expected)
    assert all(row["ok"] for row in home.rows("verify"))


@pytest.mark.rule("posting/difference")
def test_the_same_days_again_post_and_pay_nothing(home: Home, real_data: Path) -> None:
    home.point_at(real_data / "leagues")
    first = home.rows("backfill", "--from", "2024-08-15", "--to", "2024-08-20")
    again = home.rows("backfill", "--from", "2024-08-15", "--to", "2024-08-20")
    assert sum(row["instructions_created"] for row in first) > 0
    assert [(row["entries_posted"], row["instructions_created"], row["amounts"]) for row in again] == [(0, 0, {})] * 6
    assert [row["shares"] for row in again] == [row["shares"] for row in first]
