"""Ids: the standard's, over business content alone, and never the same for different content."""

import datetime as dt
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.ids import NAMESPACE, business_id, business_ids

parts = st.lists(
    st.text(st.characters(blacklist_characters="\x1f", blacklist_categories=["Cs"]), max_size=5), max_size=4
)


@given(st.lists(parts.filter(bool), min_size=1, max_size=5))
def test_the_ids_of_columns_are_those_of_their_rows_by_the_standard(rows: list[list[str]]) -> None:
    width = min(map(len, rows))
    columns = [[row[place] for row in rows] for place in range(width)]
    expected = [str(uuid.uuid5(NAMESPACE, "\x1f".join(["kind", *row[:width]]))) for row in rows]
    assert business_ids("kind", *columns) == expected == [business_id("kind", *row[:width]) for row in rows]


@given(parts, parts)
def test_different_content_never_has_one_id(left: list[str], right: list[str]) -> None:
    assert (business_id("kind", *left) == business_id("kind", *right)) == (left == right)


def test_a_part_that_holds_the_separator_is_refused() -> None:
    with pytest.raises(ValueError, match="separator"):
        business_id("kind", "a\x1fb")
    with pytest.raises(ValueError, match="separator"):
        business_ids("kind", ["a", "b"], ["c", "d\x1f"])


def test_the_ids_of_columns_are_the_same_whatever_holds_their_values() -> None:
    days = [dt.date(2024, 8, 17), dt.date(2024, 8, 18)]
    expected = [business_id("kind", "a", 1, days[0]), business_id("kind", "ä", -20, days[1])]
    texts, numbers = ["a", "ä"], [1, -20]
    assert business_ids("kind", texts, numbers, days) == expected
    assert business_ids("kind", pd.Series(texts), pd.Series(numbers), pd.Series(days)) == expected
    assert business_ids("kind", pd.Series(texts, dtype="category"), np.array(numbers), days) == expected
    assert business_ids("kind", np.array(texts, object), pd.Series(numbers, dtype="Int64"), days) == expected
    assert business_ids("kind", iter(texts), (number for number in numbers), iter(days)) == expected
    assert business_ids("kind", [], [], []) == []


def test_an_id_once_given_is_given_for_ever() -> None:
    assert business_id("accrual", "m1", 1) == "ff995d47-a316-5303-8cba-2d7e4c80d4cc"
