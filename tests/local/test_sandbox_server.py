"""The sandbox's process over HTTP: keys under concurrency, faults, limits, the clock, what it logs, how it stops."""

import asyncio
import hashlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine, HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from sandbox_process import API_KEY, SandboxProcess, payment, running_sandbox, until

from payments_pipeline.local.sandbox.__main__ import _LAST_ANSWERS_S
from payments_pipeline.local.sandbox.answers import CODES, LARGEST_BODY
from payments_pipeline.local.sandbox.faults import KINDS, Route
from payments_pipeline.local.sandbox.reports import NO_ENTRIES
from payments_pipeline.local.sandbox.tokens import WORDS
from payments_pipeline.local.sandbox.traffic import Traffic

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "sandbox.md"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(process: SandboxProcess) -> SandboxProcess:
    process.behave()
    process.call("DELETE", "/v1/test_helpers/today")
    return process


def times_carried_out(sandbox: SandboxProcess, key: str) -> int:
    return sum(row["idempotency_key"] == key for row in sandbox.executed())


async def post_all(sandbox: SandboxProcess, posts: list[tuple[str, bytes]]) -> list[tuple[int, bytes]]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(sandbox.url, headers=headers) as session:

        async def post(key: str, body: bytes) -> tuple[int, bytes]:
            async with session.post("/v1/payments", data=body, headers={"Idempotency-Key": key}) as response:
                return response.status, await response.read()

        return await asyncio.gather(*(post(key, body) for key, body in posts))


# Keys


def test_of_many_different_bodies_at_once_under_one_key_one_is_paid_and_the_others_are_told(
    sandbox: SandboxProcess,
) -> None:
    bodies = [orjson.dumps(payment(amount_minor=1 + number % 5)) for number in range(100)]
    answers = asyncio.run(post_all(sandbox, [("race", body) for body in bodies]))
    [paid] = [row for row in sandbox.executed() if row["idempotency_key"] == "race"]
    for body, (status, content) in zip(bodies, answers, strict=True):
        answer = orjson.loads(content)
        if orjson.loads(body)["amount_minor"] == paid["amount_minor"]:
            assert (status, answer["id"]) == (201, paid["id"])
        else:
            assert (status, answer["error"]["code"]) == (409, "idempotency_key_reuse")


def test_many_keys_at_once_each_several_times_pay_each_key_once(sandbox: SandboxProcess) -> None:
    keys = [f"many-{number}" for number in range(200)]
    body = orjson.dumps(payment())
    answers = asyncio.run(post_all(sandbox, [(key, body) for key in keys * 3]))
    assert {status for status, _ in answers} == {201}
    assert len({content for _, content in answers}) == len(keys)
    counted = Counter(row["idempotency_key"] for row in sandbox.executed())
    assert {counted[key] for key in keys} == {1}


def test_equal_content_in_other_bytes_is_another_body(sandbox: SandboxProcess) -> None:
    content = payment()
    assert sandbox.call("POST", "/v1/payments", orjson.dumps(content), key="bytes")[0] == 201
    spaced = orjson.dumps(content, option=orjson.OPT_INDENT_2)
    assert sandbox.call("POST", "/v1/payments", spaced, key="bytes")[0] == 409


def test_an_expired_key_is_new_and_pays_a_second_time(tmp_path: Path) -> None:
    with running_sandbox(tmp_path, "--key-lifetime-s", "0.3") as sandbox:
        first = sandbox.pay("short-lived")
        assert sandbox.pay("short-lived") == first
        time.sleep(0.4)
        assert sandbox.call("GET", "/v1/payments?idempotency_key=short-lived")[1]["error"]["code"] == "never_seen"
        second = sandbox.pay("short-lived")
        assert (first[0], second[0]) == (201, 201)
        assert first[1]["id"] != second[1]["id"]
        assert len(sandbox.executed()) == 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"direction": "sideways"}, "invalid_direction"),
        ({"amount_minor": 0}, "invalid_amount"),
        ({"amount_minor": -5}, "invalid_amount"),
        ({"amount_minor": 10**15 + 1}, "invalid_amount"),
        ({"amount_minor": 1.0}, "invalid_request"),
        ({"amount_minor": True}, "invalid_request"),
        ({"amount_minor": "5"}, "invalid_request"),
        ({"currency": "GBX"}, "unknown_currency"),
        ({"currency": "gbp"}, "unknown_currency"),
        ({"currency": "XAU"}, "unknown_currency"),
        ({"token": "club 1"}, "invalid_token"),
        ({"token": "tok_test_explode"}, "invalid_token"),
        ({"token": None}, "invalid_request"),
        ({"execute_on": "20240302"}, "invalid_date"),
        ({"execute_on": "2024-02-30"}, "invalid_date"),
        ({"execute_on": "1969-12-31"}, "invalid_date"),
        ({"execute_on": "2999-12-31", "token": "tok_test_return_1d"}, "invalid_date"),
        ({"reference": ""}, "invalid_reference"),
        ({"reference": "r" * 256}, "invalid_reference"),
        ({"memo": "extra"}, "invalid_request"),
        ({"token": "tok_test_decline_3"}, "account_closed"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_its_code_and_stays_refused(
    sandbox: SandboxProcess, fields: dict[str, Any], code: str
) -> None:
    key = re.sub(r"[^a-z0-9]", "-", f"refused {fields} {code}".lower())[:250]
    status, answer = sandbox.pay(key, **fields)
    assert (status, answer["error"]["code"]) == (CODES[code][0], code)
    assert answer["error"]["message"]
    assert sandbox.pay(key, **fields) == (status, answer)
    looked_up = sandbox.get(f"/v1/payments?idempotency_key={key}")
    assert (looked_up["status"], looked_up["error"]) == ("rejected", answer["error"])
    assert sandbox.pay(key)[1]["error"]["code"] == "idempotency_key_reuse"
    assert times_carried_out(sandbox, key) == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}", b'{"amount_minor": NaN}'])
