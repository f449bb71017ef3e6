"""Refund requests: what the landing zone asks to have refunded, row by row.

Belongs here: the columns of `refund_requests` files and which rows can be read. Does not belong here: whether a pot
still holds what is asked for (`domain.refunds`): a row's rejection never depends on the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.domain.landing_files import LandingFile, read_files
from payments_pipeline.domain.records import Field, Kind, Layout, Records, RowFault
from payments_pipeline.domain.rejected_records import Reason, Verdict, at_row, constant
from payments_pipeline.domain.values import WRONG_TYPE, are_ids, are_logins, are_plain, whole_numbers

DATASET = "refund_requests"
REFUND_REQUEST_FILES = Layout(
    DATASET,
    (
        Field("refund_id", salvaged=True),
        Field("match_id", salvaged=True),
        Field("party_id", salvaged=True),
        Field("amount_minor", Kind.MINOR, required=False),
        Field("reason"),
        Field("requester", required=False),
    ),
)


@dataclass(frozen=True)
class RefundRequests:
    """What a day's files ask for.

    Attributes:
        frame: refund_id, match_id, party_id, amount_minor (Int64, > 0; null: all that is left), reason, requester
            (null: whoever starts the run), source and line_number of the rows that can be read, in the order they were
            read: files by name, then lines.
        rejected: frame of `schemas.REJECTED_RECORDS`, superseded rows too.
        read: rows read.
        unknown_columns: (source, column) left out.
    """

    frame: pd.DataFrame
    rejected: pd.DataFrame
    read: int
    unknown_columns: tuple[tuple[str, str], ...]


def read_refund_requests(files: Sequence[LandingFile]) -> RefundRequests:
    """Read a day's files. The same files give the same requests, whatever their order.

    Raises:
        BadFileError: a file cannot be read at all; names the file, the fault and the cure.
    """
    records = read_files(files, REFUND_REQUEST_FILES)
    verdict = Verdict(records)
    columns = records.columns
    for name, reason in (
        ("refund_id", Reason.REFUND_ID_INVALID),
        ("match_id", Reason.MATCH_ID_INVALID),
        ("party_id", Reason.PARTY_ID_INVALID),
    ):
        verdict.give(~columns[name].spread(are_ids(columns[name].distinct), empty=False), reason)
    amount, words = columns["amount_minor"], columns["reason"]
    numbers = whole_numbers(amount.distinct)
    verdict.give(~amount.spread(numbers.valid & (numbers.number > 0), empty=True), Reason.AMOUNT_INVALID)
    verdict.give(~words.spread(are_plain(words.distinct), empty=False), Reason.REFUND_REASON_MISSING)
    minor = amount.spread(numbers.number, empty=0)
    requester = columns["requester"]
    verdict.give(~requester.spread(are_logins(requester.distinct), empty=True), Reason.REQUESTER_INVALID)
    _check_equal_rows(verdict, records, minor)
    rows = np.flatnonzero(verdict.accepted)
    asked = pd.array(minor[rows], dtype="Int64")
    asked[amount.codes[rows] < 0] = pd.NA
    frame = pd.DataFrame(
        {name: _texts(records, name, rows) for name in ("refund_id", "match_id", "party_id")}
        | {"amount_minor": asked}
        | {name: _texts(records, name, rows) for name in ("reason", "requester")}
        | {"source": np.array([*records.sources, ""], dtype=object)[records.source_no[rows]]}
        | {"line_number": records.line_number[rows]}
    )
    return RefundRequests(frame, verdict.rejected_records(DATASET), len(records), records.unknown_columns)


def request_frame(
    refund_id: str, match_id: str, party_id: str, amount_minor: int | None, reason: str, source: str
) -> pd.DataFrame:
    """Give one request of a person as rows of `RefundRequests.frame` are.

    Raises:
        ConfigurationError: an id is none, or the reason is empty; nothing was refunded.
    """
    ids = {"refund_id": refund_id, "match_id": match_id, "party_id": party_id}
    for (name, value), is_id in zip(ids.items(), are_ids(pa.array(ids.values(), pa.string())), strict=True):
        if not is_id:
            raise ConfigurationError(
                f"{name} {value!r} is no id: 1 to 128 of ASCII letters, digits and : . _ -. Nothing was refunded."
            )
    if not reason.strip() or WRONG_TYPE in reason:
        raise ConfigurationError("the reason is empty. Nothing was refunded. Say why it is refunded.")
    row = ids | {"amount_minor": amount_minor, "reason": reason.strip(), "requester": None}
    row |= {"source": source, "line_number": 1}
    return pd.DataFrame([row]).astype({"amount_minor": "Int64", "requester": object})


def _texts(records: Records, name: str, rows: np.ndarray) -> np.ndarray:
    texts: np.ndarray = records.columns[name].take(rows).to_numpy(zero_copy_only=False).astype(object)
    return texts


def _check_equal_rows(verdict: Verdict, records: Records, minor: np.ndarray) -> None:
    """Let rows of one refund_id be one request where they are equal, none where they differ."""
    refund = records.columns["refund_id"]
    named = refund.spread(are_ids(refund.distinct), empty=False) & (records.fault == RowFault.NONE)
    rows = np.flatnonzero(named)
    rows = rows[pd.Series(refund.codes[rows]).duplicated(keep=False).to_numpy()]
    if not len(rows):
        return
    content = pd.DataFrame(
        {name: records.columns[name].codes[rows] for name in ("match_id", "party_id", "reason", "requester")}
        | {"amount_minor": np.where(records.columns["amount_minor"].codes[rows] < 0, -1, minor[rows])}
    )
    # An amount that cannot be read equals none but the same text.
    content["as_read"] = np.where(minor[rows] > 0, -1, records.columns["amount_minor"].codes[rows])
    content["refund"] = refund.codes[rows]
    first = content.groupby("refund").transform("first")
    own = content[first.columns]
    differs = (own != first).any(axis=1).to_numpy()
    group = content["refund"].to_numpy()
    first_row = np.arange(len(records))
    first_row[rows] = pd.Series(rows).groupby(group).transform("first")
    in_conflict = np.zeros(len(records), bool)
    in_conflict[rows] = pd.Series(differs).groupby(group).transform("any")
    other = pd.Series(np.where(differs, rows, -1)).groupby(group).transform("max").to_numpy()
    shown = first_row.copy()
    shown[rows] = np.where(differs, first_row[rows], other)
    verdict.give(in_conflict, Reason.ROWS_DIFFER, detail=at_row(records, shown), newer=constant(""))
    verdict.give(first_row != np.arange(len(records)), Reason.DUPLICATE, detail=at_row(records, first_row))


NO_REQUESTS = RefundRequests(
    frame=pd.DataFrame(
        {name: pd.Series([], dtype=object) for name in ("refund_id", "match_id", "party_id")}
        | {"amount_minor": pd.array([], dtype="Int64")}
        | {name: pd.Series([], dtype=object) for name in ("reason", "requester", "source")}
        | {"line_number": pd.Series([], dtype="int64")}
    ),
    rejected=pd.DataFrame(columns=["source", "line_number", "reason", "words", "outcome"], dtype=object),
    read=0,
    unknown_columns=(),
)
