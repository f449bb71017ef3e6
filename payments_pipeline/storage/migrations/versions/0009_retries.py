"""A person may have a party paid again that waits after failures in a row."""

from payments_pipeline.storage.migrations import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Admit proposals of a retry, and show what accepted ones put aside."""
    run_sql("0009_retries.sql")
