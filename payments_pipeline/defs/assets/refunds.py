"""`refunds`: the day's requests to give match fees back, accepted and posted."""

import dagster as dg
import pandas as pd

from payments_pipeline.defs.check_results import check_result, check_spec
from payments_pipeline.defs.resources import Certificates, Inputs, MoneyZone, partition_day, run_info
from payments_pipeline.domain.refund_requests import DATASET, NO_REQUESTS, RefundRequests, read_refund_requests
from payments_pipeline.storage import checks
from payments_pipeline.storage.refunds import Accepted, accept_refunds

NAME = "refunds"
#: Words of that many refused requests are kept with the run; its check counts them all.
_REFUSALS_SHOWN = 20


def refunds(match_days: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=NAME,
        partitions_def=match_days,
        deps=["ledger_entries"],
        group_name="ledger",
        kinds={"postgres"},
        owners=["team:payments"],
        description="Match fees given back: the day's accepted refunds, each fixed at acceptance and posted with it.",
        check_specs=[
            check_spec(
                match_days,
                NAME,
                "refunds_bounded",
                "No refund of the day is above what was accepted, or above what its pot charges.",
                blocking=True,
            ),
            check_spec(match_days, NAME, "no_refused_requests", "Every request of the day's files was accepted."),
        ],
    )
    def run(
        context: dg.AssetExecutionContext, inputs: Inputs, money_zone: MoneyZone, certificates: Certificates
    ) -> dg.MaterializeResult:
        day = partition_day(context)
        landing = inputs.landing_day(DATASET, day)
        requests = read_refund_requests(landing.files) if landing.files else NO_REQUESTS
        accepted = None
        if len(requests.frame):
            info = run_info(context)
            accepted = accept_refunds(money_zone.url, day, requests.frame, info.maker, info, landing.input_hash)
        of_day = checks.DayTables(money_zone.url, day)(checks.REFUNDS_OF_DAY)
        written = certificates.write(money_zone.url, day) if len(of_day) else []
        refused = _refused(requests, accepted)
        totals = of_day.groupby("currency", as_index=False)[["applied_minor"]].sum()
        return dg.MaterializeResult(
            metadata={
                "requests_read": requests.read,
                "requests_refused": len(refused),
                "refusals": dg.MetadataValue.json(refused["words"].tolist()[:_REFUSALS_SHOWN]),
                "refunds": len(of_day),
                "entries_posted": accepted.entries if accepted is not None else 0,
                "certificates_written": written,
                "ignored_files": dg.MetadataValue.json(list(landing.ignored)),
                "unknown_columns": dg.MetadataValue.json([list(column) for column in requests.unknown_columns]),
                "lineage": dg.MetadataValue.json({"input_hashes": {DATASET: landing.input_hash}}),
                **{f"refunded_minor {row['currency']}": int(row["applied_minor"]) for row in totals.to_dict("records")},
            },
            check_results=[
                check_result(
                    NAME,
                    "refunds_bounded",
                    of_day[
                        ~of_day["applied_minor"].between(0, of_day["amount_minor"])
                        | (of_day["pot_refunded_minor"] > of_day["pot_charged_minor"])
                    ],
                    "more is refunded than was accepted or charged: a defect; run `payments-pipeline verify`",
                    checked=len(of_day),
                ),
                check_result(
                    NAME,
                    "no_refused_requests",
                    refused,
                    "nothing of these was refunded; the words say what to do, and the next run of this day looks again",
                    checked=requests.read,
                    severity=dg.AssetCheckSeverity.WARN,
                ),
            ],
        )

    return run


def _refused(requests: RefundRequests, accepted: Accepted | None) -> pd.DataFrame:
    names = ["source", "line_number", "refund_id", "reason", "words"]
    rejected = requests.rejected[requests.rejected["outcome"] == "rejected"]
    parts = [rejected.assign(refund_id=None)]
    if accepted is not None:
        parts.append(accepted.refused.assign(reason=accepted.refused["decision"]))
    filled = [part[names].astype(object) for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=names)
