"""The sandbox killed at any moment: what it acknowledged is there, once."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import aiohttp
import orjson
import pytest
from sandbox_process import API_KEY, SandboxProcess, payment, running_sandbox

CONCURRENCY = 48


class Load:
    """Clients that submit under ever new keys until the processor dies under them."""

    def __init__(self, sandbox: SandboxProcess, name: str) -> None:
        self.sandbox = sandbox
        self.name = name
        self.begun: list[str] = []
        self.acknowledged: dict[str, str] = {}

    async def run_until_killed(self, acknowledged_at_least: int) -> None:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(self.sandbox.url, headers=headers, timeout=timeout) as session:
            clients = [asyncio.create_task(self._submit(session)) for _ in range(CONCURRENCY)]
            while len(self.acknowledged) < acknowledged_at_least:
                await asyncio.sleep(0.001)
                assert not all(client.done() for client in clients), self.sandbox.log.read_text()[-2000:]
            self.sandbox.kill()
            await asyncio.gather(*clients)

    async def _submit(self, session: aiohttp.ClientSession) -> None:
        while True:
            key = f"{self.name}-{len(self.begun)}"
            self.begun.append(key)
            try:
                async with session.post(
                    "/v1/payments", data=body_of(key), headers={"Idempotency-Key": key}
                ) as response:
                    answer = orjson.loads(await response.read())
                    assert response.status == 201
            except (aiohttp.ClientError, TimeoutError):
                return
            self.acknowledged[key] = answer["id"]


def body_of(key: str) -> bytes:
    return orjson.dumps(payment(reference=key, amount_minor=1))


@pytest.mark.parametrize("seed", range(3))
def test_killed_in_the_middle_of_load_it_has_lost_nothing_it_acknowledged(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    begun: list[str] = []
    acknowledged: dict[str, str] = {}
    with running_sandbox(tmp_path) as sandbox:
        for number in range(2):
            load = Load(sandbox, f"load-{number}")
            asyncio.run(load.run_until_killed(chance.randint(1, 400)))
            begun += load.begun
            acknowledged |= load.acknowledged
            sandbox.start()
            paid = {row["idempotency_key"]: row["id"] for row in sandbox.executed()}
            assert acknowledged.items() <= paid.items()
            assert paid.keys() <= set(begun)
        # Whatever was under way may be sent again under its key: all that was begun is then paid once.
        for key in [key for key in begun if key not in acknowledged] + random.Random(seed).sample(
            sorted(acknowledged), 1
        ):
            status, answer = sandbox.call("POST", "/v1/payments", body_of(key), key=key)
            assert status == 201
            assert acknowledged.setdefault(key, answer["id"]) == answer["id"]
        assert Counter(row["idempotency_key"] for row in sandbox.executed()) == Counter(begun)
        report = sandbox.get("/v1/reports/2024-03-02")
        assert report["balances"] == [{"currency": "GBP", "opening_minor": 0, "closing_minor": -len(begun)}]
        assert report["entry_count"] == len({entry["entry_reference"] for entry in report["entries"]}) == len(begun)
