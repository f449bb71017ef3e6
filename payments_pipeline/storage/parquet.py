"""Frames as Parquet bytes and back: the declared schema or a refusal, the same input the same bytes.

Belongs here: encoding, decoding, the layout of partitions below a store's root. Does not belong here: reading and
writing objects (`storage.objects`), Dagster. What an admissible frame is, `storage.frames` says.

The bytes depend on the rows, the schema, the metadata and pyarrow's version alone: rows are put into the declared
order, dictionaries sorted, metadata written as canonical JSON, and no time, host or run gets in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from payments_pipeline.domain.errors import BadFileError, InvariantError
from payments_pipeline.domain.schemas import TableSchema
from payments_pipeline.storage.frames import conform, difference, stable_dictionaries, to_frame

#: The one key of the file's metadata that is ours.
METADATA_KEY = b"payments_pipeline"
_COMPRESSION = "zstd"
#: Rows that a reader can take in at once; stated, so that another default cannot change the bytes.
_ROW_GROUP_ROWS = 1 << 20


def partition_key(asset: str, partition: str | Mapping[str, str] | None = None) -> str:
    """Give the key of a partition's object.

    Args:
        asset: the asset's name; segments of an asset key joined by `/`.
        partition: partition of a day; or value by dimension, in any order; None where the asset has no partitions.

    Returns:
        `<asset>/date=<partition>/part-0.parquet`, `<asset>/<dimension>=<value>/…/part-0.parquet`, or
        `<asset>/part-0.parquet`: Hive's layout, values percent-encoded.
    """
    dimensions = [("date", partition)] if isinstance(partition, str) else sorted((partition or {}).items())
    folders = [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in dimensions]
    return "/".join([*(quote(segment, safe="") for segment in asset.split("/")), *folders, "part-0.parquet"])


def encode(frame: pd.DataFrame | pa.Table, schema: TableSchema, metadata: Mapping[str, Any]) -> bytes:
    """Encode a frame.

    Args:
        frame: the declared columns, in any order, rows in any order.
        schema: what is declared.
        metadata: of JSON's own kinds (string keys; no tuple, no NaN); travels with the file, see `decode`.

    Raises:
        InvariantError: the frame is not what is declared, or the metadata is no JSON; names the column and the row.
    """
    return encode_conformed(conform(frame, schema), schema.name, metadata)


def encode_conformed(table: pa.Table, name: str, metadata: Mapping[str, Any]) -> bytes:
    """Encode what `storage.frames.conform` gave; as `encode`."""
    table = table.replace_schema_metadata({METADATA_KEY: _canonical_json(name, metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression=_COMPRESSION,
        row_group_size=_ROW_GROUP_ROWS,
        data_page_version="1.0",
        write_page_checksum=True,
        store_schema=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode(data: bytes, schema: TableSchema | None = None) -> pd.DataFrame:
    """Decode what `encode` made.

    Args:
        data: the file's bytes.
        schema: what is declared; without it the file's own schema holds.

    Returns:
        Rows in the declared order with the dtypes of `storage.frames.to_frame`; `attrs` is the metadata.

    Raises:
        BadFileError: the bytes are no whole Parquet file, or the file's schema is not the declared one.
    """
    table = decode_table(data, schema)
    frame = to_frame(table)
    frame.attrs.update(read_metadata(table.schema))
    return frame


def decode_table(data: bytes, schema: TableSchema | None = None) -> pa.Table:
    """Decode into Arrow; as `decode`, the metadata staying in the table's schema (`read_metadata`)."""
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise BadFileError(
            f"{len(data)} bytes are no whole Parquet file: {error}. Nothing was taken from it. Materialise it again."
        ) from error
    if schema is not None:
        differs = difference(table.schema, schema)
        if differs:
            raise BadFileError(
                f"{schema.name} is stored with another schema than the declared one: {'; '.join(differs)}. "
                "Nothing was taken from it. Materialise it again with this version of the program."
            )
    return stable_dictionaries(table)


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Give the metadata that a file was encoded with; empty where another program wrote it."""
    stored = (schema.metadata or {}).get(METADATA_KEY)
    return dict(json.loads(stored)) if stored else {}


def _canonical_json(name: str, metadata: Mapping[str, Any]) -> bytes:
    plain = dict(metadata)
    try:
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        encoded = text.encode("utf-8")
        same = json.loads(text) == plain
    except (TypeError, ValueError) as error:
        raise InvariantError(
            f"{name}: the frame's attrs are no JSON: {error}. Nothing was written. A defect of the program: report it."
        ) from error
    if not same:
        raise InvariantError(
            f"{name}: the frame's attrs would not be read back as they are (a tuple, or a key that is no string). "
            "Nothing was written. A defect of the program: report it."
        )
    return encoded
