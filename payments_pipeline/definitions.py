"""The code location: assembly only."""

from collections.abc import Mapping

import dagster as dg

from payments_pipeline.defs.assets.ingest import ingest
from payments_pipeline.defs.assets.ledger_entries import ledger_entries
from payments_pipeline.defs.assets.participant_shares import participant_shares
from payments_pipeline.defs.assets.payout_instructions import payout_instructions
from payments_pipeline.defs.assets.payout_submissions import payout_submissions
from payments_pipeline.defs.assets.reconciliation import reconciliation
from payments_pipeline.defs.assets.refunds import refunds
from payments_pipeline.defs.assets.settlement_records import settlement_records
from payments_pipeline.defs.assets.settlement_reports import settlement_reports
from payments_pipeline.defs.automation import build_schedules, build_sensors
from payments_pipeline.defs.jobs import build_jobs
from payments_pipeline.defs.partitions import match_day_partitions
from payments_pipeline.defs.resources import build_resources
from payments_pipeline.settings import Settings, load_settings


def build_defs(settings: Settings, resource_overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Assemble everything.

    Args:
        settings: addresses, zone and first day; nothing is opened.
        resource_overrides: resources by key that replace the ones settings name; for tests.
    """
    match_days = match_day_partitions(settings)
    jobs = build_jobs()
    return dg.Definitions(
        assets=[
            build(match_days)
            for build in (
                ingest,
                participant_shares,
                ledger_entries,
                refunds,
                payout_instructions,
                payout_submissions,
                settlement_reports,
                settlement_records,
                reconciliation,
            )
        ],
        jobs=jobs,
        schedules=build_schedules(settings),
        sensors=build_sensors(settings),
        resources=build_resources(settings) | dict(resource_overrides or {}),
    )


defs = build_defs(load_settings())
