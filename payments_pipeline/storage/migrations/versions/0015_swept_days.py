"""A day's items are free to later sweeps once its own run has got as far as its sweep."""

from payments_pipeline.storage.migrations import run_sql

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Keep with each sweep which posting of its day it came after."""
    run_sql("0015_swept_days.sql")
