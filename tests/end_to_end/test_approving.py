"""Two people and the program: what is over its limit waits for an approver; a debt is written off by two."""

import csv
import os
import pwd
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from home import Home

from payments_pipeline.local.sample_data import write_sample_season

FIRST_DAY = date(2025, 8, 15)
DAY, NEXT_DAY, THIRD_DAY = "2025-08-15", "2025-08-16", "2025-08-17"
POLICY = Path(__file__).resolve().parents[2] / "payments_pipeline" / "payments.toml"


@pytest.fixture(scope="module")
def limited(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The first day has run under a policy that holds most of what it pays."""
    data = tmp_path_factory.mktemp("season")
    write_sample_season(data / "landing", data / "reference", first_day=FIRST_DAY, match_days=3, seed=5)
    # Fees are a thousand times what they were, and nobody can be collected from: players stay in debt.
    _rewrite(data / "reference" / "parties.csv", lambda row: row | {"collection_token": ""})
    _rewrite(
        data / "reference" / "fee_schedules.csv",
        lambda row: row | ({"value": row["value"] + "000"} if row["method"] == "charge" else {}),
    )
    lines = POLICY.read_text("utf-8").splitlines()
    limit = "instruction_limit_minor"
    lines = [f"{limit} = 2000" if line.startswith(limit) else line for line in lines]
    (data / "policy.toml").write_text("\n".join(lines).replace('version = "1"', 'version = "low"'), "utf-8")
    home.point_at(data)
    home.environment |= {"PAYMENTS_CONFIG": str(data / "policy.toml"), "USER": "somebody", "LOGNAME": "somebody"}
    (row,) = home.rows("run", "--date", DAY)
    assert row["instructions_created"] > 2
    return home


def _rewrite(path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def held(home: Home) -> list[dict[str, Any]]:
    return [row for row in home.rows("status") if row["part"] == "held"]


def state_of(home: Home, instruction_id: str) -> str:
    (row,) = [row for row in home.rows("status", "--instruction", instruction_id) if row["part"] == "instruction"]
    return str(row["state"])


def digest_of(home: Home, instruction_id: str) -> str:
    (row,) = [row for row in home.rows("status", "--instruction", instruction_id) if row["part"] == "instruction"]
    return str(row["digest"])


@pytest.mark.rule("people/maker-is-no-approver")
def test_who_ran_the_command_made_what_is_held_whatever_the_environment_calls_them(limited: Home) -> None:
    assert {row["maker"] for row in held(limited)} == {pwd.getpwuid(os.getuid()).pw_name}


def test_what_is_held_is_sent_once_approved_and_never_once_refused(limited: Home) -> None:
    approved, refused, left = (row["instruction_id"] for row in held(limited)[:3])
    limited.run("approve", approved, "--digest", "not what it is", expect=1)
    assert state_of(limited, approved) == "held"
    limited.run("approve", approved, "--digest", digest_of(limited, approved))
    limited.run("refuse", refused, "--reason", "the contract ended")
    assert [state_of(limited, each) for each in (approved, refused, left)] == ["approved", "cancelled", "held"]

    limited.rows("run", "--date", NEXT_DAY)
    assert [state_of(limited, each) for each in (approved, refused, left)] == ["submitted", "cancelled", "held"]
    limited.run("refuse", approved, "--reason", "too late", expect=1)
    limited.rows("run", "--date", THIRD_DAY)
    assert state_of(limited, approved) == "settled"
    assert all(row["ok"] for row in limited.rows("verify"))


def test_without_a_digest_the_instruction_is_shown_and_asked_about(limited: Home) -> None:
    (row, *_) = held(limited)
    done = limited.run("approve", row["instruction_id"], expect=130)
    assert row["party_id"] in done.stdout
    assert digest_of(limited, row["instruction_id"]) in done.stdout
    assert state_of(limited, row["instruction_id"]) == "held"


def test_a_debt_is_proposed_by_one_and_written_off_by_another(limited: Home) -> None:
    def owed(party: str) -> dict[str, int]:
        rows = [row for row in limited.rows("status", "--party", party) if row["part"] == "open_items"]
        sums = Counter[str]()
        for row in rows:
            sums[row["currency"]] += row["amount_minor"]
        return {currency: minor for currency, minor in sums.items() if minor < 0}

    debtor = "player:copa-2025:1:0"
    [(currency, minor)] = owed(debtor).items()
    asked = ("write-off", "--party", debtor, "--currency", currency, "--reason", "moved abroad", "--amount-minor")
    assert "Nothing was proposed" in limited.run(*asked, str(1 - minor), expect=1).stderr
    (proposed,) = limited.rows(*asked, str(-minor))
    shown = [row["proposal_id"] for row in limited.rows("status") if row["part"] == "proposals"]
    assert shown == [proposed["proposal_id"]]
    (accepted,) = limited.rows("accept", proposed["proposal_id"])
    assert accepted["carried_out"]
    assert owed(debtor) == {}
    limited.run("refuse", proposed["proposal_id"], "--reason", "too late", expect=1)
    assert all(row["ok"] for row in limited.rows("verify"))


@pytest.mark.rule("posting/changed-rules")
def test_rules_changed_with_effect_in_the_past_move_nothing_until_somebody_accepts(limited: Home) -> None:
    def cheaper(row: dict[str, str]) -> dict[str, str]:
        is_it = (
            row["competition_id"] == "northern-2025" and row["recipient"] == "organiser" and row["method"] == "percent"
        )
        return row | ({"value": "900"} if is_it else {})

    _rewrite(Path(limited.environment["PAYMENTS_REFERENCE_URL"]) / "fee_schedules.csv", cheaper)
    for _ in range(2):
        (row,) = limited.rows("run", "--date", DAY)
        assert row["entries_posted"] == 0
    shown = limited.rows("status")
    effect = {row["account"]: row["amount_minor"] for row in shown if row["part"] == "rule_changes"}
    (digest,) = {row["digest"] for row in shown if row["part"] == "rule_changes"}
    assert len(effect) > 1
    assert sum(effect.values()) == 0
    every = ("accept", "--competition", "northern-2025", "--digest")
    assert "Look at it again" in limited.run(*every, "0" * 64, expect=1).stderr
    (accepted,) = limited.rows(*every, digest)
    assert not accepted["carried_out"]
    assert DAY in accepted["waits"]
    (row,) = limited.rows("run", "--date", DAY)
    assert row["entries_posted"] > 0
    assert [row for row in limited.rows("status") if row["part"] == "rule_changes"] == []
    told = [row for row in limited.rows("status", "--date", DAY) if row["part"] == "corrections"]
    corrected: Counter[str] = Counter()
    for each in told:
        corrected[each["account"]] += each["amount_minor"]
        assert each["words"].startswith("other rules, accepted by ")
    assert corrected == effect
    assert all(row["ok"] for row in limited.rows("verify"))


def test_an_id_that_is_none_is_one_clear_line(limited: Home) -> None:
    for command in (["approve", "x", "--digest", "y"], ["refuse", "x", "--reason", "y"], ["accept", "x"]):
        done = limited.run(*command, expect=2)
        assert "is no id" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_party_that_does_not_wait_after_failures_needs_no_retry(limited: Home) -> None:
    told = limited.run("retry", "--party", "club-1", "--currency", "GBP", "--reason", "it works again", expect=1)
    assert "club-1 does not wait in GBP after failures in a row" in told.stderr
    assert "Nothing was proposed" in told.stderr
