"""Parties: everybody whom money may be owed to or owed by.

Belongs here: reading and checking the table. Does not belong here: what a party's status means for paying.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.records import Field, Layout, Records, RowFault
from payments_pipeline.domain.reference_rows import SHAPE_FAULTS, ReferenceProblem
from payments_pipeline.domain.values import WRONG_TYPE, are_ids, are_logins, are_plain

PARTIES = Layout(
    "parties",
    (
        Field("party_id", salvaged=True),
        Field("party_type"),
        Field("name"),
        Field("country"),
        Field("status"),
        Field("payout_token"),
        Field("collection_token"),
        Field("token_changed_by", required=False),
    ),
)


class PartyType(StrEnum):
    """What a party is."""

    PLAYER = "player"
    CLUB = "club"
    ORGANISER = "organiser"
    REFEREE = "referee"
    FEDERATION = "federation"
    PLATFORM = "platform"


class PartyStatus(StrEnum):
    """Whether a party is paid; never changes what it is owed."""

    ACTIVE = "active"
    ON_HOLD = "on_hold"
    CLOSED = "closed"


@dataclass(frozen=True)
class Parties:
    """The table.

    Attributes:
        frame: valid parties, sorted by party_id: party_id, party_type, name, country, status, payout_token,
            collection_token, token_changed_by (who changed a token last; a login, as approvers have); text, None where
            empty.
        problems: of the bad rows.
        ids: `frame`'s party ids as Arrow text, to be looked up in.
        clubs: those of type club.
    """

    frame: pd.DataFrame
    problems: tuple[ReferenceProblem, ...]
    ids: pa.StringArray
    clubs: pa.StringArray
    _known: frozenset[str]
    _problem_of: dict[str, ReferenceProblem]

    def knows(self, party_id: str) -> bool:
        """Tell whether a party is known and its row valid."""
        return party_id in self._known

    def why_unknown(self, party_id: str) -> str:
        """Say why a party is not known, to follow "which", without a full stop: its row is bad, or there is none."""
        problem = self._problem_of.get(party_id)
        if problem is None:
            return "is not in parties. Add it there, or correct it here"
        return f"has a bad row: {str(problem).removesuffix('.')}"

    def input_hash(self) -> str:
        """Hash id and type of all valid parties: nothing else of a party bears on shares."""
        pairs = self.frame[["party_id", "party_type"]].to_numpy().tolist()
        return hashlib.sha256(orjson.dumps(pairs)).hexdigest()


def parse_parties(records: Records) -> Parties:
    """Check the table; a repeated party_id makes all its rows bad.

    Args:
        records: as read by the layout PARTIES.
    """
    everything = np.arange(len(records))
    frame = pd.DataFrame({name: column.take(everything).to_pylist() for name, column in records.columns.items()})
    frame = frame.astype(object)
    ids, changers = records.columns["party_id"], records.columns["token_changed_by"]
    faults = [
        *((records.fault == fault, words) for fault, words in SHAPE_FAULTS.items()),
        (
            ~ids.spread(are_ids(ids.distinct), empty=False),
            "has no usable party_id. Write 1 to 128 of ASCII letters, digits and : . _ -",
        ),
        (frame["party_id"].duplicated(keep=False).to_numpy(), "repeats its party_id. Keep one of the rows"),
        (
            ~frame["party_type"].isin(list(PartyType)).to_numpy(),
            f"has no known party_type. Write one of {', '.join(PartyType)}",
        ),
        (
            ~frame["status"].isin(list(PartyStatus)).to_numpy(),
            f"has no known status. Write one of {', '.join(PartyStatus)}",
        ),
        *(
            (
                ~records.columns[name].spread(are_plain(records.columns[name].distinct), empty=True),
                f"has a {name} that is not text. Write it as text",
            )
            for name in ("name", "country", "payout_token", "collection_token")
        ),
        (
            ~changers.spread(are_logins(changers.distinct), empty=True),
            "has a token_changed_by that is no login. Write the login of whoever changed a token last",
        ),
    ]
    which = np.select([mask for mask, _ in faults], np.arange(len(faults)), default=-1)
    bad = np.flatnonzero(which >= 0)
    keys: list[str] = frame["party_id"].fillna("").tolist()
    problems = tuple(
        ReferenceProblem(
            records.sources[records.source_no[row]],
            int(records.line_number[row]),
            keys[row].replace(WRONG_TYPE, ""),
            faults[which[row]][1],
        )
        for row in bad.tolist()
    )
    assert (which[records.fault != RowFault.NONE] >= 0).all()
    valid = frame[which < 0].sort_values("party_id", ignore_index=True)
    clubs = valid.loc[valid["party_type"] == PartyType.CLUB, "party_id"]
    return Parties(
        valid,
        problems,
        pa.array(valid["party_id"], pa.string()),
        pa.array(clubs, pa.string()),
        frozenset(valid["party_id"]),
        {problem.key: problem for problem in reversed(problems)},
    )
