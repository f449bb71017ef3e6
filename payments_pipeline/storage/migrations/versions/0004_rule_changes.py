"""Rules changed with effect in the past: proposed with their effect, posted once a person has accepted them."""

from payments_pipeline.storage.migrations import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what proposing a change of rules needs."""
    run_sql("0004_rule_changes.sql")
