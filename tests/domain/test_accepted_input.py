import io
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_model import Row, judge
from input_samples import (
    DAY,
    LONDON,
    MATCH,
    MATCH_COLUMNS,
    PARTICIPANT_COLUMNS,
    PLAYER,
    REFEREE,
    matches_file,
    participants_file,
    reference,
    table,
    taken_in,
)

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.reference_data import parse_reference
from payments_pipeline.domain.schemas import MATCH_PARTICIPANTS, MATCH_RESULTS, REJECTED_RECORDS
from payments_pipeline.storage.landing import read_landing_day
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.reference import read_reference

REFERENCE = reference()
SCHEMAS = (MATCH_RESULTS, MATCH_PARTICIPANTS, REJECTED_RECORDS)
DATA = Path(__file__).parents[3] / "shared" / "data"

_VALUES = {
    "match_id": ["m1", "m2", "m3", "", "m 1", "../m1"],
    "competition_id": ["c1", "c2", "c9", ""],
    "kicked_off_at": [
        *("2024-08-17T14:00:00+00:00", "2024-08-17T15:00:00+01:00", "2024-08-17T15:00:00", "2024-08-17T23:30:00+00:00"),
        *("2024-08-16T23:30:00+00:00", "2024-02-30T15:00:00+01:00", "", "soon"),
    ],
    "home_club_id": ["club:a", "club:c", "club:z", "player:1", ""],
    "away_club_id": ["club:b", "club:a", "club:z", ""],
    "home_score": ["2", "02", "3", "", "1.0", "-1"],
    "away_score": ["1", "0", "", "1e3"],
    "status": ["completed", "void", "postponed", "abandoned", "Void", ""],
    "winner_club_id": ["", "club:a", "club:b", "club:c"],
    "revenue_minor": ["1001", "", "0", "NaN", str(10**15), str(10**15 + 1), str(2**63)],
    "revision": ["1", "", "2", "02", "3", "0", "x"],
    "party_id": ["player:1", "player:2", "referee:1", "club:a", "player:9", "", "x y"],
    "club_id": ["club:a", "club:b", "club:c", "", "x y"],
    "role": ["player", "referee", "trainer", ""],
}


@st.composite
def _rows(draw, base: list[dict[str, str]], columns: list[str]) -> list[Row]:
    """Rows mostly right and often equal: up to two values changed, now and then a field missing or too many."""
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 7))):
        row = dict(draw(st.sampled_from(base)))
        row["match_id"] = draw(st.sampled_from(["m1", "m1", "m1", "m2"]))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
            name = draw(st.sampled_from(columns))
            row[name] = draw(st.sampled_from(_VALUES[name]))
        if draw(st.integers(0, 19)) == 0:
            values = [row[name] for name in columns]
            # A single empty value would be a blank line, which is no row.
            rows.append(
                draw(st.sampled_from([values[:-1], values[:1] if values[0] else values[:-1], [*values, "more"]]))
            )
        else:
            rows.append(row)
    return rows


_MATCH_ROWS = _rows([MATCH], MATCH_COLUMNS)
_PARTICIPANT_ROWS = _rows(
    [PLAYER, {**PLAYER, "party_id": "player:2", "club_id": "club:b"}, REFEREE], PARTICIPANT_COLUMNS
)


def _csv(columns: list[str], rows: list[Row], *, quoted: bool) -> bytes:
    sign = '"' if quoted else ""
    lines = [columns, *(row if isinstance(row, list) else [row[name] for name in columns] for row in rows)]
    return "".join(",".join(f"{sign}{value}{sign}" for value in line) + "\n" for line in lines).encode()


def _json(rows: list[Row]) -> bytes:
    numbers = ("home_score", "away_score", "revenue_minor", "revision")

    def typed(name: str, value: str) -> object:
        return int(value) if name in numbers and value.isdigit() else value

    return b"".join(
        orjson.dumps({name: typed(name, value) for name, value in row.items()}) + b"\n"
        for row in rows
        if isinstance(row, dict)
        and all(int(row.get(name) or 0) < 2**63 for name in numbers if row.get(name, "").isdigit())
    )


