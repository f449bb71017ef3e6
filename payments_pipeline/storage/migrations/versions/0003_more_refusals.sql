-- More that Postgres refuses by itself, whoever asks. What stands already is checked here once: where it does not keep a
-- rule, migrating stops with the name of the constraint and changes nothing.
-- Sections: accounts by kind, references, once, corrections, facts and their cause, births.

-- Accounts by journal kind --------------------------------------------------------------------------------------------

ALTER TABLE payments.ledger_entries
    ADD CONSTRAINT ledger_entries_account_of_kind CHECK (split_part(account, ':', 1) = ANY (CASE kind
        WHEN 'accrual'    THEN '{pot,party,suspense}'::text[]
        WHEN 'refund'     THEN '{party,suspense}'
        WHEN 'submission' THEN '{party,in_transit}'
        WHEN 'failure'    THEN '{party,in_transit,cash}'
        WHEN 'settlement' THEN '{cash,in_transit,party}'
        WHEN 'return'     THEN '{cash,in_transit,party}'
        WHEN 'fee'        THEN '{fees,cash}'
        WHEN 'funding'    THEN '{cash,pot}'
        WHEN 'unmatched'  THEN '{cash,suspense}'
        WHEN 'match'      THEN '{suspense,cash,in_transit,party,pot,fees}'
        WHEN 'write_off'  THEN '{loss,party}'
        ELSE '{}' END)),
    ADD CONSTRAINT ledger_entries_item_of_kind CHECK (
        NOT is_item OR kind NOT IN ('submission', 'fee', 'funding', 'unmatched'));

-- What is spoken of exists --------------------------------------------------------------------------------------------

ALTER TABLE payments.journals
    ADD CONSTRAINT journals_of_posting FOREIGN KEY (match_id, posting_no) REFERENCES payments.match_postings,
    ADD CONSTRAINT journals_of_instruction FOREIGN KEY (instruction_id) REFERENCES payments.payout_instructions;
ALTER TABLE payments.settlement_records
    ADD CONSTRAINT settlement_records_of_line FOREIGN KEY (processor, entry_reference) REFERENCES payments.report_lines;

-- Once ----------------------------------------------------------------------------------------------------------------

CREATE UNIQUE INDEX journals_one_submission ON payments.journals (instruction_id) WHERE kind = 'submission';
CREATE UNIQUE INDEX journals_one_accrual ON payments.journals (match_id, posting_no) WHERE kind = 'accrual';
-- It serves look-ups by sweep day as well.
CREATE UNIQUE INDEX payout_instructions_one_a_sweep
    ON payments.payout_instructions (sweep_day, sweep_seq, party_id, currency);
DROP INDEX payments.payout_instructions_day;

-- Absence is not a correction, and one day per match ------------------------------------------------------------------

