"""A write-off is of the very items that were looked at."""

from payments_pipeline.storage.migrations import run_sql

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Hold a write-off against the debt that it was accepted for."""
    run_sql("0013_write_offs.sql")
