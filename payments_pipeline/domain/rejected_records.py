"""Rejected records: every row that was not accepted, and why.

Belongs here: reason codes in their order of precedence, their words and cures, the verdict on rows, the frame of
`schemas.REJECTED_RECORDS`. Does not belong here: which rows a reason applies to (match_results, match_participants).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.categories import category_of
from payments_pipeline.domain.records import Records, RowFault
from payments_pipeline.domain.values import WRONG_TYPE

#: Values are shown in words up to this many characters; `raw` has all of them.
_SHOWN = 80


class Outcome(StrEnum):
    """What became of a row that was not accepted."""

    REJECTED = "rejected"
    SUPERSEDED = "superseded"


class Reason(StrEnum):
    """Why a row was not accepted, in order of precedence: a row has the first that applies."""

    # The row could not be taken apart.
    BROKEN_JSON_LINE = "broken_json_line"
    MISPLACED_QUOTE = "misplaced_quote"
    FIELD_COUNT = "field_count"
    # What it is about.
    MATCH_ID_INVALID = "match_id_invalid"
    REVISION_INVALID = "revision_invalid"
    MATCH_ABSENT = "match_absent"
    MATCH_REJECTED = "match_rejected"
    # A match's own values.
    KICKED_OFF_AT_INVALID = "kicked_off_at_invalid"
    KICKED_OFF_AT_WITHOUT_OFFSET = "kicked_off_at_without_offset"
    OTHER_DAY = "other_day"
    COMPETITION_UNKNOWN = "competition_unknown"
    COMPETITION_INVALID = "competition_invalid"
    COMPETITION_NOT_IN_FORCE = "competition_not_in_force"
    HOME_CLUB_UNKNOWN = "home_club_unknown"
    AWAY_CLUB_UNKNOWN = "away_club_unknown"
    CLUBS_EQUAL = "clubs_equal"
    STATUS_UNKNOWN = "status_unknown"
    SCORE_INVALID = "score_invalid"
    SCORE_INCOMPLETE = "score_incomplete"
    SCORE_MISSING = "score_missing"
    SCORE_NOT_ALLOWED = "score_not_allowed"
    WINNER_NOT_IN_MATCH = "winner_not_in_match"
    REVENUE_INVALID = "revenue_invalid"
    SCHEDULE_INVALID = "schedule_invalid"
    SCHEDULE_NOT_IN_FORCE = "schedule_not_in_force"
    # A participant's own values.
    PARTY_UNKNOWN = "party_unknown"
    ROLE_MISSING = "role_missing"
    ROLE_INVALID = "role_invalid"
    CLUB_ID_INVALID = "club_id_invalid"
    PLAYER_CLUB_NOT_IN_MATCH = "player_club_not_in_match"
    REFEREE_HAS_CLUB = "referee_has_club"
    # A request for a refund.
    REFUND_ID_INVALID = "refund_id_invalid"
    PARTY_ID_INVALID = "party_id_invalid"
    AMOUNT_INVALID = "amount_invalid"
    REFUND_REASON_MISSING = "refund_reason_missing"
    REQUESTER_INVALID = "requester_invalid"
    # Other rows of the same match, or of the same match and party.
    BAD_ROW_OF_MATCH = "bad_row_of_match"
    REVISION_OF_MATCH_INVALID = "revision_of_match_invalid"
    NEWEST_REVISION_INVALID = "newest_revision_invalid"
    ROWS_DIFFER = "rows_differ"
    # Not a fault: the row's content is taken from another row, or was replaced.
    OLDER_REVISION = "older_revision"
    DUPLICATE = "duplicate"


_PRECEDENCE = {reason: place for place, reason in enumerate(Reason)}
SUPERSEDING = (Reason.OLDER_REVISION, Reason.DUPLICATE)
_FIRST_SUPERSEDING = min(_PRECEDENCE[reason] for reason in SUPERSEDING)

_ID_RULE = "1 to 128 of ASCII letters, digits and : . _ -"
_WHOLE_RULE = "a whole number in ASCII digits (an integer in JSON and Parquet), at most 10^15"

#: What is wrong and the cure. `{column}` is the row's value, `{detail}` what the reason's caller adds.
WORDS = {
    Reason.BROKEN_JSON_LINE: "The line is not one JSON object. Write each record as one JSON object on one line.",
    Reason.MISPLACED_QUOTE: (
        "A quote stands inside a value, so where its values end is not known. Quote the whole value and double each "
        "quote in it."
    ),
    Reason.FIELD_COUNT: (
        "The row has another number of fields than the header, so which value is which is not known. Quote values "
        "that hold commas, and leave unknown values empty."
    ),
    Reason.MATCH_ID_INVALID: f"match_id {{match_id}} is no id. Write {_ID_RULE}.",
    Reason.REVISION_INVALID: (
        f"revision {{revision}} cannot be read, so which row of the match is newest is not known. Write {_WHOLE_RULE}, "
        "from 1, or leave it empty for 1."
    ),
    Reason.MATCH_ABSENT: (
        "match {match_id} is not among the day's match_results. Deliver the match, or correct match_id."
    ),
    Reason.MATCH_REJECTED: "match {match_id} is rejected; its own rows say why. Mend the match.",
    Reason.KICKED_OFF_AT_INVALID: (
        "kicked_off_at {kicked_off_at} is no instant. Write ISO 8601 with offset, such as 2024-08-17T15:00:00+01:00 "
        "(Parquet: a timestamp with a zone)."
    ),
    Reason.KICKED_OFF_AT_WITHOUT_OFFSET: (
        "kicked_off_at {kicked_off_at} has no offset, so its day is not known. Add it: Z or, for example, +01:00 "
        "(Parquet: give the timestamp a zone)."
    ),
    Reason.OTHER_DAY: (
        "kicked_off_at {kicked_off_at} is not on {detail}. Deliver the row under the day of its local kick-off, or "
        "correct kicked_off_at."
    ),
    Reason.COMPETITION_UNKNOWN: (
        "competition_id {competition_id} is not in competitions. Add it there, or correct the row."
    ),
    Reason.COMPETITION_INVALID: "competition {competition_id} cannot be used: {detail}",
    Reason.COMPETITION_NOT_IN_FORCE: (
        "no row of competition {competition_id} is in force on {detail}. Add one, or widen effective_from and "
        "effective_to."
    ),
    Reason.HOME_CLUB_UNKNOWN: "home_club_id {home_club_id} {detail}.",
    Reason.AWAY_CLUB_UNKNOWN: "away_club_id {away_club_id} {detail}.",
    Reason.CLUBS_EQUAL: "home_club_id and away_club_id are both {home_club_id}. Correct one of them.",
    Reason.STATUS_UNKNOWN: (
        "status {status} is not known. Write completed, awarded, abandoned, postponed, cancelled or void."
    ),
    Reason.SCORE_INVALID: (
        f"home_score {{home_score}} or away_score {{away_score}} cannot be read. Write {_WHOLE_RULE}."
    ),
    Reason.SCORE_INCOMPLETE: (
        "home_score is {home_score} and away_score is {away_score}. Give both scores, or neither."
    ),
    Reason.SCORE_MISSING: "a match that is {status} needs home_score and away_score. Give both.",
    Reason.SCORE_NOT_ALLOWED: (
        "a match that is {status} has no score, and the row gives {home_score} to {away_score}. Leave both empty, or "
        "correct status."
    ),
    Reason.WINNER_NOT_IN_MATCH: (
        "winner_club_id {winner_club_id} is neither of the match's clubs. Write one of them, or leave it empty where "
        "the score decides."
    ),
    Reason.REVENUE_INVALID: f"revenue_minor {{revenue_minor}} cannot be read. Write {_WHOLE_RULE}, in minor units.",
    Reason.SCHEDULE_INVALID: "the fee schedule of {competition_id} cannot be used: {detail}",
    Reason.SCHEDULE_NOT_IN_FORCE: (
        "no fee schedule version of {competition_id} is in force on {detail}. Add one, or widen its effective_from and "
        "effective_to."
    ),
    Reason.PARTY_UNKNOWN: "party_id {party_id} {detail}.",
    Reason.ROLE_MISSING: "role is empty. Write player, referee or another role.",
    Reason.ROLE_INVALID: "role {role} is not plain text. Write text.",
    Reason.CLUB_ID_INVALID: f"club_id {{club_id}} is no id. Write {_ID_RULE}, or leave it empty.",
    Reason.PLAYER_CLUB_NOT_IN_MATCH: (
        "club_id {club_id} of player {party_id} is neither of the match's clubs. Write the club the player played for."
    ),
    Reason.REFEREE_HAS_CLUB: "club_id {club_id} is given for referee {party_id}. Leave it empty.",
    Reason.REFUND_ID_INVALID: f"refund_id {{refund_id}} is no id. Write {_ID_RULE}.",
    Reason.PARTY_ID_INVALID: f"party_id {{party_id}} is no id. Write {_ID_RULE}.",
    Reason.AMOUNT_INVALID: (
        f"amount_minor {{amount_minor}} cannot be refunded. Write {_WHOLE_RULE}, from 1, in minor units, or leave it "
        "empty for all that is left."
    ),
    Reason.REFUND_REASON_MISSING: "reason {reason} is empty or no plain text. Say why it is refunded.",
    Reason.REQUESTER_INVALID: (
        "requester {requester} is no login. Write who asks, by the login they would approve with: 1 to 128 printing "
        "ASCII characters without white space. Or leave it empty, and it is whoever starts the run."
    ),
    Reason.BAD_ROW_OF_MATCH: (
        "a row of match {match_id} could not be taken apart, and it may be a newer result. Mend that row (reason "
        "field_count or misplaced_quote)."
    ),
    Reason.REVISION_OF_MATCH_INVALID: (
        "another row of match {match_id} has a revision that cannot be read, and it may be newer. Mend that row."
    ),
    Reason.NEWEST_REVISION_INVALID: (
        "a row of the newest revision of match {match_id} is rejected, and a result known to be out of date is never "
        "paid on. Mend that row."
    ),
    Reason.ROWS_DIFFER: "rows say different things: {detail}. Deliver one of them{newer}.",
    Reason.OLDER_REVISION: "a newer revision of match {match_id} was read. Nothing to do.",
    Reason.DUPLICATE: "an equal row was accepted: {detail}. Nothing to do.",
}

SHAPE_REASONS = {
    RowFault.BROKEN_JSON_LINE: Reason.BROKEN_JSON_LINE,
    RowFault.MISPLACED_QUOTE: Reason.MISPLACED_QUOTE,
    RowFault.FIELD_COUNT: Reason.FIELD_COUNT,
}

#: Gives the text of a placeholder for rows.
Detail = Callable[[np.ndarray], pa.Array]


class Verdict:
    """What becomes of each row: accepted until a reason applies; of several reasons the first in order holds."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._place = np.full(len(records), len(_PRECEDENCE), np.int16)
        self._details: dict[Reason, dict[str, Detail]] = {}
        for fault, reason in SHAPE_REASONS.items():
            self.give(records.fault == fault, reason)

    def give(self, rows: np.ndarray, reason: Reason, **details: Detail) -> None:
        """Give rows (a mask) a reason, with what its words need beside the row's own values."""
        place = _PRECEDENCE[reason]
        self._place[rows & (self._place > place)] = place
        self._details[reason] = details

    @property
    def accepted(self) -> np.ndarray:
        """Mask of the rows without a reason."""
        accepted: np.ndarray = self._place == len(_PRECEDENCE)
        return accepted

    @property
    def rejected(self) -> np.ndarray:
        """Mask of the rows with a fault of their own or of another row."""
        rejected: np.ndarray = self._place < _FIRST_SUPERSEDING
        return rejected

    @property
    def superseded(self) -> np.ndarray:
        """Mask of the rows whose content is taken from another row, or was replaced."""
        superseded: np.ndarray = ~self.accepted & ~self.rejected
        return superseded

    def counts(self) -> dict[str, int]:
        """Give the number of rows by reason, in order of precedence."""
        found = np.bincount(self._place, minlength=len(_PRECEDENCE) + 1)
        return {reason.value: int(found[place]) for reason, place in _PRECEDENCE.items() if found[place]}

    def rejected_records(self, dataset: str) -> pd.DataFrame:
        """Give the frame of `schemas.REJECTED_RECORDS` for these rows, in the order they were read."""
        rows = np.flatnonzero(~self.accepted)
        place = self._place[rows]
        reasons = list(Reason)
        words = np.empty(len(rows), dtype=object)
        for number in np.unique(place).tolist():
            mine = place == number
            words[mine] = self._words(reasons[number], rows[mine]).to_numpy(zero_copy_only=False)
        return pd.DataFrame(
            {
                "dataset": category_of(np.zeros(len(rows), np.int8), [dataset]),
                "outcome": category_of((place >= _FIRST_SUPERSEDING).astype(np.int8), list(Outcome)),
                "source": category_of(self._records.source_no[rows], self._records.sources),
                "line_number": self._records.line_number[rows],
                "match_id": self._text("match_id", rows),
                "party_id": self._text("party_id", rows),
                "reason": category_of(place.astype(np.int8), reasons),
                "words": words,
                "raw": pd.Series(self._records.raw(rows), dtype=object),
            }
        )

    def _text(self, name: str, rows: np.ndarray) -> pd.Series:
        column = self._records.columns.get(name)
        if column is None:
            return pd.Series(np.full(len(rows), None, dtype=object))
        shown = pc.replace_substring(column.take(rows), WRONG_TYPE, "")
        return pd.Series(shown.to_numpy(zero_copy_only=False), dtype=object)

    def _words(self, reason: Reason, rows: np.ndarray) -> pa.Array:
        details = self._details[reason]
        parts: list[pa.Array | str] = []
        for literal, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", WORDS[reason]):
            parts.append(literal)
            if name in details:
                parts.append(details[name](rows))
            elif name:
                parts.append(shown(self._records.columns[name].take(rows)))
        everywhere = pa.array([""]).take(pa.array(np.zeros(len(rows), np.int64)))
        return pc.binary_join_element_wise(everywhere, *parts, "")


