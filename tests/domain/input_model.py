"""A second reading of what is accepted: row by row, in plain Python, sharing nothing with the package.

It takes rows as dictionaries and says what becomes of each: accepted, superseded or rejected. It knows the reference
data of `input_samples` and nothing of reason codes.
"""

import re
from collections import defaultdict
from datetime import date, datetime
from zoneinfo import ZoneInfo

ID = re.compile(r"[A-Za-z0-9:._-]{1,128}")
CLUBS = {"club:a", "club:b", "club:c"}
PARTIES = CLUBS | {"player:1", "player:2", "referee:1", "organiser:1", "federation:1", "platform:1"}
SCHEDULED = {"c1", "c2"}
STATUSES = {"completed", "awarded", "abandoned", "postponed", "cancelled", "void"}

Row = dict[str, str] | list[str]  # a list is a row with another field count than its header


class Invalid(Exception):  # noqa: N818 (it never leaves this module)
    pass


def require(condition: object) -> None:
    if not condition:
        raise Invalid


def is_id(text: str) -> bool:
    return ID.fullmatch(text) is not None


def whole(text: str, least: int = 0) -> int | None:
    if text == "":
        return None
    require(text.isascii() and text.isdigit() and least <= int(text) <= 10**15)
    return int(text)


def parsed_match(row: dict[str, str], day: date, zone: ZoneInfo) -> tuple:
    """Read a match row whose id and revision are read already."""
    try:
        at = datetime.fromisoformat(row["kicked_off_at"])
    except ValueError:
        raise Invalid from None
    require(at.tzinfo is not None and at.astimezone(zone).date() == day)
    require(row["competition_id"] in SCHEDULED)
    home, away, winner = row["home_club_id"], row["away_club_id"], row["winner_club_id"]
    require(home in CLUBS and away in CLUBS and home != away and winner in ("", home, away))
    scores = whole(row["home_score"]), whole(row["away_score"])
    require((scores[0] is None) == (scores[1] is None))
    require(row["status"] in STATUSES)
    require(row["status"] != "completed" or scores[0] is not None)
    require(row["status"] not in ("postponed", "cancelled") or scores[0] is None)
    return row["competition_id"], at, home, away, winner, scores, row["status"], whole(row["revenue_minor"])


def judge_match(rows: dict[int, Row], day: date, zone: ZoneInfo) -> dict[int, str]:
    """Judge all rows of one match, by their position."""
    everything_rejected = dict.fromkeys(rows, "rejected")
    revisions = {}
    for place, row in rows.items():
        if isinstance(row, list):
            return everything_rejected
        try:
            revisions[place] = whole(row["revision"], least=1) or 1
        except Invalid:
            return everything_rejected
    newest = [place for place in rows if revisions[place] == max(revisions.values())]
    try:
        said = {parsed_match(row, day, zone) for place in newest if isinstance(row := rows[place], dict)}
    except Invalid:
        return everything_rejected
    if len(said) > 1:
        return everything_rejected
    return dict.fromkeys(rows, "superseded") | {newest[0]: "accepted"}


def judge(matches: list[Row], participants: list[Row], day: date, zone: ZoneInfo) -> tuple[list[str], list[str]]:
    """Judge a day's rows, in the order of their files and lines."""

    def match_id(row: Row) -> str:
        return (row[0] if row else "") if isinstance(row, list) else row["match_id"]

    fallen = {match_id(row) for row in participants if isinstance(row, list)}
    by_match: dict[str, dict[int, Row]] = defaultdict(dict)
    for place, row in enumerate(matches):
        by_match[match_id(row)][place] = row
    outcome: dict[int, str] = {}
    for name, rows in by_match.items():
        if not is_id(name) or name in fallen:
            outcome |= dict.fromkeys(rows, "rejected")
        else:
            outcome |= judge_match(rows, day, zone)
    accepted = {match_id(matches[place]): matches[place] for place, what in outcome.items() if what == "accepted"}
    return [outcome[place] for place in range(len(matches))], judge_participants(participants, accepted)


def judge_participants(participants: list[Row], accepted: dict[str, Row]) -> list[str]:
    said: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in participants:
        if isinstance(row, dict):
            said[row["match_id"], row["party_id"]].append((row["club_id"], row["role"]))
    seen: set[tuple[str, str]] = set()
    outcomes = []
    for row in participants:
        valid = isinstance(row, dict) and row["match_id"] in accepted and row["party_id"] in PARTIES and row["role"]
        if valid and isinstance(row, dict):
            match = accepted[row["match_id"]]
            assert isinstance(match, dict)
            clubs = (match["home_club_id"], match["away_club_id"])
            valid = row["club_id"] == "" or is_id(row["club_id"])
            valid &= row["role"] != "player" or row["club_id"] in clubs
            valid &= row["role"] != "referee" or row["club_id"] == ""
            key = row["match_id"], row["party_id"]
            valid &= len(set(said[key])) == 1
            if valid:
                outcomes.append("superseded" if key in seen else "accepted")
                seen.add(key)
        if not valid:
            outcomes.append("rejected")
    return outcomes
