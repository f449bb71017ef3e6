"""The sandbox's reports as frames of the contract.

Belongs here: fields, types, what makes a report unreadable. Does not belong here: fetching it, what its lines mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from hashlib import sha256
from itertools import pairwise
from typing import Any

import orjson
import pandas as pd

from payments_pipeline.domain.money import EXPONENTS
from payments_pipeline.domain.schemas import SETTLEMENT_REPORTS
from payments_pipeline.processors.base import ReportDigest, SettlementReport

#: The sandbox's name of each column of `SETTLEMENT_REPORTS` that a line brings with it.
_FIELDS = {
    "entry_reference": "entry_reference",
    "report_date": "report_date",
    "kind": "kind",
    "idempotency_key": "idempotency_key",
    "processor_reference": "payment_id",
    "subject": "subject",
    "amount_minor": "amount_minor",
    "currency": "currency",
    "reason": "reason",
    "occurred_at": "occurred_at",
}
#: The order in which the digest takes an entry's values.
_DIGESTED = (
    "entry_reference",
    "report_date",
    "kind",
    "idempotency_key",
    "payment_id",
    "amount_minor",
    "currency",
    "subject",
    "reason",
    "occurred_at",
)
_KINDS = ("failed", "fee", "funding", "other", "returned", "settled")
_BALANCES = ("currency", "opening_minor", "closing_minor")


class UnreadableReportError(Exception):
    """A report is not of the declared form; its text says what is wrong."""


def read_digests(answer: Mapping[str, Any], after: date | None = None) -> tuple[list[ReportDigest], str | None]:
    """Read a page of the list of reports, and where the next page starts; None after the last.

    Args:
        answer: the JSON object.
        after: last date of the page before.

    Raises:
        UnreadableReportError: it is not of the declared form, or its dates do not rise: a page was given twice.
    """
    rows = _frame(answer.get("reports"), ("date", "entry_count", "digest"), "reports")
    _whole(rows["entry_count"], "entry_count")
    _text(rows["digest"], "digest")
    days = _dates(rows["date"], "date")
    if any(day >= later for day, later in pairwise([after, *days] if after else days)):
        raise UnreadableReportError("its dates do not rise from one to the next")
    listed = [ReportDigest(*row) for row in zip(days, rows["entry_count"].tolist(), rows["digest"], strict=True)]
    return listed, _cursor_of(answer, listed)


def page_of(answer: Mapping[str, Any]) -> tuple[list[Any], str | None]:
    """Give a page's entries, and where the next page starts; None after the last.

    Raises:
        UnreadableReportError: it is no page, or an empty one that leads on.
    """
    entries = answer.get("entries")
    if type(answer.get("entry_count")) is not int or not isinstance(entries, list):
        raise UnreadableReportError("it is no page of a report with its entry_count and entries")
    return entries, _cursor_of(answer, entries)


def _cursor_of(answer: Mapping[str, Any], shown: Sequence[object]) -> str | None:
    cursor = answer.get("next", "")
    if cursor is None:
        return None
    if not isinstance(cursor, str) or not cursor or not shown:
        raise UnreadableReportError("a page does not say where the next one starts, or leads on without entries")
    return cursor


def read_report(answer: Mapping[str, Any], processor: str, report_date: date) -> SettlementReport:
    """Read one date's report.

    Args:
        answer: the JSON object.
        processor: name for the lines' column of that name.
        report_date: the date asked for; the report and each of its lines must be of it.

    Raises:
        UnreadableReportError: it is not of the declared form, holds more or fewer entries than it counts, its balances
            do not move by its entries, or its digest is not theirs; nothing of it is given.
    """
    entries = _frame(answer.get("entries"), tuple(_FIELDS.values()), "entries")
    entries = entries.rename(columns={theirs: ours for ours, theirs in _FIELDS.items()})
    digest = answer.get("digest")
    if answer.get("date") != report_date.isoformat() or not isinstance(digest, str):
        raise UnreadableReportError(f"it is not the report of {report_date} with its digest")
    if not (entries["report_date"] == report_date.isoformat()).all():
        raise UnreadableReportError(f"it holds entries of other dates than {report_date}")
    _among(entries["kind"], _KINDS, "kind")
    lines = pd.DataFrame(
        {
            "processor": pd.Categorical([processor] * len(entries), [processor] if len(entries) else []),
            "entry_reference": _text(entries["entry_reference"], "entry_reference"),
            "report_date": pd.Series([report_date] * len(entries), dtype=object),
            "kind": _category(entries["kind"]),
            "idempotency_key": _text_or_none(entries["idempotency_key"], "idempotency_key"),
            "processor_reference": _text_or_none(entries["processor_reference"], "payment_id"),
            "subject": _text_or_none(entries["subject"], "subject"),
            "amount_minor": _whole(entries["amount_minor"], "amount_minor"),
            "currency": _category(_currencies(entries["currency"])),
            "reason": _text_or_none(entries["reason"], "reason"),
            "occurred_at": _instants(entries["occurred_at"]),
        }
    )
    balances = _frame(answer.get("balances"), _BALANCES, "balances")
    held = pd.DataFrame(
        {
            "currency": _currencies(balances["currency"]),
            "opening_minor": _whole(balances["opening_minor"], "opening_minor"),
            "closing_minor": _whole(balances["closing_minor"], "closing_minor"),
        }
    )
    if len(lines) != answer.get("entry_count"):
        raise UnreadableReportError(f"it counts {answer.get('entry_count')} entries and holds {len(lines)}")
    _balances_move_by(lines, held)
    if _digest_of(answer["entries"]) != digest:
        raise UnreadableReportError(f"its digest {digest} is not that of its entries")
    return SettlementReport(report_date, digest, lines[SETTLEMENT_REPORTS.names], held)


def _digest_of(entries: Iterable[Mapping[str, Any]]) -> str:
    """Give the digest of entries as received: the sum of the SHA-256 of each one's values, modulo 2**256."""
    hashes = (sha256(orjson.dumps([entry[name] for name in _DIGESTED])).digest() for entry in entries)
    return f"{sum(int.from_bytes(each) for each in hashes) % 2**256:064x}"


