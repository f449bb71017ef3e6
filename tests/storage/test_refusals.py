"""What Postgres itself refuses, whoever asks and whatever the program does."""

import datetime as dt
import itertools
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from by_hand import answer, attempt, claim, connect, entries, event, instruct, journal_of, posting, release, submit
from money_zone import DAY, NEXT, FakeProcessor, MoneyZone, parties_frame, policy
from psycopg import errors, sql

from payments_pipeline.domain.lifecycle import TRANSITIONS, State

APPEND_ONLY = [
    "day_postings", "posting_breaks", "match_postings", "journals", "ledger_entries", "sweeps", "sweep_deferrals",
    "payout_instructions", "instruction_claims", "claim_releases", "lifecycle", "instruction_events", "payout_attempts",
    "payout_attempt_outcomes", "payout_look_ups", "report_intakes", "report_balances", "report_lines",
    "settlement_records", "alerts",
    "alert_deliveries", "proposals", "proposal_decisions", "audit_entries", "audit_chain",
    "refunds",
]  # fmt: skip
PARTIES = parties_frame(a="active", b="active", c="on_hold")
SKIPPED = [pair for pair in itertools.product([None, *State], State) if pair not in TRANSITIONS]


@pytest.fixture
def zone(database) -> MoneyZone:
    """Approved for a (600), held for b (5000); c's 300 are open."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, b=5000, c=300)
    zone.sweep(PARTIES, policy=policy(instruction_limit_minor=1000))
    return zone


@pytest.fixture
def runtime(zone, database) -> Iterator[psycopg.Connection]:
    with connect(database.url) as connection:
        yield connection


@pytest.fixture
def superuser(zone, database) -> Iterator[psycopg.Connection]:
    with connect(database.superuser_url) as connection:
        yield connection


def test_every_table_that_is_no_projection_is_listed_here(runtime):
    tables = runtime.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'payments'").fetchall()
    others = {name for (name,) in tables} - set(APPEND_ONLY)
    assert others == {"open_items", "instruction_states", "reconciliation"}


@pytest.mark.rule("always/append-only")
@pytest.mark.parametrize("login", ["migrator_url", "superuser_url", "url"])
def test_no_row_is_ever_changed_or_removed(database, login):
    error = errors.InsufficientPrivilege if login == "url" else errors.RestrictViolation
    with connect(getattr(database, login)) as connection:
        for table in APPEND_ONLY:
            column = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 1", (table,)
            ).fetchone()[0]
            names = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
            for statement in (
                "UPDATE {table} SET {column} = {column}",
                "DELETE FROM {table}",
                "TRUNCATE {table} CASCADE",
            ):
                with pytest.raises(error):
                    connection.execute(sql.SQL(statement).format(**names))


@pytest.mark.rule("accounts/balanced")
@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_a_journal_that_does_not_balance_is_refused(login, request):
    connection = request.getfixturevalue(login)
    with pytest.raises(errors.CheckViolation, match="does not balance"), connection.transaction():
        entries(connection, journal_of(connection), ("fees:p", 5), ("cash:p", -4))
    with connection.transaction():
        entries(connection, journal_of(connection), ("fees:p", 5), ("cash:p", -5))


@pytest.mark.rule("accounts/balanced")
def test_currencies_do_not_make_up_for_each_other(runtime):
    insert = """INSERT INTO ledger_entries (entry_id, journal_id, kind, day, account, currency, debit_minor,
                    credit_minor, is_item)
                VALUES (gen_random_uuid(), %(j)s, 'fee', %(d)s, 'fees:p', 'GBP', 5, 0, false),
                       (gen_random_uuid(), %(j)s, 'fee', %(d)s, 'cash:p', 'EUR', 0, 5, false)"""
    with pytest.raises(errors.CheckViolation, match="does not balance"), runtime.transaction():
        runtime.execute(insert, {"j": journal_of(runtime), "d": DAY})


@pytest.mark.rule("accounts/balanced")
@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_a_journal_is_closed_when_its_transaction_ends(login, request):
    connection = request.getfixturevalue(login)
    with connection.transaction():
        journal = journal_of(connection)
        entries(connection, journal, ("fees:p", 5), ("cash:p", -5))
    with pytest.raises(errors.RestrictViolation, match="was closed"):
        entries(connection, journal, ("fees:p", 5), ("cash:p", -5))


@pytest.mark.rule("accounts/balanced")
@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_a_journal_has_entries(login, request):
    connection = request.getfixturevalue(login)
    with pytest.raises(errors.RestrictViolation, match="has no entries"), connection.transaction():
        journal_of(connection)


@pytest.mark.parametrize("other", [{"day": NEXT}, {"kind": "funding"}])
def test_entries_have_their_journals_kind_and_day(runtime, other):
    with pytest.raises(errors.RestrictViolation, match="differs in kind or day"), runtime.transaction():
        entries(runtime, journal_of(runtime), ("cash:q", 5), ("cash:p", -5), **other)


@pytest.mark.rule("accounts/one-side")
@pytest.mark.parametrize("amounts", [(0, 0), (5, 5), (-5, 0)])
def test_a_line_is_either_a_debit_or_a_credit_and_never_negative(runtime, amounts):
    with pytest.raises(errors.CheckViolation), runtime.transaction():
        runtime.execute(
            """INSERT INTO ledger_entries (entry_id, journal_id, kind, day, account, currency, debit_minor,
                   credit_minor, is_item) VALUES (gen_random_uuid(), %s, 'fee', %s, 'fees:p', 'GBP', %s, %s, false)""",
            (journal_of(runtime), DAY, *amounts),
        )


@pytest.mark.parametrize(
    ("column", "value"), [("created_xid", "'1'"), ("posted_at", "now()")], ids=["created_xid", "posted_at"]
)
def test_the_runtime_login_cannot_state_when_a_journal_was_made(runtime, column, value):
    with pytest.raises(errors.InsufficientPrivilege):
        runtime.execute(
            f"""INSERT INTO journals (journal_id, kind, day, run_id, code_version, {column})
                VALUES (gen_random_uuid(), 'refund', '2024-01-01', 'r', '1', {value})"""
        )


@pytest.mark.rule("people/login-is-identity")
@pytest.mark.parametrize("login", ["runtime", "approver"])
def test_no_login_can_write_an_event_in_anothers_name(login, zone, database):
    url = database.url if login == "runtime" else database.approver_url
    with connect(url) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(
            """INSERT INTO instruction_events
                   (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id, login)
               VALUES (%s, 3, 'held', 'approved', %s, 'x', 'x', 'x', 'payments_approver_demo')""",
            (zone.instruction("b"), DAY),
        )


@pytest.mark.rule("sweeping/one-live")
@pytest.mark.parametrize("login", ["runtime", "superuser"])
@pytest.mark.parametrize("claim_no", [1, 2])
def test_an_item_under_a_live_instruction_cannot_be_claimed(login, claim_no, request):
    connection = request.getfixturevalue(login)
    with pytest.raises((errors.RestrictViolation, errors.UniqueViolation)), connection.transaction():
        claim(connection, instruct(connection, "a", 600), "a", claim_no)


def test_an_open_item_can_be_claimed_by_its_own_party_alone(runtime):
    with pytest.raises(errors.RestrictViolation, match="not an open item of the party"), runtime.transaction():
        claim(runtime, instruct(runtime, "a", 300), "c")
    with runtime.transaction():
        claim(runtime, instruct(runtime), "c")


@pytest.mark.rule("sweeping/net")
def test_an_instruction_is_for_the_net_of_its_items(runtime):
    for amount, direction in [(301, "credit"), (299, "credit"), (300, "debit")]:
        with pytest.raises(errors.CheckViolation, match="net to 300"), runtime.transaction():
            claim(runtime, instruct(runtime, "c", amount, direction), "c")


@pytest.mark.rule("sweeping/claimed-at-birth")
def test_no_item_is_added_to_an_instruction_of_an_earlier_transaction(zone, runtime):
    with pytest.raises(errors.RestrictViolation, match="earlier transaction"):
        claim(runtime, zone.instruction("a"), "c")


@pytest.mark.rule("sweeping/one-live")
def test_an_item_is_claimed_by_one_of_two_instructions_made_at_once(runtime, database):
    with connect(database.url) as other, runtime.transaction():
        claim(runtime, instruct(runtime), "c")
        other.execute("SET lock_timeout = '200ms'")
        with pytest.raises(errors.LockNotAvailable), other.transaction():
            claim(other, instruct(other), "c")


CLAIM = """INSERT INTO instruction_claims
           SELECT entry_id, 1, %s FROM ledger_entries WHERE party_id = %s AND is_item AND day = %s"""


@pytest.mark.rule("sweeping/one-live")
def test_an_instruction_is_given_its_items_at_once(zone, runtime):
    zone.owe(day=NEXT, d=300)
    zone.owe(day=NEXT + dt.timedelta(days=1), d=300)
    with runtime.transaction(force_rollback=True):
        instruction = instruct(runtime, "d")
        runtime.execute(CLAIM, (instruction, "d", NEXT))
        with pytest.raises(errors.RestrictViolation, match="more than one statement"):
            runtime.execute(CLAIM, (instruction, "d", NEXT + dt.timedelta(days=1)))
    assert zone.open_items() == {"c": 300, "d": 600}


@pytest.mark.rule("sweeping/one-live")
def test_what_another_claims_while_one_waits_is_claimed_by_the_first_though_no_key_says_so(zone, superuser, database):
    superuser.execute("ALTER TABLE instruction_claims DROP CONSTRAINT instruction_claims_pkey CASCADE")

    def claim_too() -> None:
        with connect(database.url) as other, other.transaction():
            other.execute(CLAIM, (instruct(other, day=NEXT), "c", DAY))

    with ThreadPoolExecutor(1) as beside:
        with connect(database.url) as first, first.transaction():
            claim(first, instruct(first), "c")
            waits = beside.submit(claim_too)
            _until_somebody_waits(superuser)
        with pytest.raises(errors.SerializationFailure, match="of 1 items only 0 were open"):
            waits.result(30)


def _until_somebody_waits(connection) -> None:
    waiting = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    for _ in range(300):
        if connection.execute(waiting).fetchone()[0]:
            return
        time.sleep(0.05)
    raise AssertionError("nobody waits for a lock")


def test_an_instruction_without_items_cannot_be_born(runtime):
    with pytest.raises(errors.RestrictViolation, match="claims no item"), runtime.transaction():
        event(runtime, instruct(runtime), 1, None, "created")


@pytest.mark.rule("sweeping/released-once")
@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_a_live_instruction_does_not_give_its_items_back(login, zone, request):
    connection = request.getfixturevalue(login)
    for party in "ab":
        with pytest.raises(errors.RestrictViolation, match="cannot be released"):
            release(connection, zone.instruction(party))


@pytest.mark.rule("sweeping/released-once")
def test_items_are_given_back_once(zone, runtime):
    instruction = zone.instruction("a")
    with runtime.transaction():
        event(runtime, instruction, 3, "approved", "cancelled")
        release(runtime, instruction)
    with pytest.raises(errors.UniqueViolation):
        release(runtime, instruction)
    assert zone.open_items() == {"a": 600, "c": 300}


@pytest.mark.rule("sweeping/claim-after-release")
def test_a_released_item_is_claimed_again_under_the_next_number(zone, runtime):
    instruction = zone.instruction("a")
    with runtime.transaction():
        event(runtime, instruction, 3, "approved", "cancelled")
        release(runtime, instruction)
    for wrong in (1, 3):
        with pytest.raises((errors.RestrictViolation, errors.UniqueViolation)), runtime.transaction():
            claim(runtime, instruct(runtime, "a", 600), "a", wrong)
    with runtime.transaction():
        claim(runtime, instruct(runtime, "a", 600), "a", 2)


@pytest.mark.rule("instructions/transitions")
def test_postgres_knows_the_same_transitions_as_the_program(zone):
    assert set(zone.rows("SELECT from_state, to_state FROM lifecycle")) == {
        (None if before is None else str(before), str(after)) for before, after in TRANSITIONS
    }


def _in_state(connection, instruction, state):
    """Put the instruction into any state with the triggers off; gives the seq of its last event."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("DELETE FROM instruction_events WHERE instruction_id = %s", (instruction,))
        if state is None:
            return 0
        event(connection, instruction, 1, None, state)
    return 1


