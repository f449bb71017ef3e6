"""A big day, from landing files to approved instructions in Postgres, beside the floor of what it reads and writes.

The floor is plain pyarrow reading the same files, plain pyarrow writing the same Parquet, and plain COPY of every row
that the day inserts into the same tables with the same indexes, in two transactions as the day does. Job and floor take
turns, each on a fresh database, a checkpoint before each.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from psycopg import sql

from benchmarks.figures import ROUNDS, note, say
from benchmarks.made_day import DAY, write_day
from benchmarks.steps import TO_INSTRUCTIONS, run_steps
from payments_pipeline.local import keeper, postgres
from payments_pipeline.local.stack import environment, stack
from payments_pipeline.settings import Settings
from payments_pipeline.storage.migrations import migrate

MATCHES, PEOPLE, PARTIES = 40_000, 25, 300_000
FLOOR_TARGET, POSTINGS_A_SECOND, BYTES_A_LINE, GROWTH_TARGET = 1.5, 100_000.0, 1024.0, 11.0
PROGRAM = Path(sys.executable).with_name("payments-pipeline")
#: What a posting inserts, and then what a sweep does, each in one transaction, in this order.
_POSTING = ("day_postings", "match_postings", "journals", "ledger_entries", "open_items")
_SWEEP = ("sweeps", "payout_instructions", "instruction_claims", "instruction_events", "instruction_states")
_TRAIL = ("audit_entries", "audit_chain")
#: Items are gone from it once they are claimed: as the posting inserted them.
_OPEN_ITEMS = """
    SELECT entry_id, 1, party_id, currency, day, kind, credit_minor - debit_minor, match_id, pot, pot_party_id,
           recipient, NULL FROM payments.ledger_entries WHERE is_item
