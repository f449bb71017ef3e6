"""Connections that a process keeps: lent one at a time, without locks, and tried before use after a while."""

import psycopg
import pytest

from payments_pipeline.storage import postgres
from payments_pipeline.storage.postgres import Lock, close_connections, connect, session_lock


def pid(connection: psycopg.Connection) -> int:
    (found,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    return int(found)


def locks(url: str) -> int:
    with psycopg.connect(url) as observer:
        (count,) = observer.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (int(Lock.DAY),),
        ).fetchone() or (0,)
    return int(count)


def test_a_lock_that_outlived_its_block_is_given_back_with_the_connection(database_url: str) -> None:
    with connect(database_url) as connection:
        block = session_lock(connection, Lock.DAY, 1)
        block.__enter__()
        assert locks(database_url) == 1
    assert locks(database_url) == 0
    with connect(database_url) as other, session_lock(other, Lock.DAY, 1):
        assert locks(database_url) == 1
    assert locks(database_url) == 0
    close_connections()


@pytest.mark.parametrize("trusted_s", [0.0, 3600.0])
def test_a_connection_that_the_server_ended_between_two_uses_is_replaced(
    database_url: str, monkeypatch: pytest.MonkeyPatch, trusted_s: float
) -> None:
    monkeypatch.setattr(postgres, "_TRUST_IDLE_S", trusted_s)
    with connect(database_url) as connection:
        first = pid(connection)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (first,))
    with connect(database_url) as connection:
        assert pid(connection) != first
    close_connections()
