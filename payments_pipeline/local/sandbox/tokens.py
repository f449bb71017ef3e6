"""Test tokens: what becomes of a payment follows from its token, for credits and debits alike.

Belongs here: reading a token, and the report lines it stands for. Does not belong here: keeping or reporting them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from payments_pipeline.domain.money import is_currency


class Kind(StrEnum):
    """What a report line says."""

    SETTLED = "settled"
    FAILED = "failed"
    RETURNED = "returned"
    FEE = "fee"
    FUNDING = "funding"
    OTHER = "other"


@dataclass(frozen=True)
class PlannedLine:
    """One report line that a payment will have.

    Attributes:
        kind: settled, failed, returned or fee.
        after_days: days after the payment's execution date.
        short_minor: settled: how much less than the payment's amount moves; at least 1 moves.
        over_minor: settled: how much more moves.
        currency: what moves, where it is not the payment's.
        fee_minor: fee: what it costs.
        copies: how often the line stands in the report, word for word; its cash moves once.
        reason: the processor's reason.
    """

    kind: Kind
    after_days: int = 0
    short_minor: int = 0
    over_minor: int = 0
    currency: str | None = None
    fee_minor: int = 0
    copies: int = 1
    reason: str | None = None

    def cash_minor(self, direction: str, amount_minor: int) -> int:
        """Give the line's effect on our balance: > 0 in, < 0 out."""
        if self.kind is Kind.FEE:
            return -self.fee_minor
        if self.kind is Kind.FAILED:
            return 0
        moved = max(amount_minor - self.short_minor, 1) + self.over_minor
        outwards = (direction == "credit") == (self.kind is Kind.SETTLED)
        return -moved if outwards else moved


@dataclass(frozen=True)
class Outcome:
    """What becomes of a payment.

    Attributes:
        lines: the report lines it will have, in the order of their entry references.
        refused: the code under which it is refused at submission; empty where it is accepted.
    """

    lines: tuple[PlannedLine, ...] = ()
    refused: str = ""


#: For people: `--tokens` prints it, docs/reference/sandbox.md holds it, a test compares the two.
WORDS = {
    "tok_<id>": "settles on its execution date",
    "tok_test_decline": "refused for good at submission, code account_closed",
    "tok_test_fail": "accepted; reported failed on its execution date, no cash moves",
    "tok_test_return_<n>d": "settles; returned n days later, the cash comes back",
    "tok_test_short_<minor>": "settles with that much less cash, at least 1",
    "tok_test_over_<minor>": "settles with that much more cash, in one line",
    "tok_test_in_<currency>": "settles in that currency instead, as many minor units of it",
    "tok_test_twice": "settles; the report lists the line twice under one entry reference, the cash moves once",
    "tok_test_double": "settles twice under two entry references: really paid twice",
    "tok_test_fee_<minor>": "settles; a fee of that amount is charged as a line of its own",
    "tok_test_lines_<steps>": (
        "reports what the steps say: each s (settled), f (failed) or r (returned) and the days after the execution "
        "date, such as f0s1r3"
    ),
}
_TOKEN = re.compile(r"tok_[A-Za-z0-9_-]{1,200}")
_TEST = re.compile(
    r"tok_test_(?:(?P<plain>decline|fail|twice|double)|return_(?P<days>[0-9]{1,3})d|short_(?P<short>[0-9]{1,15})"
    r"|over_(?P<over>[0-9]{1,15})|in_(?P<currency>[A-Z]{3})|fee_(?P<fee>0*[1-9][0-9]{0,14})"
    r"|lines_(?P<steps>(?:[sfr][0-9]{1,3}){1,9}))(?:_[A-Za-z0-9_-]*)?"
)
_STEP = re.compile(r"([sfr])([0-9]+)")
_KINDS = {"s": Kind.SETTLED, "f": Kind.FAILED, "r": Kind.RETURNED}
_REASONS = {Kind.FAILED: "account_not_found", Kind.RETURNED: "returned_by_bank"}


def outcome_of(token: str) -> Outcome | None:
    """Read a token.

    Args:
        token: `tok_` and 1 to 200 of ASCII letters, digits, `_` and `-`. After a test token may come `_` and anything
            of these, so that parties can share an outcome and have tokens of their own.

    Returns:
        What becomes of a payment with it; None where it is malformed, unknown test tokens among them.
    """
    if not _TOKEN.fullmatch(token):
        return None
    if not token.startswith("tok_test_"):
        return Outcome((_line(Kind.SETTLED),))
    test = _TEST.fullmatch(token)
    if test is None:
        return None
    if test["plain"]:
        return _PLAIN[test["plain"]]
    if test["days"]:
        return Outcome((_line(Kind.SETTLED), _line(Kind.RETURNED, int(test["days"]))))
    if test["short"]:
        return Outcome((PlannedLine(Kind.SETTLED, short_minor=int(test["short"])),))
    if test["over"]:
        return Outcome((PlannedLine(Kind.SETTLED, over_minor=int(test["over"])),))
    if currency := test["currency"]:
        return Outcome((PlannedLine(Kind.SETTLED, currency=currency),)) if is_currency(currency) else None
    if test["fee"]:
        return Outcome((_line(Kind.SETTLED), PlannedLine(Kind.FEE, fee_minor=int(test["fee"]))))
    return Outcome(tuple(_line(_KINDS[letter], int(days)) for letter, days in _STEP.findall(test["steps"])))


def _line(kind: Kind, after_days: int = 0) -> PlannedLine:
    return PlannedLine(kind, after_days=after_days, reason=_REASONS.get(kind))


_PLAIN = {
    "decline": Outcome(refused="account_closed"),
    "fail": Outcome((_line(Kind.FAILED),)),
    "twice": Outcome((PlannedLine(Kind.SETTLED, copies=2),)),
    "double": Outcome((_line(Kind.SETTLED), _line(Kind.SETTLED))),
}
