"""How checks are stated: breaching rows in, a result that names them and the cure out.

Belongs here: what all checks share. Does not belong here: any one check.
"""

from __future__ import annotations

import warnings

import dagster as dg
import pandas as pd

from payments_pipeline.domain.schemas import TableSchema

#: Rows that a check's metadata names; the rest are counted.
SHOWN = 20


def check_spec(
    match_days: dg.PartitionsDefinition, asset: str, name: str, description: str, *, blocking: bool = False
) -> dg.AssetCheckSpec:
    """Declare a check of one match day; blocking only where money would move on a false premise."""
    with warnings.catch_warnings():
        # A check of partitions is in preview in the pinned release; without, each day's result replaces the last.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, blocking=blocking, partitions_def=match_days
        )


def check_result(
    asset: str,
    name: str,
    breaches: pd.DataFrame,
    cure: str,
    *,
    checked: int,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """State a check's result.

    Args:
        asset: asset checked.
        name: check.
        breaches: one row per breach; empty where the check passes.
        cure: what to do about it.
        checked: how many were looked at.
        severity: WARN where nothing is wrong with the money.
    """
    metadata: dict[str, dg.MetadataValue] = {
        "checked": dg.MetadataValue.int(checked),
        "breaches": dg.MetadataValue.int(len(breaches)),
    }
    if len(breaches):
        metadata |= {
            "rows": dg.MetadataValue.md(markdown_table(breaches.head(SHOWN))),
            "cure": dg.MetadataValue.text(cure),
        }
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=breaches.empty,
        severity=severity,
        metadata=metadata,
        description=None if breaches.empty else f"{len(breaches)} of {checked}: {cure}",
    )


def markdown_table(frame: pd.DataFrame) -> str:
    """Give a frame as a Markdown table; cells are shown as text, with what would break the table escaped."""
    columns = [str(column) for column in frame.columns]
    rows = [columns, ["---"] * len(columns)]
    rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: object) -> str:
    text = "" if value is None or value is pd.NA else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def schema_result(asset: str, frame: pd.DataFrame, schema: TableSchema, cure: str = "") -> dg.AssetCheckResult:
    """Hold a frame against its declared schema with pandera: columns, types, nulls, key.

    Args:
        asset: asset checked.
        frame: what it is about to store.
        schema: as declared.
        cure: what to do, where the frame is what somebody else says.
    """
    from payments_pipeline.defs.pandera_schemas import failures  # pandera is slow to import and only needed here

    return check_result(
        asset,
        "schema",
        failures(frame, schema),
        cure or f"{asset} is not what domain/schemas.py declares: a defect of the program, report it",
        checked=len(frame),
    )
