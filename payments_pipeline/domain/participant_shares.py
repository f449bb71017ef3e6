"""Shares: who is owed or owes what from a day's matches.

Belongs here: the frame of shares, and its way into codes and back. Does not belong here: pots and recipients (`pots`),
the division itself (`allocation`), which matches and schedules count (`match_results`, `fee_schedules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.allocation import FIXED, LIMIT, NO_CAP, PERCENT, REMAINDER, Ints
from payments_pipeline.domain.errors import AllocationOverflowError, InvariantError
from payments_pipeline.domain.pots import (
    CHARGE,
    MATCH_FEE,
    NO_LINE,
    OTHER_ROLE,
    PLAYER,
    REFEREE,
    REVENUE,
    CodedLines,
    CodedMatches,
    Codes,
    Recipient,
    ShareLines,
    share_lines,
)
from payments_pipeline.domain.schemas import PARTICIPANT_SHARES

PAYER = "payer"
SUSPENSE = "suspense"
_METHODS = {"charge": CHARGE, "fixed": FIXED, "percent": PERCENT, "remainder": REMAINDER}
_POTS = {"match_fee": MATCH_FEE, "revenue": REVENUE}
_ROLES = {"player": PLAYER, "referee": REFEREE}
_BY_NAME = "party:"
_PROGRAM = ["competition_id", "schedule_version", "status"]


def compute_shares(
    matches: pd.DataFrame,
    participants: pd.DataFrame,
    schedule_lines: pd.DataFrame,
    competitions: pd.DataFrame,
    threads: int = 1,
) -> pd.DataFrame:
    """Divide the pots of a day's matches.

    Args:
        matches: frame of `schemas.MATCH_RESULTS`.
        participants: frame of `schemas.MATCH_PARTICIPANTS` of those matches.
        schedule_lines: competition_id, schedule_version, line_no, pot, recipient, method, value, cap_minor (nullable),
            status; one row per line and status that it applies to.
        competitions: competition_id, organiser_id, federation_id, platform_id (nullable) in force on the day.
        threads: parts worked on at once; the result is the same.

    Returns:
        Frame of `schemas.PARTICIPANT_SHARES`: text as categories, amounts int64 minor units, sorted as declared; each
        match_fee pot sums to 0, each revenue pot to its revenue.

    Raises:
        AllocationOverflowError: a revenue, value or cap is beyond what the division admits; names it.
        InvariantError: a pot's shares do not sum to it; names the match.

    Source: docs/concepts/allocation.md.
    """
    if matches.empty:
        return _empty_frame()
    matches = _by_match_id(matches)
    programs, program_of_match = _programs(matches)
    rows = _rows_of(programs, schedule_lines)
    parties = _Parties.of(matches, participants, rows, competitions)
    lines = _coded_lines(programs, rows, parties)
    found = share_lines(_coded_matches(matches, participants, competitions, program_of_match, parties), lines, threads)
    _conserved(matches, found)
    return _frame(matches, rows, found, parties)


def _empty_frame() -> pd.DataFrame:
    numbers = {"line_no", "amount_minor"}
    return pd.DataFrame(
        {name: pd.Series([], dtype="int64" if name in numbers else "category") for name in PARTICIPANT_SHARES.names}
    )


# Into codes ----------------------------------------------------------------------------------------------------------


def _coded(column: pd.Series) -> tuple[npt.NDArray[Any], pd.Index]:
    """Give a column as positions in a list of its distinct values, -1 for null."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), column.cat.categories
    codes, values = pd.factorize(column)
    return codes, pd.Index(values)


def _by_match_id(matches: pd.DataFrame) -> pd.DataFrame:
    ids = pd.Index(matches["match_id"].astype(object))
    return matches if ids.is_monotonic_increasing else matches.iloc[ids.argsort()]


class _Parties:
    """Every party of the day once, in order of id, and where the values of each column are among them."""

    def __init__(self, ids: pd.Index) -> None:
        self.ids = ids

    @classmethod
    def of(
        cls, matches: pd.DataFrame, participants: pd.DataFrame, rows: list[Any], competitions: pd.DataFrame
    ) -> _Parties:
        columns = [participants[name] for name in ("party_id", "club_id")]
        columns += [matches[name] for name in ("home_club_id", "away_club_id", "winner_club_id")]
        columns += [competitions[name] for name in ("organiser_id", "federation_id", "platform_id")]
        named = [row.recipient.removeprefix(_BY_NAME) for row in rows if row.recipient.startswith(_BY_NAME)]
        values = [_coded(column)[1] for column in columns] + [pd.Index(named, dtype=object)]
        chunks = [pa.array(each.to_numpy(dtype=object), pa.string(), from_pandas=True) for each in values if len(each)]
        distinct = pa.chunked_array(chunks, pa.string()).unique().drop_null()
        # Arrow compares text by its bytes.
        return cls(pd.Index(distinct.take(pc.sort_indices(distinct)).to_pandas().to_numpy(object)))

    def codes(self, column: pd.Series) -> Codes:
        """Give a column's values as party codes, -1 for null."""
        codes, values = _coded(column)
        # The value of code -1 is the last: nobody.
        positions = np.append(self.ids.get_indexer(values), -1).astype(np.int32)
        found: Codes = positions[codes]
        return found

    def code(self, party_id: str) -> int:
        return int(self.ids.get_indexer(pd.Index([party_id]))[0])


