"""What the sandbox is asked for, checked field by field before anything is done.

Belongs here: the fields of a request, what each may hold, the code of the first that is wrong. Does not belong here:
doing what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from payments_pipeline.domain.money import is_currency
from payments_pipeline.local.sandbox.tokens import Kind, Outcome, outcome_of

M = TypeVar("M", bound=BaseModel)

#: No amount is above this.
LARGEST_MINOR = 10**15
FIRST_DATE, LAST_DATE = date(1970, 1, 1), date(2999, 12, 31)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KEY = re.compile(r"[!-~]{1,255}")
PAYMENT_FIELDS: Mapping[str, type] = {
    "direction": str,
    "amount_minor": int,
    "currency": str,
    "token": str,
    "execute_on": str,
    "reference": str,
}
FUNDING_FIELDS: Mapping[str, type] = {"currency": str, "amount_minor": int, "subject": str, "date": str}


class Expiry(BaseModel):
    """When a key is to die: now, after seconds, or on a date.

    Attributes:
        idempotency_key: which.
        after_s: seconds from now.
        on: the processor's date, YYYY-MM-DD, as soon as it has come; its lifetime may end before.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    idempotency_key: str
    after_s: float | None = Field(None, ge=0, le=86_400)
    on: str | None = None

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.after_s is not None and self.on is not None:
            raise ValueError("a key dies after_s or on a date, not both")
        return self


class OwnLine(BaseModel):
    """A report line of the processor's own: no request brought it about.

    Attributes:
        kind: what it says.
        amount_minor: effect on our balance, > 0 in, < 0 out, 0 no cash.
        currency: ISO 4217.
        date: of the report that it stands in, YYYY-MM-DD.
        idempotency_key: that it names, whether or not anybody sent it.
        subject: what it is about.
        reason: the processor's reason.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Kind = Field(strict=False)
    amount_minor: int = Field(ge=-LARGEST_MINOR, le=LARGEST_MINOR)
    currency: str
    date: str
    idempotency_key: str | None = None
    subject: str | None = Field(None, min_length=1, max_length=255)
    reason: str | None = Field(None, min_length=1, max_length=255)


class RefusedError(Exception):
    """A request is refused for good; nothing is done.

    Attributes:
        code: of `answers.CODES`.
        message: words of its own; empty for the code's.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Payment:
    """A payment that can be accepted; attributes as in the request, `outcome` as its token says."""

    direction: str
    amount_minor: int
    currency: str
    token: str
    execute_on: date
    reference: str
    outcome: Outcome


@dataclass(frozen=True)
class Funding:
    """A wire received; attributes as in the request."""

    currency: str
    amount_minor: int
    subject: str
    received_on: date


def read_payment(body: bytes) -> Payment:
    """Read a payment.

    Raises:
        RefusedError: names the first thing wrong, in the order of the fields; a closed account comes last.
    """
    fields = read_fields(body, PAYMENT_FIELDS)
    if fields["direction"] not in ("credit", "debit"):
        raise RefusedError("invalid_direction")
    _check_money(fields)
    outcome = outcome_of(fields["token"])
    if outcome is None:
        raise RefusedError("invalid_token")
    execute_on = read_date(fields["execute_on"])
    if any((LAST_DATE - execute_on).days < line.after_days for line in outcome.lines):
        raise RefusedError("invalid_date")
    _check_text(fields, "reference")
    if outcome.refused:
        raise RefusedError(outcome.refused)
    return Payment(**{**fields, "execute_on": execute_on}, outcome=outcome)


def read_funding(body: bytes) -> Funding:
    """Read a funding.

    Raises:
        RefusedError: names the first thing wrong.
    """
    fields = read_fields(body, FUNDING_FIELDS)
    _check_money(fields)
    _check_text(fields, "subject")
    return Funding(fields["currency"], fields["amount_minor"], fields["subject"], read_date(fields["date"]))


def read_own_line(body: bytes) -> OwnLine:
    """Read a line of the processor's own.

    Raises:
        RefusedError: names what is wrong.
    """
    line = read_model(OwnLine, body)
    if not is_currency(line.currency):
        raise RefusedError("unknown_currency")
    read_date(line.date)
    if line.idempotency_key is not None:
        read_key(line.idempotency_key)
    return line


def read_model(model: type[M], body: bytes) -> M:
    """Read what a test helper takes.

    Raises:
        RefusedError: it is anything else; says what is wrong with which field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
        raise RefusedError("invalid_request", words) from None


def read_fields(body: bytes, fields: Mapping[str, type]) -> dict[str, Any]:
    """Read a JSON object of exactly these fields, each of its type.

    Raises:
        RefusedError: it is anything else.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RefusedError("invalid_request", "the body is no JSON") from None
    if not isinstance(content, dict) or content.keys() != fields.keys():
        raise RefusedError("invalid_request", f"the body must be a JSON object of {', '.join(fields)}, and no more")
    for name, kind in fields.items():
        # To isinstance a bool is an int, and 1.0 is no whole number.
        if type(content[name]) is not kind:
            raise RefusedError("invalid_request", f"{name} must be {'a whole number' if kind is int else 'a string'}")
    return content


def read_date(text: str | None) -> date:
    """Read a date written YYYY-MM-DD.

    Raises:
        RefusedError: it is none, or beyond what the sandbox keeps.
    """
    try:
        day = date.fromisoformat(text) if text is not None and _DATE.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or not FIRST_DATE <= day <= LAST_DATE:
        raise RefusedError("invalid_date")
    return day


def read_key(text: str | None) -> str:
    """Read an idempotency key.

    Raises:
        RefusedError: there is none, or it is too long or not printable.
    """
    if text is None or not _KEY.fullmatch(text):
        raise RefusedError("idempotency_key_missing")
    return text


def _check_money(fields: Mapping[str, Any]) -> None:
    if not 0 < fields["amount_minor"] <= LARGEST_MINOR:
        raise RefusedError("invalid_amount")
    if not is_currency(fields["currency"]):
        raise RefusedError("unknown_currency")


def _check_text(fields: Mapping[str, Any], name: str) -> None:
    if not 0 < len(fields[name]) <= 255:
        raise RefusedError(f"invalid_{name}")
