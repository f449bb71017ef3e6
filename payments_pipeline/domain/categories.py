"""Frame columns of text that repeats: pandas categories from coded columns.

Belongs here: making categoricals that are the same for the same content. Does not belong here: which rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.records import Coded, Records
from payments_pipeline.domain.values import to_numpy


def category_of(codes: np.ndarray, categories: Sequence[str]) -> pd.Categorical:
    """Give a categorical; -1 is null."""
    dtype = pd.CategoricalDtype(pd.Index([str(each) for each in categories], dtype=object))
    # The stubs know sequences only; an array serves, and costs no list.
    return pd.Categorical.from_codes(codes, dtype=dtype)  # type: ignore[arg-type]


def category(column: Coded, rows: np.ndarray) -> pd.Categorical:
    """Give a column's text at rows, coded by the values that occur, sorted as bytes."""
    codes = column.codes[rows]
    used = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(column.distinct)))
    values = column.distinct.take(pa.array(used))
    order = to_numpy(pc.sort_indices(values))
    renumbered = np.full(len(column.distinct) + 1, -1, np.int32)
    renumbered[used[order]] = np.arange(len(used), dtype=np.int32)
    return category_of(renumbered[codes], values.take(pa.array(order)).to_pylist())


def source_category(records: Records, rows: np.ndarray) -> pd.Categorical:
    """Give the source of rows, coded by the sources that occur."""
    numbers = records.source_no[rows]
    used = np.flatnonzero(np.bincount(numbers, minlength=len(records.sources)))
    renumbered = np.zeros(len(records.sources) + 1, np.int32)
    renumbered[used] = np.arange(len(used), dtype=np.int32)
    return category_of(renumbered[numbers], [records.sources[place] for place in used.tolist()])