def _programs(matches: pd.DataFrame) -> tuple[list[tuple[str, ...]], Ints]:
    """Give the competitions, versions and statuses that occur together, and which each match has."""
    coded = [_coded(matches[name]) for name in _PROGRAM]
    together = np.zeros(len(matches), dtype=np.int64)
    for codes, values in coded:
        together = together * len(values) + codes
    found, of_match = np.unique(together, return_inverse=True)
    programs: list[tuple[str, ...]] = []
    for number in found.tolist():
        parts = []
        for _, values in reversed(coded):
            number, place = divmod(number, len(values))
            parts.append(values[place])
        programs.append(tuple(reversed(parts)))
    return programs, of_match


def _rows_of(programs: Sequence[tuple[str, ...]], schedule_lines: pd.DataFrame) -> list[Any]:
    """Give the schedule lines that apply to any of the programs, as named tuples, in order of program and line_no."""
    place = {program: number for number, program in enumerate(programs)}
    near = schedule_lines[schedule_lines["competition_id"].isin({program[0] for program in programs})]
    rows = [
        row for row in near.itertuples(index=False) if (row.competition_id, row.schedule_version, row.status) in place
    ]
    return sorted(rows, key=lambda row: (place[row.competition_id, row.schedule_version, row.status], row.line_no))


def _coded_lines(programs: Sequence[tuple[str, ...]], rows: list[Any], parties: _Parties) -> CodedLines:
    place = {program: number for number, program in enumerate(programs)}
    counts = np.zeros(len(programs) + 1, dtype=np.int64)
    numbers = np.zeros((6, len(rows)), dtype=np.int64)
    by_name = np.full(len(rows), -1, dtype=np.int32)
    for at, row in enumerate(rows):
        program = (row.competition_id, row.schedule_version, row.status)
        counts[place[program] + 1] += 1
        value, cap = int(row.value), NO_CAP if pd.isna(row.cap_minor) else int(row.cap_minor)
        if not 0 <= value <= LIMIT or not NO_CAP <= cap <= LIMIT:
            raise AllocationOverflowError(
                f"competition {row.competition_id}, schedule version {row.schedule_version}, line {row.line_no}: value "
                f"{value} or cap {row.cap_minor} is not between 0 and {LIMIT}. Nothing was divided. Mend the line."
            )
        recipient = Recipient.PARTY
        if row.recipient.startswith(_BY_NAME):
            by_name[at] = parties.code(row.recipient.removeprefix(_BY_NAME))
        else:
            recipient = Recipient[row.recipient.upper()]
        numbers[:, at] = _POTS[row.pot], _METHODS[row.method], row.line_no, value, cap, recipient
    pot, method, line_no, value_of, cap_of, recipient_of = numbers
    return CodedLines(np.cumsum(counts), pot, method, line_no, value_of, cap_of, recipient_of, by_name)


