"""Shares: who is owed or owes what from a day's matches.

Belongs here: pots, recipients, and the frame of shares. Does not belong here: the division itself (`allocation`),
which matches and schedules count (`match_results`, `fee_schedules`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from payments_pipeline.domain.allocation import FIXED, NO_CAP, PERCENT, REMAINDER, Claims, divide
from payments_pipeline.domain.errors import InvariantError
from payments_pipeline.domain.schemas import PARTICIPANT_SHARES

_METHODS = {"fixed": FIXED, "percent": PERCENT, "remainder": REMAINDER}
_ROLES = {"each_player": "player", "each_referee": "referee"}
PAYER = "payer"
SUSPENSE = "suspense"


def compute_shares(
    matches: pd.DataFrame, participants: pd.DataFrame, schedule_lines: pd.DataFrame, competitions: pd.DataFrame
) -> pd.DataFrame:
    """Divide the pots of a day's matches.

    Args:
        matches: frame of `schemas.MATCH_RESULTS`.
        participants: frame of `schemas.MATCH_PARTICIPANTS` of those matches.
        schedule_lines: competition_id, schedule_version, line_no, pot, recipient, method, value, cap_minor (nullable),
            status; one row per line and status that it applies to.
        competitions: competition_id, organiser_id, federation_id, platform_id (nullable) in force on the day.

    Returns:
        Frame of `schemas.PARTICIPANT_SHARES`: amounts int64 minor units, sorted as declared; each match_fee pot sums
        to 0, each revenue pot to its revenue.

    Raises:
        AllocationOverflowError: an amount or weight is beyond what the division admits.
        InvariantError: a pot's shares do not sum to it; names the match.

    Source: docs/concepts/allocation.md.
    """
    if matches.empty:
        return _empty_frame()
    match = _matches(matches, competitions)
    people = _plain(participants[["match_id", "party_id", "club_id", "role"]]).merge(
        match[["match_id", "match"]], on="match_id", how="inner"
    )
    lines = match[["match", "competition_id", "schedule_version", "status"]].merge(
        _plain(schedule_lines), on=["competition_id", "schedule_version", "status"], how="inner"
    )
    charges = lines[lines["method"] == "charge"]
    dividing = lines[lines["method"] != "charge"].copy()
    dividing["line"] = np.arange(len(dividing))
    pots = _pots(match, people, charges, dividing)
    claims = _claims(pots, dividing, _recipients(match, people, dividing))
    given, left = divide(
        pots["amount_minor"].to_numpy(np.int64),
        Claims(
            pot=claims["number"].to_numpy(np.int64),
            method=claims["code"].to_numpy(np.int64),
            line_no=claims["line_no"].to_numpy(np.int64),
            value=claims["value"].to_numpy(np.int64),
            cap_minor=claims["cap_minor"].to_numpy(np.int64),
            sharers=claims["sharers"].to_numpy(np.int64),
        ),
    )
    return _frame(match, pots, claims, given, left)


def _empty_frame() -> pd.DataFrame:
    numbers = {"line_no", "amount_minor"}
    return pd.DataFrame(
        {name: pd.Series([], dtype="int64" if name in numbers else object) for name in PARTICIPANT_SHARES.names}
    )


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the frame with its categories as plain strings: merges of different categories are slow and lose order."""
    categories = [name for name in frame.columns if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(categories, object))


def _matches(matches: pd.DataFrame, competitions: pd.DataFrame) -> pd.DataFrame:
    names = [
        "match_id",
        "competition_id",
        "schedule_version",
        "status",
        "home_club_id",
        "away_club_id",
        "home_score",
        "away_score",
        "winner_club_id",
        "revenue_minor",
        "currency",
    ]
    match = _plain(matches[names]).merge(
        _plain(competitions[["competition_id", "organiser_id", "federation_id", "platform_id"]]),
        on="competition_id",
        how="left",
        validate="many_to_one",
    )
    home, away = match["home_club_id"], match["away_club_id"]
    lead = (match["home_score"].astype("Int64") - match["away_score"].astype("Int64")).fillna(0)
    by_score = home.where(lead > 0, away.where(lead < 0))
    match["winning_club_id"] = match["winner_club_id"].where(match["winner_club_id"].notna(), by_score)
    match["losing_club_id"] = home.where(match["winning_club_id"] == away, away.where(match["winning_club_id"] == home))
    match["match"] = np.arange(len(match))
    return match


