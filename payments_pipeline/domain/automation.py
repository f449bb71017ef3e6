"""What the schedule and the sensors ask for: pure decisions about days.

Belongs here: which day is due, missed, changed or grown, given what is stored and what time it is. Does not belong
here: reading any of that, emitting runs, the words of alerts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import islice
from zoneinfo import ZoneInfo

#: Local hour at which the day before is run.
DUE_HOUR = 3
#: A day counts as missed when its hour has passed by this much.
MISSED_AFTER = timedelta(hours=1)
#: Missed days further back than this are reported, not run: a person decides whether to move money for them.
CATCH_UP_DAYS = 31

_LANDING_KEY = re.compile(r"[a-z_]+/date=(\d{4}-\d{2}-\d{2})/.")


def day_due(scheduled_at: datetime, zone: ZoneInfo) -> date:
    """Give the day that a tick runs: the one before the tick's own local date, whatever the length of either.

    Args:
        scheduled_at: when the tick was scheduled; aware.
        zone: the pipeline's time zone.
    """
    return scheduled_at.astimezone(zone).date() - timedelta(days=1)


def due_at(day: date, zone: ZoneInfo) -> datetime:
    """Give the instant, in UTC, at which the schedule runs a day."""
    return datetime.combine(day + timedelta(days=1), time(DUE_HOUR), tzinfo=zone).astimezone(UTC)


# Missed days ---------------------------------------------------------------------------------------------------------


class RunOutcome(StrEnum):
    """Where a run stands."""

    UNFINISHED = "unfinished"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True)
class DayRun:
    """A run as the decisions see it.

    Attributes:
        day: its partition; None where it has none.
        outcome: where it stands.
        started_by: name of the schedule or sensor that asked for it; None where a person did.
    """

    day: date | None
    outcome: RunOutcome
    started_by: str | None


@dataclass(frozen=True)
class Gaps:
    """Days without a materialisation though their hour has passed.

    Attributes:
        recent: within the days that are caught up; ascending.
        older: before them; ascending.
    """

    recent: tuple[date, ...] = ()
    older: tuple[date, ...] = ()


def find_gaps(ran: Collection[date], now: datetime, zone: ZoneInfo) -> Gaps:
    """Find the days after the first that ran which never ran and whose hour passed more than `MISSED_AFTER` ago.

    Args:
        ran: days materialised at least once; days before the first of them are not missed.
        now: aware.
        zone: the pipeline's time zone.
    """
    if not ran:
        return Gaps()
    first, last = min(ran), day_due(now, zone)
    caught_up_from = last - timedelta(days=CATCH_UP_DAYS - 1)
    have = frozenset(ran)
    missing = [
        day
        for day in (first + timedelta(days=offset) for offset in range((last - first).days + 1))
        if day not in have and due_at(day, zone) + MISSED_AFTER <= now
    ]
    return Gaps(
        recent=tuple(day for day in missing if day >= caught_up_from),
        older=tuple(day for day in missing if day < caught_up_from),
    )


@dataclass(frozen=True)
class MissedDays:
    """What is asked for.

    Attributes:
        request: days to run now; ascending.
        missed: those of them that no run was ever started for.
        left: days left to a person: their run was cancelled, or was asked for before and failed again.
        waiting: days that the next ticks will look at.
    """

    request: tuple[date, ...] = ()
    missed: tuple[date, ...] = ()
    left: tuple[date, ...] = ()
    waiting: tuple[date, ...] = ()


def days_to_catch_up(
    recent: Sequence[date],
    unfinished: Sequence[DayRun],
    runs_of: Mapping[date, Sequence[DayRun]],
    *,
    sensor: str,
    limit: int,
) -> MissedDays:
    """Decide which missing days to run.

    While somebody is running days by hand (a backfill, the command line) nothing is asked for: they may be about to
    reach these days. A day whose run failed is run once more; a day whose newest run was cancelled is not.

    Args:
        recent: missing days, ascending.
        unfinished: runs queued or in progress, of any day.
        runs_of: each missing day's runs, newest first.
        sensor: name under which days were asked for before.
        limit: most days asked for at once.
    """
    if any(run.started_by is None for run in unfinished):
        return MissedDays(waiting=tuple(recent))
    under_way = {run.day for run in unfinished}
    request: list[date] = []
    missed: list[date] = []
    left: list[date] = []
    waiting: list[date] = []
    for day in recent:
        runs = runs_of.get(day, ())
        if day in under_way:
            waiting.append(day)
        elif runs and (runs[0].outcome is RunOutcome.CANCELED or any(run.started_by == sensor for run in runs)):
            left.append(day)
        elif len(request) < limit:
            request.append(day)
            if not runs:
                missed.append(day)
        else:
            waiting.append(day)
    return MissedDays(tuple(request), tuple(missed), tuple(left), tuple(waiting))


# Changed input -------------------------------------------------------------------------------------------------------


def landing_fingerprints(objects: Iterable[tuple[str, int, str]]) -> dict[date, str]:
    """Give a cheap fingerprint of each day that the landing zone lists.

    Args:
        objects: key (`<dataset>/date=YYYY-MM-DD/<name>`), size in bytes and version tag; other keys are passed over.

    Returns:
        By day; equal where no object came, went, or changed in size or version.
    """
    listed: dict[date, list[str]] = {}
    for key, size, version in objects:
        found = _LANDING_KEY.match(key)
        if found and (day := _date(found[1])) is not None:
            listed.setdefault(day, []).append(f"{key}\x1f{size}\x1f{version}")
    return {day: digest("\n".join(sorted(lines))) for day, lines in listed.items()}


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:  # a folder that is no day, such as 2024-02-30
        return None


def digest(text: str) -> str:
    """Give 64 bits of a text's SHA-256 in hexadecimal: enough to see a change, short enough for a cursor."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class ListedDays:
    """What a listing of the landing zone calls for.

    Attributes:
        compare: days that ran and are listed otherwise than when they were last compared; newest first.
        gone: days compared before that are listed no more; ascending.
        everything_gone: no day is listed at all, though days ran.
    """

    compare: tuple[date, ...] = ()
    gone: tuple[date, ...] = ()
    everything_gone: bool = False


