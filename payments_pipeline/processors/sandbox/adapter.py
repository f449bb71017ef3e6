"""The sandbox's adapter: its HTTP in the contract's words.

Belongs here: encoding, calling once, saying exactly what an answer or its absence means. Does not belong here:
retrying, the ledger, what a report's lines mean.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from payments_pipeline.domain.errors import (
    ConfigurationError,
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.processors.base import (
    Acknowledgement,
    Capabilities,
    LookUp,
    LookUpStatus,
    PayoutKeyConflictError,
    PayoutRequest,
    ReportDigest,
    SettlementReport,
)
from payments_pipeline.processors.sandbox.reports import UnreadableReportError, page_of, read_digests, read_report

NAME = "sandbox"
CAPABILITIES = Capabilities(
    key_lifetime=timedelta(hours=24), max_concurrency=128, requests_per_second=10_000, timeout_s=15.0
)
#: The processor's own answers that say that nothing was done and that a resend may fare better.
_NOT_NOW = {401, 403, 404, 405, 429, 503}
#: Its word of a key that stands for another request. Any other 409 says that something is under way under the key.
_KEY_REUSE = "idempotency_key_reuse"
#: Those that say that the request itself is refused for good.
_REFUSED = {400, 402, 413, 422}
#: How often a report that changes while its pages are read is read from its first page.
_READINGS = 3
#: What each page says of the whole report.
_OF_THE_WHOLE = ("date", "entry_count", "digest", "balances")


class SandboxProcessor:
    """One sandbox processor.

    What a submission's end means:

    | what happened | error |
    | --- | --- |
    | no connection, or none free in time: no byte was sent | ProcessorUnavailableError |
    | 401, 403, 404, 405, 429, 503 with the processor's error | ProcessorUnavailableError |
    | 400, 402, 413, 422 with the processor's error | PayoutRejectedError |
    | 409 idempotency_key_reuse | PayoutKeyConflictError |
    | 409 request_in_progress: another sending of ours is under way and may be carried out | PayoutOutcomeUnknownError |
    | anything else: time is up, connection lost, other status (408, 502), an answer about another key or not the
      processor's own (a gateway's 503 may come after the request was passed on) | PayoutOutcomeUnknownError |
    """

    name = NAME

    def __init__(self, url: str, api_key: str, timeout_s: float = CAPABILITIES.timeout_s) -> None:
        """Name a processor; nothing is opened.

        Args:
            url: its address, without `/v1`.
            api_key: bearer key; never logged.
            timeout_s: seconds after which a call counts as unanswered.

        Raises:
            ConfigurationError: the address or the key cannot be used.
        """
        self._url = _address(url)
        if not api_key.isascii() or not api_key.isprintable() or not api_key or " " in api_key:
            fault = "holds what no header may hold" if api_key else "is not set"
            raise ConfigurationError(f"PAYMENTS_PROCESSOR_KEY: the API key of {NAME} {fault}. Nothing was sent.")
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._session: aiohttp.ClientSession | None = None
        self.capabilities = replace(CAPABILITIES, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        """Open connections: as many as calls may be under way at once."""
        timeout_s = self.capabilities.timeout_s
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self.capabilities.max_concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            # A connection that takes long fails by its own error, which says that nothing was sent.
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(5.0, timeout_s / 2)),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def encode(self, request: PayoutRequest) -> bytes:
        """Give the bytes to send; the same request always gives the same bytes."""
        return orjson.dumps(
            {
                "amount_minor": request.amount_minor,
                "currency": request.currency,
                "direction": str(request.direction),
                "execute_on": request.execute_on.isoformat(),
                "reference": request.instruction_id,
                "token": request.token,
            },
            option=orjson.OPT_SORT_KEYS,
        )

    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        """Send once; see the class for what each end means."""
        what = f"{self.name}: key {idempotency_key}"
        try:
            # A redirect is not followed: it would be a second attempt, of another request.
            async with self._opened().post(
                f"{self._url}/v1/payments",
                data=body,
                headers={"Idempotency-Key": idempotency_key},
                allow_redirects=False,
            ) as response:
                status, content = response.status, await response.read()
                pause_s = _retry_after_s(response.headers.get("Retry-After", ""))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ProcessorUnavailableError(f"{what}: no connection ({_words(error)}). Nothing was sent.") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PayoutOutcomeUnknownError(
                f"{what}: no answer ({_words(error)}). It may have been carried out; it is looked up, not sent again."
            ) from error
        return _acknowledged(what, status, content, idempotency_key, pause_s)

    async def look_up(self, idempotency_key: str) -> LookUp:
        """Ask what became of a key."""
        status, answer = await self._get("/v1/payments", {"idempotency_key": idempotency_key})
        code, message = _error(answer)
        if status == 404 and code == "never_seen":
            return LookUp(LookUpStatus.NEVER_SEEN)
        references = answer.get("ids")
        if status == 200 and isinstance(references, list) and len(references) > 1:
            raise PayoutOutcomeUnknownError(
                f"{self.name}: {len(references)} payments stand under key {idempotency_key}: "
                f"{', '.join(map(str, references))}. It may have been carried out more than once; it stays unknown, "
                "and a person must ask the processor."
            )
        reference, sha256 = answer.get("id"), answer.get("body_sha256")
        if status == 200 and isinstance(sha256, str):
            if answer.get("status") == "accepted" and isinstance(reference, str):
                return LookUp(LookUpStatus.ACCEPTED, processor_reference=reference, request_sha256=sha256)
            if answer.get("status") == "rejected" and code:
                return LookUp(LookUpStatus.REJECTED, code=code, message=message, request_sha256=sha256)
        raise ProcessorUnavailableError(
            f"{self.name}: the look-up of key {idempotency_key} answered {status} ({code or 'no code'}). "
            "Nothing is known of it; ask again."
        )

    async def report_digests(self, first: date, last: date) -> list[ReportDigest]:
        """List the reports of a range of dates, empty ones left out, all its pages.

        A report that grows between two pages is listed as it was when its own page was read.
        """
        what = f"{self.name}: the list of reports from {first} to {last}"
        query = {"from": first.isoformat(), "to": last.isoformat()}
        listed: list[ReportDigest] = []
        try:
            while True:
                answer = await self._get_report("/v1/reports", query, what)
                page, cursor = read_digests(answer, after=listed[-1].report_date if listed else None)
                listed += page
                if cursor is None:
                    return listed
                query["after"] = cursor
        except UnreadableReportError as error:
            raise ProcessorUnavailableError(f"{what} cannot be read: {error}. Nothing was taken in.") from error

    async def report(self, report_date: date) -> SettlementReport:
        """Fetch one date's report, all its pages."""
        what = f"{self.name}: the report of {report_date}"
        try:
            for _ in range(_READINGS):
                answer = await self._all_pages(f"/v1/reports/{report_date.isoformat()}", what)
                if answer is not None:
                    return read_report(answer, self.name, report_date)
        except UnreadableReportError as error:
            raise ProcessorUnavailableError(f"{what} cannot be read: {error}. Nothing was taken in.") from error
        raise ProcessorUnavailableError(
            f"{what} changed each of the {_READINGS} times that its pages were read. Nothing was taken in; ask again."
        )

    async def _all_pages(self, path: str, what: str) -> dict[str, Any] | None:
        """Give a report as if on one page; None where it changed between two pages, so that they are of two reports.

        Raises:
            UnreadableReportError: the pages lead nowhere.
            ProcessorUnavailableError: one of them gave no answer.
        """
        first = await self._get_report(path, {}, what)
        page, cursor = page_of(first)
        entries = list(page)
        seen: set[str] = set()
        while cursor is not None:
            if cursor in seen:
                raise UnreadableReportError("a page leads back to one that was read")
            seen.add(cursor)
            answer = await self._get_report(path, {"after": cursor}, what)
            if any(answer.get(name) != first.get(name) for name in _OF_THE_WHOLE):
                return None
            page, cursor = page_of(answer)
            entries += page
            if len(entries) > first["entry_count"]:
                raise UnreadableReportError(f"its pages hold more entries than the {first['entry_count']} it counts")
        return {**first, "entries": entries}

    async def _get_report(self, path: str, query: dict[str, str], what: str) -> dict[str, Any]:
        status, answer = await self._get(path, query)
        if status != 200:
            raise ProcessorUnavailableError(f"{what} answered {status} ({_error(answer)[0]}). Nothing was taken in.")
        return answer

    async def _get(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        # A page may be long: each piece must come in time, and the whole of it in ten times that.
        timeout_s = self.capabilities.timeout_s
        patience = aiohttp.ClientTimeout(total=10 * timeout_s, connect=min(5.0, timeout_s / 2), sock_read=timeout_s)
        try:
            async with self._opened().get(
                f"{self._url}{path}",
                params=query,
                timeout=patience,
                allow_redirects=False,
            ) as response:
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProcessorUnavailableError(
                f"{self.name}: {path} gave no answer ({_words(error)}). Nothing is known; ask again."
            ) from error
        answer = _object(content)
        if answer is None:
            raise ProcessorUnavailableError(f"{self.name}: {path} answered {status} with no JSON object; ask again.")
        return status, answer

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError(f"{self.name} is used outside its `async with`")
        return self._session


def _retry_after_s(text: str) -> float:
    """Read a Retry-After of either form: seconds, or an HTTP date; 0 where there is none that can be read."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # no date, or one without a zone
        return 0.0


def _acknowledged(
    what: str, status: int, content: bytes, idempotency_key: str, retry_after_s: float
) -> Acknowledgement:
    """Read the answer to a submission; whatever leaves a doubt is an unknown outcome."""
    answer = _object(content) or {}
    reference = answer.get("id")
    if status in (200, 201) and isinstance(reference, str) and reference:
        if answer.get("idempotency_key") == idempotency_key:
            return Acknowledgement(reference)
        raise PayoutOutcomeUnknownError(
            f"{what}: the answer is about another request. Ours may have been carried out; it is looked up, not sent "
            "again."
        )
    code, message = _error(answer)
    if status == 409 and code == _KEY_REUSE:
        raise PayoutKeyConflictError(
            f"{what}: the processor has another request under this key ({code}). Nothing was done with "
            "ours; money may have moved under the key. It is looked up, not sent again."
        )
    if code and status in _NOT_NOW:
        raise ProcessorUnavailableError(
            f"{what}: answered {status}, {code}: {message}. Nothing was accepted.", retry_after_s=retry_after_s
        )
    if code and status in _REFUSED:
        raise PayoutRejectedError(f"{what}: rejected, {code}: {message}. No money moved.", code=code)
    raise PayoutOutcomeUnknownError(
        f"{what}: answered {status} ({code or 'nothing that can be read'}). It may have been carried out; it is looked "
        "up, not sent again."
    )


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"PAYMENTS_PROCESSOR_URL: {NAME} needs an address such as http://127.0.0.1:4010, without a login. "
            "Nothing was sent."
        )
    return url.rstrip("/")


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def _error(answer: dict[str, Any]) -> tuple[str, str]:
    """Give code and message of the processor's own error; empty where there is none."""
    error = answer.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return "", ""
    return error["code"], str(error.get("message", ""))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
