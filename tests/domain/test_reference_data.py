import csv
import io
from datetime import date

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_samples import COMPETITIONS, DAY, FEE_SCHEDULES, PARTIES, reference

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.reference_data import ReferenceData, parse_reference

TEXTS = {"competitions": COMPETITIONS, "parties": PARTIES, "fee_schedules": FEE_SCHEDULES}
NUMBERS = ("line_no", "value", "cap_minor")
DATES = ("effective_from", "effective_to")


def rows(table: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = list(csv.DictReader(io.StringIO(TEXTS[table])))
    return [{name: _typed(name, str(value)) for name, value in row.items()} for row in found]


def _typed(name: str, value: str) -> object:
    if name in NUMBERS:
        return int(value) if value else None
    if name in DATES:
        return date.fromisoformat(value) if value else None
    return value or None


def in_format(format_: str) -> ReferenceData:
    files = {}
    for table in TEXTS:
        if format_ == "jsonl":
            content = b"\n".join(map(orjson.dumps, rows(table)))
        else:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows(table)), sink)
            content = sink.getvalue()
        files[table] = LandingFile.of(f"{table}.{format_}", content)
    return parse_reference(files)


@pytest.mark.parametrize("format_", ["jsonl", "parquet"])
def test_the_three_formats_say_the_same(format_):
    one, other = reference(), in_format(format_)
    assert other.problems == ()
    pd.testing.assert_frame_equal(one.schedule_lines, other.schedule_lines)
    pd.testing.assert_frame_equal(one.parties.frame, other.parties.frame)
    pd.testing.assert_frame_equal(one.competitions_on(DAY), other.competitions_on(DAY))
    assert one.schedule_hashes == other.schedule_hashes
    assert one.input_hashes["parties"] == other.input_hashes["parties"]
    assert {key: rules.rules_hash for key, rules in one.rules_on(DAY).items()} == {
        key: rules.rules_hash for key, rules in other.rules_on(DAY).items()
    }


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("competitions", name) for name in ("competition_id", "name", "organiser_id", "currency")),
        *(("parties", name) for name in PARTIES.split("\n", 1)[0].split(",")),
        *(("fee_schedules", name) for name in FEE_SCHEDULES.split("\n", 1)[0].split(",") if name != "statuses"),
    ],
)
def test_a_missing_column_makes_a_bad_file(table, column):
    header, _, rest = TEXTS[table].partition("\n")
    texts = {**TEXTS, table: header.replace(column, "renamed", 1) + "\n" + rest}
    with pytest.raises(BadFileError, match=rf"{table}\.csv has no column {column}"):
        reference(**texts)


def test_columns_with_a_default_may_be_left_out():
    competitions = "competition_id,name,organiser_id,currency\nc1,One,organiser:1,GBP\nc2,Two,organiser:1,GBP\n"
    schedules = "\n".join(line.rpartition(",")[0] for line in FEE_SCHEDULES.splitlines())
    data = reference(competitions, fee_schedules=schedules)
    assert data.problems == ()
    assert data.competitions_on(DAY)["payout_policy"].tolist() == ["immediate", "immediate"]
    assert set(data.schedule_lines["status"]) == {"completed", "awarded"}


def test_unknown_columns_are_named():
    data = reference(
        PARTIES and COMPETITIONS.replace("payout_policy", "payout_policy,colour").replace("GBP,", "GBP,,red")
    )
    assert ("competitions.csv", "colour") in data.unknown_columns
