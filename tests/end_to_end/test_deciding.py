"""What people decide, by command: an unknown outcome, cash of nobody, an account that works again, and a refusal.

A deadline is most of a day off, and the outcome of a sandbox's token never changes. So for the run that sends, keys
live a minute; and the sandbox has an account that is blocked until it is started anew.
"""

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from home import Home
from sandbox_process import API_KEY, SandboxProcess, until

from payments_pipeline.local import keeper, postgres
from payments_pipeline.storage.postgres import connect

FUNDED, DAY, NEXT_DAY = "2025-08-14", "2025-08-15", "2025-08-16"
WAITS, PAID, SETTLED = "2025-08-22", "2025-08-23", "2025-08-24"
KEYS_LIVE_A_MINUTE = """
import dataclasses, datetime
from payments_pipeline.processors.sandbox import adapter
adapter.CAPABILITIES = dataclasses.replace(adapter.CAPABILITIES, key_lifetime=datetime.timedelta(minutes=1))
"""
ACCOUNT_IS_BLOCKED = """
from payments_pipeline.local.sandbox import requests, tokens
requests.outcome_of = lambda token: tokens.outcome_of("tok_test_fail" if token == "tok_blocked" else token)
"""


@contextmanager
def before_all_else(folder: Path, code: str) -> Iterator[None]:
    """Have each Python that is started meanwhile run `code` first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@dataclass
class Cup:
    """A home whose first day has run: of what it sent no answer came."""

    home: Home
    sandbox: SandboxProcess

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        state = keeper.read_state(self.home.path)
        assert state is not None
        url = postgres.url(self.home.path, postgres.RUNTIME, postgres.BUSINESS_DATABASE, state.postgres_port)
        with connect(url) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def unanswered(self) -> tuple[str, str]:
        """Give the first day's instructions: the one that the processor has, and the one that never arrived."""
        query = "SELECT instruction_id::text FROM payout_attempts WHERE dispatched_on = %s"
        ours = {each for (each,) in self.rows(query, DAY)}
        [taken] = ours & {payment["idempotency_key"] for payment in self.sandbox.executed()}
        [lost] = ours - {taken}
        return taken, lost

    def states(self, *instructions: str) -> list[str]:
        found = dict(self.rows("SELECT instruction_id::text, state FROM instruction_states"))
        return [found[each] for each in instructions]

    def balance(self, account: str) -> int:
        """Give what is posted to an account, > 0 a debit."""
        query = "SELECT coalesce(sum(debit_minor - credit_minor), 0)::bigint FROM ledger_entries WHERE account = %s"
        [(minor,)] = self.rows(query, account)
        return int(minor)

    def part(self, name: str, *arguments: str) -> list[dict[str, Any]]:
        return [row for row in self.home.rows("status", *arguments) if row["part"] == name]

    def waiting(self, party: str) -> list[tuple[str, int]]:
        return [(row["reason"], row["amount_minor"]) for row in self.part("open_items", "--party", party)]

    def propose(self, *command: str) -> str:
        (row,) = self.home.rows(*command)
        assert row["decision"] is None
        return str(row["proposal_id"])

    def accept(self, proposal: str) -> None:
        (row,) = self.home.rows("accept", proposal)
        assert (row["decision"], row["carried_out"], row["waits"]) == ("accepted", True, None)

    def broken(self, expect: int = 0) -> list[str]:
        return [row["rule"] for row in self.home.rows("verify", expect=expect) if not row["ok"]]


