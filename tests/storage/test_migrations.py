"""Migrating: once, at once, by the wrong login, and never backwards."""

import datetime as dt
import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from money_zone import DAY, NEXT, FakeProcessor, MoneyZone, line, parties_frame
from psycopg import sql

from payments_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from payments_pipeline.local import postgres
from payments_pipeline.storage import dispatch_gate, ledger_entries, payout_instructions
from payments_pipeline.storage.migrations import head, migrate

_CORRECTED_BEFORE = """
    SELECT DISTINCT c.instruction_id, s.state, s.seq
    FROM instruction_states s
    JOIN instruction_claims c USING (instruction_id)
    JOIN ledger_entries e ON e.entry_id = c.item_id AND e.kind = 'accrual'
    JOIN ledger_entries later ON later.kind = 'accrual' AND later.match_id = e.match_id AND later.pot = e.pot
        AND later.pot_party_id = e.pot_party_id AND later.line_no = e.line_no AND later.account = e.account
        AND later.currency = e.currency AND later.posting_no > e.posting_no
    JOIN open_items o ON o.item_id = later.entry_id
    WHERE s.state IN ('created', 'held', 'approved') AND %(day)s::date IS NOT NULL
"""
_ITEMS_BEFORE = re.sub(
    r"WHEN o.item_id IN \(.*?\n *THEN 'correction_under_way'", "", payout_instructions._ITEMS, flags=re.S
).replace(
    "SELECT match_day, was_swept FROM unswept_days WHERE match_day <> {day}",
    "SELECT NULL::date AS match_day, false AS was_swept WHERE false",
)


def _shape(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            """SELECT table_name, column_name, data_type FROM information_schema.columns
               WHERE table_schema = 'payments' ORDER BY 1, 2"""
        ).fetchall()


def test_migrating_again_changes_nothing(database):
    before = _shape(database.superuser_url)
    assert before
    assert migrate(database.migrator_url) == head()
    assert _shape(database.superuser_url) == before


def test_two_programs_may_migrate_a_new_database_at_once(postgres_server):
    with postgres_server.new_database(postgres.MIGRATOR) as name:
        url = postgres_server.url(postgres.MIGRATOR, name)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(migrate, [url] * 3)) == [head()] * 3
        assert _shape(url)


def test_a_schema_newer_than_the_program_is_left_alone(database):
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("UPDATE payments_schema_version SET version_num = '9999'")
        before = _shape(database.superuser_url)
        with pytest.raises(ConfigurationError, match=f"it knows up to {head()}"):
            migrate(database.migrator_url)
        assert connection.execute("SELECT version_num FROM payments_schema_version").fetchone() == ("9999",)
    assert _shape(database.superuser_url) == before


@pytest.mark.parametrize("login", [postgres.RUNTIME, postgres.APPROVER], ids=lambda login: login.name)
def test_a_login_that_does_not_own_the_database_cannot_migrate_it(postgres_server, login):
    with postgres_server.new_database(postgres.MIGRATOR) as name:
        with pytest.raises(ConfigurationError, match="Set PAYMENTS_MIGRATOR_URL"):
            migrate(postgres_server.url(login, name))
        assert _shape(postgres_server.url(postgres.SUPERUSER, name)) == []


def test_a_wrong_password_and_a_server_that_is_away_are_told_without_the_password(database):
    wrong = database.migrator_url.replace("@", "-wrong@")
    away = "postgresql://someone:secret-word@127.0.0.1:1/payments"
    for url in (wrong, away):
        with pytest.raises(DatabaseUnavailableError, match="does not answer") as told:
            migrate(url)
        assert "-wrong" not in str(told.value)
        assert "secret-word" not in str(told.value)


def test_the_runtime_login_owns_nothing(database):
    with psycopg.connect(database.superuser_url) as connection:
        owned = connection.execute(
            """SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'payments' AND pg_get_userbyid(c.relowner) <> %s""",
            (postgres.MIGRATOR.name,),
        ).fetchone()
    assert owned == (0,)


def test_a_database_that_was_used_before_is_migrated_with_its_data(postgres_server, monkeypatch):
    """Posted, corrected, swept, sent, settled and returned under the schema before, then brought to the newest."""
    with postgres_server.new_database(postgres.MIGRATOR) as name:
        owner, url = (postgres_server.url(login, name) for login in (postgres.MIGRATOR, postgres.RUNTIME))
        with monkeypatch.context() as before:
            upgrade = command.upgrade
            before.setattr(command, "upgrade", lambda config, _: upgrade(config, "0002"))
            migrate(owner)
        zone = MoneyZone(url)
        parties = parties_frame(a="active", b="active", c="on_hold")
        with monkeypatch.context() as before:
            # As the program of that schema wrote: it knew of no refund and no retry.
            before.setattr(ledger_entries, "recompute_refunds", lambda *_: None)
            before.setattr(payout_instructions, "_FAILING", "SELECT NULL, NULL, NULL WHERE false")
            before.setattr(payout_instructions, "_CORRECTED", _CORRECTED_BEFORE)
            before.setattr(payout_instructions, "_ITEMS", _ITEMS_BEFORE)
            before.setattr(
                payout_instructions,
                "_NEW_SWEEP",
                payout_instructions._NEW_SWEEP.replace(", %(posting)s", "").replace(", posting_seq", ""),
            )
            before.setattr(payout_instructions, "copy_frame", _copied_before)
            before.setattr(payout_instructions, "_cancel_unpayable", lambda *_: 0)
            before.setattr(dispatch_gate, "_FAULTS", "SELECT NULL, NULL, NULL, NULL, NULL WHERE false")
            zone.owe(a=600, b=5000, c=300)
            zone.sweep(parties)
            zone.owe(revision=2, a=700, b=5000, c=300)
            zone.sweep(parties)
            zone.dispatch(parties, FakeProcessor())
            # Of another day too, which then posts more and is not swept again.
            zone.owe(NEXT, c=300)
            zone.sweep(parties, NEXT)
            zone.owe(NEXT, revision=2, c=400)
        sent = "SELECT party_id, idempotency_key FROM payout_instructions JOIN payout_attempts USING (instruction_id)"
        keys = dict(zone.rows(sent))
        settled = line(keys["a"], -700)
        zone.take_in([settled, line(keys["b"], 0, "failed"), line(None, -7, "fee"), line("unknown", 9, "settled")])
        zone.take_in([settled, line(keys["a"], 700, "returned")])
        before_rows = _counts(owner)
        assert before_rows["report_lines"] == 5
        assert migrate(owner) == head()
        assert {name: rows for name, rows in _counts(owner).items() if name in before_rows} == before_rows
        assert zone.rows("SELECT match_day, posting_seq, was_swept FROM unswept_days") == [(NEXT, 2, True)]
        later = DAY + dt.timedelta(days=3)
        zone.sweep(parties, later)
        zone.dispatch(parties, FakeProcessor(), later)
        assert zone.states()[f"b {later}"] == "submitted"
        assert zone.party_balances_disagree() == []


def _copied_before(cursor, table, frame, same=None, copy=payout_instructions.copy_frame):
    return copy(cursor, table, frame.drop(columns="token_changed_by", errors="ignore"), same)


def _counts(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        query = sql.SQL("SELECT count(*) FROM payments.{}")
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'payments'").fetchall()
        return {name: connection.execute(query.format(sql.Identifier(name))).fetchone()[0] for (name,) in names}
