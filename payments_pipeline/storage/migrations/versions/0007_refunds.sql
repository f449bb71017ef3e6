-- Refunds: an amount fixed at acceptance, given back out of a match fee's pot, recomputed with each correction of it.
-- Sections: refunds, their journals and lines, what is refused, makers, audit and grants.

-- Refunds -------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.refunds (
    refund_id       payments.business_id PRIMARY KEY,
    match_id        payments.business_id NOT NULL,
    pot             text                 NOT NULL CHECK (pot = 'match_fee'),
    pot_party_id    payments.business_id NOT NULL,
    pot_no          integer              NOT NULL CHECK (pot_no >= 1),
    currency        payments.currency    NOT NULL,
    amount_minor    bigint               NOT NULL CHECK (amount_minor > 0),
    requested_minor bigint               CHECK (requested_minor = amount_minor),
    reason          text                 NOT NULL CHECK (reason <> ''),
    requester       text                 NOT NULL CHECK (requester <> ''),
    accepted_day    date                 NOT NULL,
    source          text                 NOT NULL,
    run_id          text                 NOT NULL,
    code_version    text                 NOT NULL,
    login           text                 NOT NULL DEFAULT session_user,
    accepted_at     timestamptz          NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (match_id, pot, pot_party_id, pot_no)
);
CREATE INDEX refunds_day ON payments.refunds (accepted_day);
COMMENT ON TABLE payments.refunds IS 'Accepted refunds of match fees: the amount fixed at acceptance; pot_no is the order of acceptance within the pot. requested_minor is empty where all that was left was asked for.';

-- Their journals and lines --------------------------------------------------------------------------------------------

ALTER TABLE payments.journals ADD COLUMN refund_id payments.business_id REFERENCES payments.refunds;
ALTER TABLE payments.journals ADD CONSTRAINT journals_of_refund CHECK (
    CASE kind WHEN 'refund' THEN num_nonnulls(refund_id, match_id, posting_no) = 3 ELSE refund_id IS NULL END);
-- posting_no is the posting of the match that the refund was computed on.
CREATE UNIQUE INDEX journals_refund ON payments.journals (refund_id, posting_no) WHERE kind = 'refund';

ALTER TABLE payments.ledger_entries ADD COLUMN refund_id payments.business_id;
ALTER TABLE payments.ledger_entries ADD CONSTRAINT ledger_entries_of_refund CHECK (
    (kind = 'refund') = (refund_id IS NOT NULL) AND (kind <> 'refund' OR pot = 'match_fee'));
CREATE UNIQUE INDEX ledger_entries_refund_key
    ON payments.ledger_entries (refund_id, match_id, pot, pot_party_id, line_no, account, currency, posting_no)
    WHERE kind = 'refund';
CREATE INDEX ledger_entries_refunds ON payments.ledger_entries (match_id) WHERE kind = 'refund';

-- What is refused -----------------------------------------------------------------------------------------------------

-- Whoever accepts a refund waits for the postings that are under way, and those that begin wait for it: what a pot
-- charges cannot change between looking and accepting. Postings share the lock with each other.
CREATE FUNCTION payments.lock_refunds() RETURNS trigger LANGUAGE plpgsql SET search_path = payments, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7203103, 0);
    RETURN NULL;
END
$$;
CREATE TRIGGER refunds_lock BEFORE INSERT ON payments.refunds
    FOR EACH STATEMENT EXECUTE FUNCTION payments.lock_refunds();

