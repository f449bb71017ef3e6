"""Match participants: who took part in the day's matches.

Belongs here: the checks of a participant row, the frame of `schemas.MATCH_PARTICIPANTS`. Does not belong here:
reading files, the words for a refusal, what a participant is charged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.categories import category, source_category
from payments_pipeline.domain.match_results import MatchVerdict
from payments_pipeline.domain.parties import Parties
from payments_pipeline.domain.records import Coded, Field, Layout, Records, RowFault
from payments_pipeline.domain.rejected_records import Reason, Verdict, at_row, by_value, constant
from payments_pipeline.domain.values import are_ids, are_plain

MATCH_PARTICIPANT_FILES = Layout(
    "match_participants",
    (
        Field("match_id", salvaged=True),
        Field("party_id", salvaged=True),
        Field("club_id"),
        Field("role"),
    ),
)
#: The roles that mean something; any other is kept.
PLAYER, REFEREE = "player", "referee"


@dataclass(frozen=True)
class ParticipantVerdict:
    """What became of a day's participant rows.

    Attributes:
        frame: accepted participants, of `schemas.MATCH_PARTICIPANTS`, sorted by match_id and party_id as bytes.
        verdict: on every row read.
    """

    frame: pd.DataFrame
    verdict: Verdict


def accept_participants(records: Records, matches: MatchVerdict, parties: Parties) -> ParticipantVerdict:
    """Tell which rows are participants of accepted matches.

    A participant of another role than player and referee may have any club id or none: it bears on no amount.

    Args:
        records: as read by the layout MATCH_PARTICIPANT_FILES.
        matches: what became of the day's matches.
        parties: known parties.
    """
    verdict = Verdict(records)
    match, party = records.columns["match_id"], records.columns["party_id"]
    has_id = match.spread(are_ids(match.distinct), empty=False)
    verdict.give(~has_id, Reason.MATCH_ID_INVALID)
    accepted_match = match.find(pa.array(matches.frame["match_id"], pa.string()))
    is_rejected = match.spread(match.find(matches.rejected_ids) >= 0, empty=False)
    is_accepted = match.spread(accepted_match >= 0, empty=False)
    verdict.give(has_id & ~is_rejected & ~is_accepted, Reason.MATCH_ABSENT)
    verdict.give(is_rejected, Reason.MATCH_REJECTED)

    is_party = party.find(parties.ids) >= 0
    unknown = party.distinct.filter(pa.array(~is_party)).to_pylist()
    why = {value: parties.why_unknown(value) for value in unknown}
    verdict.give(
        ~party.spread(is_party, empty=False),
        Reason.PARTY_UNKNOWN,
        detail=by_value(records, "party_id", why, "is missing"),
    )
    _check_role_and_club(verdict, records, matches.frame, accepted_match)
    _check_equal_rows(verdict, records)
    return ParticipantVerdict(_frame(records, np.flatnonzero(verdict.accepted)), verdict)


def _check_role_and_club(verdict: Verdict, records: Records, matches: pd.DataFrame, accepted_match: np.ndarray) -> None:
    match, club, role = (records.columns[name] for name in ("match_id", "club_id", "role"))
    verdict.give(role.codes < 0, Reason.ROLE_MISSING)
    verdict.give(~role.spread(are_plain(role.distinct), empty=True), Reason.ROLE_INVALID)
    verdict.give(~club.spread(are_ids(club.distinct), empty=True), Reason.CLUB_ID_INVALID)
    roles = role.distinct.to_pylist()
    is_player = role.spread(np.array([value == PLAYER for value in roles], bool), empty=False)
    is_referee = role.spread(np.array([value == REFEREE for value in roles], bool), empty=False)
    in_match = _is_of(club, match, matches["home_club_id"], accepted_match)
    in_match |= _is_of(club, match, matches["away_club_id"], accepted_match)
    verdict.give(is_player & ~in_match, Reason.PLAYER_CLUB_NOT_IN_MATCH)
    verdict.give(is_referee & (club.codes >= 0), Reason.REFEREE_HAS_CLUB)


def _is_of(club: Coded, match: Coded, side: pd.Series, accepted_match: np.ndarray) -> np.ndarray:
    """Tell which rows name the club that plays on a side of their match."""
    categories = pa.array(side.cat.categories, pa.string())
    club_of_match = np.append(side.cat.codes.to_numpy().astype(np.int64), -1)
    expected = match.spread(club_of_match[accepted_match], empty=-1)
    given = club.spread(club.find(categories), empty=-1)
    plays: np.ndarray = (given >= 0) & (given == expected)
    return plays


def _check_equal_rows(verdict: Verdict, records: Records) -> None:
    """Let rows for one match and party be one participant where they are equal, none where they differ."""
    match, party, club, role = (records.columns[name].codes for name in ("match_id", "party_id", "club_id", "role"))
    named = (match >= 0) & (party >= 0) & (records.fault == RowFault.NONE)
    key = match.astype(np.int64) * (len(records.columns["party_id"].distinct) + 1) + party
    rows = np.flatnonzero(named)
    rows = rows[pd.Series(key[rows]).duplicated(keep=False).to_numpy()]
    if not len(rows):
        return
    group, _ = pd.factorize(key[rows])
    first = np.full(group.max() + 1, len(records), np.int64)
    np.minimum.at(first, group, rows)
    first_row = np.arange(len(records))
    first_row[rows] = first[group]
    differs = (club != club[first_row]) | (role != role[first_row])
    other = np.full(len(first), -1, np.int64)
    other[group[differs[rows]]] = rows[differs[rows]]
    in_conflict = np.zeros(len(records), bool)
    in_conflict[rows] = other[group] >= 0
    shown_row = first_row.copy()
    shown_row[rows] = np.where(differs[rows], first[group], other[group])
    verdict.give(in_conflict, Reason.ROWS_DIFFER, detail=at_row(records, shown_row), newer=constant(""))
    verdict.give(first_row != np.arange(len(records)), Reason.DUPLICATE, detail=at_row(records, first_row))


def _frame(records: Records, rows: np.ndarray) -> pd.DataFrame:
    match, party = category(records.columns["match_id"], rows), category(records.columns["party_id"], rows)
    # Categories are sorted as bytes, so their codes sort as the texts do.
    order = np.argsort(match.codes.astype(np.int64) * (len(party.categories) + 1) + party.codes, kind="stable")
    rows = rows[order]
    return pd.DataFrame(
        {
            "match_id": match[order],
            "party_id": party[order],
            "club_id": category(records.columns["club_id"], rows),
            "role": category(records.columns["role"], rows),
            "source": source_category(records, rows),
            "line_number": records.line_number[rows],
        }
    )
