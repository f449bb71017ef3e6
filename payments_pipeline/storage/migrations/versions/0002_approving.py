"""Approving: until when, by whom, and proposals that a second person decides."""

from payments_pipeline.storage.migrations import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what approving needs."""
    run_sql("0002_approving.sql")