@pytest.mark.rule("instructions/transitions")
def test_no_state_is_skipped_by_anybody(zone, superuser):
    instruction = zone.instruction("a")
    for before, after in SKIPPED:
        seq = _in_state(superuser, instruction, before)
        with pytest.raises(errors.RestrictViolation, match="not a transition that can follow"):
            event(superuser, instruction, seq + 1, before, after)


def test_an_event_says_what_the_state_was(zone, runtime):
    with pytest.raises(errors.RestrictViolation, match="not a transition that can follow"):
        event(runtime, zone.instruction("a"), 3, "held", "cancelled")
    with pytest.raises(errors.RestrictViolation, match="not a transition that can follow"):
        event(runtime, zone.instruction("a"), 4, "approved", "cancelled")
    with pytest.raises(errors.UniqueViolation):
        event(runtime, zone.instruction("a"), 2, "created", "cancelled")


@pytest.mark.rule("sweeping/netted")
def test_only_a_sum_of_zero_is_netted(zone, superuser):
    instruction = zone.instruction("a")
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute("DELETE FROM instruction_events WHERE instruction_id = %s AND seq > 1", (instruction,))
    with pytest.raises(errors.RestrictViolation, match="netted is for a sum of zero"):
        event(superuser, instruction, 2, "created", "netted")


