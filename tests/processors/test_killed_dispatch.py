"""A dispatching process killed again and again, against a sandbox process: the next one goes on where it was."""

import multiprocessing
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from money_zone import NEXT, MoneyZone, parties_frame, policy
from sandbox_process import API_KEY, running_sandbox

from payments_pipeline.processors.sandbox.adapter import SandboxProcessor

COUNT, KILLS = 200, 3
NAMES = [f"p{number}" for number in range(COUNT)]
PARTIES = parties_frame(**{name: {"payout_token": f"tok_{name}", "collection_token": f"tok_{name}"} for name in NAMES})
SMALL_BATCHES = policy(dispatch={"batch_size": 10})


def dispatch(database_url: str, sandbox_url: str) -> None:
    MoneyZone(database_url).dispatch(PARTIES, SandboxProcessor(sandbox_url, API_KEY), NEXT, SMALL_BATCHES)


@pytest.mark.rule("dispatch/killed")
def test_a_killed_dispatch_continues_where_it_was_and_each_instruction_is_carried_out_once(
    database, tmp_path: Path
) -> None:
    zone = MoneyZone(database.url)
    zone.owe(**dict.fromkeys(NAMES, 100))
    zone.sweep(PARTIES)
    jitter = random.Random(20)
    killed_at = []
    with running_sandbox(tmp_path) as sandbox:
        for kill in range(1, KILLS + 1):
            process = multiprocessing.get_context("spawn").Process(target=dispatch, args=(zone.url, sandbox.url))
            process.start()
            deadline = time.monotonic() + 30
            while len(sandbox.executed()) < kill * COUNT // (KILLS + 2) and process.is_alive():
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(jitter.uniform(0, 0.03))
            process.kill()
            process.join(10)
            assert process.exitcode == -signal.SIGKILL
            killed_at.append(len(sandbox.executed()))
        assert 0 < killed_at[0] < COUNT, killed_at
        dispatch(zone.url, sandbox.url)
        carried_out = Counter(row["idempotency_key"] for row in sandbox.executed())
    assert set(carried_out) == {row[0] for row in zone.rows("SELECT instruction_id::text FROM payout_instructions")}
    assert (len(carried_out), set(carried_out.values())) == (COUNT, {1})
    assert Counter(zone.states().values()) == {"submitted": COUNT}
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == COUNT
    assert zone.value("SELECT count(DISTINCT (instruction_id, request_sha256)) FROM payout_attempts") == COUNT
    assert zone.party_balances_disagree() == []
