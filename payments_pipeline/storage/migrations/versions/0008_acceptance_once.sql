-- What was accepted of a change of rules is one posting of each match: the same rules a second time are asked about again.

CREATE OR REPLACE FUNCTION payments.check_rule_changes() RETURNS trigger
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
          AND q.content -> 'matches' @> jsonb_build_array(jsonb_build_array(m.match_id, m.rules_hash, m.content_hash, m.posting_no)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match % of % is posted under other rules of %, and nobody accepted the change', bad.match_id, bad.match_day, bad.competition_id
            USING ERRCODE = 'restrict_violation', HINT = 'Run the day: it proposes the effect. Have an approver accept it. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
