-- The same refusals at a cost that grows with what is inserted alone.
-- Sections: ids and accounts, references, lines, claims, events, births.
--
-- Where nothing is wrong, a query for the first row that is has to look at all of them; with LIMIT the planner expects to
-- be done after the first, and may choose a plan that goes through one table for every row of another. Where inserted rows
-- are joined with large tables, one aggregate over all of them is asked for; only where it finds fault is the row looked for.

-- Ids and accounts ----------------------------------------------------------------------------------------------------

-- A bound on repetition, {1,128}, makes a regular expression twenty times as slow as all else that is asked of a line.
ALTER DOMAIN payments.business_id DROP CONSTRAINT business_id_check;
ALTER DOMAIN payments.business_id ADD CONSTRAINT business_id_check
    CHECK (length(VALUE) BETWEEN 1 AND 128 AND VALUE !~ '[^A-Za-z0-9:._-]');
ALTER TABLE payments.ledger_entries DROP CONSTRAINT ledger_entries_account_check;
ALTER TABLE payments.ledger_entries ADD CONSTRAINT ledger_entries_account_check CHECK (
    account IN ('suspense', 'loss')
    OR account LIKE ANY (ARRAY['party:_%', 'pot:_%', 'cash:_%', 'in\_transit:_%', 'fees:_%'])
       AND length(account) - position(':' IN account) <= 128 AND account !~ '[^A-Za-z0-9:._-]');

-- References ----------------------------------------------------------------------------------------------------------

-- A foreign key asks about one row at a time. What a large day inserts is asked about as a whole, by the triggers below;
-- what it refers to is in tables that nothing is ever deleted from.
ALTER TABLE payments.ledger_entries DROP CONSTRAINT ledger_entries_journal_id_fkey;
ALTER TABLE payments.instruction_claims
    DROP CONSTRAINT instruction_claims_item_id_fkey,
    DROP CONSTRAINT instruction_claims_instruction_id_fkey;
ALTER TABLE payments.instruction_events DROP CONSTRAINT instruction_events_instruction_id_fkey;
ALTER TABLE payments.instruction_states DROP CONSTRAINT instruction_states_instruction_id_fkey;
ALTER TABLE payments.payout_instructions DROP CONSTRAINT payout_instructions_sweep_day_sweep_seq_fkey;

-- Lines ---------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION payments.check_ledger_entries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.journal_id, n.currency, sum(n.debit_minor) AS debits, sum(n.credit_minor) AS credits INTO bad
    FROM new_rows n GROUP BY n.journal_id, n.currency HAVING sum(n.debit_minor) <> sum(n.credit_minor) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % does not balance in %: debits %, credits %', bad.journal_id, bad.currency, bad.debits, bad.credits
            USING ERRCODE = 'check_violation', HINT = 'All entries of a journal are inserted in one statement. Nothing was posted.';
    END IF;
    SELECT n.journal_id, j.journal_id IS NULL AS is_missing INTO bad
    FROM (SELECT DISTINCT journal_id, kind, day FROM new_rows) n LEFT JOIN journals j USING (journal_id)
    WHERE j.journal_id IS NULL OR j.created_xid <> pg_current_xact_id() OR j.kind <> n.kind OR j.day <> n.day LIMIT 1;
    IF FOUND AND bad.is_missing THEN
        RAISE EXCEPTION 'there is no journal %', bad.journal_id
            USING ERRCODE = 'foreign_key_violation', HINT = 'Insert it before its entries. Nothing was posted.';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'journal % was closed when its transaction ended, or differs in kind or day from its entries', bad.journal_id
            USING ERRCODE = 'restrict_violation', HINT = 'Post a new journal. Nothing was posted.';
    END IF;
    SELECT n.entry_id, n.match_id, n.posting_no INTO bad
    FROM new_rows n
    WHERE n.kind = 'accrual' AND n.posting_no > 1 AND NOT EXISTS (
        SELECT FROM ledger_entries p
        WHERE p.kind = 'accrual' AND p.match_id = n.match_id AND p.pot = n.pot AND p.pot_party_id = n.pot_party_id
          AND p.line_no = n.line_no AND p.account = n.account AND p.currency = n.currency AND p.posting_no = n.posting_no - 1)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % of match % is posting % of a key that has no posting before it', bad.entry_id, bad.match_id, bad.posting_no
            USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO open_items
        (item_id, next_claim_no, party_id, currency, day, kind, amount_minor, match_id, pot, pot_party_id, recipient, available_after)
    SELECT entry_id, 1, party_id, currency, day, kind, credit_minor - debit_minor, match_id, pot, pot_party_id, recipient,
           CASE WHEN kind IN ('accrual', 'refund') THEN NULL ELSE day END
    FROM new_rows WHERE is_item;
    RETURN NULL;
END
$$;

