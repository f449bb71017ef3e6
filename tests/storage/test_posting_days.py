"""A day is posted from the input that it has, under its lock: nothing computed before it changed gets through."""

from collections.abc import Callable, Mapping

import pandas as pd
import psycopg
import pytest
from by_hand import connect as by_hand
from by_hand import posting
from money_zone import DAY, HASHES, NEXT, RUN, MoneyZone, match, matches_frame, participants_frame, share, shares_frame
from psycopg import errors

from payments_pipeline.domain.errors import StaleInputError
from payments_pipeline.storage.ledger_entries import DayInput, Posted, post_day
from payments_pipeline.storage.postgres import Lock, connect, day_key


@pytest.fixture
def zone(database_url: str) -> MoneyZone:
    return MoneyZone(database_url)


def _post(zone: MoneyZone, hash_again: Callable[[], Mapping[str, str]], revision: int, amount_minor: int) -> Posted:
    nothing = pd.DataFrame({"dataset": [], "outcome": [], "match_id": [], "reason": []}, dtype=object)
    matches, shares = (
        [match("m-1", revision, revenue_minor=amount_minor) | {"match_day": DAY}],
        [share("m-1", "a", amount_minor)],
    )
    read = DayInput(matches_frame(matches), participants_frame([]), shares_frame(shares), nothing, HASHES)
    return post_day(zone.url, DAY, read, hash_again, RUN)


@pytest.mark.rule("posting/stale-input")
@pytest.mark.parametrize(
    ("now", "named"),
    [({"landing": "2"}, "landing"), (HASHES | {"schedules": "1"}, "schedules"), ({}, "landing")],
    ids=["changed", "further", "gone"],
)
def test_shares_of_other_input_than_the_day_has_are_refused_and_nothing_is_posted(zone, now, named):
    with pytest.raises(StaleInputError, match=f"{named} changed after the shares were computed. Nothing was posted"):
        _post(zone, lambda: now, 1, 600)
    assert [zone.value(f"SELECT count(*) FROM {table}") for table in ("day_postings", "ledger_entries")] == [0, 0]


@pytest.mark.rule("posting/stale-input")
def test_a_stalled_run_posts_nothing_over_what_a_later_one_has_posted(zone):
    def stalled() -> Mapping[str, str]:
        return {"landing": "of the correction"}

    _post(zone, lambda: HASHES, 2, 700)
    with pytest.raises(StaleInputError):
        _post(zone, stalled, 1, 600)
    assert zone.open_items() == {"a": 700}


@pytest.mark.rule("posting/under-its-lock")
def test_the_input_is_hashed_again_under_the_days_lock_and_in_no_transaction(zone):
    seen = []

    def look() -> Mapping[str, str]:
        with connect(zone.url) as other:
            taken = other.execute("SELECT pg_try_advisory_lock(%s, %s)", (int(Lock.DAY), day_key(DAY))).fetchone()
            open_for = other.execute(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"""
            ).fetchone()
        seen.append((taken, open_for))
        return HASHES

    _post(zone, look, 1, 600)
    assert seen == [((False,), (0,))]
    with psycopg.connect(zone.url) as other:
        assert other.execute("SELECT pg_try_advisory_lock(%s, %s)", (int(Lock.DAY), day_key(DAY))).fetchone() == (True,)


@pytest.mark.rule("posting/competition-currency")
def test_a_competition_is_posted_in_one_currency_whichever_match_comes_in_another(database):
    zone = MoneyZone(database.url)
    zone.owe(a=600)
    posted = zone.post([match("m2", day=NEXT, currency="EUR")], [share("m2", "a", 5, currency="EUR")], NEXT)
    assert posted.plan.breaks[["match_id", "reason"]].to_numpy().tolist() == [["m2", "currency_changed"]]
    assert "is in EUR now, and c1 was posted in GBP" in posted.plan.breaks["words"].iloc[0]
    assert zone.balances() == {"party:a": -600, "pot:c1": 600}
    other = zone.post(
        [match("m3", day=NEXT, currency="EUR", competition_id="c2")], [share("m3", "a", 5, currency="EUR")], NEXT
    )
    assert other.entries == 2
    with by_hand(database.migrator_url) as connection, pytest.raises(errors.RestrictViolation, match="is posted in"):
        posting(connection, NEXT, 1, currency="EUR", match_id="m4")
