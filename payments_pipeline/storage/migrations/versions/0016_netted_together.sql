-- What belongs together is netted together, and what the program says is held against what Postgres has.
-- Sections: netting, policies, resolutions, attempts, approvals, write-offs.

-- Netting -------------------------------------------------------------------------------------------------------------

-- Items of no match may make up for others of their party: a sweep looks for them.
CREATE INDEX open_items_loose ON payments.open_items (party_id, currency) WHERE match_id IS NULL;

CREATE VIEW payments.late_settlements AS
    SELECT c.item_id, o.item_id AS other_id
    FROM payments.open_items o
    JOIN payments.ledger_entries e ON e.entry_id = o.item_id
    JOIN payments.journals j USING (journal_id)
    JOIN payments.instruction_claims c USING (instruction_id)
    WHERE o.match_id IS NULL;
COMMENT ON VIEW payments.late_settlements IS 'Items of instructions that failed or came back and moved cash all the same, each with the open item that this left: the two are netted before anything is sent.';
GRANT SELECT ON payments.late_settlements TO payments_runtime, payments_approver;

-- Policies ------------------------------------------------------------------------------------------------------------

-- When a posted match is paid out is of its rules: changed in the past it is asked about, though no amount changes.
CREATE FUNCTION payments.check_policies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.match_id, n.match_day, n.payout_policy, p.payout_policy AS posted_policy INTO bad
    FROM new_rows n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE p.is_open AND n.payout_policy <> p.payout_policy AND NOT EXISTS (
        SELECT FROM proposals q JOIN proposal_decisions d USING (proposal_id)
        WHERE q.kind = 'rule_change' AND d.decision = 'accepted' AND q.content ->> 'match_day' = n.match_day::text
          AND q.content -> 'matches' @> jsonb_build_array(jsonb_build_array(n.match_id, n.rules_hash, n.content_hash, n.posting_no)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match % of % is posted as paid out %, and nobody accepted that it is %', bad.match_id, bad.match_day, bad.posted_policy, bad.payout_policy
            USING ERRCODE = 'restrict_violation', HINT = 'Run the day: it proposes the change. Have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER match_postings_policies AFTER INSERT ON payments.match_postings
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_policies();

-- Resolutions ---------------------------------------------------------------------------------------------------------

-- What two people take for failed the processor does not say it has, asked after the last instant at which it may have left.
CREATE OR REPLACE FUNCTION payments.check_resolutions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.seq, n.to_state, a.not_after, l.answer INTO bad
    FROM new_rows n
    LEFT JOIN LATERAL (
        SELECT a.not_after, a.request_sha256 FROM payout_attempts a WHERE a.instruction_id = n.instruction_id
        ORDER BY a.attempt_no DESC LIMIT 1) a ON true
    LEFT JOIN LATERAL (
        SELECT l.answer, l.request_sha256, l.asked_at FROM payout_look_ups l
        WHERE l.instruction_id = n.instruction_id AND l.answer <> 'unanswered' ORDER BY l.look_up_no DESC LIMIT 1) l ON true
    LEFT JOIN LATERAL (
        SELECT true AS is_accepted FROM proposals p JOIN proposal_decisions d USING (proposal_id)
        WHERE p.kind = 'resolution' AND d.decision = 'accepted' AND p.content ->> 'instruction_id' = n.instruction_id::text
          AND p.content ->> 'to_state' = n.to_state LIMIT 1) r ON true
    WHERE n.from_state = 'unknown' AND CASE n.to_state
        WHEN 'submitting' THEN l.answer IS DISTINCT FROM 'never_seen' OR a.not_after IS NULL OR a.not_after <= clock_timestamp()
        WHEN 'submitted' THEN r.is_accepted IS NULL
            AND (l.answer IS DISTINCT FROM 'accepted' OR coalesce(l.request_sha256, a.request_sha256) <> a.request_sha256)
        WHEN 'failed' THEN NOT EXISTS (
                SELECT FROM report_lines t WHERE t.instruction_id = n.instruction_id AND t.kind = 'failed')
            AND (r.is_accepted IS NULL OR coalesce(l.answer, 'accepted') = 'accepted' OR l.asked_at <= a.not_after)
            AND (l.answer IS DISTINCT FROM 'rejected' OR coalesce(l.request_sha256, a.request_sha256) <> a.request_sha256)
        ELSE false END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: event % ends what is unknown as %, and neither its look-up (%) nor two people say so (deadline %)',
            bad.instruction_id, bad.seq, bad.to_state, coalesce(bad.answer, 'never asked'), bad.not_after
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Ask the processor by a dispatch; what it does not have, asked after its deadline, two people may take for failed. Its items stay locked. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;

-- Attempts ------------------------------------------------------------------------------------------------------------

-- A failure that a report says may move cash, more than once; the one by dispatch or by people reverses the submission.
CREATE UNIQUE INDEX journals_one_failure ON payments.journals (instruction_id)
    WHERE kind = 'failure' AND entry_reference IS NULL;

-- A submission is of what is instructed, and moves it out of the party's account.
CREATE OR REPLACE FUNCTION payments.check_attempts_posted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.attempt_no, i.direction, i.amount_minor, i.currency, i.party_id INTO bad
    FROM new_rows n JOIN payout_instructions i USING (instruction_id)
    LEFT JOIN LATERAL (
        SELECT true AS is_there FROM journals j
        JOIN ledger_entries p ON p.journal_id = j.journal_id AND p.party_id = i.party_id
        JOIN ledger_entries t ON t.journal_id = j.journal_id AND t.account = 'in_transit:' || i.processor
        WHERE j.instruction_id = n.instruction_id AND j.kind = 'submission' AND (p.currency, t.currency) = (i.currency, i.currency)
          AND (p.debit_minor - p.credit_minor, t.credit_minor - t.debit_minor)
              = (CASE i.direction WHEN 'credit' THEN i.amount_minor ELSE -i.amount_minor END,
                 CASE i.direction WHEN 'credit' THEN i.amount_minor ELSE -i.amount_minor END)
        LIMIT 1) s ON true
    WHERE s.is_there IS NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: attempt % comes before the posting of its submission, a % of % % of %',
            bad.instruction_id, bad.attempt_no, bad.direction, bad.amount_minor, bad.currency, bad.party_id
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

-- At the commit, since attempts follow their event; one that is sent without would be asked about by nobody.
CREATE FUNCTION payments.check_sendings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM payout_attempts a WHERE a.instruction_id = NEW.instruction_id) THEN
        RAISE EXCEPTION 'instruction %: event % says that it is being sent, and it has no attempt', NEW.instruction_id, NEW.seq
            USING ERRCODE = 'restrict_violation', HINT = 'Commit its event, posting and attempt in one transaction. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER instruction_events_sendings AFTER INSERT ON payments.instruction_events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.to_state = 'submitting')
    EXECUTE FUNCTION payments.check_sendings();

-- Approvals -----------------------------------------------------------------------------------------------------------

ALTER TABLE payments.payout_instructions ADD COLUMN token_changed_by text;
COMMENT ON COLUMN payments.payout_instructions.token_changed_by IS 'Who changed its token last, as the reference data say; a maker of it. Null where they do not.';
GRANT INSERT (token_changed_by) ON payments.payout_instructions TO payments_runtime;
SELECT payments.audit('payout_instructions', 'instruction_id', 'instruction_id, sweep_day, sweep_seq, party_id, currency, direction, amount_minor, processor, token, digest, policy_version, maker, run_id, code_version, created_at, created_xid, approval_days, token_changed_by');

CREATE OR REPLACE FUNCTION payments.check_approvals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.actor, concat_ws(', its token changed by ', i.maker, i.token_changed_by) AS maker, i.created_at + make_interval(days => i.approval_days) AS until,
           n.evidence ->> 'digest' AS looked_at, i.digest INTO bad
    FROM new_rows n JOIN payout_instructions i USING (instruction_id)
    WHERE n.from_state = 'held' AND n.to_state = 'approved' AND (
          n.actor <> session_user OR n.actor = i.maker OR n.actor = i.token_changed_by OR i.approval_days IS NULL
          OR n.evidence ->> 'digest' IS DISTINCT FROM i.digest
          OR clock_timestamp() > i.created_at + make_interval(days => i.approval_days))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % cannot be approved: by % (login %), made by %, to be approved until %, digest % looked at and % due',
            bad.instruction_id, bad.actor, session_user, bad.maker, bad.until, bad.looked_at, bad.digest
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'An approver approves under their own login, not what they made, what they looked at, and in time. Nothing was approved.';
    END IF;
    -- An approver's login, which is no runtime's, approves and refuses and does nothing else.
    IF pg_has_role(session_user, 'payments_approver', 'MEMBER') AND NOT pg_has_role(session_user, 'payments_runtime', 'MEMBER') THEN
        SELECT n.instruction_id, n.from_state, n.to_state INTO bad FROM new_rows n
        WHERE NOT (n.from_state = 'held' AND n.to_state = 'approved' OR n.to_state = 'cancelled') OR n.actor <> session_user LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'instruction %: an approver does not take it from % to %', bad.instruction_id, bad.from_state, bad.to_state
                USING ERRCODE = 'insufficient_privilege', HINT = 'Approvers approve what is held and refuse what is unsent.';
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- Whoever makes a role is a member of it from Postgres 16 on, without its rights: the login that migrates is no approver.
DO $$
DECLARE
    told record;
BEGIN
    FOR told IN SELECT pg_get_functiondef(p.oid) AS words FROM pg_proc p
                WHERE p.pronamespace = 'payments'::regnamespace AND p.prosrc LIKE '%''MEMBER''%' LOOP
        EXECUTE replace(told.words, '''MEMBER''', '''USAGE''');
    END LOOP;
END
$$;

-- Write-offs ----------------------------------------------------------------------------------------------------------

-- What is written off is at most what is owed: more would be a gift.
CREATE OR REPLACE FUNCTION payments.check_write_offs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT j.journal_id, j.proposal_id INTO bad
    FROM (SELECT DISTINCT journal_id FROM new_rows WHERE kind = 'write_off') n JOIN journals j USING (journal_id)
    WHERE NOT EXISTS (
        SELECT FROM proposals p JOIN proposal_decisions d USING (proposal_id)
        WHERE p.proposal_id = j.proposal_id AND p.kind = 'write_off' AND d.decision = 'accepted'
          AND 2 = (SELECT count(*) FROM new_rows e WHERE e.journal_id = j.journal_id)
          AND EXISTS (SELECT FROM new_rows e WHERE e.journal_id = j.journal_id AND e.account = 'loss'
                      AND e.currency = p.content ->> 'currency' AND e.debit_minor = (p.content ->> 'amount_minor')::bigint)
          AND EXISTS (SELECT FROM new_rows e WHERE e.journal_id = j.journal_id AND e.is_item
                      AND e.party_id = p.content ->> 'party_id' AND e.currency = p.content ->> 'currency'
                      AND e.credit_minor = (p.content ->> 'amount_minor')::bigint)
          -- The debt as it stands is the one that was looked at; what writes it off is an open item by now itself.
          AND (p.content ->> 'items_sha256', true) = (
              SELECT encode(sha256(convert_to(coalesce(string_agg(o.item_id::text, E'\n' ORDER BY o.item_id::text COLLATE "C"), ''), 'UTF8')), 'hex'),
                     (SELECT sum(e.credit_minor) FROM new_rows e
                      WHERE e.kind = 'write_off' AND e.is_item AND e.party_id = p.content ->> 'party_id'
                        AND e.currency = p.content ->> 'currency') <= -sum(o.amount_minor)
              FROM open_items o
              WHERE o.party_id = p.content ->> 'party_id' AND o.currency = p.content ->> 'currency'
                AND o.item_id NOT IN (SELECT e.entry_id FROM new_rows e)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % writes off what proposal % was not accepted for', bad.journal_id, bad.proposal_id
            USING ERRCODE = 'restrict_violation', HINT = 'Propose it as it is now, and have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION payments.check_policies(), payments.check_sendings() FROM PUBLIC;