def _coded_matches(
    matches: pd.DataFrame,
    participants: pd.DataFrame,
    competitions: pd.DataFrame,
    program_of_match: Ints,
    parties: _Parties,
) -> CodedMatches:
    revenue = np.asarray(matches["revenue_minor"].astype("Int64").fillna(0).to_numpy(np.int64), np.int64)
    beyond = np.flatnonzero((revenue < 0) | (revenue > LIMIT))
    if len(beyond):
        raise AllocationOverflowError(
            f"match {matches['match_id'].iloc[beyond[0]]}: revenue {revenue[beyond[0]]} is not between 0 and {LIMIT}. "
            "Nothing was divided. Mend the match."
        )
    named = np.full((len(matches), Recipient.LOSING_CLUB + 1), -1, dtype=np.int32)
    codes, values = _coded(matches["competition_id"])
    competition = pd.Index(competitions["competition_id"].astype(object)).get_indexer(values)[codes]
    known = competition >= 0
    for recipient in (Recipient.ORGANISER, Recipient.FEDERATION, Recipient.PLATFORM):
        of_competition = parties.codes(competitions[f"{recipient.name.lower()}_id"])
        named[known, recipient] = of_competition[competition[known]]
    home, away, winner = (parties.codes(matches[f"{side}_club_id"]) for side in ("home", "away", "winner"))
    lead = (matches["home_score"].astype("Int64") - matches["away_score"].astype("Int64")).fillna(0).to_numpy(np.int64)
    winner = np.where(winner >= 0, winner, np.where(lead > 0, home, np.where(lead < 0, away, -1)))
    named[:, Recipient.HOME_CLUB], named[:, Recipient.AWAY_CLUB] = home, away
    named[:, Recipient.WINNING_CLUB] = winner
    named[:, Recipient.LOSING_CLUB] = np.where(winner == away, home, np.where(winner == home, away, -1))

    codes, values = _coded(participants["match_id"])
    ids = pd.Index(matches["match_id"].astype(object))
    match = np.append(ids.get_indexer(values), -1)[codes]
    party, club = parties.codes(participants["party_id"]), parties.codes(participants["club_id"])
    codes, values = _coded(participants["role"])
    role = np.array([*(_ROLES.get(value, OTHER_ROLE) for value in values), OTHER_ROLE], dtype=np.int8)[codes]
    if not _ascending(match, party):
        order = np.lexsort((party, match))
        order = order[match[order] >= 0]
        match, party, club, role = match[order], party[order], club[order], role[order]
    return CodedMatches(
        program=program_of_match.astype(np.int64),
        named=named,
        revenue_minor=revenue,
        people_starts=np.searchsorted(match, np.arange(len(matches) + 1)).astype(np.int64),
        people_party=party,
        people_club=club,
        people_role=role,
    )


def _ascending(match: Ints, party: Codes) -> bool:
    later, same = match[1:] > match[:-1], match[1:] == match[:-1]
    return bool((later | (same & (party[1:] > party[:-1]))).all()) and (not len(match) or match[0] >= 0)


# Back to names -------------------------------------------------------------------------------------------------------


def _frame(matches: pd.DataFrame, rows: list[Any], found: ShareLines, parties: _Parties) -> pd.DataFrame:
    # The last of each list by line is that of what no line is entitled to: NO_LINE is -1.
    words = [*(PAYER if row.method == "charge" else row.recipient for row in rows), SUSPENSE]
    recipients = pd.Index(sorted(set(words)))
    recipient = recipients.get_indexer(pd.Index(words))
    line_no = np.array([*(row.line_no for row in rows), 0], dtype=np.int64)
    # A list of categories is looked through for what stands twice whenever it is made: seldom more than once.
    kept = found.line == NO_LINE
    everyone, party = parties.ids, found.party
    if kept.any():
        everyone = everyone if SUSPENSE in everyone else everyone.append(pd.Index([SUSPENSE]))
        party = np.where(kept, everyone.get_indexer(pd.Index([SUSPENSE]))[0], party)
    charged = found.payer >= 0
    payers = pd.Index([""]).append(parties.ids) if charged.any() else pd.Index([""])
    return pd.DataFrame(
        {
            "match_id": _of_match(matches, "match_id", found),
            "competition_id": _of_match(matches, "competition_id", found),
            "pot": _category(np.where(charged, MATCH_FEE, REVENUE).astype(np.int8), pd.Index(list(_POTS))),
            "pot_party_id": _category(found.payer + 1, payers),
            "schedule_version": _of_match(matches, "schedule_version", found),
            "line_no": line_no[found.line],
            "recipient": _category(recipient[found.line], recipients),
            "party_id": _category(party, everyone),
            "amount_minor": found.amount_minor,
            "currency": _of_match(matches, "currency", found),
        },
        copy=False,
    )


def _of_match(matches: pd.DataFrame, name: str, found: ShareLines) -> pd.Categorical:
    codes, values = _coded(matches[name])
    return _category(codes[found.match], values)


def _category(codes: npt.NDArray[Any], values: pd.Index) -> pd.Categorical:
    # The codes are known to be within: looking them through once more is left out, which the stubs do not know of.
    make: Any = pd.Categorical.from_codes
    made: pd.Categorical = make(codes, dtype=pd.CategoricalDtype(values), validate=False)
    return made


def _conserved(matches: pd.DataFrame, found: ShareLines) -> None:
    """Hold the sums of pots against what they must be, apart from the code that divided them."""
    # One running sum for all: where it wraps, the differences are right still.
    sums = np.diff(np.cumsum(found.amount_minor)[found.pot_end - 1], prepend=0)
    bad = np.flatnonzero(sums != found.pot_minor)
    if len(bad):
        first = int(found.pot_end[bad[0]]) - 1
        raise InvariantError(
            f"match {matches['match_id'].iloc[found.match[first]]}: the shares of a pot sum to {sums[bad[0]]} and not "
            f"to {found.pot_minor[bad[0]]}. Nothing was posted. This is a defect: report it."
        )
