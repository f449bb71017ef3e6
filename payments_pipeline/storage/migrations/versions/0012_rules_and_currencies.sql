-- A change of rules is asked about whatever was posted before it; a competition has one currency; a journal has entries.
-- Sections: rules, currencies, journals, indexes.

-- Rules ---------------------------------------------------------------------------------------------------------------

-- A match that nothing was posted of is asked about too, where nothing but the rules is new.
CREATE OR REPLACE FUNCTION payments.check_rule_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.match_id, m.competition_id, m.match_day INTO bad
    FROM new_rows n
    JOIN match_postings m ON m.match_id = n.match_id AND m.posting_no = n.posting_no
    JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE n.kind = 'accrual' AND (p.is_open OR m.revision = p.revision) AND m.rules_hash <> p.rules_hash AND NOT EXISTS (
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

-- Currencies ----------------------------------------------------------------------------------------------------------

CREATE INDEX match_postings_competition ON payments.match_postings (competition_id, currency);
CREATE FUNCTION payments.check_currencies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.competition_id, n.currency, o.currency AS other INTO bad
    FROM (SELECT DISTINCT competition_id, currency FROM new_rows) n
    CROSS JOIN LATERAL (
        (SELECT m.currency FROM match_postings m WHERE m.competition_id = n.competition_id ORDER BY m.currency LIMIT 1)
        UNION ALL
        (SELECT m.currency FROM match_postings m WHERE m.competition_id = n.competition_id ORDER BY m.currency DESC LIMIT 1)) o
    WHERE o.currency <> n.currency LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'competition % is posted in % and in %', bad.competition_id, bad.currency, bad.other
            USING ERRCODE = 'restrict_violation', HINT = 'A competition''s currency never changes: start a new competition. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER match_postings_currencies AFTER INSERT ON payments.match_postings
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_currencies();

-- Journals ------------------------------------------------------------------------------------------------------------

-- At the commit, for entries follow their journals; once a statement that inserted some, by what the audit trail has of it.
-- One without entries would use up the reference of a report line, and balance whatever it stands for.
CREATE FUNCTION payments.check_journals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad text;
BEGIN
    SELECT k.journal_id INTO bad FROM unnest(NEW.row_keys) AS k (journal_id)
    WHERE NOT EXISTS (SELECT FROM ledger_entries e WHERE e.journal_id = k.journal_id::uuid) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % has no entries', bad
            USING ERRCODE = 'restrict_violation', HINT = 'Insert a journal and its entries in one transaction. Nothing was posted.';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER audit_entries_journals AFTER INSERT ON payments.audit_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.table_name = 'journals' AND NOT NEW.by_migration)
    EXECUTE FUNCTION payments.check_journals();
REVOKE ALL ON FUNCTION payments.check_currencies(), payments.check_journals() FROM PUBLIC;

-- Indexes -------------------------------------------------------------------------------------------------------------

CREATE INDEX reconciliation_breaks ON payments.reconciliation (subject_type, subject_id) WHERE status = 'break';
