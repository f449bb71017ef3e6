"""The division: exact, conserving, to the last minor unit; the kernel and the unbounded path agree everywhere."""

from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payments_pipeline.domain import allocation
from payments_pipeline.domain.allocation import FIXED, LIMIT, NO_CAP, PERCENT, REMAINDER, Claims, divide
from payments_pipeline.domain.errors import AllocationOverflowError, InvariantError

Line = tuple[int, int, int, int]  # method, value, cap_minor, recipients


def claims_of(pots: list[list[Line]]) -> Claims:
    rows = [
        (pot, method, line_no, value, cap, sharers)
        for pot, lines in enumerate(pots)
        for is_fixed in (True, False)
        for line_no, (method, value, cap, sharers) in enumerate(lines, start=1)
        if (method == FIXED) == is_fixed
        for _ in range(sharers)
    ]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 6).T.copy()
    return Claims(*columns)


def divided(amount: int, *lines: Line) -> list[int]:
    given, left = divide(np.array([amount]), claims_of([list(lines)]))
    assert given.sum() + left[0] == amount
    return [int(part) for part in given]


amounts = st.one_of(st.integers(0, 5_000), st.integers(0, LIMIT))
weights = st.one_of(st.integers(1, 9), st.integers(1, LIMIT))
recipients = st.integers(1, 6)
remainders = st.tuples(st.just(REMAINDER), weights, st.just(NO_CAP), recipients)
fixed = st.tuples(st.just(FIXED), amounts, st.just(NO_CAP), recipients)
percents = st.tuples(st.just(PERCENT), st.integers(0, 2_500), st.one_of(st.just(NO_CAP), amounts), recipients)
pots = st.tuples(
    amounts,
    st.tuples(st.lists(fixed, max_size=2), st.lists(percents, max_size=4), st.lists(remainders, max_size=4)).flatmap(
        lambda parts: st.permutations(parts[0] + parts[1] + parts[2])
    ),
)


def exact_entitlements(amount: int, lines: list[Line]) -> tuple[list[Fraction], int]:
    """Give each line's total by the words of the rules, and what is divided among them."""
    left = amount
    for method, value, _, sharers in lines:
        if method == FIXED:
            for _ in range(sharers):
                left -= min(value, left)
    totals = [
        min(Fraction(left * value, 10_000), Fraction(cap if cap != NO_CAP else LIMIT * 10))
        if method == PERCENT
        else Fraction(0)
        for method, value, cap, _ in lines
    ]
    rest = left - sum(totals, Fraction(0))
    weight = sum(value for method, value, _, _ in lines if method == REMAINDER)
    return [
        rest * value / weight if method == REMAINDER else total
        for (method, value, _, _), total in zip(lines, totals, strict=True)
    ], left


@given(pots)
@settings(max_examples=300, deadline=None)
def test_every_pot_is_divided_to_the_last_minor_unit(pot: tuple[int, list[Line]]) -> None:
    amount, lines = pot
    claims = claims_of([list(lines)])
    given_minor, left = divide(np.array([amount]), claims)
    totals, divided_minor = exact_entitlements(amount, list(lines))
    assert given_minor.sum() + left[0] == amount
    assert (given_minor >= 0).all()
    if any(line[0] == REMAINDER for line in lines):
        assert left[0] == 0
    else:
        assert left[0] == divided_minor - int(sum(totals, Fraction(0)))
    for line_no, method, sharers, got in zip(claims.line_no, claims.method, claims.sharers, given_minor, strict=True):
        if method != FIXED:
            entitled = totals[line_no - 1] / int(sharers)
            assert int(entitled) <= got <= int(entitled) + 1


