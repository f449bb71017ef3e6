"""Fee schedules: which lines divide the money of a match.

Belongs here: reading and checking the table, whole versions at a time, and which version is in force on a day. Does
not belong here: dividing anything.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

import numpy as np
import orjson
import pandas as pd

from payments_pipeline.domain.match_statuses import DEFAULT_STATUSES, MatchStatus
from payments_pipeline.domain.parties import Parties
from payments_pipeline.domain.records import Field, Kind, Layout, Records, RowFault
from payments_pipeline.domain.reference_rows import NO_BOUND, Interval, ReferenceProblem, Row, read_interval, rows_of
from payments_pipeline.domain.values import are_ids, whole_numbers

FEE_SCHEDULES = Layout(
    "fee_schedules",
    (
        Field("competition_id", salvaged=True),
        Field("version", salvaged=True),
        Field("effective_from", Kind.DATE),
        Field("effective_to", Kind.DATE),
        Field("line_no", Kind.COUNT),
        Field("pot"),
        Field("recipient"),
        Field("method"),
        Field("value", Kind.MINOR),
        Field("cap_minor", Kind.MINOR),
        Field("statuses", required=False),
    ),
)
#: The whole of a pot, in basis points.
WHOLE_BP = 10_000
PARTY_PREFIX = "party:"


class Pot(StrEnum):
    """What is divided."""

    MATCH_FEE = "match_fee"
    REVENUE = "revenue"


class Method(StrEnum):
    """How a line takes part in dividing."""

    CHARGE = "charge"
    FIXED = "fixed"
    PERCENT = "percent"
    REMAINDER = "remainder"


class Recipient(StrEnum):
    """Whom a line names; beside these, `party:<party_id>`."""

    ORGANISER = "organiser"
    FEDERATION = "federation"
    PLATFORM = "platform"
    HOME_CLUB = "home_club"
    AWAY_CLUB = "away_club"
    WINNING_CLUB = "winning_club"
    LOSING_CLUB = "losing_club"
    OWN_CLUB = "own_club"
    EACH_CLUB = "each_club"
    EACH_PLAYER = "each_player"
    EACH_REFEREE = "each_referee"


CHARGEABLE = (Recipient.EACH_PLAYER, Recipient.EACH_REFEREE)

#: Columns of `FeeSchedules.lines`, with their types.
LINE_TYPES = {
    "competition_id": "object",
    "schedule_version": "object",
    "line_no": "int64",
    "pot": "object",
    "recipient": "object",
    "method": "object",
    "value": "int64",
    "cap_minor": "Int64",
    "status": "object",
}


@dataclass(frozen=True)
class ScheduleLine:
    """A valid line; `statuses` in the order of `MatchStatus`."""

    line_no: int
    pot: str
    recipient: str
    method: str
    value: int
    cap_minor: int | None
    statuses: tuple[str, ...]


@dataclass(frozen=True)
class ScheduleVersion:
    """A version of a competition's schedule.

    Attributes:
        interval: days in force; as wide as it may be where dates cannot be read.
        lines: by line_no; empty where the version is invalid.
        problem: why the whole version is invalid; None where it is valid.
    """

    competition_id: str
    version: str
    interval: Interval
    lines: tuple[ScheduleLine, ...]
    problem: ReferenceProblem | None

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of competition, version and all lines."""
        return hashlib.sha256(orjson.dumps([self.competition_id, self.version, self.lines])).hexdigest()