def _write(path: Path, *rows: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_cup(data: Path) -> None:
    """Two matches on the first day, each worth 5700 to its home club; one on the next, worth 3000 to club-3."""
    reference, landing = data / "reference", data / "landing"
    _write(
        reference / "competitions.csv",
        {"competition_id": "cup", "name": "Cup", "organiser_id": "organiser", "federation_id": "", "platform_id": ""}
        | {"currency": "GBP", "payout_policy": "immediate"},
    )
    kinds = {"organiser": "organiser", "away": "club", "player-1": "player", "player-2": "player"}
    _write(
        reference / "parties.csv",
        *(
            {"party_id": party, "name": party, "country": "GB", "party_type": kind, "status": "active"}
            | {"payout_token": token, "collection_token": ""}
            for party, kind, token in (
                *((party, kind, f"tok_{party}") for party, kind in kinds.items()),
                *(("club-1", "club", "tok_1"), ("club-2", "club", "tok_2"), ("club-3", "club", "tok_blocked")),
            )
        ),
    )
    lines = (
        ("revenue", "home_club", "remainder", 1),
        ("match_fee", "each_player", "charge", 700),
        ("match_fee", "own_club", "remainder", 1),
    )
    _write(
        reference / "fee_schedules.csv",
        *(
            {"competition_id": "cup", "version": "v1", "effective_from": "2025-01-01", "effective_to": "", "line_no": n}
            | {"pot": pot, "recipient": recipient, "method": method, "value": value, "cap_minor": "", "statuses": ""}
            for n, (pot, recipient, method, value) in enumerate(lines, 1)
        ),
    )
    for day, clubs, revenue_minor in ((DAY, (1, 2), 5000), (NEXT_DAY, (3,), 3000)):
        _write(
            landing / "match_results" / f"date={day}" / "cup.csv",
            *(
                {"match_id": f"{day}:{club}", "competition_id": "cup", "kicked_off_at": f"{day}T15:00:00+01:00"}
                | {"home_club_id": f"club-{club}", "away_club_id": "away", "home_score": 1, "away_score": 0}
                | {"status": "completed", "winner_club_id": "", "revenue_minor": revenue_minor, "revision": 1}
                for club in clubs
            ),
        )
    _write(
        landing / "match_participants" / f"date={DAY}" / "cup.csv",
        *(
            {"match_id": f"{DAY}:{n}", "party_id": f"player-{n}", "club_id": f"club-{n}", "role": "player"}
            for n in (1, 2)
        ),
    )


@pytest.fixture(scope="module")
def cup(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cup]:
    folder = tmp_path_factory.mktemp("cup")
    _write_cup(folder)
    home.point_at(folder)
    sandbox = SandboxProcess(tmp_path_factory.mktemp("sandbox"))
    with before_all_else(folder / "blocked", ACCOUNT_IS_BLOCKED):
        sandbox.start()
    home.environment |= {"PAYMENTS_PROCESSOR_URL": sandbox.url, "PAYMENTS_PROCESSOR_KEY": API_KEY}
    try:
        for kind in ("drop_before", "drop_after"):
            sandbox.fault(kind, on="payments")
        with before_all_else(folder / "keys", KEYS_LIVE_A_MINUTE):
            (row,) = home.rows("run", "--date", DAY)
        assert (row["instructions_created"], row["amounts"]) == (2, {"GBP": {"credit_minor": 11400, "debit_minor": 0}})
        yield Cup(home, sandbox)
    finally:
        sandbox.stop()


@pytest.mark.rule("instructions/unknown-by-two")
def test_what_the_processor_has_is_called_submitted_by_two_people_and_failed_by_nobody_yet(cup: Cup) -> None:
    taken, lost = cup.unanswered()
    assert cup.states(taken, lost) == ["unknown", "unknown"]
    too_early = cup.home.run("resolve", lost, "--as", "failed", "--evidence", "ticket 7: it never came", expect=1)
    assert "may still be sent until" in too_early.stderr
    assert "Nothing was proposed" in too_early.stderr
    proposal = cup.propose("resolve", taken, "--as", "submitted", "--evidence", "ticket 8: it is in their books")
    overtaken = cup.propose("resolve", taken, "--as", "submitted", "--evidence", "ticket 9: they say so too")
    assert cup.states(taken) == ["unknown"]
    cup.accept(proposal)
    assert cup.states(taken, lost) == ["submitted", "unknown"]
    told = cup.part("events", "--instruction", taken)[-1]["reason"]
    assert "ticket 8: it is in their books" in told
    assert proposal in told
    assert cup.home.run("accept", overtaken).stdout.startswith("accepted; there is nothing to carry out: ")
    (row,) = cup.home.rows("accept", overtaken)
    assert (row["decision"], row["carried_out"]) == ("accepted", False)
    assert "what became of it is known meanwhile" in row["waits"]
    assert cup.broken() == []


@pytest.mark.rule("accounts/suspense")
def test_cash_of_nobody_is_in_suspense_until_what_it_was_for_is_proposed_and_accepted(cup: Cup) -> None:
    cup.sandbox.fund("wire", 8000, FUNDED, subject="pot:misspelt")
    cup.home.rows("run", "--date", FUNDED)
    (line,) = cup.part("reconciliation_breaks", "--date", FUNDED)
    assert (line["subject_type"], line["difference_minor"]) == ("unmatched", 8000)
    assert (cup.balance("suspense"), cup.balance("pot:cup")) == (-8000, 10000)
    assert cup.broken(expect=1) == ["no money is in suspense"]
    asked = ("match", line["subject_id"], "--to", "pot:cup", "--reason", "funding, its subject was misspelt")
    proposal = cup.propose(*asked)
    assert cup.balance("suspense") == -8000
    cup.accept(proposal)
    assert (cup.balance("suspense"), cup.balance("pot:cup")) == (0, 2000)
    assert "was matched before" in cup.home.run(*asked, expect=1).stderr
    told = cup.home.run("refuse", proposal, "--reason", "it was for another", expect=1)
    assert f"proposal {proposal} is accepted already: a decision stands. Nothing was changed." in told.stderr
    assert cup.broken() == []


def test_a_proposal_that_was_refused_stays_refused_and_posts_nothing(cup: Cup) -> None:
    owed = [("no_collection_token", -700)]
    assert cup.waiting("player-1") == owed
    asked = ("write-off", "--party", "player-1", "--currency", "GBP", "--amount-minor", "700", "--reason", "moved")
    proposal = cup.propose(*asked)
    assert [row["proposal_id"] for row in cup.part("proposals")] == [proposal]
    for _ in range(2):
        (row,) = cup.home.rows("refuse", proposal, "--reason", "they pay by hand on Friday")
        assert row == {"proposal_id": proposal, "decision": "refused"}
    assert cup.part("proposals") == []
    told = cup.home.run("accept", proposal, expect=1)
    assert f"proposal {proposal} is refused already: a decision stands. Nothing was changed." in told.stderr
    assert (cup.balance("loss"), cup.waiting("player-1")) == (0, owed)
    assert cup.propose(*asked) != proposal, "it may be asked for again"
    assert cup.balance("loss") == 0
    assert cup.broken() == []


@pytest.mark.slow
@pytest.mark.rule("instructions/unknown-by-two")
def test_what_never_arrived_is_called_failed_by_two_people_once_it_may_not_be_sent_any_more(cup: Cup) -> None:
    taken, lost = cup.unanswered()
    [(deadline, party)] = cup.rows(
        "SELECT not_after, party_id FROM payout_attempts JOIN payout_instructions USING (instruction_id) "
        "WHERE instruction_id = %s",
        lost,
    )
    until(lambda: datetime.now(UTC) > deadline)
    cup.home.rows("run", "--date", NEXT_DAY)
    assert cup.states(taken, lost) == ["settled", "unknown"], "never sent blind"
    assert [row["amount_minor"] for row in cup.part("report_lines", "--instruction", taken)] == [-5700]
    assert [(row["instruction_id"], row["last_answer"]) for row in cup.part("unknown")] == [(lost, "never_seen")]
    proposal = cup.propose("resolve", lost, "--as", "failed", "--evidence", "ticket 7: it never came")
    assert cup.states(lost) == ["unknown"]
    assert cup.waiting(party) == []
    cup.accept(proposal)
    assert cup.states(taken, lost) == ["settled", "failed"]
    told = cup.part("events", "--instruction", lost)[-1]["reason"]
    assert "ticket 7: it never came" in told
    assert proposal in told
    assert cup.waiting(party) == [("for_a_later_day", 5700)], "later than the day of the decision"
    assert lost not in {payment["idempotency_key"] for payment in cup.sandbox.executed()}
    assert cup.broken() == []


@pytest.mark.slow
@pytest.mark.rule("sweeping/failures-in-a-row")
def test_after_three_failures_in_a_row_a_party_waits_until_a_retry_is_accepted_and_is_paid_then(cup: Cup) -> None:
    made = [row["amounts"] for row in cup.home.rows("backfill", "--from", NEXT_DAY, "--to", WAITS)]
    assert made[-1] == {}
    sent = cup.rows("SELECT instruction_id::text FROM payout_instructions WHERE party_id = 'club-3'")
    assert cup.states(*(each for (each,) in sent)) == ["failed"] * 3
    waits = [("failures_in_a_row", 3000)]
    assert cup.waiting("club-3") == waits

    cup.sandbox.stop()
    cup.sandbox.start()  # the bank has lifted the block
    asked = ("retry", "--party", "club-3", "--currency", "GBP", "--reason", "the bank lifted the block")
    proposal = cup.propose(*asked)
    assert cup.waiting("club-3") == waits
    (row,) = cup.home.rows("accept", proposal)
    assert (row["carried_out"], row["waits"]) == (False, "the next sweep takes what waited")
    rows = cup.home.rows("backfill", "--from", PAID, "--to", SETTLED)
    assert [row["amounts"] for row in rows] == [{"GBP": {"credit_minor": 3000, "debit_minor": 0}}, {}]
    paid = "SELECT outcome, cash_minor FROM settlement_records WHERE party_id = 'club-3' AND report_date = %s"
    assert cup.rows(paid, SETTLED) == [("settled", -3000)]
    assert (cup.balance("party:club-3"), cup.waiting("club-3")) == (0, [])
    assert "does not wait in GBP after failures in a row" in cup.home.run(*asked, expect=1).stderr
    assert cup.broken() == []