CREATE FUNCTION payments.check_refunds() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.refund_id, n.match_id, n.pot_party_id, n.pot_no INTO bad FROM new_rows n
    WHERE n.pot_no > 1 AND NOT EXISTS (
        SELECT FROM refunds p WHERE (p.match_id, p.pot, p.pot_party_id, p.pot_no) = (n.match_id, n.pot, n.pot_party_id, n.pot_no - 1))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'refund % is number % of the fee of % in match %, and there is none before it',
            bad.refund_id, bad.pot_no, bad.pot_party_id, bad.match_id
            USING ERRCODE = 'restrict_violation', HINT = 'Refunds of a pot are numbered in the order of their acceptance. Nothing was accepted.';
    END IF;
    SELECT n.match_id, n.pot_party_id, n.currency, n.amount_minor, charged.minor - refunded.minor AS left_minor INTO bad
    FROM (SELECT match_id, pot, pot_party_id, currency, sum(amount_minor) AS amount_minor FROM new_rows GROUP BY 1, 2, 3, 4) n
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum(least(k.minor, 0)), 0) AS minor FROM (
            SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
            WHERE e.kind = 'accrual' AND (e.match_id, e.pot, e.pot_party_id, e.currency) = (n.match_id::text, n.pot, n.pot_party_id::text, n.currency)
            GROUP BY e.line_no, e.account) k) charged
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(greatest(k.minor, 0)), 0) AS minor FROM (
            SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
            WHERE e.kind = 'refund' AND (e.match_id, e.pot, e.pot_party_id, e.currency) = (n.match_id::text, n.pot, n.pot_party_id::text, n.currency)
            GROUP BY e.line_no, e.account) k) refunded
    WHERE n.amount_minor > charged.minor - refunded.minor
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the fee of % in match % still charges % %, and % is to be refunded',
            bad.pot_party_id, bad.match_id, bad.left_minor, bad.currency, bad.amount_minor
            USING ERRCODE = 'restrict_violation', HINT = 'A refund is at most what is left. Nothing was accepted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER refunds_check AFTER INSERT ON payments.refunds
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_refunds();

-- At the commit: one accepted and not posted would be owed to nobody.
CREATE FUNCTION payments.check_refund_births() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
BEGIN
    IF NEW.amount_minor IS DISTINCT FROM (
        SELECT sum(e.credit_minor) FROM ledger_entries e JOIN journals j USING (journal_id)
        WHERE j.refund_id = NEW.refund_id AND j.created_xid = pg_current_xact_id()) THEN
        RAISE EXCEPTION 'refund % of % % was accepted and is not posted with it', NEW.refund_id, NEW.amount_minor, NEW.currency
            USING ERRCODE = 'restrict_violation', HINT = 'Insert the refund and its journal in one transaction. Nothing was accepted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER refunds_births AFTER INSERT ON payments.refunds
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION payments.check_refund_births();

-- Corrections and refunds of a match come in one statement, so that each is looked at with the other.
CREATE FUNCTION payments.check_refund_entries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
    touched text[];