def shown(values: pa.StringArray) -> pa.Array:
    """Give values fit for words: cut, without the mark of a wrong type, `(empty)` where there is none."""
    cut = pc.utf8_slice_codeunits(pc.replace_substring(values, WRONG_TYPE, ""), 0, _SHOWN)
    return cut.fill_null("(empty)")


def constant(text: str) -> Detail:
    """Give every row the same text."""
    return lambda rows: pa.array([text]).take(pa.array(np.zeros(len(rows), np.int64)))


def by_value(records: Records, name: str, texts: Mapping[str, str], otherwise: str) -> Detail:
    """Give each row the text that belongs to its value of a column, `otherwise` where there is none."""
    column = records.columns[name]

    def detail(rows: np.ndarray) -> pa.Array:
        values = column.distinct.to_pylist()
        per_value = pa.array([*(texts.get(value, otherwise) for value in values), otherwise], pa.string())
        return per_value.take(pa.array(np.where(column.codes[rows] < 0, len(values), column.codes[rows])))

    return detail


def at_row(records: Records, other: np.ndarray) -> Detail:
    """Give each row the place of another row, as `source line n`."""

    def detail(rows: np.ndarray) -> pa.Array:
        others = other[rows]
        sources = pa.array(records.sources, pa.string()).take(pa.array(records.source_no[others]))
        lines = pa.array(records.line_number[others]).cast(pa.string())
        return pc.binary_join_element_wise(sources, lines, " line ")

    return detail
