"""Rules over what is stored in Parquet, beside the tables: pots, the division itself, what was posted for it."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg
import pyarrow.parquet as pq

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import ObjectStore, open_store
from payments_pipeline.verify.division import divide_day
from payments_pipeline.verify.reference import Reference, read_reference

Row = dict[str, Any]
Key = tuple[str, str, str, int, str, str]


def _days(store: ObjectStore) -> Iterator[tuple[date, str]]:
    for found in store.list("participant_shares/"):
        day = found.key.split("/")[1].removeprefix("date=")
        yield date.fromisoformat(day), found.key


def _rows(store: ObjectStore, asset: str, day: date) -> list[Row]:
    rows: list[Row] = pq.read_table(
        io.BytesIO(store.read(f"{asset}/date={day.isoformat()}/part-0.parquet"))
    ).to_pylist()
    return rows


def pots_are_conserved(
    _connection: psycopg.Connection, store: ObjectStore, _settings: Settings
) -> tuple[int, list[str]]:
    """Shares of a pot sum to it, to the minor unit."""
    breaches, pots = [], 0
    for day, _ in _days(store):
        revenue = {row["match_id"]: row["revenue_minor"] or 0 for row in _rows(store, "match_results", day)}
        sums: dict[tuple[str, str, str], int] = defaultdict(int)
        for row in _rows(store, "participant_shares", day):
            sums[row["match_id"], row["pot"], row["pot_party_id"]] += row["amount_minor"]
            if row["amount_minor"] == 0:
                breaches.append(f"{day}, match {row['match_id']}: a share of 0 for {row['party_id']}")
        pots += len(sums)
        expected = {pot: revenue.get(pot[0], 0) if pot[1] == "revenue" else 0 for pot in sums}
        breaches += [
            f"{day}, match {pot[0]}, {pot[1]} {pot[2]}: shares sum to {amount}, the pot is {expected[pot]}"
            for pot, amount in sums.items()
            if amount != expected[pot]
        ]
    return pots, breaches


def shares_are_divided_as_the_schedule_says(
    _connection: psycopg.Connection, store: ObjectStore, settings: Settings
) -> tuple[int, list[str]]:
    """The division, row by row in exact fractions, for days whose reference data is what it was."""
    breaches, checked = [], 0
    reference: Reference | None = None
    for day, key in _days(store):
        reference = reference or read_reference(open_store(settings.reference))
        metadata = pq.read_schema(io.BytesIO(store.read(key))).metadata or {}
        if not reference.is_that_of(metadata):
            continue
        expected = divide_day(
            _rows(store, "match_results", day), _rows(store, "match_participants", day), reference, day
        )
        stored = {
            (row["match_id"], row["pot"], row["pot_party_id"], row["line_no"], row["party_id"], row["currency"]): row[
                "amount_minor"
            ]
            for row in _rows(store, "participant_shares", day)
        }
        checked += len(stored)
        breaches += [
            f"{day}, match {share[0]}, {share[1]} line {share[3]}, {share[4]}: stored {stored.get(share, 0)}, the "
            f"schedule says {expected.get(share, 0)}"
            for share in sorted(expected.keys() | stored.keys())
            if expected.get(share, 0) != stored.get(share, 0)
        ]
    return checked, breaches


def postings_equal_shares(
    connection: psycopg.Connection, store: ObjectStore, _settings: Settings
) -> tuple[int, list[str]]:
    """What is posted for a day is what its stored shares say, except for matches with a break."""
    breaches, checked = [], 0
    broken = {
        (day, match_id)
        for day, match_id in connection.execute(
            """SELECT b.match_day, b.match_id FROM posting_breaks b
               WHERE b.seq = (SELECT max(p.seq) FROM day_postings p WHERE p.match_day = b.match_day)"""
        ).fetchall()
    }
    posted_days = {row[0] for row in connection.execute("SELECT DISTINCT match_day FROM day_postings").fetchall()}
    posted: dict[date, dict[Key, int]] = defaultdict(dict)
    for day, *key, amount in connection.execute(
        """SELECT day, match_id, pot, pot_party_id, line_no, account, currency::text,
                  (sum(credit_minor) - sum(debit_minor))::bigint
           FROM ledger_entries WHERE kind = 'accrual' AND account NOT LIKE 'pot:%'
           GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING sum(credit_minor) <> sum(debit_minor)"""
    ).fetchall():
        posted[day][tuple(key)] = amount
    for day, _ in _days(store):
        if day not in posted_days:
            continue
        stored = {
            (
                row["match_id"],
                row["pot"],
                row["pot_party_id"],
                row["line_no"],
                "suspense" if row["line_no"] == 0 else f"party:{row['party_id']}",
                row["currency"],
            ): row["amount_minor"]
            for row in _rows(store, "participant_shares", day)
        }
        checked += len(stored)
        breaches += [
            f"{day}, match {share[0]}, {share[1]} line {share[3]}, {share[4]}: posted {posted[day].get(share, 0)}, "
            f"shares say {stored.get(share, 0)}; run the day again"
            for share in sorted(stored.keys() | posted[day].keys())
            if stored.get(share, 0) != posted[day].get(share, 0) and (day, share[0]) not in broken
        ]
    return checked, breaches


def reports_are_taken_in_whole(
    connection: psycopg.Connection, store: ObjectStore, _settings: Settings
) -> tuple[int, list[str]]:
    """Each line of each stored report stands among the report lines, with its amount."""
    breaches, checked = [], 0
    taken = {
        (processor, reference): (amount, currency)
        for processor, reference, amount, currency in connection.execute(
            "SELECT processor, entry_reference, amount_minor, currency::text FROM report_lines"
        ).fetchall()
    }
    for found in store.list("settlement_reports/"):
        for row in pq.read_table(io.BytesIO(store.read(found.key))).to_pylist():
            checked += 1
            if taken.get((row["processor"], row["entry_reference"])) != (row["amount_minor"], row["currency"]):
                breaches.append(
                    f"{row['processor']} entry {row['entry_reference']} of {row['report_date']}: {row['amount_minor']} "
                    f"{row['currency']} reported, {taken.get((row['processor'], row['entry_reference']))} taken in"
                )
    return checked, breaches


FILE_RULES = {
    "the shares of each pot sum to it": pots_are_conserved,
    "shares are divided as the schedule says, in exact fractions": shares_are_divided_as_the_schedule_says,
    "what is posted is what the shares say": postings_equal_shares,
    "each line of a stored report is taken in": reports_are_taken_in_whole,
}
