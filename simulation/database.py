"""The simulation's Postgres: one embedded server, one database per worker that each world starts afresh in.

Belongs here: the server, the template whose clock is the simulation's, emptying, reading everything at once. Does not
belong here: what is made of it. Nothing of these data need outlive the process, so the server does not wait for disks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from payments_pipeline.local import postgres, stack
from payments_pipeline.storage.migrations import migrate

Row = dict[str, Any]
Snapshot = dict[str, list[Row]]
_TEMPLATE = "simulation_template"
#: Not of a world: the lifecycle is the schema's, the version Alembic's.
_KEPT = ("lifecycle", "alembic_version")
#: Long, and of no interest but to `verify`, which reads them itself.
_NOT_IN_SNAPSHOTS = ("audit_entries", "audit_chain")
#: Tables whose rows never change or go; if one does all the same, they are read anew.
APPEND_ONLY = (
    "day_postings",
    "posting_breaks",
    "match_postings",
    "journals",
    "ledger_entries",
    "sweeps",
    "sweep_deferrals",
    "payout_instructions",
    "instruction_claims",
    "claim_releases",
    "instruction_events",
    "payout_attempts",
    "payout_attempt_outcomes",
    "payout_look_ups",
    "report_intakes",
    "report_balances",
    "report_lines",
    "settlement_records",
    "refunds",
    "proposals",
    "proposal_decisions",
)
_SERVER = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    # Nobody looks at its statistics, and statements this small are not worth compiling.
    "jit": "off",
    "track_counts": "off",
    "track_activities": "off",
    # Two tasks that wait for each other are not to hold up the others.
    "deadlock_timeout": "20ms",
}
#: Postgres's own instants are the simulation's: whatever asks for the time asks here (see SEARCH_PATH).
SEARCH_PATH = "simulation,payments,pg_catalog"
_CLOCK = """
    CREATE SCHEMA simulation;
    CREATE TABLE simulation.clock (now_at timestamptz NOT NULL);
    INSERT INTO simulation.clock VALUES ('2024-01-01Z');
    CREATE FUNCTION simulation.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE SECURITY DEFINER
        AS 'SELECT now_at FROM simulation.clock';
    GRANT USAGE ON SCHEMA simulation TO PUBLIC;
    DO $$
    DECLARE
        told record;
    BEGIN
        FOR told IN SELECT table_name, column_name FROM information_schema.columns
                    WHERE table_schema = 'payments' AND column_default = 'clock_timestamp()' LOOP
            EXECUTE format('ALTER TABLE payments.%I ALTER %I SET DEFAULT simulation.clock_timestamp()',
                           told.table_name, told.column_name);
        END LOOP;
        FOR told IN SELECT pg_get_functiondef(p.oid) AS words FROM pg_proc p
                    WHERE p.pronamespace = 'payments'::regnamespace AND p.prosrc LIKE '%clock_timestamp()%' LOOP
            EXECUTE replace(told.words, 'clock_timestamp()', 'simulation.clock_timestamp()');
        END LOOP;
    END
    $$;
"""


def _reading(tables: Sequence[str], condition: str, conditional: Collection[str] = ()) -> bytes:
    """Give the statement that reads what Postgres knows now, and of each table its number of rows and its rows.

    Of the tables `conditional` only those rows are read that fulfil the condition.
    """
    parts: list[sql.Composable] = [sql.SQL("pg_current_snapshot()::text")]
    for table in tables:
        where = sql.SQL(condition if table in conditional else "true")
        both = "(SELECT json_build_array(count(*), coalesce(json_agg(t) FILTER (WHERE {}), '[]')) FROM payments.{} t)"
        parts.append(sql.SQL(both).format(where, sql.Identifier(table)))
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(parts)).as_bytes()


#: Before the first link of an audit chain.
_NO_LINK = (date.min, 0)
#: How many rows of each table the audit trail has, and what is wrong with its chain after a link that was looked at.
_AUDIT = """
    WITH links AS (
        SELECT c.day, c.seq, c.entry_id, c.hash, encode(sha256(convert_to(format('%%s %%s %%s %%s %%s',
                   lag(c.hash, 1, repeat('0', 64)) OVER (ORDER BY c.day, c.seq), to_char(c.day, 'YYYY-MM-DD'), c.seq,
                   c.commit_no, e.content_sha256), 'UTF8')), 'hex') AS due
        FROM audit_chain c JOIN audit_entries e USING (entry_id) WHERE (c.day, c.seq) >= (%(day)s, %(seq)s)
    )
    SELECT (SELECT json_object_agg(table_name, of_it) FROM (
                SELECT table_name, sum(row_count) AS of_it FROM audit_entries GROUP BY 1) t),
           (SELECT count(*) FROM audit_entries) - (SELECT count(*) FROM audit_chain),
           (SELECT json_agg(entry_id) FROM links WHERE hash <> due AND (day, seq) <> (%(day)s, %(seq)s)),
           (SELECT max(day) FROM links), (SELECT max(seq) FROM links WHERE day = (SELECT max(day) FROM links))
