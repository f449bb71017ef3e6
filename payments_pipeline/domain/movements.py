"""Ledger lines of journals that move money, or give it up: every kind but accruals and refunds.

Belongs here: the shape of such lines and their ids. Does not belong here: which accounts move, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd

from payments_pipeline.domain.ids import business_ids


@dataclass(frozen=True)
class Leg:
    """One account of several journals.

    Attributes:
        account: ledger account, one or aligned with the journals.
        party_id: party of the account, one or aligned, or None.
        debit_minor: int64, aligned: > 0 a debit, < 0 a credit, 0 no line.
        is_item: whether the lines open items.
        name: tells apart lines of one journal on one account.
    """

    account: str | np.ndarray
    party_id: str | np.ndarray | None
    debit_minor: np.ndarray
    is_item: bool = False
    name: str = ""


def movement_lines(
    journal_id: np.ndarray, kind: str | np.ndarray, day: date, currency: np.ndarray, legs: Sequence[Leg]
) -> pd.DataFrame:
    """Give the lines of journals, leg by leg; those of zero are left out.

    Args:
        journal_id: journals.
        kind: their kind, one or aligned.
        day: day of the act.
        currency: ISO 4217, aligned.
        legs: accounts, at least one.

    Returns:
        Columns of `ledger_entries`, but for those of accruals.
    """
    debit = np.concatenate([leg.debit_minor for leg in legs])
    kept = np.flatnonzero(debit)
    size = len(journal_id)

    def stacked(values: Sequence[object]) -> np.ndarray:
        column = np.empty(len(legs) * size, dtype=object)
        for place, value in enumerate(values):
            column[place * size : (place + 1) * size] = value
        return column[kept]

    journals = stacked([journal_id] * len(legs))
    accounts = stacked([leg.account for leg in legs])
    return pd.DataFrame(
        {
            "entry_id": business_ids("movement", journals, accounts, stacked([leg.name for leg in legs])),
            "journal_id": journals,
            "kind": stacked([kind] * len(legs)),
            "day": stacked([day] * len(legs)),
            "account": accounts,
            "party_id": stacked([leg.party_id for leg in legs]),
            "currency": stacked([currency] * len(legs)),
            "debit_minor": np.maximum(debit[kept], 0),
            "credit_minor": np.maximum(-debit[kept], 0),
            "is_item": stacked([leg.is_item for leg in legs]).astype(bool),
        }
    )
