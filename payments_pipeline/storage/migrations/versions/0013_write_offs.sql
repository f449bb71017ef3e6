-- What is written off is the debt that was looked at, and no other that comes to as much.

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
          AND p.content ->> 'items_sha256' = (
              SELECT encode(sha256(convert_to(coalesce(string_agg(o.item_id::text, E'\n' ORDER BY o.item_id::text COLLATE "C"), ''), 'UTF8')), 'hex')
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
ALTER TABLE payments.proposals ADD CONSTRAINT proposals_write_off_items
    CHECK (kind <> 'write_off' OR content ->> 'items_sha256' ~ '^[0-9a-f]{64}$') NOT VALID;