BEGIN
    IF NOT EXISTS (SELECT FROM refunds) THEN
        RETURN NULL;  -- a line of a refund has its journal's, and that one is accepted
    END IF;
    SELECT n.entry_id, n.refund_id, j.refund_id AS of_journal INTO bad
    FROM new_rows n JOIN journals j USING (journal_id) LEFT JOIN refunds r ON r.refund_id = n.refund_id
    WHERE n.kind = 'refund' AND (j.refund_id <> n.refund_id OR r.refund_id IS NULL
          OR (r.match_id, r.pot, r.pot_party_id, r.currency) IS DISTINCT FROM (n.match_id::business_id, n.pot, n.pot_party_id::business_id, n.currency))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % is of refund %, and its journal or pot is not (its journal is of %)', bad.entry_id, bad.refund_id, bad.of_journal
            USING ERRCODE = 'restrict_violation', HINT = 'A refund takes from the pot it was accepted for. Nothing was posted.';
    END IF;
    SELECT n.entry_id, n.refund_id, n.posting_no INTO bad FROM new_rows n
    WHERE n.kind = 'refund' AND n.posting_no > 1 AND NOT EXISTS (
        SELECT FROM ledger_entries p
        WHERE p.kind = 'refund' AND p.refund_id = n.refund_id AND p.match_id = n.match_id AND p.pot = n.pot
          AND p.pot_party_id = n.pot_party_id AND p.line_no = n.line_no AND p.account = n.account
          AND p.currency = n.currency AND p.posting_no = n.posting_no - 1)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % of refund % is posting % of a key that has no posting before it', bad.entry_id, bad.refund_id, bad.posting_no
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT array_agg(DISTINCT r.match_id::text) INTO touched FROM refunds r
    WHERE r.match_id::text IN (SELECT n.match_id FROM new_rows n WHERE n.kind IN ('accrual', 'refund'));
    IF touched IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT r.refund_id, r.amount_minor, r.currency, a.minor INTO bad
    FROM refunds r CROSS JOIN LATERAL (
        SELECT sum(greatest(k.minor, 0)) AS minor FROM (
            SELECT sum(e.credit_minor - e.debit_minor) AS minor FROM ledger_entries e
            WHERE e.kind = 'refund' AND e.refund_id = r.refund_id GROUP BY e.line_no, e.account) k) a
    WHERE r.match_id = ANY (touched) AND a.minor > r.amount_minor
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'refund % is of % %, and % would be refunded under it', bad.refund_id, bad.amount_minor, bad.currency, bad.minor
            USING ERRCODE = 'restrict_violation', HINT = 'What is refunded is never above what was accepted. Nothing was posted.';
    END IF;
    SELECT * INTO bad FROM (
        SELECT b.match_id, b.pot_party_id, b.line_no, b.account, b.currency,
               coalesce(sum(b.minor) FILTER (WHERE b.kind = 'accrual'), 0) AS accrued,
               coalesce(sum(b.minor) FILTER (WHERE b.kind = 'refund'), 0) AS refunded
        FROM (SELECT e.kind, e.match_id, e.pot, e.pot_party_id, e.line_no, e.account, e.currency, e.credit_minor - e.debit_minor AS minor
              FROM ledger_entries e WHERE e.kind = 'accrual' AND e.match_id = ANY (touched)
              UNION ALL
              SELECT e.kind, e.match_id, e.pot, e.pot_party_id, e.line_no, e.account, e.currency, e.credit_minor - e.debit_minor
              FROM ledger_entries e WHERE e.kind = 'refund' AND e.match_id = ANY (touched)) b
        JOIN (SELECT DISTINCT match_id::text, pot, pot_party_id::text FROM refunds WHERE match_id = ANY (touched)) r
            USING (match_id, pot, pot_party_id)
        GROUP BY 1, 2, 3, 4, 5) k
    WHERE NOT (CASE WHEN k.accrued < 0 THEN k.refunded BETWEEN 0 AND -k.accrued ELSE k.refunded BETWEEN -k.accrued AND 0 END)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match %, fee of %, line % on %: % % accrued, and refunds of it come to %',
            bad.match_id, bad.pot_party_id, bad.line_no, bad.account, bad.accrued, bad.currency, bad.refunded
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Refunds take from each line at most what it holds: recompute them with the correction, in one statement. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_entries_refund_check AFTER INSERT ON payments.ledger_entries
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_refund_entries();

-- Makers --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION payments.check_refund_makers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.actor, r.refund_id INTO bad
    FROM new_rows n JOIN instruction_claims c USING (instruction_id)
    JOIN ledger_entries e ON e.entry_id = c.item_id AND e.kind = 'refund'
    JOIN refunds r ON r.refund_id = e.refund_id
    WHERE n.from_state = 'held' AND n.to_state = 'approved' AND session_user IN (r.requester, r.login)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % pays refund %, which % asked for: another approver approves it', bad.instruction_id, bad.refund_id, bad.actor
            USING ERRCODE = 'insufficient_privilege', HINT = 'Who asks for a refund is a maker of what pays it. Nothing was approved.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_events_refund_makers AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_refund_makers();

-- Audit and grants ----------------------------------------------------------------------------------------------------

CREATE TRIGGER refunds_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payments.refunds
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();
SELECT payments.audit('refunds', 'refund_id', 'refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, requested_minor, reason, requester, accepted_day, source, run_id, code_version, login, accepted_at');
SELECT payments.audit('journals', 'journal_id', 'journal_id, kind, day, match_id, posting_no, instruction_id, processor, entry_reference, run_id, code_version, posted_at, created_xid, proposal_id, refund_id');
SELECT payments.audit('ledger_entries', 'entry_id', 'entry_id, journal_id, kind, day, account, party_id, currency, debit_minor, credit_minor, is_item, match_id, pot, pot_party_id, line_no, recipient, schedule_version, posting_no, refund_id');
REVOKE ALL ON FUNCTION payments.lock_refunds(), payments.check_refunds(), payments.check_refund_births(),
    payments.check_refund_entries(), payments.check_refund_makers() FROM PUBLIC;
GRANT SELECT ON payments.refunds TO payments_runtime, payments_approver;
GRANT INSERT (refund_id, match_id, pot, pot_party_id, pot_no, currency, amount_minor, requested_minor, reason, requester,
              accepted_day, source, run_id, code_version) ON payments.refunds TO payments_runtime;
GRANT INSERT (refund_id) ON payments.journals TO payments_runtime;