"""


@dataclass(frozen=True)
class Home:
    """One embedded server, and the input that its day is run from."""

    settings: Settings
    environment: dict[str, str]
    port: int

    def connect(self, database: str = postgres.BUSINESS_DATABASE) -> psycopg.Connection:
        """Connect as the superuser."""
        url = postgres.url(self.settings.home_dir, postgres.SUPERUSER, database, self.port)
        return psycopg.connect(url, autocommit=True)

    @property
    def of_commands(self) -> dict[str, str]:
        """The environment of a command, which finds the servers, and migrates, by the home alone."""
        return os.environ | {
            "PAYMENTS_HOME": str(self.settings.home_dir),
            "PAYMENTS_LANDING_URL": self.settings.landing,
            "PAYMENTS_REFERENCE_URL": self.settings.reference,
            "PAYMENTS_START_DATE": self.settings.start_date.isoformat(),
        }

    def verify(self) -> None:
        """Run `verify`, which no speed is bought from."""
        subprocess.run([PROGRAM, "verify", "--json"], env=self.of_commands, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def home(folder: Path, of_day: Path, first_day: str = DAY) -> Iterator[Home]:
    """Have a fresh home up, whose first partition is `first_day`."""
    settings = Settings(
        home=folder,
        landing_url=str(of_day / "landing"),
        reference_url=str(of_day / "reference"),
        start_date=date.fromisoformat(first_day),
    )
    with stack(settings) as endpoints:
        state = keeper.read_state(settings.home_dir)
        assert state is not None
        yield Home(settings, environment(endpoints, settings), state.postgres_port)


class Floor:
    """The same rows and files, without a rule held."""

    def __init__(self, of_day: Path, rows: Path) -> None:
        self.of_day, self.rows = of_day, rows
        self.tables: dict[str, pa.Table] = {}

    def keep(self, of: Home) -> None:
        """Keep what a day has inserted and written."""
        with of.connect() as connection:
            for table in (*_POSTING, *_SWEEP, *_TRAIL):
                query = _OPEN_ITEMS if table == "open_items" else f"SELECT * FROM payments.{table}"
                with (
                    (self.rows / table).open("wb") as out,
                    connection.cursor().copy(f"COPY ({query}) TO STDOUT") as rows,
                ):
                    for block in rows:
                        out.write(block)
        for path in sorted(Path(of.settings.storage).rglob("*.parquet")):
            self.tables[path.relative_to(of.settings.storage).as_posix()] = pq.read_table(path)

    def run(self, of: Home, folder: Path) -> dict[str, float]:
        """Read, write and copy; gives the seconds of each."""
        name = "floor"
        with of.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(name), sql.Identifier(postgres.MIGRATOR.name)
                )
            )
        migrate(postgres.url(of.settings.home_dir, postgres.MIGRATOR, name, of.port))
        checkpoint(of)
        started = time.perf_counter()
        for path in sorted(self.of_day.rglob("*.csv")):
            pa_csv.read_csv(path)
        read = time.perf_counter()
        for place, table in self.tables.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, target, compression="zstd")
        written = time.perf_counter()
        with of.connect(name) as connection:
            # Neither triggers nor foreign keys: rows and indexes alone.
            connection.execute("SET session_replication_role = replica")
            for tables in ((*_POSTING, *_TRAIL), _SWEEP):
                with connection.transaction(), connection.cursor() as cursor:
                    for table in tables:
                        with (
                            cursor.copy(f"COPY payments.{table} FROM STDIN") as copy,
                            (self.rows / table).open("rb") as rows,
                        ):
                            while block := rows.read(1 << 20):
                                copy.write(block)
        return {
            "read": read - started,
            "write": written - read,
            "copy": time.perf_counter() - written,
        }


def checkpoint(of: Home) -> None:
    """Have what was written before out of the way."""
    with of.connect() as connection:
        connection.execute("CHECKPOINT")


def run(matches: int = MATCHES, parties: int = PARTIES, rounds: int = ROUNDS, *, growth: bool = True) -> bool:
    """Measure; say whether every target is met."""
    met = []
    with tempfile.TemporaryDirectory(prefix="payments-bench-") as name:
        folder = Path(name)
        of_day, rows = folder / "day", folder / "rows"
        rows.mkdir()
        write_day(of_day, matches, PEOPLE, parties)
        floor = Floor(of_day, rows)
        jobs, floors = [], []
        lines = 0
        for number in range(rounds + 1):
            with home(folder / f"home-{number}", of_day) as of:
                checkpoint(of)
                job = run_steps(of.environment, DAY, TO_INSTRUCTIONS)
                assert not job["failed_checks"], job
                if number == 0:
                    floor.keep(of)
                    with of.connect() as connection:
                        found = connection.execute("SELECT count(*) FROM payments.ledger_entries").fetchone()
                    assert found is not None
                    lines = found[0]
                    of.verify()
                beside = floor.run(of, folder / f"written-{number}")
            note(f"big day, round {number}: {job['seconds']:.1f} s {job['steps']}; floor {beside}")
            if number:  # the first warms up
                jobs.append(job)
                floors.append(sum(beside.values()))
        seconds = statistics.median(job["seconds"] for job in jobs)
        floor_s = statistics.median(floors)
        posting_s = statistics.median(job["steps"]["ledger_entries"] for job in jobs)
        peak = max(job["peak_bytes"] for job in jobs)
        against = f"{matches} matches, {lines} ledger lines"
        met.append(
            say(
                "big_day",
                seconds,
                "s",
                target=FLOOR_TARGET,
                ratio=seconds / floor_s,
                against=f"{against}; floor {floor_s:.1f} s",
            )
        )
        met.append(
            say(
                "big_day_postings",
                lines / posting_s,
                "lines/s",
                target=POSTINGS_A_SECOND,
                against=f"{against}; the whole step, its checks too",
                at_least=True,
            )
        )
        met.append(
            say(
                "big_day_memory",
                peak / lines,
                "bytes/line",
                target=BYTES_A_LINE,
                against=f"{against}; the process that runs the day",
            )
        )
        if growth:
            small = folder / "small"
            write_day(small, matches // 10, PEOPLE, parties // 10)
            taken = []
            for number in range(rounds + 1):
                with home(folder / f"small-home-{number}", small) as of:
                    checkpoint(of)
                    taken.append(run_steps(of.environment, DAY, TO_INSTRUCTIONS)["seconds"])
            small_s = statistics.median(taken[1:])
            met.append(
                say(
                    "big_day_growth",
                    seconds / small_s,
                    "times",
                    target=GROWTH_TARGET,
                    against=f"a tenth of it, {small_s:.1f} s",
                )
            )
    return all(met)