@pytest.mark.rule("instructions/held")
def test_what_is_over_its_limit_is_approved_by_a_login_of_approvers_alone(zone, runtime, database):
    with pytest.raises(errors.InsufficientPrivilege, match="only a login of payments_approver"):
        event(runtime, zone.instruction("b"), 3, "held", "approved")
    with connect(database.migrator_url) as owner, pytest.raises(errors.InsufficientPrivilege):
        event(owner, zone.instruction("b"), 3, "held", "approved")
    with connect(database.approver_url) as approver:
        event(approver, zone.instruction("b"), 3, "held", "approved")
    assert zone.states()[f"b {DAY}"] == "approved"


def test_an_approver_writes_neither_ledger_nor_instructions_nor_attempts(zone, database):
    with connect(database.approver_url) as approver:
        with pytest.raises(errors.InsufficientPrivilege):
            journal_of(approver)
        with pytest.raises(errors.InsufficientPrivilege):
            instruct(approver)
        with pytest.raises(errors.InsufficientPrivilege):
            attempt(approver, zone.instruction("a"))


@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_nothing_is_attempted_for_an_instruction_that_is_not_being_sent(login, zone, request):
    connection = request.getfixturevalue(login)
    for party in "ab":
        with pytest.raises(errors.RestrictViolation, match="attempt 1 refused"):
            attempt(connection, zone.instruction(party))


