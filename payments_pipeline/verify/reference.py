"""Reference data as `verify` reads it: plainly, row by row, by code of its own."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow.parquet as pq

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.storage.objects import ObjectStore

Row = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The reference data now.

    Attributes:
        competitions: rows.
        lines: rows of fee_schedules.
        party_status: of each party.
        hashes: SHA-256 of the files of competitions and fee_schedules.
    """

    competitions: list[Row]
    lines: list[Row]
    party_status: dict[str, str]
    hashes: dict[str, str]

    def is_that_of(self, input_hashes: dict[str, str]) -> bool:
        """Say whether something was computed from these very competitions and fee schedules."""
        return all(input_hashes.get(table) == digest for table, digest in self.hashes.items())

    def competition(self, competition_id: str, day: date) -> Row:
        """Give the row in force on a day."""
        return next(
            row
            for row in self.competitions
            if row["competition_id"] == competition_id
            and (row.get("effective_from") or "0000") <= day.isoformat() <= (row.get("effective_to") or "9999")
        )

    def schedule(self, competition_id: str, version: str) -> list[Row]:
        """Give the lines of a version, in their order."""
        found = [row for row in self.lines if (row["competition_id"], row["version"]) == (competition_id, version)]
        return sorted(found, key=lambda row: int(row["line_no"]))


def read_reference(store: ObjectStore) -> Reference:
    """Read the three tables from whichever format they come in.

    Raises:
        ConfigurationError: one of them is not there.
    """
    tables, hashes = {}, {}
    for table in ("competitions", "fee_schedules", "parties"):
        keys = [found.key for found in store.list(f"{table}.") if found.key.rpartition(".")[2] in _READERS]
        if not keys:
            raise ConfigurationError(
                f"{store!r} holds no {table}.csv, .jsonl or .parquet: the rules that need it cannot be checked. No "
                "money moved. Correct PAYMENTS_REFERENCE_URL."
            )
        content = store.read(keys[0])
        tables[table] = [
            {name.strip(): str(value).strip() if value is not None else "" for name, value in row.items()}
            for row in _READERS[keys[0].rpartition(".")[2]](content)
        ]
        hashes[table] = hashlib.sha256(content).hexdigest()
    del hashes["parties"]  # whose status may change without changing shares
    return Reference(
        tables["competitions"],
        tables["fee_schedules"],
        {row["party_id"]: row.get("status", "") for row in tables["parties"]},
        hashes,
    )


def _from_csv(content: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def _from_json_lines(content: bytes) -> list[Row]:
    return [json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]


def _from_parquet(content: bytes) -> list[Row]:
    rows: list[Row] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


_READERS = {"csv": _from_csv, "jsonl": _from_json_lines, "parquet": _from_parquet}
