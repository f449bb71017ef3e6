"""A day as large as is asked for: reference data and landing files, the same for the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

DAY = "2024-08-17"
_CLUBS, _REFEREES, _COMPETITIONS = 2_000, 6_000, 20
_REFEREES_A_MATCH = 3
_LINES = (
    ("each_referee", "fixed", 2_500),
    ("organiser", "percent", 1_000),
    ("home_club", "remainder", 3),
    ("away_club", "remainder", 2),
    ("each_player", "remainder", 5),
)


def _ids(prefix: str, count: int) -> np.ndarray:
    return np.array([f"{prefix}-{number:07d}" for number in range(count)])


def write_day(folder: Path, matches: int, people: int, parties: int, seed: int = 1) -> None:
    """Write `reference` and `landing` below a folder.

    Args:
        folder: is made.
        matches: of the day; each has a revenue of 1,000.00 to 50,000.00.
        people: participants of each match, three of them referees.
        parties: players, clubs, referees and organisers together.
        seed: of what is drawn.
    """
    draw = np.random.default_rng(seed)
    clubs, referees, organisers = _ids("club", _CLUBS), _ids("referee", _REFEREES), _ids("organiser", _COMPETITIONS)
    players = _ids("player", parties - _CLUBS - _REFEREES - _COMPETITIONS)
    competitions = _ids("league", _COMPETITIONS)
    _write_reference(folder / "reference", players, clubs, referees, organisers, competitions)

    match_ids = _ids("match", matches)
    home = draw.integers(0, _CLUBS // 2, matches) * 2
    results = folder / "landing" / "match_results" / f"date={DAY}"
    results.mkdir(parents=True)
    pa_csv.write_csv(
        pa.table(
            {
                "match_id": match_ids,
                "competition_id": competitions[draw.integers(0, _COMPETITIONS, matches)],
                "home_club_id": clubs[home],
                "away_club_id": clubs[home + 1],
                "kicked_off_at": np.repeat(f"{DAY}T15:00:00+01:00", matches),
                "status": np.repeat("completed", matches),
                "home_score": draw.integers(0, 5, matches),
                "away_score": draw.integers(0, 5, matches),
                "winner_club_id": np.repeat("", matches),
                "revenue_minor": draw.integers(100_000, 5_000_000, matches),
                "revision": np.repeat(1, matches),
            }
        ),
        results / "matches.csv",
    )
    # Every player about equally often, nobody twice in a match: neighbours of one order of all players.
    sides = people - _REFEREES_A_MATCH
    rounds = -(-matches * sides // len(players)) + 1
    turn = np.concatenate([draw.permutation(len(players)) for _ in range(rounds)])
    starts = np.arange(matches) * sides
    crossing = starts % len(players) + sides > len(players)
    starts[crossing] = (starts[crossing] // len(players) + 1) * len(players)
    who = np.concatenate(
        [
            players[turn[starts[:, None] + np.arange(sides)]],
            referees[(np.arange(matches)[:, None] * _REFEREES_A_MATCH + np.arange(_REFEREES_A_MATCH)) % _REFEREES],
        ],
        axis=1,
    )
    club = np.concatenate(
        [
            np.repeat(clubs[home][:, None], sides // 2, axis=1),
            np.repeat(clubs[home + 1][:, None], sides - sides // 2, axis=1),
            np.full((matches, _REFEREES_A_MATCH), ""),
        ],
        axis=1,
    )
    participants = folder / "landing" / "match_participants" / f"date={DAY}"
    participants.mkdir(parents=True)
    pa_csv.write_csv(
        pa.table(
            {
                "match_id": np.repeat(match_ids, people),
                "party_id": who.ravel(),
                "club_id": club.ravel(),
                "role": np.tile(np.repeat(["player", "referee"], [sides, _REFEREES_A_MATCH]), matches),
            }
        ),
        participants / "participants.csv",
    )


def _write_reference(
    folder: Path,
    players: np.ndarray,
    clubs: np.ndarray,
    referees: np.ndarray,
    organisers: np.ndarray,
    competitions: np.ndarray,
) -> None:
    folder.mkdir(parents=True)
    kinds = {"player": players, "club": clubs, "referee": referees, "organiser": organisers}
    ids = np.concatenate(list(kinds.values()))
    pa_csv.write_csv(
        pa.table(
            {
                "party_id": ids,
                "party_type": np.repeat(list(kinds), [len(of_kind) for of_kind in kinds.values()]),
                "name": ids,
                "country": np.repeat("GB", len(ids)),
                "status": np.repeat("active", len(ids)),
                "payout_token": np.char.replace(np.char.add("tok_", ids), "-", ""),
                "collection_token": np.char.replace(np.char.add("tok_", ids), "-", ""),
            }
        ),
        folder / "parties.csv",
    )
    count = len(competitions)
    pa_csv.write_csv(
        pa.table(
            {
                "competition_id": competitions,
                "name": competitions,
                "organiser_id": organisers,
                "federation_id": np.repeat("", count),
                "platform_id": np.repeat("", count),
                "currency": np.repeat("GBP", count),
                "payout_policy": np.repeat("immediate", count),
            }
        ),
        folder / "competitions.csv",
    )
    header = "competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses"
    rows = [
        f"{competition},v1,2020-01-01,,{line_no},revenue,{recipient},{method},{value},,"
        for competition in competitions
        for line_no, (recipient, method, value) in enumerate(_LINES, 1)
    ]
    (folder / "fee_schedules.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
