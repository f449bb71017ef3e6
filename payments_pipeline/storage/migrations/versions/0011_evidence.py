"""What ends an unknown outcome is evidence that is stored; what ends an instruction releases its items."""

from payments_pipeline.storage.migrations import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Keep look-ups, hold ends of the unknown against them, releases against ends, and days of people against today."""
    run_sql("0011_evidence.sql")