def test_an_attempt_follows_one_that_is_answered_and_was_not_accepted(zone, runtime):
    instruction = zone.instruction("a")
    with runtime.transaction():
        submit(runtime, instruction)
        with pytest.raises(errors.RestrictViolation), runtime.transaction():
            attempt(runtime, instruction, 2)
        attempt(runtime, instruction)
    with pytest.raises(errors.UniqueViolation):
        attempt(runtime, instruction)
    with pytest.raises(errors.RestrictViolation, match="the one before it is live"):
        attempt(runtime, instruction, 2)
    answer(runtime, instruction, "unavailable")
    with pytest.raises(errors.UniqueViolation):
        answer(runtime, instruction, "rejected")
    for other in ({"request": b"pay more"}, {"key": str(uuid.uuid4())}, {"deadline": "9998-01-01"}):
        with pytest.raises(errors.RestrictViolation, match="its bytes, key or deadline differ"):
            attempt(runtime, instruction, 2, **other)
    attempt(runtime, instruction, 2)


@pytest.mark.parametrize("outcome", ["acknowledged", "rejected"])
def test_what_was_answered_is_not_sent_again(zone, runtime, outcome):
    instruction = zone.instruction("a")
    with runtime.transaction():
        submit(runtime, instruction)
        attempt(runtime, instruction)
    answer(runtime, instruction, outcome)
    with pytest.raises(errors.RestrictViolation):
        attempt(runtime, instruction, 2)


def test_a_key_stands_for_one_instruction(zone, runtime, database):
    instruction, other = zone.instruction("a"), zone.instruction("b")
    with runtime.transaction():
        submit(runtime, instruction)
        attempt(runtime, instruction, key="one")
    with connect(database.approver_url) as approver:
        event(approver, other, 3, "held", "approved")
    with runtime.transaction(force_rollback=True):
        submit(runtime, other, 4, "b", 5000)
        with pytest.raises(errors.UniqueViolation), runtime.transaction():
            attempt(runtime, other, key="one")


def test_the_kept_hash_is_that_of_the_bytes(zone, runtime):
    instruction = zone.instruction("a")
    with runtime.transaction(force_rollback=True):
        submit(runtime, instruction)
        with pytest.raises(errors.CheckViolation), runtime.transaction():
            runtime.execute(
                """INSERT INTO payout_attempts (instruction_id, attempt_no, idempotency_key, request, request_sha256,
                       execute_on, not_after, dispatched_on, run_id)
                   VALUES (%s, 1, 'k', 'x', repeat('0', 64), %s, now(), %s, 'r')""",
                (instruction, DAY, DAY),
            )


