"""Reference data as `verify` reads it: plainly, row by row, by code of its own.

Belongs here: rows of the two tables that it needs, alike from each format, and what a match falls under. Does not
belong here: saying what is wrong with a row, which its own check does; a row that cannot be read is passed over.
"""

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

#: One row; as read here every value is text, whatever the format, and "" where empty.
Row = dict[str, Any]
_TERMS = ("competition_id", "organiser_id", "federation_id", "platform_id", "currency", "payout_policy")
_STATUSES = ("completed", "awarded", "abandoned", "postponed", "cancelled", "void")


def statuses_of(line: Row) -> list[str]:
    """Give the statuses of a match under which a line applies, in the order that `rules_hash` names them in."""
    named = {name.strip() for name in (line.get("statuses") or "completed;awarded").split(";")}
    return [status for status in _STATUSES if status in named]


@dataclass(frozen=True)
class Reference:
    """The reference data now.

    Attributes:
        competitions: rows.
        lines: rows of fee_schedules.
    """

    competitions: list[Row]
    lines: list[Row]

    def competition(self, competition_id: str, day: date) -> Row | None:
        """Give the row in force on a day; None where there is none."""
        return next(
            (
                row
                for row in self.competitions
                if row["competition_id"] == competition_id
                and (row.get("effective_from") or "0000") <= day.isoformat() <= (row.get("effective_to") or "9999")
            ),
            None,
        )

    def schedule(self, competition_id: str, version: str) -> list[Row]:
        """Give the lines of a version, in their order; none where it is not there."""
        found = [row for row in self.lines if (row["competition_id"], row["version"]) == (competition_id, version)]
        return sorted(found, key=lambda row: int(row["line_no"]))

    def rules_hash(self, competition_id: str, version: str, day: date) -> str | None:
        """Hash what a match falls under: SHA-256 of a JSON array of the competition's terms and the version's lines.

        None where there is no such competition or version, or a number of it is none.
        """
        competition = self.competition(competition_id, day)
        if competition is None:
            return None
        terms = [competition.get(name) or None for name in _TERMS[:-1]]
        terms.append(competition.get(_TERMS[-1]) or "immediate")
        try:
            lines = [
                {
                    "line_no": int(line["line_no"]),
                    "pot": line["pot"],
                    "recipient": line["recipient"],
                    "method": line["method"],
                    "value": int(line["value"]),
                    "cap_minor": int(line["cap_minor"]) if line.get("cap_minor") else None,
                    "statuses": statuses_of(line),
                }
                for line in self.schedule(competition_id, version)
            ]
        except (KeyError, ValueError):
            return None
        if not lines:
            return None
        content = json.dumps([terms, [version, lines]], separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def read_reference(store: ObjectStore) -> Reference:
    """Read both tables from whichever format they come in.

    Raises:
        ConfigurationError: one of them is not there, or there twice.
    """
    tables = {}
    for table in ("competitions", "fee_schedules"):
        names = {f"{table}.{extension}": read for extension, read in _READERS.items()}
        keys = [found.key for found in store.list(f"{table}.") if found.key in names]
        if len(keys) != 1:
            raise ConfigurationError(
                f"{store!r} holds {len(keys) or 'no'} {' or '.join(names)}: the rules that need it cannot be checked. "
                "No money moved. Correct PAYMENTS_REFERENCE_URL, or leave one file a table."
            )
        tables[table] = [
            {name.strip(): _text(value) for name, value in row.items() if name is not None}
            for row in names[keys[0]](store.read(keys[0]))
        ]
    return Reference(
        [row for row in tables["competitions"] if row.get("competition_id")],
        [row for row in tables["fee_schedules"] if row.get("competition_id") and row.get("version")],
    )


def _text(value: object) -> str:
    """Give a value as CSV would hold it. 0 is a value; None is none."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # as Parquet writers store a whole number beside empty cells
    return str(value).strip()


def _from_csv(content: bytes) -> list[dict[str | None, Any]]:
    # A row with more fields than the header has the rest under None.
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def _from_json_lines(content: bytes) -> list[dict[str | None, Any]]:
    rows = []
    for line in content.decode("utf-8-sig").split("\n"):  # U+2028 within a name ends no line
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a broken row rejects what uses it, and that has no other row
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _from_parquet(content: bytes) -> list[dict[str | None, Any]]:
    rows: list[dict[str | None, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


_READERS = {"csv": _from_csv, "jsonl": _from_json_lines, "parquet": _from_parquet}
