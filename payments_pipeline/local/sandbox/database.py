"""The sandbox's SQLite file: its tables, connections that lose nothing, many requests in one commit.

Belongs here: DDL, pragmas, transactions. Does not belong here: what a request does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Version of the tables below, kept in the file.
VERSION = 4
_TABLES = """
CREATE TABLE payments (
    serial INTEGER PRIMARY KEY, payment_id TEXT NOT NULL UNIQUE, idempotency_key TEXT NOT NULL, direction TEXT NOT NULL,
    amount_minor INTEGER NOT NULL, currency TEXT NOT NULL, token TEXT NOT NULL, execute_on TEXT NOT NULL,
    reference TEXT NOT NULL, accepted_at TEXT NOT NULL) STRICT;
-- What was answered under each key. A key is of one route, so a funding's never stands for a payment's.
CREATE TABLE answers (
    route TEXT NOT NULL, idempotency_key TEXT NOT NULL, body_sha256 TEXT NOT NULL, status INTEGER NOT NULL,
    body BLOB NOT NULL, payment_id TEXT, first_seen_us INTEGER NOT NULL, uses INTEGER NOT NULL,
    PRIMARY KEY (route, idempotency_key)) STRICT, WITHOUT ROWID;
-- Every report line there will be, written when its payment is accepted; it shows once its date has come.
CREATE TABLE entries (
    entry_reference TEXT NOT NULL, report_date TEXT NOT NULL, kind TEXT NOT NULL, idempotency_key TEXT,
    payment_id TEXT, amount_minor INTEGER NOT NULL, currency TEXT NOT NULL, subject TEXT, reason TEXT,
    occurred_at TEXT NOT NULL, copies INTEGER NOT NULL,
    PRIMARY KEY (report_date, entry_reference)) STRICT, WITHOUT ROWID;
CREATE INDEX entries_by_payment ON entries (payment_id);
-- Kept as entries are written, so that no report ever sums up all that went before.
CREATE TABLE daily_cash (
    report_date TEXT NOT NULL, currency TEXT NOT NULL, amount_minor INTEGER NOT NULL,
    PRIMARY KEY (report_date, currency)) STRICT, WITHOUT ROWID;
CREATE TABLE daily_digests (
    report_date TEXT PRIMARY KEY, entry_count INTEGER NOT NULL, digest TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE clock (today TEXT NOT NULL) STRICT;
"""
#: What a file of each older version lacks.
_SINCE = {
    2: """
-- Keys that die when the processor's date comes to `dies_on`, if their lifetime has not ended before.
CREATE TABLE key_ends (
    route TEXT NOT NULL, idempotency_key TEXT NOT NULL, dies_on TEXT NOT NULL,
    PRIMARY KEY (route, idempotency_key)) STRICT, WITHOUT ROWID;
""",
    3: """
-- Of each batch: the lines of one kind and currency of a date.
DROP TABLE daily_cash;
CREATE TABLE daily_cash (
    report_date TEXT NOT NULL, kind TEXT NOT NULL, currency TEXT NOT NULL, amount_minor INTEGER NOT NULL,
    PRIMARY KEY (report_date, kind, currency)) STRICT, WITHOUT ROWID;
INSERT INTO daily_cash SELECT report_date, kind, currency, sum(amount_minor) FROM entries GROUP BY 1, 2, 3;
-- What reports say that is not so, while the entries stay as they are.
CREATE TABLE misreports (
    serial INTEGER PRIMARY KEY, kind TEXT NOT NULL, report_date TEXT NOT NULL, entry_reference TEXT,
    minor INTEGER) STRICT;
""",
}


class WrongFileError(Exception):
    """The file is no database of this sandbox; its text says what to do."""


class Database:
    """One connection; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, make it where there is none.

        Raises:
            WrongFileError: it was written by something else.
        """
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._prepare(path)
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, path: Path) -> None:
        execute = self.connection.execute
        try:
            execute("PRAGMA journal_mode = WAL")
            # An answer leaves only for what a power cut cannot take back.
            execute("PRAGMA synchronous = FULL")
            self.connection.create_function("add_digests", 2, add_digests, deterministic=True)
            execute("BEGIN IMMEDIATE")
            version = execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
                for statement in _TABLES.split(";\n"):
                    execute(statement)
                version = min(_SINCE)
            while version in _SINCE:
                for statement in _SINCE[version].split(";\n"):
                    execute(statement)
                version += 1
                execute(f"PRAGMA user_version = {version}")
            execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise WrongFileError(
                f"{path} cannot be used: {error}. Name another file, or move this one away."
            ) from error
        if version != VERSION:
            raise WrongFileError(
                f"{path} was written by another version ({version}, not {VERSION}). Move it away: a new one is made."
            )

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def at_one_moment(self, read: Callable[[], T]) -> T:
        """Read as of one moment, however many statements that takes and whatever is written meanwhile."""
        self.connection.execute("BEGIN")
        try:
            return read()
        finally:
            self.connection.execute("ROLLBACK")

    def do(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Do the work of several requests in one transaction, for `commit` to make durable.

        Raises:
            Exception: what any of them raised, or the database; nothing of all was done.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            return [work() for work in works]
        except BaseException:
            self._roll_back()
            raise

    def commit(self) -> None:
        """Commit, and return once the disk has it; this is the only step that waits for the disk."""
        try:
            self.connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def each_alone(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Do and commit each request's work alone, so that a fault of one is never another's; a fault is its result."""
        results: list[T | Exception] = []
        for work in works:
            try:
                result = self.do([work])
                self.commit()
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                results.append(error)
            else:
                results += result
        return results

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


def add_digests(one: str, other: str) -> str:
    """Add two digests of 64 hexadecimal digits, modulo 2**256: the order of many never matters."""
    return f"{(int(one, 16) + int(other, 16)) % 2**256:064x}"
