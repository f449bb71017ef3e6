"""The sandbox's adapter: its HTTP in the contract's words.

Belongs here: encoding, calling, and reading answers. Does not belong here: retrying, the ledger.
"""

from __future__ import annotations

from datetime import date, timedelta
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
import pandas as pd

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.domain.schemas import SETTLEMENT_REPORTS
from payments_pipeline.processors.base import (
    Acknowledgement,
    Capabilities,
    LookUp,
    LookUpStatus,
    PayoutRequest,
    ReportDigest,
    SettlementReport,
)

NAME = "sandbox"
_CAPABILITIES = Capabilities(
    key_lifetime=timedelta(hours=24), max_concurrency=64, requests_per_second=10_000, timeout_s=15.0
)
#: The processor says that it did nothing: the same bytes may be sent again.
_NOT_ACCEPTED = (429, 503)


class SandboxProcessor:
    """One sandbox processor.

    Attributes:
        url: its address.
        api_key: bearer key; never logged.
        timeout_s: seconds after which a call counts as unanswered.
    """

    name = NAME

    def __init__(self, url: str, api_key: str, timeout_s: float = _CAPABILITIES.timeout_s) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self.capabilities = Capabilities(
            key_lifetime=_CAPABILITIES.key_lifetime,
            max_concurrency=_CAPABILITIES.max_concurrency,
            requests_per_second=_CAPABILITIES.requests_per_second,
            timeout_s=timeout_s,
        )

    async def __aenter__(self) -> Self:
        """Open connections."""
        self._session = aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self.capabilities.max_concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=min(5.0, self._timeout_s)),
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
        """Send once; every doubt is `PayoutOutcomeUnknownError`."""
        what = f"{self.name}: key {idempotency_key}"
        try:
            async with self._open().post(
                "/v1/payments", data=body, headers={"Idempotency-Key": idempotency_key}
            ) as response:
                status, content = response.status, await response.read()
        except aiohttp.ClientConnectorError as error:
            raise ProcessorUnavailableError(f"{what}: no connection ({error}). Nothing was sent.") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PayoutOutcomeUnknownError(
                f"{what}: no answer ({type(error).__name__}). It may have been carried out; it is looked up, not re-sent."
            ) from error
        if status in _NOT_ACCEPTED:
            raise ProcessorUnavailableError(f"{what}: answered {status}. Nothing was accepted.")
        answer = _object(content)
        if answer is None or status >= 500:
            raise PayoutOutcomeUnknownError(
                f"{what}: answered {status} with what cannot be relied on. It may have been carried out; it is looked up."
            )
        if status in (200, 201) and isinstance(answer.get("id"), str):
            return Acknowledgement(answer["id"])
        code, message = _error(answer)
        if status in (401, 403):
            raise ProcessorUnavailableError(f"{what}: the API key is refused ({code}). Nothing was accepted.")
        if status == 409 or code == "":
            # Something was done under this key that we did not ask for: money may have moved under it.
            raise PayoutOutcomeUnknownError(
                f"{what}: answered {status} ({code or 'no code'}): the key stands for another request. It is looked up."
            )
        raise PayoutRejectedError(f"{what}: rejected, {code}: {message}. No money moved.", code=code)

    async def look_up(self, idempotency_key: str) -> LookUp:
        """Ask what became of a key."""
        status, answer = await self._get("/v1/payments", {"idempotency_key": idempotency_key})
        code, message = _error(answer)
        if status == 404 and code == "never_seen":
            return LookUp(LookUpStatus.NEVER_SEEN)
        if answer.get("status") == "accepted":
            return LookUp(LookUpStatus.ACCEPTED, processor_reference=str(answer["id"]))
        if answer.get("status") == "rejected":
            return LookUp(LookUpStatus.REJECTED, code=code, message=message)
        raise ProcessorUnavailableError(f"{self.name}: look-up of key {idempotency_key} answered {status}, {code}.")

    async def report_digests(self, first: date, last: date) -> list[ReportDigest]:
        """List the reports of a range of dates, empty ones left out."""
        status, answer = await self._get("/v1/reports", {"from": first.isoformat(), "to": last.isoformat()})
        if "reports" not in answer:
            raise ProcessorUnavailableError(
                f"{self.name}: the list of reports answered {status}. Nothing was taken in."
            )
        return [
            ReportDigest(date.fromisoformat(row["date"]), row["entry_count"], row["digest"])
            for row in answer["reports"]
        ]

    async def report(self, report_date: date) -> SettlementReport:
        """Fetch one date's report."""
        status, answer = await self._get(f"/v1/reports/{report_date.isoformat()}", {})
        if "entries" not in answer:
            raise ProcessorUnavailableError(
                f"{self.name}: the report of {report_date} answered {status}. Nothing was taken in."
            )
        entries = pd.DataFrame(answer["entries"], columns=list(_ENTRY_FIELDS)).rename(columns=_ENTRY_FIELDS)
        lines = entries.assign(
            processor=self.name,
            report_date=pd.Series([date.fromisoformat(text) for text in entries["report_date"]], dtype=object),
            amount_minor=entries["amount_minor"].astype("int64"),
            occurred_at=pd.to_datetime(entries["occurred_at"], utc=True).astype("datetime64[us, UTC]"),
        )
        balances = pd.DataFrame(answer["balances"], columns=["currency", "opening_minor", "closing_minor"])
        return SettlementReport(
            report_date,
            answer["digest"],
            lines[SETTLEMENT_REPORTS.names],
            balances.astype({"opening_minor": "int64", "closing_minor": "int64"}),
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the processor is used outside its `async with`")
        return self._session

    async def _get(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            async with self._open().get(path, params=query) as response:
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProcessorUnavailableError(
                f"{self.name}: {path} gave no answer ({type(error).__name__}: {error}). Nothing is known; ask again."
            ) from error
        answer = _object(content)
        if answer is None:
            raise ProcessorUnavailableError(f"{self.name}: {path} answered {status} with no JSON object; ask again.")
        return status, answer


#: The sandbox's fields and the contract's.
_ENTRY_FIELDS = {
    "entry_reference": "entry_reference",
    "report_date": "report_date",
    "kind": "kind",
    "idempotency_key": "idempotency_key",
    "payment_id": "processor_reference",
    "subject": "subject",
    "amount_minor": "amount_minor",
    "currency": "currency",
    "reason": "reason",
    "occurred_at": "occurred_at",
}


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def _error(answer: dict[str, Any]) -> tuple[str, str]:
    error = answer.get("error")
    return (str(error.get("code", "")), str(error.get("message", ""))) if isinstance(error, dict) else ("", "")
