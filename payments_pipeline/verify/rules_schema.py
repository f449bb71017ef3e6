"""Rules over the database itself: what is append-only can only be appended to."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

RULES = {
    "append-only tables refuse change": TableRule(
        f"""SELECT format('payments.%s has no trigger that refuses UPDATE, DELETE and TRUNCATE: migrate again', name)
            FROM unnest(ARRAY{list(APPEND_ONLY)}) AS name
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = to_regclass('payments.' || name) AND p.proname = 'refuse_change' AND t.tgenabled IN ('O', 'A')
                  AND (t.tgtype & 56) = 56)""",
        f"SELECT {len(APPEND_ONLY)}",
    ),
    "the run-time login can only insert and read": TableRule(
        f"""SELECT format('payments_runtime may %s payments.%s: revoke it', privilege, name)
            FROM unnest(ARRAY{[*APPEND_ONLY, "open_items", "instruction_states", "reconciliation"]}) AS name
            CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'INSERT']) AS privilege
            WHERE has_table_privilege('payments_runtime', 'payments.' || name, privilege)
              AND NOT (privilege = 'INSERT' AND name NOT IN ({", ".join(f"'{name}'" for name in _PROJECTIONS)}))
              AND NOT (privilege = 'DELETE' AND name = 'reconciliation')""",
        f"SELECT {len(APPEND_ONLY) + 3}",
    ),
}
