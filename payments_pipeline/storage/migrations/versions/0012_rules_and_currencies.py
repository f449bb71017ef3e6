"""Changed rules are asked about whatever was posted before; a competition has one currency; a journal has entries."""

from payments_pipeline.storage.migrations import run_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Refuse what was posted under changed rules, in a second currency, or as a journal of nothing."""
    run_sql("0012_rules_and_currencies.sql")
