"""Frames as Parquet: exact both ways, the same bytes for the same rows, and a refusal for anything undeclared."""

import datetime as dt
import hashlib
import io
import os
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payments_pipeline.domain import schemas
from payments_pipeline.domain.errors import BadFileError, InvariantError
from payments_pipeline.domain.schemas import BOOL, CATEGORY, DATE, INSTANT, INT, STRING, Column, TableSchema
from payments_pipeline.storage import parquet
from payments_pipeline.storage.frames import concat, conform, infer_schema, to_frame
from payments_pipeline.storage.parquet import decode, decode_table, encode, partition_key

EVERYTHING = TableSchema(
    name="everything",
    description="One column of each kind.",
    key=("id",),
    sort_by=("id", "label"),
    columns=(
        Column("id", STRING, "Key."),
        Column("label", CATEGORY, "Repeats.", nullable=True),
        Column("amount_minor", INT, "Money.", unit="minor units"),
        Column("goals", INT, "May be missing.", nullable=True),
        Column("due_on", DATE, "Day.", nullable=True),
        Column("paid_at", INSTANT, "Instant.", nullable=True),
        Column("is_final", BOOL, "Flag.", nullable=True),
        Column("note", STRING, "Words.", nullable=True),
    ),
)
SMALL = TableSchema(
    name="small",
    description="",
    key=("id",),
    sort_by=("id",),
    columns=(
        Column("id", STRING, ""),
        Column("amount_minor", INT, "", unit="minor units"),
        Column("paid_on", DATE, "", nullable=True),
        Column("paid_at", INSTANT, "", nullable=True),
        Column("is_final", BOOL, "", nullable=True),
    ),
)

int64 = st.integers(-(2**63), 2**63 - 1)
words = st.text(st.characters(codec="utf-8"), max_size=8)
instants = st.datetimes(
    dt.datetime(1677, 9, 22),  # noqa: DTZ001 - Hypothesis wants its bounds without a zone
    dt.datetime(2262, 4, 11),  # noqa: DTZ001
    timezones=st.just(dt.UTC),
)
rows = st.fixed_dictionaries(
    {
        "id": words,
        "label": st.none() | st.sampled_from(["b", "a", "é", "", "Z"]),
        "amount_minor": int64,
        "goals": st.none() | int64,
        "due_on": st.none() | st.dates(),
        "paid_at": st.none() | instants,
        "is_final": st.none() | st.booleans(),
        "note": st.none() | words,
    }
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)


def frame_of(records: list[dict[str, Any]]) -> pd.DataFrame:
    columns = {name: [record[name] for record in records] for name in EVERYTHING.names}
    return pd.DataFrame(
        {
            "id": pd.Series(columns["id"], dtype=object),
            "label": pd.Categorical(columns["label"]),
            "amount_minor": pd.Series(columns["amount_minor"], dtype="int64"),
            "goals": pd.array(columns["goals"], dtype="Int64"),
            "due_on": pd.Series(columns["due_on"], dtype=object),
            "paid_at": pd.Series(columns["paid_at"], dtype="datetime64[us, UTC]"),
            "is_final": pd.array(columns["is_final"], dtype="boolean"),
            "note": pd.Series(columns["note"], dtype=object),
        }
    )


def small(**columns: Any) -> pd.DataFrame:
    length = len(next(iter(columns.values()))) if columns else 2
    given_columns = {
        "id": [f"row-{number}" for number in range(length)],
        "amount_minor": [1] * length,
        "paid_on": [None] * length,
        "paid_at": [None] * length,
        "is_final": [None] * length,
    }
    return pd.DataFrame(given_columns | columns)


def cells(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [
        tuple(None if pd.isna(value) else value for value in row)
        for row in frame.astype(object).itertuples(index=False)
    ]


# Exact


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=12), st.dictionaries(words, json_values, max_size=3))
def test_what_is_encoded_is_decoded_exactly_in_the_declared_order(
    records: list[dict[str, Any]], metadata: dict[str, Any]
) -> None:
    decoded = decode(encode(frame_of(records), EVERYTHING, metadata), EVERYTHING)
    expected = sorted((tuple(record[name] for name in EVERYTHING.names) for record in records), key=declared_order)
    assert cells(decoded) == expected
    assert decoded.attrs == metadata


