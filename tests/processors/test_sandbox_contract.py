"""The sandbox's adapter against the sandbox's own process, over HTTP."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import pytest
from contract import ProcessorContract
from sandbox_process import API_KEY, SandboxProcess, request, running_sandbox

from payments_pipeline.processors.base import PayoutProcessor, PayoutRequest
from payments_pipeline.processors.registry import open_processor
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor

TOKENS = {
    "settles": "tok_club_1",
    "declined": "tok_test_decline",
    "fails": "tok_test_fail_1",
    "returned": "tok_test_return_1d",
    "twice": "tok_test_twice",
    "double": "tok_test_double",
    "fee": "tok_test_fee_20",
}
FAULTS = {
    "lose_request": {"kind": "drop_before"},
    "lose_answer": {"kind": "drop_after"},
    "stall_answer": {"kind": "delay_after", "seconds": 1.5},
    "garble_answer": {"kind": "malformed"},
    "fail_after": {"kind": "status_after", "status": 500},
    "busy": {"kind": "status", "status": 429},
    "down": {"kind": "status", "status": 503},
}


@dataclass
class SandboxBench:
    sandbox: SandboxProcess

    def processor(self, *, timeout_s: float = 10) -> PayoutProcessor:
        return SandboxProcessor(self.sandbox.url, API_KEY, timeout_s)

    def processor_with_wrong_key(self) -> PayoutProcessor:
        return open_processor("sandbox", self.sandbox.url, "wrong-key")

    def request(self, key: str, outcome: str, execute_on: date, amount_minor: int, direction: str) -> PayoutRequest:
        return request(
            key,
            token=TOKENS[outcome],
            execute_on=execute_on.isoformat(),
            amount_minor=amount_minor,
            direction=direction,
        )

    def disturb(self, how: str) -> None:
        self.sandbox.fault(**FAULTS[how])

    def carried_out(self, key: str) -> int:
        return sum(payment["idempotency_key"] == key for payment in self.sandbox.executed())

    def expire(self, key: str) -> None:
        self.sandbox.expire(key)

    def stop(self) -> None:
        self.sandbox.stop()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as sandbox:
        yield sandbox


@pytest.fixture
def bench(process: SandboxProcess) -> SandboxBench:
    if process.process is None:
        process.start()
    process.behave()
    return SandboxBench(process)


class TestSandboxContract(ProcessorContract):
    """Every law of the contract."""