@pytest.mark.parametrize("table", ["open_items", "instruction_states"])
@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_projections_are_written_by_triggers_alone(login, table, request):
    connection = request.getfixturevalue(login)
    error = errors.InsufficientPrivilege if login == "runtime" else errors.RestrictViolation
    column = {"open_items": "amount_minor", "instruction_states": "seq"}[table]
    for statement in (
        "DELETE FROM {table}",
        "INSERT INTO {table} SELECT * FROM {table} LIMIT 0",
        "UPDATE {table} SET {column} = 1",
        "TRUNCATE {table}",
    ):
        with pytest.raises(error):
            connection.execute(sql.SQL(statement).format(table=sql.Identifier(table), column=sql.Identifier(column)))


@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_no_transition_is_added(login, request):
    with pytest.raises((errors.InsufficientPrivilege, errors.RestrictViolation)):
        request.getfixturevalue(login).execute("INSERT INTO lifecycle VALUES ('failed', 'settled')")


def test_the_functions_behind_the_triggers_are_nobodys_to_call(runtime):
    functions = runtime.execute(
        """SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
           WHERE n.nspname = 'payments' AND has_function_privilege(current_user, p.oid, 'EXECUTE')"""
    ).fetchall()
    assert functions == []


@pytest.mark.parametrize("login", ["runtime", "superuser"])
def test_a_match_is_posted_under_one_day_in_revisions_that_never_go_back(login, request):
    connection = request.getfixturevalue(login)
    later = DAY + dt.timedelta(days=3)
    posting(connection, DAY, 2, revision=5)
    for wrong in [{"no": 3, "revision": 4}, {"no": 5, "revision": 5}, {"no": 3, "revision": 5, "currency": "EUR"}]:
        with pytest.raises(errors.RestrictViolation, match="does not follow"):
            posting(connection, DAY, **wrong)
    with pytest.raises(errors.RestrictViolation, match="does not follow"):
        posting(connection, later, 3, revision=6)
    posting(connection, DAY, 3, revision=6)


def test_a_first_posting_is_numbered_one(runtime):
    with pytest.raises(errors.RestrictViolation, match="does not follow"):
        posting(runtime, DAY, 2, match_id="new")


def _post_again(connection, posting_no):
    """Post every accrual of the match again under a number of our choice."""
    journal = uuid.uuid4()
    posting(connection, DAY, 2)
    connection.execute(
        """INSERT INTO journals (journal_id, kind, day, match_id, posting_no, run_id, code_version)
           VALUES (%s, 'accrual', %s, 'm-2024-08-17', 2, 'r', '1')""",
        (journal, DAY),
    )
    connection.execute(
        """INSERT INTO ledger_entries SELECT gen_random_uuid(), %s, kind, day, account, party_id, currency,
               debit_minor, credit_minor, is_item, match_id, pot, pot_party_id, line_no, recipient,
               schedule_version, %s FROM ledger_entries WHERE posting_no = 1""",
        (journal, posting_no),
    )


@pytest.mark.rule("posting/numbered")
def test_an_accruals_postings_are_numbered_without_gaps(runtime):
    for number, error in [(1, errors.UniqueViolation), (3, errors.RestrictViolation)]:
        with pytest.raises(error), runtime.transaction():
            _post_again(runtime, number)
    with runtime.transaction():
        _post_again(runtime, 2)


@pytest.mark.rule("accounts/line-once")
def test_a_report_line_is_taken_in_once_and_cash_never_without_a_journal(zone, runtime):
    insert = """INSERT INTO report_lines (processor, entry_reference, report_date, kind, amount_minor, currency,
                    occurred_at, run_id) VALUES ('p', 'e', '2024-08-18', 'failed', %s, 'GBP', now(), 'r')"""
    with pytest.raises(errors.CheckViolation):
        runtime.execute(insert, (5,))
    runtime.execute(insert, (0,))
    with pytest.raises(errors.UniqueViolation):
        runtime.execute(insert, (0,))


def test_everything_refused_left_the_money_zone_as_it_was(zone):
    zone.dispatch(PARTIES, FakeProcessor())
    assert zone.states() == {f"a {DAY}": "submitted", f"b {DAY}": "held"}
    assert zone.party_balances_disagree() == []
