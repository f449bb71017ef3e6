"""Every rule over the tables of the money zone, in the order in which they are checked."""

from __future__ import annotations

from payments_pipeline.verify import (
    rules_acts,
    rules_audit,
    rules_claims,
    rules_decisions,
    rules_dispatch,
    rules_ids,
    rules_ledger,
    rules_lifecycle,
    rules_postings,
    rules_refunds,
    rules_schema,
    rules_settlement,
)
from payments_pipeline.verify.table_rule import TableCheck

TABLE_RULES: dict[str, TableCheck] = {
    **rules_ledger.RULES,
    **rules_postings.RULES,
    **rules_refunds.RULES,
    **rules_ids.RULES,
    **rules_claims.RULES,
    **rules_lifecycle.RULES,
    **rules_decisions.RULES,
    **rules_dispatch.RULES,
    **rules_settlement.RULES,
    **rules_acts.RULES,
    **rules_audit.RULES,
    **rules_schema.RULES,
}
