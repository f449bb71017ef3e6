"""What comes in: matches as they are delivered, who plays, the rules, the parties.

Belongs here: facts as plain values, and their frames for the product. Does not belong here: what follows from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import pandas as pd

from payments_pipeline.domain.participant_shares import compute_shares
from payments_pipeline.storage.ledger_entries import DayInput

#: First match day of every world.
FIRST_DAY = date(2024, 8, 17)
PLAYED_STATUSES = ("completed", "awarded")
HOME, AWAY, ORGANISER, PLATFORM = "club:home", "club:away", "organiser", "platform"
PLAYERS = ("player:1", "player:2", "player:3")
PARTIES = (HOME, AWAY, ORGANISER, PLATFORM, *PLAYERS)
#: Competition, its currency, and when it pays.
COMPETITIONS = {"cup": ("GBP", "immediate"), "league": ("EUR", "when_collected")}
_OTHER_POLICY = {"immediate": "when_collected", "when_collected": "immediate"}
POTS = frozenset(f"pot:{competition}" for competition in COMPETITIONS)


def day_of(number: int) -> date:
    """Give the world's n-th day, from 0."""
    return FIRST_DAY + timedelta(days=number)


@dataclass(frozen=True)
class Match:
    """One match as the landing zone has it.

    Attributes:
        match_id: match.
        competition_id: one of COMPETITIONS.
        day: number of its match day.
        revision: of its result.
        status: as delivered.
        revenue_minor: None is not declared.
        players: those who are charged.
        rules: version of the competition's rules: 0, 1 or 2.
        rejected: whether its row cannot be accepted.
    """

    match_id: str
    competition_id: str
    day: int
    revision: int
    status: str
    revenue_minor: int | None
    players: tuple[str, ...]
    rules: int = 0
    rejected: bool = False

    @property
    def content(self) -> str:
        """What two rows of one revision must agree in."""
        return f"{self.competition_id} {self.day} {self.status} {self.revenue_minor}"

    @property
    def payout_policy(self) -> str:
        """When it is paid out; version 2 of the rules changes nothing but that."""
        policy = COMPETITIONS[self.competition_id][1]
        return policy if self.rules < 2 else _OTHER_POLICY[policy]

    @property
    def currency(self) -> str:
        """The competition's."""
        return COMPETITIONS[self.competition_id][0]


@dataclass(frozen=True)
class Party:
    """Reference data of a party.

    Attributes:
        status: active, on_hold or closed.
        token: number of its payout token; None where it has none.
        collectable: whether it has a collection token.
        mandate: number of its collection token.
        changed_by: who changed a token last.
    """

    status: str = "active"
    token: int | None = 1
    collectable: bool = True
    mandate: int = 1
    changed_by: str | None = None

    def payout_token(self, party_id: str) -> str | None:
        """Give the token that it is paid by."""
        return None if self.token is None else f"pay {party_id} {self.token}"

    def collection_token(self, party_id: str) -> str | None:
        """Give the token that it is collected from by."""
        return f"collect {party_id} {self.mandate}" if self.collectable else None


#: A player's match fee under each version of the rules.
MATCH_FEE_MINOR = (500, 730, 500)
#: Of the revenue: the platform's fixed amount, the organiser's basis points, the clubs' weights.
PLATFORM_MINOR, ORGANISER_BP, HOME_WEIGHT, AWAY_WEIGHT = 30, 1_250, 2, 1
#: Of a match fee: the organiser's basis points, at most so much; the rest is the home club's.
FEE_BP, FEE_CAP_MINOR = 2_000, 120


def _schedule_lines() -> pd.DataFrame:
    rows = []
    for competition in COMPETITIONS:
        for version, fee in enumerate(MATCH_FEE_MINOR):
            lines = [
                (1, "revenue", "platform", "fixed", PLATFORM_MINOR, None),
                (2, "revenue", "organiser", "percent", ORGANISER_BP, None),
                (3, "revenue", "home_club", "remainder", HOME_WEIGHT, None),
                (4, "revenue", "away_club", "remainder", AWAY_WEIGHT, None),
                (5, "match_fee", "each_player", "charge", fee, None),
                (6, "match_fee", "organiser", "percent", FEE_BP, FEE_CAP_MINOR),
                (7, "match_fee", "home_club", "remainder", 1, None),
            ]
            rows += [(competition, f"v{version}", *line, status) for line in lines for status in PLAYED_STATUSES]
    columns = ["competition_id", "schedule_version", "line_no", "pot", "recipient", "method", "value", "cap_minor"]
    return pd.DataFrame(rows, columns=[*columns, "status"]).astype({"cap_minor": "Int64"})


_LINES = _schedule_lines()
_COMPETITIONS = pd.DataFrame(
    [(competition, ORGANISER, None, PLATFORM) for competition in COMPETITIONS],
    columns=["competition_id", "organiser_id", "federation_id", "platform_id"],
)
_MATCH_COLUMNS = [
    "match_id",
    "competition_id",
    "match_day",
    "home_club_id",
    "away_club_id",
    "status",
    "home_score",
    "away_score",
    "winner_club_id",
    "revenue_minor",
    "revision",
    "currency",
    "schedule_version",
    "payout_policy",
    "content_hash",
    "rules_hash",
]


def input_hash(landed: Iterable[Match]) -> dict[str, str]:
    """Hash a day's input, as a run does before it posts."""
    text = repr(sorted(map(repr, landed)))
    return {"landing": hashlib.sha256(text.encode()).hexdigest()}


def day_input(landed: tuple[Match, ...]) -> DayInput:
    """Compute what a run posts from what is landed for its day; the shares are the product's own."""
    accepted = [match for match in landed if not match.rejected]
    matches = pd.DataFrame(
        [
            (
                match.match_id,
                match.competition_id,
                day_of(match.day),
                HOME,
                AWAY,
                match.status,
                1,
                1,
                None,
                match.revenue_minor,
                match.revision,
                match.currency,
                f"v{match.rules}",
                match.payout_policy,
                match.content,
                f"rules {match.rules}",
            )
            for match in accepted
        ],
        columns=_MATCH_COLUMNS,
    ).astype({"revenue_minor": "Int64", "revision": "int64", "home_score": "Int64", "away_score": "Int64"})
    participants = pd.DataFrame(
        [(match.match_id, player, HOME, "player") for match in accepted for player in match.players],
        columns=["match_id", "party_id", "club_id", "role"],
        dtype=object,
    )
    rejected = pd.DataFrame(
        [("match_results", "rejected", match.match_id, "value_invalid") for match in landed if match.rejected],
        columns=["dataset", "outcome", "match_id", "reason"],
        dtype=object,
    )
    shares = compute_shares(matches, participants, _LINES, _COMPETITIONS)
    return DayInput(matches, participants, shares, rejected, input_hash(landed))


def parties_frame(parties: dict[str, Party]) -> pd.DataFrame:
    """Give the reference data of parties as the product reads it."""
    rows = [
        (party_id, party.status, party.payout_token(party_id), party.collection_token(party_id), party.changed_by)
        for party_id, party in sorted(parties.items())
    ]
    columns = ["party_id", "status", "payout_token", "collection_token", "token_changed_by"]
    return pd.DataFrame(rows, columns=columns, dtype=object)
