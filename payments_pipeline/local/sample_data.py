"""A generated season: a landing zone with reference data, small and with everything that happens in a real one.

Belongs here: what the sample holds. Does not belong here: running it (`demo`).

Three competitions in currencies of two and no decimals, one that pays when it has collected; squads, referees, names in
several scripts; a club on hold, a closed one, a player without a token, tokens on which the sandbox declines, fails,
returns, pays short or reports twice; abandoned, postponed and awarded matches, a shoot-out, a match without revenue, a
day without matches; files in three formats, a few rows that are rejected, and a result that is revised; a request for a
refund that is accepted, and one of ten times the fee that is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

_ZONE = ZoneInfo("Europe/London")
#: The match day of the season on which nobody plays, counted from 0.
_DAY_OFF = 3
#: Fees of the first match day are asked back on this one, counted from 0.
_REFUNDS_DAY = 2
_GIVEN = (
    "Ada",
    "Jürgen",
    "Zoë",
    "Łukasz",
    "Núria",
    "Søren",
    "Иван",
    "Ольга",
    "محمد",
    "ليلى",
    "翔太",
    "さくら",
    "Γιώργος",
    "Ελένη",
)
_FAMILY = (
    "O'Neill",
    "Müller",
    "Ćwikła",
    "Ibáñez",
    "Åkesson",
    "Петров",
    "Смирнова",
    "حسن",
    "佐藤",
    "高橋",
    "Παπαδόπουλος",
    "Nguyễn",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class _Competition:
    """A competition of the sample: its clubs, and how its files come."""

    competition_id: str
    name: str
    currency: str
    policy: str
    clubs: tuple[str, ...]
    country: str
    squad: int
    files: str
    revenue: tuple[int, int]


_COMPETITIONS = (
    _Competition(
        "northern-2025",
        "Northern League 2025/26",
        "GBP",
        "immediate",
        ("Aldermoor Town", "Brackwater", "Carrow Vale", "Dunmere City", "Eastgate Rovers", "Fellside"),
        "GB",
        0,
        "csv",
        (1_200_000, 9_800_000),
    ),
    _Competition(
        "copa-2025",
        "Copa del Río 2025",
        "EUR",
        "when_collected",
        ("Atlético Ría", "Unión São Bento", "FC Żuraw", "Ολυμπία Νέα"),
        "ES",
        16,
        "jsonl",
        (400_000, 2_500_000),
    ),
    _Competition(
        "sakura-2025",
        "さくらリーグ 2025",
        "JPY",
        "immediate",
        ("横浜ブルー", "京都スターズ", "札幌ノース", "福岡サンズ"),
        "JP",
        18,
        "parquet",
        (300_000, 4_000_000),
    ),
)
_PLATFORM = "platform:matchpay"
#: What each player is charged for a match, in minor units; 0 is nothing.
_FEES = {"GBP": 0, "EUR": 1250, "JPY": 800}
#: Parties by id whose row differs from the ordinary: status, payout_token, collection_token.
_SPECIAL: dict[str, Row] = {
    "club:northern-2025:3": {"status": "on_hold"},
    "club:northern-2025:5": {"payout_token": "tok_test_return_2d_fellside"},
    "club:copa-2025:2": {"payout_token": "tok_test_fail_zuraw"},
    "club:sakura-2025:1": {"payout_token": "tok_test_short_25_kyoto"},
    "club:sakura-2025:2": {"payout_token": "tok_test_twice_sapporo"},
    "player:copa-2025:0:1": {"collection_token": "tok_test_decline_card"},
    "player:copa-2025:1:2": {"status": "on_hold"},
    "player:sakura-2025:0:3": {"payout_token": None},
    "player:sakura-2025:1:4": {"status": "closed"},
    "federation:copa-2025": {"payout_token": "tok_test_fee_35_federacion"},
}


@dataclass
class _Day:
    """What arrives for one match day."""

    results: dict[str, list[Row]] = field(default_factory=dict)
    participants: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleSeason:
    """What was written.

    Attributes:
        days: the match days, in order; the day off is among them.
        summary: in words.
    """

    days: list[date]
    summary: str


def write_sample_season(
    landing_root: Path, reference_root: Path, *, first_day: date, match_days: int, seed: int
) -> SampleSeason:
    """Write the season; the same arguments give the same bytes.

    Args:
        landing_root: folder of the landing zone.
        reference_root: folder of the reference data.
        first_day: first match day.
        match_days: how many, at least 5; the fourth is a day off.
        seed: of all that is drawn.
    """
    draw = random.Random(seed)  # noqa: S311 - the same sample each time is the point
    _write_reference(reference_root, first_day, draw)
    days = [first_day + timedelta(days=offset) for offset in range(match_days)]
    matches = 0
    asked: list[Row] = []
    for number, day in enumerate(days):
        if number == _DAY_OFF:
            continue
        arrived = _Day()
        for competition in _COMPETITIONS:
            matches += _play(competition, number, day, draw, arrived)
        _spoil(number, day, arrived)
        if number == 0:
            asked = _refund_requests(arrived)
        elif number == _REFUNDS_DAY:
            _write(landing_root / "refund_requests" / f"date={day.isoformat()}" / "player-services.csv", asked)
        for dataset, files in (("match_results", arrived.results), ("match_participants", arrived.participants)):
            for name, rows in files.items():
                if rows:
                    _write(landing_root / dataset / f"date={day.isoformat()}" / name, rows)
    return SampleSeason(
        days,
        f"{matches} matches of {len(_COMPETITIONS)} competitions from {days[0]} to {days[-1]}, in "
        f"{', '.join(competition.currency for competition in _COMPETITIONS)}",
    )


def _token(party_id: str) -> str:
    return "tok_" + hashlib.sha256(party_id.encode()).hexdigest()[:20]


def _party(party_id: str, kind: str, name: str, country: str, *, collects: bool = False) -> Row:
    row = {
        "party_id": party_id,
        "party_type": kind,
        "name": name,
        "country": country,
        "status": "active",
        "payout_token": _token(party_id),
        "collection_token": _token(f"{party_id}:collect") if collects else None,
    }
    return row | _SPECIAL.get(party_id, {})


def _write_reference(root: Path, first_day: date, draw: random.Random) -> None:
    parties = [_party(_PLATFORM, "platform", "MatchPay", "GB")]
    competitions: list[Row] = []
    lines: list[Row] = []
    change = first_day + timedelta(days=4)
    for competition in _COMPETITIONS:
        key = competition.competition_id
        parties.append(_party(f"organiser:{key}", "organiser", f"{competition.name} — organiser", competition.country))
        parties.append(
            _party(f"federation:{key}", "federation", f"Federation of {competition.country}", competition.country)
        )
        for number, club in enumerate(competition.clubs):
            parties.append(_party(f"club:{key}:{number}", "club", club, competition.country))
            for player in range(competition.squad):
                name = f"{draw.choice(_GIVEN)} {draw.choice(_FAMILY)}"
                party_id = f"player:{key}:{number}:{player}"
                parties.append(_party(party_id, "player", name, competition.country, collects=True))
        for referee in range(2 if competition.squad else 0):
            name = f"{draw.choice(_GIVEN)} {draw.choice(_FAMILY)}"
            parties.append(_party(f"referee:{key}:{referee}", "referee", name, competition.country))
        competitions.append(
            {
                "competition_id": key,
                "name": competition.name,
                "organiser_id": f"organiser:{key}",
                "federation_id": f"federation:{key}" if competition.currency != "JPY" else None,
                "platform_id": _PLATFORM,
                "currency": competition.currency,
                "payout_policy": competition.policy,
            }
        )
        until = (change - timedelta(days=1)).isoformat()
        for version, start, end in (
            ("v1", first_day.replace(day=1).isoformat(), until),
            ("v2", change.isoformat(), None),
        ):
            lines += _schedule(competition, version, start, end)
    _write(root / "competitions.csv", competitions)
    _write(root / "parties.csv", parties)
    _write(root / "fee_schedules.csv", lines)


def _schedule(competition: _Competition, version: str, start: str, end: str | None) -> list[Row]:
    fee = _FEES[competition.currency]
    organiser = 1_000 if version == "v1" else 1_150
    lines: list[tuple[str, str, str, int, int | None, str | None]] = []
    if fee:
        lines += [
            ("match_fee", "each_player", "charge", fee, None, "completed;awarded;abandoned"),
            ("match_fee", "platform", "fixed", 35, None, None),
            ("match_fee", "organiser", "percent", 1_500, None, None),
            ("match_fee", "own_club", "remainder", 1, None, "completed;awarded;abandoned"),
        ]
    lines += [
        ("revenue", "platform", "percent", 150, 20_000, None),
        ("revenue", "organiser", "percent", organiser, None, None),
        ("revenue", "federation", "percent", 333, 75_000, None),
        ("revenue", "winning_club", "percent", 500, None, None),
    ]
    if competition.squad:
        lines += [
            ("revenue", "each_referee", "fixed", 9_000, None, None),
            ("revenue", "each_player", "remainder", 3, None, None),
        ]
    lines += [
        ("revenue", "home_club", "remainder", 5, None, "completed;awarded;abandoned"),
        ("revenue", "away_club", "remainder", 3, None, "completed;awarded;abandoned"),
    ]
    return [
        {
            "competition_id": competition.competition_id,
            "version": version,
            "effective_from": start,
            "effective_to": end,
            "line_no": number,
            "pot": pot,
            "recipient": recipient,
            "method": method,
            "value": value,
            "cap_minor": cap,
            "statuses": statuses,
        }
        for number, (pot, recipient, method, value, cap, statuses) in enumerate(lines, start=1)
    ]


def _play(competition: _Competition, number: int, day: date, draw: random.Random, arrived: _Day) -> int:
    """Let a competition's clubs meet on a day, each once, another pairing each day."""
    key, count = competition.competition_id, len(competition.clubs)
    # The circle method: the last club stays, the others move on by one each day.
    others = [(number + place) % (count - 1) for place in range(count - 1)]
    pairs = [(count - 1, others[0])] + [(others[place], others[-place]) for place in range(1, count // 2)]
    file = f"{key}.{competition.files}"
    for place, (home, away) in enumerate(pairs):
        if number % 2:
            home, away = away, home
        kick_off = datetime.combine(day, time(12 + 3 * place, 30), _ZONE)
        row: Row = {
            "match_id": f"{key}:{day.isoformat()}:{home}-{away}",
            "competition_id": key,
            "kicked_off_at": kick_off if competition.files == "parquet" else kick_off.isoformat(),
            "home_club_id": f"club:{key}:{home}",
            "away_club_id": f"club:{key}:{away}",
            "home_score": draw.randrange(5),
            "away_score": draw.randrange(4),
            "status": "completed",
            "winner_club_id": None,
            "revenue_minor": draw.randrange(*competition.revenue),
            "revision": 1,
        }
        _tell(number, place, row)
        arrived.results.setdefault(file, []).append(row)
        if competition.squad and row["status"] != "postponed":
            arrived.participants.setdefault(file, []).extend(_line_up(competition, row["match_id"], home, away, draw))
    return len(pairs)


def _tell(number: int, place: int, row: Row) -> None:
    """Give some matches the endings that are not ordinary."""
    ending = (row["competition_id"], number, place)
    if ending == ("northern-2025", 1, 2):
        row |= {"status": "postponed", "home_score": None, "away_score": None, "revenue_minor": None}
    elif ending == ("northern-2025", 2, 0):
        row |= {"status": "abandoned", "home_score": 1, "away_score": 0}
    elif ending == ("copa-2025", 2, 1):
        row |= {"status": "awarded", "winner_club_id": row["away_club_id"]}
    elif ending == ("sakura-2025", 1, 0):
        row |= {"home_score": 2, "away_score": 2, "winner_club_id": row["home_club_id"]}
    elif ending == ("sakura-2025", 4, 1):
        row["revenue_minor"] = None


def _line_up(competition: _Competition, match_id: str, home: int, away: int, draw: random.Random) -> list[Row]:
    key = competition.competition_id
    players = [
        {
            "match_id": match_id,
            "party_id": f"player:{key}:{club}:{player}",
            "club_id": f"club:{key}:{club}",
            "role": "player",
        }
        for club in (home, away)
        for player in sorted(draw.sample(range(competition.squad), competition.squad - 2))
    ]
    referee = {
        "match_id": match_id,
        "party_id": f"referee:{key}:{draw.randrange(2)}",
        "club_id": None,
        "role": "referee",
    }
    return [*players, referee]


def _spoil(number: int, day: date, arrived: _Day) -> None:
    """Add what arrives beside good rows: duplicates, a revised result, rows that are rejected."""
    northern = arrived.results["northern-2025.csv"]
    if number == 0:
        arrived.results["northern-2025-late.csv"] = [dict(northern[0])]
    if number == 1:
        revised = northern[0] | {"home_score": int(northern[0]["home_score"]) + 1, "revision": 2}
        arrived.results["northern-2025-revised.csv"] = [revised]
    if number == 2:
        unknown = northern[1] | {"match_id": f"northern-2025:{day.isoformat()}:x", "away_club_id": "club:nobody"}
        excel = northern[1] | {"match_id": f"northern-2025:{day.isoformat()}:y", "revenue_minor": "1,250,000"}
        arrived.results["northern-2025-friendlies.csv"] = [unknown, excel]


def _refund_requests(arrived: _Day) -> list[Row]:
    """Ask fees of a day back: half of one player's, and of another's, by a slip, ten times the fee."""
    played = [row for row in arrived.participants["sakura-2025.parquet"] if row["party_id"] not in _SPECIAL]
    asked = (
        (played[0], _FEES["JPY"] // 2, "left injured in the warm-up"),
        (played[1], _FEES["JPY"] * 10, "stood in for a player who was suspended"),
    )
    return [
        {
            "refund_id": f"player-services:{number}",
            "match_id": row["match_id"],
            "party_id": row["party_id"],
            "amount_minor": amount_minor,
            "reason": reason,
            "requester": "player-services",
        }
        for number, (row, amount_minor, reason) in enumerate(asked, start=1)
    ]


def _write(path: Path, rows: list[Row]) -> None:
    """Write a file whole, in the format of its name; CSV as spreadsheets do, with a byte order mark and CRLF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        content = b"\xef\xbb\xbf" + text.getvalue().encode()
    elif path.suffix == ".jsonl":
        content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    else:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
