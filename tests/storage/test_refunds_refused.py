"""What Postgres refuses of refunds, tried by hand, as the pipeline's own login and as the owner of the schema."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from by_hand import connect
from money_zone import DAY, NEXT, RUN, MoneyZone, fee, match, parties_frame, policy
from psycopg import errors
from refunding import applied, charge, frame, refund, request, settle

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.storage import approvals, ledger_entries
from payments_pipeline.storage.approvals import NotApprovedError
from payments_pipeline.storage.refunds import accept_refunds

APPROVER = "payments_approver_demo"
PARTIES = parties_frame(p1="active", a="active", b="active")


@pytest.fixture
def zone(database) -> MoneyZone:
    """The fee of p1 in match m: 700 to a, 300 to b, of which 100 are refunded."""
    zone = MoneyZone(database.url)
    charge(zone, a=700, b=300)
    refund(zone, request("r1", 100))
    return zone


@pytest.fixture(params=["url", "migrator_url"], ids=["runtime", "owner"])
def connection(zone, database, request) -> Iterator[psycopg.Connection]:
    with connect(getattr(database, request.param)) as opened:
        yield opened


def _refused(error, words):
    return pytest.raises(error, match=words)


def accept(connection, refund_id="r2", amount=10, pot_no=2, party="p1", match_id="m", requested=None):
    connection.execute(
        """INSERT INTO refunds (refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, requested_minor,
               reason, requester, accepted_day, source, run_id, code_version)
           VALUES (%s, %s, 'match_fee', %s, %s, 'GBP', %s, %s, 'x', 'jane', %s, 'by hand', 'r', '1')""",
        (refund_id, match_id, party, pot_no, amount, requested, NEXT),
    )


def journal(connection, refund_id="r2", posting_no=1, kind="refund", match_id="m") -> uuid.UUID:
    made = uuid.uuid4()
    connection.execute(
        """INSERT INTO journals (journal_id, kind, day, match_id, posting_no, refund_id, run_id, code_version)
           VALUES (%s, %s, %s, %s, %s, %s, 'r', '1')""",
        (made, kind, NEXT, match_id, posting_no, refund_id),
    )
    return made


def lines(connection, of, *amounts, refund_id="r2", posting_no=1, party="p1"):
    """Insert `(line_no, party, credit)` lines of a journal in one statement; a credit below zero is a debit."""
    rows = [
        (uuid.uuid4(), of, NEXT, f"party:{p}", p, max(-minor, 0), max(minor, 0), party, line_no, posting_no, refund_id)
        for line_no, p, minor in amounts
    ]
    values = ", ".join(
        ["(%s, %s, 'refund', %s, %s, %s, 'GBP', %s, %s, true, 'm', 'match_fee', %s, %s, 'x', 'v1', %s, %s)"] * len(rows)
    )
    connection.execute(
        f"""INSERT INTO ledger_entries (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor,
                credit_minor, is_item, match_id, pot, pot_party_id, line_no, recipient, schedule_version, posting_no,
                refund_id) VALUES {values}""",
        [value for row in rows for value in row],
    )


def test_what_the_program_does_by_hand_is_admitted(zone, connection):
    with connection.transaction():
        accept(connection)
        lines(connection, journal(connection), (1, "p1", 10), (2, "a", -7), (3, "b", -3))
    assert applied(zone)["r1"] == 100
    assert zone.open_items() == {"p1": -890, "a": 623, "b": 267}


@pytest.mark.rule("refunds/at-most")
def test_a_refund_is_at_most_what_the_pot_still_charges_and_above_zero(connection):
    with pytest.raises(errors.RestrictViolation, match="still charges 900 GBP, and 901"):
        accept(connection, amount=901)
    with pytest.raises(errors.RestrictViolation, match="still charges 0 GBP"):
        accept(connection, party="a", pot_no=1)
    for amount in (0, -1):
        with pytest.raises(errors.CheckViolation):
            accept(connection, amount=amount)
    with pytest.raises(errors.CheckViolation):
        accept(connection, amount=10, requested=11)


@pytest.mark.rule("refunds/at-most")
def test_two_refunds_in_one_statement_are_bounded_together(connection):
    with pytest.raises(errors.RestrictViolation, match="and 1800 is to be refunded"):
        connection.execute(
            """INSERT INTO refunds (refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, reason,
                   requester, accepted_day, source, run_id, code_version)
               SELECT 's' || n, 'm', 'match_fee', 'p1', n, 'GBP', 900, 'x', 'jane', %s, 'by hand', 'r', '1'
               FROM generate_series(2, 3) n""",
            (NEXT,),
        )


def test_the_same_id_and_a_number_out_of_turn_are_refused(connection):
    with pytest.raises(errors.UniqueViolation):
        accept(connection, "r1")
    with pytest.raises(errors.UniqueViolation):
        accept(connection, pot_no=1)
    with pytest.raises(errors.RestrictViolation, match="there is none before it"):
        accept(connection, pot_no=3)


def test_one_accepted_and_not_posted_with_it_is_refused_at_the_commit(zone, connection):
    with pytest.raises(errors.RestrictViolation, match="is not posted with it"):
        accept(connection)
    with _refused(errors.RestrictViolation, "is not posted with it"), connection.transaction():
        accept(connection)
        lines(connection, journal(connection), (1, "p1", 9), (2, "a", -9))
    assert zone.value("SELECT count(*) FROM refunds") == 1


def test_a_refunds_journal_is_of_an_accepted_refund_and_of_no_other_kind(connection):
    with pytest.raises(errors.ForeignKeyViolation):
        journal(connection, "never-accepted")
    with pytest.raises(errors.CheckViolation, match="journals_of_refund"):
        journal(connection, None)
    with pytest.raises(errors.CheckViolation, match="journals_of_refund"):
        journal(connection, "r1", kind="accrual")
    with pytest.raises(errors.UniqueViolation, match="journals_refund"):
        journal(connection, "r1")


@pytest.mark.parametrize("other", [{"refund_id": "r9"}, {"party": "a"}], ids=["refund", "pot"])
def test_a_line_is_of_the_refund_of_its_journal_and_of_its_pot(connection, other):
    with _refused(errors.RestrictViolation, "its journal or pot is not"), connection.transaction():
        accept(connection)
        lines(connection, journal(connection), (1, "p1", 10), (2, "a", -10), **other)


def test_what_is_refunded_is_never_above_what_was_accepted(zone, connection):
    with _refused(errors.RestrictViolation, "refund r1 is of 100 GBP, and 101"), connection.transaction():
        charge_again(connection)
        lines(connection, journal(connection, "r1", 2), (1, "p1", 1), (2, "a", -1), refund_id="r1", posting_no=2)


def charge_again(connection):
    """Post the match again as it is, so that there is a posting to be of."""
    connection.execute(
        """INSERT INTO match_postings SELECT match_id, posting_no + 1, match_day, day_seq, competition_id, revision + 1,
               content_hash, rules_hash, schedule_version, currency, payout_policy, revenue_minor, participants, is_open
           FROM match_postings"""
    )


def test_a_line_gives_at_most_what_it_holds(connection):
    with (
        _refused(errors.RestrictViolation, "line 3 on party:b: 300 GBP accrued, and refunds"),
        connection.transaction(),
    ):
        accept(connection, amount=400)
        lines(connection, journal(connection), (1, "p1", 400), (3, "b", -400))


def test_the_postings_of_a_refunds_line_are_numbered_without_gap(connection):
    with _refused(errors.RestrictViolation, "has no posting before it"), connection.transaction():
        accept(connection)
        lines(connection, journal(connection), (1, "p1", 10), (2, "a", -10), posting_no=2)


@pytest.mark.rule("refunds/recomputed")
def test_a_correction_that_leaves_its_refunds_as_they_were_is_refused(zone, monkeypatch):
    monkeypatch.setattr(ledger_entries, "recompute_refunds", lambda *_: None)
    with pytest.raises(Exception, match="recompute them with the correction"):
        charge(zone, 2, a=50)
    assert applied(zone) == {"r1": 100}


def test_no_refund_is_changed_or_taken_out(database, zone):
    for statement in ("UPDATE refunds SET amount_minor = 1", "DELETE FROM refunds", "TRUNCATE refunds CASCADE"):
        with connect(database.migrator_url) as connection, pytest.raises(errors.RestrictViolation):
            connection.execute(statement.encode())
        with connect(database.url) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())


def test_no_login_states_when_or_by_whom_a_refund_was_accepted(zone, database):
    for column in ("login", "accepted_at"):
        with connect(database.url) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute(f"INSERT INTO refunds (refund_id, {column}) VALUES ('r9', 'now')".encode())
    with connect(database.approver_url) as connection, pytest.raises(errors.InsufficientPrivilege):
        accept(connection)


@pytest.mark.parametrize(
    ("named", "approved"),
    [
        ({}, True),
        ({"requester": None}, True),
        ({"requester": "joe"}, True),
        ({"requester": APPROVER}, False),
    ],
)
def test_who_is_named_as_asking_for_a_refund_cannot_approve_what_pays_it(database, named, approved):
    check_maker(database, named, "jane", approved)


@pytest.mark.parametrize("otherwise", ["", "  "])
def test_a_refund_that_nobody_asks_for_is_not_accepted(zone, otherwise):
    with pytest.raises(ConfigurationError, match="requester is blank"):
        accept_refunds(zone.url, NEXT, frame(request("r9", 1)), otherwise, RUN)
    with pytest.raises(ConfigurationError, match="requester is blank"):
        accept_refunds(zone.url, NEXT, frame(request("r9", 1, requester=" ")), "jane", RUN)
    assert zone.value("SELECT count(*) FROM refunds WHERE refund_id = 'r9'") == 0


@pytest.mark.rule("people/maker-is-no-approver")
@pytest.mark.parametrize(("requester", "approved"), [("jane", True), (APPROVER, False)])
def test_who_asked_for_a_refund_cannot_approve_what_pays_it(database, requester, approved):
    check_maker(database, {}, requester, approved)


def check_maker(database, named, requester, approved):
    zone = MoneyZone(database.url)
    limits = policy(instruction_limit_minor=300)
    zone.post([match("m", revenue_minor=0)], fee("m", "p1", {"a": 1000}))
    zone.sweep(PARTIES, policy=limits)
    for row in approvals.held(zone.url):
        approvals.approve(database.approver_url, row["instruction_id"], row["digest"], "fine", DAY)
    settle(zone)
    accept_refunds(zone.url, NEXT, frame(request("r1", 400, **named)), requester, RUN)
    zone.sweep(PARTIES, NEXT, policy=limits)
    row = next(row for row in approvals.held(zone.url) if row["party_id"] == "p1")
    if approved:
        approvals.approve(database.approver_url, row["instruction_id"], row["digest"], "fine", NEXT)
        return
    with pytest.raises(NotApprovedError, match="another approver approves it"):
        approvals.approve(database.approver_url, row["instruction_id"], row["digest"], "mine", NEXT)
    assert zone.states()[f"p1 {NEXT}"] == "held"
