import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.money import EXPONENTS, exact_sum, exponent, format_minor, is_currency


@pytest.mark.rule("always/exponents")
@pytest.mark.parametrize(
    ("currency", "decimals"), [("GBP", 2), ("JPY", 0), ("IQD", 3), ("AFN", 2), ("MGA", 2), ("CLF", 4), ("RUB", 2)]
)
def test_exponents_are_the_standards_own(currency, decimals):
    assert exponent(currency) == decimals


@pytest.mark.parametrize("code", ["", "gbp", "XAU", "XXX", "XTS", "ZZZ", "GBP "])
def test_a_code_that_holds_no_money_is_no_currency(code):
    assert not is_currency(code)
    with pytest.raises(ValueError, match="no ISO 4217 currency"):
        exponent(code)


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (0, "GBP", "0.00"),
        (-7, "GBP", "-0.07"),
        (123405, "GBP", "1234.05"),
        (12, "JPY", "12"),
        (-1, "IQD", "-0.001"),
        (10**15, "QAR", "10000000000000.00"),
    ],
)
def test_an_amount_is_written_with_its_currencys_decimals(minor, currency, text):
    assert format_minor(minor, currency) == text


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(sorted(EXPONENTS)))
def test_the_digits_written_are_the_amount(minor, currency):
    text = format_minor(minor, currency)
    assert int(text.replace(".", "")) == minor
    assert len(text.partition(".")[2]) == exponent(currency)


@given(st.lists(st.integers(-(10**18), 10**18), max_size=60))
def test_a_sum_of_large_amounts_is_exact_and_never_wraps(amounts):
    assert exact_sum(np.array(amounts, dtype=np.int64)) == sum(amounts)