@given(st.lists(pots, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_the_kernel_and_the_unbounded_path_give_the_same(many: list[tuple[int, list[Line]]]) -> None:
    claims = claims_of([list(lines) for _, lines in many])
    minor = np.array([amount for amount, _ in many])
    given_minor, left = divide(minor, claims)

    def all_wide(*arguments: np.ndarray) -> bool:
        arguments[-1][:] = allocation.TOO_WIDE
        return True

    with patch.object(allocation, "_kernel", all_wide):
        exactly, left_exactly = divide(minor, claims)
    assert given_minor.tolist() == exactly.tolist()
    assert left.tolist() == left_exactly.tolist()
    for threads in (2, 3, 7):
        in_parts, left_in_parts = divide(minor, claims, threads)
        assert in_parts.tolist() == given_minor.tolist()
        assert left_in_parts.tolist() == left.tolist()


def test_the_worked_example_gives_each_what_the_docs_say() -> None:
    fixed_line, percent = (FIXED, 100, NO_CAP, 1), (PERCENT, 1000, NO_CAP, 1)
    assert divided(1001, fixed_line, percent, (REMAINDER, 2, NO_CAP, 1), (REMAINDER, 1, NO_CAP, 1)) == [
        100,
        90,
        541,
        270,
    ]


def test_two_cents_over_weights_3_3_3_1_gives_nobody_a_negative_share() -> None:
    weights_3331 = [(REMAINDER, weight, NO_CAP, 1) for weight in (3, 3, 3, 1)]
    assert divided(2, *weights_3331) == [1, 1, 0, 0]


@pytest.mark.parametrize("amount", [0, 1, 2, 3, 9, 10, 11, 99, 101, 999_999_999_999_999])
def test_50_45_and_the_rest_adds_up(amount: int) -> None:
    parts = divided(amount, (PERCENT, 5000, NO_CAP, 1), (PERCENT, 4500, NO_CAP, 1), (REMAINDER, 1, NO_CAP, 1))
    assert sum(parts) == amount


def test_a_fixed_line_that_exhausts_the_pot_gives_the_next_what_is_left_and_later_ones_nothing() -> None:
    assert divided(25, (FIXED, 10, NO_CAP, 4), (REMAINDER, 1, NO_CAP, 1)) == [10, 10, 5, 0, 0]


def test_ties_go_to_the_lower_line_and_then_to_the_earlier_recipient() -> None:
    assert divided(1, (REMAINDER, 1, NO_CAP, 2), (REMAINDER, 1, NO_CAP, 2)) == [1, 0, 0, 0]
    assert divided(3, (PERCENT, 5000, NO_CAP, 2), (REMAINDER, 1, NO_CAP, 2)) == [1, 1, 1, 0]


def test_a_cap_holds_for_the_line_as_a_whole() -> None:
    assert divided(1000, (PERCENT, 5000, 10, 3), (REMAINDER, 1, NO_CAP, 1)) == [4, 3, 3, 990]


def test_without_a_remainder_recipient_only_the_floor_of_what_is_entitled_is_handed_out() -> None:
    given_minor, left = divide(np.array([101]), claims_of([[(PERCENT, 3333, NO_CAP, 1), (PERCENT, 3333, NO_CAP, 1)]]))
    assert (given_minor.tolist(), left.tolist()) == ([34, 33], [34])


def test_a_pot_with_a_hundred_thousand_recipients_is_divided_exactly() -> None:
    parts = divided(10**15 - 1, (REMAINDER, 7, NO_CAP, 100_000), (REMAINDER, 10**15, NO_CAP, 1))
    assert sum(parts) == 10**15 - 1
    assert max(parts[:-1]) - min(parts[:-1]) <= 1


@pytest.mark.parametrize("amount", [-1, LIMIT + 1])
def test_an_amount_beyond_the_limit_is_refused_by_name(amount: int) -> None:
    with pytest.raises(AllocationOverflowError, match="pot 0"):
        divide(np.array([amount]), claims_of([[(REMAINDER, 1, NO_CAP, 1)]]))


@pytest.mark.parametrize("sharers", [-1, 0, 1, 3, 4, 2**62])
def test_a_line_that_has_more_or_fewer_claims_than_sharers_is_refused_by_name(sharers: int) -> None:
    claims = claims_of([[(REMAINDER, 1, NO_CAP, 2)], [(PERCENT, 5, NO_CAP, 2), (REMAINDER, 1, NO_CAP, 1)]])
    claims.sharers[2:4] = sharers
    with pytest.raises(InvariantError, match="pot 1: a line has more or fewer claims than sharers"):
        divide(np.array([100, 100]), claims)


def test_a_weight_beyond_the_limit_is_refused_by_name() -> None:
    with pytest.raises(AllocationOverflowError, match="pot 1"):
        divide(np.array([1, 1]), claims_of([[(REMAINDER, 1, NO_CAP, 1)], [(REMAINDER, LIMIT + 1, NO_CAP, 1)]]))
