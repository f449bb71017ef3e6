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
from psycopg.rows import dict_row

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import LocalStore, ObjectNotFoundError, ObjectStore, open_store
from payments_pipeline.storage.parquet import partition_key
from payments_pipeline.verify.parquet_rows import Row, read_rows
from payments_pipeline.verify.reference import Reference, read_reference

#: match, pot, pot party, line, account, currency.
Key = tuple[str, str, str, int, str, str]
#: Newest row of `match_postings` by match.
MatchPostings = dict[str, dict[str, Any]]
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
    "payout_policy",
    "kicked_off_at",
    "revision",
    "content_hash",
    "rules_hash",
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
_COLUMNS = {
    "match_results": _MATCH_COLUMNS,
    "match_participants": _PARTICIPANT_COLUMNS,
    "rejected_records": ("dataset", "outcome"),
    "participant_shares": _SHARE_COLUMNS,
}


class ReferenceNow:
    """The reference data as it is now; read when first asked for, since an empty store needs none."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.reference

    @cached_property
    def data(self) -> Reference:
        """The reference data."""
        return read_reference(open_store(self._url))


@dataclass(frozen=True)
class DayPosting:
    """The newest posting of a day.

    Attributes:
        seq: its number.
        input_hashes: of the input that was posted.
        matches: how many it was of.
        shares: how many it was of.
        breaks: reason by match that it left alone.
    """

    seq: int
    input_hashes: dict[str, str]
    matches: int
    shares: int
    breaks: dict[str, str]


@dataclass
class StoredDay:
    """One match day.

    Attributes:
        day: the match day.
        store: where its assets are.
        posted: what stands posted of accruals, minor units > 0 a credit.
        posting: its newest posting; None where it was never posted.
        match_postings: newest row of every match, of whatever day.
        reference_now: the reference data as it is now.
    """

    day: date
    store: ObjectStore
    posted: dict[Key, int]
    posting: DayPosting | None
    match_postings: MatchPostings
    reference_now: ReferenceNow

    def file(self, asset: str) -> tuple[list[Row], dict[str, Any]] | None:
        """Give rows and metadata of an asset's partition; None where it is not stored."""
        return self._files[asset]

    @property
    def shares(self) -> list[Row] | None:
        """Rows of participant_shares; None where none are stored."""
        found = self._files["participant_shares"]
        return None if found is None else found[0]

    @property
    def broken(self) -> dict[str, str]:
        """Reason by match that the newest posting left alone."""
        return {} if self.posting is None else self.posting.breaks

    def is_posted(self, asset: str) -> bool:
        """Say whether an asset's partition is of the input that was posted; it may have been written again since."""
        found = self._files[asset]
        return (
            self.posting is not None and found is not None and found[1].get("input_hashes") == self.posting.input_hashes
        )

    @property
    def matches(self) -> list[Row]:
        """Rows of match_results; none where none are stored."""
        found = self._files["match_results"]
        return [] if found is None else found[0]

    @property
    def participants(self) -> list[Row]:
        """Rows of match_participants; none where none are stored."""
        found = self._files["match_participants"]
        return [] if found is None else found[0]

    @cached_property
    def _files(self) -> dict[str, tuple[list[Row], dict[str, Any]] | None]:
        return {asset: self._read(asset, columns) for asset, columns in _COLUMNS.items()}

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
    postings = _newest_postings(connection)
    match_postings = _newest_match_postings(connection)
    posted: dict[date, dict[Key, int]] = defaultdict(dict)
    for day, *key, amount in connection.execute(
        """SELECT day, match_id, pot, pot_party_id, line_no, account, currency::text,
                  (sum(credit_minor) - sum(debit_minor))::bigint
           FROM ledger_entries WHERE kind = 'accrual'
           GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING sum(credit_minor) <> sum(debit_minor)"""
    ).fetchall():
        posted[day][tuple(key)] = amount
    with_shares = {day for day, _ in stored_keys(store, "participant_shares")}
    for day in sorted(with_shares | posted.keys() | postings.keys()):
        yield StoredDay(day, store, posted[day], postings.get(day), match_postings, reference)


def _newest_postings(connection: psycopg.Connection) -> dict[date, DayPosting]:
    postings = {
        day: DayPosting(seq, input_hashes, matches, shares, {})
        for day, seq, input_hashes, matches, shares in connection.execute(
            """SELECT DISTINCT ON (match_day) match_day, seq, input_hashes, matches, shares FROM day_postings
               ORDER BY match_day, seq DESC"""
        ).fetchall()
    }
    for day, seq, match_id, reason in connection.execute(
        "SELECT match_day, seq, match_id, reason FROM posting_breaks"
    ).fetchall():
        if day in postings and postings[day].seq == seq:
            postings[day].breaks[match_id] = reason
    return postings


def _newest_match_postings(connection: psycopg.Connection) -> MatchPostings:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """SELECT DISTINCT ON (match_id) match_id::text, match_day, competition_id::text, revision, content_hash,
                      rules_hash, schedule_version, currency::text, payout_policy, revenue_minor, participants, is_open
               FROM match_postings ORDER BY match_id, posting_no DESC"""
        ).fetchall()
    return {row["match_id"]: row for row in rows}
