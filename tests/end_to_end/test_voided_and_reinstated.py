"""What changes after money moved, through to the processor: a result voided and reinstated, and another organiser."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from home import Home

from payments_pipeline.local import keeper, postgres
from payments_pipeline.storage.postgres import connect

DAY, NEXT_DAY, LAST_DAY = "2025-08-15", "2025-08-16", "2025-08-18"
LEAGUE_DAY, AFTER_LEAGUE = "2025-09-01", "2025-09-02"
#: What a day posted, and what its sweep is to move.
Day = tuple[int, dict[str, dict[str, int]]]
NOTHING: Day = (0, {})


@dataclass
class Season:
    """A home with two competitions, each with a match day of its own."""

    home: Home
    data: Path

    def result(self, status: str, revenue_minor: int, revision: int) -> None:
        """Deliver a revision of the cup's one match."""
        row = _match("m", "cup", DAY) | {"status": status, "revenue_minor": revenue_minor, "revision": revision}
        if status == "void":
            row |= {"home_score": "", "away_score": ""}
        _write(self.data / "landing" / "match_results" / f"date={DAY}" / f"cup-{revision}.csv", row)

    def organiser(self, of_league: str) -> None:
        _write(
            self.data / "reference" / "competitions.csv",
            *(
                {"competition_id": competition, "name": competition, "organiser_id": organiser, "federation_id": ""}
                | {"platform_id": "", "currency": "GBP", "payout_policy": "immediate"}
                for competition, organiser in (("cup", "organiser-1"), ("league", of_league))
            ),
        )

    def backfill(self, first: str, last: str) -> list[Day]:
        rows = self.home.rows("backfill", "--from", first, "--to", last)
        return [(row["entries_posted"], row["amounts"]) for row in rows]

    def moved(self, first: str, last: str) -> dict[str, list[int]]:
        """Give what was settled of the sweeps of these days, by party, in order: > 0 paid to it, < 0 collected.

        That is all that they instructed.
        """
        state = keeper.read_state(self.home.path)
        assert state is not None
        url = postgres.url(self.home.path, postgres.RUNTIME, postgres.BUSINESS_DATABASE, state.postgres_port)
        with connect(url) as connection:
            rows = connection.execute(
                """SELECT i.party_id, s.state, i.direction, i.amount_minor, -r.cash_minor
                   FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
                   LEFT JOIN settlement_records r ON r.instruction_id = i.instruction_id::text
                   WHERE i.sweep_day BETWEEN %s AND %s ORDER BY i.created_at""",
                (first, last),
            ).fetchall()
        found: dict[str, list[int]] = {}
        for party, instruction, direction, amount_minor, moved_minor in rows:
            assert instruction == "settled"
            assert moved_minor == (amount_minor if direction == "credit" else -amount_minor)
            found.setdefault(party, []).append(moved_minor)
        return found

    def waiting(self) -> list[dict[str, Any]]:
        """Give what waits for a sweep, a run or a person."""
        parts = ("open_items", "held", "days_to_run", "proposals", "posting_breaks", "reconciliation_breaks")
        return [row for row in self.home.rows("status") if row["part"] in parts]

    def verified(self) -> bool:
        return all(row["ok"] for row in self.home.rows("verify"))


