"""A hash chain per day over the audit trail; `verify` finds any changed, missing or inserted row, and names it."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from verify_results import broken
from verify_world import World

from payments_pipeline.local import postgres
from payments_pipeline.settings import Settings
from payments_pipeline.storage.postgres import close_connections
from payments_pipeline.verify.rules_audit import AUDITED, RULES

CHAIN, ROWS, COLUMNS = RULES
#: What is told of a row.
CHANGED, GONE, INSERTED = "is not as entry", "is gone", "is in no entry of the audit trail"
AN_ALERT = """INSERT INTO alerts (alert_id, kind, title, body)
              VALUES ('00000000-0000-0000-0000-00000000000a', 'k', 'nothing to see', 'here')"""


@pytest.fixture(scope="session")
def fuller_world(
    postgres_server: Any, built_world: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One for all its tests: what they change they undo."""
    template, folder = built_world
    files = shutil.copytree(folder, tmp_path_factory.mktemp("fuller"), dirs_exist_ok=True)
    with postgres_server.new_database(postgres.MIGRATOR, template=template) as name:
        logins = (postgres.RUNTIME, postgres.SUPERUSER, postgres.APPROVER)
        url, superuser_url, approver_url = (postgres_server.url(login, name) for login in logins)
        settings = Settings(home=files, reference_url=str(files / "reference"), storage_url=str(files / "storage"))
        world = World(url, settings, superuser_url, approver_url)
        world.build_on()
        close_connections()
        yield world


@pytest.fixture
def unchecked(fuller_world: World, table: str) -> Iterator[psycopg.Connection]:
    """A superuser for whom the table has no triggers, keys and checks, in a transaction that is undone."""
    with psycopg.connect(fuller_world.superuser_url, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        constraints = "SELECT conname FROM pg_constraint WHERE contype IN ('c', 'f', 'p') AND conrelid = %s::regclass"
        for (name,) in connection.execute(constraints, (table,)).fetchall():
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE".encode())
        yield connection
        connection.rollback()


def told(connection: psycopg.Connection, table: str) -> Counter[str]:
    """How many rows of the table are told of, by what is told; nothing else is."""
    words = RULES[ROWS](connection).breaches
    assert all(each.startswith(f"{table} ") for each in words), words
    return Counter(next(kind for kind in (CHANGED, GONE, INSERTED) if f" {kind}" in each) for each in words)


def test_a_changed_row_is_named_with_who_wrote_it_and_when(world: World) -> None:
    world.tamper("UPDATE report_lines SET note = 'checked by hand' WHERE entry_reference = 'e-fed'")
    [words] = broken(world)[ROWS]
    assert words.startswith("report_lines (sandbox,e-fed) is not as entry ")
    assert f"written by {postgres.RUNTIME.name}: " in words
    assert broken(world).keys() == {ROWS}


def test_a_missing_row_is_named(world: World) -> None:
    world.tamper("DELETE FROM sweep_deferrals WHERE party_id = 'A'")
    assert broken(world).keys() == {ROWS}
    assert all("sweep_deferrals (" in words and " is gone, and entry " in words for words in broken(world)[ROWS])


def test_an_inserted_row_is_named(world: World) -> None:
    world.tamper(AN_ALERT)
    key = "00000000-0000-0000-0000-00000000000a"
    words = f"alerts {key} is in no entry of the audit trail: it was inserted behind the triggers"
    assert broken(world) == {ROWS: (words,)}


def test_a_row_under_another_key_is_one_missing_and_one_inserted(world: World) -> None:
    world.tamper("UPDATE sweep_deferrals SET reason = reason || ' and more'")
    words = " ".join(broken(world)[ROWS])
    assert "is gone, and entry" in words
    assert "is in no entry of the audit trail" in words


def test_what_is_taken_out_and_inserted_again_by_way_of_the_triggers_is_told(world: World) -> None:
    world.tamper(
        """CREATE TEMPORARY TABLE kept AS SELECT * FROM posting_breaks;
           INSERT INTO posting_breaks VALUES ('2024-08-17', 2, 'm9', 'absent', 'x')"""
    )
    world.tamper("DELETE FROM posting_breaks WHERE match_id = 'm9'")
    assert broken(world) == {}, "as if nothing had been"
    again = """SET session_replication_role = origin;
               INSERT INTO posting_breaks VALUES ('2024-08-17', 1, 'm9', 'absent', 'x');
               SET session_replication_role = replica;
               DELETE FROM posting_breaks WHERE match_id = 'm9';
               SET session_replication_role = origin;
               INSERT INTO posting_breaks VALUES ('2024-08-17', 1, 'm9', 'absent', 'x')"""
    world.tamper(again)
    [words] = broken(world)[ROWS]
    assert words.startswith("posting_breaks (2024-08-17,1,m9) was recorded by entries ")


def test_a_world_with_a_row_of_everything_keeps_every_rule(fuller_world: World) -> None:
    assert broken(fuller_world) == {}


@pytest.mark.rule("always/chain")
@pytest.mark.parametrize("table", AUDITED)
def test_a_change_of_any_column_of_any_row_is_found(unchecked: psycopg.Connection, table: str) -> None:
    """A row whose key is changed is one missing and one inserted."""
    key, columns = (names.split(", ") for names in AUDITED[table])
    for column in columns:
        with unchecked.transaction(force_rollback=True):
            [(rows, values)] = unchecked.execute(f"SELECT count(*), count({column}) FROM {table}".encode()).fetchall()
            assert values, f"no row has a {column} that could be changed"
            unchecked.execute(f"ALTER TABLE {table} ALTER {column} DROP NOT NULL".encode())
            unchecked.execute(f"UPDATE {table} SET {column} = NULL".encode())
            found = told(unchecked, table)
            assert found == ({GONE: rows, INSERTED: rows} if column in key else {CHANGED: values}), column


@pytest.mark.rule("always/chain")
@pytest.mark.parametrize("table", AUDITED)
def test_every_missing_row_of_any_table_is_found(unchecked: psycopg.Connection, table: str) -> None:
    rows = unchecked.execute(f"DELETE FROM {table}".encode()).rowcount
    assert rows
    assert told(unchecked, table) == {GONE: rows}


#: A value of each type that a column has.
VALUES = {
    "text": "'x'",
    "character": "'GBP'",
    "date": "'2030-01-01'",
    "integer": "1",
    "bigint": "1",
    "boolean": "true",
    "uuid": "'00000000-0000-0000-0000-00000000000b'",
    "bytea": "'x'",
    "jsonb": "'{}'",
    "json": "'{}'",
    "ARRAY": "'{}'",
    "timestamp with time zone": "'2024-08-17Z'",
    "xid8": "'1'",
}


@pytest.mark.rule("always/chain")
@pytest.mark.parametrize("table", AUDITED)
def test_an_inserted_row_of_any_table_is_found(unchecked: psycopg.Connection, table: str) -> None:
    columns = unchecked.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'payments' AND table_name = %s AND is_identity = 'NO'",
        (table,),
    ).fetchall()
    names, values = ", ".join(name for name, _ in columns), ", ".join(VALUES[kind] for _, kind in columns)
    unchecked.execute(f"INSERT INTO {table} ({names}) VALUES ({values})".encode())
    assert told(unchecked, table) == {INSERTED: 1}