-- Claims --------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION payments.check_instruction_claims() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
    claimed bigint;
    expected bigint;
    is_sound boolean;
BEGIN
    SELECT sum(m.claims), coalesce(bool_and(
               m.is_new AND m.is_open
               AND m.net = CASE m.direction WHEN 'debit' THEN -m.amount_minor ELSE m.amount_minor END), true)
    INTO expected, is_sound
    FROM (
        SELECT i.direction, i.amount_minor, count(*) AS claims, sum(o.amount_minor) AS net,
               bool_and(coalesce(i.created_xid = pg_current_xact_id(), false)) AS is_new,
               bool_and(coalesce((o.party_id, o.currency) = (i.party_id, i.currency), false)) AS is_open
        FROM new_rows n
        LEFT JOIN payout_instructions i USING (instruction_id)
        LEFT JOIN open_items o ON o.item_id = n.item_id AND o.next_claim_no = n.claim_no
        GROUP BY n.instruction_id, i.direction, i.amount_minor) m;
    IF NOT is_sound THEN
        SELECT n.instruction_id, i.instruction_id IS NULL AS is_missing INTO bad
        FROM new_rows n LEFT JOIN payout_instructions i USING (instruction_id)
        WHERE i.created_xid IS DISTINCT FROM pg_current_xact_id() LIMIT 1;
        IF FOUND AND bad.is_missing THEN
            RAISE EXCEPTION 'there is no instruction %', bad.instruction_id
                USING ERRCODE = 'foreign_key_violation', HINT = 'Insert it before its claims. Nothing was claimed.';
        ELSIF FOUND THEN
            RAISE EXCEPTION 'instruction % was made in an earlier transaction: no item can be added to it', bad.instruction_id
                USING ERRCODE = 'restrict_violation';
        END IF;
        SELECT n.item_id, n.claim_no, n.instruction_id INTO bad
        FROM new_rows n JOIN payout_instructions i USING (instruction_id)
        LEFT JOIN open_items o ON o.item_id = n.item_id AND o.next_claim_no = n.claim_no
                              AND o.party_id = i.party_id AND o.currency = i.currency
        WHERE o.item_id IS NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'item % (claim %) is not an open item of the party and currency of instruction %',
                bad.item_id, bad.claim_no, bad.instruction_id
                USING ERRCODE = 'restrict_violation', HINT = 'It is under a live instruction already. Nothing was claimed.';
        END IF;
        SELECT n.instruction_id, i.direction, i.amount_minor, n.net INTO bad
        FROM (SELECT c.instruction_id, sum(o.amount_minor) AS net FROM new_rows c JOIN open_items o USING (item_id) GROUP BY 1) n
        JOIN payout_instructions i USING (instruction_id)
        WHERE n.net <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
        LIMIT 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'what was open changed while it was claimed'
                USING ERRCODE = 'serialization_failure', HINT = 'Run the day again. Nothing was claimed.';
        END IF;
        RAISE EXCEPTION 'instruction % is for % % and its items net to %', bad.instruction_id, bad.direction, bad.amount_minor, bad.net
            USING ERRCODE = 'check_violation';
    END IF;
    IF expected <> (SELECT count(*) FROM instruction_claims c WHERE c.instruction_id IN (SELECT n.instruction_id FROM new_rows n)) THEN
        SELECT n.instruction_id INTO bad
        FROM new_rows n JOIN instruction_claims c USING (instruction_id)
        WHERE (c.item_id, c.claim_no) NOT IN (SELECT m.item_id, m.claim_no FROM new_rows m) LIMIT 1;
        RAISE EXCEPTION 'instruction % is given its items in more than one statement', bad.instruction_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    DELETE FROM open_items o USING new_rows n WHERE o.item_id = n.item_id AND o.next_claim_no = n.claim_no;
    GET DIAGNOSTICS claimed = ROW_COUNT;
    IF claimed <> expected THEN
        RAISE EXCEPTION 'of % items only % were open: another sweep claimed the rest', expected, claimed
            USING ERRCODE = 'serialization_failure', HINT = 'Run the day again. Nothing was claimed.';
    END IF;
    RETURN NULL;
END
$$;

-- Events --------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION payments.check_instruction_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
    is_sound boolean;