def declared_order(row: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """By the sort columns and then by all, strings by bytes, nulls last."""
    return [
        (value is None, 0 if value is None else value.encode() if isinstance(value, str) else value) for value in row
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=12), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_and_columns_nor_unused_categories_show_in_the_bytes(
    records: list[dict[str, Any]], random: Any
) -> None:
    data = encode(frame_of(records), EVERYTHING, {"b": 1, "a": 2})
    random.shuffle(records)
    shuffled = frame_of(records)
    names = list(shuffled.columns)
    random.shuffle(names)
    shuffled["label"] = shuffled["label"].cat.set_categories(["unused", "Z", "é", "b", "", "a"])
    shuffled.index = pd.Index(range(7, 7 + len(shuffled)))
    assert encode(shuffled[names], EVERYTHING, {"a": 2, "b": 1}) == data


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=12))
def test_a_decoded_frame_encodes_to_the_bytes_that_it_came_from(records: list[dict[str, Any]]) -> None:
    data = encode(frame_of(records), EVERYTHING, {"a": 1})
    frame = decode(data, EVERYTHING)
    assert encode(frame, EVERYTHING, frame.attrs) == data
    assert encode(decode_table(data, EVERYTHING), EVERYTHING, frame.attrs) == data


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=8))
def test_dtypes_are_those_declared_whatever_the_rows_hold(records: list[dict[str, Any]]) -> None:
    frame = decode(encode(frame_of(records), EVERYTHING, {}), EVERYTHING)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "id": "object",
        "label": "category",
        "amount_minor": "int64",
        "goals": "Int64",
        "due_on": "object",
        "paid_at": "datetime64[us, UTC]",
        "is_final": "boolean",
        "note": "object",
    }
    assert list(frame["label"].cat.categories) == sorted(set(frame["label"].dropna()), key=str.encode)


def test_the_file_carries_the_declaration_and_nothing_of_the_run() -> None:
    data = encode(small(), SMALL, {"input_hashes": {"a": "b"}})
    stored = pq.read_schema(pa.BufferReader(data))
    assert stored.field("amount_minor").metadata[b"unit"] == b"minor units"
    assert not stored.field("amount_minor").nullable
    assert stored.metadata == {parquet.METADATA_KEY: b'{"input_hashes":{"a":"b"}}'}
    assert pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0).compression == "ZSTD"


def test_another_reader_sees_the_same_rows() -> None:
    data = encode(small(amount_minor=[3, -4]), SMALL, {})
    assert pl.read_parquet(io.BytesIO(data))["amount_minor"].to_list() == [3, -4]


def test_a_file_of_several_row_groups_has_one_sorted_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = TableSchema("t", "", (Column("id", INT, ""), Column("label", CATEGORY, "")), ("id",), ("id",))
    frame = pd.DataFrame({"id": range(6), "label": ["c", "c", "b", "a", "b", "a"]})
    whole = encode(frame, schema, {})
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 2)
    data = encode(frame, schema, {})
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 3
    pd.testing.assert_frame_equal(decode(data, schema), decode(whole, schema))
    assert list(decode(data, schema)["label"].cat.categories) == ["a", "b", "c"]


