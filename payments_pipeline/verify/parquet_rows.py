"""Rows of a stored Parquet file, by no more of the writer's code than the file itself needs.

Belongs here: decoding. Does not belong here: where files are, what rows mean.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from payments_pipeline.domain.errors import BadFileError

Row = dict[str, Any]


def read_rows(data: bytes, columns: tuple[str, ...]) -> tuple[list[Row], dict[str, Any]]:
    """Read some columns of a file.

    Args:
        data: its bytes.
        columns: which; reading all would take thrice as long.

    Returns:
        Rows in the stored order, and the metadata that the pipeline wrote with them.

    Raises:
        BadFileError: they are no whole Parquet file, or it has not these columns.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        missing = set(columns) - set(file.schema_arrow.names)
        table = file.read(columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BadFileError(
            f"{len(data)} bytes are no whole Parquet file: {error}. Nothing was taken from it. Materialise it again."
        ) from error
    if missing:
        raise BadFileError(f"a stored file has no column {', '.join(sorted(missing))}. Materialise it again.")
    rows: list[Row] = table.to_pylist()
    metadata: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(b"payments_pipeline", b"{}"))
    return rows, metadata
