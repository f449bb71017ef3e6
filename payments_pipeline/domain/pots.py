"""Pots: which are formed, who claims what from each, and the share lines that come of it, over coded columns.

Belongs here: the way from matches to share lines in integer codes, compiled. Does not belong here: the arithmetic of
one pot (`allocation`), ids and words (`participant_shares`).

A code is a position in a sorted list of ids, so that codes compare as ids do. -1 is nobody.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from payments_pipeline.domain.allocation import FIXED, TOO_WIDE, Claims, Ints, divide_exactly, divide_pot

Codes = npt.NDArray[np.int32]

MATCH_FEE, REVENUE = 0, 1
#: Method of the line that says who is charged; the others are those of `allocation`.
CHARGE = -1
PLAYER, REFEREE, OTHER_ROLE = 0, 1, 2
#: Line of a row that is no line's: what nobody is entitled to.
NO_LINE = -1


class Recipient(IntEnum):
    """Whom a line names. The first seven are columns of `CodedMatches.named`."""

    ORGANISER = 0
    FEDERATION = 1
    PLATFORM = 2
    HOME_CLUB = 3
    AWAY_CLUB = 4
    WINNING_CLUB = 5
    LOSING_CLUB = 6
    OWN_CLUB = 7
    EACH_CLUB = 8
    EACH_PLAYER = 9
    EACH_REFEREE = 10
    PARTY = 11


@dataclass(frozen=True)
class CodedLines:
    """Schedule lines by program, the lines that apply to a competition, version and status; ordered by line_no.

    Attributes:
        starts: position of each program's first line, and the end of the last.
        pot: MATCH_FEE or REVENUE.
        method: CHARGE, or a method of `allocation`.
        line_no: as in the schedule.
        value: minor units, basis points or weight.
        cap_minor: NO_CAP for none.
        recipient: a `Recipient`; of a charge EACH_PLAYER or EACH_REFEREE.
        party: code of the party that a PARTY line names, else -1.
    """

    starts: Ints
    pot: Ints
    method: Ints
    line_no: Ints
    value: Ints
    cap_minor: Ints
    recipient: Ints
    party: Codes


@dataclass(frozen=True)
class CodedMatches:
    """Matches in order of match_id.

    Attributes:
        program: position of the program in `CodedLines`; -1 where no line applies.
        named: party codes, one column for each of the first seven of `Recipient`.
        revenue_minor: 0 for none.
        people_starts: position of each match's first participant, and the end of the last.
        people_party: party codes, ascending within a match.
        people_club: party codes of their clubs.
        people_role: PLAYER, REFEREE or OTHER_ROLE.
    """

    program: Ints
    named: Codes
    revenue_minor: Ints
    people_starts: Ints
    people_party: Codes
    people_club: Codes
    people_role: npt.NDArray[np.int8]


@dataclass(frozen=True)
class ShareLines:
    """Share lines in their order: by match, pot, payer, line, party; no amount is zero.

    Attributes:
        match: position of the match.
        payer: party code of the charged participant; -1 in a revenue pot.
        line: position of the line; NO_LINE for what nobody is entitled to.
        party: party code; -1 for what nobody is entitled to.
        amount_minor: minor units.
        pot_end: of each pot that was formed, in order, the position after its last line.
        pot_minor: what each must sum to: 0 for a match fee.
    """

    match: Codes
    payer: Codes
    line: Codes
    party: Codes
    amount_minor: Ints
    pot_end: Ints
    pot_minor: Ints


def share_lines(matches: CodedMatches, lines: CodedLines, threads: int = 1) -> ShareLines:
    """Form every pot and divide it.

    Args:
        matches: see `CodedMatches`; amounts are within `allocation.LIMIT`.
        lines: see `CodedLines`; so are values and caps.
        threads: parts that matches are cut into and that are worked on at once; the result is the same.
    """
    rows, pots = _room(
        matches.program, matches.revenue_minor, matches.people_starts, matches.people_role, *_of_lines(lines)
    )
    before, pots_before = (np.concatenate([[0], np.cumsum(each)]) for each in (rows, pots))
    cuts = np.searchsorted(before, np.linspace(0, before[-1], max(1, threads) + 1)[1:-1])
    parts = list(pairwise([0, *(int(cut) for cut in cuts), len(rows)]))
    # Each part writes where the most that those before it can come to has room.
    match, payer, line, party = (np.empty(before[-1], dtype=np.int32) for _ in range(4))
    amount_minor = np.empty(before[-1], dtype=np.int64)
    pot_end, pot_minor = (np.empty(pots_before[-1], dtype=np.int64) for _ in range(2))
    by_row, by_pot = (match, payer, line, party, amount_minor), (pot_end, pot_minor)

    def work(part: tuple[int, int]) -> tuple[int, int]:
        (first, end), (first_pot, end_pot) = before[list(part)], pots_before[list(part)]
        return _part(
            matches, lines, *part, *(each[first:end] for each in by_row), *(each[first_pot:end_pot] for each in by_pot)
        )

    if len(parts) == 1:
        written, formed = work(parts[0])
        return ShareLines(*(each[:written] for each in by_row), *(each[:formed] for each in by_pot))
    with ThreadPoolExecutor(len(parts)) as pool:
        done = list(pool.map(work, parts))
        # What a part left empty is closed up by the next.
        row, pot = done[0]
        for (first, _), (written, formed) in zip(parts[1:], done[1:], strict=True):
            at, of = int(before[first]), int(pots_before[first])
            pot_end[of : of + formed] += row
            list(pool.map(_move, by_row, [row] * 5, [at] * 5, [written] * 5))
            list(pool.map(_move, by_pot, [pot] * 2, [of] * 2, [formed] * 2))
            row, pot = row + written, pot + formed
    return ShareLines(*(each[:row] for each in by_row), *(each[:pot] for each in by_pot))


def _move(values: npt.NDArray[Any], to: int, start: int, count: int) -> None:
    if to != start:
        values[to : to + count] = values[start : start + count]


def compile_kernels() -> None:
    """Compile what is compiled and keep it beside this module, so that no first run waits for it."""
    numbers = np.zeros(1, dtype=np.int64)
    starts, nobody = np.array([0, 1]), np.array([-1], dtype=np.int32)
    lines = CodedLines(starts, numbers, numbers, numbers, numbers, numbers, numbers, nobody)
    named = np.full((1, Recipient.LOSING_CLUB + 1), -1, dtype=np.int32)
    role = np.array([OTHER_ROLE], dtype=np.int8)
    share_lines(CodedMatches(numbers, named, numbers, starts, nobody, nobody, role), lines)


def _of_lines(lines: CodedLines) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    return lines.starts, lines.pot, lines.method, lines.value, lines.recipient


def _part(
    matches: CodedMatches,
    lines: CodedLines,
    first: int,
    end: int,
    match: Codes,
    payer: Codes,
    line: Codes,
    party: Codes,
    amount_minor: Ints,
    pot_end: Ints,
    pot_minor: Ints,
) -> tuple[int, int]:
    """Write the lines of matches `first` to `end`; give how many lines and pots there are."""
    wide = np.empty((len(pot_minor), 3), dtype=np.int64)
    written, formed, too_wide = _fill(
        first,
        end,
        matches.program,
        matches.named,
        matches.revenue_minor,
        matches.people_starts,
        matches.people_party,
        matches.people_club,
        matches.people_role,
        *_of_lines(lines),
        lines.cap_minor,
        lines.party,
        match,
        payer,
        line,
        party,
        amount_minor,
        pot_end,
        pot_minor,
        wide,
    )
    if not too_wide:
        return written, formed
    for start, stop, minor in wide[:too_wide].tolist():
        amount_minor[start:stop] = _divided_exactly(minor, lines, line[start:stop], amount_minor[start:stop])
    # Of a pot that is too wide every claim has a line.
    kept = np.flatnonzero(amount_minor[:written])
    pot_end[:formed] = np.searchsorted(kept, pot_end[:formed])
    for each in (match, payer, line, party, amount_minor):
        each[: len(kept)] = each[kept]
    return len(kept), formed


def _divided_exactly(minor: int, lines: CodedLines, line: Codes, amount_minor: Ints) -> Ints:
    """Give the amounts of a pot whose rows were written without: its payer's stands, its claims' are divided."""
    amounts = amount_minor.copy()
    claiming = np.flatnonzero((line != NO_LINE) & (lines.method[line] != CHARGE))
    order = claiming[np.argsort(lines.method[line[claiming]] != FIXED, kind="stable")]
    at = line[order].astype(np.int64)
    sharers = np.bincount(at, minlength=len(lines.method))[at]
    claims = Claims(
        np.zeros(len(at), dtype=np.int64), lines.method[at], at, lines.value[at], lines.cap_minor[at], sharers
    )
    given, left = divide_exactly(minor, claims)
    amounts[order] = given
    amounts[np.flatnonzero(line == NO_LINE)] = left
    return amounts


@njit(cache=True, nogil=True)
def _room(
    program: Ints,
    revenue_minor: Ints,
    people_starts: Ints,
    people_role: npt.NDArray[np.int8],
    line_starts: Ints,
    line_pot: Ints,
    line_method: Ints,
    line_value: Ints,
    line_recipient: Ints,
) -> tuple[Ints, Ints]:  # pragma: no cover - compiled
    """Give, for each match, the most rows that its pots can come to, and the most pots."""
    rows = np.zeros(len(program), dtype=np.int64)
    pots = np.zeros(len(program), dtype=np.int64)
    for match in range(len(program)):
        if program[match] < 0:
            continue
        people = np.zeros(3, dtype=np.int64)
        for person in range(people_starts[match], people_starts[match + 1]):
            people[people_role[person]] += 1
        claims = np.zeros(2, dtype=np.int64)
        payers = 0
        for line in range(line_starts[program[match]], line_starts[program[match] + 1]):
            recipient = line_recipient[line]
            count = 2 if recipient == 8 else people[recipient - 9] if recipient in (9, 10) else 1
            if line_method[line] != -1:
                claims[line_pot[line]] += count
            elif line_value[line] > 0:
                payers += count
        revenue_pots = 1 if revenue_minor[match] > 0 else 0
        pots[match] = payers + revenue_pots
        # Each pot may have a row for what nobody is entitled to, and a match fee has one for its payer.
        rows[match] = payers * (claims[0] + 2) + revenue_pots * (claims[1] + 1)
    return rows, pots


@njit(cache=True, nogil=True)
def _add(line: int, party: int, n: int, scratch_line: Ints, scratch_party: Codes) -> int:  # pragma: no cover - compiled
    scratch_line[n] = line
    scratch_party[n] = party
    return n + 1


@njit(cache=True, nogil=True)
def _claim(
    match: int,
    line: int,
    recipient: int,
    own_club: int,
    n: int,
    named: Codes,
    people_starts: Ints,
    people_party: Codes,
    people_role: npt.NDArray[np.int8],
    line_party: Codes,
    scratch_line: Ints,
    scratch_party: Codes,
) -> int:  # pragma: no cover - compiled
    """Write a line's claims, ascending by party, and give the position after them."""
    if recipient <= 6:
        if named[match, recipient] >= 0:
            n = _add(line, named[match, recipient], n, scratch_line, scratch_party)
    elif recipient == 7:
        if own_club >= 0:
            n = _add(line, own_club, n, scratch_line, scratch_party)
    elif recipient == 8:
        home, away = named[match, 3], named[match, 4]
        n = _add(line, min(home, away), n, scratch_line, scratch_party)
        n = _add(line, max(home, away), n, scratch_line, scratch_party)
    elif recipient == 11:
        n = _add(line, line_party[line], n, scratch_line, scratch_party)
    else:
        for person in range(people_starts[match], people_starts[match + 1]):
            if people_role[person] == recipient - 9:
                n = _add(line, people_party[person], n, scratch_line, scratch_party)
    return n


