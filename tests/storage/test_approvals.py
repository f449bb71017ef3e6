"""Approving by login what was looked at, in time, never by its maker; proposals that a second person decides."""

import datetime as dt
import json
from contextlib import nullcontext
from functools import partial

import psycopg
import pytest
from money_zone import DAY, RUN, FakeProcessor, MoneyZone, fee, line, match, parties_frame, policy, share
from psycopg import errors
from refunding import charge, refund, request

from payments_pipeline import status
from payments_pipeline.domain.errors import ConflictError, PayoutOutcomeUnknownError
from payments_pipeline.domain.proposals import Match, Resolution, match_entries
from payments_pipeline.processors.base import LookUp, LookUpStatus
from payments_pipeline.storage import approvals, ledger_entries
from payments_pipeline.storage.approvals import NotApprovedError
from payments_pipeline.storage.postgres import connect, copy_frame
from payments_pipeline.storage.reconciliation import reconcile_day
from payments_pipeline.verify.tables import TABLE_RULES

PARTIES = parties_frame(a="active", b="active")
LIMITED = policy(instruction_limit_minor=1000)
TODAY = dt.date(2024, 8, 19)
APPROVER = "payments_approver_demo"


@pytest.fixture
def zone(database) -> MoneyZone:
    """Held for b (5000), approved for a (600)."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, b=5000)
    zone.sweep(PARTIES, policy=LIMITED)
    return zone


def by_hand(url: str, statement: str, *parameters: object) -> None:
    with psycopg.connect(url, autocommit=True, options="-c search_path=payments") as connection:
        connection.execute(statement.encode(), parameters)


def as_it_stood(database, statement: str, *parameters: object) -> None:
    """Change what no login may change, to stand where time or a fault would have led."""
    with psycopg.connect(database.superuser_url, autocommit=True, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode(), parameters)


def digest(zone: MoneyZone, instruction_id: str) -> str:
    found: str = zone.value("SELECT digest FROM payout_instructions WHERE instruction_id = %s", instruction_id)
    return found


EVENT = """INSERT INTO instruction_events
               (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, evidence, run_id)
           VALUES (%s, 3, 'held', 'approved', %s, %s, 'x', %s, 'x')"""


# Approving an instruction --------------------------------------------------------------------------------------------


def test_what_was_looked_at_is_approved_and_sent_once(zone, database):
    instruction = zone.instruction("b")
    assert [row["instruction_id"] for row in approvals.held(database.url)] == [instruction]
    for _ in range(2):
        approvals.approve(database.approver_url, instruction, digest(zone, instruction), "checked", TODAY)
    assert zone.rows("SELECT actor, login, reason FROM instruction_events WHERE to_state = 'approved' AND seq = 3") == [
        (APPROVER, APPROVER, "checked")
    ]
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor, policy=LIMITED)
    assert sorted(key for key, _ in processor.requests) == sorted([instruction, zone.instruction("a")])
    assert approvals.held(database.url) == []


def test_another_digest_than_that_of_what_is_stored_approves_nothing(zone, database):
    instruction = zone.instruction("b")
    with pytest.raises(NotApprovedError, match="Nothing was approved"):
        approvals.approve(database.approver_url, instruction, "0" * 64, "x", TODAY)
    with pytest.raises(errors.InsufficientPrivilege, match="looked at"):
        by_hand(database.approver_url, EVENT, instruction, TODAY, APPROVER, json.dumps({"digest": "0"}))
    assert zone.states()[f"b {DAY}"] == "held"


@pytest.mark.rule("people/digest")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE payout_instructions SET amount_minor = 5001",
        "UPDATE payout_instructions SET token = 'another'",
        "UPDATE payout_instructions SET party_id = 'c'",
        "UPDATE payout_instructions SET currency = 'EUR'",
        "UPDATE payout_instructions SET direction = 'debit'",
        "DELETE FROM instruction_claims",
    ],
)
def test_an_approval_is_bound_to_party_token_currency_amount_and_items(zone, database, change):
    instruction = zone.instruction("b")
    known = digest(zone, instruction)
    as_it_stood(database, f"{change} WHERE instruction_id = %s", instruction)
    with pytest.raises(NotApprovedError, match="not what it was made as"):
        approvals.approve(database.approver_url, instruction, known, "x", TODAY)


@pytest.mark.rule("people/runtime-approves-nothing")
def test_the_run_time_login_approves_nothing(zone, database):
    instruction = zone.instruction("b")
    with pytest.raises(NotApprovedError, match="only a login of payments_approver"):
        approvals.approve(database.url, instruction, digest(zone, instruction), "x", TODAY)
    assert zone.states()[f"b {DAY}"] == "held"


@pytest.mark.rule("people/maker-is-no-approver")
def test_nobody_approves_what_they_made_themselves(zone, database):
    instruction = zone.instruction("b")
    as_it_stood(database, "UPDATE payout_instructions SET maker = %s", APPROVER)
    with pytest.raises(NotApprovedError, match=f"made by {APPROVER}"):
        approvals.approve(database.approver_url, instruction, digest(zone, instruction), "x", TODAY)


@pytest.mark.rule("people/login-is-identity")
def test_an_approver_does_not_approve_in_another_name(zone, database):
    instruction = zone.instruction("b")
    evidence = json.dumps({"digest": digest(zone, instruction)})
    with pytest.raises(errors.InsufficientPrivilege, match="by somebody"):
        by_hand(database.approver_url, EVENT, instruction, TODAY, "somebody", evidence)


@pytest.mark.rule("people/in-time")
def test_an_approval_comes_in_time_or_not_at_all(zone, database):
    instruction = zone.instruction("b")
    days = LIMITED.of("GBP").expires_days
    assert zone.value("SELECT approval_days FROM payout_instructions WHERE instruction_id = %s", instruction) == days
    assert zone.value("SELECT approval_days FROM payout_instructions WHERE party_id = 'a'") is None
    as_it_stood(database, f"UPDATE payout_instructions SET created_at = now() - interval '{days} days 1 second'")
    with pytest.raises(NotApprovedError, match="to be approved until"):
        approvals.approve(database.approver_url, instruction, digest(zone, instruction), "x", TODAY)


@pytest.mark.parametrize("state", ["submitting", "cancelled", "netted", "held"])
def test_an_approver_takes_an_instruction_nowhere_but_to_approved_or_cancelled(zone, database, state):
    statement = """INSERT INTO instruction_events
                       (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id)
                   VALUES (%s, 3, 'approved', %s, %s, %s, 'x', 'x')"""
    parameters = (zone.instruction("a"), state, TODAY, APPROVER)
    if state == "cancelled":
        free = """INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
                  SELECT item_id, claim_no, %s, false, 'x' FROM instruction_claims WHERE instruction_id = %s"""
        with psycopg.connect(database.approver_url, options="-c search_path=payments") as connection:
            connection.execute(statement, parameters)
            connection.execute(free, (TODAY, parameters[0]))
        return
    with pytest.raises((errors.InsufficientPrivilege, errors.RestrictViolation)):
        by_hand(database.approver_url, statement, *parameters)


# Refusing an instruction ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("party", ["a", "b"])
def test_what_is_refused_is_cancelled_and_its_items_wait_for_a_later_day(zone, database, party):
    instruction = zone.instruction(party)
    approvals.refuse(database.approver_url, instruction, "contract ended", TODAY)
    assert zone.states()[f"{party} {DAY}"] == "cancelled"
    assert zone.sweep(PARTIES, TODAY, LIMITED).plan.claims.empty
    later = zone.sweep(PARTIES, TODAY + dt.timedelta(days=1), LIMITED)
    assert later.plan.instructions["party_id"].tolist() == [party]
    with pytest.raises(NotApprovedError, match="only what has not been sent"):
        approvals.refuse(database.approver_url, instruction, "again", TODAY)
    assert zone.party_balances_disagree() == []


def test_nothing_is_refused_on_a_day_to_come(zone, database):
    later = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=2)
    with pytest.raises(NotApprovedError, match=f"is dated {later}, and today is"):
        approvals.refuse(database.approver_url, zone.instruction("a"), "a clock that is wrong", later)
    assert zone.states()[f"a {DAY}"] == "approved"


def test_what_was_sent_is_not_refused(zone, database):
    zone.dispatch(PARTIES, FakeProcessor())
    with pytest.raises(NotApprovedError, match="is submitted"):
        approvals.refuse(database.approver_url, zone.instruction("a"), "x", TODAY)


# Write-offs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def owing(database) -> MoneyZone:
    """d owes 700 and has nothing to collect it from."""
    zone = MoneyZone(database.url)
    zone.owe(d=-700)
    zone.sweep(parties_frame(d={"collection_token": None}))
    return zone


def propose_write_off(database, amount_minor: int) -> str:
    asked = approvals.write_off(database.url, "d", "GBP", amount_minor)
    return approvals.propose(database.url, asked, "insolvent", "maker")


def test_an_accepted_write_off_is_posted_once_and_netted_with_the_debt(owing, database):
    asked = approvals.write_off(database.url, "d", "GBP", 700)
    proposal = approvals.propose(database.url, asked, "insolvent", "maker")
    assert approvals.propose(database.url, asked, "insolvent", "maker") == proposal
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    approvals.decide(database.approver_url, proposal, "accepted", "seen the letter")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == (proposal,)
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    assert owing.balances() == {"loss": 700, "suspense": -700}
    assert owing.open_items() == {"d": 0}
    swept = owing.sweep(parties_frame(d="active"), TODAY + dt.timedelta(days=1))
    assert swept.plan.instructions["state"].tolist() == ["netted"]
    assert owing.open_items() == {}


def test_a_refused_write_off_posts_nothing_and_may_be_asked_for_again(owing, database):
    first = propose_write_off(database, 700)
    approvals.decide(database.approver_url, first, "refused", "no proof")
    with pytest.raises(NotApprovedError, match="refused already"):
        approvals.decide(database.approver_url, first, "accepted", "changed my mind")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    second = propose_write_off(database, 700)
    assert second != first
    assert [row["proposal_id"] for row in approvals.pending(database.url)] == [second]


@pytest.mark.rule("people/write-off")
@pytest.mark.parametrize(("party", "amount"), [("d", 701), ("a", 1)])
def test_no_more_is_written_off_than_is_owed(owing, database, party, amount):
    with pytest.raises(NotApprovedError, match="Nothing was proposed"):
        approvals.propose(database.url, approvals.write_off(database.url, party, "GBP", amount), "x", "maker")


@pytest.mark.rule("people/write-off")
def test_more_than_is_owed_is_written_off_by_nobody_whatever_the_program_does(owing, database, monkeypatch):
    monkeypatch.setattr(approvals, "_fault", lambda *_: "")
    proposals = [propose_write_off(database, amount) for amount in (701, 700)]
    for proposal in proposals:
        approvals.decide(database.approver_url, proposal, "accepted", "x")
    outcome = approvals.carry_out_accepted(database.url, TODAY, RUN)
    assert outcome.done == (proposals[1],)
    assert "Postgres refused it: journal" in outcome.waiting[proposals[0]]
    assert owing.balances() == {"loss": 700, "suspense": -700}


@pytest.mark.rule("people/write-off")
def test_an_accepted_write_off_is_of_the_debt_that_was_looked_at_and_of_no_other(owing, database):
    """The debt went by a correction before it was written off; another comes to as much, a month later."""
    proposal = propose_write_off(database, 700)
    approvals.decide(database.approver_url, proposal, "accepted", "seen the letter")
    owing.owe(revision=2, d=0)
    assert "owes 0" in approvals.carry_out_accepted(database.url, TODAY, RUN).waiting[proposal]
    owing.sweep(parties_frame(d="active"), DAY + dt.timedelta(days=1))
    owing.owe(DAY + dt.timedelta(days=30), d=-700)
    outcome = approvals.carry_out_accepted(database.url, TODAY, RUN)
    assert outcome.done == ()
    assert "made up of other items now" in outcome.waiting[proposal]
    assert "loss" not in owing.balances()


@pytest.mark.rule("people/write-off")
def test_a_debt_that_changes_while_it_is_written_off_waits_and_holds_up_no_other(database, monkeypatch):
    zone = MoneyZone(database.url)
    zone.owe(d=-700, e=-300)
    zone.sweep(parties_frame(d={"collection_token": None}, e={"collection_token": None}))
    proposals = {}
    for party, amount in (("d", 700), ("e", 300)):
        asked = approvals.write_off(database.url, party, "GBP", amount)
        proposals[party] = approvals.propose(database.url, asked, "insolvent", "maker")
        approvals.decide(database.approver_url, proposals[party], "accepted", "x")
    look = approvals._fault

    def corrected_meanwhile(cursor, proposal):
        found = look(cursor, proposal)
        if proposal.party_id == "d" and zone.value("SELECT count(*) FROM day_postings") == 1:
            zone.owe(revision=2, d=-600, e=-300)
        return found

    monkeypatch.setattr(approvals, "_fault", corrected_meanwhile)
    outcome = approvals.carry_out_accepted(database.url, TODAY, RUN)
    assert outcome.done == (proposals["e"],)
    assert "Postgres refused it: journal" in outcome.waiting[proposals["d"]]
    assert zone.open_items() == {"d": -600, "e": 0}
    assert "owes 600" in approvals.carry_out_accepted(database.url, TODAY, RUN).waiting[proposals["d"]]


def test_a_write_off_that_no_longer_fits_waits_and_says_so(owing, database):
    proposals = [propose_write_off(database, amount) for amount in (600, 500)]
    for proposal in proposals:
        approvals.decide(database.approver_url, proposal, "accepted", "x")
    outcome = approvals.carry_out_accepted(database.url, TODAY, RUN)
    assert outcome.done == (proposals[0],)
    assert "owes 100" in outcome.waiting[proposals[1]]
    assert owing.open_items() == {"d": -100}


@pytest.mark.rule("people/maker-is-no-approver")
@pytest.mark.parametrize(("changer", "refused"), [(APPROVER, True), ("jane", False), (None, False)])
def test_who_changed_a_token_does_not_approve_what_is_paid_to_it(database, changer, refused):
    zone = MoneyZone(database.url)
    zone.owe(b=5000)
    zone.sweep(parties_frame(b={"token_changed_by": changer}), policy=LIMITED)
    [row] = approvals.held(database.url)
    given = database.approver_url, str(row["instruction_id"]), row["digest"], "looked at", TODAY
    with pytest.raises(NotApprovedError, match="its token changed by") if refused else nullcontext():
        approvals.approve(*given)
    assert zone.states()[f"b {DAY}"] == ("held" if refused else "approved")


@pytest.mark.rule("people/roles")
def test_a_login_that_is_a_member_of_approvers_without_their_rights_decides_nothing(owing, database):
    """As whoever made the role is, from Postgres 16 on: the login that migrates would be an approver."""
    proposal = propose_write_off(database, 700)
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("GRANT payments_approver TO payments_migrator WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
        try:
            with pytest.raises(NotApprovedError, match="cannot be decided"):
                approvals.decide(database.migrator_url, proposal, "accepted", "x")
        finally:
            connection.execute("REVOKE payments_approver FROM payments_migrator")


@pytest.mark.rule("people/maker-is-no-approver")
def test_nobody_decides_what_they_propose_themselves(owing, database):
    proposal = approvals.propose(database.url, approvals.write_off(database.url, "d", "GBP", 700), "x", APPROVER)
    with pytest.raises(NotApprovedError, match="cannot be decided"):
        approvals.decide(database.approver_url, proposal, "accepted", "x")
    with pytest.raises(NotApprovedError, match="permission denied"):
        approvals.decide(database.url, proposal, "accepted", "x")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()


@pytest.mark.rule("people/write-off")
@pytest.mark.parametrize("decision", [None, "refused"])
def test_a_write_off_that_nobody_accepted_is_refused_by_postgres(owing, database, decision):
    proposal = approvals.propose(database.url, approvals.write_off(database.url, "d", "GBP", 700), "x", "maker")
    if decision:
        approvals.decide(database.approver_url, proposal, decision, "x")
    post = """WITH made AS (
                  INSERT INTO journals (journal_id, kind, day, proposal_id, run_id, code_version)
                  VALUES (gen_random_uuid(), 'write_off', %(day)s, %(proposal)s, 'x', 'x') RETURNING journal_id)
              SELECT journal_id FROM made"""
    lines = """INSERT INTO ledger_entries (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor,
                   credit_minor, is_item)
               VALUES (gen_random_uuid(), %(journal)s, 'write_off', %(day)s, 'loss', NULL, 'GBP', %(minor)s, 0,
                       false),
                      (gen_random_uuid(), %(journal)s, 'write_off', %(day)s, 'party:d', 'd', 'GBP', 0, %(minor)s,
                       true)"""

    def by_runtime(minor: int) -> None:
        with psycopg.connect(database.url, options="-c search_path=payments") as connection:
            found = connection.execute(post, {"day": TODAY, "proposal": proposal}).fetchone()
            assert found is not None
            connection.execute(lines, {"journal": found[0], "day": TODAY, "minor": minor})

    with pytest.raises(errors.RestrictViolation, match="not accepted for"):
        by_runtime(700)
    if decision is None:
        approvals.decide(database.approver_url, proposal, "accepted", "x")
        with pytest.raises(errors.RestrictViolation, match="not accepted for"):
            by_runtime(699)
        by_runtime(700)
        assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
        with pytest.raises(errors.UniqueViolation):
            by_runtime(700)


# Matching cash of nobody ---------------------------------------------------------------------------------------------


MATCHED = [
    (900, "party:a", {"cash:sandbox": 900, "party:a": -900}, {"a": 900}),
    (-250, "party:a", {"cash:sandbox": -250, "party:a": 250}, {"a": -250}),
    (5000, "pot:c9", {"cash:sandbox": 5000, "pot:c9": -5000}, {}),
    (-7, "fees:sandbox", {"cash:sandbox": -7, "fees:sandbox": 7}, {}),
]


@pytest.mark.rule("accounts/suspense")
@pytest.mark.parametrize(("minor", "account", "balances", "items"), MATCHED, ids=[each[1] for each in MATCHED])
def test_cash_of_nobody_is_out_of_suspense_once_what_it_was_for_is_accepted(database, minor, account, balances, items):
    zone = MoneyZone(database.url)
    stray = line(None, minor, "other")
    reference = stray["entry_reference"]
    zone.take_in([stray], closing_minor=minor)
    assert zone.balances()["suspense"] == -minor
    asked = Match("sandbox", reference, account)
    proposal = approvals.propose(database.url, asked, "a mail", "maker")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    approvals.decide(database.approver_url, proposal, "accepted", "seen the mail")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == (proposal,)
    assert approvals.carry_out_accepted(database.url, TODAY, RUN) == approvals.CarriedOut((), {})
    assert zone.balances() == balances
    assert zone.open_items() == items
    zone.take_in([stray], closing_minor=minor)  # the report grows, and has the line still
    assert zone.balances() == balances
    with pytest.raises(NotApprovedError, match=f"entry {reference} of sandbox was matched before"):
        approvals.propose(database.url, asked, "again", "maker")
    rows = reconcile_day(database.url, TODAY, "sandbox", LIMITED)
    assert reference not in set(rows["subject_id"])
    before = reconcile_day(database.url, DAY + dt.timedelta(days=1), "sandbox", LIMITED)
    assert reference in set(before["subject_id"]), "then nobody knew"
    with connect(database.url) as connection:
        assert TABLE_RULES["no money is in suspense"](connection).breaches == []
        assert TABLE_RULES["what was matched was accepted"](connection).breaches == []


def test_only_what_belonged_to_nothing_is_matched(zone, database):
    zone.dispatch(PARTIES, FakeProcessor(), policy=LIMITED)
    settled, fee_line = line(zone.instruction("a"), -600), line(None, -7, "fee")
    zone.take_in([settled, fee_line], closing_minor=-607)
    for reference, words in (
        (settled["entry_reference"], "was posted as settlement"),
        (fee_line["entry_reference"], "was posted as fee"),
        ("none", "there is no entry none of sandbox"),
    ):
        with pytest.raises(NotApprovedError, match=words):
            approvals.propose(database.url, Match("sandbox", reference, "party:a"), "x", "maker")


@pytest.mark.parametrize("wrong", ["another account", "another amount", "nobody accepted"])
def test_what_is_matched_otherwise_than_accepted_is_refused_by_postgres(database, wrong):
    zone = MoneyZone(database.url)
    stray = line(None, 900, "other")
    zone.take_in([stray], closing_minor=900)
    match_it = Match("sandbox", stray["entry_reference"], "party:a")
    proposal = approvals.propose(database.url, match_it, "x", "maker")
    if wrong != "nobody accepted":
        approvals.decide(database.approver_url, proposal, "accepted", "x")
    posted_as = Match("sandbox", stray["entry_reference"], "party:b") if wrong == "another account" else match_it
    journals, entries = match_entries(proposal, posted_as, 899 if wrong == "another amount" else 900, "GBP", TODAY)

    def by_runtime() -> None:
        with connect(database.url) as connection, connection.transaction(), connection.cursor() as cursor:
            copy_frame(cursor, "journals", journals, RUN.stamp)
            copy_frame(cursor, "ledger_entries", entries)

    with pytest.raises(errors.RestrictViolation, match="was not accepted for that"):
        by_runtime()


# Rules changed with effect in the past -------------------------------------------------------------------------------


def under(zone: MoneyZone, rules: str, a: int, b: int) -> None:
    zone.post([match("m1", rules_hash=rules)], [share("m1", "a", a), share("m1", "b", b, 2)])


def test_changed_rules_are_posted_once_their_effect_is_accepted(database):
    zone = MoneyZone(database.url)
    under(zone, "old", 600, 400)
    for _ in range(2):
        under(zone, "new", 500, 500)
    assert zone.balances() == {"party:a": -600, "party:b": -400, "pot:c1": 1000}
    [proposal] = approvals.pending(database.url)
    assert proposal["content"]["effect"] == [["party:a", "GBP", -100], ["party:b", "GBP", 100]]
    with pytest.raises(errors.InsufficientPrivilege):
        by_hand(
            database.url,
            "INSERT INTO proposal_decisions (proposal_id, decision, reason, actor) VALUES (%s, 'accepted', 'x', 'x')",
            proposal["proposal_id"],
        )
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as announced")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    under(zone, "other", 300, 700)
    assert zone.balances()["party:a"] == -600, "other rules than those accepted"
    for _ in range(2):
        under(zone, "new", 500, 500)
    assert zone.balances() == {"party:a": -500, "party:b": -500, "pot:c1": 1000}


@pytest.mark.rule("posting/refused-rules")
def test_a_refused_change_of_rules_stays_refused_until_it_says_something_else(database):
    zone = MoneyZone(database.url)

    def waits() -> list[tuple[str, str | None]]:
        found = status.overall(database.url)
        assert [row["match_id"] for row in found["posting_breaks"]] == ["m1"]
        return [(row["proposal_id"], row["decision"]) for row in found["proposals"]]

    under(zone, "old", 600, 400)
    under(zone, "new", 500, 500)
    [first] = approvals.pending(database.url)
    approvals.decide(database.approver_url, first["proposal_id"], "refused", "not as agreed")
    for _ in range(2):
        under(zone, "new", 500, 500)
        assert approvals.pending(database.url) == []
        assert [(str(identity), decision) for identity, decision in waits()] == [(first["proposal_id"], "refused")]
        [row] = status.overall(database.url)["posting_breaks"]
        assert "was refused" in row["words"]
    under(zone, "newer", 300, 700)
    [second] = approvals.pending(database.url)
    assert second["content"]["effect"] == [["party:a", "GBP", -300], ["party:b", "GBP", 300]]
    assert [(str(identity), decision) for identity, decision in waits()] == [(second["proposal_id"], None)]
    approvals.decide(database.approver_url, second["proposal_id"], "accepted", "as agreed")
    under(zone, "newer", 300, 700)
    assert zone.balances() == {"party:a": -300, "party:b": -700, "pot:c1": 1000}
    found = status.overall(database.url)
    assert (found["proposals"], found["posting_breaks"]) == ([], [])
    under(zone, "new", 500, 500)
    assert len(approvals.pending(database.url)) == 1, "of another posting of the match"


def test_rules_restored_after_a_refusal_leave_nothing_that_waits(database):
    zone = MoneyZone(database.url)
    under(zone, "old", 600, 400)
    under(zone, "new", 500, 500)
    [proposal] = approvals.pending(database.url)
    approvals.decide(database.approver_url, proposal["proposal_id"], "refused", "not as agreed")
    under(zone, "old", 600, 400)
    found = status.overall(database.url)
    assert (found["proposals"], found["posting_breaks"]) == ([], [])


@pytest.mark.rule("posting/changed-rules")
def test_postgres_posts_no_change_of_rules_that_nobody_accepted(database, monkeypatch):
    zone = MoneyZone(database.url)
    under(zone, "old", 600, 400)
    monkeypatch.setattr(ledger_entries, "plan_posting", partial(_as_if_accepted, ledger_entries.plan_posting))
    with pytest.raises(ConflictError, match="nobody accepted the change"):
        under(zone, "new", 500, 500)
    assert zone.balances() == {"party:a": -600, "party:b": -400, "pot:c1": 1000}


def _as_if_accepted(plan_posting, *given, **other):
    *frames, _accepted, _refused = given
    return plan_posting(*frames, plan_posting(*frames, **other).rule_changes, **other)


@pytest.mark.rule("posting/changed-rules")
def test_a_match_that_nothing_is_posted_of_is_asked_about_too_where_only_its_rules_are_new(database, monkeypatch):
    zone = MoneyZone(database.url)
    zone.post([match("m1", rules_hash="old")], [])
    under(zone, "new", 500, 500)
    assert zone.balances() == {}
    [proposal] = approvals.pending(database.url)
    assert proposal["content"]["effect"] == [
        ["party:a", "GBP", 500],
        ["party:b", "GBP", 500],
        ["pot:c1", "GBP", -1000],
    ]
    with monkeypatch.context() as planted:
        planted.setattr(ledger_entries, "plan_posting", partial(_as_if_accepted, ledger_entries.plan_posting))
        with pytest.raises(ConflictError, match="nobody accepted the change"):
            under(zone, "new", 500, 500)
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as announced")
    under(zone, "new", 500, 500)
    assert zone.balances() == {"party:a": -500, "party:b": -500, "pot:c1": 1000}


@pytest.mark.rule("posting/changed-rules")
def test_a_newer_revision_of_a_match_that_nothing_is_posted_of_comes_under_the_rules_of_its_day(database):
    zone = MoneyZone(database.url)
    zone.post([match("m1", rules_hash="old")], [])
    zone.post([match("m1", 2, rules_hash="new")], [share("m1", "a", 1000)])
    assert zone.balances() == {"party:a": -1000, "pot:c1": 1000}
    assert approvals.pending(database.url) == []


@pytest.mark.rule("posting/changed-rules")
def test_the_effect_that_is_proposed_is_the_whole_of_it_with_what_was_refunded(database):
    zone = MoneyZone(database.url)
    charge(zone, a=600, b=400)
    refund(zone, request("r1", 500))  # a 300 and b 200 less
    accrued = fee("m", "p1", {"a": 500, "b": 500})
    for number, owed in enumerate(accrued[1:], 2):
        owed["line_no"] = number
    zone.post([match("m", rules_hash="new", revenue_minor=0)], accrued)
    [proposal] = approvals.pending(database.url)
    assert proposal["content"]["effect"] == [["party:a", "GBP", -50], ["party:b", "GBP", 50]]
    before = zone.open_items()
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as announced")
    zone.post([match("m", rules_hash="new", revenue_minor=0)], accrued)
    after = zone.open_items()
    assert {party: after[party] - before[party] for party in after} == {"a": -50, "b": 50, "p1": 0}
    with connect(database.url) as connection:
        rule = TABLE_RULES["rules changed in the past are posted as their effect was accepted"]
        assert rule(connection).breaches == []


@pytest.mark.rule("posting/accepted-effect")
def test_rules_that_were_accepted_once_are_asked_about_again_when_they_come_back(database, monkeypatch):
    zone = MoneyZone(database.url)
    under(zone, "old", 600, 400)
    for rules, a, b in [("new", 500, 500), ("old", 600, 400)]:
        under(zone, rules, a, b)
        [proposal] = approvals.pending(database.url)
        approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as announced")
        under(zone, rules, a, b)
    assert approvals.pending(database.url) == []
    with connect(database.url) as connection:
        found = TABLE_RULES["rules changed in the past are posted as their effect was accepted"](connection)
    assert (found.checked, found.breaches) == (2, [])
    under(zone, "new", 500, 500)
    assert zone.balances()["party:a"] == -600
    assert len(approvals.pending(database.url)) == 1
    monkeypatch.setattr(ledger_entries, "plan_posting", partial(_as_if_accepted, ledger_entries.plan_posting))
    with pytest.raises(ConflictError, match="nobody accepted the change"):
        under(zone, "new", 500, 500)


@pytest.mark.rule("posting/accepted-effect")
def test_an_acceptance_is_of_the_whole_effect_that_was_shown(database):
    zone = MoneyZone(database.url)
    under(zone, "old", 600, 400)
    under(zone, "new", 500, 500)
    [proposal] = approvals.pending(database.url)
    approvals.decide(database.approver_url, proposal["proposal_id"], "accepted", "as announced")
    under(zone, "new", 400, 600)
    assert zone.balances()["party:a"] == -600, "the same rules and result, and another effect: somebody else played"
    under(zone, "new", 500, 500)
    assert zone.balances()["party:a"] == -500


# Resolving an unknown outcome ----------------------------------------------------------------------------------------


def unknown(zone: MoneyZone) -> str:
    def lost(_key: str) -> None:
        raise PayoutOutcomeUnknownError("no answer")

    zone.dispatch(PARTIES, FakeProcessor(lose=lost, look=lambda _key: LookUp(LookUpStatus.NEVER_SEEN)), policy=LIMITED)
    assert zone.states()[f"a {DAY}"] == "unknown"
    return zone.instruction("a")


@pytest.mark.rule("instructions/unknown-by-two")
def test_an_unknown_is_called_failed_by_two_people_after_its_deadline_and_its_items_are_free(zone, database):
    instruction = unknown(zone)
    asked = Resolution(instruction, "failed", "ticket 1234")
    with pytest.raises(NotApprovedError, match="may still be sent until"):
        approvals.propose(database.url, asked, "asked", "maker")
    as_it_stood(database, "UPDATE payout_attempts SET not_after = now() - interval '1 second'")
    with pytest.raises(NotApprovedError, match=r"has not said that it does not have .* \(not asked\): a dispatch by"):
        approvals.propose(database.url, asked, "asked", "maker")
    never_seen = FakeProcessor(look=lambda _key: LookUp(LookUpStatus.NEVER_SEEN))
    zone.dispatch(PARTIES, never_seen, DAY + dt.timedelta(days=1), policy=LIMITED)
    assert zone.states()[f"a {DAY}"] == "unknown"
    proposal = approvals.propose(database.url, asked, "asked", "maker")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == ()
    approvals.decide(database.approver_url, proposal, "accepted", "seen the ticket")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == (proposal,)
    assert zone.states()[f"a {DAY}"] == "failed"
    assert zone.open_items() == {"a": 600}
    assert zone.party_balances_disagree() == []
    [[reason]] = zone.rows("SELECT reason FROM instruction_events WHERE to_state = 'failed'")
    assert "ticket 1234" in reason
    assert proposal in reason


def test_an_unknown_that_the_processor_has_is_called_submitted_at_any_time(zone, database):
    instruction = unknown(zone)
    proposal = approvals.propose(database.url, Resolution(instruction, "submitted", "letter"), "asked", "maker")
    approvals.decide(database.approver_url, proposal, "accepted", "x")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN).done == (proposal,)
    assert zone.states()[f"a {DAY}"] == "submitted"


def test_a_known_outcome_is_not_resolved_by_hand(zone, database):
    zone.dispatch(PARTIES, FakeProcessor(), policy=LIMITED)
    with pytest.raises(NotApprovedError, match="is submitted"):
        approvals.propose(database.url, Resolution(zone.instruction("a"), "submitted", "x"), "x", "maker")
    with pytest.raises(NotApprovedError, match="there is no instruction"):
        approvals.propose(database.url, Resolution(zone.instruction("b"), "failed", "x"), "x", "maker")


def test_an_outcome_that_became_known_before_the_decision_stands(zone, database):
    instruction = unknown(zone)
    proposal = approvals.propose(database.url, Resolution(instruction, "submitted", "letter"), "x", "maker")
    [[request]] = zone.rows("SELECT request FROM payout_attempts WHERE instruction_id = %s", instruction)
    zone.dispatch(PARTIES, FakeProcessor(taken={instruction: request}), policy=LIMITED)
    assert zone.states()[f"a {DAY}"] == "submitted"
    approvals.decide(database.approver_url, proposal, "accepted", "x")
    assert approvals.carry_out_accepted(database.url, TODAY, RUN) == approvals.CarriedOut((), {})
    assert zone.rows("SELECT count(*) FROM instruction_events WHERE to_state = 'submitted'") == [(1,)]
