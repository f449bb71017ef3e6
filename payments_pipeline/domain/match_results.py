"""Match results: which rows of a day's files are its matches.

Belongs here: the checks of a match row, the rule of the newest revision, the frame of `schemas.MATCH_RESULTS`. Does
not belong here: reading files, participants, the words for a refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.categories import category, category_of, source_category
from payments_pipeline.domain.match_statuses import FORBIDS_SCORE, NEEDS_SCORE, MatchStatus
from payments_pipeline.domain.records import Coded, Field, Kind, Layout, Records, RowFault
from payments_pipeline.domain.reference_data import ReferenceData, Rules
from payments_pipeline.domain.rejected_records import Reason, Verdict, at_row, by_value, constant
from payments_pipeline.domain.values import Instants, are_ids, instants, whole_numbers

MATCH_RESULT_FILES = Layout(
    "match_results",
    (
        Field("match_id", salvaged=True),
        Field("competition_id"),
        Field("home_club_id"),
        Field("away_club_id"),
        Field("kicked_off_at", Kind.INSTANT),
        Field("status"),
        Field("home_score", Kind.COUNT),
        Field("away_score", Kind.COUNT),
        Field("winner_club_id", required=False),
        Field("revenue_minor", Kind.MINOR, required=False),
        Field("revision", Kind.COUNT, required=False),
    ),
)
_FIRST_REVISION = 1
_US = timedelta(microseconds=1)


@dataclass(frozen=True)
class MatchVerdict:
    """What became of a day's match rows.

    Attributes:
        frame: accepted matches, of `schemas.MATCH_RESULTS`, sorted by match_id as bytes.
        verdict: on every row read.
        rejected_ids: matches that have a readable id and are not accepted.
    """

    frame: pd.DataFrame
    verdict: Verdict
    rejected_ids: pa.StringArray


@dataclass(frozen=True)
class _Number:
    """A column of whole numbers, row by row: `number` int64, `given` and `readable` masks."""

    number: np.ndarray
    given: np.ndarray
    readable: np.ndarray


def _number(column: Coded, *, least: int = 0, empty: int = 0) -> _Number:
    read = whole_numbers(column.distinct)
    readable = read.valid & (read.number >= least)
    return _Number(
        column.spread(np.where(readable, read.number, empty), empty=empty),
        column.codes >= 0,
        column.spread(readable, empty=True),
    )


def accept_matches(
    records: Records, day: date, zone: ZoneInfo, reference: ReferenceData, bad_row_ids: pa.StringArray
) -> MatchVerdict:
    """Tell which rows are the day's matches.

    Args:
        records: as read by the layout MATCH_RESULT_FILES.
        day: the partition.
        zone: whose calendar the partition follows.
        reference: reference data.
        bad_row_ids: matches that a row of either dataset names which could not be taken apart.
    """
    columns = records.columns
    verdict = Verdict(records)
    match = columns["match_id"]
    has_id = match.spread(are_ids(match.distinct), empty=False)
    taken_apart = records.fault == RowFault.NONE
    verdict.give(~has_id, Reason.MATCH_ID_INVALID)
    revision = _number(columns["revision"], least=_FIRST_REVISION, empty=_FIRST_REVISION)
    verdict.give(~revision.readable, Reason.REVISION_INVALID)

    candidate = has_id & taken_apart & revision.readable
    newest = np.zeros(len(match.distinct) + 1, np.int64)
    np.maximum.at(newest, match.codes[candidate], revision.number[candidate])
    is_newest = candidate & (revision.number == newest[match.codes])

    kick_off = instants(columns["kicked_off_at"].distinct)
    rules = reference.rules_on(day)
    _check_kick_off(verdict, records, is_newest, kick_off, day, zone)
    _check_competition(verdict, records, is_newest, rules, day)
    _check_clubs(verdict, records, is_newest, reference)
    scores = _number(columns["home_score"]), _number(columns["away_score"])
    _check_scores(verdict, records, is_newest, *scores)
    revenue = _number(columns["revenue_minor"])
    verdict.give(is_newest & ~revenue.readable, Reason.REVENUE_INVALID)

    epoch_us = columns["kicked_off_at"].spread(kick_off.epoch_us, empty=0)
    parsed = [
        *(columns[name].codes for name in ("competition_id", "home_club_id", "away_club_id", "status")),
        *(columns["winner_club_id"].codes, epoch_us),
        *(part for number in (*scores, revenue) for part in (number.number, number.given)),
    ]
    _check_revisions(verdict, records, is_newest, revision, parsed, bad_row_ids)

    rows = np.flatnonzero(verdict.accepted)
    ids = pc.take(match.distinct, pa.array(np.unique(match.codes[has_id])))
    accepted_ids = match.take(rows)
    rejected_ids = ids.filter(pc.invert(pc.is_in(ids, value_set=accepted_ids)))
    rows = rows[pc.sort_indices(accepted_ids).to_numpy(zero_copy_only=False)]
    return MatchVerdict(_frame(records, rows, day, rules, epoch_us, *scores, revenue, revision), verdict, rejected_ids)


def _per_row(column: Coded, test: Callable[[pa.StringArray], np.ndarray]) -> np.ndarray:
    return column.spread(test(column.distinct), empty=False)


def _check_kick_off(
    verdict: Verdict, records: Records, rows: np.ndarray, kick_off: Instants, day: date, zone: ZoneInfo
) -> None:
    column = records.columns["kicked_off_at"]
    valid, has_offset = column.spread(kick_off.valid, empty=False), column.spread(kick_off.has_offset, empty=True)
    verdict.give(rows & ~valid & has_offset, Reason.KICKED_OFF_AT_INVALID)
    verdict.give(rows & ~has_offset, Reason.KICKED_OFF_AT_WITHOUT_OFFSET)
    on_day = column.spread(_are_on_day(kick_off.epoch_us, day, zone), empty=False)
    verdict.give(rows & valid & ~on_day, Reason.OTHER_DAY, detail=constant(f"{day} in {zone.key}"))


def _are_on_day(epoch_us: np.ndarray, day: date, zone: ZoneInfo) -> np.ndarray:
    """Tell which instants fall on a day of the zone's calendar, days of 23 and 25 hours included."""
    noon = (datetime(day.year, day.month, day.day, 12, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // _US
    # No clock is a day away from UTC, so only these need converting; far years would not fit the conversion.
    near = np.abs(epoch_us - noon) <= timedelta(days=2) // _US
    local = pd.DatetimeIndex(epoch_us[near].astype("datetime64[us]")).tz_localize("UTC").tz_convert(zone)
    on_day = np.zeros(len(epoch_us), bool)
    on_day[near] = local.tz_localize(None).to_numpy().astype("datetime64[D]") == np.datetime64(day, "D")
    return on_day


def _check_competition(
    verdict: Verdict, records: Records, rows: np.ndarray, rules: dict[str, Rules], day: date
) -> None:
    column = records.columns["competition_id"]
    unknown = Rules(None, None, None, None)
    found = [rules.get(value, unknown) for value in column.distinct.to_pylist()]

    def having(test: Callable[[Rules], bool]) -> np.ndarray:
        mask: np.ndarray = rows & column.spread(np.array([test(each) for each in found], bool), empty=False)
        return mask

    faults = {key: each.competition_fault or "" for key, each in rules.items()}
    schedule_faults = {key: each.schedule_fault or "" for key, each in rules.items()}
    is_known = column.spread(np.array([value in rules for value in column.distinct.to_pylist()], bool), empty=False)
    verdict.give(rows & ~is_known, Reason.COMPETITION_UNKNOWN)
    verdict.give(
        having(lambda each: each.competition_fault is not None),
        Reason.COMPETITION_INVALID,
        detail=by_value(records, "competition_id", faults, ""),
    )
    verdict.give(
        having(lambda each: each.competition is None and each.competition_fault is None),
        Reason.COMPETITION_NOT_IN_FORCE,
        detail=constant(str(day)),
    )
    verdict.give(
        having(lambda each: each.schedule_fault is not None),
        Reason.SCHEDULE_INVALID,
        detail=by_value(records, "competition_id", schedule_faults, ""),
    )
    verdict.give(
        having(lambda each: each.schedule is None and each.schedule_fault is None),
        Reason.SCHEDULE_NOT_IN_FORCE,
        detail=constant(str(day)),
    )


def _check_clubs(verdict: Verdict, records: Records, rows: np.ndarray, reference: ReferenceData) -> None:
    parties = reference.parties
    clubs = {}
    for name, reason in (("home_club_id", Reason.HOME_CLUB_UNKNOWN), ("away_club_id", Reason.AWAY_CLUB_UNKNOWN)):
        column = records.columns[name]
        is_club = column.find(parties.clubs) >= 0
        why = {
            value: "is a party, but no club" if parties.knows(value) else parties.why_unknown(value)
            for value in column.distinct.filter(pa.array(~is_club)).to_pylist()
        }
        detail = by_value(records, name, why, "is missing")
        verdict.give(rows & ~column.spread(is_club, empty=False), reason, detail=detail)
        clubs[name] = column
    home, away = clubs["home_club_id"], clubs["away_club_id"]
    # Codes of the two columns stand for different lists of values: bring the away club and the winner to the home's.
    away_as_home = away.spread(away.find(home.distinct), empty=-1)
    verdict.give(rows & (home.codes == away_as_home), Reason.CLUBS_EQUAL)
    winner = records.columns["winner_club_id"]
    is_home = winner.spread(winner.find(home.distinct), empty=-1) == home.codes
    is_away = winner.spread(winner.find(away.distinct), empty=-1) == away.codes
    verdict.give(rows & (winner.codes >= 0) & ~is_home & ~is_away, Reason.WINNER_NOT_IN_MATCH)


def _check_scores(verdict: Verdict, records: Records, rows: np.ndarray, home: _Number, away: _Number) -> None:
    status = records.columns["status"]
    statuses = status.distinct.to_pylist()

    def of(names: tuple[MatchStatus, ...]) -> np.ndarray:
        mask: np.ndarray = rows & status.spread(np.array([value in names for value in statuses], bool), empty=False)
        return mask

    verdict.give(rows & ~of(tuple(MatchStatus)), Reason.STATUS_UNKNOWN)
    verdict.give(rows & ~(home.readable & away.readable), Reason.SCORE_INVALID)
    verdict.give(rows & (home.given != away.given), Reason.SCORE_INCOMPLETE)
    verdict.give(of(NEEDS_SCORE) & ~home.given, Reason.SCORE_MISSING)
    verdict.give(of(FORBIDS_SCORE) & home.given, Reason.SCORE_NOT_ALLOWED)


def _check_revisions(
    verdict: Verdict,
    records: Records,
    is_newest: np.ndarray,
    revision: _Number,
    parsed: list[np.ndarray],
    bad_row_ids: pa.StringArray,
) -> None:
    """Let each match stand or fall as a whole.

    Rows that were not rejected by themselves fall with a row of their match that could not be taken apart, whose
    revision cannot be read, or that is of the newest revision and rejected or different.
    """
    match = records.columns["match_id"]
    in_match = match.spread(are_ids(match.distinct), empty=False)

    def matches_of(rows: np.ndarray) -> np.ndarray:
        """Mask of all rows of the matches that have one of these rows."""
        marked = np.zeros(len(match.distinct) + 1, bool)
        marked[match.codes[rows & in_match]] = True
        marked[-1] = False
        mask: np.ndarray = marked[match.codes]
        return mask

    own_fault = verdict.rejected
    verdict.give(in_match & match.spread(match.find(bad_row_ids) >= 0, empty=False), Reason.BAD_ROW_OF_MATCH)
    verdict.give(matches_of(~revision.readable), Reason.REVISION_OF_MATCH_INVALID)
    verdict.give(matches_of(is_newest & own_fault), Reason.NEWEST_REVISION_INVALID)

    first = np.full(len(match.distinct) + 1, len(records), np.int64)
    newest_rows = np.flatnonzero(is_newest)
    np.minimum.at(first, match.codes[newest_rows], newest_rows)
    first_row = first[match.codes]
    differs = np.zeros(len(records), bool)
    for values in parsed:
        differs[newest_rows] |= values[newest_rows] != values[first_row[newest_rows]]
    # The row shown as the other one: the first for those that differ from it, one that differs for the first.
    other = np.full(len(match.distinct) + 1, -1, np.int64)
    other[match.codes[differs]] = np.flatnonzero(differs)
    shown_row = np.where(differs, first_row, other[match.codes])
    verdict.give(
        matches_of(differs),
        Reason.ROWS_DIFFER,
        detail=at_row(records, shown_row),
        newer=constant(", or a newer revision"),
    )
    verdict.give(in_match & ~is_newest, Reason.OLDER_REVISION)
    verdict.give(
        is_newest & (np.arange(len(records)) != first_row), Reason.DUPLICATE, detail=at_row(records, first_row)
    )


def _by_competition(competition: Coded, rows: np.ndarray, texts: dict[str, str]) -> pd.Categorical:
    used = {value: texts[value] for value in np.unique(competition.take(rows).to_numpy(zero_copy_only=False)).tolist()}
    categories = sorted(set(used.values()), key=str.encode)
    places = {text: place for place, text in enumerate(categories)}
    per_value = np.array(
        [places[used[value]] if value in used else -1 for value in competition.distinct.to_pylist()], np.int32
    )
    return category_of(competition.spread(per_value, empty=-1)[rows], categories)


def _frame(
    records: Records,
    rows: np.ndarray,
    day: date,
    rules: dict[str, Rules],
    epoch_us: np.ndarray,
    home: _Number,
    away: _Number,
    revenue: _Number,
    revision: _Number,
) -> pd.DataFrame:
    columns = records.columns
    usable = {key: each for key, each in rules.items() if each.competition is not None and each.schedule is not None}
    terms = {key: each.competition.terms for key, each in usable.items() if each.competition is not None}

    def number(values: _Number) -> pd.arrays.IntegerArray:
        return pd.arrays.IntegerArray(values.number[rows], ~values.given[rows])

    def of_competition(texts: dict[str, str]) -> pd.Categorical:
        return _by_competition(columns["competition_id"], rows, texts)

    hashes = _content_hashes(records, rows, epoch_us, home, away, revenue)
    return pd.DataFrame(
        {
            "match_id": pd.Series(columns["match_id"].take(rows).to_numpy(zero_copy_only=False), dtype=object),
            "competition_id": category(columns["competition_id"], rows),
            "match_day": pd.Series([day], dtype=object).repeat(len(rows)).to_numpy(),
            "kicked_off_at": pd.Series(epoch_us[rows].astype("datetime64[us]")).dt.tz_localize("UTC"),
            "home_club_id": category(columns["home_club_id"], rows),
            "away_club_id": category(columns["away_club_id"], rows),
            "status": category(columns["status"], rows),
            "home_score": number(home),
            "away_score": number(away),
            "winner_club_id": category(columns["winner_club_id"], rows),
            "revenue_minor": number(revenue),
            "revision": revision.number[rows],
            "currency": of_competition({key: str(each["currency"]) for key, each in terms.items()}),
            "schedule_version": of_competition(
                {key: each.schedule.version for key, each in usable.items() if each.schedule is not None}
            ),
            "payout_policy": of_competition({key: str(each["payout_policy"]) for key, each in terms.items()}),
            "content_hash": pd.Series(hashes, dtype=object),
            "rules_hash": of_competition({key: each.rules_hash for key, each in usable.items()}),
            "source": source_category(records, rows),
            "line_number": records.line_number[rows],
        }
    )


def _content_hashes(
    records: Records, rows: np.ndarray, epoch_us: np.ndarray, home: _Number, away: _Number, revenue: _Number
) -> list[str]:
    """Hash each match without its revision: SHA-256 of a JSON array of its parsed values.

    The order is match_id, competition_id, kicked_off_at (microseconds since 1970), home_club_id, away_club_id, status,
    home_score, away_score, winner_club_id, revenue_minor; null where empty. Ids hold nothing that JSON would escape.
    """

    def text(name: str) -> pa.Array:
        taken = records.columns[name].take(rows)
        return pc.binary_join_element_wise('"', taken, '"', "").fill_null("null")

    def number(values: _Number) -> pa.Array:
        return pa.array(values.number[rows], mask=~values.given[rows]).cast(pa.string()).fill_null("null")

    parts = [
        *(text("match_id"), text("competition_id"), pa.array(epoch_us[rows]).cast(pa.string())),
        *(text("home_club_id"), text("away_club_id"), text("status"), number(home), number(away)),
        *(text("winner_club_id"), number(revenue)),
    ]
    encoded = pc.binary_join_element_wise("[", pc.binary_join_element_wise(*parts, ","), "]", "")
    return [hashlib.sha256(content.encode()).hexdigest() for content in encoded.to_pylist()]