def test_a_body_that_is_no_request_is_refused(sandbox: SandboxProcess, body: bytes) -> None:
    status, answer = sandbox.call("POST", "/v1/payments", body, key=f"body-{body.hex()}")
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("key", [None, "", "k" * 256, "two words", "clé"])
def test_a_payment_without_a_usable_key_is_refused(sandbox: SandboxProcess, key: str | None) -> None:
    before = len(sandbox.executed())
    status, answer = sandbox.call("POST", "/v1/payments", payment(), key=key)
    assert (status, answer["error"]["code"]) == (400, "idempotency_key_missing")
    assert len(sandbox.executed()) == before


def test_a_fundings_key_never_stands_for_a_payments(sandbox: SandboxProcess) -> None:
    sandbox.fund("shared", 500, "2024-01-05")
    assert sandbox.call("GET", "/v1/payments?idempotency_key=shared")[0] == 404
    assert sandbox.pay("shared")[0] == 201
    sandbox.fund("shared", 500, "2024-01-05")
    assert [entry["amount_minor"] for entry in sandbox.entries("2024-01-05")] == [500]


# The clock and reports


def test_a_payment_of_a_later_date_is_carried_out_when_that_date_comes(sandbox: SandboxProcess) -> None:
    sandbox.set_today("2031-05-01")
    status, answer = sandbox.pay("later", execute_on="2031-05-02", token="tok_test_return_2d", currency="JPY")
    assert status == 201
    path = f"/v1/payments/{answer['id']}"
    states = []
    for day in ("2031-05-01", "2031-05-02", "2031-05-03", "2031-05-04"):
        sandbox.set_today(day)
        listed = sandbox.get("/v1/reports?from=2031-05-01&to=2031-05-31")["reports"]
        closing = {row["currency"]: row["closing_minor"] for row in sandbox.get("/v1/reports/2031-05-31")["balances"]}
        states.append((sandbox.get(path)["status"], len(listed), closing.get("JPY", 0)))
    assert states == [("scheduled", 0, 0), ("settled", 1, -12_345), ("settled", 1, -12_345), ("returned", 2, 0)]


def test_a_past_report_that_grows_changes_its_own_digest_alone(sandbox: SandboxProcess) -> None:
    for number, day in enumerate(("2024-09-01", "2024-09-02", "2024-09-03")):
        sandbox.pay(f"grow-{number}", execute_on=day)
    listing = "/v1/reports?from=2024-09-01&to=2024-09-30"
    before = sandbox.get(listing)["reports"]
    old = sandbox.get("/v1/reports/2024-09-02")
    sandbox.pay("grow-late", execute_on="2024-09-02", amount_minor=5)
    after = sandbox.get(listing)["reports"]
    assert [row["digest"] for row in before][0::2] == [row["digest"] for row in after][0::2]
    assert before[1]["digest"] != after[1]["digest"]
    new = sandbox.get("/v1/reports/2024-09-02")
    assert [entry for entry in new["entries"] if entry in old["entries"]] == old["entries"]
    moved = sandbox.get("/v1/reports/2024-09-03")["balances"][0]
    assert moved["opening_minor"] == new["balances"][0]["closing_minor"] == old["balances"][0]["closing_minor"] - 5


