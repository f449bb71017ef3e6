-- A run that a check stops between its posting and its sweep is not paid by another day's run.

ALTER TABLE payments.sweeps ADD COLUMN posting_seq integer CHECK (posting_seq >= 0);
COMMENT ON COLUMN payments.sweeps.posting_seq IS 'The newest posting of its day when it looked for items, 0 for none; null before that was kept.';

CREATE VIEW payments.unswept_days AS
WITH posted AS (
    SELECT p.match_day, max(p.seq) AS seq FROM payments.day_postings p WHERE p.entries_posted > 0 GROUP BY p.match_day
), swept AS (
    SELECT s.sweep_day, max(coalesce(s.posting_seq, (
               SELECT max(p.seq) FROM payments.day_postings p WHERE p.match_day = s.sweep_day AND p.posted_at <= s.swept_at), 0)) AS seq
    FROM payments.sweeps s GROUP BY s.sweep_day
)
SELECT p.match_day, p.seq AS posting_seq, s.sweep_day IS NOT NULL AS was_swept
FROM posted p LEFT JOIN swept s ON s.sweep_day = p.match_day
WHERE p.seq > coalesce(s.seq, 0);
COMMENT ON VIEW payments.unswept_days IS 'Days that posted something after their own last sweep, or were never swept: other days leave their items alone.';

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
            USING ERRCODE = 'restrict_violation', HINT = 'Nothing was swept. A program older than the schema says nothing of it: bring it up to date.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER sweeps_check AFTER INSERT ON payments.sweeps
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_sweeps();
REVOKE ALL ON FUNCTION payments.check_sweeps() FROM PUBLIC;
GRANT INSERT (posting_seq) ON payments.sweeps TO payments_runtime;
GRANT SELECT ON payments.unswept_days TO payments_runtime, payments_approver;
SELECT payments.audit('sweeps', 'sweep_day, seq', 'sweep_day, seq, instructions, run_id, code_version, swept_at, posting_seq');
