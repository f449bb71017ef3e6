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

-- What was sent has failed when a report line or the processor's answer says so, or when no attempt can have reached it:
-- anything else would free the items of a payment that may be carried out.
CREATE OR REPLACE FUNCTION payments.check_reported_events() RETURNS trigger
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
    SELECT n.instruction_id, n.seq, n.from_state INTO bad FROM new_rows n
    WHERE n.to_state = 'failed' AND n.from_state IN ('submitting', 'submitted')
      AND NOT EXISTS (
          SELECT FROM report_lines l WHERE l.instruction_id = n.instruction_id AND l.kind = 'failed')
      AND NOT (n.from_state = 'submitting' AND (
          EXISTS (SELECT FROM payout_attempt_outcomes o
                  WHERE o.instruction_id = n.instruction_id AND o.outcome = 'rejected')
          OR NOT EXISTS (SELECT FROM payout_attempts a LEFT JOIN payout_attempt_outcomes o USING (instruction_id, attempt_no)
                         WHERE a.instruction_id = n.instruction_id
                           AND coalesce(o.outcome, 'unknown') NOT IN ('unavailable', 'not_sent'))))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: event % says failed, and after % nothing shows that it was not carried out', bad.instruction_id, bad.seq, bad.from_state
            USING ERRCODE = 'restrict_violation', HINT = 'A report line, a rejection or a look-up shows it. Its items stay locked. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