def _pots(match: pd.DataFrame, people: pd.DataFrame, charges: pd.DataFrame, dividing: pd.DataFrame) -> pd.DataFrame:
    """Give the pots that are formed: match, pot, pot_party_id, own_club_id, amount_minor, charge_line_no (0: none)."""
    formed = dividing[["match", "pot"]].drop_duplicates()
    revenue = match.loc[match["revenue_minor"].fillna(0) > 0, ["match", "revenue_minor"]].merge(
        formed[formed["pot"] == "revenue"], on="match", how="inner"
    )
    revenue = revenue.rename(columns={"revenue_minor": "amount_minor"}).assign(
        pot_party_id="", own_club_id=None, charge_line_no=0
    )
    charged = charges.loc[charges["value"] > 0, ["match", "pot", "recipient", "value", "line_no"]].assign(
        role=lambda frame: frame["recipient"].map(_ROLES)
    )
    fees = (
        charged.merge(people[["match", "party_id", "club_id", "role"]], on=["match", "role"], how="inner")
        .merge(formed, on=["match", "pot"], how="inner")
        .rename(
            columns={
                "party_id": "pot_party_id",
                "club_id": "own_club_id",
                "value": "amount_minor",
                "line_no": "charge_line_no",
            }
        )
    )
    columns = ["match", "pot", "pot_party_id", "own_club_id", "amount_minor", "charge_line_no"]
    pots = pd.concat(
        [part[columns].astype({"own_club_id": object, "amount_minor": "int64"}) for part in (fees, revenue)],
        ignore_index=True,
    )
    pots["number"] = np.arange(len(pots))
    return pots


def _recipients(match: pd.DataFrame, people: pd.DataFrame, dividing: pd.DataFrame) -> pd.DataFrame:
    """Resolve lines whose recipients are the same for every pot of the match: line, party_id."""
    of_match = {
        "organiser": ["organiser_id"],
        "federation": ["federation_id"],
        "platform": ["platform_id"],
        "home_club": ["home_club_id"],
        "away_club": ["away_club_id"],
        "winning_club": ["winning_club_id"],
        "losing_club": ["losing_club_id"],
        "each_club": ["home_club_id", "away_club_id"],
    }
    parts = []
    for recipient, columns in of_match.items():
        named = dividing.loc[dividing["recipient"] == recipient, ["line", "match"]]
        at = named["match"].to_numpy()
        parts += [
            pd.DataFrame({"line": named["line"].to_numpy(), "party_id": match[column].to_numpy(object)[at]})
            for column in (columns if len(named) else [])
        ]
    for recipient, role in _ROLES.items():
        named = dividing.loc[dividing["recipient"] == recipient, ["line", "match"]]
        parts.append(
            named.merge(people.loc[people["role"] == role, ["match", "party_id"]], on="match")[["line", "party_id"]]
        )
    by_name = dividing.loc[dividing["recipient"].str.startswith("party:"), ["line", "recipient"]]
    parts.append(
        pd.DataFrame(
            {"line": by_name["line"], "party_id": by_name["recipient"].str.removeprefix("party:").astype(object)}
        )
    )
    found = pd.concat(parts, ignore_index=True)
    return found[found["party_id"].notna()]