def test_currencies_have_balances_of_their_own(sandbox: SandboxProcess) -> None:
    sandbox.fund("kwd", 3_000, "2018-01-01", currency="KWD")
    sandbox.pay("kwd-out", execute_on="2018-01-02", currency="KWD", amount_minor=1_234)
    sandbox.pay("clp-in", execute_on="2018-01-02", currency="CLP", amount_minor=77, direction="debit")
    assert sandbox.get("/v1/reports/2018-01-02")["balances"] == [
        {"currency": "CLP", "opening_minor": 0, "closing_minor": 77},
        {"currency": "KWD", "opening_minor": 3_000, "closing_minor": 1_766},
    ]


def test_paying_out_more_than_there_is_is_an_overdraft(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as sandbox:
        sandbox.fund("wire", 100, "2024-03-01")
        sandbox.pay("too-much", amount_minor=150)
        assert sandbox.get("/v1/books")["balances"] == [{"currency": "GBP", "opening_minor": -50, "closing_minor": -50}]


def test_the_books_say_what_each_payment_moved(sandbox: SandboxProcess) -> None:
    expected = {
        "tok_club": ("settled", 1, -1000),
        "tok_test_fail": ("failed", 0, 0),
        "tok_test_return_1d": ("returned", 1, 0),
        "tok_test_short_1": ("settled", 1, -999),
        "tok_test_over_1": ("settled", 1, -1001),
        "tok_test_in_EUR": ("settled", 1, 0),
        "tok_test_twice": ("settled", 1, -1000),
        "tok_test_double": ("settled", 2, -2000),
        "tok_test_fee_30": ("settled", 1, -1030),
        "tok_test_lines_f0s1": ("settled", 1, -1000),
    }
    for token in expected:
        sandbox.pay(f"books {token}".replace(" ", "-"), token=token, amount_minor=1000)
    rows = {row["idempotency_key"].removeprefix("books-"): row for row in sandbox.executed()}
    found = {t: (rows[t]["status"], rows[t]["times_settled"], rows[t]["cash_minor"]) for t in expected}
    assert found == expected


# Faults


def raw(sandbox: SandboxProcess, key: str) -> tuple[int, bytes] | None:
    """Post a payment; None where the connection was closed without an answer."""
    connection = HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
    headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": key}
    try:
        connection.request("POST", "/v1/payments", orjson.dumps(payment()), headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (ConnectionError, BadStatusLine):
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_on_demand_does_nothing_and_is_not_remembered(sandbox: SandboxProcess, status: int) -> None:
    sandbox.fault("status", status=status, count=2)
    key = f"status-{status}"
    assert [sandbox.pay(key)[0] for _ in range(3)] == [status, status, 201]
    assert times_carried_out(sandbox, key) == 1


@pytest.mark.parametrize(
    ("kind", "fields", "done"),
    [
        ("drop_before", {}, 0),
        ("drop_after", {}, 1),
        ("malformed", {}, 1),
        ("misaddressed", {}, 1),
        ("status_after", {"status": 502}, 1),
        ("delay_before", {"seconds": 0.2}, 1),
        ("delay_after", {"seconds": 0.2}, 1),
    ],
)
def test_each_fault_does_what_it_says_once(
    sandbox: SandboxProcess, kind: str, fields: dict[str, Any], done: int
) -> None:
    sandbox.fault(kind, **fields)
    started = time.monotonic()
    answer = raw(sandbox, kind)
    took_s = time.monotonic() - started
    assert times_carried_out(sandbox, kind) == done
    if kind.startswith("drop"):
        assert answer is None
    else:
        assert answer is not None
        assert answer[0] == (502 if kind == "status_after" else 201)
        assert took_s >= fields.get("seconds", 0)
        if kind == "malformed":
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(answer[1])
    assert sandbox.pay(kind)[0] == 201
    assert times_carried_out(sandbox, kind) == 1


def test_faults_come_in_their_order_on_their_routes_until_cleared(sandbox: SandboxProcess) -> None:
    sandbox.pay("ordered")
    sandbox.fault("status", status=503, on="look_ups", count=None)
    sandbox.fault("status", status=500, on="payments")
    sandbox.fault("status", status=429)
    assert [sandbox.pay("ordered")[0] for _ in range(3)] == [500, 429, 201]
    look_up = "/v1/payments?idempotency_key=ordered"
    assert [sandbox.call("GET", look_up)[0] for _ in range(3)] == [503, 503, 503]
    assert sandbox.call("GET", "/v1/reports/2024-03-02")[0] == 200
    assert [fault["on"] for fault in sandbox.get("/v1/test_helpers/faults")["faults"]] == ["look_ups"]
    sandbox.behave()
    assert sandbox.call("GET", look_up)[0] == 200


def test_a_storm_ends_by_itself_after_its_seconds(sandbox: SandboxProcess) -> None:
    sandbox.fault("status", status=503, on="payments", count=None, for_s=0.5)
    assert [sandbox.pay("storm")[0] for _ in range(3)] == [503, 503, 503]
    time.sleep(0.6)
    assert sandbox.pay("storm")[0] == 201
    assert sandbox.get("/v1/test_helpers/faults") == {"faults": []}


def test_an_answer_cut_in_its_body_is_for_work_that_was_done(sandbox: SandboxProcess) -> None:
    sandbox.fault("cut")
    with pytest.raises(IncompleteRead):
        raw(sandbox, "cut")
    assert times_carried_out(sandbox, "cut") == 1


def test_a_look_up_that_forgets_says_never_seen_and_the_key_still_pays_once(sandbox: SandboxProcess) -> None:
    assert sandbox.pay("forgotten")[0] == 201
    sandbox.fault("forgets", on="look_ups")
    look_up = "/v1/payments?idempotency_key=forgotten"
    status, answer = sandbox.call("GET", look_up)
    assert (status, answer["error"]["code"]) == (404, "never_seen")
    assert sandbox.pay("forgotten")[0] == 201
    assert times_carried_out(sandbox, "forgotten") == 1
    assert sandbox.call("GET", look_up)[0] == 200


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"kind": "explode"},
        {"kind": "status"},
        {"kind": "gateway"},
        {"kind": "gateway", "status": 500},
        {"kind": "status_after", "status": 429},
        {"kind": "in_progress", "seconds": 1},
        {"kind": "in_progress", "on": "payments"},
        {"kind": "pays_twice", "on": "look_ups"},
        {"kind": "status", "status": 200},
        {"kind": "status_after", "status": 503},
        {"kind": "drop_after", "status": 500},
        {"kind": "delay_after"},
        {"kind": "delay_after", "seconds": -1},
        {"kind": "drop_after", "count": 0},
        {"kind": "drop_after", "for_s": 0},
        {"kind": "drop_after", "on": "everything"},
        {"kind": "drop_after", "colour": "red"},
        {"kind": "drop_after", "entry_reference": "ent_1"},
        {"kind": "withholds"},
        {"kind": "withholds", "entry_reference": "ent_1", "date": "2024-03-02"},
        {"kind": "withholds", "entry_reference": "ent_1", "count": 1},
        {"kind": "withholds", "entry_reference": "ent_1", "on": "reports"},
        {"kind": "withholds", "entry_reference": "ent_1", "for_s": 1},
        {"kind": "alters", "entry_reference": "ent_1"},
        {"kind": "alters", "entry_reference": "ent_1", "minor": 0},
        {"kind": "alters", "entry_reference": "ent_1", "minor": 10**15 + 1},
        {"kind": "mislabels", "entry_reference": "ent_1", "minor": 1},
        {"kind": "misbalances", "minor": 1},
        {"kind": "misbalances", "date": "2024-03-02"},
    ],
)
def test_a_fault_that_means_nothing_is_refused(sandbox: SandboxProcess, fault: dict[str, Any]) -> None:
    status, answer = sandbox.call("POST", "/v1/test_helpers/faults", fault)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert sandbox.get("/v1/test_helpers/faults") == {"faults": []}


