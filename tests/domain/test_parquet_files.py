import io
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile, read_file
from payments_pipeline.domain.records import Field, Kind, Layout, Records
from payments_pipeline.domain.values import WRONG_TYPE, instants, whole_numbers

LAYOUT = Layout(
    "t",
    (
        Field("a"),
        Field("count", Kind.COUNT, required=False),
        Field("minor", Kind.MINOR, required=False),
        Field("at", Kind.INSTANT, required=False),
        Field("on", Kind.DATE, required=False),
    ),
)


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def read(content: bytes) -> Records:
    return read_file(LandingFile.of("t/x.parquet", content), LAYOUT)


def column(name: str, array: pa.Array) -> list[str | None]:
    table = pa.table({name: array} if name == "a" else {"a": pa.nulls(len(array), pa.string()), name: array})
    records = read(parquet(table))
    return records.columns[name].take(np.arange(len(records))).to_pylist()


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_text_of_every_kind_is_trimmed_text(type_):
    assert column("a", pa.array([" x ", None, "", "y"], pa.string()).cast(type_)) == ["x", None, None, "y"]


@pytest.mark.parametrize("type_", [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.decimal128(18, 0)])
@pytest.mark.parametrize("name", ["count", "minor"])
def test_integers_are_whole_numbers(name, type_):
    assert column(name, pa.array([0, 7, None], type_)) == ["0", "7", None]


def test_integers_are_ids_by_their_decimal_text():
    assert column("a", pa.array([7, None], pa.int64())) == ["7", None]


def test_a_float_column_with_empty_cells_is_read_where_values_are_whole():
    read_ = column("count", pa.array([2.0, None, 1.5, float("nan"), float("inf"), -0.0, 1e300]))
    assert read_[:2] == ["2", None]
    assert read_[5] == "0"
    assert all(text is not None and text.startswith(WRONG_TYPE) for text in (*read_[2:5], read_[6]))


def test_a_float_column_without_empty_cells_is_not_read():
    assert column("count", pa.array([2.0])) == [f"{WRONG_TYPE}2.0"]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([2.0, None]),
        pa.array([2.0, None], pa.float32()),
        pa.array([Decimal("2.00"), None], pa.decimal128(18, 2)),
        pa.array(["2", None]),
        pa.array([True, None]),
        pa.array([datetime(2024, 1, 1, tzinfo=UTC), None]),
        pa.array([[2], None]),
        pa.array([b"2", None]),
    ],
)
def test_money_is_read_from_integers_alone(array):
    first, second = column("minor", array)
    assert first is not None
    assert first.startswith(WRONG_TYPE)
    assert second is None


def test_a_number_beyond_the_limit_is_read_and_refused():
    (text,) = column("minor", pa.array([2**63], pa.uint64()))
    assert text == str(2**63)
    assert not whole_numbers(pa.array([text])).valid.any()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "+02:00"])
def test_a_timestamp_with_a_zone_is_an_instant(unit, zone):
    at = datetime(2024, 8, 17, 14, 0, 1, tzinfo=UTC)
    texts = column("at", pa.array([at, None], pa.timestamp(unit, zone)))
    read_ = instants(pa.array(texts[:1]))
    assert (read_.valid.tolist(), read_.epoch_us.tolist()) == ([True], [int(at.timestamp()) * 1_000_000])
    assert texts[1] is None


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_a_timestamp_without_a_zone_has_no_offset(unit):
    (text,) = column("at", pa.array([datetime(2024, 8, 17, 14)], pa.timestamp(unit)))  # noqa: DTZ001
    assert instants(pa.array([text])).has_offset.tolist() == [False]


@pytest.mark.parametrize(
    ("unit", "ticks"), [("s", 10**15), ("ms", 2**62), ("us", -(2**62)), ("us", 2**62), ("s", -(10**12))]
)
def test_a_timestamp_outside_the_calendar_is_no_instant(unit, ticks):
    (text,) = column("at", pa.array([ticks], pa.int64()).cast(pa.timestamp(unit, "UTC")))
    assert not instants(pa.array([text])).valid.any()


def test_fractions_of_a_timestamp_are_kept_to_the_microsecond():
    (text,) = column("at", pa.array([1_723_903_200_123_456_789], pa.int64()).cast(pa.timestamp("ns", "UTC")))
    assert instants(pa.array([text])).epoch_us.tolist() == [1_723_903_200_123_456]


@pytest.mark.parametrize("array", [pa.array([1723903200]), pa.array([date(2024, 8, 17)]), pa.array([True])])
def test_another_type_is_no_instant(array):
    (text,) = column("at", array)
    assert not instants(pa.array([text])).valid.any()


def test_dates_are_read_for_dates():
    assert column("on", pa.array([date(2024, 8, 17), None])) == ["2024-08-17", None]
    assert column("on", pa.array(["2024-08-17", None])) == ["2024-08-17", None]


def test_rows_are_numbered_from_one_and_shown_as_json_with_all_columns():
    table = pa.table({"a": ["x", "y"], "z": [datetime(2024, 1, 1, tzinfo=UTC), None], "": [1.5, None]})
    records = read(parquet(table, row_group_size=1))
    assert records.line_number.tolist() == [1, 2]
    assert records.raw(np.array([1, 0])) == [
        '{"a":"y","z":null,"":null}',
        '{"a":"x","z":"2024-01-01T00:00:00+00:00","":1.5}',
    ]
    assert records.unknown_columns == (("t/x.parquet", ""), ("t/x.parquet", "z"))


def test_no_rows_are_fine():
    assert len(read(parquet(pa.table({"a": pa.array([], pa.string())})))) == 0
    assert column("count", pa.nulls(2)) == [None, None]


def test_a_truncated_or_damaged_file_is_a_bad_file():
    content = parquet(pa.table({"a": [str(number) for number in range(1000)]}))
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        content[4:],
        b"PAR1",
        b"x",
        content[:50] + b"\xff" * 400 + content[450:],
    ):
        with pytest.raises(
            BadFileError, match=r"t/x\.parquet cannot be read as Parquet.*Nothing of this day was posted"
        ):
            read(damaged)


def test_text_that_is_not_utf_8_is_a_bad_file():
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    with pytest.raises(BadFileError, match="cannot be read as Parquet"):
        read(parquet(pa.table({"a": bad})))


def test_repeated_and_missing_columns_make_a_bad_file():
    with pytest.raises(BadFileError, match="names column a more than once"):
        read(parquet(pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", " a"])))
    with pytest.raises(BadFileError, match="has no column a"):
        read(parquet(pa.table({"A": ["1"]})))