BEGIN
    SELECT coalesce(bool_and(
               i.instruction_id IS NOT NULL AND p.to_state IS NOT DISTINCT FROM n.from_state
               AND (n.seq > 1) = (p.instruction_id IS NOT NULL)
               AND ((n.to_state = 'netted') = (i.direction = 'none') OR n.to_state IN ('created', 'cancelled'))), true)
           AND (SELECT count(*) = 0 FROM (SELECT DISTINCT from_state, to_state FROM new_rows) t
                WHERE NOT EXISTS (SELECT FROM lifecycle l
                                  WHERE l.from_state IS NOT DISTINCT FROM t.from_state AND l.to_state = t.to_state))
           AND (SELECT count(*) = 0 FROM new_rows b
                WHERE b.to_state = 'created'
                  AND NOT EXISTS (SELECT FROM instruction_claims c WHERE c.instruction_id = b.instruction_id))
    INTO is_sound
    FROM new_rows n
    LEFT JOIN payout_instructions i USING (instruction_id)
    LEFT JOIN instruction_events p ON p.instruction_id = n.instruction_id AND p.seq = n.seq - 1;
    IF NOT is_sound THEN
        SELECT n.instruction_id INTO bad FROM new_rows n
        WHERE NOT EXISTS (SELECT FROM payout_instructions i WHERE i.instruction_id = n.instruction_id) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'there is no instruction %', bad.instruction_id
                USING ERRCODE = 'foreign_key_violation', HINT = 'Insert it before its events. Nothing was written.';
        END IF;
        SELECT n.instruction_id, n.seq, n.from_state, n.to_state INTO bad
        FROM new_rows n
        LEFT JOIN instruction_events p ON p.instruction_id = n.instruction_id AND p.seq = n.seq - 1
        WHERE p.to_state IS DISTINCT FROM n.from_state
           OR (n.seq > 1) <> (p.instruction_id IS NOT NULL)
           OR NOT EXISTS (SELECT FROM lifecycle l WHERE l.from_state IS NOT DISTINCT FROM n.from_state AND l.to_state = n.to_state)
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'instruction %: event % from % to % is not a transition that can follow', bad.instruction_id, bad.seq, bad.from_state, bad.to_state
                USING ERRCODE = 'restrict_violation';
        END IF;
        SELECT n.instruction_id INTO bad FROM new_rows n
        WHERE n.to_state = 'created' AND NOT EXISTS (SELECT FROM instruction_claims c WHERE c.instruction_id = n.instruction_id) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'instruction % claims no item', bad.instruction_id USING ERRCODE = 'restrict_violation';
        END IF;
        SELECT n.instruction_id INTO bad FROM new_rows n JOIN payout_instructions i USING (instruction_id)
        WHERE (n.to_state = 'netted') <> (i.direction = 'none') AND n.to_state NOT IN ('created', 'cancelled') LIMIT 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the events of an instruction changed while another was written'
                USING ERRCODE = 'serialization_failure', HINT = 'Run the day again. Nothing was written.';
        END IF;
        RAISE EXCEPTION 'instruction %: netted is for a sum of zero, and for that alone', bad.instruction_id USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT n.instruction_id INTO bad FROM new_rows n
    WHERE n.from_state = 'held' AND n.to_state = 'approved' AND NOT pg_has_role(session_user, 'payments_approver', 'USAGE') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % is over its limit: only a login of payments_approver can approve it', bad.instruction_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO instruction_states AS s (instruction_id, state, seq, since_on)
    SELECT DISTINCT ON (instruction_id) instruction_id, to_state, seq, occurred_on
    FROM new_rows ORDER BY instruction_id, seq DESC
    ON CONFLICT (instruction_id) DO UPDATE SET state = excluded.state, seq = excluded.seq, since_on = excluded.since_on
        WHERE s.seq < excluded.seq;
    RETURN NULL;
END
$$;

-- Births --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION payments.check_payout_instructions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.sweep_day, n.sweep_seq INTO bad FROM (SELECT DISTINCT sweep_day, sweep_seq FROM new_rows) n
    WHERE NOT EXISTS (SELECT FROM sweeps s WHERE (s.sweep_day, s.seq) = (n.sweep_day, n.sweep_seq)) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no sweep % of %', bad.sweep_seq, bad.sweep_day
            USING ERRCODE = 'foreign_key_violation', HINT = 'Insert it before its instructions. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER payout_instructions_check AFTER INSERT ON payments.payout_instructions
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_payout_instructions();

-- At the commit, once a statement, by what the audit trail has of it.
DROP TRIGGER payout_instructions_births ON payments.payout_instructions;
CREATE OR REPLACE FUNCTION payments.check_births() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT i.instruction_id, i.party_id INTO bad
    FROM unnest(NEW.row_keys) AS k (instruction_id) JOIN payout_instructions i ON i.instruction_id = k.instruction_id::uuid
    WHERE NOT EXISTS (SELECT FROM instruction_states s WHERE s.instruction_id = i.instruction_id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % of % was made without its first event: its items would be hidden', bad.instruction_id, bad.party_id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Insert instruction, claims and the event of its creation in one transaction. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER audit_entries_births AFTER INSERT ON payments.audit_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.table_name = 'payout_instructions' AND NOT NEW.by_migration)
    EXECUTE FUNCTION payments.check_births();
REVOKE ALL ON FUNCTION payments.check_payout_instructions() FROM PUBLIC;