def look_up(sandbox: SandboxProcess, key: str) -> tuple[int, Any]:
    return sandbox.call("GET", f"/v1/payments?idempotency_key={key}")


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize(("kind", "done"), [("gateway", 0), ("gateway_after", 1)])
def test_a_proxy_answers_in_html_whether_or_not_it_passed_the_request_on(
    sandbox: SandboxProcess, kind: str, done: int, status: int
) -> None:
    key = f"{kind}-{status}"
    sandbox.fault(kind, status=status)
    answer = raw(sandbox, key)
    assert answer is not None
    assert (answer[0], answer[1][:6]) == (status, b"<html>")
    assert times_carried_out(sandbox, key) == done
    assert sandbox.pay(key)[0] == 201
    assert times_carried_out(sandbox, key) == 1


def test_while_a_request_is_in_progress_whatever_comes_under_its_key_is_told_so(sandbox: SandboxProcess) -> None:
    sandbox.fault("in_progress", on="payments", seconds=600)
    told = [sandbox.pay("under-way"), sandbox.pay("under-way", amount_minor=1), look_up(sandbox, "under-way")]
    assert [(status, answer["error"]["code"]) for status, answer in told] == [(409, "request_in_progress")] * 3
    assert times_carried_out(sandbox, "under-way") == 0
    assert sandbox.pay("another")[0] == 201
    sandbox.behave()  # it need not wait any longer
    until(lambda: look_up(sandbox, "under-way")[0] == 200)
    assert sandbox.pay("under-way")[0] == 201
    assert times_carried_out(sandbox, "under-way") == 1


