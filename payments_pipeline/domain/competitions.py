"""Competitions: who organises them, in which currency, how they pay; effective-dated.

Belongs here: reading and checking the table, and which row is in force on a day. Does not belong here: fee schedules,
matches.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

import numpy as np
import pandas as pd

from payments_pipeline.domain.money import is_currency
from payments_pipeline.domain.parties import Parties
from payments_pipeline.domain.records import Field, Kind, Layout, Records, RowFault
from payments_pipeline.domain.reference_rows import NO_BOUND, Interval, ReferenceProblem, Row, read_interval, rows_of
from payments_pipeline.domain.values import are_ids

COMPETITIONS = Layout(
    "competitions",
    (
        Field("competition_id", salvaged=True),
        Field("name"),
        Field("organiser_id"),
        Field("federation_id", required=False),
        Field("platform_id", required=False),
        Field("currency"),
        Field("payout_policy", required=False),
        Field("effective_from", Kind.DATE, required=False),
        Field("effective_to", Kind.DATE, required=False),
    ),
)
#: What the accepted competition of a match is known by, in the order of `rules_hash`.
TERMS = ["competition_id", "organiser_id", "federation_id", "platform_id", "currency", "payout_policy"]


class PayoutPolicy(StrEnum):
    """When a competition pays out."""

    IMMEDIATE = "immediate"
    WHEN_COLLECTED = "when_collected"


@dataclass(frozen=True)
class Competition:
    """One row of the table.

    Attributes:
        terms: TERMS to text; None where empty.
        interval: days that it is in force; as wide as it may be where a date cannot be read.
        problem: why it cannot be used; None where it can.
    """

    terms: dict[str, str | None]
    interval: Interval
    problem: ReferenceProblem | None


@dataclass(frozen=True)
class Competitions:
    """The table: good rows and bad ones, for a bad row rejects what would use it.

    Attributes:
        by_id: rows of each competition whose id can be read.
        problems: of all rows, those without a readable id too.
    """

    by_id: dict[str, tuple[Competition, ...]]
    problems: tuple[ReferenceProblem, ...]

    def on(self, day: date) -> dict[str, Competition | str | None]:
        """Give for each known competition the one row in force, why that row cannot be used, or None: none is."""
        return {competition_id: _in_force(rows, day) for competition_id, rows in self.by_id.items()}


def _in_force(rows: tuple[Competition, ...], day: date) -> Competition | str | None:
    in_force = [row for row in rows if row.interval.covers(day)]
    for row in in_force:
        if row.problem is not None:
            return str(row.problem)
    if len(in_force) > 1:
        return "two rows are in force on that day. End the older one with effective_to."
    return in_force[0] if in_force else None


def parse_competitions(records: Records, parties: Parties) -> Competitions:
    """Check the table.

    Args:
        records: as read by the layout COMPETITIONS.
        parties: the parties that rows may name.
    """
    ids = _readable_ids(records)
    rows = rows_of(records, COMPETITIONS)
    repeated = _repeated_keys(rows)
    changed = _changed_currency(rows)
    by_id: dict[str, list[Competition]] = defaultdict(list)
    problems = []
    for place, row in enumerate(rows):
        words = _fault(row, parties, readable=ids[place], repeated=place in repeated)
        interval, bad_dates = read_interval(row)
        competition_id = row["competition_id"]
        if words is None and bad_dates is not None:
            words = bad_dates
        if words is None and competition_id in changed:
            words = (
                f"gives {competition_id} the currencies {', '.join(changed[competition_id])}, and a competition's "
                "currency never changes. Restore it, and start a new competition for the other"
            )
        problem = None if words is None else row.problem(words)
        if problem is not None:
            problems.append(problem)
        if ids[place] and competition_id is not None:
            terms = {name: row[name] for name in TERMS}
            terms["payout_policy"] = row["payout_policy"] or PayoutPolicy.IMMEDIATE.value
            usable_interval = NO_BOUND if row.fault else interval
            by_id[competition_id].append(Competition(terms, usable_interval, problem))
    return Competitions({key: tuple(found) for key, found in by_id.items()}, tuple(problems))


def _readable_ids(records: Records) -> np.ndarray:
    column = records.columns["competition_id"]
    return column.spread(are_ids(column.distinct), empty=False)


def _repeated_keys(rows: list[Row]) -> set[int]:
    keys = pd.Series([(row["competition_id"], row["effective_from"]) for row in rows], dtype=object)
    return set(np.flatnonzero(keys.duplicated(keep=False)).tolist())


def _changed_currency(rows: list[Row]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["competition_id"] and row["currency"]:
            found[row["competition_id"]].add(row["currency"])
    return {key: sorted(currencies) for key, currencies in found.items() if len(currencies) > 1}


def _fault(row: Row, parties: Parties, *, readable: bool, repeated: bool) -> str | None:
    if row.fault != RowFault.NONE:
        return row.shape_fault
    if not readable:
        return "has no usable competition_id. Write 1 to 128 of ASCII letters, digits and : . _ -"
    if repeated:
        return f"repeats competition_id {row['competition_id']} with the same effective_from. Keep one of the rows"
    for name in ("organiser_id", "federation_id", "platform_id"):
        party = row[name]
        if party is None:
            if name == "organiser_id":
                return "has no organiser_id. Name the organiser"
        elif not parties.knows(party):
            return f"names the {name} {party!r}, which {parties.why_unknown(party)}"
    if row["currency"] is None or not is_currency(row["currency"]):
        return f"has the currency {row['currency']!r}. Write an ISO 4217 code that has minor units, such as GBP"
    if row["payout_policy"] not in (None, *PayoutPolicy):
        return f"has the payout_policy {row['payout_policy']!r}. Write immediate or when_collected"
    return None
