"""Child processes that never outlive their stack.

Belongs here: starting, marking, watching, ending and finding processes, and the locks and small files that name them.
Does not belong here: what any of the processes does.

Three nets lie below one another. A child is stopped in order by whoever started it. Should that one be killed, the
kernel signals the child (parent-death signal). Should a grandchild be left (a Dagster run's worker), it is found by
the mark in its environment: a random value per start of a stack, so that no stranger is ever taken for ours, whatever
number the kernel gave it.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from payments_pipeline.domain.errors import StackError

#: Name of the environment variable that marks every process of a stack.
MARK = "PAYMENTS_STACK_MARK"
#: A log longer than this is put aside (one generation) when its writer starts.
LOG_LIMIT_BYTES = 10_000_000
#: Secrets that only a person's own command may hold, and what makes Python slow: never handed to servers.
_NOT_HANDED_DOWN = ("PAYMENTS_APPROVER_URL", "PAYMENTS_MIGRATOR_URL", "PYTHONDONTWRITEBYTECODE")
_PR_SET_PDEATHSIG = 1
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def child_environment(overlay: Mapping[str, str], *, mark: str) -> dict[str, str]:
    """Give the environment of a marked child: this process's own, less what servers must not have, plus `overlay`."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_DOWN}
    return {**inherited, **overlay, MARK: mark}


def spawn(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    death_signal: signal.Signals = signal.SIGINT,
    cwd: Path | None = None,
    user: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, its output appended to `log`.

    The child gets `death_signal` when this process dies, and default handlers: a shell without job control starts
    background jobs with SIGINT ignored, and that is inherited. `user`, where given, is the uid and gid to run as.
    """
    parent = os.getpid()

    def prepare() -> None:
        for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:  # it died before the kernel was told
                os._exit(1)

    put_aside_when_long(log)
    with log.open("ab") as out:
        return subprocess.Popen(  # noqa: S603  # no shell, and every command is the stack's own
            [str(part) for part in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=prepare,  # safe: the keeper and the supervisor have a single thread
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


def put_aside_when_long(log: Path) -> None:
    """Keep one older generation of a log that has grown past the limit."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def last_lines(log: Path, *, count: int = 5) -> str:
    """Give the end of a log on one line, for an error message; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
    return " | ".join([line for line in lines if line][-count:])


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], *, name: str, log: Path, timeout_s: float
) -> None:
    """Wait for a child to be ready, and notice at once if it dies instead.

    Raises:
        StackError: it ended, or was not ready in time; quotes the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None:
            raise StackError(f"{name} ended while starting (exit {process.returncode}): {last_lines(log)}. Log: {log}.")
        if time.monotonic() > deadline:
            raise StackError(f"{name} was not ready after {timeout_s:.0f} s: {last_lines(log)}. Log: {log}.")
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes], *, timeout_s: float, how: signal.Signals = signal.SIGINT) -> bool:
    """End a child; after `timeout_s` the hard way. Says whether it went by itself."""
    if process.poll() is not None:
        return True
    process.send_signal(how)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def marked(mark: str) -> list[int]:
    """Find the live processes of ours whose environment carries exactly this mark (Linux; elsewhere none).

    Python's resource trackers are left out: deaf to signals, they end by themselves with the process they serve.
    """
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ") if _LINUX else ():
        try:
            carries = wanted in entry.read_bytes().split(b"\0")
            carries = carries and b"multiprocessing.resource_tracker" not in entry.with_name("cmdline").read_bytes()
        except OSError:  # ended meanwhile, or not ours to read
            continue
        pid = int(entry.parent.name)
        if carries and pid != os.getpid():
            found.append(pid)
    return found


def end_marked(mark: str, *, spare: Iterable[int] = (), timeout_s: float = 15, hard: bool = True) -> list[int]:
    """End what carries `mark`, gently first; gives the processes that were left even so.

    Args:
        mark: the mark of one start of one stack.
        spare: processes that their own parent ends.
        timeout_s: how long a gentle end may take.
        hard: kill what is then left; False for a database, which must never be killed to save time.
    """
    spared = set(spare)

    def rest() -> list[int]:
        return [pid for pid in marked(mark) if pid not in spared]

    asked: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while (left := rest()) and time.monotonic() < deadline:
        for pid in set(left) - asked:
            _signal(pid, signal.SIGINT)
        asked.update(left)
        time.sleep(0.05)
    if left and hard:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while (left := rest()) and time.monotonic() < deadline:
            time.sleep(0.02)
    return left


def _signal(pid: int, which: signal.Signals) -> None:
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        return  # it was quicker


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Take a lock that the kernel gives back when this process dies, however it dies; None where it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return None
        raise
    return descriptor


@contextmanager
def lock(path: Path, *, timeout_s: float, meaning: str) -> Iterator[None]:
    """Hold a lock for a moment, waiting for its present holder.

    Raises:
        StackError: it was not to be had in time; says what the holder is doing.
    """
    deadline = time.monotonic() + timeout_s
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise StackError(f"{meaning} is taking longer than {timeout_s:.0f} s. Try again, or end it: lock {path}.")
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small private file so that a reader, or a crash, sees the old text or the new one."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)  # 0600
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def kept_port(path: Path) -> int:
    """Give the port written in `path` if it is free, else a free one, which is then written there."""
    try:
        port = int(path.read_text("ascii"))
    except (FileNotFoundError, ValueError):
        port = 0
    if port and port_is_free(port):
        return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    write_whole(path, f"{port}\n")
    return port