def test_a_request_in_progress_when_the_process_ends_was_never_seen(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as sandbox:
        sandbox.fault("in_progress", on="payments", seconds=600)
        assert sandbox.pay("under-way")[0] == 409
        assert sandbox.stop() == 0
        sandbox.start()
        assert look_up(sandbox, "under-way")[0] == 404
        assert sandbox.executed() == []
    assert "Traceback" not in sandbox.log.read_text()


def test_a_payment_carried_out_twice_has_two_ids_under_one_key_and_moves_its_cash_twice(
    sandbox: SandboxProcess,
) -> None:
    for _ in range(2):
        sandbox.fault("pays_twice", on="payments")
        status, answer = sandbox.pay("two-ids", execute_on="2017-01-01", amount_minor=700)
        assert status == 201
    listed = look_up(sandbox, "two-ids")[1]
    assert sorted(listed) == ["body_sha256", "ids", "status"]
    assert answer["id"] in listed["ids"]
    assert [row["id"] for row in sandbox.executed() if row["idempotency_key"] == "two-ids"] == listed["ids"]
    assert [entry["amount_minor"] for entry in sandbox.entries("2017-01-01")] == [-700, -700]
    sandbox.expire("two-ids")
    assert sandbox.pay("two-ids", execute_on="2017-01-01")[0] == 201
    assert len(look_up(sandbox, "two-ids")[1]["id"]) == len(answer["id"])
    assert times_carried_out(sandbox, "two-ids") == 3


def test_what_is_refused_is_not_carried_out_twice_either(sandbox: SandboxProcess) -> None:
    sandbox.fault("pays_twice", on="payments")
    assert sandbox.pay("refused-twice", token="tok_test_decline")[0] == 402
    assert times_carried_out(sandbox, "refused-twice") == 0


def test_a_key_dies_when_its_date_comes_and_is_new_then(sandbox: SandboxProcess) -> None:
    sandbox.set_today("2024-03-05")
    assert sandbox.pay("dated")[0] == 201
    sandbox.expire("dated", on="2024-03-07")
    seen = []
    for day in ("2024-03-05", "2024-03-06", "2024-03-07"):
        sandbox.set_today(day)
        seen.append(look_up(sandbox, "dated")[0])
    assert seen == [200, 200, 404]
    assert sandbox.call("POST", "/v1/test_helpers/expire_key", {"idempotency_key": "dated"})[0] == 404
    assert sandbox.pay("dated")[0] == 201
    assert look_up(sandbox, "dated")[0] == 200
    assert times_carried_out(sandbox, "dated") == 2


def test_a_key_dies_after_its_seconds(sandbox: SandboxProcess) -> None:
    assert sandbox.pay("timed")[0] == 201
    sandbox.expire("timed", after_s=3600)
    assert look_up(sandbox, "timed")[0] == 200
    sandbox.expire("timed", after_s=0.2)
    until(lambda: look_up(sandbox, "timed")[0] == 404)
    assert times_carried_out(sandbox, "timed") == 1


@pytest.mark.parametrize(
    "fields", [{}, {"on": "2024-03-07", "after_s": 1}, {"on": "soon"}, {"after_s": -1}, {"idempotency_key": 5}]
)
def test_an_expiry_that_means_nothing_is_refused(sandbox: SandboxProcess, fields: dict[str, Any]) -> None:
    assert sandbox.pay("immortal")[0] == 201
    body = ({"idempotency_key": "immortal"} | fields) if fields else {}
    assert sandbox.call("POST", "/v1/test_helpers/expire_key", body)[0] in (400, 422)
    assert look_up(sandbox, "immortal")[0] == 200


def test_the_traffic_is_counted_by_route_with_the_most_at_once(sandbox: SandboxProcess) -> None:
    sandbox.call("DELETE", "/v1/test_helpers/traffic")
    sandbox.fault("delay_before", on="payments", seconds=600, count=None)
    bodies = [(f"traffic-{number}", orjson.dumps(payment())) for number in range(7)]
    with ThreadPoolExecutor(1) as pool:
        posting = pool.submit(asyncio.run, post_all(sandbox, bodies))
        until(lambda: sandbox.traffic()["under_way"] == 7)
        assert look_up(sandbox, "traffic-0")[0] == 404
        sandbox.behave()  # what waits goes on
        assert {status for status, _ in posting.result()} == {201}
    counted = sandbox.traffic()
    assert counted["requests"] == {"payments": 7, "look_ups": 1, "reports": 0}
    assert (counted["under_way"], counted["most_under_way"]) == (0, 8)
    assert 1 <= counted["most_in_a_second"] <= 8
    sandbox.call("DELETE", "/v1/test_helpers/traffic")
    assert set(sandbox.traffic()["requests"].values()) == {0}


def test_the_most_in_a_second_is_of_any_second() -> None:
    now = [0.0]
    traffic = Traffic(lambda: now[0])
    for seconds in (0.0, 0.875, 1.75, 2.125, 2.25, 2.5, 2.75, 9.0):
        now[0] = seconds
        with traffic.request(Route.PAYMENTS):
            pass
    assert traffic.counted()["most_in_a_second"] == 4  # from 1.75 on; 2.75 is a second later


def test_the_list_of_reports_comes_in_pages(tmp_path: Path) -> None:
    with running_sandbox(tmp_path, "--page-entries", "2") as sandbox:
        for day in range(1, 6):
            sandbox.pay(f"listed-{day}", execute_on=f"2024-03-0{day}")
        query, pages = "/v1/reports?from=2024-03-01&to=2024-03-05", []
        answer = sandbox.get(query)
        while answer["next"] is not None:
            pages.append([row["date"][-1] for row in answer["reports"]])
            answer = sandbox.get(f"{query}&after={answer['next']}")
        pages.append([row["date"][-1] for row in answer["reports"]])
        assert pages == [["1", "2"], ["3", "4"], ["5"]]
        assert sandbox.get(f"{query}&after=2024-02-01")["reports"][0]["date"] == "2024-03-01"
        assert sandbox.call("GET", f"{query}&after=soon")[0] == 422


# What reports say that is not so, and lines of the processor's own


def whole(sandbox: SandboxProcess, day: str) -> dict[str, Any]:
    """Read all pages of a report."""
    report = page = sandbox.get(f"/v1/reports/{day}")
    while page["next"] is not None:
        page = sandbox.get(f"/v1/reports/{day}?after={page['next']}")
        assert {name: page[name] for name in page if name not in ("entries", "next")} == {
            name: report[name] for name in report if name not in ("entries", "next")
        }
        report["entries"] += page["entries"]
    return dict(report)


def digest_of(entries: list[dict[str, Any]]) -> str:
    values = [[entry[name] for name in entry if name != "batch_reference"] for entry in entries]
    return f"{sum(int(hashlib.sha256(orjson.dumps(each)).hexdigest(), 16) for each in values) % 2**256:064x}"


def told(sandbox: SandboxProcess) -> tuple[Any, ...]:
    """Give the reports of two days, and the list of them."""
    listed = sandbox.get("/v1/reports?from=2024-03-02&to=2024-03-03")["reports"]
    return whole(sandbox, "2024-03-02"), whole(sandbox, "2024-03-03"), listed


@pytest.mark.parametrize(
    ("kind", "fields", "amounts", "closing", "next_opening"),
    [
        ("withholds", {}, [-300, -100], -400, -400),
        ("alters", {"minor": -50}, [-300, -250, -100], -650, -650),
        ("contradicts", {"minor": -50}, [-300, -250, -200, -100], -600, -600),
        ("mislabels", {}, [-300, -200, -100], -600, -600),
        ("misbalances", {"minor": 7, "date": "2024-03-02"}, [-300, -200, -100], -593, -600),
    ],
)
def test_a_report_is_wrong_as_told_wherever_it_is_asked_for_until_faults_are_cleared(
    tmp_path: Path, kind: str, fields: dict[str, Any], amounts: list[int], closing: int, next_opening: int
) -> None:
    with running_sandbox(tmp_path, "--page-entries", "2") as sandbox:
        for number in (1, 2, 3):
            sandbox.pay(f"wrong-{number}", amount_minor=100 * number)
        sandbox.pay("wrong-next", amount_minor=1000, execute_on="2024-03-03")
        right, books = told(sandbox), sandbox.get("/v1/books")
        [line] = [entry for entry in right[0]["entries"] if entry["amount_minor"] == -200]
        named = {} if "date" in fields else {"entry_reference": line["entry_reference"]}
        sandbox.fault(kind, **named, **fields)
        wrong = told(sandbox)
        report, after, listed = wrong
        assert sorted(entry["amount_minor"] for entry in report["entries"]) == amounts
        assert {"settled"} | ({"adjustment"} if kind == "mislabels" else set()) == {
            entry["kind"] for entry in report["entries"]
        }
        assert (report["entry_count"], report["digest"]) == (len(amounts), digest_of(report["entries"]))
        assert [(row["entry_count"], row["digest"]) for row in listed] == [
            (each["entry_count"], each["digest"]) for each in (report, after)
        ]
        assert [(row["opening_minor"], row["closing_minor"]) for row in report["balances"] + after["balances"]] == [
            (0, closing),
            (next_opening, next_opening - 1000),
        ]
        assert sandbox.get("/v1/books") == books
        [kept] = sandbox.get("/v1/test_helpers/faults")["faults"]
        assert {"kind": kind, **named, **fields}.items() <= kept.items()
        sandbox.kill()
        sandbox.start()
        assert told(sandbox) == wrong
        sandbox.behave()
        assert sandbox.get("/v1/test_helpers/faults") == {"faults": []}
        assert told(sandbox) == right


def test_a_report_of_which_every_line_is_withheld_is_not_listed(sandbox: SandboxProcess) -> None:
    sandbox.pay("all-withheld", execute_on="2016-01-01")
    [line] = sandbox.entries("2016-01-01")
    sandbox.fault("withholds", entry_reference=line["entry_reference"])
    assert sandbox.get("/v1/reports?from=2016-01-01&to=2016-01-01") == {"reports": [], "next": None}
    assert sandbox.get("/v1/reports/2016-01-01")["digest"] == NO_ENTRIES


def test_a_fault_of_a_line_or_date_that_there_is_not_is_refused(sandbox: SandboxProcess) -> None:
    faults = (
        {"kind": "withholds", "entry_reference": "ent_none"},
        {"kind": "misbalances", "date": "soon", "minor": 1},
    )
    answers = [sandbox.call("POST", "/v1/test_helpers/faults", fault) for fault in faults]
    assert [(status, answer["error"]["code"]) for status, answer in answers] == [
        (404, "no_such_entry"),
        (422, "invalid_date"),
    ]
    assert sandbox.get("/v1/test_helpers/faults") == {"faults": []}


def test_a_line_of_the_processors_own_is_booked_once_and_moves_its_cash(sandbox: SandboxProcess) -> None:
    line = {"kind": "other", "amount_minor": -7, "currency": "SEK", "date": "2015-01-01", "idempotency_key": "nobody"}
    answers = [sandbox.call("POST", "/v1/test_helpers/entries", line, key="own") for _ in range(2)]
    assert [status for status, _ in answers] == [201, 201]
    [entry] = sandbox.entries("2015-01-01")
    assert line.items() <= {**entry, "date": entry["report_date"]}.items()
    assert entry["entry_reference"] == answers[0][1]["entry_reference"] == answers[1][1]["entry_reference"]
    balances = sandbox.get("/v1/reports/2015-01-02")["balances"]
    assert [row["closing_minor"] for row in balances if row["currency"] == "SEK"] == [-7]
    assert times_carried_out(sandbox, "nobody") == 0
    assert look_up(sandbox, "nobody")[0] == 404


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"kind": "adjustment"}, "invalid_request"),
        ({"amount_minor": 1.5}, "invalid_request"),
        ({"amount_minor": 10**15 + 1}, "invalid_request"),
        ({"subject": ""}, "invalid_request"),
        ({"payment_id": "pay_1"}, "invalid_request"),
        ({"currency": "GBX"}, "unknown_currency"),
        ({"date": "soon"}, "invalid_date"),
        ({"idempotency_key": "two words"}, "idempotency_key_missing"),
    ],
)
def test_a_line_that_cannot_be_booked_is_refused(sandbox: SandboxProcess, fields: dict[str, Any], code: str) -> None:
    line = {"kind": "other", "amount_minor": -7, "currency": "SEK", "date": "2014-01-01"} | fields
    status, answer = sandbox.call("POST", "/v1/test_helpers/entries", line, key=f"refused-{code}-{len(str(fields))}")
    assert (status, answer["error"]["code"]) == (CODES[code][0], code)
    assert sandbox.entries("2014-01-01") == []


