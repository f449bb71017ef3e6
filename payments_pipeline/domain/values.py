"""Reading of single values: ids, whole numbers, instants, dates.

Belongs here: what a well-formed value is and what it means, over Arrow string arrays (one element per distinct
value, so that a million rows cost a few thousand checks). Does not belong here: which column needs which value.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: What `str.strip` drops; given to Arrow too, so that every reader drops the same.
WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
#: Put before the text of a value of the wrong type (a JSON true, a Parquet float): no check lets it pass.
WRONG_TYPE = "\x00"
#: No whole number is above this; products with basis points and weights then stay well within 128 bits.
MAX_WHOLE_NUMBER = 10**15

_ID = r"\A[0-9A-Za-z:._-]{1,128}\z"
_LOGIN = r"\A[!-~]{1,128}\z"
_WHOLE_NUMBER = r"\A[0-9]+\z"
_INSTANT = (
    r"\A(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r"(?P<offset>Z|(?P<sign>[+-])(?P<offset_hour>[0-9]{2})(?::?(?P<offset_minute>[0-9]{2}))?)?\z"
)
_DATE = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
_SECOND_US = 1_000_000
_MINUTE_US = 60 * _SECOND_US


def to_numpy(array: pa.Array) -> np.ndarray:
    """Give an Arrow array without nulls as numpy."""
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def are_ids(values: pa.StringArray) -> np.ndarray:
    """Tell which values, none of them null, are ids: 1 to 128 of ASCII letters, digits and `: . _ -`."""
    return to_numpy(pc.match_substring_regex(values, _ID))


def are_logins(values: pa.StringArray) -> np.ndarray:
    """Tell which values, none of them null, can be logins: 1 to 128 printing ASCII characters, no white space."""
    return to_numpy(pc.match_substring_regex(values, _LOGIN))


def are_plain(values: pa.StringArray) -> np.ndarray:
    """Tell which values are of the right type and free of NUL, which Postgres cannot hold."""
    return to_numpy(pc.invert(pc.match_substring(values, WRONG_TYPE)))


@dataclass(frozen=True)
class WholeNumbers:
    """Values read as whole numbers.

    Attributes:
        number: int64; 0 where not valid.
        valid: ASCII digits only, at most MAX_WHOLE_NUMBER.
    """

    number: np.ndarray
    valid: np.ndarray


def whole_numbers(values: pa.StringArray) -> WholeNumbers:
    """Read whole numbers >= 0: ASCII digits, leading zeros admitted, no sign, separator, point or exponent."""
    digits = pc.match_substring_regex(values, _WHOLE_NUMBER)
    trimmed = pc.utf8_ltrim(pc.if_else(digits, values, "0"), characters="0")
    small = pc.less_equal(pc.utf8_length(trimmed), len(str(MAX_WHOLE_NUMBER)))
    number = pc.if_else(pc.and_(small, pc.greater(pc.utf8_length(trimmed), 0)), trimmed, "0").cast(pa.int64())
    read = to_numpy(number)
    valid = to_numpy(pc.and_(digits, small)) & (read <= MAX_WHOLE_NUMBER)
    return WholeNumbers(np.where(valid, read, 0), valid)


@dataclass(frozen=True)
class Instants:
    """Values read as instants.

    Attributes:
        epoch_us: int64, microseconds since 1970 in UTC; 0 where not valid. Finer fractions are cut off.
        valid: ISO 8601 with offset, naming an instant that exists.
        has_offset: False where it would be valid, were it not for the missing offset.
    """

    epoch_us: np.ndarray
    valid: np.ndarray
    has_offset: np.ndarray


def instants(values: pa.StringArray) -> Instants:
    """Read ISO 8601 in the extended form with offset: `2024-08-17T15:00:00+01:00`, `…T14:00Z`, `…T14:00:00.5+0530`.

    Years 1 to 9999, days that the calendar has, hours to 23, seconds to 59: a leap second or hour 24 is not valid.
    """
    groups = pc.extract_regex(values, _INSTANT)
    matched = groups.is_valid().to_numpy(zero_copy_only=False)

    def part(name: str, missing: str = "0") -> np.ndarray:
        text = pc.struct_field(groups, name).fill_null("")
        filled = pc.if_else(pc.equal(text, ""), missing, text)
        return to_numpy(filled.cast(pa.int64()))

    year, month, day = part("year", "1"), part("month", "1"), part("day", "1")
    hour, minute, second = part("hour"), part("minute"), part("second")
    fraction = pc.struct_field(groups, "fraction").fill_null("")
    micros = pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, 6, "0"), 0, 6).cast(pa.int64())
    negative = pc.equal(pc.struct_field(groups, "sign").fill_null(""), "-").to_numpy(zero_copy_only=False)
    offset_hour, offset_minute = part("offset_hour"), part("offset_minute")
    has_offset = pc.not_equal(pc.struct_field(groups, "offset").fill_null(""), "").to_numpy(zero_copy_only=False)

    in_range = (year >= 1) & (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 59)
    in_range &= (offset_hour <= 23) & (offset_minute <= 59)
    safe_month = np.where((month >= 1) & (month <= 12), month, 1)
    first = ((np.maximum(year, 1) - 1970) * 12 + safe_month - 1).astype("datetime64[M]")
    length = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
    exists = matched & in_range & (day >= 1) & (day <= length)

    days = first.astype("datetime64[D]").astype(np.int64) + day - 1
    offset = np.where(negative, -1, 1) * (offset_hour * 60 + offset_minute)
    minutes = (days * 24 + hour) * 60 + minute - offset
    epoch_us = minutes * _MINUTE_US + second * _SECOND_US + micros.to_numpy(zero_copy_only=False)
    valid = exists & has_offset
    return Instants(np.where(valid, epoch_us, 0), valid, has_offset | ~exists)


def calendar_date(text: str) -> date | None:
    """Read `YYYY-MM-DD`; None where that is no day of the calendar."""
    if not pc.match_substring_regex(pa.scalar(text), _DATE).as_py():
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
