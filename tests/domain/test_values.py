import calendar
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.values import (
    MAX_WHOLE_NUMBER,
    WHITE_SPACE,
    are_ids,
    are_plain,
    calendar_date,
    instants,
    whole_numbers,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_white_space_is_what_python_strips():
    assert set(WHITE_SPACE) == {chr(code) for code in range(0x110000) if chr(code).isspace()}


@pytest.mark.parametrize("text", ["m1", "A:b.c_d-e", "0", "x" * 128])
def test_an_id_is_ascii_letters_digits_and_four_signs(text):
    assert are_ids(pa.array([text])).tolist() == [True]


@pytest.mark.parametrize(
    "text",
    ["../../etc", "a'; DROP TABLE x", "x" * 129, "é", "a b", "a\n", "a\x00", "/a", "１", "a,b", "a%2e", "a\\b"],  # noqa: RUF001
)
def test_paths_sql_and_other_scripts_are_no_ids(text):
    assert are_ids(pa.array([text])).tolist() == [False]


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("0" * 40 + "5", 5), (str(MAX_WHOLE_NUMBER), MAX_WHOLE_NUMBER), ("000", 0)],
)
def test_digits_are_whole_numbers_leading_zeros_too(text, number):
    read = whole_numbers(pa.array([text]))
    assert (read.valid.tolist(), read.number.tolist()) == ([True], [number])


@pytest.mark.parametrize(
    "text",
    [
        *("1,000", "1.0", "1e3", "+1", "-1", "1_000", "NaN", "inf", "0x10", "1 000", "¹", "١", "１"),  # noqa: RUF001
        *(str(MAX_WHOLE_NUMBER + 1), str(2**63), str(2**64 + 1), "9" * 40, "1\n", "\x001"),
    ],
)
def test_what_excel_python_or_javascript_would_read_is_no_whole_number(text):
    assert whole_numbers(pa.array([text])).valid.tolist() == [False]


@given(st.text(max_size=20))
def test_whole_numbers_agree_with_a_plain_reading(text):
    expected = text.isascii() and text.isdigit() and int(text) <= MAX_WHOLE_NUMBER
    read = whole_numbers(pa.array([text]))
    assert read.valid.tolist() == [expected]
    assert read.number.tolist() == [int(text) if expected else 0]


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.integers(-1439, 1439), st.sampled_from(["", ":"]))  # noqa: DTZ001
def test_an_instant_is_read_to_the_microsecond_whatever_its_offset(local, minutes, separator):
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    text = f"{local.isoformat()}{sign}{hours:02d}{separator}{rest:02d}"
    read = instants(pa.array([text]))
    expected = (local.replace(tzinfo=UTC) - timedelta(minutes=minutes) - EPOCH) // timedelta(microseconds=1)
    assert (read.valid.tolist(), read.epoch_us.tolist()) == ([True], [expected])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2024-08-17T14:00Z", "2024-08-17T14:00:00+00:00"),
        ("2024-08-17T14:00:00.5Z", "2024-08-17T14:00:00.500000+00:00"),
        ("2024-08-17T14:00:00,25Z", "2024-08-17T14:00:00.250000+00:00"),
        ("2024-08-17T14:00:00.123456789Z", "2024-08-17T14:00:00.123456+00:00"),
        ("2024-08-17T14:00:00+05", "2024-08-17T14:00:00+05:00"),
        ("2024-08-17T19:45:00+05:45", "2024-08-17T14:00:00+00:00"),
        ("2024-02-29T00:00:00-00:00", "2024-02-29T00:00:00+00:00"),
    ],
)
def test_ways_to_write_an_instant(text, same):
    expected = (datetime.fromisoformat(same) - EPOCH) // timedelta(microseconds=1)
    assert instants(pa.array([text])).epoch_us.tolist() == [expected]


@pytest.mark.parametrize(
    "text",
    [
        *("2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z"),
        *("0000-01-01T00:00:00Z", "2024-08-17T24:00:00Z", "2024-08-17T23:59:60Z", "2024-08-17T15:60:00Z"),
        *("2024-08-17 15:00:00Z", "2024-08-17T15:00:00z", "17/08/2024 15:00", "2024-08-17T15Z", "1723903200", "x"),
        *("2024-08-17T15:00:00+24:00", "2024-08-17T15:00:00+01:60", "2024-08-17T15:00:00 +01:00", "2024-08-17"),
        *(
            "2024-08-17T15:00:00.Z",
            "２024-08-17T15:00:00Z",  # noqa: RUF001
            "12024-08-17T15:00:00Z",
            "2024-08-17T15:00:00Europe/London",
        ),
    ],
)
def test_what_names_no_instant_is_not_valid(text):
    read = instants(pa.array([text]))
    assert (read.valid.tolist(), read.has_offset.tolist()) == ([False], [True])


@pytest.mark.parametrize("text", ["2024-08-17T15:00:00", "2024-08-17T15:00", "2024-08-17T15:00:00.5"])
def test_a_missing_offset_is_told_from_other_faults(text):
    read = instants(pa.array([text]))
    assert (read.valid.tolist(), read.has_offset.tolist()) == ([False], [False])


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
def test_a_date_is_a_day_of_the_calendar(year, month, day):
    exists = year >= 1 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(max(year, 1), month)[1]
    assert (calendar_date(f"{year:04d}-{month:02d}-{day:02d}") is not None) == exists


@pytest.mark.parametrize("text", ["20240817", "2024-W33-6", "2024-8-17", "2024-08-17T00:00:00", ""])
def test_other_ways_to_write_a_date_are_not_read(text):
    assert calendar_date(text) is None


def test_text_with_nul_is_not_plain():
    assert are_plain(pa.array(["coach", "a\x00b", "тренер"])).tolist() == [True, False, True]
