"""Rules over the database itself: what is append-only can only be appended to.

Belongs here: triggers and grants. Does not belong here: rows.
"""

from __future__ import annotations

from payments_pipeline.verify.rules_audit import AUDITED
from payments_pipeline.verify.table_rule import TableRule

#: What nobody may ever change.
APPEND_ONLY = (
    "day_postings",
    "posting_breaks",
    "match_postings",
    "journals",
    "ledger_entries",
    "sweeps",
    "sweep_deferrals",
    "payout_instructions",
    "instruction_claims",
    "claim_releases",
    "lifecycle",
    "instruction_events",
    "payout_attempts",
    "payout_attempt_outcomes",
    "payout_look_ups",
    "report_intakes",
    "report_balances",
    "report_lines",
    "settlement_records",
    "alerts",
    "alert_deliveries",
    "refunds",
    "proposals",
    "proposal_decisions",
    "refunds",
    "audit_entries",
    "audit_chain",
)
#: What only triggers, or a migration, may write.
WRITTEN_BY_NO_LOGIN = ("open_items", "instruction_states", "lifecycle", "audit_entries", "audit_chain")
_NAMES = sorted({*APPEND_ONLY, *WRITTEN_BY_NO_LOGIN, "reconciliation"})
#: Triggers that check or project what is inserted: without them rows come in that no other rule of Postgres refuses.
_CHECKED = {
    "check_match_postings": "match_postings",
    "check_corrections": "match_postings",
    "check_currencies": "match_postings",
    "check_policies": "match_postings",
    "check_rule_changes": "journals",
    "check_ledger_entries": "ledger_entries",
    "check_write_offs": "ledger_entries",
    "check_matches": "ledger_entries",
    "check_refund_entries": "ledger_entries",
    "lock_refunds": "refunds",
    "check_refunds": "refunds",
    "check_refund_births": "refunds",
    "check_sweeps": "sweeps",
    "check_payout_instructions": "payout_instructions",
    "check_instruction_claims": "instruction_claims",
    "check_siblings": "instruction_claims",
    "check_claim_releases": "claim_releases",
    "check_release_days": "claim_releases",
    "check_instruction_events": "instruction_events",
    "check_reported_events": "instruction_events",
    "check_approvals": "instruction_events",
    "check_refund_makers": "instruction_events",
    "check_resolutions": "instruction_events",
    "check_ends": "instruction_events",
    "check_sendings": "instruction_events",
    "check_payout_attempts": "payout_attempts",
    "check_attempts_posted": "payout_attempts",
    "check_report_lines": "report_lines",
    "check_retries": "proposals",
    "check_proposal_decisions": "proposal_decisions",
    **{f"audit_{table}": table for table in AUDITED},
    "check_births": "audit_entries",
    "check_journals": "audit_entries",
    "link_audit_entry": "audit_entries",
}
#: Those that a condition lets be asked about their own rows alone.
_CONDITIONAL = ("check_births", "check_ends", "check_journals", "check_sendings")
#: The same of more tables than one.
_CHECKED_IN = [
    *((table, function) for function, table in _CHECKED.items()),
    *((table, "check_days_of_people") for table in ("instruction_events", "refunds")),
    *((table, "refuse_hands") for table in ("open_items", "instruction_states", "audit_entries", "audit_chain")),
    ("lifecycle", "refuse_change"),
]

# Bits of pg_trigger.tgtype: 1 row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate.
RULES = {
    "append-only tables refuse change": TableRule(
        f"""SELECT format('payments.%s has no trigger that refuses UPDATE, DELETE and TRUNCATE: migrate again', name)
            FROM unnest(ARRAY{list(APPEND_ONLY)}) AS name
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = to_regclass('payments.' || name) AND p.pronamespace = 'payments'::regnamespace
                  AND p.proname = 'refuse_change' AND t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL
                  AND t.tgattr = '' AND (t.tgtype & 59) = 58)""",
        f"SELECT {len(APPEND_ONLY)}",
    ),
    "what is inserted is checked by its trigger": TableRule(
        f"""SELECT format('payments.%s has no trigger %s on INSERT: migrate again', name, function)
            FROM unnest(ARRAY{[table for table, _ in _CHECKED_IN]}, ARRAY{[function for _, function in _CHECKED_IN]}) AS t (name, function)
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = to_regclass('payments.' || name) AND p.pronamespace = 'payments'::regnamespace
                  AND p.proname = function AND t.tgenabled IN ('O', 'A') AND (t.tgtype & 4) = 4
                  AND (t.tgqual IS NULL OR function = ANY (ARRAY{list(_CONDITIONAL)})))""",
        f"SELECT {len(_CHECKED_IN)}",
    ),
    "no role or database has its triggers off": TableRule(
        """SELECT format('a setting of role %s, database %s is %s: no trigger fires; reset it', setrole::regrole,
                         (SELECT datname FROM pg_database d WHERE d.oid = setdatabase), setting)
           FROM pg_db_role_setting, unnest(setconfig) AS setting
           WHERE setting LIKE 'session_replication_role=%' AND setting <> 'session_replication_role=origin'
             AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))""",
        "SELECT count(*) FROM pg_roles",
    ),
    "every column of money is a whole number": TableRule(
        """SELECT format('payments.%s.%s is of type %s', table_name, column_name, data_type) FROM information_schema.columns
           WHERE table_schema = 'payments' AND column_name LIKE '%\\_minor' AND data_type <> 'bigint'""",
        """SELECT count(*) FROM information_schema.columns
           WHERE table_schema = 'payments' AND column_name LIKE '%\\_minor'""",
    ),
    "the run-time login can only insert and read": TableRule(
        f"""SELECT format('%s may %s payments.%s: revoke it', login, privilege, name)
            FROM unnest(ARRAY{_NAMES}) AS name
            CROSS JOIN unnest(ARRAY['payments_runtime', 'payments_approver']) AS login
            CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'INSERT']) AS privilege
            WHERE CASE WHEN privilege IN ('UPDATE', 'INSERT')
                       THEN has_any_column_privilege(login, 'payments.' || name, privilege)
                       ELSE has_table_privilege(login, 'payments.' || name, privilege) END
              AND NOT (privilege = 'INSERT' AND name <> ALL (ARRAY{list(WRITTEN_BY_NO_LOGIN)}))
              AND NOT (privilege = 'DELETE' AND name = 'reconciliation' AND login = 'payments_runtime')""",
        f"SELECT {len(_NAMES)}",
    ),
}
