"""Test tokens: which outcome a payment has follows from its token, for credits and debits alike.

Belongs here: reading a token. Does not belong here: carrying a payment out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Every token the sandbox admits; anything else is refused as malformed.
_ORDINARY = re.compile(r"tok_[A-Za-z0-9_]{1,120}")
_TEST = re.compile(
    r"tok_test_(?:(?P<plain>decline|fail|twice|double)|return_(?P<days>\d{1,3})d|short_(?P<short>\d{1,15})|fee_(?P<fee>\d{1,15}))"
    r"(?:_[A-Za-z0-9_]*)?"
)

#: For people: `--tokens` prints it, docs/reference/sandbox.md holds it, a test compares the two.
WORDS = {
    "tok_…": "settles on the date asked for",
    "tok_test_decline": "refused at submission: account_closed",
    "tok_test_fail": "acknowledged, then reported failed on the date asked for; no cash moves",
    "tok_test_return_<n>d": "settles, and is returned n days later",
    "tok_test_short_<minor>": "settles with that much less cash, at least 1",
    "tok_test_twice": "settles, and the line stands in the report twice under one reference",
    "tok_test_double": "settles twice, under two references: really paid twice",
    "tok_test_fee_<minor>": "settles, with a fee line of that amount",
}


@dataclass(frozen=True)
class Outcome:
    """What becomes of a payment.

    Attributes:
        declined: refused at submission.
        failed: reported failed instead of settled.
        returned_after_days: days after settling on which it comes back; None for never.
        short_minor: how much less cash moves.
        copies: how often its settlement line stands in the report.
        settlements: how often it really settles.
        fee_minor: fee line of its own.
    """

    declined: bool = False
    failed: bool = False
    returned_after_days: int | None = None
    short_minor: int = 0
    copies: int = 1
    settlements: int = 1
    fee_minor: int = 0


def outcome_of(token: str) -> Outcome | None:
    """Read a token; None where it is malformed."""
    if not _ORDINARY.fullmatch(token):
        return None
    test = _TEST.fullmatch(token)
    if test is None:
        return None if token.startswith("tok_test_") else Outcome()
    if test["days"]:
        return Outcome(returned_after_days=int(test["days"]))
    if test["short"]:
        return Outcome(short_minor=int(test["short"]))
    if test["fee"]:
        return Outcome(fee_minor=int(test["fee"]))
    return {
        "decline": Outcome(declined=True),
        "fail": Outcome(failed=True),
        "twice": Outcome(copies=2),
        "double": Outcome(settlements=2),
    }[test["plain"]]