@njit(cache=True, nogil=True)
def _fill(  # noqa: C901 - one pass over memory; taken apart it is slower and no clearer
    first: int,
    end: int,
    program: Ints,
    named: Codes,
    revenue_minor: Ints,
    people_starts: Ints,
    people_party: Codes,
    people_club: Codes,
    people_role: npt.NDArray[np.int8],
    line_starts: Ints,
    line_pot: Ints,
    line_method: Ints,
    line_value: Ints,
    line_recipient: Ints,
    line_cap: Ints,
    line_party: Codes,
    out_match: Codes,
    out_payer: Codes,
    out_line: Codes,
    out_party: Codes,
    out_amount: Ints,
    pot_end: Ints,
    pot_minor: Ints,
    wide: npt.NDArray[np.int64],
) -> tuple[int, int, int]:  # pragma: no cover - compiled
    """Write the rows of matches `first` to `end`; give how many rows, pots and pots too wide for 64 bits there are.

    The rows of a pot that is too wide are all written, its payer's with its amount and its claims' with none.
    """
    widest = 1
    for match in range(first, end):
        if program[match] >= 0:
            most = line_starts[program[match] + 1] - line_starts[program[match]]
            widest = max(widest, most * (people_starts[match + 1] - people_starts[match] + 2))
    scratch_line, scratch_party = np.empty(widest, np.int64), np.empty(widest, np.int32)
    method, value, cap = np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest, np.int64)
    sharers, given = np.empty(widest, np.int64), np.empty(widest, np.int64)
    begin, rest, base, order, spare = np.empty((5, widest + 1), np.int64)
    row, pots, too_wide = 0, 0, 0
    for match in range(first, end):
        if program[match] < 0:
            continue
        line_first, line_end = line_starts[program[match]], line_starts[program[match] + 1]
        formed = np.zeros(2, dtype=np.bool_)
        charge = np.full(2, -1, dtype=np.int64)
        for line in range(line_first, line_end):
            if line_method[line] != -1:
                formed[line_pot[line]] = True
            elif line_value[line] > 0:
                charge[line_recipient[line] - 9] = line
        people_first, people_end = people_starts[match], people_starts[match + 1]
        # One round for each participant, and the last for the revenue.
        for person in range(people_first, people_end + 1):
            if person < people_end:
                kind = 0
                charged = charge[people_role[person]] if people_role[person] < 2 else -1
                if charged < 0 or not formed[0]:
                    continue
                amount, payer, own_club = line_value[charged], people_party[person], people_club[person]
            else:
                kind = 1
                charged, payer, own_club = -1, -1, -1
                amount = revenue_minor[match]
                if amount <= 0 or not formed[1]:
                    continue
            n = 0
            for is_divided in range(2):
                for line in range(line_first, line_end):
                    if line_pot[line] != kind or line_method[line] == -1 or (line_method[line] != 0) != is_divided:
                        continue
                    start = n
                    n = _claim(
                        match,
                        line,
                        line_recipient[line],
                        own_club,
                        n,
                        named,
                        people_starts,
                        people_party,
                        people_role,
                        line_party,
                        scratch_line,
                        scratch_party,
                    )
                    if n > start:
                        # The first of a line's claims speaks for all.
                        method[start], value[start], cap[start] = line_method[line], line_value[line], line_cap[line]
                        sharers[start] = n - start
                if not is_divided:
                    divided = n
            left = divide_pot(amount, 0, n, method, value, cap, sharers, given, begin, rest, base, order, spare)
            is_wide = left == TOO_WIDE
            began = row
            if left > 0 or is_wide:
                out_line[row], out_party[row], out_amount[row] = -1, -1, 0 if is_wide else left
                row += 1
            fixed, other = 0, divided
            for line in range(line_first, line_end):
                if line == charged:
                    out_line[row], out_party[row], out_amount[row] = line, payer, -amount
                    row += 1
                while fixed < divided and scratch_line[fixed] == line:
                    if given[fixed] != 0 or is_wide:
                        out_line[row], out_party[row] = line, scratch_party[fixed]
                        out_amount[row] = 0 if is_wide else given[fixed]
                        row += 1
                    fixed += 1
                while other < n and scratch_line[other] == line:
                    if given[other] != 0 or is_wide:
                        out_line[row], out_party[row] = line, scratch_party[other]
                        out_amount[row] = 0 if is_wide else given[other]
                        row += 1
                    other += 1
            for k in range(began, row):
                out_match[k], out_payer[k] = match, payer
            pot_end[pots], pot_minor[pots] = row, amount if kind == 1 else 0
            pots += 1
            if is_wide:
                wide[too_wide, 0], wide[too_wide, 1], wide[too_wide, 2] = began, row, amount
                too_wide += 1
    return row, pots, too_wide
