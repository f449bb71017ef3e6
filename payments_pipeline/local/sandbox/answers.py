"""What the sandbox answers: statuses and JSON bodies, and every error code there is.

Belongs here: how an answer looks. Does not belong here: deciding which one is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

#: Largest body taken, in bytes.
LARGEST_BODY = 65_536
#: Status of each error code and what it means; docs/reference/sandbox.md holds them, a test compares the two.
CODES = {
    "invalid_request": (400, "the request cannot be read, or its fields are not exactly those asked for"),
    "idempotency_key_missing": (400, "there is no Idempotency-Key of 1 to 255 printable ASCII characters"),
    "invalid_direction": (422, "direction is neither credit nor debit"),
    "invalid_amount": (422, "amount_minor is not from 1 to 1000000000000000"),
    "unknown_currency": (422, "currency is no ISO 4217 currency with minor units"),
    "invalid_token": (422, "the token is malformed"),
    "invalid_date": (422, "a date is not written YYYY-MM-DD, or not from 1970-01-01 to 2999-12-31"),
    "invalid_reference": (422, "reference is not of 1 to 255 characters"),
    "invalid_subject": (422, "subject is not of 1 to 255 characters"),
    "account_closed": (402, "the account behind the token is closed; the payment will never be carried out"),
    "idempotency_key_reuse": (409, "the key stands for a request with another body; nothing was done with this one"),
    "request_in_progress": (409, "a request under the key is under way; nothing was done with this one"),
    "never_seen": (404, "no request was seen under the key, or the key has expired"),
    "no_such_payment": (404, "there is no payment of that id"),
    "no_such_entry": (404, "there is no entry of that reference"),
    "unauthorized": (401, "the API key is missing or wrong"),
    "unknown_route": (404, "there is nothing at that path"),
    "method_not_allowed": (405, "the path does not take that method"),
    "body_too_large": (413, f"the body is larger than {LARGEST_BODY} bytes"),
    "request_timeout": (408, "the request took too long; whether anything was done is not known"),
    "rate_limited": (429, "too many requests; nothing was done"),
    "unavailable": (503, "not now; nothing was done"),
    "internal_error": (500, "a fault of the processor; whether anything was done is not known"),
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: its code.
        body: JSON.
    """

    status: int
    body: bytes

    @classmethod
    def of(cls, status: int, content: object) -> Answer:
        """Encode an answer."""
        return cls(status, orjson.dumps(content))

    @classmethod
    def error(cls, code: str, *, status: int | None = None, message: str = "") -> Answer:
        """Encode an error as every error looks: `{"error": {"code", "message"}}`.

        Args:
            code: of CODES.
            status: where it is not the code's own.
            message: words of its own; default: those of CODES.
        """
        own_status, words = CODES[code]
        return cls.of(status or own_status, {"error": {"code": code, "message": message or words}})
