"""Refunds: accepted once, bounded by what the pot charges, recomputed with every correction."""

from payments_pipeline.storage.migrations import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add refunds, their journals and lines, and what is refused of them."""
    run_sql("0007_refunds.sql")
