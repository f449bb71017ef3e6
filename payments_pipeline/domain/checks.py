"""Data-quality rules as plain functions: frames in, one row per breach out.

Belongs here: rules over frames. Does not belong here: rules over tables (`storage.checks`), severities, Dagster.
"""

from __future__ import annotations

import pandas as pd

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
    plain = shares.assign(**{key: shares[key].astype(object) for key in keys})
    sums = plain.groupby(keys, as_index=False, sort=True)[["amount_minor"]].sum()
    sums = sums.rename(columns={"amount_minor": "actual_minor"})
    revenue = matches.assign(match_id=matches["match_id"].astype(object)).set_index("match_id")["revenue_minor"]
    declared = sums["match_id"].map(revenue).astype("Int64").fillna(0).astype("int64")
    sums["expected_minor"] = declared.where(sums["pot"] == "revenue", 0)
    return sums.loc[sums["expected_minor"] != sums["actual_minor"], [*keys, "expected_minor", "actual_minor"]]


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
    current = share_entries(shares)[[*ENTRY_KEY, "amount_minor"]]
    merged = current.merge(posted, on=ENTRY_KEY, how="outer", suffixes=("_shares", "_posted"))
    for side in ("amount_minor_shares", "amount_minor_posted"):
        merged[side] = merged[side].astype("Int64").fillna(0).astype("int64")
    differs = (merged["amount_minor_shares"] != merged["amount_minor_posted"]) & ~merged["match_id"].isin(broken)
    return merged[differs]


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