def test_the_total_of_a_batch_stands_beside_its_lines_and_is_the_amount_of_none(sandbox: SandboxProcess) -> None:
    tokens = {
        "batch-1": "tok_club",
        "batch-2": "tok_test_twice",
        "batch-3": "tok_test_fee_9",
        "batch-4": "tok_test_in_NOK",
    }
    for key, token in tokens.items():
        sandbox.pay(key, execute_on="2013-01-01", amount_minor=50, token=token)
    report = sandbox.get("/v1/reports/2013-01-01")
    kinds = {entry["batch_reference"]: (entry["kind"], entry["currency"]) for entry in report["entries"]}
    assert {kinds[batch["batch_reference"]]: batch["total_minor"] for batch in report["batches"]} == {
        ("settled", "GBP"): -150,
        ("settled", "NOK"): -50,
        ("fee", "GBP"): -9,
    }


# Every request


@pytest.mark.parametrize("api_key", [None, "", "wrong", API_KEY[:-1], "clé"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/payments"), ("GET", "/v1/books"), ("GET", "/nowhere")])
def test_nothing_but_health_is_told_without_the_api_key(
    sandbox: SandboxProcess, method: str, path: str, api_key: str | None
) -> None:
    status, answer = sandbox.call(method, path, api_key=api_key)
    assert (status, answer["error"]["code"]) == (401, "unauthorized")
    status, health = sandbox.call("GET", "/v1/health", api_key=api_key)
    assert (status, health["status"], health["key_lifetime_s"]) == (200, "ok", 86_400)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", "unknown_route"),
        ("GET", "/v1/refunds", "unknown_route"),
        ("DELETE", "/v1/payments", "method_not_allowed"),
        ("GET", "/v1/payments", "idempotency_key_missing"),
        ("GET", "/v1/payments/pay_none", "no_such_payment"),
        ("GET", "/v1/reports", "invalid_date"),
        ("GET", "/v1/reports?from=2024-01-01&to=tomorrow", "invalid_date"),
        ("GET", "/v1/reports/today", "invalid_date"),
    ],
)
def test_what_is_not_there_is_said_in_json(sandbox: SandboxProcess, method: str, path: str, code: str) -> None:
    status, answer = sandbox.call(method, path)
    assert (status, answer["error"]["code"]) == (CODES[code][0], code)


