"""What no login may state or keep by hand: instants, projections, the lifecycle."""

from typing import Any

import psycopg
import pytest

INSTANTS = [
    ("report_intakes", "taken_at"),
    ("report_lines", "taken_at"),
    ("payout_attempts", "started_at"),
    ("payout_attempt_outcomes", "recorded_at"),
    ("payout_look_ups", "asked_at"),
    ("claim_releases", "recorded_at"),
    ("instruction_events", "login"),
    ("instruction_events", "recorded_at"),
    ("journals", "created_xid"),
    ("journals", "posted_at"),
    ("payout_instructions", "created_xid"),
]


@pytest.mark.parametrize(("table", "column"), INSTANTS)
def test_the_run_time_login_cannot_state_what_postgres_says_itself(database_url: str, table: str, column: str) -> None:
    with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"INSERT INTO payments.{table} ({column}) VALUES (DEFAULT)".encode())


@pytest.mark.parametrize("table", ["open_items", "instruction_states"])
@pytest.mark.parametrize(
    "statement", ["INSERT INTO {} SELECT * FROM {}", "UPDATE {} SET state = 'x'", "DELETE FROM {}", "TRUNCATE {}"]
)
def test_a_projection_is_kept_by_triggers_alone_even_from_its_owner(database: Any, table: str, statement: str) -> None:
    column = {"open_items": "party_id", "instruction_states": "state"}[table]
    text = statement.replace("state =", f"{column} =").replace("{}", f"payments.{table}")
    for url in (database.migrator_url, database.superuser_url):
        with (
            psycopg.connect(url) as connection,
            pytest.raises(psycopg.errors.RestrictViolation, match="kept by triggers"),
        ):
            connection.execute(text.encode())


def test_the_lifecycle_takes_no_further_transition(database: Any) -> None:
    with psycopg.connect(database.migrator_url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute("INSERT INTO payments.lifecycle VALUES ('failed', 'approved')")


def test_a_report_line_cannot_be_posted_without_its_processor(database: Any) -> None:
    statement = """INSERT INTO payments.journals (journal_id, kind, day, entry_reference, run_id, code_version)
                   VALUES (gen_random_uuid(), 'fee', '2025-01-01', 'e1', 'r', '1')"""
    with psycopg.connect(database.migrator_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(statement)
