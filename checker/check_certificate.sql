-- What check_certificate.py needs of one match day: rows of the tables and of the audit trail, one JSON object a line.
-- It changes nothing, and any login that may read will do:
--
--     psql -X -v day=2024-08-17 -f check_certificate.sql "$DATABASE" > day.jsonl
\set QUIET on
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL search_path = payments;
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO';

WITH trail AS MATERIALIZED (
    -- By the trail, not by the table: a posting whose row is gone is asked about as well.
    SELECT e.entry_id, e.transaction_id, e.by_migration, c.day AS link_day, c.commit_no
    FROM audit_entries e JOIN audit_chain c USING (entry_id)
    WHERE e.table_name = 'day_postings' AND EXISTS (
        SELECT FROM unnest(e.row_keys) AS key WHERE key LIKE '(' || :'day' || ',%')
    UNION ALL
    SELECT e.entry_id, e.transaction_id, e.by_migration, c.day, c.commit_no
    FROM audit_entries e JOIN audit_chain c USING (entry_id)
    WHERE e.table_name = 'refunds' AND EXISTS (
        -- Of which day one was whose row is gone, nothing says: it is asked about on every day.
        SELECT FROM unnest(e.row_keys) AS key LEFT JOIN refunds r ON r.refund_id = key
        WHERE r.accepted_day = :'day' OR r.refund_id IS NULL)
), commits AS MATERIALIZED (
    SELECT DISTINCT commit_no FROM trail WHERE NOT by_migration
), entries AS MATERIALIZED (
    SELECT e.* FROM audit_entries e JOIN audit_chain c USING (entry_id) JOIN commits USING (commit_no)
), wanted_journals AS MATERIALIZED (
    SELECT journal_id FROM journals j
    JOIN (SELECT DISTINCT run_id FROM day_postings WHERE match_day = :'day') p USING (run_id)
    WHERE created_xid IN (SELECT transaction_id FROM trail WHERE NOT by_migration)
    UNION SELECT journal_id FROM journals JOIN refunds r USING (refund_id)
    WHERE r.accepted_day = :'day' AND created_xid IN (SELECT transaction_id FROM trail WHERE NOT by_migration)
    UNION SELECT journal_id FROM journals WHERE kind = 'accrual' AND day = :'day'
    UNION SELECT key::uuid FROM entries, unnest(row_keys) AS key WHERE table_name = 'journals' AND key ~ '^[0-9a-f-]{36}$'
), refunded AS MATERIALIZED (
    SELECT ROW(match_id, posting_no)::text AS key FROM journals JOIN wanted_journals USING (journal_id) WHERE kind = 'refund'
), refunded_entries AS MATERIALIZED (
    -- What refunds are of was posted in another commit, maybe on another day.
    SELECT e.*, c.day AS link_day FROM audit_entries e JOIN audit_chain c USING (entry_id)
    WHERE e.table_name = 'match_postings' AND e.row_keys && (SELECT array_agg(key) FROM refunded)
), wanted_matches AS MATERIALIZED (
    SELECT key FROM entries, unnest(row_keys) AS key WHERE table_name = 'match_postings'
    UNION SELECT key FROM refunded_entries, unnest(row_keys) AS key
    UNION SELECT key FROM refunded
), link_days AS MATERIALIZED (
    SELECT link_day FROM trail UNION SELECT link_day FROM refunded_entries
), wanted_lines AS MATERIALIZED (
    SELECT entry_id FROM ledger_entries JOIN wanted_journals USING (journal_id)
    UNION SELECT entry_id FROM ledger_entries WHERE kind = 'accrual' AND day = :'day'
    UNION SELECT key::uuid FROM entries, unnest(row_keys) AS key WHERE table_name = 'ledger_entries' AND key ~ '^[0-9a-f-]{36}$'
)
SELECT json_build_object('of', 'match_day', 'day', :'day'::date::text)
UNION ALL
SELECT json_build_object('of', 'day_postings', 'row', json_build_object(
    'match_day', match_day::text, 'seq', seq::text, 'input_hashes', input_hashes::text, 'matches', matches::text,
    'shares', shares::text, 'entries_posted', entries_posted::text, 'run_id', run_id::text,
    'code_version', code_version::text, 'posted_at', posted_at::text))
FROM day_postings WHERE match_day = :'day'
UNION ALL
SELECT json_build_object('of', 'posting_breaks', 'row', json_build_object(
    'match_day', match_day::text, 'seq', seq::text, 'match_id', match_id::text, 'reason', reason::text,
    'words', words::text))
