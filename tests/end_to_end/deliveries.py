"""What keeps arriving for the days of a sample season: new matches, newer revisions, requests for refunds."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

#: How many clubs each competition of the sample has, players that each club has, and of them how many play.
CLUBS = {"northern-2025": 6, "copa-2025": 4, "sakura-2025": 4}
SQUADS = {"northern-2025": 0, "copa-2025": 16, "sakura-2025": 18}
FIELDED = 8
#: Minor units asked back; none is all that is left.
REFUNDED_MINOR = [None, 100, 300]

Row = dict[str, Any]


@dataclass
class Deliveries:
    """A landing zone that files are added to; each is another, and what was delivered before stays.

    Attributes:
        landing: its folder.
        draw: what comes next.
        matches: the newest row of each match that was added here, by day.
        fielded: players of each of these matches.
        files: how many were written.
    """

    landing: Path
    draw: random.Random
    matches: dict[date, dict[str, Row]] = field(default_factory=dict)
    fielded: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0

    def arrive(self, day: date) -> str:
        """Let something new arrive for a day; gives what, in words."""
        new: list[Callable[[date], str]] = [self.new_match, self.newer_revision, self.refund_request]
        return self.draw.choices(new, [0.45, 0.35, 0.2])[0](day)

    def new_match(self, day: date) -> str:
        """A match between two clubs of any competition."""
        key = self.draw.choice(list(CLUBS))
        home, away = self.draw.sample(range(CLUBS[key]), 2)
        match_id = f"{key}:{day}:late-{self.files}"
        row = {
            "match_id": match_id,
            "competition_id": key,
            "kicked_off_at": f"{day}T15:00:00+01:00",
            "home_club_id": f"club:{key}:{home}",
            "away_club_id": f"club:{key}:{away}",
            "home_score": self.draw.randrange(5),
            "away_score": self.draw.randrange(4),
            "status": "completed",
            "revenue_minor": self._revenue(),
            "revision": 1,
        }
        players = [
            {"match_id": match_id, "party_id": f"player:{key}:{club}:{player}", "role": "player"}
            | {"club_id": f"club:{key}:{club}"}
            for club in (home, away)
            for player in self.draw.sample(range(SQUADS[key]), min(FIELDED, SQUADS[key]))
        ]
        self.matches.setdefault(day, {})[match_id] = row
        self.fielded[match_id] = [player["party_id"] for player in players]
        self._write("match_results", day, [row])
        if players:
            self._write("match_participants", day, players)
        return f"new {match_id}"

    def newer_revision(self, day: date) -> str:
        """A match has another revenue, is made void, or is reinstated."""
        if day not in self.matches:
            return self.new_match(day)
        row = self.draw.choice(list(self.matches[day].values()))
        becomes_void = row["status"] == "completed" and self.draw.random() < 0.4
        row |= {
            "status": "void" if becomes_void else "completed",
            "revenue_minor": row["revenue_minor"] if becomes_void else self._revenue(),
            "revision": row["revision"] + 1,
        }
        self._write("match_results", day, [row])
        return f"revision {row['revision']} ({row['status']}) of {row['match_id']}"

    def refund_request(self, day: date) -> str:
        """A player's fee, or a part of it, is asked back on the day of the match."""
        charged = [each for each in self.matches.get(day, {}) if self.fielded[each]]
        if not charged:
            return self.new_match(day)
        match_id = self.draw.choice(charged)
        row = {
            "refund_id": f"late-{self.files}",
            "match_id": match_id,
            "party_id": self.draw.choice(self.fielded[match_id]),
            "amount_minor": self.draw.choice(REFUNDED_MINOR),
            "reason": "left injured in the warm-up",
        }
        self._write("refund_requests", day, [row])
        return f"refund of {match_id}"

    def _revenue(self) -> int:
        return self.draw.randrange(300_000, 3_000_000)

    def _write(self, dataset: str, day: date, rows: list[Row]) -> None:
        path = self.landing / dataset / f"date={day}" / f"late-{self.files:03}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        self.files += 1
