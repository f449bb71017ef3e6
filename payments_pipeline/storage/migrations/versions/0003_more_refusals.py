"""More that Postgres refuses by itself: entries out of place, facts without their cause, corrections that are none."""

from payments_pipeline.storage.migrations import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the constraints and triggers."""
    run_sql("0003_more_refusals.sql")
