"""Who may do what is a database login: each logs in, and tries everything on every table, and what reaches beyond."""

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

#: What each login inserts; everything else it may only read.
INSERTS = {
    "runtime": {
        "alert_deliveries",
        "alerts",
        "claim_releases",
        "day_postings",
        "instruction_claims",
        "instruction_events",
        "journals",
        "ledger_entries",
        "match_postings",
        "payout_attempt_outcomes",
        "payout_attempts",
        "payout_look_ups",
        "payout_instructions",
        "posting_breaks",
        "proposals",
        "reconciliation",
        "refunds",
        "report_balances",
        "report_intakes",
        "report_lines",
        "settlement_records",
        "sweep_deferrals",
        "sweeps",
    },
    "approver": {"claim_releases", "instruction_events", "proposal_decisions"},
}
#: Replaced with each run of its day.
REPLACED = {"runtime": {"reconciliation"}, "approver": set[str]()}
LOGINS = ["runtime", "approver"]

#: What would get round the rules, or out of the database.
BEYOND = {
    "becomes the migrator": "SET ROLE payments_migrator",
    "becomes the superuser": "SET ROLE postgres",
    "is somebody else from now on": "SET SESSION AUTHORIZATION postgres",
    "runs without triggers": "SET session_replication_role = replica",
    "switches a trigger off": "ALTER TABLE payments.ledger_entries DISABLE TRIGGER ALL",
    "drops a constraint": "ALTER TABLE payments.ledger_entries DROP CONSTRAINT ledger_entries_pkey CASCADE",
    "drops a table": "DROP TABLE payments.alerts CASCADE",
    "makes a table": "CREATE TABLE payments.mine (x int)",
    "makes a table in public": "CREATE TABLE public.mine (x int)",
    "makes a schema": "CREATE SCHEMA mine",
    "replaces a rule": "CREATE OR REPLACE FUNCTION payments.refuse_change() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN RETURN NULL; END'",
    "drops a rule": "DROP FUNCTION payments.refuse_change() CASCADE",
    "makes a login": "CREATE ROLE mine LOGIN",
    "makes itself a superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
    "takes another group": "GRANT payments_migrator TO CURRENT_USER",
    "reads the passwords": "SELECT rolpassword FROM pg_authid",
    "reads a file": "SELECT pg_read_file('postgresql.conf')",
    "runs a program": "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null'",
    "makes an extension": "CREATE EXTENSION dblink",
    "writes the clock's hand": "SELECT setval('payments.audit_entries_entry_id_seq', 1)",
    "ends another's session": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' "
    "AND datname = current_database() AND pid <> pg_backend_pid()",
}


@pytest.fixture
def logins(database: Any) -> Iterator[dict[str, psycopg.Connection]]:
    with (
        psycopg.connect(database.url, autocommit=True) as runtime,
        psycopg.connect(database.approver_url, autocommit=True) as approver,
        # Somebody whose session could be ended.
        psycopg.connect(database.superuser_url, autocommit=True),
    ):
        yield {"runtime": runtime, "approver": approver}


def columns_by_table(connection: psycopg.Connection) -> dict[str, list[str]]:
    rows = connection.execute(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'payments'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
             AND NOT a.attisdropped AND a.attidentity = '' ORDER BY 1, a.attnum"""
    ).fetchall()
    return {table: [row[1] for row in of_table] for table, of_table in itertools.groupby(rows, lambda row: row[0])}


def refusal(connection: psycopg.Connection, statement: sql.Composable | str) -> str | None:
    """Try a statement, undo it, and give the SQLSTATE that it was refused with."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement if isinstance(statement, sql.Composable) else sql.SQL(statement))
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", LOGINS)
def test_a_login_inserts_where_it_has_to_and_nowhere_else(login: str, logins: dict[str, psycopg.Connection]) -> None:
    connection = logins[login]
    may = {
        table
        for table, columns in columns_by_table(connection).items()
        for column in columns
        if refusal(
            connection,
            # No row: what is asked is the right alone.
            sql.SQL("INSERT INTO payments.{} ({}) SELECT NULL WHERE false").format(
                sql.Identifier(table), sql.Identifier(column)
            ),
        )
        in (None, "42804")  # another type than that of NULL: the right was there
    }
    assert may == INSERTS[login]


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_reads_every_table(login: str, logins: dict[str, psycopg.Connection]) -> None:
    connection = logins[login]
    for table in columns_by_table(connection):
        assert refusal(connection, sql.SQL("SELECT * FROM payments.{}").format(sql.Identifier(table))) is None, table


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", LOGINS)
def test_a_login_changes_and_removes_nothing_but_what_is_replaced(
    login: str, logins: dict[str, psycopg.Connection]
) -> None:
    connection = logins[login]
    for table, columns in columns_by_table(connection).items():
        name = sql.Identifier(table)
        for column in columns:
            update = sql.SQL("UPDATE payments.{} SET {} = {}").format(
                name, sql.Identifier(column), sql.Identifier(column)
            )
            assert refusal(connection, update) == "42501", f"{table}.{column} can be updated"
        deletes = refusal(connection, sql.SQL("DELETE FROM payments.{}").format(name))
        assert deletes == (None if table in REPLACED[login] else "42501"), table
        for statement in ("TRUNCATE payments.{}", "LOCK TABLE payments.{} IN ACCESS EXCLUSIVE MODE"):
            tried = refusal(connection, sql.SQL(statement).format(name))
            assert tried == "42501" or (table in REPLACED[login] and "LOCK" in statement), f"{statement} {table}"


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize("beyond", BEYOND)
def test_a_login_gets_round_nothing(login: str, beyond: str, logins: dict[str, psycopg.Connection]) -> None:
    assert refusal(logins[login], BEYOND[beyond]) in {"42501", "42939"}, f"{login} {beyond}"


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", LOGINS)
def test_a_login_calls_no_function_that_writes(login: str, logins: dict[str, psycopg.Connection]) -> None:
    rows = (
        logins[login]
        .execute(
            """SELECT p.oid::regprocedure::text FROM pg_proc p
           WHERE p.pronamespace = 'payments'::regnamespace AND (p.prosecdef OR p.prorettype = 'trigger'::regtype)
             AND has_function_privilege(p.oid, 'EXECUTE')"""
        )
        .fetchall()
    )
    assert rows == []


def test_what_is_tried_would_be_allowed_to_somebody(database: Any) -> None:
    """A statement that is wrong in itself would be refused to everybody, and prove nothing."""
    with psycopg.connect(database.superuser_url, autocommit=True) as superuser:
        tried = {beyond: refusal(superuser, statement) for beyond, statement in BEYOND.items()}
    assert {beyond: state for beyond, state in tried.items() if state} == {}


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_gives_nobody_a_right(login: str, logins: dict[str, psycopg.Connection], database: Any) -> None:
    rights = (
        "SELECT array_agg(relacl::text ORDER BY relname) FROM pg_class WHERE relnamespace = 'payments'::regnamespace"
    )
    before = logins[login].execute(rights).fetchone()
    logins[login].execute("GRANT ALL ON ALL TABLES IN SCHEMA payments TO PUBLIC")  # answered with a warning
    with psycopg.connect(database.superuser_url) as superuser:
        assert superuser.execute(rights).fetchone() == before
