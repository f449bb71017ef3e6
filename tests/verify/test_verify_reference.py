"""The reference data as `verify` reads it: alike from each format, and compared match by match."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verify_results import broken, results, rewrite
from verify_world import COMPETITIONS, FIRST, RULES_HASH, SCHEDULES, SECOND, World

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.domain.reference_data import parse_reference
from payments_pipeline.storage.objects import LocalStore
from payments_pipeline.storage.reference import read_reference as read_files
from payments_pipeline.verify.files import FILE_RULES
from payments_pipeline.verify.reference import read_reference

DIVISION = "shares are divided as the schedule says, in exact fractions"
assert DIVISION in FILE_RULES
FORMATS = ("csv", "jsonl", "parquet")
NUMBERS = ("line_no", "value", "cap_minor")
PARTIES = "party_id,party_type,name,country,status,payout_token,collection_token\n" + "".join(
    f"{party},{party_type},Läufer\u2028{party},GB,active,tok,\n"
    for party, party_type in (("org", "organiser"), ("fed", "federation"), ("plat", "platform"))
)
#: A cap of 0, statuses out of their order and with blanks, no statuses, open and closed intervals, two versions.
LINES = """competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
C,v1,2024-01-01,2024-12-31,2,revenue,organiser,percent,1000,0,
C,v1,2024-01-01,2024-12-31,1,revenue,federation,fixed,7,,void; completed
C,v1,2024-01-01,2024-12-31,3,revenue,party:plat,remainder,1,, abandoned
C,v2,2025-01-01,,1,revenue,organiser,percent,1000,300,
D,v1,,,1,revenue,home_club,remainder,1,,awarded
"""
NAMED = """competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy,effective_from,effective_to
C,Cup,org,fed,,GBP,,,2024-12-31
C,Cup,org,,plat,GBP,when_collected,2025-01-01,
D,Draw,org,,,EUR,immediate,,
"""


def write(folder: Path, table: str, text: str, extension: str) -> None:
    """Write a table in one of the formats, numbers as numbers and dates as dates where it has them."""
    path = folder / f"{table}.{extension}"
    if extension == "csv":
        path.write_text("\ufeff" + text, "utf-8")
        return
    header, *lines = (line.split(",") for line in text.strip("\n").split("\n"))
    rows: list[dict[str, Any]] = [
        {
            name: (int(value) if name in NUMBERS else value) if value else None
            for name, value in zip(header, line, strict=True)
        }
        for line in lines
    ]
    if extension == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
        return
    frame = pd.DataFrame(rows, dtype=object)
    columns = {
        name: pa.array(frame[name], pa.int64())
        if name in NUMBERS
        else pa.array(pd.to_datetime(frame[name]).dt.date, pa.date32(), from_pandas=True)
        if name.startswith("effective")
        else pa.array(frame[name], pa.string())
        for name in header
    }
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("extension", FORMATS)
def test_rules_have_the_same_hash_as_the_pipeline_gives_from_every_format(tmp_path: Path, extension: str) -> None:
    for table, text in (("competitions", NAMED), ("parties", PARTIES), ("fee_schedules", LINES)):
        write(tmp_path, table, text, extension)
    store = LocalStore(tmp_path)
    theirs, ours = parse_reference(read_files(store)), read_reference(store)
    assert theirs.problems == ()
    for day in (pd.Timestamp("2024-12-31").date(), pd.Timestamp("2025-01-01").date()):
        for competition_id, rules in theirs.rules_on(day).items():
            assert rules.schedule is not None
            assert ours.rules_hash(competition_id, rules.schedule.version, day) == rules.rules_hash


@pytest.mark.parametrize("extension", FORMATS)
def test_a_cap_of_nothing_and_no_cap_are_told_apart_in_every_format(tmp_path: Path, extension: str) -> None:
    for table, text in (("competitions", NAMED), ("parties", PARTIES), ("fee_schedules", LINES)):
        write(tmp_path, table, text, extension)
    lines = read_reference(LocalStore(tmp_path)).schedule("C", "v1")
    assert [line["cap_minor"] for line in lines] == ["", "0", ""]


def test_a_row_that_cannot_be_read_is_passed_over_and_the_others_hold(tmp_path: Path) -> None:
    write(tmp_path, "competitions", NAMED + "E,More,org,,,EUR,immediate,,,too,many,fields\n", "csv")
    write(tmp_path, "parties", PARTIES, "csv")
    write(tmp_path, "fee_schedules", LINES, "jsonl")
    with (tmp_path / "fee_schedules.jsonl").open("a") as file:
        file.write('\n{"competition_id": "C",\n[]\n{"competition_id": "D", "version": "v9", "line_no": "x"}\n')
    (tmp_path / "fee_schedules.old.csv").write_text("no such table", "utf-8")
    reference = read_reference(LocalStore(tmp_path))
    day = pd.Timestamp("2025-01-01").date()
    assert reference.rules_hash("C", "v2", day) is not None
    assert reference.rules_hash("D", "v9", day) is None
    assert reference.rules_hash("nobody", "v1", day) is None


def test_a_table_that_is_there_twice_is_an_error(world: World) -> None:
    folder = Path(world.settings.reference)
    write(folder, "fee_schedules", SCHEDULES, "jsonl")
    with pytest.raises(ConfigurationError, match=r"holds 2 fee_schedules\.csv"):
        results(world)


@pytest.mark.parametrize("extension", FORMATS)
def test_the_division_is_recomputed_whatever_the_format_of_the_reference_data(world: World, extension: str) -> None:
    folder = Path(world.settings.reference)
    for table, text in (("competitions", COMPETITIONS), ("fee_schedules", SCHEDULES)):
        (folder / f"{table}.csv").unlink()
        write(folder, table, text, extension)
    division = results(world)[DIVISION]
    assert (division.breaches, division.checked, division.left_out) == ((), 8, ())


def test_the_division_is_recomputed_though_reference_files_changed_elsewhere(world: World) -> None:
    folder = Path(world.settings.reference)
    more = SCHEDULES + "D,v1,2024-01-01,,1,revenue,home_club,remainder,1,,\nC,v2,2030-01-01,,1,revenue,,bad,,,\n"
    (folder / "fee_schedules.csv").write_text(more, "utf-8")
    (folder / "competitions.csv").write_text(COMPETITIONS.replace("Cup", "The Cup"), "utf-8")
    division = results(world)[DIVISION]
    assert (division.ok, division.checked, division.left_out) == (True, 8, ())
    rewrite(world, "participant_shares", lambda table: table.slice(0, len(table) - 1))
    assert DIVISION in broken(world)


@pytest.mark.parametrize(
    ("table", "before", "after"),
    [
        ("fee_schedules", "percent,1000", "percent,999"),
        ("fee_schedules", "400,", ","),
        ("fee_schedules", "C,v1", "C,v0"),
        ("competitions", "C,Cup,org", "C,Cup,fed"),
        ("competitions", "C,Cup", "B,Cup"),
    ],
)
def test_matches_whose_rules_are_others_now_are_left_out_and_said_so(
    world: World, table: str, before: str, after: str
) -> None:
    path = Path(world.settings.reference) / f"{table}.csv"
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after), "utf-8")
    division = results(world)[DIVISION]
    assert (division.ok, division.checked) == (True, 0)
    assert division.left_out == tuple(
        f"{day}: 1 of 1 matches, whose competition or fee schedule changed since" for day in (FIRST, SECOND)
    )


def test_the_world_has_the_rules_hash_that_the_pipeline_gives(world: World) -> None:
    reference = parse_reference(read_files(LocalStore(Path(world.settings.reference))))
    assert reference.rules_on(FIRST)["C"].rules_hash == RULES_HASH
