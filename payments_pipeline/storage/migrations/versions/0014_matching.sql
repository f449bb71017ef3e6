-- Cash that belonged to nobody is matched once somebody knows, and another accepts, what it was for.

ALTER TABLE payments.proposals DROP CONSTRAINT proposals_kind_check;
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_kind_check
    CHECK (kind IN ('write_off', 'resolution', 'rule_change', 'retry', 'match'));
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_match CHECK (kind <> 'match' OR (
    content ? 'processor' AND content ? 'entry_reference' AND content ->> 'account' ~ '^((fees|pot|party):[A-Za-z0-9:._-]{1,128})$'));
COMMENT ON TABLE payments.proposals IS 'What one person asks for and another decides: a write-off, what became of an instruction whose outcome is unknown, what a change of rules does to matches that are posted, that a party is paid again after failures in a row, or what a report line was for that belonged to nobody.';

ALTER TABLE payments.journals ADD COLUMN matched_reference text;
ALTER TABLE payments.journals DROP CONSTRAINT journals_of_proposal;
ALTER TABLE payments.journals
    ADD CONSTRAINT journals_of_proposal CHECK ((kind IN ('write_off', 'match')) = (proposal_id IS NOT NULL)),
    ADD CONSTRAINT journals_of_match CHECK ((kind = 'match') = (matched_reference IS NOT NULL) AND (kind <> 'match' OR processor IS NOT NULL)),
    ADD CONSTRAINT journals_of_line FOREIGN KEY (processor, matched_reference) REFERENCES payments.report_lines;
CREATE UNIQUE INDEX journals_matched ON payments.journals (processor, matched_reference) WHERE matched_reference IS NOT NULL;
COMMENT ON COLUMN payments.journals.matched_reference IS 'Of a match: the report line whose cash it takes out of suspense.';

CREATE FUNCTION payments.check_matches() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT j.journal_id, j.processor, j.matched_reference, j.proposal_id INTO bad
    FROM (SELECT DISTINCT journal_id FROM new_rows WHERE kind = 'match') n JOIN journals j USING (journal_id)
    WHERE NOT EXISTS (
        SELECT FROM proposals p JOIN proposal_decisions d USING (proposal_id)
        JOIN report_lines l ON (l.processor, l.entry_reference) = (j.processor, j.matched_reference)
        JOIN journals u ON u.journal_id = l.journal_id AND u.kind = 'unmatched'
        WHERE p.proposal_id = j.proposal_id AND p.kind = 'match' AND d.decision = 'accepted'
          AND (p.content ->> 'processor', p.content ->> 'entry_reference') = (l.processor, l.entry_reference)
          AND 2 = (SELECT count(*) FROM new_rows e WHERE e.journal_id = j.journal_id)
          AND EXISTS (SELECT FROM new_rows e WHERE e.journal_id = j.journal_id AND e.account = 'suspense'
                      AND e.currency = l.currency AND e.debit_minor - e.credit_minor = l.amount_minor)
          AND EXISTS (SELECT FROM new_rows e WHERE e.journal_id = j.journal_id AND e.account = p.content ->> 'account'
                      AND e.currency = l.currency AND e.credit_minor - e.debit_minor = l.amount_minor
                      AND e.is_item = (e.party_id IS NOT NULL)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % matches entry % of %, and proposal % was not accepted for that', bad.journal_id, bad.matched_reference, bad.processor, bad.proposal_id
            USING ERRCODE = 'restrict_violation', HINT = 'Propose what the line was for, and have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_entries_matches AFTER INSERT ON payments.ledger_entries
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_matches();
REVOKE ALL ON FUNCTION payments.check_matches() FROM PUBLIC;
GRANT INSERT (matched_reference) ON payments.journals TO payments_runtime;
SELECT payments.audit('journals', 'journal_id', 'journal_id, kind, day, match_id, posting_no, instruction_id, processor, entry_reference, run_id, code_version, posted_at, created_xid, proposal_id, refund_id, matched_reference');
