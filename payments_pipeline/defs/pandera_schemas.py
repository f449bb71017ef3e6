"""Pandera schemas, derived from the declared ones."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import pandas as pd
import pandera.pandas as pa_pandas
import pyarrow as pa
from pandera.errors import SchemaErrors

from payments_pipeline.domain.schemas import TableSchema


def _is_kind(kind: pa.DataType) -> pa_pandas.Check:
    """A column's dtype admits only the declared Arrow type; a float column never passes for whole numbers."""
    if pa.types.is_integer(kind):
        return pa_pandas.Check(lambda column: pd.api.types.is_integer_dtype(column.dtype), name="whole numbers")
    if pa.types.is_boolean(kind):
        return pa_pandas.Check(lambda column: pd.api.types.is_bool_dtype(column.dtype), name="booleans")
    if pa.types.is_timestamp(kind):
        return pa_pandas.Check(lambda column: isinstance(column.dtype, pd.DatetimeTZDtype), name="instants with a zone")
    return pa_pandas.Check(lambda column: not pd.api.types.is_numeric_dtype(column.dtype), name="no numbers")


@cache
def pandera_schema(schema: TableSchema) -> pa_pandas.DataFrameSchema:
    """Give the pandera schema of a declared one."""
    return pa_pandas.DataFrameSchema(
        {
            column.name: pa_pandas.Column(nullable=column.nullable, checks=_is_kind(column.type))
            for column in schema.columns
        },
        strict=True,
        unique=list(schema.key),
        name=schema.name,
    )


def failures(frame: pd.DataFrame, schema: TableSchema) -> pd.DataFrame:
    """Give what of a frame breaks its schema: column, check, row, value; empty where nothing does."""
    if frame.empty:
        return _failures_of_none(schema, tuple(frame.dtypes.items())).copy()
    return _failures(frame, schema)


@cache
def _failures_of_none(schema: TableSchema, columns: tuple[tuple[Hashable, Any], ...]) -> pd.DataFrame:
    """Of a frame without rows there are only names and dtypes: each combination is asked once."""
    return _failures(pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in columns}), schema)


def _failures(frame: pd.DataFrame, schema: TableSchema) -> pd.DataFrame:
    try:
        pandera_schema(schema).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases: pd.DataFrame = errors.failure_cases
        return cases[["column", "check", "index", "failure_case"]]
    return pd.DataFrame(columns=["column", "check", "index", "failure_case"])