"""


@dataclass(frozen=True)
class Server:
    """The running server."""

    home: Path
    port: int

    def url(self, login: postgres.Login, database: str) -> str:
        """Give a database's address for a login."""
        return postgres.url(self.home, login, database, self.port)

    def superuser(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Open a connection that may do everything."""
        return psycopg.connect(self.url(postgres.SUPERUSER, database), autocommit=True)


@contextmanager
def server(home: Path) -> Iterator[Server]:
    """Run the simulation's server, with its template made anew."""
    with stack.attached(home, ("postgres",)) as state:
        assert state is not None
        running = Server(home, state.postgres_port)
        with running.superuser() as connection:
            for name, value in _SERVER.items():
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(_TEMPLATE)))
            create = sql.SQL("CREATE DATABASE {} OWNER {}")
            connection.execute(create.format(*map(sql.Identifier, (_TEMPLATE, postgres.MIGRATOR.name))))
        migrate(running.url(postgres.MIGRATOR, _TEMPLATE))
        with running.superuser(_TEMPLATE) as connection:
            connection.execute(_CLOCK)
        yield running


class Database:
    """One worker's database, emptied for each world."""

    def __init__(self, running: Server, name: str) -> None:
        with running.superuser() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
            connection.execute(create.format(*map(sql.Identifier, (name, postgres.MIGRATOR.name, _TEMPLATE))))
        self.url = running.url(postgres.RUNTIME, name)
        self.approver_url = running.url(postgres.APPROVER, name)
        #: The login of whoever approves.
        self.approver = postgres.APPROVER.name
        #: Connections of the product that nobody has, by address.
        self.idle: dict[str, list[psycopg.Connection[Any]]] = {self.url: [], self.approver_url: []}
        self.admin = running.superuser(name)
        self.admin.execute("SET search_path = payments")
        self.admin.execute("SET timezone = UTC")
        # Emptying is the one thing that every table refuses, triggers and all.
        self._emptier = running.superuser(name)
        self._emptier.execute("SET session_replication_role = replica")
        self.tables = [
            row[0]
            for row in self.admin.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'payments' AND tablename <> ALL(%s) ORDER BY 1",
                (list(_KEPT),),
            ).fetchall()
        ]
        self._looked_at = [table for table in self.tables if table not in _NOT_IN_SNAPSHOTS]
        self._everything = _reading(self._looked_at, "true")
        self._news = _reading(
            self._looked_at, "NOT pg_visible_in_snapshot(t.xmin::text::xid8, %(before)s::pg_snapshot)", APPEND_ONLY
        )
        #: The last snapshot, with what Postgres knew then.
        self._last: tuple[str, Snapshot] | None = None
        self._linked = _NO_LINK
        self._emptied = 0

    def empty(self) -> None:
        """Take everything out; now and then also what that leaves behind."""
        self._last, self._linked = None, _NO_LINK
        self._emptied += 1
        tables = sql.SQL(", ").join(sql.Identifier("payments", table) for table in self.tables)
        if self._emptied % 50 == 1:
            self._emptier.execute(sql.SQL("TRUNCATE {}").format(tables))
            return
        with self._emptier.transaction():
            for table in self.tables:
                self._emptier.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("payments", table)))

    def set_clock(self, now: datetime) -> None:
        """Say what time Postgres has."""
        self.admin.execute("UPDATE simulation.clock SET now_at = %s", (now,))

    def snapshot(self) -> Snapshot:
        """Read every table but the audit trail, as of one moment; rows that were there before are the same objects."""
        if self._last is not None:
            before, known = self._last
            row = self.admin.execute(self._news, {"before": before}).fetchone()
            assert row is not None
            moment, *read = row
            now = {
                table: (known[table] + rows if rows else known[table]) if table in APPEND_ONLY else rows
                for table, (_, rows) in zip(self._looked_at, read, strict=True)
            }
            # A row that changed is one more that is new, and one less of before.
            if all(count == len(now[table]) for table, (count, _) in zip(self._looked_at, read, strict=True)):
                self._last = moment, now
                return now
        row = self.admin.execute(self._everything).fetchone()
        assert row is not None
        moment, *read = row
        self._last = moment, {table: rows for table, (_, rows) in zip(self._looked_at, read, strict=True)}
        return self._last[1]

    def audit(self, now: Snapshot) -> Iterator[str]:
        """Name what the audit trail has otherwise than the tables, and new links that do not follow."""
        day, seq = self._linked
        row = self.admin.execute(_AUDIT, {"day": day, "seq": seq}).fetchone()
        assert row is not None
        recorded, unlinked, broken, day, seq = row
        self._linked = (day, seq) if day else self._linked
        for table in APPEND_ONLY:
            of_it = (recorded or {}).get(table, 0)
            if of_it != len(now[table]):
                yield f"rule 17: {table} has {len(now[table])} rows, and the audit trail {of_it}"
        if unlinked or broken:
            yield f"rule 17: {unlinked} audit entries are in no chain, and the links of {broken} do not follow"

    def close(self) -> None:
        """End all connections."""
        for connections in self.idle.values():
            while connections:
                connections.pop().close()
        self.admin.close()
        self._emptier.close()
