"""Dispatch through the real adapter to a sandbox told to misbehave: money moves once at most, all is accounted for."""

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from money_zone import NEXT, MoneyZone, parties_frame, policy
from sandbox_process import API_KEY, SandboxProcess, running_sandbox

from payments_pipeline.processors.dispatch import Dispatched
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor

NAMES = ("a", "b", "c", "d")
PARTIES = parties_frame(**{name: {"payout_token": f"tok_{name}", "collection_token": f"tok_{name}"} for name in NAMES})
ONCE = policy(dispatch={"retries": 0})
LATER = [NEXT + dt.timedelta(days=number) for number in range(1, 4)]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    """Books of its own for each test: instructions of the same day have the same keys in every one."""
    with running_sandbox(tmp_path) as sandbox:
        yield sandbox


@pytest.fixture
def zone(database) -> MoneyZone:
    """a, b and c are owed and d owes; four instructions are approved."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, b=500, c=300, d=-400)
    zone.sweep(PARTIES)
    return zone


def dispatch(zone: MoneyZone, sandbox: SandboxProcess, day: dt.date = NEXT) -> Dispatched:
    return zone.dispatch(PARTIES, SandboxProcessor(sandbox.url, API_KEY, 0.5), day, ONCE)


def times_carried_out(zone: MoneyZone, sandbox: SandboxProcess) -> Counter[str]:
    ours = {row[0] for row in zone.rows("SELECT instruction_id::text FROM payout_instructions")}
    carried_out = Counter(row["idempotency_key"] for row in sandbox.executed())
    assert set(carried_out) <= ours
    return carried_out


UNAVAILABLE = [("status", {"status": status}) for status in (429, 503)]
UNKNOWN = [
    *(("status", {"status": status}) for status in (408, 500, 502, 504)),
    *(("status_after", {"status": status}) for status in (408, 500)),
    *(("gateway", {"status": status}) for status in (502, 503)),
    ("gateway_after", {"status": 502}),
    ("drop_before", {}),
    ("drop_after", {}),
    ("delay_after", {"seconds": 0.8}),
    ("malformed", {}),
    ("cut", {}),
    ("misaddressed", {}),
    ("html", {}),
    ("empty", {}),
    ("shapeless", {}),
    ("drip", {"seconds": 0.1}),
]


@pytest.mark.rule("dispatch/bad-one")
@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [*((*fault, "submitting") for fault in UNAVAILABLE), *((*fault, "unknown") for fault in UNKNOWN)],
    ids=str,
)
def test_a_fault_of_one_holds_up_no_other_and_the_next_dispatch_ends_it_without_paying_twice(
    zone: MoneyZone, sandbox: SandboxProcess, kind: str, fields: dict[str, Any], expected: str
) -> None:
    sandbox.fault(kind, on="payments", **fields)
    done = dispatch(zone, sandbox)
    assert (done.acknowledged, done.unavailable + done.unknown) == (3, 1)
    assert sorted(zone.states().values()) == sorted(["submitted"] * 3 + [expected])
    dispatch(zone, sandbox, LATER[0])
    assert set(zone.states().values()) == {"submitted"}
    assert sorted(times_carried_out(zone, sandbox).values()) == [1, 1, 1, 1]
    assert zone.value("SELECT count(*) FROM journals WHERE kind = 'submission'") == 4
    assert zone.party_balances_disagree() == []


def test_a_processor_that_asks_for_a_pause_gets_it_before_it_is_asked_again(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    sandbox.fault("status", on="payments", status=429, retry_after_s=1)
    started = time.monotonic()
    done = zone.dispatch(PARTIES, SandboxProcessor(sandbox.url, API_KEY, 5), NEXT, sleep=asyncio.sleep)
    assert (done.acknowledged, done.unavailable) == (4, 0)
    assert time.monotonic() - started >= 1
    assert sorted(times_carried_out(zone, sandbox).values()) == [1, 1, 1, 1]


def test_a_processor_that_asks_for_a_long_pause_is_asked_again_by_the_next_dispatch(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    sandbox.fault("status", on="payments", status=503, retry_after_s=3600)
    done = zone.dispatch(PARTIES, SandboxProcessor(sandbox.url, API_KEY, 5), NEXT, sleep=asyncio.sleep)
    assert (done.acknowledged, done.unavailable) == (3, 1)
    assert dispatch(zone, sandbox, LATER[0]).acknowledged == 1
    assert sorted(times_carried_out(zone, sandbox).values()) == [1, 1, 1, 1]


def test_a_look_up_that_does_not_see_what_was_just_applied_leads_to_no_second_payment(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    sandbox.fault("drop_after", on="payments", count=4)
    assert dispatch(zone, sandbox).unknown == 4
    sandbox.fault("forgets", on="look_ups", count=4)
    assert dispatch(zone, sandbox, LATER[0]).acknowledged == 4
    assert sorted(times_carried_out(zone, sandbox).values()) == [1, 1, 1, 1]
    assert set(zone.states().values()) == {"submitted"}


def test_a_processor_that_is_down_for_a_while_gets_everything_once_when_it_is_back(
    zone: MoneyZone, sandbox: SandboxProcess
) -> None:
    sandbox.stop()
    assert dispatch(zone, sandbox).unavailable == 4
    assert set(zone.states().values()) == {"submitting"}
    sandbox.start()
    assert dispatch(zone, sandbox, LATER[0]).acknowledged == 4
    assert sorted(times_carried_out(zone, sandbox).values()) == [1, 1, 1, 1]
