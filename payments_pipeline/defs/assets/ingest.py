"""`match_results`, `match_participants` and `rejected_records`: one reading of a day's input, judged row by row.

The three come from one step, so that they always speak of the same files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date, timedelta

import dagster as dg
import pandas as pd

from payments_pipeline.defs.check_results import check_result, check_spec, schema_result
from payments_pipeline.defs.io_managers import COLUMN_SCHEMA_KEY, column_schema
from payments_pipeline.defs.resources import LANDING_DATASETS, Inputs, MoneyZone, partition_day
from payments_pipeline.domain.accepted_input import AcceptedInput, accept_input
from payments_pipeline.domain.checks import rows_lost
from payments_pipeline.domain.policy import ChecksPolicy
from payments_pipeline.domain.schemas import MATCH_PARTICIPANTS, MATCH_RESULTS, REJECTED_RECORDS
from payments_pipeline.storage.landing import LandingDay

GROUP = "results"


def ingest(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the step that reads a day's input."""

    @dg.multi_asset(
        name="ingest",
        partitions_def=match_days,
        group_name=GROUP,
        outs={
            schema.name: dg.AssetOut(
                dagster_type=dg.Any,
                io_manager_key="s3_parquet",
                description=schema.description,
                metadata={COLUMN_SCHEMA_KEY: column_schema(schema)},
                kinds={"pandas", "parquet", "s3"},
                owners=["team:payments"],
            )
            for schema in (MATCH_RESULTS, MATCH_PARTICIPANTS, REJECTED_RECORDS)
        },
        check_specs=[
            check_spec(
                match_days,
                "match_results",
                "rows_accounted_for",
                "Rows read = accepted + superseded + rejected.",
                blocking=True,
            ),
            check_spec(match_days, "match_results", "schema", "The frame is what is declared.", blocking=True),
            check_spec(match_days, "match_results", "previous_day_exists", "The day before has been materialised."),
            check_spec(
                match_days,
                "match_participants",
                "rows_accounted_for",
                "Rows read = accepted + superseded + rejected.",
                blocking=True,
            ),
            check_spec(match_days, "match_participants", "schema", "The frame is what is declared.", blocking=True),
            check_spec(match_days, "rejected_records", "reject_rate", "Few of the rows read are rejected."),
            check_spec(match_days, "rejected_records", "schema", "The frame is what is declared."),
        ],
    )
    def run(context: dg.AssetExecutionContext, inputs: Inputs, money_zone: MoneyZone) -> Iterator[dg.MaterializeResult]:
        day = partition_day(context)
        reference = inputs.reference()
        results, participants = (inputs.landing_day(dataset, day) for dataset in LANDING_DATASETS)
        accepted = accept_input(day, inputs.zone, results.files, participants.files, reference)
        lineage = {
            "input_hashes": {
                "match_results": results.input_hash,
                "match_participants": participants.input_hash,
                **reference.input_hashes,
            },
            "counts": {
                dataset: asdict(counts) | {"unknown_columns": [list(column) for column in counts.unknown_columns]}
                for dataset, counts in accepted.counts.items()
            },
        }
        frames = {
            "match_results": accepted.match_results,
            "match_participants": accepted.match_participants,
            "rejected_records": accepted.rejected_records,
        }
        checks = {
            "match_results": [
                _rows_accounted_for("match_results", accepted),
                schema_result("match_results", accepted.match_results, MATCH_RESULTS),
                _previous_day_exists(context, day),
            ],
            "match_participants": [
                _rows_accounted_for("match_participants", accepted),
                schema_result("match_participants", accepted.match_participants, MATCH_PARTICIPANTS),
            ],
            "rejected_records": [
                _reject_rate(accepted, money_zone.policy.checks),
                schema_result("rejected_records", accepted.rejected_records, REJECTED_RECORDS),
            ],
        }
        for asset, frame in frames.items():
            frame.attrs.update(lineage)
            yield dg.MaterializeResult(
                asset_key=asset,
                value=frame,
                metadata=_metadata(asset, accepted, {"match_results": results, "match_participants": participants}),
                check_results=checks[asset],
            )

    return run


def _metadata(asset: str, accepted: AcceptedInput, landing: Mapping[str, LandingDay]) -> dict[str, dg.MetadataValue]:
    if asset in accepted.counts:
        counts, found = accepted.counts[asset], landing[asset]
        return {
            "rows_read": dg.MetadataValue.int(counts.read),
            "rows_superseded": dg.MetadataValue.int(counts.superseded),
            "rows_rejected": dg.MetadataValue.int(counts.rejected),
            "files": dg.MetadataValue.int(counts.files),
            "ignored_files": dg.MetadataValue.json(list(found.ignored)),
            "unknown_columns": dg.MetadataValue.json([list(column) for column in counts.unknown_columns]),
        }
    everything = accepted.counts.values()
    return {
        "rejected": dg.MetadataValue.int(sum(counts.rejected for counts in everything)),
        "superseded": dg.MetadataValue.int(sum(counts.superseded for counts in everything)),
        "reasons": dg.MetadataValue.json({dataset: counts.reasons for dataset, counts in accepted.counts.items()}),
    }


def _rows_accounted_for(dataset: str, accepted: AcceptedInput) -> dg.AssetCheckResult:
    counts = accepted.counts[dataset]
    frame = accepted.match_results if dataset == "match_results" else accepted.match_participants
    return check_result(
        dataset,
        "rows_accounted_for",
        rows_lost(dataset, counts.read, frame, accepted.rejected_records),
        "a row was lost between file and frame: a defect of the program, report it with the day's files",
        checked=counts.read,
    )


def _reject_rate(accepted: AcceptedInput, policy: ChecksPolicy) -> dg.AssetCheckResult:
    read = sum(counts.read for counts in accepted.counts.values())
    rejected = accepted.rejected_records
    rejected = rejected[rejected["outcome"] == "rejected"]
    too_many = len(rejected) * 10_000 > policy.reject_rate_bp * read
    return check_result(
        "rejected_records",
        "reject_rate",
        rejected[["source", "line_number", "reason", "words"]] if too_many else rejected[["source"]].iloc[:0],
        f"more than {policy.reject_rate_bp} basis points of the rows read were rejected: mend and deliver them again",
        checked=read,
    )


def _previous_day_exists(context: dg.AssetExecutionContext, day: date) -> dg.AssetCheckResult:
    before = (day - timedelta(days=1)).isoformat()
    partitions = context.assets_def.partitions_def
    assert partitions is not None
    first = partitions.get_first_partition_key()
    missing = (
        first is not None
        and before >= first
        and before not in context.instance.get_materialized_partitions(dg.AssetKey("match_results"))
    )
    return check_result(
        "match_results",
        "previous_day_exists",
        pd.DataFrame({"missing_day": [before] if missing else []}),
        "the day before was never run: backfill it",
        checked=1,
        severity=dg.AssetCheckSeverity.WARN,
    )
