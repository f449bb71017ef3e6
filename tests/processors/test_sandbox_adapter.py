"""What the adapter makes of answers that only a gateway, a wrong address or a broken processor gives."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from threading import Thread
from typing import Any, TypeVar

import pytest
from sandbox_process import request

from payments_pipeline.domain.errors import (
    ConfigurationError,
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorError,
    ProcessorUnavailableError,
)
from payments_pipeline.local.sandbox.payments import KEY_LIFETIME
from payments_pipeline.processors.base import PayoutKeyConflictError, ReportDigest
from payments_pipeline.processors.registry import open_processor
from payments_pipeline.processors.sandbox.adapter import CAPABILITIES, SandboxProcessor

T = TypeVar("T")
DAY = date(2024, 3, 2)
ACCEPTED = {"id": "pay_1", "status": "accepted", "idempotency_key": "k"}
ENTRY = {
    "entry_reference": "ent_1",
    "report_date": "2024-03-02",
    "kind": "settled",
    "idempotency_key": "k",
    "payment_id": "pay_1",
    "amount_minor": -100,
    "currency": "GBP",
    "subject": None,
    "reason": None,
    "occurred_at": "2024-03-02T00:00:00Z",
}
BALANCE = {"currency": "GBP", "opening_minor": 0, "closing_minor": -100}


def digest_of(*entries: dict[str, Any]) -> str:
    """As the sandbox's page says, said once more: each entry's values as JSON, hashed, added up."""
    texts = [json.dumps(list(entry.values()), separators=(",", ":"), ensure_ascii=False) for entry in entries]
    return f"{sum(int(hashlib.sha256(text.encode()).hexdigest(), 16) for text in texts) % 2**256:064x}"


REPORT = {
    "date": "2024-03-02",
    "entry_count": 1,
    "digest": digest_of(ENTRY),
    "entries": [ENTRY],
    "balances": [BALANCE],
    "next": None,
}


@contextmanager
def server_that_answers(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer every request on a port with the same bytes, then close; give the address and what was received."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    received.append(connection.recv(65_536))
                    connection.sendall(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def http(status: int, body: Any, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "Connection: close", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def error(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "words"}}


def use(url: str, work: Callable[[SandboxProcessor], Awaitable[T]]) -> T:
    async def run() -> T:
        async with SandboxProcessor(url, "key", 5) as processor:
            return await work(processor)

    return asyncio.run(run())


async def submit(processor: SandboxProcessor) -> object:
    return await processor.submit(processor.encode(request("k")), "k")


@pytest.mark.rule("dispatch/three-kinds")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *((http(status, error("nope")), PayoutRejectedError) for status in (400, 402, 413, 422)),
        *((http(status, error("nope")), ProcessorUnavailableError) for status in (401, 403, 404, 405, 429, 503)),
        (http(409, error("idempotency_key_reuse")), PayoutKeyConflictError),
        (http(409, error("request_in_progress")), PayoutOutcomeUnknownError),
        (http(409, b"<html>"), PayoutOutcomeUnknownError),
        *((http(status, error("nope")), PayoutOutcomeUnknownError) for status in (408, 418, 500, 502, 504, 599)),
        # Not the processor's own words: a gateway may have passed the request on before it gave up.
        *((http(status, b"<html>"), PayoutOutcomeUnknownError) for status in (400, 404, 422, 429, 503)),
        (http(422, {"error": "text"}), PayoutOutcomeUnknownError),
        (http(422, {"error": {"code": 7}}), PayoutOutcomeUnknownError),
        # Success that does not say what was accepted.
        (http(201, b""), PayoutOutcomeUnknownError),
        (http(201, []), PayoutOutcomeUnknownError),
        (http(201, {**ACCEPTED, "id": 5}), PayoutOutcomeUnknownError),
        (http(201, {**ACCEPTED, "id": ""}), PayoutOutcomeUnknownError),
        (http(202, ACCEPTED), PayoutOutcomeUnknownError),
        (http(204, b""), PayoutOutcomeUnknownError),
        # A broken or cut answer.
        (b"", PayoutOutcomeUnknownError),
        (b"no http at all\r\n\r\n", PayoutOutcomeUnknownError),
        (http(201, ACCEPTED)[:-3], PayoutOutcomeUnknownError),
        # An answer to somebody else.
        (http(201, {**ACCEPTED, "idempotency_key": "other"}), PayoutOutcomeUnknownError),
        (http(201, {"id": "pay_1"}), PayoutOutcomeUnknownError),
    ],
)
def test_every_answer_has_one_meaning_and_every_doubt_is_unknown(answer: bytes, expected: type[ProcessorError]) -> None:
    with server_that_answers(answer) as (url, received), pytest.raises(ProcessorError) as raised:
        use(url, submit)
    assert type(raised.value) is expected
    assert len(received) == 1
    assert "\r\nIdempotency-Key: k\r\n" in received[0].decode()


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("7", 7, 7),
        (timedelta(hours=1), 3000, 3600),
        (timedelta(hours=-1), 0, 0),
        ("9" * 400, 1e8, 1e9),
        *((said, 0, 0) for said in ("-5", "1.5", "soon", "", "Tue, 99 Foo 2024", "\xb2")),
    ],
)
def test_how_long_the_processor_asks_to_be_left_alone_is_read_in_either_form(
    said: str | timedelta, least: float, most: float
) -> None:
    if isinstance(said, timedelta):
        said = format_datetime(datetime.now(UTC) + said, usegmt=True)
    answer = http(429, error("rate_limited"), f"Retry-After: {said}")
    with server_that_answers(answer) as (url, _), pytest.raises(ProcessorUnavailableError) as raised:
        use(url, submit)
    assert least <= raised.value.retry_after_s <= most


def test_a_redirect_is_not_followed() -> None:
    with server_that_answers(http(201, {"id": "pay_elsewhere"})) as (elsewhere, received):
        redirect = http(307, b"", f"Location: {elsewhere}/v1/payments")
        with server_that_answers(redirect) as (url, _), pytest.raises(PayoutOutcomeUnknownError):
            use(url, submit)
    assert received == []


def test_a_submission_is_the_declared_http_request() -> None:
    with server_that_answers(http(201, ACCEPTED)) as (url, received):
        use(url, submit)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/payments HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer key\r\n" in head
    assert json.loads(body) == {
        "amount_minor": 12_345,
        "currency": "GBP",
        "direction": "credit",
        "execute_on": "2024-03-02",
        "reference": "k",
        "token": "tok_club_1",
    }


def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    with pytest.raises(ProcessorUnavailableError, match="Nothing was sent"):
        use("http://processor.invalid", submit)


@pytest.mark.parametrize(
    "answer",
    [
        http(404, error("no_such_payment")),
        http(404, b"<html>"),
        http(200, {}),
        http(200, {"status": "accepted", "body_sha256": "x"}),
        http(200, {"status": "accepted", "id": "pay_1"}),
        http(200, {"status": "rejected", "body_sha256": "x"}),
        http(200, {"status": "accepted", "ids": [], "body_sha256": "x"}),
        http(200, {"status": "accepted", "ids": ["pay_1"], "body_sha256": "x"}),
        http(409, error("request_in_progress")),
        http(401, error("unauthorized")),
        http(500, {"status": "accepted", "id": "pay_1", "body_sha256": "x"}),
        b"",
    ],
)
def test_a_look_up_that_cannot_be_relied_on_says_nothing(answer: bytes) -> None:
    with server_that_answers(answer) as (url, _), pytest.raises(ProcessorUnavailableError):
        use(url, lambda processor: processor.look_up("k"))


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


LISTED = {"date": "2024-03-02", "entry_count": 1, "digest": "d"}


def with_entry(**fields: Any) -> dict[str, Any]:
    entry = {**ENTRY, "entry_reference": "ent_2", **fields}
    moved = {**BALANCE, "closing_minor": -200}
    content = {"entry_count": 2, "entries": [ENTRY, entry], "balances": [moved], "digest": digest_of(ENTRY, entry)}
    return {**REPORT, **content}


@pytest.mark.parametrize(
    "report",
    [
        *(without(REPORT, name) for name in ("date", "digest", "entries", "balances")),
        # A digest that is not that of its entries: one of them is another, or of other content that moves as much.
        {**REPORT, "digest": digest_of()},
        {**REPORT, "digest": digest_of(ENTRY).upper() + "0"},
        {**REPORT, "entries": [{**ENTRY, "idempotency_key": "other"}]},
        {**REPORT, "entries": [{**ENTRY, "kind": "fee"}]},
        {**with_entry(), "entries": [ENTRY, ENTRY]},
        {**REPORT, "date": "2024-03-03"},
        {**REPORT, "entries": {"0": ENTRY}},
        {**REPORT, "entries": [ENTRY, None]},
        *({**REPORT, "entries": [without(ENTRY, name)]} for name in ENTRY),
        with_entry(amount_minor=1.0),
        with_entry(amount_minor=True),
        with_entry(amount_minor="1"),
        with_entry(amount_minor=2**63),
        with_entry(amount_minor=None),
        with_entry(currency="XXX"),
        with_entry(currency=None),
        with_entry(kind="paid"),
        with_entry(report_date="2024-03-03"),
        with_entry(entry_reference=None),
        with_entry(entry_reference=7),
        with_entry(entry_reference=""),
        with_entry(idempotency_key=7),
        with_entry(occurred_at="yesterday"),
        with_entry(occurred_at=None),
        {**REPORT, "balances": [{**BALANCE, "closing_minor": 0.5}]},
        {**REPORT, "balances": [{**BALANCE, "currency": "QQQ"}]},
        {**REPORT, "balances": [without(BALANCE, "opening_minor")]},
        # Not the whole of it, or not its balances.
        without(REPORT, "next"),
        {**REPORT, "next": ""},
        {**REPORT, "next": 7},
        {**REPORT, "entries": [], "next": "ent_1"},
        {**REPORT, "next": "ent_1"},
        {**REPORT, "entry_count": 2},
        {**REPORT, "entry_count": "1"},
        {**REPORT, "balances": []},
        {**REPORT, "balances": [BALANCE, BALANCE]},
        {**REPORT, "balances": [{**BALANCE, "closing_minor": -99}]},
        {**REPORT, "balances": [BALANCE, {**BALANCE, "currency": "EUR"}]},
    ],
)
def test_a_report_is_taken_in_whole_or_not_at_all(report: dict[str, Any]) -> None:
    answer = http(200, report)
    with (
        server_that_answers(answer) as (url, _),
        pytest.raises(ProcessorUnavailableError, match="Nothing was taken in"),
    ):
        use(url, lambda processor: processor.report(DAY))


@pytest.mark.parametrize("fields", [{}, {"reason": "naïve “quoted” \u2028 \x1f"}, {"subject": "pot:ÄÖ/\\"}], ids=str)
def test_a_report_whose_digest_is_that_of_its_entries_is_taken_in(fields: dict[str, Any]) -> None:
    with server_that_answers(http(200, with_entry(**fields))) as (url, _):
        report = use(url, lambda processor: processor.report(DAY))
    assert len(report.lines) == 2
    assert report.digest == with_entry(**fields)["digest"]


def test_a_report_is_read_to_the_last_minor_unit() -> None:
    amount = 2**53 + 1  # a float would lose the one
    moved = {**BALANCE, "closing_minor": amount}
    entry = {**ENTRY, "amount_minor": amount}
    report_of_one = {**REPORT, "digest": digest_of(entry), "entries": [entry], "balances": [moved]}
    with server_that_answers(http(200, report_of_one)) as (url, _):
        report = use(url, lambda processor: processor.report(DAY))
    [line] = report.lines.to_dict("records")
    assert line == {
        "processor": "sandbox",
        "entry_reference": "ent_1",
        "report_date": DAY,
        "kind": "settled",
        "idempotency_key": "k",
        "processor_reference": "pay_1",
        "subject": None,
        "amount_minor": amount,
        "currency": "GBP",
        "reason": None,
        "occurred_at": datetime(2024, 3, 2, tzinfo=UTC),
    }


@pytest.mark.parametrize(
    "answer",
    [
        {"next": None},
        {"next": None, "reports": None},
        {"next": None, "reports": [without(LISTED, "digest")]},
        {"next": None, "reports": [{**LISTED, "date": "2nd of March"}]},
        {"next": None, "reports": [{**LISTED, "entry_count": 1.5}]},
        {"next": None, "reports": [LISTED, LISTED]},
        {"next": None, "reports": [LISTED, {**LISTED, "date": "2024-03-01"}]},
        {"reports": [LISTED]},
        {"next": "", "reports": [LISTED]},
        {"next": 7, "reports": [LISTED]},
        {"next": "2024-03-02", "reports": []},
        # The same page again and again.
        {"next": "2024-03-02", "reports": [LISTED]},
    ],
)
def test_a_list_of_reports_that_cannot_be_read_is_unavailable(answer: dict[str, Any]) -> None:
    with (
        server_that_answers(http(200, answer)) as (url, _),
        pytest.raises(ProcessorUnavailableError, match="cannot be read"),
    ):
        use(url, lambda processor: processor.report_digests(DAY, DAY))


def test_a_list_of_reports_that_can_be_read_is_given() -> None:
    with server_that_answers(http(200, {"next": None, "reports": [LISTED]})) as (url, _):
        assert use(url, lambda processor: processor.report_digests(DAY, DAY)) == [ReportDigest(DAY, 1, "d")]


@pytest.mark.parametrize("url", ["", "sandbox", "ftp://host", "http://", "http://user:word@host", "http://host:bad"])
def test_an_address_that_cannot_be_used_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PAYMENTS_PROCESSOR_URL"):
        open_processor("sandbox", url, "key")


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "ключ"])
def test_a_key_that_cannot_be_used_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="PAYMENTS_PROCESSOR_KEY") as refusal:
        open_processor("sandbox", "http://127.0.0.1:1", key)
    assert not key or key not in str(refusal.value)


def test_an_unknown_processor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="no 'strype'; there are: sandbox"):
        open_processor("strype", "http://127.0.0.1:1", "key")


def test_the_adapter_knows_how_long_the_sandbox_remembers_a_key() -> None:
    assert CAPABILITIES.key_lifetime == KEY_LIFETIME


def test_outside_its_block_the_adapter_has_no_connections() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(SandboxProcessor("http://127.0.0.1:1", "key").look_up("k"))