def _outcomes(accepted, dataset: str, frame: pd.DataFrame) -> dict[tuple[str, int], str]:
    found = dict.fromkeys(zip(frame["source"], frame["line_number"], strict=True), "accepted")
    rejected = accepted.rejected_records[accepted.rejected_records["dataset"] == dataset]
    for source, line, outcome in zip(rejected["source"], rejected["line_number"], rejected["outcome"], strict=True):
        assert (source, line) not in found
        found[source, line] = outcome
    return found


@given(st.data(), _MATCH_ROWS, _PARTICIPANT_ROWS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_row_meets_the_fate_that_a_plain_reading_gives_it(data, matches, participants, quoted):
    cut = data.draw(st.integers(0, len(matches)))
    as_json = data.draw(st.booleans())
    files = [LandingFile.of("match_results/a.csv", _csv(MATCH_COLUMNS, matches[:cut], quoted=quoted))]
    places = [("match_results/a.csv", line) for line in range(2, cut + 2)]
    rest = matches[cut:]
    if as_json:
        content = _json(rest)
        rest = [row for row in rest if _json([row])]
        matches = matches[:cut] + rest
        files += [LandingFile.of("match_results/b.jsonl", content)] if content else []
        places += [("match_results/b.jsonl", line) for line in range(1, len(rest) + 1)]
    else:
        files.append(LandingFile.of("match_results/b.csv", _csv(MATCH_COLUMNS, rest, quoted=not quoted)))
        places += [("match_results/b.csv", line) for line in range(2, len(rest) + 2)]
    people = LandingFile.of("match_participants/p.csv", _csv(PARTICIPANT_COLUMNS, participants, quoted=quoted))

    accepted = taken_in(data.draw(st.permutations(files)), people, data=REFERENCE)

    expected_matches, expected_participants = judge(matches, participants, DAY, LONDON)
    assert _outcomes(accepted, "match_results", accepted.match_results) == dict(
        zip(places, expected_matches, strict=True)
    )
    assert _outcomes(accepted, "match_participants", accepted.match_participants) == {
        ("match_participants/p.csv", line): outcome for line, outcome in enumerate(expected_participants, start=2)
    }
    for dataset, rows in (("match_results", matches), ("match_participants", participants)):
        counts = accepted.counts[dataset]
        assert counts.read == len(rows) == counts.accepted + counts.superseded + counts.rejected
        assert sum(counts.reasons.values()) == counts.superseded + counts.rejected
    for schema in SCHEMAS:
        stored = pa.Table.from_pandas(getattr(accepted, schema.name), schema=schema.arrow(), preserve_index=False)
        assert not [
            field.name for field in schema.arrow() if not field.nullable and stored.column(field.name).null_count
        ]


@given(st.lists(st.binary(max_size=60), max_size=3), st.sampled_from(["csv", "jsonl", "parquet"]))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_rows_or_a_bad_file_and_nothing_else(parts, format_):
    header = b"match_id,party_id,club_id,role\n" if format_ == "csv" else b""
    files = [LandingFile.of(f"match_participants/{n}.{format_}", header + part) for n, part in enumerate(parts)]
    try:
        accepted = taken_in(matches_file({}), files, data=REFERENCE)
    except BadFileError:
        return
    counts = accepted.counts["match_participants"]
    assert counts.read == counts.rejected == len(accepted.rejected_records)


def test_rejected_records_are_sorted_and_complete():
    accepted = taken_in(
        [
            matches_file({"status": "x"}, {}, name="b.csv"),
            matches_file({"match_id": "m2", "status": "y"}, name="a.csv"),
        ],
        participants_file({"match_id": "m2"}, {"match_id": "m1"}),
    )
    frame = accepted.rejected_records
    keys = list(zip(frame["dataset"], frame["source"], frame["line_number"], strict=True))
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == 5
    stored = pa.Table.from_pandas(frame, schema=REJECTED_RECORDS.arrow(), preserve_index=False)
    assert stored.column("raw").null_count == stored.column("words").null_count == 0


def test_the_same_files_in_any_order_give_the_same_bytes():
    files = [matches_file({}, {}, name="b.csv"), matches_file({"match_id": "m2"}, {"revision": "0"}, name="a.csv")]
    people = [participants_file({"match_id": "m2"}, REFEREE, name="q.csv"), participants_file({"match_id": "m2"})]

    def stored(accepted) -> list[bytes]:
        parts = []
        for schema in SCHEMAS:
            sink = io.BytesIO()
            frame = getattr(accepted, schema.name)
            pq.write_table(pa.Table.from_pandas(frame, schema=schema.arrow(), preserve_index=False), sink)
            parts.append(sink.getvalue())
        return parts

    assert stored(taken_in(files, people)) == stored(taken_in(files[::-1], people[::-1]))


def test_names_in_other_scripts_pass_through_and_ids_in_them_do_not():
    content = table(
        [*PARTICIPANT_COLUMNS, "名前"],
        [{**PLAYER, "名前": "Иван", "role": "守門員"}, {**PLAYER, "party_id": "игрок", "名前": "x"}],
    )
    accepted = taken_in(matches_file({}), LandingFile.of("match_participants/p.csv", content))
    assert accepted.match_participants["role"].tolist() == ["守門員"]
    assert accepted.rejected_records["party_id"].tolist() == ["игрок"]
    assert accepted.counts["match_participants"].unknown_columns == (("match_participants/p.csv", "名前"),)


def test_a_bad_file_stops_the_day_however_good_the_others_are():
    with pytest.raises(BadFileError, match=r"match_participants/p\.csv"):
        taken_in(matches_file({}), LandingFile.of("match_participants/p.csv", b"match_id\n"))


def _days() -> Iterator[tuple[str, date]]:
    for name in ("leagues", "worldcup"):
        folder = DATA / name / "landing" / "match_results"
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield name, date.fromisoformat(each.name.removeprefix("date="))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real matches are not there")
def test_every_real_day_is_taken_in_without_a_rejected_row():
    stores = {name: open_store(str(DATA / name / "landing")) for name in ("leagues", "worldcup")}
    data = {name: parse_reference(read_reference(open_store(str(DATA / name / "reference")))) for name in stores}
    assert not any(each.problems for each in data.values())
    totals = dict.fromkeys(stores, (0, 0, 0))
    for name, day in _days():
        found = [
            read_landing_day(stores[name], dataset, day).files for dataset in ("match_results", "match_participants")
        ]
        accepted = taken_in(found[0], found[1], data=data[name], day=day)
        assert len(accepted.rejected_records) == 0, (name, day)
        days, matches, participants = totals[name]
        totals[name] = (
            days + 1,
            matches + len(accepted.match_results),
            participants + len(accepted.match_participants),
        )
    assert totals == {"leagues": (399, 3896, 0), "worldcup": (73, 180, 8841)}


@pytest.mark.skipif(not DATA.is_dir(), reason="the real matches are not there")
def test_a_real_days_matches_are_what_its_file_says():
    path = DATA / "worldcup" / "landing" / "match_results" / "date=2022-12-18" / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    store = open_store(str(DATA / "worldcup" / "landing"))
    day = read_landing_day(store, "match_results", date(2022, 12, 18))
    data = parse_reference(read_reference(open_store(str(DATA / "worldcup" / "reference"))))
    frame = taken_in(day.files, data=data, day=day.day).match_results.set_index("match_id")
    for row in rows:
        for name in (
            "competition_id",
            "home_club_id",
            "away_club_id",
            "home_score",
            "away_score",
            "status",
            "revenue_minor",
        ):
            assert frame.loc[row["match_id"], name] == row[name]
