"""`participant_shares`: who is owed or owes what."""

import dagster as dg
import pandas as pd

from payments_pipeline.defs.assets.lineage import same_input
from payments_pipeline.defs.check_results import check_result, check_spec, schema_result
from payments_pipeline.defs.io_managers import COLUMN_SCHEMA_KEY, column_schema
from payments_pipeline.defs.resources import Inputs, partition_day
from payments_pipeline.domain.checks import in_suspense, pots_not_conserved
from payments_pipeline.domain.participant_shares import compute_shares
from payments_pipeline.domain.schemas import PARTICIPANT_SHARES

NAME = PARTICIPANT_SHARES.name


def participant_shares(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        group_name="shares",
        kinds={"pandas", "parquet", "s3"},
        owners=["team:payments"],
        io_manager_key="s3_parquet",
        dagster_type=dg.Any,
        metadata={COLUMN_SCHEMA_KEY: column_schema(PARTICIPANT_SHARES)},
        description=PARTICIPANT_SHARES.description,
        check_specs=[
            check_spec(match_days, NAME, "schema", "The frame is what is declared.", blocking=True),
            check_spec(
                match_days,
                NAME,
                "pots_conserved",
                "The shares of each pot sum to it, to the minor unit.",
                blocking=True,
            ),
            check_spec(match_days, NAME, "no_suspense", "Every minor unit of every pot has somebody entitled to it."),
        ],
    )
    def run(
        context: dg.AssetExecutionContext,
        inputs: Inputs,
        match_results: pd.DataFrame,
        match_participants: pd.DataFrame,
    ) -> dg.MaterializeResult:
        reference = inputs.reference()
        lineage = same_input(match_results, match_participants, reference=reference.input_hashes)
        shares = compute_shares(
            match_results,
            match_participants,
            reference.schedule_lines,
            reference.competitions_on(partition_day(context)),
        )
        shares.attrs = {"input_hashes": lineage}
        suspense = in_suspense(shares)
        return dg.MaterializeResult(
            value=shares,
            metadata={
                **{
                    f"amount_minor {currency}": dg.MetadataValue.int(int(amount))
                    for currency, amount in shares[shares["pot"] == "revenue"]
                    .groupby("currency", observed=True)["amount_minor"]
                    .sum()
                    .items()
                },
                "matches": dg.MetadataValue.int(int(shares["match_id"].nunique())),
            },
            check_results=[
                schema_result(NAME, shares, PARTICIPANT_SHARES),
                check_result(
                    NAME,
                    "pots_conserved",
                    pots_not_conserved(match_results, shares),
                    "a pot's shares do not sum to it: a defect of the program, report it; nothing is posted",
                    checked=int(shares.groupby(["match_id", "pot", "pot_party_id"], observed=True).ngroups),
                ),
                check_result(
                    NAME,
                    "no_suspense",
                    suspense,
                    "nobody is entitled to part of these pots: give their schedule a remainder line that always has a "
                    "recipient",
                    checked=len(shares),
                ),
            ],
        )

    return run
