"""Rules over items and claims: each item is open, or under one live instruction that is the net of its items."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import SIGNED, TableRule

RULES = {
    "open items are the items without a live claim": TableRule(
        f"""WITH live AS (
                SELECT c.item_id FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
                WHERE r.item_id IS NULL
            ), truth AS (
                SELECT e.entry_id AS item_id, e.party_id, e.currency::text, {SIGNED} AS amount_minor,
                       1 + (SELECT count(*) FROM instruction_claims c WHERE c.item_id = e.entry_id) AS next_claim_no
                FROM ledger_entries e WHERE e.is_item AND e.entry_id NOT IN (SELECT item_id FROM live)
            ), kept AS (SELECT item_id, party_id, currency::text, amount_minor, next_claim_no FROM open_items)
            SELECT format('item %s of %s: %s %s is %s', item_id, party_id, amount_minor, currency, what) FROM (
                SELECT t.*, 'open, and open_items lacks it' AS what FROM (SELECT * FROM truth EXCEPT SELECT * FROM kept) t
                UNION ALL
                SELECT k.*, 'in open_items and not open' FROM (SELECT * FROM kept EXCEPT SELECT * FROM truth) k) d""",
        "SELECT count(*) FROM ledger_entries WHERE is_item",
    ),
    "no item is under two live instructions": TableRule(
        """SELECT format('item %s is under %s', c.item_id, string_agg(c.instruction_id::text, ' and '))
           FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
           WHERE r.item_id IS NULL GROUP BY c.item_id HAVING count(*) > 1""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "claim n + 1 follows the release of n": TableRule(
        """SELECT format('item %s: claim %s though claim %s was not released', c.item_id, c.claim_no, c.claim_no - 1)
           FROM instruction_claims c LEFT JOIN claim_releases r ON r.item_id = c.item_id AND r.claim_no = c.claim_no - 1
           WHERE c.claim_no > 1 AND r.item_id IS NULL""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "only cancelled, failed and returned instructions release their items, all of them": TableRule(
        """SELECT format('instruction %s is %s: %s of %s claims released', c.instruction_id, n.to_state, count(r.item_id),
                         count(*))
           FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
           JOIN LATERAL (SELECT to_state FROM instruction_events e WHERE e.instruction_id = c.instruction_id
                         ORDER BY seq DESC LIMIT 1) n ON true
           GROUP BY c.instruction_id, n.to_state
           HAVING count(r.item_id) <> CASE WHEN n.to_state IN ('cancelled', 'failed', 'returned') THEN count(*) ELSE 0 END""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "an instruction is the net of its items": TableRule(
        f"""SELECT format('instruction %s of %s: %s %s %s, its items net to %s', i.instruction_id, i.party_id, i.direction,
                          i.amount_minor, i.currency, coalesce(sum({SIGNED}), 0))
            FROM payout_instructions i LEFT JOIN instruction_claims c USING (instruction_id)
            LEFT JOIN ledger_entries e ON e.entry_id = c.item_id AND e.is_item AND e.party_id = i.party_id
                                      AND e.currency = i.currency
            GROUP BY i.instruction_id
            HAVING coalesce(sum({SIGNED}), 0) <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
                OR count(c.item_id) <> count(e.entry_id) OR count(c.item_id) = 0""",
        "SELECT count(*) FROM payout_instructions",
    ),
}
