"""Reconciliation: ledger against instructions against the processor's reports; what matches, and each break.

Belongs here: what is compared with what, and the words of a break. Does not belong here: reading either side.
"""

from __future__ import annotations

from datetime import date

import pandas as pd

from payments_pipeline.domain.schemas import RECONCILIATION

_WORDS = {
    "cash": (
        "the ledger's cash is {expected}, the processor's closing balance {actual}: a report was not taken in, or "
        "before it grew; run its day again"
    ),
    "instruction": (
        "{expected} should have moved by now and {actual} has, in the instruction's direction: ask the processor"
    ),
    "overdue": "asked for {since}, and no report says what became of it: ask the processor",
    "unmatched": "a report line that belongs to no instruction: {note}; its cash is in suspense",
    "posting": "{note}",
}


def reconcile(
    day: date,
    cash: pd.DataFrame,
    instructions: pd.DataFrame,
    unmatched: pd.DataFrame,
    breaks: pd.DataFrame,
    before: pd.DataFrame,
) -> pd.DataFrame:
    """Compare both sides of a day.

    Args:
        day: the day reconciled.
        cash: account, currency, expected_minor (the ledger's balance up to the day), actual_minor (the report's own
            closing balance).
        instructions: instruction_id, currency, expected_minor, actual_minor (both in the instruction's direction),
            since_on, overdue (no outcome though its date is past): those that the day's report is about, those that
            broke before and still are, and the overdue ones.
        unmatched: subject_id, currency, amount_minor, since_on, note of cash that belongs to nothing.
        breaks: match_id, words, since_on of the posting breaks of this day and before.
        before: subject_type, subject_id, currency, since_on of the breaks of the last date reconciled before.

    Returns:
        Frame of `schemas.RECONCILIATION`.

    Source: docs/concepts/reconciliation.md.
    """
    overdue = instructions["overdue"].astype(bool)
    loose = unmatched.rename(columns={"amount_minor": "actual_minor"}).assign(expected_minor=0)
    posting = breaks.rename(columns={"match_id": "subject_id", "words": "note"})
    posting = posting.assign(currency="", expected_minor=0, actual_minor=0)
    named = instructions.rename(columns={"instruction_id": "subject_id"})
    sides = [
        ("cash", "cash", cash.rename(columns={"account": "subject_id"}), False),
        ("instruction", "instruction", named[~overdue], False),
        ("instruction", "overdue", named[overdue], True),
        ("unmatched", "unmatched", loose, False),
        ("posting", "posting", posting, True),
    ]
    parts = [_rows(day, *side) for side in sides if len(side[2])] or [_rows(day, *sides[0])]
    frame = pd.concat(parts, ignore_index=True)
    return _aged(day, frame, before)[RECONCILIATION.names].sort_values(list(RECONCILIATION.sort_by), ignore_index=True)


def _rows(day: date, subject_type: str, words: str, frame: pd.DataFrame, always: bool) -> pd.DataFrame:  # noqa: FBT001 - a column of the table above
    """Give the rows of one kind; `always` makes each a break, whatever its amounts."""
    frame = frame.reset_index(drop=True)
    expected = frame["expected_minor"].astype("int64")
    actual = frame["actual_minor"].astype("int64")
    is_break = (expected != actual) | always
    since = frame["since_on"] if "since_on" in frame else pd.Series(day, index=frame.index, dtype=object)
    note = frame["note"] if "note" in frame else pd.Series("", index=frame.index, dtype=object)
    texts = [
        _WORDS[words].format(expected=left, actual=right, since=first, note=remark) if broken else "agrees"
        for broken, left, right, first, remark in zip(is_break, expected, actual, since, note, strict=True)
    ]
    return pd.DataFrame(
        {
            "report_date": pd.Series(day, index=frame.index, dtype=object),
            "subject_type": subject_type,
            "subject_id": frame["subject_id"].astype(object),
            "currency": frame["currency"].astype(object),
            "expected_minor": expected,
            "actual_minor": actual,
            "difference_minor": actual - expected,
            "status": is_break.map({True: "break", False: "matched"}).astype(object),
            "since_on": since.where(is_break, day).astype(object),
            "words": pd.Series(texts, index=frame.index, dtype=object),
        }
    )


def _aged(day: date, frame: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """A break that stood on the last date before is as old as it was; any other begins when its own facts say."""
    keys = ["subject_type", "subject_id", "currency"]
    known = frame.merge(before.rename(columns={"since_on": "known_on"}), on=keys, how="left")
    older = known["status"].eq("break") & known["known_on"].notna()
    since = [min(first, day) for first in known["since_on"].where(~older, known["known_on"])]
    ages = pd.Series([(day - first).days for first in since], index=frame.index, dtype="int64")
    return frame.assign(since_on=pd.Series(since, index=frame.index, dtype=object), age_days=ages)
