"""Rules over what is stored in files, beside the tables: match days, reports and certificates.

Belongs here: reading each day once for all its rules. Does not belong here: the rules of a match day (`rules_shares`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import ObjectStore, open_store
from payments_pipeline.verify import rules_input, rules_matches, rules_shares
from payments_pipeline.verify.found import Found
from payments_pipeline.verify.parquet_rows import read_rows
from payments_pipeline.verify.rules_certificates import CERTIFICATES, certificates_say_what_was_posted
from payments_pipeline.verify.stored_days import ReferenceNow, stored_days, stored_keys

_DAY_RULES = rules_input.RULES | rules_shares.RULES | rules_matches.RULES
_REPORTS = "report lines are those of the stored reports"
_INTAKES = "intakes and balances are those of the stored reports"
#: In the order in which they are checked.
FILE_RULES = (*_DAY_RULES, _REPORTS, _INTAKES, CERTIFICATES)
#: What both the stored report and `report_lines` hold of a line, but its key.
_LINE_COLUMNS = (
    "report_date",
    "kind",
    "amount_minor",
    "currency",
    "idempotency_key",
    "processor_reference",
    "subject",
    "reason",
    "occurred_at",
)


def check_files(
    connection: psycopg.Connection, settings: Settings, certificates: list[str]
) -> Iterator[tuple[str, Found]]:
    """Check every rule over files.

    Args:
        connection: in a transaction that sees one moment.
        settings: where assets and reference data are stored.
        certificates: keys of those that were stored before that moment.

    Yields:
        Rule, and what it found.
    """
    store = open_store(settings.storage)
    reference = ReferenceNow(settings)
    found = {rule: Found() for rule in _DAY_RULES}
    for stored in stored_days(connection, store, reference):
        for rule, check in _DAY_RULES.items():
            found[rule].add(check(stored))
    yield from found.items()
    yield _REPORTS, report_lines_equal_reports(connection, store)
    yield _INTAKES, intakes_equal_reports(connection, store)
    yield CERTIFICATES, certificates_say_what_was_posted(connection, store, certificates)


def report_lines_equal_reports(connection: psycopg.Connection, store: ObjectStore) -> Found:
    """Each line of a stored report is taken in once, as it stands, and no other is."""
    taken = {
        (processor, reference): tuple(content)
        for processor, reference, *content in connection.execute(
            """SELECT processor, entry_reference, report_date, kind, amount_minor, currency::text, idempotency_key,
                      processor_reference, subject, reason, occurred_at FROM report_lines"""
        ).fetchall()
    }
    reported: dict[tuple[str, str], tuple[Any, ...]] = {}
    for _, key in stored_keys(store, "settlement_reports"):
        for row in read_rows(store.read(key), ("processor", "entry_reference", *_LINE_COLUMNS))[0]:
            reported[row["processor"], row["entry_reference"]] = tuple(row[column] for column in _LINE_COLUMNS)
    lines = sorted(reported.keys() | taken.keys())
    return Found(
        len(lines),
        [
            f"{line[0]} entry {line[1]}: {_difference(reported.get(line), taken.get(line))}"
            for line in lines
            if reported.get(line) != taken.get(line)
        ],
    )


def intakes_equal_reports(connection: psycopg.Connection, store: ObjectStore) -> Found:
    """The newest intake of a date has digest, number of lines and balances of the stored report."""
    taken: dict[tuple[str, date], tuple[Any, ...]] = {
        (processor, day): (digest, entries, sorted(map(tuple, balances)))
        for processor, day, digest, entries, balances in connection.execute(
            """SELECT DISTINCT ON (i.processor, i.report_date) i.processor, i.report_date, i.digest, i.entry_count, (
                   SELECT coalesce(json_agg(json_build_array(b.currency, b.opening_minor, b.closing_minor)), '[]')
                   FROM report_balances b
                   WHERE (b.processor, b.report_date, b.seq) = (i.processor, i.report_date, i.seq))
               FROM report_intakes i ORDER BY i.processor, i.report_date, i.seq DESC"""
        ).fetchall()
    }
    reported: dict[tuple[str, date], tuple[Any, ...]] = {}
    for day, key in stored_keys(store, "settlement_reports"):
        rows, metadata = read_rows(store.read(key), ("entry_reference",))
        balances = [(row["currency"], row["opening_minor"], row["closing_minor"]) for row in metadata["balances"]]
        reported[metadata["processor"], day] = metadata["digest"], len(rows), sorted(balances)
    return Found(
        len(reported.keys() | taken.keys()),
        [
            f"{processor}, {day}: reported {reported.get((processor, day), 'none')}, taken in "
            f"{taken.get((processor, day), 'none')}; run its day again"
            for processor, day in sorted(reported.keys() | taken.keys())
            if reported.get((processor, day)) != taken.get((processor, day))
        ],
    )


def _difference(reported: tuple[Any, ...] | None, taken: tuple[Any, ...] | None) -> str:
    if reported is None or taken is None:
        return f"reported {_said(reported)}, taken in {_said(taken)}; run the day of the report again"
    differs = [
        f"{column} {ours}, reported as {theirs}"
        for column, theirs, ours in zip(_LINE_COLUMNS, reported, taken, strict=True)
        if theirs != ours
    ]
    return f"taken in with {', '.join(differs)}; ask the processor which one holds"


def _said(content: tuple[Any, ...] | None) -> str:
    if content is None:
        return "nowhere"
    report_date, kind, amount, currency, key, *_ = content
    return f"{report_date} as {kind} of {amount} {currency} under key {key}"
