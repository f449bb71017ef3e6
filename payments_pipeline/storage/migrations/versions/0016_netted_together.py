"""What belongs together is netted together; what is sent, ended or written off is held against the books."""

from payments_pipeline.storage.migrations import run_sql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add what Postgres knows of late settlements, and what it refuses besides."""
    run_sql("0016_netted_together.sql")