def test_a_body_beyond_the_limit_is_refused(sandbox: SandboxProcess) -> None:
    status, answer = sandbox.call("POST", "/v1/payments", b" " * (LARGEST_BODY + 1), key="large")
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert sandbox.call("GET", "/v1/payments?idempotency_key=large")[0] == 404


def test_the_log_has_a_line_for_each_request_and_neither_keys_nor_tokens(tmp_path: Path) -> None:
    secrets = ("tok_secret_account", "secret-idempotency", "secret-path", API_KEY)
    with running_sandbox(tmp_path) as sandbox:
        for token in ("tok_secret_account", "tok secret_account bad"):
            sandbox.pay("secret-idempotency", token=token)
        sandbox.fault("drop_after")
        raw(sandbox, "secret-idempotency")
        sandbox.call("GET", "/v1/payments?idempotency_key=secret-idempotency")
        sandbox.call("GET", "/v1/payments/secret-path")
        sandbox.call("GET", "/v1/secret-path")
        sandbox.call("GET", "/v1/books", api_key="secret-path")
    log = sandbox.log.read_text()
    assert len(re.findall(r"INFO (?:GET|POST) \S+.* \d{3} \d+\.\d ms$", log, re.MULTILINE)) == 8
    assert "Traceback" not in log
    assert [secret for secret in secrets if secret in log] == []
    assert (tmp_path / "sandbox.db").stat().st_mode & 0o077 == 0


