"""`export`: one partition of an asset as a file, from wherever the asset is stored.

Belongs here: finding a partition and writing it in a format. Does not belong here: what the rows mean.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import BinaryIO

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from payments_pipeline.domain import schemas
from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.parquet import partition_key
from payments_pipeline.storage.postgres import connect

FORMATS = ("csv", "parquet", "jsonl")
_IN_S3 = {schema.name: schema for schema in schemas.ALL if schema.partition_column is None}
#: Tables by asset, and which of their columns is the partition; order makes the file the same each time.
_IN_POSTGRES = {
    "ledger_entries": "SELECT * FROM ledger_entries WHERE day = %s AND kind = 'accrual' "
    "ORDER BY match_id, pot, pot_party_id, line_no, account, posting_no",
    "refunds": "SELECT r.*, (SELECT coalesce(sum(e.credit_minor) - sum(e.debit_minor), 0)::bigint "
    "FROM ledger_entries e WHERE e.kind = 'refund' AND e.refund_id = r.refund_id AND e.recipient = 'payer') "
    "AS applied_minor FROM refunds r WHERE r.accepted_day = %s ORDER BY r.match_id, r.pot_party_id, r.pot_no",
    "payout_instructions": "SELECT i.*, s.state, s.since_on FROM payout_instructions i "
    "JOIN instruction_states s USING (instruction_id) WHERE i.sweep_day = %s "
    "ORDER BY i.sweep_seq, i.party_id, i.currency",
    "payout_submissions": "SELECT a.instruction_id, a.attempt_no, a.idempotency_key, a.request_sha256, a.execute_on, "
    "a.not_after, a.dispatched_on, a.run_id, a.started_at, o.outcome, o.processor_reference, o.code, o.message, "
    "o.recorded_at FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no) "
    "WHERE a.dispatched_on = %s ORDER BY a.instruction_id, a.attempt_no",
    "settlement_records": "SELECT * FROM settlement_records WHERE report_date = %s ORDER BY processor, entry_reference",
    "reconciliation": "SELECT * FROM reconciliation WHERE report_date = %s ORDER BY subject_type, subject_id, currency",
}
#: Postgres's own bookkeeping, of no use outside.
_INTERNAL = ("created_xid", "token")

ASSETS = (*_IN_S3, *_IN_POSTGRES)


def read_partition(asset: str, day: date, *, storage_url: str, database_url: str) -> pa.Table:
    """Read one partition of an asset.

    Raises:
        ConfigurationError: there is no such asset, or the partition was never materialised.
    """
    if asset in _IN_S3:
        store = open_store(storage_url)
        key = partition_key(asset, day.isoformat())
        if not store.exists(key):
            raise ConfigurationError(
                f"{asset} of {day} was never materialised: run `payments-pipeline run --date {day}`."
            )
        return pq.read_table(pa.BufferReader(store.read(key)))
    if asset not in _IN_POSTGRES:
        raise ConfigurationError(f"there is no asset {asset}; the assets are {', '.join(ASSETS)}.")
    with connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(_IN_POSTGRES[asset], (day,))
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        frame = pd.DataFrame(cursor.fetchall(), columns=names, dtype=object)
    frame = frame.drop(columns=list(_INTERNAL), errors="ignore")
    for name in frame.columns:
        if name.endswith(("_id", "_key")):  # uuids as text
            frame[name] = frame[name].map(str, na_action="ignore")
    return pa.Table.from_pandas(frame, preserve_index=False)


@contextmanager
def _opened(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Whole or not at all: a reader never finds half an export.
    temporary = out.with_name(f".{out.name}.part")
    with temporary.open("wb") as file:
        yield file
    temporary.replace(out)


def write_table(table: pa.Table, file_format: str, out: Path | None) -> int:
    """Write a table as csv, parquet or jsonl to a file, or to standard output; gives the rows written."""
    plain = pa.table(
        [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns],
        names=table.column_names,
    )
    with _opened(out) as file:
        if file_format == "csv":
            plain.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, date_as_object=True).to_csv(
                file, index=False, lineterminator="\n"
            )
        elif file_format == "parquet":
            pq.write_table(table, file, compression="zstd")
        else:
            for batch in plain.to_batches():
                file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in batch.to_pylist())
    rows: int = plain.num_rows
    return rows
