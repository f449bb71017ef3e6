-- Rules changed with effect in the past: the effect on matches that are posted is proposed, and posted once accepted.

ALTER TABLE payments.proposals DROP CONSTRAINT proposals_kind_check;
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_kind_check CHECK (kind IN ('write_off', 'resolution', 'rule_change'));
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_rule_change CHECK (kind <> 'rule_change' OR (
    content ? 'competition_id' AND content ? 'match_day' AND jsonb_array_length(content -> 'matches') > 0
    AND jsonb_array_length(content -> 'effect') > 0));
CREATE INDEX proposals_rule_changes ON payments.proposals ((content ->> 'match_day')) WHERE kind = 'rule_change';
COMMENT ON TABLE payments.proposals IS 'What one person asks for and another decides: a write-off, what became of an instruction whose outcome is unknown, or what a change of rules does to matches that are posted.';

CREATE FUNCTION payments.check_rule_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.match_id, m.competition_id, m.match_day INTO bad
    FROM new_rows n
    JOIN match_postings m ON m.match_id = n.match_id AND m.posting_no = n.posting_no
    JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE n.kind = 'accrual' AND p.is_open AND m.rules_hash <> p.rules_hash AND NOT EXISTS (
        SELECT FROM proposals q JOIN proposal_decisions d USING (proposal_id)
        WHERE q.kind = 'rule_change' AND d.decision = 'accepted' AND q.content ->> 'match_day' = m.match_day::text
          AND q.content -> 'matches' @> jsonb_build_array(jsonb_build_array(m.match_id, m.rules_hash, m.content_hash)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match % of % is posted under other rules of %, and nobody accepted the change', bad.match_id, bad.match_day, bad.competition_id
            USING ERRCODE = 'restrict_violation', HINT = 'Run the day: it proposes the effect. Have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER journals_rule_changes AFTER INSERT ON payments.journals
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_rule_changes();
REVOKE ALL ON FUNCTION payments.check_rule_changes() FROM PUBLIC;
