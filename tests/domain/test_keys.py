"""Keys of several columns as numbers, against the same said with dictionaries."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.keys import key_codes, rows_of, running_sums, turns

#: Few values, so that keys meet; the two texts of each pair must not be taken for the other pair's.
KEYS = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", "", None]), st.sampled_from(["a", "b", "ba", "Ж"])))
AMOUNTS = st.lists(st.integers(-(2**40), 2**40))


def columns(keys: list[tuple]) -> list[np.ndarray]:
    return [np.array([key[n] for key in keys], object) for n in range(2)]


def frame(keys: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(["one", "two"], columns(keys), strict=True)))


@given(KEYS)
def test_equal_keys_have_one_number_in_order_of_their_first_rows(keys):
    codes, first = key_codes(columns(keys))
    distinct = list(dict.fromkeys(keys))
    assert codes.tolist() == [distinct.index(key) for key in keys]
    assert first.tolist() == [keys.index(key) for key in distinct]


@given(KEYS, KEYS)
def test_a_key_is_found_where_it_stands_last_and_nowhere_else(wanted, among):
    places = {key: row for row, key in enumerate(among)}
    assert rows_of(frame(wanted), frame(among), ["one", "two"]).tolist() == [places.get(key, -1) for key in wanted]


@given(KEYS)
def test_a_turn_is_the_number_of_rows_before_it_with_its_key(keys):
    codes, _ = key_codes(columns(keys))
    assert turns(codes).tolist() == [keys[:row].count(key) for row, key in enumerate(keys)]


@given(KEYS, AMOUNTS)
def test_a_running_sum_is_of_the_rows_of_its_key_up_to_its_own(keys, amounts):
    pairs = list(zip(keys, amounts, strict=False))
    keys, amounts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    codes, _ = key_codes(columns(keys))
    sums = [sum(amounts[n] for n in range(row + 1) if keys[n] == key) for row, key in enumerate(keys)]
    assert running_sums(codes, np.array(amounts, np.int64)).tolist() == sums
