"""The audit trail: every row of every append-only table in a hash chain, a day at a time."""

from payments_pipeline.storage.migrations import run_sql

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    """Add entries, chain and triggers, and record what is there already."""
    run_sql("0006_audit_chain.sql")
