-- What ends an unknown outcome is written down before it does; what ends an instruction gives its items back.
-- Sections: look-ups, ends of the unknown, releases, days of what people do.

-- Look-ups ------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.payout_look_ups (
    instruction_id      uuid        NOT NULL REFERENCES payments.payout_instructions,
    look_up_no          integer     NOT NULL CHECK (look_up_no >= 1),
    answer              text        NOT NULL CHECK (answer IN ('accepted', 'rejected', 'never_seen', 'doubtful', 'unanswered')),
    processor_reference text,
    code                text,
    request_sha256      text,
    message             text,
    run_id              text        NOT NULL,
    asked_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (instruction_id, look_up_no)
);
COMMENT ON TABLE payments.payout_look_ups IS 'What the processor said, or did not, when it was asked about an instruction by its key.';
-- What was looked up before look-ups were kept, as the events have it.
INSERT INTO payments.payout_look_ups (instruction_id, look_up_no, answer, message, run_id, asked_at)
SELECT e.instruction_id, row_number() OVER (PARTITION BY e.instruction_id ORDER BY e.seq),
       CASE e.to_state WHEN 'submitting' THEN 'never_seen' WHEN 'submitted' THEN 'accepted' ELSE 'rejected' END,
       'as its event has it: look-ups were not kept then', e.run_id, e.recorded_at
FROM payments.instruction_events e
WHERE e.from_state = 'unknown' AND e.actor = 'resolver' AND e.to_state IN ('submitting', 'submitted', 'failed')
  AND e.reason LIKE 'looked up%';
CREATE TRIGGER payout_look_ups_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payments.payout_look_ups
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();
SELECT payments.audit('payout_look_ups', 'instruction_id, look_up_no', 'instruction_id, look_up_no, answer, processor_reference, code, request_sha256, message, run_id, asked_at');
GRANT SELECT ON payments.payout_look_ups TO payments_runtime, payments_approver;
GRANT INSERT (instruction_id, look_up_no, answer, processor_reference, code, request_sha256, message, run_id)
    ON payments.payout_look_ups TO payments_runtime;

-- Ends of the unknown -------------------------------------------------------------------------------------------------

-- The newest answer counts: "never seen" may be followed by "accepted".
CREATE FUNCTION payments.check_resolutions() RETURNS trigger
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
        SELECT l.answer, l.request_sha256 FROM payout_look_ups l
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
            AND (r.is_accepted IS NULL OR a.not_after > clock_timestamp())
            AND (l.answer IS DISTINCT FROM 'rejected' OR coalesce(l.request_sha256, a.request_sha256) <> a.request_sha256)
        ELSE false END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: event % ends what is unknown as %, and neither its look-up (%) nor two people say so (deadline %)',
            bad.instruction_id, bad.seq, bad.to_state, coalesce(bad.answer, 'never asked'), bad.not_after
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Ask the processor, or have a resolution accepted once its deadline has passed. Its items stay locked. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_events_resolutions AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_resolutions();

-- Releases ------------------------------------------------------------------------------------------------------------

-- At the commit, since releases follow the event. Items that stay claimed by what is over would be nobody's.
CREATE FUNCTION payments.check_ends() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
        WHERE c.instruction_id = NEW.instruction_id AND r.item_id IS NULL) THEN
        RAISE EXCEPTION 'instruction % became % and still claims its items: they would be nobody''s', NEW.instruction_id, NEW.to_state
            USING ERRCODE = 'restrict_violation', HINT = 'Release its items in the transaction of the event. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER instruction_events_ends AFTER INSERT ON payments.instruction_events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.to_state IN ('cancelled', 'failed', 'returned'))
    EXECUTE FUNCTION payments.check_ends();

-- Days of what people do ----------------------------------------------------------------------------------------------

-- What is dated far ahead would keep its items from every sweep until then. A day's width is for time zones.
CREATE FUNCTION payments.check_days_of_people() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
BEGIN
    IF TG_TABLE_NAME = 'instruction_events' THEN
        IF NOT pg_has_role(session_user, 'payments_approver', 'MEMBER') OR pg_has_role(session_user, 'payments_runtime', 'MEMBER') THEN
            RETURN NULL;
        END IF;
        SELECT n.instruction_id::text AS what, n.occurred_on AS day INTO bad FROM new_rows n
        WHERE n.occurred_on > today + 1 LIMIT 1;
    ELSE
        SELECT n.refund_id::text AS what, n.accepted_day AS day INTO bad FROM new_rows n WHERE n.accepted_day > today + 1 LIMIT 1;
    END IF;
    IF FOUND THEN
        RAISE EXCEPTION '% is dated %, and today is %', bad.what, bad.day, today
            USING ERRCODE = 'restrict_violation', HINT = 'Correct the date, or the clock of this machine. Nothing was written.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_events_days AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_days_of_people();
CREATE TRIGGER refunds_days AFTER INSERT ON payments.refunds
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_days_of_people();
REVOKE ALL ON FUNCTION payments.check_resolutions(), payments.check_ends(), payments.check_days_of_people() FROM PUBLIC;