# The process


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_without_waiting_for_what_is_under_way(tmp_path: Path, how: signal.Signals) -> None:
    with running_sandbox(tmp_path) as sandbox:
        sandbox.fault("delay_after", seconds=600)
        idle = socket.create_connection(("127.0.0.1", sandbox.port))
        busy = socket.create_connection(("127.0.0.1", sandbox.port))
        body = orjson.dumps(payment())
        head = f"POST /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nIdempotency-Key: hang\r\n"
        with idle, busy:
            busy.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            deadline = time.monotonic() + 5
            while not sandbox.executed() and time.monotonic() < deadline:
                time.sleep(0.02)
            # Ten minutes are under way; a machine that is busy may take its time to stop, but never those.
            assert _LAST_ANSWERS_S <= 0.5
            assert sandbox.stop(how) == 0
        sandbox.start()
        assert times_carried_out(sandbox, "hang") == 1
    assert "Traceback" not in sandbox.log.read_text()


@pytest.mark.parametrize(("key", "words"), [("", "holds no API key"), (None, "cannot run"), ("port", "cannot run")])
def test_it_says_why_it_cannot_run(tmp_path: Path, key: str | None, words: str) -> None:
    file = tmp_path / "key"
    if key is not None:
        file.write_text(key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--db", str(tmp_path / "s.db"), "--port", port, "--api-key-file", str(file)]
        done = subprocess.run(
            [sys.executable, "-m", "payments_pipeline.local.sandbox", *options],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_of_the_sandbox_lists_every_token_fault_code_and_route() -> None:
    page = DOCS.read_text("utf-8")
    for name, words in WORDS.items():
        assert f"| `{name}` | {words} |" in page
    for name, words in KINDS.items():
        assert f"| `{name}` | {words} |" in page
    for name, (status, words) in CODES.items():
        assert f"| {status} | `{name}` | {words} |" in page
    source = Path(sys.modules["payments_pipeline.local.sandbox.tokens"].__file__ or "").with_name("server.py")
    routes = re.findall(r'web\.(get|post|delete)\("([^"]+)"', source.read_text("utf-8"))
    assert len(routes) > 10
    for method, path in routes:
        assert f"`{method.upper()} {path}" in page, path
