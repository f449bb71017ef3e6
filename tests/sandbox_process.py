"""The sandbox processor as a real process, for tests of it, of its adapter, and of whatever calls it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import orjson

from payments_pipeline.processors.base import Direction, PayoutRequest

API_KEY = "test-key-0123456789"


@dataclass
class SandboxProcess:
    """One sandbox with a database file; `start` again after `kill` or `stop` goes on with the same file and port."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "sandbox.log"

    def start(self) -> None:
        key_file = self.folder / "sandbox.key"
        key_file.write_text(f"{API_KEY}\n")
        command = ["--db", str(self.folder / "sandbox.db"), "--port", str(self.port), "--api-key-file", str(key_file)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "payments_pipeline.local.sandbox", *command, *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("sandbox ready on http://127.0.0.1:"), self.log.read_text()
        self.port = int(ready.rpartition(":")[2])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(how)
        code = self.process.wait(10)
        self.process.stdout.close()
        self.process = None
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    # One request, one connection: nothing that a test does here is met by a connection left over from before.

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, api_key: str | None = API_KEY
    ) -> tuple[int, Any]:
        """Call it; give status and JSON. A body that is no bytes is encoded."""
        headers = {"Idempotency-Key": key} if key is not None else {}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                method, path, body if body is None or isinstance(body, bytes) else orjson.dumps(body), headers
            )
            response = connection.getresponse()
            return response.status, orjson.loads(response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", path)
        assert status == 200, answer
        return answer

    def pay(self, key: str, **fields: Any) -> tuple[int, Any]:
        return self.call("POST", "/v1/payments", payment(**fields), key=key)

    def fund(self, key: str, amount_minor: int, day: str, subject: str = "pot:premier", currency: str = "GBP") -> None:
        content = {"currency": currency, "amount_minor": amount_minor, "subject": subject, "date": day}
        status, answer = self.call("POST", "/v1/test_helpers/fundings", content, key=key)
        assert status == 201, answer

    def fault(self, kind: str, **fields: Any) -> None:
        status, answer = self.call("POST", "/v1/test_helpers/faults", {"kind": kind, **fields})
        assert status == 200, answer

    def behave(self) -> None:
        self.call("DELETE", "/v1/test_helpers/faults")

    def set_today(self, day: str) -> None:
        assert self.call("POST", "/v1/test_helpers/today", {"today": day}) == (200, {"today": day})

    def expire(self, key: str, **when: Any) -> None:
        status, answer = self.call("POST", "/v1/test_helpers/expire_key", {"idempotency_key": key, **when})
        assert status == 200, answer

    def traffic(self) -> dict[str, Any]:
        """Give what it has been asked, as it counts it."""
        return dict(self.get("/v1/test_helpers/traffic"))

    def executed(self) -> list[dict[str, Any]]:
        """Give its own statement of every payment that it carried out."""
        return list(self.get("/v1/books")["payments"])

    def entries(self, day: str) -> list[dict[str, Any]]:
        return list(self.get(f"/v1/reports/{day}")["entries"])


def until(is_so: Callable[[], bool], deadline_s: float = 60) -> None:
    """Wait for what another process is about to do; fails when it has not done so by the deadline."""
    end_s = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end_s, "it never came to pass"
        time.sleep(0.01)


@contextmanager
def running_sandbox(folder: Path, *options: str) -> Iterator[SandboxProcess]:
    """Run a sandbox on a free port, its files in `folder`, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    sandbox = SandboxProcess(folder, options)
    sandbox.start()
    try:
        yield sandbox
    finally:
        if sandbox.process is not None:
            sandbox.stop()


def payment(**fields: Any) -> dict[str, Any]:
    """Give a submission's content, valid as it is."""
    return {
        "direction": "credit",
        "amount_minor": 12_345,
        "currency": "GBP",
        "token": "tok_club_1",
        "execute_on": "2024-03-02",
        "reference": "instruction-1",
        **fields,
    }


def request(key: str, **fields: Any) -> PayoutRequest:
    """Give the same as the contract's request."""
    content = payment(reference=key) | fields
    return PayoutRequest(
        instruction_id=content["reference"],
        idempotency_key=key,
        direction=Direction(content["direction"]),
        amount_minor=content["amount_minor"],
        currency=content["currency"],
        token=content["token"],
        execute_on=date.fromisoformat(content["execute_on"]),
    )
