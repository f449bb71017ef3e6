"""An accepted change of rules is posted once."""

from payments_pipeline.storage.migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Hold a posting under other rules against an acceptance of that very posting."""
    run_sql("0008_acceptance_once.sql")
