"""Refunds asked of the money zone by tests."""

import datetime as dt
from typing import Any

import pandas as pd
from money_zone import DAY, NEXT, RUN, FakeProcessor, MoneyZone, fee, line, match, parties_frame, share

from payments_pipeline.storage.refunds import Accepted, accept_refunds

JANE = "jane"


def request(
    refund_id: str, amount: int | None = None, party: str = "p1", match_id: str = "m", **other: Any
) -> dict[str, Any]:
    return {
        "refund_id": refund_id,
        "match_id": match_id,
        "party_id": party,
        "amount_minor": amount,
        "reason": "rained off",
        "source": "f.csv",
    } | other


def frame(*requests: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(requests).astype({"amount_minor": "Int64"})


def refund(zone: MoneyZone, *requests: dict[str, Any], day: dt.date = NEXT) -> Accepted:
    return accept_refunds(zone.url, day, frame(*requests), JANE, RUN)


def settle(zone: MoneyZone, minor: int = 1000, payer: str = "p1", day: dt.date = DAY) -> None:
    """Have what is approved sent, and what is collected from the payer for `day` settled on that day."""
    zone.dispatch(parties_frame(p1="active", a="active", b="active"), FakeProcessor(), day)
    zone.take_in([line(zone.instruction(payer, day), minor)], day)


def decided(accepted: Accepted) -> list[str]:
    found: list[str] = accepted.decisions["decision"].tolist()
    return found


def charge(
    zone: MoneyZone, revision: int = 1, day: dt.date = DAY, match_id: str = "m", payer: str = "p1", **amounts: int
) -> None:
    """Post a match whose one fee `payer` owes to the parties given; none is a match that owes nothing."""
    shares = fee(match_id, payer, amounts) if amounts else []
    for number, owed in enumerate(shares[1:], 2):
        owed["line_no"] = number
    posted = zone.post([match(match_id, revision, day, revenue_minor=0)], shares, day)
    assert posted.plan.breaks.empty, posted.plan.breaks.to_dict("records")


def nets(zone: MoneyZone, kind: str) -> dict[str, int]:
    """What is posted under a kind of journal, by account."""
    return dict(
        zone.rows(
            """SELECT account, sum(credit_minor - debit_minor)::bigint FROM ledger_entries WHERE kind = %s
               GROUP BY 1 HAVING sum(credit_minor) <> sum(debit_minor)""",
            kind,
        )
    )


def applied(zone: MoneyZone) -> dict[str, int]:
    """What of each refund is posted to its payer."""
    return dict(
        zone.rows(
            """SELECT refund_id, sum(credit_minor - debit_minor)::bigint FROM ledger_entries
               WHERE kind = 'refund' AND recipient = 'payer' GROUP BY 1 ORDER BY 1"""
        )
    )


__all__ = [
    "DAY",
    "JANE",
    "NEXT",
    "applied",
    "charge",
    "decided",
    "frame",
    "nets",
    "refund",
    "request",
    "settle",
    "share",
]
