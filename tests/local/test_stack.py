"""Commands on one home share its servers; the last one, or its death, stops them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from payments_pipeline.domain.errors import ConfigurationError, StackError
from payments_pipeline.local import keeper, postgres, processes, stack
from payments_pipeline.settings import Settings

#: A command that uses the servers until its input ends.
USER = (
    "import sys; from pathlib import Path; from payments_pipeline.local import stack\n"
    "with stack.attached(Path(sys.argv[1]), ('postgres',)) as state:\n"
    "    print(state.keeper_pid, flush=True); sys.stdin.read()\n"
)


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def user_of(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", USER, str(home)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def keeper_of(user: subprocess.Popen[str]) -> int:
    assert user.stdout is not None
    return int(user.stdout.readline())


def end(user: subprocess.Popen[str]) -> None:
    user.communicate()


def settings_of(home: Path, **given: object) -> Settings:
    return Settings.model_validate({"home": home, "processor": "none", **given})


def test_a_command_finds_a_migrated_database_and_leaves_nothing_running(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    with stack.stack(settings_of(home)) as endpoints:
        with psycopg.connect(endpoints.postgres_url) as connection:
            assert connection.execute("SELECT count(*) FROM payments.journals").fetchone() == (0,)
        mark = endpoints.mark
        assert processes.marked(mark)
    assert processes.marked(mark) == []
    assert not keeper.is_kept(home)


def test_secrets_are_not_shown_with_the_endpoints(tmp_path: Path) -> None:
    own = {"postgres_url": SecretStr("postgresql://me:hush@host/db"), "processor_url": "http://processor"}
    endpoints = stack.locate(settings_of(tmp_path, processor_key=SecretStr("hush"), **own))
    assert "hush" not in repr(endpoints)


def test_two_commands_share_the_servers_and_the_first_to_end_takes_nothing_from_the_second(tmp_path: Path) -> None:
    first, second = user_of(tmp_path), user_of(tmp_path)
    try:
        assert keeper_of(first) == keeper_of(second)
        end(first)
        state = keeper.read_state(tmp_path)
        assert state is not None
        url = postgres.url(tmp_path, postgres.RUNTIME, postgres.BUSINESS_DATABASE, state.postgres_port)
        psycopg.connect(url).close()
    finally:
        end(first)
        end(second)
    assert processes.marked(state.mark) == []


def test_commands_that_come_and_go_at_once_always_find_servers(tmp_path: Path) -> None:
    found: list[bool] = []

    def come_and_go() -> None:
        for _ in range(4):
            with stack.attached(tmp_path, ("postgres",)) as state:
                assert state is not None
                url = postgres.url(tmp_path, postgres.RUNTIME, postgres.BUSINESS_DATABASE, state.postgres_port)
                psycopg.connect(url).close()
                found.append(True)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert not keeper.is_kept(tmp_path)


def test_the_last_command_takes_the_servers_with_it_even_when_killed(tmp_path: Path) -> None:
    user = user_of(tmp_path)
    keeper_of(user)
    state = keeper.read_state(tmp_path)
    assert state is not None
    user.kill()
    end(user)
    assert eventually(lambda: not keeper.is_kept(tmp_path))
    assert processes.marked(state.mark) == []
    assert "database system is shut down" in processes.last_lines(tmp_path / "logs" / "postgres.log")


def test_a_killed_server_is_started_again_with_everything_committed(tmp_path: Path) -> None:
    with stack.attached(tmp_path, ("postgres",)) as state:
        assert state is not None
        url = postgres.url(tmp_path, postgres.MIGRATOR, postgres.BUSINESS_DATABASE, state.postgres_port)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        server = int((tmp_path / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(server, signal.SIGKILL)

        def kept() -> bool:
            try:
                with psycopg.connect(url) as connection:
                    return connection.execute("SELECT n FROM kept").fetchone() == (42,)
            except psycopg.OperationalError:
                return False

        assert eventually(lambda: not Path(f"/proc/{server}").exists())
        assert eventually(kept)


def test_a_killed_keeper_leaves_no_server_and_the_next_command_finds_the_data(tmp_path: Path) -> None:
    user = user_of(tmp_path)
    pid = keeper_of(user)
    state = keeper.read_state(tmp_path)
    assert state is not None
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: processes.marked(state.mark) == [])
    end(user)
    with stack.attached(tmp_path, ("postgres",)) as again:
        assert again is not None
        assert again.mark != state.mark


def test_what_a_killed_keeper_left_is_ended_at_the_next_start_and_a_stranger_is_not(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "mark").write_text("left-behind\n")
    marked = {**os.environ, processes.MARK: keeper.command_mark("left-behind")}
    strange = {**os.environ, processes.MARK: "somebody-else"}
    left = subprocess.Popen(["sleep", "60"], env=marked)
    stranger = subprocess.Popen(["sleep", "60"], env=strange)
    try:
        with stack.attached(tmp_path, ("postgres",)):
            assert left.wait(5) != 0
            assert stranger.poll() is None
    finally:
        for each in (left, stranger):
            each.kill()
            each.wait()


def test_servers_of_ones_own_start_nothing(tmp_path: Path, database_url: str) -> None:
    own = settings_of(tmp_path / "home", postgres_url=SecretStr(database_url), processor_url="http://127.0.0.1:1")
    endpoints = stack.locate(own)
    assert endpoints.postgres_url == database_url
    assert endpoints.mark == ""
    assert endpoints.dagster_postgres_url == f"{database_url.replace('postgresql:', 'postgresql+psycopg2:')}_dagster"
    assert not (tmp_path / "home").exists()


def test_an_address_without_a_database_is_refused_in_words(tmp_path: Path) -> None:
    own = settings_of(tmp_path, postgres_url=SecretStr("postgresql://me@host"), processor_url="http://processor")
    with pytest.raises(ConfigurationError, match="names no database"):
        stack.locate(own)


def test_locating_starts_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="make up"):
        stack.locate(settings_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_children_get_addresses_but_no_login_of_an_approver_or_migrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYMENTS_APPROVER_URL", "postgresql://approver:hush@host/db")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    settings = settings_of(
        tmp_path,
        postgres_url=SecretStr("postgresql://runtime@host/db"),
        migrator_url=SecretStr("postgresql://migrator:hush@host/db"),
        approver_url=SecretStr("postgresql://approver:hush@host/db"),
        processor_url="http://processor",
    )
    variables = processes.child_environment(stack.environment(stack.locate(settings), settings), mark="m")
    assert variables["PAYMENTS_POSTGRES_URL"] == "postgresql://runtime@host/db"
    assert variables["PAYMENTS_HOME"] == str(tmp_path)
    assert variables["DAGSTER_HOME"] == str(tmp_path / "dagster")
    assert not any("hush" in value for value in variables.values())
    assert "PYTHONDONTWRITEBYTECODE" not in variables


def test_the_projects_dagster_yaml_wins_over_an_older_copy(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    copy = stack.dagster_home(settings) / "dagster.yaml"
    wanted = copy.read_text()
    copy.write_text("storage: {}\n")
    stack.dagster_home(settings)
    assert copy.read_text() == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_full_disk_is_one_sentence_and_nothing_is_started(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is forbidden here")
    try:
        (tmp_path / "stack").mkdir()
        with (tmp_path / "filler").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(tmp_path).free)
        with pytest.raises(StackError, match="No space left on device"), stack.attached(tmp_path, ("postgres",)):
            pass
        assert not keeper.is_kept(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_an_approvers_secret_is_only_read_when_it_is_asked_for(tmp_path: Path) -> None:
    with stack.attached(tmp_path, ("postgres",)):
        (tmp_path / "secrets" / "payments_approver_demo.password").rename(tmp_path / "elsewhere")
        endpoints = stack.locate(settings_of(tmp_path))
        with pytest.raises(StackError, match="payments_approver_demo"):
            _ = endpoints.approver_url
        (tmp_path / "elsewhere").rename(tmp_path / "secrets" / "payments_approver_demo.password")
        assert endpoints.approver_url is not None
        with psycopg.connect(endpoints.approver_url) as connection:
            assert connection.execute("SELECT session_user").fetchone() == ("payments_approver_demo",)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StackError, match="cannot be used"), stack.attached(tmp_path / "file" / below, ("postgres",)):
        pass


def test_a_stack_that_is_up_without_a_needed_server_says_so(tmp_path: Path) -> None:
    with (
        stack.attached(tmp_path, ("postgres",)),
        pytest.raises(StackError, match="up without sandbox"),
        stack.attached(tmp_path, ("postgres", "sandbox")),
    ):
        pass


def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(StackError, match="written by PostgreSQL 12"), stack.attached(tmp_path, ("postgres",)):
        pass
    assert eventually(lambda: not keeper.is_kept(tmp_path))


def test_the_sandbox_answers_with_a_key_of_its_own_and_comes_back_when_killed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, postgres_url=SecretStr("postgresql://unused@127.0.0.1:1/payments"))
    with stack.attached(tmp_path, ("sandbox",)) as state:
        assert state is not None
        port = int(state.sandbox_url.rpartition(":")[2])
        endpoints = stack.locate(settings)
        assert endpoints.processor_url == state.sandbox_url
        key_file = tmp_path / "secrets" / "sandbox.key"
        assert endpoints.processor_key == key_file.read_text().strip()
        assert key_file.stat().st_mode & 0o777 == 0o600
        [sandbox] = processes.marked(state.mark)
        os.kill(sandbox, signal.SIGKILL)
        assert eventually(lambda: processes.marked(state.mark) not in ([], [sandbox]))
        assert eventually(lambda: keeper.answers(port, "/v1/health"))
    assert processes.marked(state.mark) == []
