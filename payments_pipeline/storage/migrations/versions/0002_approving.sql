-- Approving: an instruction over its limit until a day, and proposals of one person that another decides.

-- Approvals of instructions -------------------------------------------------------------------------------------------

ALTER TABLE payments.payout_instructions ADD COLUMN approval_days integer CHECK (approval_days >= 1);
COMMENT ON COLUMN payments.payout_instructions.approval_days IS 'Days after created_at until which it may be approved; none for what needs no approver.';
GRANT INSERT (approval_days) ON payments.payout_instructions TO payments_runtime;

CREATE FUNCTION payments.check_approvals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.actor, i.maker, i.created_at + make_interval(days => i.approval_days) AS until,
           n.evidence ->> 'digest' AS looked_at, i.digest INTO bad
    FROM new_rows n JOIN payout_instructions i USING (instruction_id)
    WHERE n.from_state = 'held' AND n.to_state = 'approved' AND (
          n.actor <> session_user OR n.actor = i.maker
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
CREATE TRIGGER instruction_events_approvals AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_approvals();

-- Proposals -----------------------------------------------------------------------------------------------------------

CREATE TABLE payments.proposals (
    proposal_id uuid        PRIMARY KEY,
    kind        text        NOT NULL CHECK (kind IN ('write_off', 'resolution')),
    content     jsonb       NOT NULL,
    reason      text        NOT NULL CHECK (reason <> ''),
    maker       text        NOT NULL CHECK (maker <> ''),
    login       text        NOT NULL DEFAULT session_user,
    proposed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (kind <> 'write_off' OR (
        content ? 'party_id' AND content ? 'currency' AND (content ->> 'amount_minor')::bigint > 0)),
    CHECK (kind <> 'resolution' OR (
        content ? 'instruction_id' AND content ->> 'to_state' IN ('submitted', 'failed') AND content ->> 'evidence' <> ''))
);
COMMENT ON TABLE payments.proposals IS 'What one person asks for and another decides: a write-off, or what became of an instruction whose outcome is unknown.';

CREATE TABLE payments.proposal_decisions (
    proposal_id uuid        PRIMARY KEY REFERENCES payments.proposals,
    decision    text        NOT NULL CHECK (decision IN ('accepted', 'refused')),
    reason      text        NOT NULL CHECK (reason <> ''),
    actor       text        NOT NULL,
    login       text        NOT NULL DEFAULT session_user,
    decided_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE payments.proposal_decisions IS 'The one decision on each proposal, by an approver who did not make it.';

CREATE FUNCTION payments.check_proposal_decisions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.proposal_id, n.actor, p.maker INTO bad
    FROM new_rows n JOIN proposals p USING (proposal_id)
    WHERE n.actor <> session_user OR session_user IN (p.maker, p.login)
       OR NOT pg_has_role(session_user, 'payments_approver', 'MEMBER')
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'proposal % of % cannot be decided by % (login %)', bad.proposal_id, bad.maker, bad.actor, session_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'An approver who did not make it decides it, under their own login. Nothing was decided.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER proposal_decisions_check AFTER INSERT ON payments.proposal_decisions
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_proposal_decisions();

-- Write-offs ----------------------------------------------------------------------------------------------------------

ALTER TABLE payments.journals ADD COLUMN proposal_id uuid REFERENCES payments.proposals;
ALTER TABLE payments.journals ADD CONSTRAINT journals_of_proposal CHECK ((kind = 'write_off') = (proposal_id IS NOT NULL));
CREATE UNIQUE INDEX journals_proposal ON payments.journals (proposal_id) WHERE proposal_id IS NOT NULL;
GRANT INSERT (proposal_id) ON payments.journals TO payments_runtime;

CREATE FUNCTION payments.check_write_offs() RETURNS trigger
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
                      AND e.credit_minor = (p.content ->> 'amount_minor')::bigint))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % writes off what proposal % was not accepted for', bad.journal_id, bad.proposal_id
            USING ERRCODE = 'restrict_violation', HINT = 'Propose it, and have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_entries_write_offs AFTER INSERT ON payments.ledger_entries
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_write_offs();

-- Append-only, and grants ---------------------------------------------------------------------------------------------

CREATE TRIGGER proposals_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payments.proposals
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER proposal_decisions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payments.proposal_decisions
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();
REVOKE ALL ON FUNCTION payments.check_approvals(), payments.check_proposal_decisions(), payments.check_write_offs() FROM PUBLIC;
GRANT SELECT ON payments.proposals, payments.proposal_decisions TO payments_runtime, payments_approver;
GRANT INSERT (proposal_id, kind, content, reason, maker) ON payments.proposals TO payments_runtime;
GRANT INSERT (proposal_id, decision, reason, actor) ON payments.proposal_decisions TO payments_approver;
