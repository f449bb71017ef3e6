"""What tests of the dispatch against a processor in memory share: parties, answers, a clock moved by hand."""

import datetime as dt
from collections.abc import Callable

import pandas as pd
import psycopg
from money_zone import DAY, FakeProcessor, MoneyZone, parties_frame, policy

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)

PARTIES = parties_frame(a="active", b="active", c="active", d="active")
ONCE = policy(dispatch={"retries": 0})
BEFORE = DAY - dt.timedelta(days=1)
LATER = [DAY + dt.timedelta(days=number) for number in range(1, 5)]


def two_approved(url: str) -> MoneyZone:
    """a is owed 600 and d owes 400; both instructions are approved."""
    zone = MoneyZone(url)
    zone.owe(a=600, d=-400)
    zone.sweep(PARTIES)
    return zone


def many_approved(zone: MoneyZone, count: int) -> pd.DataFrame:
    """So many more instructions of the day before; gives all parties."""
    names = [f"p{number}" for number in range(count)]
    zone.owe(BEFORE, **dict.fromkeys(names, 100))
    parties = parties_frame(**dict.fromkeys([*names, "a", "d"], "active"))
    zone.sweep(parties, BEFORE)
    return parties


def raising(error: BaseException) -> Callable[[str], None]:
    def answer(_key: str) -> None:
        raise error

    return answer


UNAVAILABLE = raising(ProcessorUnavailableError("503"))
UNKNOWN = raising(PayoutOutcomeUnknownError("no answer"))
REJECTED = raising(PayoutRejectedError("closed", code="account_closed"))


def keys(processor: FakeProcessor) -> list[str]:
    return [key for key, _ in processor.requests]


def later(database, days: float) -> None:
    """Let so many days have passed since every attempt, by Postgres's clock."""
    with psycopg.connect(database.superuser_url, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            """UPDATE payout_attempts SET started_at = started_at - make_interval(secs => %(s)s),
                                          not_after = not_after - make_interval(secs => %(s)s)""",
            {"s": days * 86_400},
        )


class Clock:
    """Says what time it is; moved by hand."""

    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def days_later(self, days: float) -> None:
        self.now += dt.timedelta(days=days)
