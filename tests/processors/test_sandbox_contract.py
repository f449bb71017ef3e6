"""The sandbox's adapter against the sandbox's own process, over HTTP."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from contract import ProcessorContract
from sandbox_process import API_KEY, SandboxProcess, request, running_sandbox

from payments_pipeline.domain.errors import PayoutOutcomeUnknownError
from payments_pipeline.processors.base import LookUpStatus, PayoutProcessor, PayoutRequest
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
    "cut_answer": {"kind": "cut"},
    "answer_another": {"kind": "misaddressed"},
    "fail_after": {"kind": "status_after", "status": 500},
    "time_out": {"kind": "status_after", "status": 408},
    "gateway": {"kind": "gateway", "status": 502},
    "gateway_after": {"kind": "gateway_after", "status": 502},
    "in_progress": {"kind": "in_progress", "on": "payments", "seconds": 600},
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

    def settle_down(self) -> None:
        self.sandbox.behave()

    def pay_twice(self) -> None:
        self.sandbox.fault("pays_twice", on="payments")

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


def test_connections_left_over_from_before_a_restart_are_a_doubt_and_never_pay_twice(tmp_path: Path) -> None:
    async def submit_before_and_after(sandbox: SandboxProcess) -> None:
        async with SandboxProcessor(sandbox.url, API_KEY, 5) as processor:
            requests = [request(f"kept-{number}") for number in range(30)]
            bodies = [(processor.encode(one), one.idempotency_key) for one in requests]
            await asyncio.gather(*(processor.submit(body, key) for body, key in bodies[:15]))
            sandbox.kill()
            sandbox.start()
            for body, key in bodies:
                try:
                    await processor.submit(body, key)
                except PayoutOutcomeUnknownError:
                    assert (await processor.look_up(key)).status is not LookUpStatus.REJECTED
                    await processor.submit(body, key)

    with running_sandbox(tmp_path) as sandbox:
        asyncio.run(submit_before_and_after(sandbox))
        assert Counter(row["idempotency_key"] for row in sandbox.executed()) == {f"kept-{n}": 1 for n in range(30)}
