"""Refunds as a user asks for them: by a day's files and by command, in real runs, and `verify` agrees."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from home import Home

from payments_pipeline.local.sample_data import write_sample_season

FIRST_DAY = date(2025, 8, 15)
DAY, NEXT_DAY, THIRD_DAY = "2025-08-15", "2025-08-16", "2025-08-17"


@dataclass
class Charged:
    """A home whose first day has run, and two fees that it charged."""

    home: Home
    requests: Path
    fees: list[dict[str, Any]]

    def ask(self, *arguments: str, of: int = 0, expect: int = 0) -> dict[str, Any]:
        fee = self.fees[of]
        named = ("--match", fee["match_id"], "--party", fee["party_id"], "--reason", "rained off", "--date", THIRD_DAY)
        (row,) = self.home.rows("refund", *arguments, *named, expect=expect)
        return row

    def refunds(self, day: str) -> dict[str, int]:
        text = self.home.run("export", "refunds", "--date", day, "--format", "jsonl").stdout
        return {row["refund_id"]: row["applied_minor"] for row in map(json.loads, text.splitlines())}


@pytest.fixture(scope="module")
def charged(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Charged:
    data = tmp_path_factory.mktemp("season")
    write_sample_season(data / "landing", data / "reference", first_day=FIRST_DAY, match_days=3, seed=5)
    home.point_at(data)
    home.rows("run", "--date", DAY)
    text = home.run("export", "ledger_entries", "--date", DAY, "--format", "jsonl").stdout
    fees = [row for row in map(json.loads, text.splitlines()) if row["recipient"] == "payer"]
    folder = data / "landing" / "refund_requests" / f"date={NEXT_DAY}"
    folder.mkdir(parents=True)
    return Charged(home, folder / "refunds.csv", fees)


def test_requests_of_a_day_are_accepted_by_its_run_and_swept_with_it(charged: Charged) -> None:
    fee = charged.fees[0]
    lines = ["refund_id,match_id,party_id,amount_minor,reason"]
    lines += [f"f1,{fee['match_id']},{fee['party_id']},100,rained off", "f2,unknown,p,,rained off", "f3,m,p,1.5,x"]
    charged.requests.write_text("\n".join(lines) + "\n", "utf-8")
    charged.home.rows("run", "--date", NEXT_DAY)
    assert charged.refunds(NEXT_DAY) == {"f1": 100}
    charged.home.rows("run", "--date", NEXT_DAY)
    assert charged.refunds(NEXT_DAY) == {"f1": 100}, "a day may be run again at any time"


def test_the_command_refunds_once_says_what_it_did_and_refuses_with_why(charged: Charged) -> None:
    row = charged.ask("--refund-id", "c1", "--amount-minor", "150", of=1)
    assert (row["decision"], row["amount_minor"], row["day"]) == ("accepted", 150, THIRD_DAY)
    assert charged.ask("--refund-id", "c1", "--amount-minor", "150", of=1)["decision"] == "repeated"
    refused = charged.ask("--refund-id", "c1", "--amount-minor", "151", of=1, expect=1)
    assert (refused["decision"], refused["amount_minor"]) == ("other_content", None)
    rest = charged.ask("--refund-id", "c2", of=1)
    assert rest["amount_minor"] == charged.fees[1]["debit_minor"] - 150
    assert "nothing is left to refund" in charged.ask("--refund-id", "c3", of=1, expect=1)["words"]
    words = charged.home.run(
        "refund", "--refund-id", "no id", "--match", "m", "--party", "p", "--reason", "x", expect=2
    ).stderr
    assert "refund_id 'no id' is no id" in words
    assert {row["ok"] for row in charged.home.rows("verify")} == {True}, "certificates are there at once"


def test_a_refund_whose_certificate_cannot_be_written_is_accepted_and_says_so(
    charged: Charged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fee = charged.fees[2]
    named = ("--match", fee["match_id"], "--party", fee["party_id"], "--reason", "rained off", "--date", THIRD_DAY)
    asked = ("refund", "--refund-id", "s1", "--amount-minor", "1", *named, "--json")
    monkeypatch.setitem(charged.home.environment, "PAYMENTS_STORAGE_URL", str(tmp_path / "gone"))
    done = charged.home.run(*asked)
    assert json.loads(done.stdout)["decision"] == "accepted"
    assert "accepted and posted, its certificate is not written" in done.stderr
    monkeypatch.undo()
    charged.home.run("verify", expect=1)
    assert json.loads(charged.home.run(*asked).stdout)["decision"] == "repeated"
    assert {row["ok"] for row in charged.home.rows("verify")} == {True}, "and then it was"


def test_what_was_refunded_is_swept_shown_and_verified(charged: Charged) -> None:
    charged.home.rows("run", "--date", THIRD_DAY)
    party = charged.fees[1]["party_id"]
    shown = [row for row in charged.home.rows("status", "--party", party) if row["part"] == "refunds"]
    assert {row["refund_id"]: row["applied_minor"] for row in shown if row["refund_id"].startswith("c")} == {
        "c1": 150,
        "c2": charged.fees[1]["debit_minor"] - 150,
    }
    assert {row["ok"] for row in charged.home.rows("verify")} == {True}
