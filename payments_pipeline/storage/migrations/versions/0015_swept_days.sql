-- A run that a check stops between its posting and its sweep is not paid by another day's run.

ALTER TABLE payments.sweeps ADD COLUMN posting_seq integer CHECK (posting_seq >= 0);
COMMENT ON COLUMN payments.sweeps.posting_seq IS 'The newest posting of its day when it looked for items, 0 for none; null before that was kept.';

CREATE VIEW payments.swept_days AS
SELECT s.sweep_day
FROM payments.sweeps s
GROUP BY s.sweep_day
HAVING max(coalesce(s.posting_seq, (
           SELECT max(p.seq) FROM payments.day_postings p WHERE p.match_day = s.sweep_day AND p.posted_at <= s.swept_at), 0))
    >= coalesce((SELECT max(p.seq) FROM payments.day_postings p WHERE p.match_day = s.sweep_day), 0);
COMMENT ON VIEW payments.swept_days IS 'Days whose newest posting was followed by a sweep of their own: later sweeps may take their items.';

CREATE FUNCTION payments.check_sweeps() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.sweep_day, n.seq, n.posting_seq, p.newest INTO bad
    FROM new_rows n
    CROSS JOIN LATERAL (SELECT coalesce(max(d.seq), 0) AS newest FROM day_postings d WHERE d.match_day = n.sweep_day) p
    WHERE n.posting_seq IS NULL OR n.posting_seq > p.newest LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'sweep % of % says that it came after posting %, and the newest is %', bad.seq, bad.sweep_day, bad.posting_seq, bad.newest
            USING ERRCODE = 'restrict_violation', HINT = 'Nothing was swept.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER sweeps_check AFTER INSERT ON payments.sweeps
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_sweeps();
REVOKE ALL ON FUNCTION payments.check_sweeps() FROM PUBLIC;
GRANT INSERT (posting_seq) ON payments.sweeps TO payments_runtime;
GRANT SELECT ON payments.swept_days TO payments_runtime, payments_approver;
SELECT payments.audit('sweeps', 'sweep_day, seq', 'sweep_day, seq, instructions, run_id, code_version, swept_at, posting_seq');
