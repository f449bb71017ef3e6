"""The money zone: ledger, instructions, attempts, settlements."""

from payments_pipeline.storage.migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    run_sql("0001_money_zone.sql")
