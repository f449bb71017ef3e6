"""Keys of several columns as numbers: which rows have the same, and where another frame has it.

Belongs here: what makes numbers of keys, for frames of any size. Does not belong here: what any key means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Codes = npt.NDArray[np.int64]


def key_codes(columns: Sequence[npt.NDArray[Any]]) -> tuple[Codes, Codes]:
    """Number the distinct keys from 0 in order of their first row.

    Args:
        columns: those of the key, aligned; objects or integers, at least one.

    Returns:
        Of each row the number of its key; of each key its first row. A null is a value like others.
    """
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        of_column, values = pd.factorize(column, use_na_sentinel=False)
        # Numbered anew after each column, the product stays below the square of the number of rows.
        codes, _ = pd.factorize(codes * max(1, len(values)) + of_column)
    first = np.zeros(codes.max(initial=-1) + 1, np.int64)
    backwards = np.arange(len(codes) - 1, -1, -1, dtype=np.int64)
    first[codes[backwards]] = backwards
    return codes.astype(np.int64, copy=False), first


def rows_of(wanted: pd.DataFrame, among: pd.DataFrame, key: Sequence[str]) -> Codes:
    """Find each wanted key among rows of which each has its own.

    Args:
        wanted: has the columns of the key.
        among: has them too; where a key stands twice, its last row is found.
        key: names of columns.

    Returns:
        Positions in `among`, aligned with `wanted`; -1 where it is not there.
    """
    columns = [np.concatenate([among[name].to_numpy(object), wanted[name].to_numpy(object)]) for name in key]
    codes, _ = key_codes(columns)
    place = np.full(codes.max(initial=-1) + 1, -1, np.int64)
    place[codes[: len(among)]] = np.arange(len(among))
    return place[codes[len(among) :]]


def turns(codes: Codes) -> Codes:
    """Count, for each row, the rows before it that have the same key.

    Args:
        codes: as `key_codes` gives them.
    """
    order = np.argsort(codes, kind="stable")
    return _from_first(codes[order], np.arange(len(codes), dtype=np.int64))[np.argsort(order)]


def running_sums(codes: Codes, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum up, for each row, its value and those of the rows before it that have the same key.

    Args:
        codes: as `key_codes` gives them.
        values: aligned, int64; no sum over all of them may leave it.
    """
    order = np.argsort(codes, kind="stable")
    sums = np.cumsum(values[order])
    before = sums - values[order]
    return (values[order] + _from_first(codes[order], before))[np.argsort(order)]


def _from_first(ordered: Codes, growing: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give what each value is above that of the first row of its run of equal codes."""
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else ordered
    lengths = np.diff(np.append(starts, len(ordered)))
    return growing - np.repeat(growing[starts], lengths)
