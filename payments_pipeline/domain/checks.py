"""Data-quality rules as plain functions: frames in, one row per breach out.

Belongs here: rules over frames. Does not belong here: rules over tables (`storage.checks`), severities, Dagster.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from payments_pipeline.domain.keys import key_codes
from payments_pipeline.domain.ledger import ENTRY_KEY, share_entries


def pots_not_conserved(matches: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """Give the pots whose shares do not sum to them.

    Args:
        matches: frame of `schemas.MATCH_RESULTS`.
        shares: frame of `schemas.PARTICIPANT_SHARES`.

    Returns:
        match_id, pot, pot_party_id, expected_minor, actual_minor.
    """
    keys = ["match_id", "pot", "pot_party_id"]
    columns = [shares[key].to_numpy(object) for key in keys]
    pots, first = key_codes(columns)
    match_id, pot, payer = (column[first] for column in columns)
    actual = np.zeros(len(first), np.int64)
    np.add.at(actual, pots, shares["amount_minor"].to_numpy(np.int64))
    place = pd.Index(matches["match_id"].to_numpy(object)).get_indexer(pd.Index(match_id, dtype=object))
    declared = np.append(matches["revenue_minor"].fillna(0).to_numpy(np.int64), 0)[place]
    expected = np.where(pot == "revenue", declared, 0)
    bad = np.flatnonzero(expected != actual)
    named = dict(zip(keys, (column[bad] for column in (match_id, pot, payer)), strict=True))
    return pd.DataFrame(named | {"expected_minor": expected[bad], "actual_minor": actual[bad]})


def rows_lost(dataset: str, read: int, accepted: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """Give one row where the rows read are not those accepted, superseded and rejected.

    Args:
        dataset: match_results or match_participants.
        read: rows read from its files.
        accepted: its frame.
        rejected: frame of `schemas.REJECTED_RECORDS`, of all datasets.

    Returns:
        read, accepted_superseded_rejected.
    """
    outcomes = rejected.loc[rejected["dataset"] == dataset, "outcome"].astype(object).value_counts()
    found = len(accepted) + int(outcomes.get("superseded", 0)) + int(outcomes.get("rejected", 0))
    rows = pd.DataFrame([{"read": read, "accepted_superseded_rejected": found}])
    return rows[rows["read"] != rows["accepted_superseded_rejected"]]


def in_suspense(shares: pd.DataFrame) -> pd.DataFrame:
    """Give the shares that nobody is entitled to: match_id, schedule_version, amount_minor, currency."""
    return shares.loc[
        shares["line_no"] == 0, ["match_id", "competition_id", "schedule_version", "amount_minor", "currency"]
    ]


def posted_differs_from_shares(shares: pd.DataFrame, posted: pd.DataFrame, broken: frozenset[str]) -> pd.DataFrame:
    """Give the keys whose postings do not sum to the day's shares.

    Args:
        shares: frame of `schemas.PARTICIPANT_SHARES`.
        posted: ENTRY_KEY and amount_minor (the sum posted, > 0 a credit) of the day.
        broken: matches that a break keeps from being posted.
    """
    current = share_entries(shares)
    columns = [np.concatenate([current[name].to_numpy(), posted[name].to_numpy()]) for name in ENTRY_KEY]
    of_row, first = key_codes(columns)
    sums = np.zeros((2, len(first)), np.int64)
    np.add.at(sums[0], of_row[: len(current)], current["amount_minor"].to_numpy(np.int64))
    np.add.at(sums[1], of_row[len(current) :], posted["amount_minor"].to_numpy(np.int64))
    bad = np.flatnonzero(sums[0] != sums[1])
    found = pd.DataFrame({name: column[first[bad]] for name, column in zip(ENTRY_KEY, columns, strict=True)})
    found = found.assign(amount_minor_shares=sums[0, bad], amount_minor_posted=sums[1, bad])
    return found[~found["match_id"].isin(broken)]


def report_not_recorded(report: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Give the report lines without an equal settlement record, and records without a line.

    Args:
        report: frame of `schemas.SETTLEMENT_REPORTS`; a line may stand in it twice.
        records: frame of `schemas.SETTLEMENT_RECORDS`, as stored.
    """
    lines = report[["entry_reference", "amount_minor", "currency"]].drop_duplicates()
    lines = lines.assign(
        currency=lines["currency"].astype(object), entry_reference=lines["entry_reference"].astype(object)
    )
    stored = records[["entry_reference", "cash_minor", "currency"]].rename(columns={"cash_minor": "amount_minor"})
    merged = lines.merge(stored, on=["entry_reference", "amount_minor", "currency"], how="outer", indicator="stands_in")
    wrong = merged[merged["stands_in"] != "both"]
    return wrong.assign(
        stands_in=wrong["stands_in"]
        .map({"left_only": "the report alone", "right_only": "the records alone"})
        .astype(object)
    )
