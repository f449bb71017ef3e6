"""More that Postgres refuses by itself: entries out of place, facts without their cause, corrections that are none.

Applied after 0003, which was there first: no database that has 0003 already may miss it.
"""

from payments_pipeline.storage.migrations import run_sql

revision = "0002"
down_revision = "0003"


def upgrade() -> None:
    """Add the constraints and triggers."""
    run_sql("0002_more_refusals.sql")
