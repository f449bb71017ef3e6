"""Match days as they are stored: the Parquet of a day's assets beside what was posted for it.

Belongs here: reading. Does not belong here: any rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import psycopg

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import LocalStore, ObjectNotFoundError, ObjectStore, open_store
from payments_pipeline.storage.parquet import partition_key
from payments_pipeline.verify.parquet_rows import Row, read_rows
from payments_pipeline.verify.reference import Reference, read_reference

#: match, pot, pot party, line, account, currency.
Key = tuple[str, str, str, int, str, str]
_MATCH_COLUMNS = (
    "match_id",
    "competition_id",
    "home_club_id",
    "away_club_id",
    "status",
    "home_score",
    "away_score",
    "winner_club_id",
    "revenue_minor",
    "currency",
    "schedule_version",
)
_PARTICIPANT_COLUMNS = ("match_id", "party_id", "club_id", "role")
_SHARE_COLUMNS = (
    "match_id",
    "competition_id",
    "pot",
    "pot_party_id",
    "line_no",
    "recipient",
    "party_id",
    "amount_minor",
    "currency",
)


class ReferenceNow:
    """The reference data as it is now; read when first asked for, since an empty store needs none."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.reference

    @cached_property
    def data(self) -> Reference:
        """The reference data."""
        return read_reference(open_store(self._url))


@dataclass
class StoredDay:
    """One match day.

    Attributes:
        day: the match day.
        store: where its assets are.
        posted: what stands posted of accruals, minor units > 0 a credit; None where the day was never posted.
        broken: matches that the day's newest posting left alone.
        reference_now: the reference data as it is now.
    """

    day: date
    store: ObjectStore
    posted: dict[Key, int] | None
    broken: frozenset[str]
    reference_now: ReferenceNow

    @property
    def shares(self) -> list[Row] | None:
        """Rows of participant_shares; None where none are stored."""
        return None if self._shares is None else self._shares[0]

    @property
    def input_hashes(self) -> dict[str, str]:
        """Hashes of the input that the shares were computed from."""
        hashes: dict[str, str] = {} if self._shares is None else self._shares[1].get("input_hashes", {})
        return hashes

    @cached_property
    def matches(self) -> list[Row]:
        """Rows of match_results; none where none are stored."""
        found = self._read("match_results", _MATCH_COLUMNS)
        return [] if found is None else found[0]

    @cached_property
    def participants(self) -> list[Row]:
        """Rows of match_participants; none where none are stored."""
        found = self._read("match_participants", _PARTICIPANT_COLUMNS)
        return [] if found is None else found[0]

    @cached_property
    def _shares(self) -> tuple[list[Row], dict[str, Any]] | None:
        return self._read("participant_shares", _SHARE_COLUMNS)

    def _read(self, asset: str, columns: tuple[str, ...]) -> tuple[list[Row], dict[str, Any]] | None:
        try:
            data = self.store.read(partition_key(asset, self.day.isoformat()))
        except ObjectNotFoundError:
            return None
        return read_rows(data, columns)


def stored_keys(store: ObjectStore, asset: str) -> list[tuple[date, str]]:
    """Give the stored days of an asset, with their keys; none in a folder that nothing was ever written to."""
    if isinstance(store, LocalStore) and not store.root.is_dir():
        return []
    return [
        (date.fromisoformat(found.key.split("/")[1].removeprefix("date=")), found.key)
        for found in store.list(f"{asset}/")
        if found.key.startswith(f"{asset}/date=")
    ]


def stored_days(connection: psycopg.Connection, store: ObjectStore, reference: ReferenceNow) -> Iterator[StoredDay]:
    """Give every day that has shares or was posted, in order."""
    posted: dict[date, dict[Key, int]] = {
        row[0]: {} for row in connection.execute("SELECT DISTINCT match_day FROM day_postings").fetchall()
    }
    for day, *key, amount in connection.execute(
        """SELECT day, match_id, pot, pot_party_id, line_no, account, currency::text,
                  (sum(credit_minor) - sum(debit_minor))::bigint
           FROM ledger_entries WHERE kind = 'accrual'
           GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING sum(credit_minor) <> sum(debit_minor)"""
    ).fetchall():
        posted.setdefault(day, {})[tuple(key)] = amount
    broken: dict[date, set[str]] = defaultdict(set)
    for day, match_id in connection.execute(
        """SELECT b.match_day, b.match_id FROM posting_breaks b
           JOIN (SELECT match_day, max(seq) AS seq FROM day_postings GROUP BY 1) n USING (match_day, seq)"""
    ).fetchall():
        broken[day].add(match_id)
    with_shares = {day for day, _ in stored_keys(store, "participant_shares")}
    for day in sorted(with_shares | posted.keys()):
        yield StoredDay(day, store, posted.get(day), frozenset(broken[day]), reference)
