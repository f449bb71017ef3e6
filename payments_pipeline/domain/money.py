"""Currencies and their minor units.

Belongs here: which currencies there are, how many decimals each has, an amount as text. Does not belong here:
rounding, dividing or converting; amounts stay whole minor units everywhere else. Sums that may be large are added here.

Source: ISO 4217's own table (the `iso4217` package); CLDR's exponents differ for IQD, AFN and MGA.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from iso4217 import Currency

#: Decimals of each currency that has minor units. Codes without any (gold, test codes) hold no money.
EXPONENTS: Mapping[str, int] = MappingProxyType(
    {currency.code: currency.exponent for currency in Currency if currency.exponent is not None}
)


#: No more than this is posted of a day in one currency, in minor units: sums over all days stay far within 63 bits.
MOST_A_DAY = 10**18


def exact_sum(amounts_minor: npt.NDArray[np.int64]) -> int:
    """Add int64 amounts without ever wrapping, whatever they come to."""
    high, low = amounts_minor >> 31, amounts_minor & 0x7FFFFFFF
    return (int(high.sum()) << 31) + int(low.sum())


def is_currency(code: str) -> bool:
    """Tell whether a code is an ISO 4217 currency that amounts can be held in."""
    return code in EXPONENTS


def exponent(currency: str) -> int:
    """Give the number of decimals of a currency: 2 for GBP, 0 for JPY, 3 for IQD.

    Raises:
        ValueError: no ISO 4217 currency with minor units.
    """
    try:
        return EXPONENTS[currency]
    except KeyError:
        raise ValueError(f"{currency!r} is no ISO 4217 currency with minor units") from None


def format_minor(amount_minor: int, currency: str) -> str:
    """Write minor units as decimal text without separators: 123405 in GBP is `1234.05`, -7 in GBP is `-0.07`.

    Raises:
        ValueError: no ISO 4217 currency with minor units.
    """
    decimals = exponent(currency)
    sign = "-" if amount_minor < 0 else ""
    digits = str(abs(int(amount_minor))).rjust(decimals + 1, "0")
    return f"{sign}{digits}" if decimals == 0 else f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"