def _claims(pots: pd.DataFrame, dividing: pd.DataFrame, recipients: pd.DataFrame) -> pd.DataFrame:
    """Give the claims of every pot, in the order in which they are worked."""
    lines = dividing[
        ["line", "match", "pot", "line_no", "recipient", "method", "value", "cap_minor", "schedule_version"]
    ]
    shared = pots[["number", "match", "pot", "own_club_id"]].merge(lines, on=["match", "pot"], how="inner")
    own = shared["recipient"] == "own_club"
    by_club = shared[own & shared["own_club_id"].notna()].rename(columns={"own_club_id": "party_id"})
    by_line = shared[~own].drop(columns="own_club_id").merge(recipients, on="line", how="inner")
    claims = pd.concat([by_line, by_club[by_line.columns]], ignore_index=True)
    claims["code"] = claims["method"].map(_METHODS).astype("int64")
    claims["cap_minor"] = claims["cap_minor"].astype("Int64").fillna(NO_CAP).astype("int64")
    parties, rank = np.unique(claims["party_id"].to_numpy(str), return_inverse=True)
    assert len(parties) <= len(claims)
    order = np.lexsort((rank, claims["line_no"], claims["code"] != FIXED, claims["number"]))
    claims = claims.iloc[order].reset_index(drop=True)
    claims["sharers"] = claims.groupby(["number", "line_no"], sort=False)["line"].transform("size").astype("int64")
    return claims


def _frame(
    match: pd.DataFrame, pots: pd.DataFrame, claims: pd.DataFrame, given: np.ndarray, left: np.ndarray
) -> pd.DataFrame:
    version = match["schedule_version"].to_numpy(object)
    paid = claims.assign(amount_minor=given)[["number", "line_no", "recipient", "party_id", "amount_minor"]]
    payers = pots.loc[pots["charge_line_no"] > 0, ["number", "charge_line_no", "pot_party_id", "amount_minor"]]
    payers = payers.rename(columns={"charge_line_no": "line_no", "pot_party_id": "party_id"})
    payers = payers.assign(recipient=PAYER, amount_minor=-payers["amount_minor"])
    nobody = pd.DataFrame(
        {"number": pots["number"], "line_no": 0, "recipient": SUSPENSE, "party_id": SUSPENSE, "amount_minor": left}
    )
    rows = pd.concat([part for part in (paid, payers, nobody) if len(part)] or [nobody], ignore_index=True)
    rows = rows[rows["amount_minor"] != 0]
    _conserved(match, pots, rows)
    pot = pots.iloc[rows["number"].to_numpy()]
    at = pot["match"].to_numpy()
    frame = pd.DataFrame(
        {
            "match_id": match["match_id"].to_numpy(object)[at],
            "competition_id": match["competition_id"].to_numpy(object)[at],
            "pot": pot["pot"].to_numpy(object),
            "pot_party_id": pot["pot_party_id"].to_numpy(object),
            "schedule_version": version[at],
            "line_no": rows["line_no"].to_numpy(np.int64),
            "recipient": rows["recipient"].to_numpy(object),
            "party_id": rows["party_id"].to_numpy(object),
            "amount_minor": rows["amount_minor"].to_numpy(np.int64),
            "currency": match["currency"].to_numpy(object)[at],
        }
    )
    return frame.sort_values(list(PARTICIPANT_SHARES.sort_by), ignore_index=True)


def _conserved(match: pd.DataFrame, pots: pd.DataFrame, rows: pd.DataFrame) -> None:
    sums = np.zeros(len(pots), dtype=np.int64)
    np.add.at(sums, rows["number"].to_numpy(), rows["amount_minor"].to_numpy(np.int64))
    expected = np.where(pots["pot"] == "revenue", pots["amount_minor"].to_numpy(np.int64), 0)
    bad = np.flatnonzero(sums != expected)
    if len(bad):
        pot = pots.iloc[bad[0]]
        raise InvariantError(
            f"match {match['match_id'].iloc[pot['match']]}, pot {pot['pot']} {pot['pot_party_id']}: shares sum to "
            f"{sums[bad[0]]} and not to {expected[bad[0]]}. Nothing was posted. This is a defect: report it."
        )
