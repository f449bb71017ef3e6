"""The division, written a second time: row by row, in exact fractions, to be read in one sitting.

It shares nothing with the code that divides: where the two differ, one of them is wrong.
"""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from typing import Any

from payments_pipeline.verify.reference import Reference, statuses_of

Row = dict[str, Any]
Share = tuple[str, str, str, int, str, str]
_ROLES = {"each_player": "player", "each_referee": "referee"}


def divide_day(
    matches: list[Row], participants: list[Row], reference: Reference, day: date
) -> dict[Share, tuple[int, str]]:
    """Give every share of some matches: (match, pot, pot party, line, party, currency) to minor units and recipient.

    Args:
        matches: rows of match_results; competition and schedule version of each are in the reference data.
        participants: rows of match_participants, of these matches or more.
        reference: the rules that they fall under.
        day: the match day.
    """
    shares: dict[Share, tuple[int, str]] = {}
    people: dict[str, list[Row]] = {}
    for row in participants:
        people.setdefault(row["match_id"], []).append(row)
    for match in matches:
        competition = reference.competition(match["competition_id"], day)
        assert competition is not None
        lines = [
            line
            for line in reference.schedule(match["competition_id"], match["schedule_version"])
            if match["status"] in statuses_of(line)
        ]
        squad = people.get(match["match_id"], [])
        for pot, pot_party, club, charge_line, amount in _pots(match, lines, squad):
            dividing = [line for line in lines if line["pot"] == pot and line["method"] != "charge"]
            names = {0: "suspense"} | {int(line["line_no"]): line["recipient"] for line in dividing}
            if charge_line:
                shares[match["match_id"], pot, pot_party, charge_line, pot_party, match["currency"]] = -amount, "payer"
            for (line_no, party), minor in _divide(amount, dividing, match, competition, squad, club).items():
                if minor:
                    shares[match["match_id"], pot, pot_party, line_no, party, match["currency"]] = minor, names[line_no]
    return shares


def _pots(match: Row, lines: list[Row], squad: list[Row]) -> list[tuple[str, str, str | None, int, int]]:
    """Give pot, pot party, own club, charge line and amount of each pot that is formed."""
    formed = {line["pot"] for line in lines if line["method"] != "charge"}
    pots: list[tuple[str, str, str | None, int, int]] = []
    if "revenue" in formed and (match["revenue_minor"] or 0) > 0:
        pots.append(("revenue", "", None, 0, match["revenue_minor"]))
    for line in lines:
        if line["method"] == "charge" and "match_fee" in formed and int(line["value"]) > 0:
            pots += [
                ("match_fee", person["party_id"], person["club_id"], int(line["line_no"]), int(line["value"]))
                for person in squad
                if person["role"] == _ROLES[line["recipient"]]
            ]
    return pots


def _winner(match: Row) -> str | None:
    if match["winner_club_id"]:
        winner: str = match["winner_club_id"]
        return winner
    home, away = match["home_score"], match["away_score"]
    if home is None or away is None or home == away:
        return None
    better: str = match["home_club_id"] if home > away else match["away_club_id"]
    return better


def _recipients(recipient: str, match: Row, competition: Row, squad: list[Row], club: str | None) -> list[str]:
    clubs = [match["home_club_id"], match["away_club_id"]]
    winner = _winner(match)
    if recipient in _ROLES:
        return sorted(person["party_id"] for person in squad if person["role"] == _ROLES[recipient])
    if recipient.startswith("party:"):
        return [recipient.removeprefix("party:")]
    found = {
        "organiser": [competition["organiser_id"]],
        "federation": [competition.get("federation_id")],
        "platform": [competition.get("platform_id")],
        "home_club": clubs[:1],
        "away_club": clubs[1:],
        "each_club": clubs,
        "winning_club": [winner],
        "losing_club": [next((other for other in clubs if other != winner), None) if winner else None],
        "own_club": [club],
    }[recipient]
    return sorted(party for party in found if party)


def _divide(
    amount: int, lines: list[Row], match: Row, competition: Row, squad: list[Row], club: str | None
) -> dict[tuple[int, str], int]:
    """Divide one pot; what nobody is entitled to is line 0."""
    given: dict[tuple[int, str], int] = {}
    parties = {int(line["line_no"]): _recipients(line["recipient"], match, competition, squad, club) for line in lines}
    left = amount
    for line in lines:
        if line["method"] == "fixed":
            for party in parties[int(line["line_no"])]:
                given[int(line["line_no"]), party] = min(int(line["value"]), left)
                left -= given[int(line["line_no"]), party]
    totals: dict[int, Fraction] = {}
    weights: dict[int, int] = {}
    for line in lines:
        number = int(line["line_no"])
        if line["method"] == "percent" and parties[number]:
            totals[number] = Fraction(left * int(line["value"]), 10_000)
            if line.get("cap_minor") not in (None, ""):  # 0 is a cap
                totals[number] = min(totals[number], Fraction(int(line["cap_minor"])))
        elif line["method"] == "remainder" and parties[number]:
            weights[number] = int(line["value"])
    rest = left - sum(totals.values(), Fraction(0))
    for number, weight in weights.items():
        totals[number] = rest * weight / sum(weights.values())
    exact = {
        (number, party): total / len(parties[number]) for number, total in totals.items() for party in parties[number]
    }
    handed = left if weights else int(sum(totals.values(), Fraction(0)))
    units = handed - sum(int(part) for part in exact.values())
    by_fraction = sorted(exact, key=lambda claim: (int(exact[claim]) - exact[claim], claim[0], claim[1].encode()))
    for place, claim in enumerate(by_fraction):
        given[claim] = int(exact[claim]) + (place < units)
    given[0, "suspense"] = left - handed
    return given
