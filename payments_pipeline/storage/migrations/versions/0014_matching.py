"""Cash of nobody is matched by two people, once."""

from payments_pipeline.storage.migrations import run_sql

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Admit what takes a report line's cash out of suspense, as it was accepted."""
    run_sql("0014_matching.sql")
