"""What a large day inserts is checked at a cost that grows with it alone."""

from payments_pipeline.storage.migrations import run_sql

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Ask of each insert, as one aggregate, what was asked row by row."""
    run_sql("0017_large_days.sql")
