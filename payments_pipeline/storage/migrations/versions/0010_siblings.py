"""What corrects an item stands beside it: neither leaves while the other is open or unsent."""

from payments_pipeline.storage.migrations import run_sql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Show the postings of a key beside each other, and what is claimed and not sent."""
    run_sql("0010_siblings.sql")