@dataclass(frozen=True)
class FeeSchedules:
    """The table: valid versions and invalid ones, for an invalid version rejects its matches.

    Attributes:
        versions: of each competition whose id can be read.
        problems: one for each fault found; several lines of a version may have one.
    """

    versions: dict[str, tuple[ScheduleVersion, ...]]
    problems: tuple[ReferenceProblem, ...]

    def on(self, day: date, competition_id: str) -> ScheduleVersion | str | None:
        """Give the one version in force, why none can be told or used, or None: none is in force."""
        in_force = [version for version in self.versions.get(competition_id, ()) if version.interval.covers(day)]
        for version in in_force:
            if version.problem is not None:
                return f"version {version.version} is invalid: {version.problem}"
        if len(in_force) > 1:
            both = " and ".join(f"{version.version} ({version.interval})" for version in in_force)
            return f"versions {both} are in force on {day}. End one before the other begins."
        return in_force[0] if in_force else None

    def lines(self) -> pd.DataFrame:
        """Give the lines of valid versions, one row per line and status; columns and types of LINE_TYPES."""
        rows = [
            (
                *(version.competition_id, version.version, line.line_no, line.pot, line.recipient, line.method),
                *(line.value, line.cap_minor, status),
            )
            for versions in self.versions.values()
            for version in versions
            for line in version.lines
            for status in line.statuses
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(LINE_TYPES)
        typed = zip(LINE_TYPES.items(), columns, strict=True)
        return pd.DataFrame({name: pd.Series(list(column), dtype=type_) for (name, type_), column in typed})


@dataclass
class _Draft:
    """A version while its rows are gathered."""

    intervals: list[tuple[Row, Interval, str | None]] = field(default_factory=list)
    lines: list[tuple[Row, ScheduleLine]] = field(default_factory=list)
    problems: list[ReferenceProblem] = field(default_factory=list)


def parse_fee_schedules(records: Records, parties: Parties, competition_ids: Collection[str]) -> FeeSchedules:
    """Check the table.

    Args:
        records: as read by the layout FEE_SCHEDULES.
        parties: the parties that `party:<party_id>` may name.
        competition_ids: known competitions, those with bad rows too.
    """
    rows = rows_of(records, FEE_SCHEDULES)
    readable = {name: _are_readable(records, name) for name in ("competition_id", "version")}
    numbers = {name: _numbers(records, name) for name in ("line_no", "value", "cap_minor")}
    drafts: dict[tuple[str, str], _Draft] = defaultdict(_Draft)
    stray: list[ReferenceProblem] = []
    of_all_versions: dict[str, list[ReferenceProblem]] = defaultdict(list)
    for place, row in enumerate(rows):
        competition_id, version = row["competition_id"], row["version"]
        if competition_id is None or not readable["competition_id"][place]:
            stray.append(
                row.problem(row.shape_fault if row.fault else "has no usable competition_id. Write a known one")
            )
            continue
        if version is None or not readable["version"][place]:
            of_all_versions[competition_id].append(
                row.problem(row.shape_fault if row.fault else "has no usable version. Write one such as v1")
            )
            continue
        draft = drafts[competition_id, version]
        if row.fault != RowFault.NONE:
            draft.problems.append(row.problem(row.shape_fault))
            continue
        if competition_id not in competition_ids:
            draft.problems.append(
                row.problem(
                    f"names the competition {competition_id!r}, which is not in competitions. Add it, or correct it"
                )
            )
        draft.intervals.append((row, *read_interval(row)))
        line, words = _read_line(row, {name: values[place] for name, values in numbers.items()}, parties)
        if line is None:
            draft.problems.append(row.problem(f"is invalid: it {words}"))
        else:
            draft.lines.append((row, line))
    versions: dict[str, list[ScheduleVersion]] = defaultdict(list)
    problems = stray + [problem for found in of_all_versions.values() for problem in found]
    for (competition_id, version), draft in drafts.items():
        faults = draft.problems + _interval_faults(draft) + _sum_faults(draft)
        problems += faults
        faults += of_all_versions[competition_id]
        lines = () if faults else tuple(sorted((line for _, line in draft.lines), key=lambda line: line.line_no))
        first = faults[0] if faults else None
        versions[competition_id].append(ScheduleVersion(competition_id, version, _widest(draft), lines, first))
    return FeeSchedules({key: tuple(found) for key, found in versions.items()}, tuple(problems))


def _are_readable(records: Records, name: str) -> np.ndarray:
    column = records.columns[name]
    return column.spread(are_ids(column.distinct), empty=False)


def _numbers(records: Records, name: str) -> list[int | None]:
    """Give a column of whole numbers: -1 where it cannot be read, None where it is empty."""
    column = records.columns[name]
    read = whole_numbers(column.distinct)
    number = np.where(read.valid, read.number, -1)
    return [None if code < 0 else int(number[code]) for code in column.codes.tolist()]


def _read_line(
    row: Row, numbers: dict[str, int | None], parties: Parties
) -> tuple[ScheduleLine, None] | tuple[None, str]:
    """Read one line, or say what is wrong with it, to follow "it"."""
    line_no, value, cap = numbers["line_no"], numbers["value"], numbers["cap_minor"]
    pot, method, recipient = row["pot"], row["method"], row["recipient"]
    statuses, words = _statuses(row["statuses"])
    if line_no is None or line_no < 1:
        words = f"has the line_no {row['line_no']!r}. Write a whole number from 1"
    elif pot not in list(Pot):
        words = f"has the pot {pot!r}. Write one of {', '.join(Pot)}"
    elif method not in list(Method):
        words = f"has the method {method!r}. Write one of {', '.join(Method)}"
    elif value is None or value < 0:
        words = f"has the value {row['value']!r}. Write a whole number from 0 to 10^15"
    elif words is None:
        words = _recipient_fault(recipient, parties) or _method_fault(method, pot, recipient, value, cap)
    if words is not None:
        return None, words
    assert line_no is not None
    assert value is not None
    assert pot is not None
    assert method is not None
    assert recipient is not None
    return ScheduleLine(line_no, pot, recipient, method, value, cap, statuses), None


def _statuses(text: str | None) -> tuple[tuple[str, ...], str | None]:
    if text is None:
        return tuple(status.value for status in DEFAULT_STATUSES), None
    named = {part.strip() for part in text.split(";")}
    unknown = sorted(named - set(MatchStatus))
    if unknown:
        return (), f"names the status {unknown[0]!r}. Write of {', '.join(MatchStatus)}, separated by ;"
    return tuple(status.value for status in MatchStatus if status in named), None


def _recipient_fault(recipient: str | None, parties: Parties) -> str | None:
    if recipient is None:
        return "has no recipient. Name one"
    if recipient.startswith(PARTY_PREFIX):
        party = recipient.removeprefix(PARTY_PREFIX)
        return None if parties.knows(party) else f"names the party {party!r}, which {parties.why_unknown(party)}"
    if recipient not in list(Recipient):
        return f"has the recipient {recipient!r}. Write one of {', '.join(Recipient)} or party:<party_id>"
    return None


def _method_fault(
    method: str | None, pot: str | None, recipient: str | None, value: int, cap: int | None
) -> str | None:
    if method == Method.CHARGE and pot != Pot.MATCH_FEE:
        return "charges in the pot revenue. Only match_fee is charged"
    if method == Method.CHARGE and recipient not in CHARGEABLE:
        return f"charges {recipient}. Only each_player and each_referee are charged"
    if method == Method.REMAINDER and value < 1:
        return "is a remainder of weight 0. Write a whole number from 1"
    if cap is not None and (method != Method.PERCENT or cap < 0):
        return "has a cap_minor that is no whole number or stands beside another method than percent. Leave it empty"
    return None


def _interval_faults(draft: _Draft) -> list[ReferenceProblem]:
    faults = [row.problem(words) for row, _, words in draft.intervals if words is not None]
    if draft.intervals:
        _, expected, _ = draft.intervals[0]
        faults += [
            row.problem(f"is in force {interval}, and another line of its version {expected}. Make them equal")
            for row, interval, words in draft.intervals
            if words is None and interval != expected
        ]
    return faults


def _sum_faults(draft: _Draft) -> list[ReferenceProblem]:
    """Check what lines of a version must not do together.

    All percent lines of a pot and status count: winner, loser, federation and referees may all be there at once.
    """
    faults: list[ReferenceProblem] = []
    seen: set[int] = set()
    charged: set[tuple[str, str]] = set()
    percents: dict[tuple[str, str], int] = defaultdict(int)
    for row, line in draft.lines:
        if line.line_no in seen:
            faults.append(row.problem(f"repeats the line_no {line.line_no} of its version. Number each line once"))
        seen.add(line.line_no)
        for status in line.statuses:
            if line.method == Method.CHARGE:
                if (line.recipient, status) in charged:
                    faults.append(row.problem(f"charges {line.recipient} a second time when {status}. Keep one charge"))
                    break
                charged.add((line.recipient, status))
            if line.method == Method.PERCENT:
                percents[line.pot, status] += line.value
                if percents[line.pot, status] > WHOLE_BP:
                    faults.append(
                        row.problem(
                            f"brings the percents of {line.pot} when {status} to {percents[line.pot, status]} basis "
                            f"points, above {WHOLE_BP}. Lower them"
                        )
                    )
                    break
    return faults


def _widest(draft: _Draft) -> Interval:
    """Give the days that a version is in force; where its lines differ, all that any of them says."""
    intervals = [interval for _, interval, _ in draft.intervals]
    if not intervals:
        return NO_BOUND
    firsts = [interval.first for interval in intervals]
    lasts = [interval.last for interval in intervals]
    return Interval(
        None if None in firsts else min(day for day in firsts if day is not None),
        None if None in lasts else max(day for day in lasts if day is not None),
    )