#: Tables that are no record: the trail itself, and what triggers or a run of its day make of the others.
NO_RECORDS = {"audit_entries", "audit_chain", "open_items", "instruction_states", "reconciliation"}
#: Of the schema, not of its content: rules of their own hold it.
OF_THE_SCHEMA = {"lifecycle"}


def test_every_table_is_audited_or_is_no_record(world: World) -> None:
    with psycopg.connect(world.superuser_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'payments'").fetchall()
    assert {name for (name,) in tables} == AUDITED.keys() | NO_RECORDS | OF_THE_SCHEMA


BREAK = "the chain breaks at link 3 of"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("UPDATE audit_entries SET login = 'x' WHERE entry_id = {third}", "of {table} was changed"),
        (
            "UPDATE audit_entries SET recorded_at = recorded_at - interval '1 us' WHERE entry_id = {third}",
            "was changed",
        ),
        ("UPDATE audit_entries SET row_keys[1] = 'x' WHERE entry_id = {third}", "was changed"),
        ("UPDATE audit_entries SET row_digests[1] = sha256('x') WHERE entry_id = {third}", "was changed"),
        ("UPDATE audit_entries SET content_sha256 = repeat('a', 64) WHERE entry_id = {third}", BREAK),
        ("UPDATE audit_chain SET hash = repeat('a', 64) WHERE entry_id = {third}", BREAK),
        ("UPDATE audit_chain SET commit_no = commit_no + 1", "the chain breaks at link 1 of"),
        ("UPDATE audit_chain SET day = day - 1", "the chain breaks at link 1 of"),
        ("DELETE FROM audit_entries WHERE entry_id = {third}", "is of an entry that is gone"),
        ("DELETE FROM audit_chain WHERE entry_id = {third}", "has link 4 where 3 is due"),
        ("DELETE FROM audit_chain WHERE entry_id = {third}", "is in no link of the chain"),
        ("DELETE FROM audit_chain WHERE seq <= 3", "has link 4 where 1 is due"),
        (
            """UPDATE audit_chain SET entry_id = -seq WHERE seq IN (2, 3);
               UPDATE audit_chain SET entry_id = {third} WHERE seq = 2;
               UPDATE audit_chain SET entry_id = {second} WHERE seq = 3""",
            BREAK,
        ),
        (
            """INSERT INTO audit_entries SELECT 0, recorded_at, login, transaction_id, 'alerts', false, 1, '{k}', '{d}',
                   content_sha256
               FROM audit_entries WHERE entry_id = {third}""",
            "is in no link of the chain",
        ),
    ],
)
def test_a_change_of_the_trail_itself_breaks_the_chain(world: World, fault: str, told: str) -> None:
    with psycopg.connect(world.superuser_url, options="-c search_path=payments") as connection:
        (_, second), (_, third) = connection.execute(
            "SELECT seq, entry_id FROM audit_chain WHERE seq IN (2, 3) ORDER BY day, seq LIMIT 2"
        ).fetchall()
        table = "journals"
    world.tamper(fault.replace("{second}", str(second)).replace("{third}", str(third)))
    words = "\n".join(broken(world)[CHAIN])
    assert told.replace("{table}", table) in words


def test_each_break_is_told_once_and_what_follows_it_is_still_checked(world: World) -> None:
    world.tamper("UPDATE audit_chain SET hash = repeat(to_hex(seq % 16), 64) WHERE seq IN (3, 7)")
    breaks = [words.split(":")[0].split(" of ")[0] for words in broken(world)[CHAIN]]
    assert breaks == [f"the chain breaks at link {seq}" for seq in (3, 4, 7, 8)]
