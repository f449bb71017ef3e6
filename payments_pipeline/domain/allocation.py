"""Division: each pot among its claims, to the last minor unit, exactly.

Belongs here: fixed, percent and remainder lines over integers. Does not belong here: who the recipients are, frames.

Two ways lead to the same numbers. The kernel works in 64 bits where every intermediate product provably fits; pots
beyond that are divided in Python's unbounded integers. Tests hold each against the other and against fractions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from numba import njit

from payments_pipeline.domain.errors import AllocationOverflowError, InvariantError

Ints = npt.NDArray[np.int64]

FIXED, PERCENT, REMAINDER = 0, 1, 2
#: Basis points of a whole.
WHOLE = 10_000
#: No amount or weight is above this; sums of them fit 63 bits.
LIMIT = 10**15
#: `cap` of a line without one.
NO_CAP = -1

#: What `divide_pot` gives for a pot that 64 bits do not hold: products stay below 2**63, denominators below 2**31, so
#: cross-multiplied fractions below 2**62.
TOO_WIDE = -1
#: Claims up to which insertion sorts faster than merging.
_FEW = 40


@dataclass(frozen=True)
class Claims:
    """What is claimed from pots: aligned int64 arrays, sorted by pot, fixed lines first, then line_no, then party.

    The claims of a line in a pot stand beside each other, one for each sharer, and say the same.

    Attributes:
        pot: position of the pot.
        method: FIXED, PERCENT or REMAINDER.
        line_no: the schedule line.
        value: minor units, basis points or weight.
        cap_minor: most that the line as a whole gets, NO_CAP for none; percent only.
        sharers: recipients of the line in this pot, >= 1.
    """

    pot: Ints
    method: Ints
    line_no: Ints
    value: Ints
    cap_minor: Ints
    sharers: Ints


def divide(amounts: Ints, claims: Claims, threads: int = 1) -> tuple[Ints, Ints]:
    """Divide each pot among its claims by largest remainder.

    Args:
        amounts: minor units of each pot, 0 to LIMIT.
        claims: see `Claims`; the percents of a pot sum to at most WHOLE.
        threads: parts worked on at once; the result is the same.

    Returns:
        Minor units of each claim, and of each pot what nobody is entitled to; together they sum to the pot.

    Raises:
        AllocationOverflowError: an amount, value or cap is negative or above LIMIT; names the pot's position.
        InvariantError: a line's claims are not as many as its sharers, beside each other; names the pot's position.

    Source: Hamilton's method; docs/concepts/allocation.md.
    """
    given = np.empty(len(claims.pot), dtype=np.int64)
    left = np.empty(len(amounts), dtype=np.int64)
    edges = [len(amounts) * part // max(1, threads) for part in range(max(1, threads) + 1)]

    def work(part: tuple[int, int]) -> bool:
        first, end = np.searchsorted(claims.pot, part)
        return bool(
            _kernel(
                part[0],
                part[1],
                first,
                end,
                amounts,
                claims.pot,
                claims.method,
                claims.line_no,
                claims.value,
                claims.cap_minor,
                claims.sharers,
                given,
                left,
            )
        )

    parts = list(pairwise(edges))
    if len(parts) == 1:
        admitted = [work(parts[0])]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            admitted = list(pool.map(work, parts))
    if not all(admitted):
        _refuse(amounts, claims)
    for pot in np.flatnonzero(left == TOO_WIDE):
        rows = slice(*np.searchsorted(claims.pot, (pot, pot + 1)))
        of_pot = Claims(
            claims.pot[rows],
            claims.method[rows],
            claims.line_no[rows],
            claims.value[rows],
            claims.cap_minor[rows],
            claims.sharers[rows],
        )
        given[rows], left[pot] = divide_exactly(int(amounts[pot]), of_pot)
    return given, left


def _refuse(amounts: Ints, claims: Claims) -> NoReturn:
    """Say which pot has an amount, or a claim a number, that the division does not admit."""
    found = [
        (int(pot), int(values[at]))
        for values, pots in (
            (amounts, np.arange(len(amounts))),
            (claims.value, claims.pot),
            (np.maximum(claims.cap_minor, 0), claims.pot),
        )
        for at in np.flatnonzero((values < 0) | (values > LIMIT))[:1]
        for pot in [pots[at]]
    ]
    if not found:
        together = (np.diff(claims.pot, prepend=-1) != 0) | (np.diff(claims.line_no, prepend=-1) != 0)
        starts = np.flatnonzero(together)
        counts = np.diff(starts, append=len(claims.pot))
        pot = int(claims.pot[starts[np.flatnonzero(counts != claims.sharers[starts])[0]]])
        raise InvariantError(f"pot {pot}: a line has more or fewer claims than sharers. Nothing was divided: a defect.")
    pot, value = found[0]
    raise AllocationOverflowError(
        f"pot {pot}: {value} is not between 0 and {LIMIT}. Nothing was divided. Mend amount or line."
    )


@njit(cache=True, nogil=True)
def divide_pot(  # noqa: C901 - one pass over memory; taken apart it is slower and no clearer
    amount: int,
    first: int,
    end: int,
    method: Ints,
    value: Ints,
    cap_minor: Ints,
    sharers: Ints,
    given: Ints,
    begin: Ints,
    rest: Ints,
    base: Ints,
    order: Ints,
    spare: Ints,
) -> int:  # pragma: no cover - compiled
    """Divide one pot among the claims `first` to `end` of aligned arrays, into `given`; for compiled callers.

    All recipients of a line have the same entitlement, and stand beside each other: it is worked out once a line, and
    of each line only the first claim is read.

    Args:
        amount: minor units.
        first: position of the pot's first claim.
        end: position after its last.
        method: as the next three, see `Claims`.
        value: see `Claims`.
        cap_minor: see `Claims`.
        sharers: see `Claims`.
        given: written: minor units of each claim.
        begin: scratch, as the next four, longer than the pot has lines.
        rest: scratch.
        base: scratch.
        order: scratch.
        spare: scratch.

    Returns:
        What nobody is entitled to; TOO_WIDE where a product does not fit, and `given` then says nothing.
    """
    remaining = amount
    at = first
    while at < end and method[at] == 0:
        for j in range(at, at + sharers[at]):
            given[j] = min(value[at], remaining)
            remaining -= given[j]
        at += sharers[at]
    if remaining > 9_223_372_036_854_775_807 // 10_000:
        return -1
    # What the percent lines take in all, and the weights of the remainder lines.
    taken, weights, lines = 0, 0, 0
    while at < end:
        begin[lines] = at
        if method[at] == 1:
            part = remaining * value[at]
            if cap_minor[at] >= 0 and cap_minor[at] <= 922_337_203_685_477:
                part = min(part, cap_minor[at] * 10_000)
            rest[lines] = part
            taken += part
        else:
            if weights > 9_223_372_036_854_775_807 - value[at]:
                return -1
            weights += value[at]
        at += sharers[at]
        lines += 1
    begin[lines] = end
    rest_total = remaining * 10_000 - taken
    handed = 0
    alike = True
    for k in range(lines):
        i = begin[k]
        if method[i] == 1:
            part = rest[k]
            denominator = 10_000 * sharers[i]
        else:
            if value[i] > 0 and rest_total > 9_223_372_036_854_775_807 // value[i]:
                return -1
            part = rest_total * value[i]
            if weights > 2_147_483_647 // (10_000 * sharers[i]):
                return -1
            denominator = 10_000 * weights * sharers[i]
        if denominator > 2_147_483_647:
            return -1
        floor = part // denominator
        rest[k] = part - floor * denominator
        base[k] = denominator
        alike = alike and denominator == base[0]
        for j in range(i, begin[k + 1]):
            given[j] = floor
        handed += floor * (begin[k + 1] - i)
    entitled = remaining if weights > 0 else taken // 10_000
    units = entitled - handed
    if units > 0:
        if alike:
            # Over one denominator the fractions compare as their numerators do.
            for k in range(lines):
                base[k] = 1
        _sort_lines(lines, rest, base, order, spare)
        for k in range(lines):
            i = begin[order[k]]
            for j in range(i, min(begin[order[k] + 1], i + units)):
                given[j] += 1
            units -= begin[order[k] + 1] - i
            if units <= 0:
                break
    return remaining - entitled


@njit(cache=True, nogil=True)
def _sort_lines(count: int, rest: Ints, base: Ints, order: Ints, spare: Ints) -> None:  # pragma: no cover - compiled
    """Order lines by their fractions, the largest first; ties keep the order of line_no."""
    if count <= _FEW:
        # Insertion into what is sorted so far: nothing is faster for few.
        for k in range(count):
            r, b = rest[k], base[k]
            j = k
            while j > 0 and rest[order[j - 1]] * b < r * base[order[j - 1]]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = k
        return
    for k in range(count):
        order[k] = k
    # A stable merge sort.
    width = 1
    while width < count:
        low = 0
        while low < count:
            middle, high = min(low + width, count), min(low + 2 * width, count)
            a, b = low, middle
            for k in range(low, high):
                if a < middle and (b >= high or rest[order[a]] * base[order[b]] >= rest[order[b]] * base[order[a]]):
                    spare[k] = order[a]
                    a += 1
                else:
                    spare[k] = order[b]
                    b += 1
            low += 2 * width
        order[:count] = spare[:count]
        width *= 2


@njit(cache=True, nogil=True)
def _kernel(
    first_pot: int,
    end_pot: int,
    first: int,
    end: int,
    amounts: Ints,
    pot: Ints,
    method: Ints,
    line_no: Ints,
    value: Ints,
    cap_minor: Ints,
    sharers: Ints,
    given: Ints,
    left: Ints,
) -> bool:  # pragma: no cover - compiled
    """Divide pots, whose claims are the rows `first` to `end`; say whether every number is admitted."""
    begin, rest, base, order, spare = np.empty((5, _FEW), dtype=np.int64)
    row = first
    for place in range(first_pot, end_pot):
        if amounts[place] < 0 or amounts[place] > LIMIT:
            return False
        start, lines = row, 0
        while row < end and pot[row] == place:
            last = row + sharers[row] - 1
            if value[row] < 0 or value[row] > LIMIT or cap_minor[row] > LIMIT:
                return False
            if last < row or last >= end or pot[last] != place or line_no[last] != line_no[row]:
                return False
            row = last + 1
            if row < end and pot[row] == place and line_no[row] == line_no[last]:
                return False
            lines += 1
        if lines >= len(begin):
            begin, rest, base, order, spare = np.empty((5, 2 * lines), dtype=np.int64)
        left[place] = divide_pot(
            amounts[place],
            start,
            row,
            method,
            value,
            cap_minor,
            sharers,
            given,
            begin,
            rest,
            base,
            order,
            spare,
        )
    return True


def divide_exactly(amount: int, claims: Claims) -> tuple[Ints, int]:
    """Divide one pot in unbounded integers, for amounts and weights that do not fit the kernel.

    Args:
        amount: minor units of the pot.
        claims: of this pot alone.

    Returns:
        Minor units of each claim, and what nobody is entitled to.
    """
    given = np.zeros(len(claims.method), dtype=np.int64)
    rows = range(len(given))
    remaining = amount
    for row in rows:
        if claims.method[row] == FIXED:
            given[row] = min(int(claims.value[row]), remaining)
            remaining -= int(given[row])
    divided = [row for row in rows if claims.method[row] != FIXED]
    totals: dict[int, Fraction] = {}
    weights: dict[int, int] = {}
    for row in divided:
        line, value = int(claims.line_no[row]), int(claims.value[row])
        if claims.method[row] == PERCENT:
            total = Fraction(remaining * value, WHOLE)
            cap = int(claims.cap_minor[row])
            totals[line] = total if cap == NO_CAP else min(total, Fraction(cap))
        else:
            weights[line] = value
    rest = remaining - sum(totals.values(), Fraction(0))
    for line, weight in weights.items():
        totals[line] = rest * weight / sum(weights.values())
    entitled = remaining if weights else int(sum(totals.values()))
    parts = {row: totals[int(claims.line_no[row])] / int(claims.sharers[row]) for row in divided}
    for row, part in parts.items():
        given[row] = int(part)
    units = entitled - sum(int(part) for part in parts.values())
    for row in sorted(divided, key=lambda row: (-(parts[row] - int(parts[row])), row))[:units]:
        given[row] += 1
    return given, remaining - entitled
