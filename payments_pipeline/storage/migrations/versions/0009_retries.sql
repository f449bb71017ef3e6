-- A party that waits after failures in a row is paid again once a person says, and another accepts, that its account works.

ALTER TABLE payments.proposals DROP CONSTRAINT proposals_kind_check;
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_kind_check
    CHECK (kind IN ('write_off', 'resolution', 'rule_change', 'retry'));
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_retry CHECK (kind <> 'retry' OR (
    content ? 'party_id' AND content ? 'currency' AND jsonb_array_length(content -> 'failed') > 0));
COMMENT ON TABLE payments.proposals IS 'What one person asks for and another decides: a write-off, what became of an instruction whose outcome is unknown, what a change of rules does to matches that are posted, or that a party is paid again after failures in a row.';

CREATE FUNCTION payments.check_retries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.proposal_id, f.instruction_id, n.content ->> 'party_id' AS party_id INTO bad
    FROM new_rows n CROSS JOIN LATERAL jsonb_array_elements_text(n.content -> 'failed') AS f (instruction_id)
    WHERE n.kind = 'retry' AND NOT EXISTS (
        SELECT FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
        WHERE i.instruction_id = f.instruction_id::uuid AND i.party_id = n.content ->> 'party_id'
          AND i.currency = n.content ->> 'currency' AND s.state IN ('failed', 'returned'))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'proposal % puts instruction % aside, which is none of % that failed or came back', bad.proposal_id, bad.instruction_id, bad.party_id
            USING ERRCODE = 'restrict_violation', HINT = 'A retry names what failed of one party in one currency. Nothing was proposed.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER proposals_retries AFTER INSERT ON payments.proposals
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_retries();
REVOKE ALL ON FUNCTION payments.check_retries() FROM PUBLIC;

CREATE VIEW payments.retried_instructions AS
    SELECT DISTINCT (jsonb_array_elements_text(p.content -> 'failed'))::uuid AS instruction_id
    FROM payments.proposals p JOIN payments.proposal_decisions d USING (proposal_id)
    WHERE p.kind = 'retry' AND d.decision = 'accepted';
COMMENT ON VIEW payments.retried_instructions IS 'Instructions that failed or came back and are counted no more: an approver accepted that their party is paid again.';
GRANT SELECT ON payments.retried_instructions TO payments_runtime, payments_approver;