def days_to_compare(
    listed: Mapping[date, str], compared: Mapping[date, str], ran: Collection[date], under_way: Collection[date]
) -> ListedDays:
    """Decide whose input to read and compare with what the day last ran on.

    Args:
        listed: fingerprint of each day in the landing zone now.
        compared: fingerprint of each day when it was last found equal or asked for.
        ran: days materialised at least once; others are the schedule's.
        under_way: days with a run queued or in progress; they are looked at when it is done.
    """
    if not listed:
        return ListedDays(gone=tuple(sorted(compared)), everything_gone=bool(ran))
    changed = (day for day in ran if day in listed and day not in under_way and compared.get(day) != listed[day])
    return ListedDays(
        compare=tuple(sorted(changed, reverse=True)), gone=tuple(sorted(day for day in compared if day not in listed))
    )


# Grown reports -------------------------------------------------------------------------------------------------------


def grown_report_dates(
    taken: Mapping[date, str], listed: Mapping[date, str], under_way: Collection[date], limit: int
) -> list[date]:
    """Give the dates whose report is another than the one last taken in; ascending.

    Args:
        taken: digest under which each date's report was last taken in.
        listed: digest of each report now; a date left out has no lines.
        under_way: dates with a run queued or in progress.
        limit: most dates given.
    """
    grown = (day for day in sorted(taken) if day not in under_way and listed.get(day, taken[day]) != taken[day])
    return list(islice(grown, limit))


#: Reference data that rules are made of.
RULE_TABLES = ("competitions", "fee_schedules")


def days_under_other_rules(
    posted: Iterable[tuple[date, str, str, Mapping[str, str], str]],
    rules_on: Callable[[date], Mapping[str, str]],
    hashes: Mapping[str, str],
) -> dict[date, str]:
    """Give the days to run because their posted matches fall under other rules now, and what they are run for.

    Args:
        posted: day, competition_id, rules_hash that matches of it are posted under, hashes of the reference data that
            the day last ran on, and the id of a change of rules accepted since ("" for none).
        rules_on: rules_hash of each competition on a day, as of now.
        hashes: of the reference data as it is now.

    Returns:
        In order of day, words that stand for the state of the reference data and the acceptance: run once for each.
    """
    now = {table: hashes[table] for table in RULE_TABLES}
    days: dict[date, str] = {}
    known: dict[date, Mapping[str, str]] = {}
    for day, competition_id, rules_hash, seen, accepted in posted:
        if not accepted and {table: seen.get(table) for table in RULE_TABLES} == now:
            continue  # it has run on these rules: its effect is proposed
        if day not in known:
            known[day] = rules_on(day)
        if known[day].get(competition_id) != rules_hash:
            days[day] = f"{sorted(now.items())} {accepted}"
    return dict(sorted(days.items()))
