"""Rules over what is stored in files, beside the tables: match days, reports, and who may be paid.

Belongs here: reading each day once for all its rules. Does not belong here: the rules of a match day (`rules_shares`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import ObjectStore, open_store
from payments_pipeline.verify import rules_shares
from payments_pipeline.verify.parquet_rows import read_rows
from payments_pipeline.verify.stored_days import ReferenceNow, stored_days, stored_keys

Found = tuple[int, list[str]]
_REPORTS = "report lines are those of the stored reports"
_PAYABLE = "no approved instruction is of a party that may not be paid"
#: In the order in which they are checked.
FILE_RULES = (*rules_shares.RULES, _REPORTS, _PAYABLE)


def check_files(connection: psycopg.Connection, settings: Settings) -> Iterator[tuple[str, Found]]:
    """Check every rule over files.

    Args:
        connection: in a transaction that sees one moment.
        settings: where assets and reference data are stored.

    Yields:
        Rule, how many were looked at, and the breaches.
    """
    store = open_store(settings.storage)
    reference = ReferenceNow(settings)
    checked = dict.fromkeys(rules_shares.RULES, 0)
    breaches: dict[str, list[str]] = {rule: [] for rule in rules_shares.RULES}
    for stored in stored_days(connection, store, reference):
        for rule, check in rules_shares.RULES.items():
            number, found = check(stored)
            checked[rule] += number
            breaches[rule] += found
    for rule in rules_shares.RULES:
        yield rule, (checked[rule], breaches[rule])
    yield _REPORTS, report_lines_equal_reports(connection, store)
    yield _PAYABLE, approved_parties_may_be_paid(connection, reference)


def report_lines_equal_reports(connection: psycopg.Connection, store: ObjectStore) -> Found:
    """Each line of a stored report is taken in once, as it stands, and no other is."""
    columns = ("report_date", "kind", "amount_minor", "currency", "idempotency_key")
    taken = {
        (processor, reference): tuple(content)
        for processor, reference, *content in connection.execute(
            """SELECT processor, entry_reference, report_date, kind, amount_minor, currency::text, idempotency_key
               FROM report_lines"""
        ).fetchall()
    }
    reported: dict[tuple[str, str], tuple[Any, ...]] = {}
    for _, key in stored_keys(store, "settlement_reports"):
        for row in read_rows(store.read(key), ("processor", "entry_reference", *columns))[0]:
            reported[row["processor"], row["entry_reference"]] = tuple(row[column] for column in columns)
    return len(reported.keys() | taken.keys()), [
        f"{line[0]} entry {line[1]}: reported {_said(reported.get(line))}, taken in {_said(taken.get(line))}; run the "
        "day of the report again"
        for line in sorted(reported.keys() | taken.keys())
        if reported.get(line) != taken.get(line)
    ]


def _said(content: tuple[Any, ...] | None) -> str:
    if content is None:
        return "nowhere"
    report_date, kind, amount, currency, key = content
    return f"{report_date} as {kind} of {amount} {currency} under key {key}"


def approved_parties_may_be_paid(connection: psycopg.Connection, reference: ReferenceNow) -> Found:
    """A party on hold or closed has no approved instruction: the next dispatch would cancel it."""
    approved = connection.execute(
        """SELECT i.instruction_id, i.party_id, i.direction, i.amount_minor, i.currency::text
           FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
           WHERE s.state = 'approved' ORDER BY i.sweep_day, i.instruction_id"""
    ).fetchall()
    status = reference.data.party_status if approved else {}
    return len(approved), [
        f"instruction {instruction_id} ({direction} {amount} {currency}) is approved and {party_id} is "
        f"{status.get(party_id, 'not in the reference data')}; dispatch cancels it, run its day again"
        for instruction_id, party_id, direction, amount, currency in approved
        if status.get(party_id) != "active"
    ]
