"""The embedded server on real processes: what it creates, who may do what, what a crash leaves."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from payments_pipeline.domain.errors import StackError
from payments_pipeline.local import postgres, processes
from payments_pipeline.local.postgres import EmbeddedPostgres


def mark_of(home: Path) -> str:
    return f"test {home}"


@contextmanager
def started(home: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(home, mark=mark_of(home))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with started(tmp_path_factory.mktemp("a home with spaces")) as server:
        yield server


def connect(
    server: EmbeddedPostgres, login: postgres.Login, database: str = postgres.BUSINESS_DATABASE
) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(postgres.url(server.home, login, database, server.port), autocommit=True)


def one(connection: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_every_login_has_a_password_file_of_its_own_that_only_its_owner_reads(server: EmbeddedPostgres) -> None:
    files = {path.stem: path for path in (server.home / "secrets").glob("*.password")}
    assert set(files) == {"postgres", *(login.name for login in postgres.LOGINS)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert stat.S_IMODE((server.home / "secrets").stat().st_mode) == 0o700
    assert len({path.read_text() for path in files.values()}) == len(files)


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{server.port}/payments")


def test_the_server_listens_on_the_loopback_address_only_and_on_no_socket_file(server: EmbeddedPostgres) -> None:
    with connect(server, postgres.SUPERUSER) as connection:
        assert one(connection, "SHOW listen_addresses") == "127.0.0.1"
        assert one(connection, "SHOW unix_socket_directories") == ""


def test_money_is_committed_durably(server: EmbeddedPostgres) -> None:
    for login in (postgres.MIGRATOR, postgres.RUNTIME, postgres.APPROVER):
        with connect(server, login) as connection:
            assert one(connection, "SHOW synchronous_commit") == "on"
            assert one(connection, "SHOW fsync") == "on"
            assert one(connection, "SHOW full_page_writes") == "on"


def test_each_login_has_its_group_and_none_but_the_migrator_may_create(server: EmbeddedPostgres) -> None:
    with connect(server, postgres.RUNTIME) as connection:
        assert one(connection, "SELECT pg_has_role(current_user, 'payments_runtime', 'MEMBER')") is True
        assert one(connection, "SELECT pg_has_role(current_user, 'payments_approver', 'MEMBER')") is False
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE public.mine (n int)")
    with connect(server, postgres.APPROVER) as connection:
        assert one(connection, "SELECT pg_has_role(current_user, 'payments_approver', 'MEMBER')") is True
    with connect(server, postgres.MIGRATOR) as connection, connection.transaction(force_rollback=True):
        connection.execute("CREATE SCHEMA theirs")


@pytest.mark.parametrize("login", [postgres.RUNTIME, postgres.APPROVER])
def test_no_business_login_reaches_dagsters_database(server: EmbeddedPostgres, login: postgres.Login) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(server, login, postgres.DAGSTER_DATABASE)


def test_dagsters_login_does_not_reach_the_business_database(server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(server, postgres.DAGSTER)


def test_a_committed_row_survives_a_killed_server(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        with connect(server, postgres.MIGRATOR) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (42)")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        server.start()
        with connect(server, postgres.MIGRATOR) as connection:
            assert one(connection, "SELECT n FROM kept") == 42


def test_a_lock_file_whose_number_now_belongs_to_a_stranger_does_not_hold_up_a_start(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        assert server.process is not None
        server.process.kill()
        server.process.wait()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        lock_file = server.data / "postmaster.pid"
        lines = lock_file.read_text().split("\n")
        deadline = time.monotonic() + 5
        while processes.marked(mark_of(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        lock_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        with started(tmp_path):
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_somebody_else_runs_on_the_folder_is_left_alone(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        with pytest.raises(StackError, match="did not start is using"):
            EmbeddedPostgres(tmp_path, mark="another").start()
        with connect(server, postgres.RUNTIME) as connection:
            assert one(connection, "SELECT 1") == 1


def test_the_port_is_kept_and_another_is_taken_where_it_is_in_use(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        first = server.port
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", first))
        taker.listen()
        with started(tmp_path) as server, connect(server, postgres.RUNTIME) as connection:
            assert server.port != first
            second = one(connection, "SHOW port")
    with started(tmp_path) as server:
        assert str(server.port) == second


def test_a_start_that_was_interrupted_while_creating_is_begun_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "initialising"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with started(tmp_path) as server, connect(server, postgres.RUNTIME) as connection:
        assert one(connection, "SELECT 1") == 1
    assert not half.exists()


def test_a_folder_of_another_release_is_named_and_not_touched(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(StackError, match="written by PostgreSQL 12"):
        EmbeddedPostgres(tmp_path, mark=mark_of(tmp_path)).start()
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_lost_password_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="Put the file back"):
        postgres.password(tmp_path, postgres.RUNTIME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_without_user_namespaces_root_runs_the_server_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not tmp_path: pytest's folders are closed to `nobody`.
    with tempfile.TemporaryDirectory(prefix="payments ") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(postgres, "_namespaced", lambda: None)
        with started(Path(folder)) as server:
            assert server.process is not None
            assert Path(f"/proc/{server.process.pid}").stat().st_uid == postgres.nobody()
            with connect(server, postgres.RUNTIME) as connection:
                assert one(connection, "SELECT 1") == 1
        with started(Path(folder)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_a_folder_that_nobody_cannot_reach_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_namespaced", lambda: None)
    tmp_path.chmod(0o700)
    with pytest.raises(StackError, match="nobody"):
        EmbeddedPostgres(tmp_path, mark=mark_of(tmp_path)).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_full_disk_is_one_sentence_and_the_data_are_intact(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is forbidden here")
    try:
        with started(tmp_path) as server, connect(server, postgres.MIGRATOR) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        filler = tmp_path / "filler"
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(tmp_path).free)
        with pytest.raises(StackError, match="disk is full"):
            EmbeddedPostgres(tmp_path, mark=mark_of(tmp_path)).start()
        filler.unlink()
        with started(tmp_path) as server, connect(server, postgres.MIGRATOR) as connection:
            assert one(connection, "SELECT n FROM kept") == 42
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_server_ends_with_the_program_that_started_it_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from payments_pipeline.local.postgres import EmbeddedPostgres\n"
        f"server = EmbeddedPostgres(Path({str(tmp_path)!r}), mark={mark_of(tmp_path)!r}); server.start()\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    assert processes.marked(mark_of(tmp_path))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while processes.marked(mark_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes.marked(mark_of(tmp_path)) == []