def _write(path: Path, *rows: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _match(match_id: str, competition: str, day: str) -> dict[str, object]:
    return {"match_id": match_id, "competition_id": competition, "kicked_off_at": f"{day}T15:00:00+01:00"} | {
        "home_club_id": "home",
        "away_club_id": "away",
        "status": "completed",
        "home_score": 1,
        "away_score": 0,
        "winner_club_id": "",
        "revenue_minor": 10000,
        "revision": 1,
    }


@pytest.fixture(scope="module")
def season(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Season:
    data = tmp_path_factory.mktemp("season")
    found = Season(home, data)
    found.organiser(of_league="organiser-1")
    kinds = {"home": "club", "away": "club", "player": "player", "organiser-1": "organiser", "organiser-2": "organiser"}
    _write(
        data / "reference" / "parties.csv",
        *(
            {"party_id": party, "name": party, "country": "GB", "party_type": kind, "status": "active"}
            | {"payout_token": f"tok_{party}", "collection_token": f"tok_{party}_collect"}
            for party, kind in kinds.items()
        ),
    )
    lines = (
        ("revenue", "organiser", "percent", 1000),
        ("revenue", "home_club", "remainder", 1),
        ("match_fee", "each_player", "charge", 700),
        ("match_fee", "organiser", "percent", 1000),
        ("match_fee", "own_club", "remainder", 1),
    )
    _write(
        data / "reference" / "fee_schedules.csv",
        *(
            {"competition_id": competition, "version": "v1", "effective_from": "2025-01-01", "effective_to": ""}
            | {"line_no": n, "pot": pot, "recipient": recipient, "method": method, "value": value}
            | {"cap_minor": "", "statuses": ""}
            for competition in ("cup", "league")
            for n, (pot, recipient, method, value) in enumerate(lines, 1)
        ),
    )
    player = {"party_id": "player", "club_id": "home", "role": "player"}
    for day, matches in ((DAY, ("m",)), (LEAGUE_DAY, ("n1", "n2"))):
        folder = data / "landing" / "match_participants" / f"date={day}"
        _write(folder / "players.csv", *({"match_id": match} | player for match in matches))
    league = (_match("n1", "league", LEAGUE_DAY), _match("n2", "league", LEAGUE_DAY) | {"revenue_minor": 20000})
    _write(data / "landing" / "match_results" / f"date={LEAGUE_DAY}" / "league.csv", *league)
    home.point_at(data)
    return found


@pytest.mark.slow
@pytest.mark.rule("posting/difference", "corrections/after-sending")
def test_a_result_voided_after_payment_is_recovered_and_one_reinstated_after_that_is_paid_again(season: Season) -> None:
    season.result("completed", 10000, revision=1)
    paid = (6, {"GBP": {"credit_minor": 10700, "debit_minor": 700}})
    assert season.backfill(DAY, NEXT_DAY) == [paid, NOTHING]
    assert season.moved(DAY, LAST_DAY) == {"home": [9630], "organiser-1": [1070], "player": [-700]}

    season.result("void", 0, revision=2)
    recovered = (6, {"GBP": {"credit_minor": 0, "debit_minor": 10700}})
    # The fee is given back by a day after the one that settled its collection.
    given_back = (0, {"GBP": {"credit_minor": 700, "debit_minor": 0}})
    assert season.backfill(DAY, LAST_DAY) == [recovered, NOTHING, given_back, NOTHING]
    assert season.moved(DAY, LAST_DAY) == {
        "home": [9630, -9630],
        "organiser-1": [1070, -1070],
        "player": [-700, 700],
    }

    season.result("completed", 10000, revision=3)
    assert season.backfill(DAY, NEXT_DAY) == [paid, NOTHING]
    moved = {
        "home": [9630, -9630, 9630],
        "organiser-1": [1070, -1070, 1070],
        "player": [-700, 700, -700],
    }
    assert season.moved(DAY, LAST_DAY) == moved

    assert season.backfill(DAY, LAST_DAY) == [NOTHING] * 4
    assert season.moved(DAY, LAST_DAY) == moved
    assert season.waiting() == []
    assert season.verified()


@pytest.mark.slow
@pytest.mark.rule("posting/changed-rules", "posting/accepted-effect")
def test_another_organiser_of_a_day_that_was_paid_is_proposed_accepted_recovered_and_paid(season: Season) -> None:
    both = (LEAGUE_DAY, AFTER_LEAGUE)
    assert season.backfill(*both) == [(12, {"GBP": {"credit_minor": 31400, "debit_minor": 1400}}), NOTHING]
    paid = {"home": [28260], "organiser-1": [3140], "player": [-1400]}
    assert season.moved(*both) == paid

    season.organiser(of_league="organiser-2")
    assert season.backfill(LEAGUE_DAY, LEAGUE_DAY) == [NOTHING]
    (proposal,) = [row for row in season.waiting() if row["part"] == "proposals"]
    effect = [["party:organiser-1", "GBP", -3140], ["party:organiser-2", "GBP", 3140]]
    assert (proposal["kind"], proposal["content"]["effect"]) == ("rule_change", effect)
    (accepted,) = season.home.rows("accept", proposal["proposal_id"])
    assert (accepted["carried_out"], accepted["waits"]) == (False, f"the next run of {LEAGUE_DAY} posts it")
    assert season.moved(*both) == paid

    assert season.backfill(*both) == [(8, {"GBP": {"credit_minor": 3140, "debit_minor": 3140}}), NOTHING]
    moved = {"home": [28260], "organiser-1": [3140, -3140], "organiser-2": [3140], "player": [-1400]}
    assert season.moved(*both) == moved
    assert season.backfill(*both) == [NOTHING] * 2
    assert season.moved(*both) == moved
    assert season.waiting() == []
    assert season.verified()
