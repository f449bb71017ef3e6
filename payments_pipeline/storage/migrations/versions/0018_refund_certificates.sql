-- What refunds were accepted from is kept with them, for their certificates.

ALTER TABLE payments.refunds ADD COLUMN input_hash text CHECK (input_hash ~ '^[0-9a-f]{64}$');
COMMENT ON COLUMN payments.refunds.input_hash IS 'Of the request files of the day of acceptance as they were then; empty where it was asked for by command.';
SELECT payments.audit('refunds', 'refund_id', 'refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, requested_minor, reason, requester, accepted_day, source, run_id, code_version, login, accepted_at, input_hash');
GRANT INSERT (input_hash) ON payments.refunds TO payments_runtime;
-- The certificate of an acceptance begins at the entries of its refunds, in the transaction that made their journals.
CREATE INDEX audit_entries_refunds ON payments.audit_entries (transaction_id) WHERE table_name = 'refunds' AND NOT by_migration;
