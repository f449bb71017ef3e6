"""Who may do what is a database login: each logs in, and tries everything on every table, and what reaches beyond.

The runtime and the approver are refused for want of a right. The migrator owns the schema, and triggers refuse it what
they refuse everybody. Dagster's login is let into another database alone on the embedded server (`test_postgres`); here
it is let in, and may still do nothing.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql

from payments_pipeline.local import postgres

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
    "dagster": set[str](),
}
#: All but what triggers alone write: the audit trail and the projections; and the lifecycle, which nothing does.
INSERTS["migrator"] = INSERTS["runtime"] | INSERTS["approver"]
LOGINS = ["runtime", "approver", "migrator", "dagster"]
NO_RIGHT, BY_TRIGGER = "42501", "23001"
REFUSED = dict.fromkeys(LOGINS, NO_RIGHT) | {"migrator": BY_TRIGGER}
#: Replaced with each run of its day, and so no record. Who may remove its rows may lock it too.
REPLACED = "reconciliation"
CHANGES = {
    "runtime": {"DELETE", "LOCK"},
    "approver": set[str](),
    "migrator": {"UPDATE", "DELETE", "TRUNCATE", "LOCK"},
    "dagster": set[str](),
}

#: What would get round the rules, or out of the database.
BEYOND = {
    "becomes the migrator": "SET ROLE payments_migrator",
    "becomes the superuser": "SET ROLE postgres",
    "is somebody else from now on": "SET SESSION AUTHORIZATION postgres",
    "runs without triggers": "SET session_replication_role = replica",
    "switches the rules off": "ALTER TABLE payments.ledger_entries DISABLE TRIGGER USER",
    "switches references off": "ALTER TABLE payments.journals DISABLE TRIGGER ALL",
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
#: What owning the schema and the database is: each migration does some of it.
OWNING = {
    "becomes the migrator",
    "switches the rules off",
    "drops a constraint",
    "drops a table",
    "makes a table",
    "makes a table in public",
    "makes a schema",
    "replaces a rule",
    "drops a rule",
    "writes the clock's hand",
}
ALLOWED = {"runtime": set[str](), "approver": set[str](), "migrator": OWNING, "dagster": set[str]()}


@pytest.fixture(scope="module")
def logins(postgres_server: Any, migrated_template: str) -> Iterator[dict[str, psycopg.Connection]]:
    """One database for all: whatever is tried is undone. The superuser is somebody whose session could be ended."""
    by_name = {
        "runtime": postgres.RUNTIME,
        "approver": postgres.APPROVER,
        "migrator": postgres.MIGRATOR,
        "dagster": postgres.DAGSTER,
        "superuser": postgres.SUPERUSER,
    }
    with postgres_server.new_database(postgres.MIGRATOR, template=migrated_template) as name, ExitStack() as stack:
        yield {
            login: stack.enter_context(psycopg.connect(postgres_server.url(of_server, name), autocommit=True))
            for login, of_server in by_name.items()
        }


def columns_by_table(connection: psycopg.Connection) -> dict[str, list[str]]:
    rows = connection.execute(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'payments'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
             AND NOT a.attisdropped AND a.attidentity = '' ORDER BY 1, a.attnum"""
    ).fetchall()
    return {table: [row[1] for row in of_table] for table, of_table in itertools.groupby(rows, lambda row: row[0])}


def refusal(connection: psycopg.Connection, statement: sql.Composed | str) -> str | None:
    """Try a statement, undo it, and give the SQLSTATE that it was refused with."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement if isinstance(statement, sql.Composed) else sql.SQL(statement))
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
            # No row: what is asked is the right, and the triggers that refuse any statement.
            sql.SQL("INSERT INTO payments.{} ({}) SELECT NULL WHERE false").format(
                sql.Identifier(table), sql.Identifier(column)
            ),
        )
        in (None, "42804")  # another type than that of NULL: the right was there
    }
    assert may == INSERTS[login]


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", LOGINS)
def test_every_login_but_dagsters_reads_every_table(login: str, logins: dict[str, psycopg.Connection]) -> None:
    connection = logins[login]
    expected = NO_RIGHT if login == "dagster" else None
    for table in columns_by_table(connection):
        read = sql.SQL("SELECT * FROM payments.{}").format(sql.Identifier(table))
        assert refusal(connection, read) == expected, table


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", LOGINS)
def test_a_login_changes_and_removes_nothing_but_what_is_replaced(
    login: str, logins: dict[str, psycopg.Connection]
) -> None:
    connection = logins[login]
    for table, columns in columns_by_table(connection).items():
        name = sql.Identifier(table)
        changes = CHANGES[login] if table == REPLACED else set()
        for column in columns:
            update = sql.SQL("UPDATE payments.{} SET {} = {}").format(
                name, sql.Identifier(column), sql.Identifier(column)
            )
            tried = refusal(connection, update)
            assert tried == (None if "UPDATE" in changes else REFUSED[login]), f"UPDATE {table}.{column}"
        for act, statement in {
            "DELETE": "DELETE FROM payments.{}",
            "TRUNCATE": "TRUNCATE payments.{} CASCADE",
            "LOCK": "LOCK TABLE payments.{} IN ACCESS EXCLUSIVE MODE",
        }.items():
            tried = refusal(connection, sql.SQL(statement).format(name))
            owns = login == "migrator" and act == "LOCK"  # as a migration does
            assert tried == (None if act in changes or owns else REFUSED[login]), f"{act} {table}"


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize("beyond", BEYOND)
def test_a_login_gets_round_nothing(login: str, beyond: str, logins: dict[str, psycopg.Connection]) -> None:
    allowed = {None} if beyond in ALLOWED[login] else {NO_RIGHT, "42939"}
    assert refusal(logins[login], BEYOND[beyond]) in allowed, f"{login} {beyond}"


@pytest.mark.rule("people/roles")
def test_the_schema_and_all_that_is_in_it_is_the_migrators(logins: dict[str, psycopg.Connection]) -> None:
    owners = logins["superuser"].execute(
        """SELECT DISTINCT owner::regrole::text FROM (
               SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'payments'::regnamespace
               UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'payments'::regnamespace
               UNION ALL SELECT typowner FROM pg_type WHERE typnamespace = 'payments'::regnamespace
               UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'payments'
               UNION ALL SELECT datdba FROM pg_database WHERE datname = current_database()) owned"""
    )
    assert owners.fetchall() == [(postgres.MIGRATOR.name,)]


@pytest.mark.rule("people/roles")
@pytest.mark.parametrize("login", [login for login in LOGINS if login != "migrator"])
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


@pytest.mark.parametrize("login", [login for login in LOGINS if login != "migrator"])
def test_a_login_gives_nobody_a_right(login: str, logins: dict[str, psycopg.Connection]) -> None:
    rights = (
        "SELECT array_agg(relacl::text ORDER BY relname) FROM pg_class WHERE relnamespace = 'payments'::regnamespace"
    )
    before = logins[login].execute(rights).fetchone()
    with suppress(psycopg.errors.InsufficientPrivilege):  # or answered with a warning
        logins[login].execute("GRANT ALL ON ALL TABLES IN SCHEMA payments TO PUBLIC")
    assert logins["superuser"].execute(rights).fetchone() == before
