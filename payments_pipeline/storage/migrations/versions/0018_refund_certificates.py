"""Refunds keep what they were accepted from."""

from payments_pipeline.storage.migrations import run_sql

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the hash of the request files, which certificates of refunds say."""
    run_sql("0018_refund_certificates.sql")