def _balances_move_by(lines: pd.DataFrame, held: pd.DataFrame) -> None:
    """Hold each currency's closing balance against its opening balance and lines; one listed twice counts once.

    Sums are of Python's integers: they never wrap.
    """
    if held["currency"].duplicated().any():
        raise UnreadableReportError("a currency has two balances")
    once = lines.drop_duplicates("entry_reference")
    cash = once["amount_minor"].astype(object).groupby(once["currency"].astype(object)).sum().to_dict()
    for currency, opening, closing in held.astype(object).itertuples(index=False):
        moved = cash.pop(currency, 0)
        if opening + moved != closing:
            raise UnreadableReportError(
                f"its {currency} balance opens at {opening} and closes at {closing}, and its entries move {moved}"
            )
    if cash:
        raise UnreadableReportError(f"it has entries in {', '.join(sorted(map(str, cash)))} and no balance of it")


def _frame(rows: object, columns: tuple[str, ...], name: str) -> pd.DataFrame:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnreadableReportError(f"{name} is no list of objects")
    frame = pd.DataFrame(rows, dtype=object if not rows else None)
    missing = [column for column in columns if rows and column not in frame]
    if missing:
        raise UnreadableReportError(f"{name} are without {', '.join(missing)}")
    return frame.reindex(columns=list(columns))


def _whole(values: pd.Series, name: str) -> pd.Series:
    """Admit whole numbers alone: a float, a bool or what is beyond 63 bits gets another dtype."""
    if len(values) and values.dtype != "int64":
        raise UnreadableReportError(f"{name} holds what is no whole number within 63 bits")
    return values.astype("int64")


def _text(values: pd.Series, name: str) -> pd.Series:
    if values.isna().any():
        raise UnreadableReportError(f"{name} is missing in an entry")
    return _text_or_none(values, name)


def _text_or_none(values: pd.Series, name: str) -> pd.Series:
    given = values.dropna()
    if len(given) and (pd.api.types.infer_dtype(given) != "string" or given.eq("").any()):
        raise UnreadableReportError(f"{name} holds what is no text")
    texts = values.to_numpy(object, copy=True)
    texts[values.isna().to_numpy()] = None
    return pd.Series(texts, index=values.index, dtype=object)


def _among(values: pd.Series, known: Iterable[str], name: str) -> pd.Series:
    strange = values[~_text(values, name).isin(list(known))]
    if len(strange):
        raise UnreadableReportError(f"{name} {strange.iloc[0]!r} is not known")
    return values.astype(object)


def _currencies(values: pd.Series) -> pd.Series:
    return _among(values, EXPONENTS, "currency")


def _category(values: pd.Series) -> pd.Categorical:
    """Give a column of few words as the schema declares it: dictionary-encoded, in byte order."""
    return pd.Categorical(values, categories=sorted(values.unique()))


def _dates(values: pd.Series, name: str) -> list[date]:
    try:
        return [date.fromisoformat(text) for text in _text(values, name)]
    except ValueError as error:
        raise UnreadableReportError(f"{name} holds what is no date") from error


def _instants(values: pd.Series) -> pd.Series:
    try:
        instants = pd.to_datetime(_text(values, "occurred_at"), format="%Y-%m-%dT%H:%M:%S%z", utc=True)
    except ValueError as error:
        raise UnreadableReportError("occurred_at holds what is no instant") from error
    return instants.astype("datetime64[us, UTC]")
