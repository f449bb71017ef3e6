-- Postings of one key beside each other: an item and its corrections are paid together or not at all.

CREATE INDEX ledger_entries_again ON payments.ledger_entries (match_id) WHERE posting_no > 1;

CREATE VIEW payments.item_siblings AS
    SELECT e.entry_id AS item_id, o.entry_id AS other_id, o.posting_no > e.posting_no AS is_later
    FROM payments.ledger_entries e
    JOIN payments.ledger_entries o ON o.kind = 'accrual' AND o.match_id = e.match_id AND o.pot = e.pot
        AND o.pot_party_id = e.pot_party_id AND o.line_no = e.line_no AND o.account = e.account
        AND o.currency = e.currency AND o.posting_no <> e.posting_no
    WHERE e.kind = 'accrual' AND e.is_item
    UNION ALL
    SELECT e.entry_id, o.entry_id, o.posting_no > e.posting_no
    FROM payments.ledger_entries e
    JOIN payments.ledger_entries o ON o.kind = 'refund' AND o.refund_id = e.refund_id AND o.match_id = e.match_id
        AND o.pot = e.pot AND o.pot_party_id = e.pot_party_id AND o.line_no = e.line_no AND o.account = e.account
        AND o.currency = e.currency AND o.posting_no <> e.posting_no
    WHERE e.kind = 'refund' AND e.is_item;
COMMENT ON VIEW payments.item_siblings IS 'Each item with each other posting of its key: what it corrects, or what corrects it.';

CREATE VIEW payments.unsent_claims AS
    SELECT c.item_id, c.claim_no, c.instruction_id
    FROM payments.instruction_states s JOIN payments.instruction_claims c USING (instruction_id)
    WHERE s.state IN ('created', 'held', 'approved');
COMMENT ON VIEW payments.unsent_claims IS 'The items under instructions that have not been sent.';

CREATE FUNCTION payments.check_siblings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.item_id, n.instruction_id, u.item_id AS other_id, u.instruction_id AS other_instruction_id INTO bad
    FROM new_rows n
    JOIN ledger_entries e ON e.entry_id = n.item_id
        AND e.match_id IN (SELECT a.match_id FROM ledger_entries a WHERE a.posting_no > 1)
    JOIN item_siblings b ON b.item_id = n.item_id
    JOIN unsent_claims u ON u.item_id = b.other_id AND u.instruction_id <> n.instruction_id
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'item % would be under instruction %, and %, another posting of its key, is under % unsent',
            bad.item_id, bad.instruction_id, bad.other_id, bad.other_instruction_id
            USING ERRCODE = 'restrict_violation', HINT = 'Cancel what is unsent first: the two are netted. Nothing was claimed.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_claims_siblings AFTER INSERT ON payments.instruction_claims
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_siblings();
REVOKE ALL ON FUNCTION payments.check_siblings() FROM PUBLIC;

GRANT SELECT ON payments.item_siblings, payments.unsent_claims TO payments_runtime, payments_approver;
