"""The audit trail in Postgres: every statement is recorded, links follow commits, nobody writes it by hand."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import by_hand
import psycopg
import pytest
from alembic import command
from by_hand import attempt, connect, event, journal_of, posting, submit
from money_zone import DAY, NEXT, MoneyZone, parties_frame, policy

from payments_pipeline.local import postgres
from payments_pipeline.storage.migrations import migrate
from payments_pipeline.storage.postgres import Lock
from payments_pipeline.storage.postgres import connect as pooled
from payments_pipeline.verify import rules_audit

CHAIN, ROWS, COLUMNS = rules_audit.RULES.values()
ALERT = "INSERT INTO alerts (alert_id, kind, title, body) VALUES (gen_random_uuid(), 'k', %s, 'body')"


def entries(url: str) -> list[tuple[Any, ...]]:
    with connect(url) as connection:
        return connection.execute(
            """SELECT c.day, c.seq, c.commit_no, e.table_name, e.row_count, e.login
               FROM audit_chain c FULL JOIN audit_entries e USING (entry_id) ORDER BY c.day, c.seq"""
        ).fetchall()


def breaches(url: str) -> list[str]:
    with pooled(url) as connection, connection.transaction():
        return [*CHAIN(connection).breaches, *ROWS(connection).breaches, *COLUMNS(connection).breaches]


def test_every_statement_is_recorded_in_the_order_of_commits_with_its_login(database):
    zone = MoneyZone(database.url)
    zone.owe(a=600, b=-100)
    zone.sweep(parties_frame(a="active", b="active"))
    [(runtime,)] = zone.rows("SELECT current_user")
    found = entries(database.url)
    assert [row[3:] for row in found] == [
        ("day_postings", 1, runtime),
        ("match_postings", 1, runtime),
        ("journals", 1, runtime),
        ("ledger_entries", 4, runtime),
        ("sweeps", 1, runtime),
        ("payout_instructions", 2, runtime),
        ("instruction_claims", 2, runtime),
        ("instruction_events", 4, runtime),
    ]
    assert [row[1] for row in found] == list(range(1, 9))
    assert [row[2] for row in found] == [1] * 4 + [2] * 4, "one number a commit"
    assert breaches(database.url) == []


def test_what_is_rolled_back_or_inserts_nothing_leaves_no_entry(database):
    with connect(database.url) as connection:
        with connection.transaction(force_rollback=True):
            connection.execute(ALERT, ("never",))
        connection.execute("INSERT INTO alerts SELECT * FROM alerts")
    assert entries(database.url) == []


def test_the_chain_hashes_what_the_docs_say_to_the_byte(database):
    """Worked out here once more, from the page on the audit trail alone."""
    with connect(database.url) as connection:
        connection.execute(
            """INSERT INTO alerts (alert_id, kind, title, body)
               VALUES ('00000000-0000-0000-0000-000000000001', 'k', 'say "hi", \\ twice', '')"""
        )
        raised_at, entry_id, recorded_at, xid, keys, digests, content, link, day, login = connection.execute(
            """SELECT raised_at::text, entry_id, recorded_at::text, transaction_id::text, row_keys, row_digests,
                      content_sha256, hash, c.day::text, e.login
               FROM alerts, audit_entries e JOIN audit_chain c USING (entry_id)"""
        ).fetchone()
    key = "00000000-0000-0000-0000-000000000001"
    row = f'({key},k,,"say ""hi"", \\\\ twice","",,"{raised_at}"'
    digest = hashlib.sha256(row.encode()).digest()[:16]
    assert (keys, digests) == ([key], [digest])
    hashed_keys, hashed_digests = (hashlib.sha256(data).hexdigest() for data in (f'["{key}"]'.encode(), digest))
    words = f"{entry_id} {recorded_at} {xid} alerts f 1 {hashed_keys} {hashed_digests} {login}"
    assert content == hashlib.sha256(words.encode()).hexdigest()
    assert link == hashlib.sha256(f"{'0' * 64} {day} 1 1 {content}".encode()).hexdigest()


@pytest.mark.parametrize(
    "setting", ["datestyle = 'German, DMY'", "timezone = 'Asia/Kathmandu'", "bytea_output = escape"]
)
def test_digests_do_not_depend_on_the_session(database, setting):
    zone = MoneyZone(database.url)
    zone.owe(a=600)
    zone.sweep(parties_frame(a="active"))
    with connect(database.url) as connection:
        connection.execute(f"SET {setting}".encode())
        with connection.transaction():
            submit(connection, zone.instruction("a"))
            attempt(connection, zone.instruction("a"), request=b"\xff\x00 pay")
    assert breaches(database.url) == []


@pytest.mark.parametrize("login", ["url", "approver_url", "migrator_url", "superuser_url"])
@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO {} SELECT * FROM {}", "UPDATE {} SET {hash} = ''", "DELETE FROM {}", "TRUNCATE {} CASCADE"],
)
@pytest.mark.parametrize("table", ["audit_entries", "audit_chain"])
def test_nobody_writes_the_audit_trail_by_hand(database, login, statement, table):
    refused = (psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation)
    text = statement.replace("{hash}", "hash" if table == "audit_chain" else "content_sha256").replace("{}", table)
    with connect(getattr(database, login)) as connection, pytest.raises(refused):
        connection.execute(text.encode())
    assert entries(database.url) == []


@pytest.mark.parametrize(
    "call",
    ["audit('alerts', 'alert_id', 'alert_id')", "write_audit_entry('alerts', false, '{k}', ARRAY['d'::bytea], 'd')"],
)
@pytest.mark.parametrize("login", ["url", "approver_url"])
def test_no_login_of_the_pipeline_reaches_what_writes_it(database, login, call):
    with connect(getattr(database, login)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"SELECT {call}".encode())


def test_a_runtime_login_cannot_hang_the_audit_of_a_table_on_one_of_its_own(database):
    trigger = """CREATE TRIGGER mine AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows
                 FOR EACH STATEMENT EXECUTE FUNCTION payments.audit_alerts()"""
    with connect(database.url) as connection:
        connection.execute("CREATE TEMPORARY TABLE mine (LIKE alerts)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(trigger)


def test_what_an_approver_does_is_recorded_under_the_approver_s_own_login(database):
    zone = MoneyZone(database.url)
    zone.owe(a=5000)
    zone.sweep(parties_frame(a="active"), policy=policy(instruction_limit_minor=1000))
    with connect(database.approver_url) as connection:
        event(connection, zone.instruction("a"), 3, "held", "approved")
    assert entries(database.url)[-1][3:] == ("instruction_events", 1, postgres.APPROVER.name)
    assert breaches(database.url) == []


@pytest.mark.rule("always/chain")
def test_writers_at_once_make_one_chain_and_wait_for_nobody_but_the_commit(database):
    ready = threading.Barrier(4)

    def write(name: int) -> None:
        with connect(database.url) as connection:
            ready.wait()
            for number in range(15):
                with connection.transaction():
                    connection.execute(ALERT, (f"{name} {number} a",))
                    connection.execute(ALERT, (f"{name} {number} b",))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    found = entries(database.url)
    assert [row[1] for row in found] == list(range(1, 121))
    assert [row[2] for row in found] == [number // 2 + 1 for number in range(120)], (
        "no commit lies between two of another"
    )
    assert breaches(database.url) == []


def test_an_open_transaction_holds_up_no_other(database):
    with connect(database.url) as first, connect(database.url) as second:
        second.execute("SET statement_timeout = '5s'")
        with first.transaction():
            first.execute(ALERT, ("slow",))
            second.execute(ALERT, ("quick",))
    assert [row[2] for row in entries(database.url)] == [1, 2]
    assert breaches(database.url) == []


def test_a_link_follows_the_last_of_the_day_before_even_where_the_clock_was_put_back(database):
    with connect(database.superuser_url) as owner:
        [(link,)] = owner.execute("SELECT pg_get_functiondef('payments.link_audit_entry'::regproc)").fetchall()
        for now in ("2024-03-01 23:59:59Z", "2024-03-02 00:00Z", "2024-03-01 12:00Z", "2024-03-04 12:00+14"):
            owner.execute(link.replace("clock_timestamp()", f"'{now}'::timestamptz").encode())
            owner.execute(ALERT, (now,))
            owner.execute(ALERT, (now,))
    assert [(str(row[0]), row[1]) for row in entries(database.url)] == [
        *(("2024-03-01", seq) for seq in (1, 2)),
        *(("2024-03-02", seq) for seq in (1, 2, 3, 4)),
        *(("2024-03-03", seq) for seq in (1, 2)),
    ]
    assert breaches(database.url) == []


def test_a_transaction_over_midnight_is_of_one_day(database):
    with connect(database.superuser_url) as owner:
        [(link,)] = owner.execute("SELECT pg_get_functiondef('payments.link_audit_entry'::regproc)").fetchall()
        owner.execute(link.replace("clock_timestamp()", "(now() + make_interval(days => NEW.entry_id::int))").encode())
        with owner.transaction():
            owner.execute(ALERT, ("before",))
            owner.execute(ALERT, ("after",))
    assert len({row[0] for row in entries(database.url)}) == 1


def test_a_later_nullable_column_leaves_the_digests_of_rows_without_it_as_they_are(database):
    with connect(database.superuser_url) as owner:
        owner.execute(ALERT, ("before",))
        owner.execute("ALTER TABLE alerts ADD COLUMN severity text")
        columns = "alert_id, kind, day, title, body, run_id, raised_at, severity"
        owner.execute("SELECT payments.audit('alerts', 'alert_id', %s)", (columns,))
        owner.execute(ALERT.replace("title", "severity, title").replace("%s", "'high', %s"), ("after",))
        digest = f"substring(sha256(convert_to(rtrim(ROW({columns})::text, ',)'), 'UTF8')) FOR 16)"
        now = owner.execute(f"SELECT {digest} FROM alerts ORDER BY raised_at".encode()).fetchall()
        recorded = owner.execute("SELECT row_digests[1] FROM audit_entries ORDER BY entry_id").fetchall()
    assert now == recorded, "recorded once each, those there were before not again"


def test_a_chain_linked_by_an_old_snapshot_is_refused_not_forked(database):
    with connect(database.url) as first, connect(database.url) as second:
        first.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        first.execute("SELECT count(*) FROM alerts")
        second.execute(ALERT, ("meanwhile",))
        first.execute(ALERT, ("old",))
        with pytest.raises(psycopg.errors.UniqueViolation):
            first.execute("COMMIT")
    assert len(entries(database.url)) == 1
    assert breaches(database.url) == []


def test_what_was_there_before_is_recorded_by_the_migration(postgres_server, monkeypatch):
    with postgres_server.new_database(postgres.MIGRATOR) as name:
        owner, url = (postgres_server.url(login, name) for login in (postgres.MIGRATOR, postgres.RUNTIME))
        upgrade = command.upgrade
        with monkeypatch.context() as before:
            before.setattr(command, "upgrade", lambda config, _: upgrade(config, "0004"))
            migrate(owner)
        with connect(url) as connection, connection.transaction():
            posting(connection, DAY, 1)
            fee = journal_of(connection)
            by_hand.entries(connection, fee, ("fees:p", 7), ("cash:p", -7))
        migrate(owner)
        zone = MoneyZone(url)
        assert [row[3:5] for row in entries(url)] == [
            ("day_postings", 1), ("match_postings", 1), ("journals", 1), ("ledger_entries", 2),
        ]  # fmt: skip
        assert {row[5] for row in entries(url)} == {postgres.MIGRATOR.name}
        assert zone.rows("SELECT DISTINCT by_migration FROM audit_entries") == [(True,)]
        assert breaches(url) == []
        zone.owe(day=NEXT, a=700, b=-100)
        assert entries(url)[-1][3:] == ("ledger_entries", 4, postgres.RUNTIME.name)
        assert breaches(url) == []


def test_the_lock_of_the_chain_is_no_other_s(database):
    assert len({int(lock) for lock in Lock}) == len(Lock)
    with connect(database.url) as connection, connection.transaction():
        connection.execute(ALERT, ("alert",))
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"
        assert connection.execute(held, (Lock.AUDIT,)).fetchone() == (0,), "not before the commit"
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        assert connection.execute(held, (Lock.AUDIT,)).fetchone() == (1,)
        connection.execute(ALERT, ("after",))
    assert [row[1:3] for row in entries(database.url)] == [(1, 1), (2, 1)]
    assert breaches(database.url) == []