CREATE FUNCTION payments.check_corrections() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.match_id, n.posting_no, n.revision, p.revenue_minor INTO bad
    FROM new_rows n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE n.revenue_minor IS NULL AND p.revenue_minor IS NOT NULL LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match %: posting % (revision %) says nothing of its revenue, posted as %; absence is not a correction',
            bad.match_id, bad.posting_no, bad.revision, bad.revenue_minor
            USING ERRCODE = 'restrict_violation', HINT = 'Deliver a newer revision with its revenue, 0 where there is none. Nothing was posted.';
    END IF;
    SELECT n.match_id, n.posting_no, n.revision INTO bad
    FROM new_rows n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE n.revision = p.revision AND (
          n.content_hash <> p.content_hash
          OR n.participants <> p.participants AND EXISTS (
              SELECT value FROM jsonb_array_elements(p.participants::jsonb)
              EXCEPT SELECT value FROM jsonb_array_elements(n.participants::jsonb)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match %: posting % differs from the one before it, or lacks one of its participants, under the same revision %',
            bad.match_id, bad.posting_no, bad.revision
            USING ERRCODE = 'restrict_violation', HINT = 'Deliver it as a newer revision. Nothing was posted.';
    END IF;
    -- Worked out from the entries: is_open is the program's word.
    SELECT n.match_id, n.posting_no, n.match_day, p.match_day AS held_day INTO bad
    FROM new_rows n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE n.match_day <> p.match_day AND EXISTS (
        SELECT FROM ledger_entries e WHERE e.kind = 'accrual' AND e.match_id = n.match_id
        GROUP BY e.pot, e.pot_party_id, e.line_no, e.account, e.currency
        HAVING sum(e.credit_minor) <> sum(e.debit_minor))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match %: posting % is under %, and % holds its accruals', bad.match_id, bad.posting_no, bad.match_day, bad.held_day
            USING ERRCODE = 'restrict_violation',
                  HINT = 'It is free once a newer revision brings its accruals under that day to zero. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER match_postings_corrections AFTER INSERT ON payments.match_postings
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_corrections();

-- A fact follows its cause --------------------------------------------------------------------------------------------

CREATE FUNCTION payments.check_reported_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.seq, n.to_state INTO bad FROM new_rows n
    WHERE n.to_state IN ('settled', 'returned') AND NOT EXISTS (
        SELECT FROM report_lines l WHERE l.instruction_id = n.instruction_id AND l.kind = n.to_state)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: event % says %, and no report line does', bad.instruction_id, bad.seq, bad.to_state
            USING ERRCODE = 'restrict_violation', HINT = 'Take in the report of the processor. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_events_reported AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_reported_events();

CREATE FUNCTION payments.check_attempts_posted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.attempt_no INTO bad FROM new_rows n
    WHERE NOT EXISTS (SELECT FROM journals j WHERE j.instruction_id = n.instruction_id AND j.kind = 'submission') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: attempt % comes before the posting of its submission', bad.instruction_id, bad.attempt_no
            USING ERRCODE = 'restrict_violation', HINT = 'Post it in the same transaction, before the attempt. Nothing was written or sent.';
    END IF;
    SELECT n.instruction_id, n.attempt_no, n.not_after, n.started_at INTO bad FROM new_rows n
    WHERE n.not_after <= n.started_at LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: attempt % would begin at %, and its deadline was %',
            bad.instruction_id, bad.attempt_no, bad.started_at, bad.not_after
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Look the instruction up under its key; compare this machine''s clock with Postgres''s. Nothing was written or sent.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER payout_attempts_posted AFTER INSERT ON payments.payout_attempts
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_attempts_posted();

CREATE FUNCTION payments.check_report_lines() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.processor, n.entry_reference, n.amount_minor, n.currency, n.journal_id, c.own_minor, c.others INTO bad
    FROM new_rows n CROSS JOIN LATERAL (
        SELECT coalesce(sum(e.debit_minor - e.credit_minor) FILTER (
                   WHERE e.account = 'cash:' || n.processor AND e.currency = n.currency), 0) AS own_minor,
               count(*) FILTER (WHERE e.account LIKE 'cash:%'
                                AND (e.account <> 'cash:' || n.processor OR e.currency <> n.currency)) AS others
        FROM ledger_entries e WHERE e.journal_id = n.journal_id) c
    WHERE c.own_minor <> n.amount_minor OR c.others > 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'report line % of % is of % %, and its journal % moves % (and % other entries of cash)',
            bad.entry_reference, bad.processor, bad.amount_minor, bad.currency, bad.journal_id, bad.own_minor, bad.others
            USING ERRCODE = 'restrict_violation', HINT = 'A line posts its own amount of cash, once, before it is inserted. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER report_lines_check AFTER INSERT ON payments.report_lines
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_report_lines();

CREATE FUNCTION payments.check_release_days() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.item_id, n.claim_no, n.released_on, c.instruction_id, s.state, s.since_on INTO bad
    FROM new_rows n JOIN instruction_claims c USING (item_id, claim_no) JOIN instruction_states s USING (instruction_id)
    WHERE n.released_on <> s.since_on LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'item % (claim %) would be released on %, and instruction % is % since %',
            bad.item_id, bad.claim_no, bad.released_on, bad.instruction_id, bad.state, bad.since_on
            USING ERRCODE = 'restrict_violation', HINT = 'A release has the day of the event that caused it. Nothing was released.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER claim_releases_days AFTER INSERT ON payments.claim_releases
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_release_days();

-- Births --------------------------------------------------------------------------------------------------------------

-- Its items would be gone from open_items and no sweep, status or dispatch would ever name it. At the commit, since the
-- event comes after the claims, and so row by row.
CREATE FUNCTION payments.check_births() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM instruction_states s WHERE s.instruction_id = NEW.instruction_id) THEN
        RAISE EXCEPTION 'instruction % of % was made without its first event: its items would be hidden', NEW.instruction_id, NEW.party_id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Insert instruction, claims and the event of its creation in one transaction. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER payout_instructions_births AFTER INSERT ON payments.payout_instructions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION payments.check_births();

REVOKE ALL ON FUNCTION payments.check_corrections(), payments.check_reported_events(), payments.check_attempts_posted(),
    payments.check_report_lines(), payments.check_release_days(), payments.check_births() FROM PUBLIC;
