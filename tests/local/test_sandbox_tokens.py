import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.local.sandbox.tokens import WORDS, Kind, Outcome, outcome_of

SUFFIXES = st.from_regex(r"(_[A-Za-z0-9_-]{0,20})?", fullmatch=True)
AMOUNTS = st.integers(1, 10**15)
DIRECTIONS = st.sampled_from(["credit", "debit"])


def lines(token: str, direction: str = "credit", amount_minor: int = 500) -> list[tuple[str, int, int, int]]:
    outcome = outcome_of(token)
    assert outcome is not None
    return [
        (str(line.kind), line.after_days, line.cash_minor(direction, amount_minor), line.copies)
        for line in outcome.lines
    ]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("tok_dbf7a67a2e834e7107fecb17", [("settled", 0, -500, 1)]),
        ("tok_-", [("settled", 0, -500, 1)]),
        ("tok_test", [("settled", 0, -500, 1)]),
        ("tok_test_fail", [("failed", 0, 0, 1)]),
        ("tok_test_return_0d", [("settled", 0, -500, 1), ("returned", 0, 500, 1)]),
        ("tok_test_return_30d_x", [("settled", 0, -500, 1), ("returned", 30, 500, 1)]),
        ("tok_test_short_20", [("settled", 0, -480, 1)]),
        ("tok_test_short_500", [("settled", 0, -1, 1)]),
        ("tok_test_over_20_x", [("settled", 0, -520, 1)]),
        ("tok_test_in_EUR_x", [("settled", 0, -500, 1)]),
        ("tok_test_twice_", [("settled", 0, -500, 2)]),
        ("tok_test_double_a_b", [("settled", 0, -500, 1), ("settled", 0, -500, 1)]),
        ("tok_test_fee_7", [("settled", 0, -500, 1), ("fee", 0, -7, 1)]),
        ("tok_test_lines_f0s1r30", [("failed", 0, 0, 1), ("settled", 1, -500, 1), ("returned", 30, 500, 1)]),
    ],
)
def test_each_token_stands_for_its_lines(token: str, expected: list[tuple[str, int, int, int]]) -> None:
    assert lines(token) == expected


def test_what_settles_in_another_currency_settles_in_that_one_alone() -> None:
    outcome = outcome_of("tok_test_in_JPY")
    assert outcome is not None
    assert [line.currency for line in outcome.lines] == ["JPY"]


@pytest.mark.parametrize("direction", ["credit", "debit"])
def test_a_fee_is_ours_to_pay_whichever_way_the_money_went(direction: str) -> None:
    assert lines("tok_test_fee_7", direction)[1][2] == -7


def test_a_closed_account_is_refused_and_has_no_lines() -> None:
    assert outcome_of("tok_test_decline_9") == Outcome(refused="account_closed")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "tok_",
        "token",
        "tok_ü",
        "tok_a b",
        "tok_a\n",
        "xtok_a",
        f"tok_{'a' * 201}",
        "tok_test_",
        "tok_test_unheard_of",
        "tok_test_declined",
        "tok_test_fail2",
        "tok_test_return_d",
        "tok_test_return_3",
        "tok_test_return_1000d",
        "tok_test_short_",
        "tok_test_short_-1",
        "tok_test_over_",
        "tok_test_over_-1",
        "tok_test_in_",
        "tok_test_in_eur",
        "tok_test_in_XXX",
        "tok_test_fee_0",
        "tok_test_fee_1000000000000000",
        "tok_test_lines_",
        "tok_test_lines_x1",
        "tok_test_lines_s0f",
    ],
)
def test_a_malformed_token_means_nothing(token: str) -> None:
    assert outcome_of(token) is None


@given(st.text(max_size=30) | st.from_regex(r"tok_(test_)?[a-z0-9_]{0,20}", fullmatch=True), AMOUNTS, DIRECTIONS)
def test_no_token_but_of_more_moves_more_than_its_amount_in_one_line_or_breaks_anything(
    token: str, amount_minor: int, direction: str
) -> None:
    outcome = outcome_of(token)
    for line in outcome.lines if outcome else ():
        cash = line.cash_minor(direction, amount_minor)
        if line.kind is Kind.SETTLED:
            assert 1 <= (-cash if direction == "credit" else cash) <= amount_minor + line.over_minor
            assert line.over_minor == 0 or token.startswith("tok_test_over_")
        elif line.kind is Kind.RETURNED:
            assert cash == (amount_minor if direction == "credit" else -amount_minor)
        elif line.kind is Kind.FAILED:
            assert cash == 0


@given(
    st.sampled_from(
        ["decline", "fail", "return_2d", "short_5", "over_5", "in_EUR", "twice", "double", "fee_5", "lines_s0"]
    ),
    SUFFIXES,
)
def test_what_follows_a_test_token_never_changes_its_outcome(name: str, suffix: str) -> None:
    assert outcome_of(f"tok_test_{name}{suffix}") == outcome_of(f"tok_test_{name}")


def test_the_program_prints_every_token() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "payments_pipeline.local.sandbox", "--tokens"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "".join(f"{token}\n    {words}\n" for token, words in WORDS.items())