@pytest.mark.rule("posting/same-bytes")
def test_the_bytes_are_the_same_in_every_process() -> None:
    program = """
import hashlib, pandas as pd
from payments_pipeline.domain.schemas import PARTICIPANT_SHARES as SCHEMA
from payments_pipeline.storage.parquet import encode
parties = {f"party:{number}" for number in range(200)}
same = {name: ["x"] * 200 for name in SCHEMA.names}
frame = pd.DataFrame(same | {"party_id": list(parties), "line_no": 1, "amount_minor": 5})
counts = {name: 1 for name in parties}
print(hashlib.sha256(encode(frame, SCHEMA, {"counts": counts})).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("schema", schemas.ALL, ids=lambda schema: schema.name)
def test_every_declared_schema_takes_an_empty_frame_and_gives_its_dtypes(schema: TableSchema) -> None:
    data = encode(pd.DataFrame(columns=schema.names), schema, {})
    frame = decode(data, schema)
    assert frame.empty
    assert list(frame.columns) == schema.names
    assert hashlib.sha256(encode(frame, schema, {})).digest() == hashlib.sha256(data).digest()


# Admitted


@pytest.mark.parametrize(
    "amounts",
    [
        pd.Series([1, 2], dtype="int32"),
        pd.Series([1, 2], dtype="uint64"),
        pd.Series([1, 2], dtype="Int64"),
        pd.Series([1, 2], dtype=object),
        pd.Series([1, 2], dtype=pd.ArrowDtype(pa.int64())),
    ],
    ids=lambda amounts: str(amounts.dtype),
)
def test_whole_numbers_of_any_dtype_are_whole_numbers(amounts: pd.Series) -> None:
    assert decode(encode(small(amount_minor=amounts), SMALL, {}), SMALL)["amount_minor"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["object", "string", "string[pyarrow]", "category"])
def test_strings_of_any_dtype_are_strings(kind: str) -> None:
    frame = small(id=pd.Series(["b", "a"], dtype=kind))
    assert decode(encode(frame, SMALL, {}), SMALL)["id"].tolist() == ["a", "b"]


def test_a_midnight_without_zone_is_a_date() -> None:
    frame = small(paid_on=pd.to_datetime(["2024-02-29", None]))
    assert decode(encode(frame, SMALL, {}), SMALL)["paid_on"].tolist() == [dt.date(2024, 2, 29), None]


def test_an_instant_of_any_zone_is_the_same_instant() -> None:
    frame = small(paid_at=pd.to_datetime(["2024-07-01T12:00+01:00", None]).tz_convert("Asia/Tokyo"))
    assert decode(encode(frame, SMALL, {}), SMALL)["paid_at"][0] == pd.Timestamp("2024-07-01T11:00Z")


# Refused


def refused(frame: pd.DataFrame | pa.Table, *words: str, schema: TableSchema = SMALL) -> None:
    with pytest.raises(InvariantError) as caught:
        encode(frame, schema, {})
    for each in (*words, "Nothing was written"):
        assert each in str(caught.value)


@pytest.mark.rule("always/no-float")
def test_a_float_column_is_no_whole_numbers_even_when_they_are_whole() -> None:
    refused(small(amount_minor=[1.0, 2.0]), "small.amount_minor", "double")


def test_nan_in_money_is_refused() -> None:
    refused(small(amount_minor=[1, np.nan]), "small.amount_minor", "double")
    refused(small(amount_minor=pd.Series([1, np.nan], dtype=object)), "null where none", "row 1 (id row-1)")


def test_null_where_none_is_allowed_names_column_row_and_key() -> None:
    refused(small(amount_minor=pd.array([1, 2, None], "Int64")), "small.amount_minor", "row 2 (id row-2)")
    refused(small(id=["a", None]), "small.id", "null where none is allowed", "row 1")


@pytest.mark.parametrize("amount", [2**63, -(2**63) - 1, 2**64, 10**30])
def test_a_whole_number_beyond_63_bits_names_its_row(amount: int) -> None:
    refused(small(amount_minor=pd.Series([1, amount], dtype=object)), "small.amount_minor", "row 1 (id row-1)")


def test_an_unsigned_number_beyond_63_bits_names_its_row() -> None:
    refused(small(amount_minor=pd.Series([1, 2**63], dtype="uint64")), "small.amount_minor", "row 1 (id row-1)")


@pytest.mark.parametrize(
    "amounts",
    [["1", "2"], [True, False], [Decimal(1), Decimal(2)], [1, "2"], [1, True], [dt.date(2024, 1, 1)] * 2],
    ids=str,
)
def test_nothing_else_passes_for_a_whole_number(amounts: list[Any]) -> None:
    refused(small(amount_minor=pd.Series(amounts, dtype=object)), "small.amount_minor", "declared int64")


@pytest.mark.parametrize("texts", [[1, 2], [b"a", b"b"], ["a", 1], [True, False], ["a", "\ud800"]], ids=repr)
@pytest.mark.parametrize("kind", [STRING, CATEGORY], ids=str)
def test_nothing_else_passes_for_a_string(texts: list[Any], kind: pa.DataType) -> None:
    schema = TableSchema("t", "", (Column("text", kind, ""),), (), ())
    refused(pd.DataFrame({"text": pd.Series(texts, dtype=object)}), "t.text", "declared", schema=schema)


def test_categories_that_are_no_strings_are_refused() -> None:
    schema = TableSchema("t", "", (Column("text", CATEGORY, ""),), (), ())
    refused(pd.DataFrame({"text": pd.Categorical([1, 2])}), "t.text", "int64", schema=schema)


def test_a_time_of_day_is_no_date_and_names_its_row() -> None:
    times = ["2024-01-01", "2024-01-01T00:00:01"]
    refused(small(paid_on=pd.to_datetime(times, format="ISO8601")), "a time of day", "row 1 (id row-1)")
    mixed = [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 5)]  # noqa: DTZ001 - the fault under test
    refused(small(paid_on=pd.Series(mixed, dtype=object)), "a time of day", "row 1 (id row-1)")


def test_a_time_without_zone_is_no_instant() -> None:
    refused(small(paid_at=pd.to_datetime(["2024-01-01", None])), "small.paid_at")
    mixed = [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1)]  # noqa: DTZ001 - the fault under test
    refused(small(paid_at=pd.Series(mixed, dtype=object)), "small.paid_at", "zone")


def test_an_instant_finer_than_a_microsecond_is_refused_and_not_cut() -> None:
    refused(small(paid_at=pd.to_datetime(["2024-01-01T00:00:00.000000001Z", None])), "small.paid_at", "row 0")


def test_a_number_is_no_flag() -> None:
    refused(small(is_final=[0, 1]), "small.is_final", "int64")


def test_missing_extra_and_repeated_columns_are_all_named() -> None:
    refused(small().rename(columns={"paid_on": "payed_on"}), "missing paid_on", "not declared payed_on")
    refused(pd.concat([small(), small()[["id"]]], axis=1), "more than once id")


def test_an_arrow_table_is_held_to_the_same() -> None:
    table = conform(small(), SMALL)
    assert encode(table, SMALL, {}) == encode(small(), SMALL, {})
    refused(table.set_column(1, "amount_minor", pa.array([1.0, 2.0])), "small.amount_minor")
    refused(table.set_column(1, "amount_minor", pa.array([2**63, 1], pa.uint64())), "small.amount_minor", "row 0")


@pytest.mark.parametrize(
    "metadata",
    [{"a": (1, 2)}, {"a": {1: 2}}, {1: 2}, {"a": float("nan")}, {"a": np.int64(1)}, {"a": "\ud800"}, {"a": {1}}],
    ids=repr,
)
def test_metadata_that_would_not_come_back_as_it_is_is_refused(metadata: dict[Any, Any]) -> None:
    with pytest.raises(InvariantError, match="attrs"):
        encode(small(), SMALL, metadata)


# Broken and foreign files


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_cut_file_is_refused(cut: int) -> None:
    data = encode(small(), SMALL, {})
    with pytest.raises(BadFileError, match="no whole Parquet file"):
        decode(data[:cut], SMALL)


def test_a_flipped_bit_in_a_pages_data_is_seen() -> None:
    amounts = np.random.default_rng(1).integers(-(2**62), 2**62, 300)
    data = encode(small(amount_minor=amounts), SMALL, {})
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(SMALL.names.index("amount_minor"))
    end = column.dictionary_page_offset + column.total_compressed_size
    for position in range(end - 200, end):
        flipped = bytearray(data)
        flipped[position] ^= 1
        with pytest.raises(BadFileError):
            decode(bytes(flipped), SMALL)


def test_a_file_of_another_schema_says_what_differs() -> None:
    other = TableSchema(
        "small",
        "",
        (*SMALL.columns[:1], Column("amount_minor", STRING, "", nullable=True), Column("x", INT, "")),
        (),
        (),
    )
    data = encode(pd.DataFrame({"id": ["a"], "amount_minor": ["1"], "x": [1]}), other, {})
    with pytest.raises(BadFileError) as caught:
        decode(data, SMALL)
    for each in ("paid_on is missing", "x is not declared", "amount_minor is string", "amount_minor is nullable"):
        assert each in str(caught.value)


# Without a declaration


def test_an_undeclared_frame_keeps_its_own_types_and_order() -> None:
    frame = pd.DataFrame(
        {"b": [2.5, np.nan], "a": [2, 1], "c": pd.Categorical(["y", "x"]), "d": pd.to_datetime(["2024-01-01", None])}
    )
    data = encode(frame, infer_schema("any", frame), {"a": 1})
    pd.testing.assert_frame_equal(decode(data), frame, check_categorical=False)
    assert decode(data).attrs == {"a": 1}


def test_an_index_that_would_be_lost_is_refused() -> None:
    with pytest.raises(InvariantError, match="reset_index"):
        infer_schema("any", pd.DataFrame({"a": [1]}, index=pd.Index([1], name="key")))


def test_tables_are_joined_one_after_the_other_with_one_dictionary() -> None:
    schema = TableSchema("t", "", (Column("label", CATEGORY, ""),), (), ())
    tables = [conform(pd.DataFrame({"label": labels}), schema) for labels in (["b", "c"], [], ["a", "b"])]
    frame = to_frame(concat(tables))
    assert frame["label"].tolist() == ["b", "c", "a", "b"]
    assert list(frame["label"].cat.categories) == ["a", "b", "c"]


# Where partitions are


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("shares", "2024-01-01"), "shares/date=2024-01-01/part-0.parquet"),
        (("shares",), "shares/part-0.parquet"),
        (("a/b", {"zone": "x/y", "day": "2024"}), "a/b/day=2024/zone=x%2Fy/part-0.parquet"),
        (("a", {"partition": "../.."}), "a/partition=..%2F../part-0.parquet"),
    ],
)
def test_a_partition_has_one_key_in_hives_layout(arguments: tuple[Any, ...], key: str) -> None:
    assert partition_key(*arguments) == key
