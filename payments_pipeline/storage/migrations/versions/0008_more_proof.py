"""An accepted change of rules is posted once; what fails is shown to have failed."""

from payments_pipeline.storage.migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Hold changed rules against an acceptance of that very posting, and failures against what shows them."""
    run_sql("0008_more_proof.sql")