FROM posting_breaks WHERE match_day = :'day'
UNION ALL
SELECT json_build_object('of', 'match_postings', 'row', json_build_object(
    'match_id', match_id::text, 'posting_no', posting_no::text, 'match_day', match_day::text,
    'day_seq', day_seq::text, 'competition_id', competition_id::text, 'revision', revision::text,
    'content_hash', content_hash::text, 'rules_hash', rules_hash::text, 'schedule_version', schedule_version::text,
    'currency', currency::text, 'payout_policy', payout_policy::text, 'revenue_minor', revenue_minor::text,
    'participants', participants::text, 'is_open', left(is_open::text, 1)))
FROM match_postings WHERE match_day = :'day' OR ROW(match_id, posting_no)::text IN (SELECT key FROM wanted_matches)
UNION ALL
SELECT json_build_object('of', 'refunds', 'row', json_build_object(
    'refund_id', refund_id::text, 'match_id', match_id::text, 'pot', pot::text, 'pot_party_id', pot_party_id::text,
    'pot_no', pot_no::text, 'currency', currency::text, 'amount_minor', amount_minor::text,
    'requested_minor', requested_minor::text, 'reason', reason::text, 'requester', requester::text,
    'accepted_day', accepted_day::text, 'source', source::text, 'run_id', run_id::text,
    'code_version', code_version::text, 'login', login::text, 'accepted_at', accepted_at::text,
    'input_hash', input_hash::text))
FROM refunds WHERE accepted_day = :'day' OR refund_id IN (
    SELECT key FROM entries, unnest(row_keys) AS key WHERE table_name = 'refunds')
UNION ALL
SELECT json_build_object('of', 'journals', 'row', json_build_object(
    'journal_id', journal_id::text, 'kind', kind::text, 'day', day::text, 'match_id', match_id::text,
    'posting_no', posting_no::text, 'instruction_id', instruction_id::text, 'processor', processor::text,
    'entry_reference', entry_reference::text, 'run_id', run_id::text, 'code_version', code_version::text,
    'posted_at', posted_at::text, 'created_xid', created_xid::text, 'proposal_id', proposal_id::text,
    'refund_id', refund_id::text, 'matched_reference', matched_reference::text))
FROM journals JOIN wanted_journals USING (journal_id)
UNION ALL
SELECT json_build_object('of', 'ledger_entries', 'row', json_build_object(
    'entry_id', entry_id::text, 'journal_id', journal_id::text, 'kind', kind::text, 'day', day::text,
    'account', account::text, 'party_id', party_id::text, 'currency', currency::text,
    'debit_minor', debit_minor::text, 'credit_minor', credit_minor::text, 'is_item', left(is_item::text, 1),
    'match_id', match_id::text, 'pot', pot::text, 'pot_party_id', pot_party_id::text, 'line_no', line_no::text,
    'recipient', recipient::text, 'schedule_version', schedule_version::text, 'posting_no', posting_no::text,
    'refund_id', refund_id::text))
FROM ledger_entries JOIN wanted_lines USING (entry_id)
UNION ALL
SELECT json_build_object('of', 'audit_entries', 'row', json_build_object(
    'entry_id', entry_id::text, 'recorded_at', recorded_at::text, 'transaction_id', transaction_id::text,
    'table_name', table_name, 'by_migration', left(by_migration::text, 1), 'row_count', row_count::text, 'login', login,
    'content_sha256', content_sha256, 'row_keys', row_keys, 'row_digests', (
        SELECT json_agg(encode(digest, 'hex') ORDER BY n) FROM unnest(row_digests) WITH ORDINALITY AS d (digest, n))))
FROM (SELECT * FROM entries
      UNION SELECT e.* FROM audit_entries e WHERE entry_id IN (SELECT entry_id FROM refunded_entries)) e
UNION ALL
-- The whole chain of those days, and the last link before each.
SELECT json_build_object('of', 'audit_chain', 'row', json_build_object(
    'day', c.day::text, 'seq', c.seq, 'entry_id', c.entry_id::text, 'commit_no', c.commit_no, 'hash', c.hash,
    'content_sha256', e.content_sha256, 'of_whole_day', c.day IN (SELECT link_day FROM link_days)))
FROM audit_chain c LEFT JOIN audit_entries e USING (entry_id)
WHERE c.day IN (SELECT link_day FROM link_days) OR (c.day, c.seq) IN (
    SELECT b.day, b.seq FROM link_days t CROSS JOIN LATERAL (
        SELECT a.day, a.seq FROM audit_chain a WHERE a.day < t.link_day ORDER BY a.day DESC, a.seq DESC LIMIT 1) b)
UNION ALL
SELECT json_build_object('of', 'before_the_trail', 'posting', split_part(trim('()' FROM key), ',', 2))
FROM audit_entries e, unnest(e.row_keys) AS key
WHERE e.table_name = 'day_postings' AND e.by_migration AND key LIKE '(' || :'day' || ',%';
COMMIT;
