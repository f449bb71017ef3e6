"""Rules over items and claims: each item is open, or under one live instruction that is the net of its items.

Belongs here: items, claims, releases, and what parties are owed. Does not belong here: sending, settling.
"""

from __future__ import annotations

from payments_pipeline.verify.table_rule import SIGNED, STATES, TableRule

RULES = {
    "open items are the items without a live claim": TableRule(
        f"""WITH claims AS (
                SELECT c.item_id, max(c.claim_no) AS last_no, bool_or(r.item_id IS NULL) AS live,
                       max(r.released_on) FILTER (WHERE NOT r.by_sweep) AS released_on
                FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no) GROUP BY 1
            ), truth AS (
                SELECT e.entry_id AS item_id, 1 + coalesce(c.last_no, 0) AS next_claim_no, e.party_id, e.currency::text,
                       e.day, e.kind, {SIGNED} AS amount_minor, e.match_id, e.pot, e.pot_party_id, e.recipient,
                       greatest(CASE WHEN e.kind IN ('accrual', 'refund') THEN NULL ELSE e.day END, c.released_on)
                           AS available_after
                FROM ledger_entries e LEFT JOIN claims c ON c.item_id = e.entry_id
                WHERE e.is_item AND c.live IS NOT TRUE
            ), kept AS (
                SELECT item_id, next_claim_no, party_id, currency::text, day, kind, amount_minor, match_id, pot,
                       pot_party_id, recipient, available_after FROM open_items
            )
            SELECT format('item %s of %s: %s %s is %s', item_id, party_id, amount_minor, currency, what) FROM (
                SELECT t.*, 'open, and open_items has it not or otherwise' AS what
                FROM (SELECT * FROM truth EXCEPT SELECT * FROM kept) t
                UNION ALL
                SELECT k.*, 'in open_items, and not open or otherwise'
                FROM (SELECT * FROM kept EXCEPT SELECT * FROM truth) k) d""",
        "SELECT count(*) FROM ledger_entries WHERE is_item",
    ),
    "no item is under two live instructions": TableRule(
        """SELECT format('item %s is under %s: cancel all but one before they are sent', c.item_id,
                         string_agg(c.instruction_id::text, ' and '))
           FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
           WHERE r.item_id IS NULL GROUP BY c.item_id HAVING count(*) > 1""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "claim n + 1 follows the release of n": TableRule(
        """SELECT format('item %s: claim %s by instruction %s, though claim %s was not released', c.item_id, c.claim_no,
                         c.instruction_id, c.claim_no - 1)
           FROM instruction_claims c LEFT JOIN claim_releases r ON r.item_id = c.item_id AND r.claim_no = c.claim_no - 1
           WHERE c.claim_no > 1 AND r.item_id IS NULL""",
        "SELECT count(*) FROM instruction_claims",
    ),
    "only cancelled, failed and returned instructions release their items, all of them": TableRule(
        f"""SELECT format('instruction %s is %s: %s of %s claims released', instruction_id, s.state, count(r.item_id), count(*))
            FROM instruction_claims c LEFT JOIN claim_releases r USING (item_id, claim_no)
            LEFT JOIN ({STATES}) s USING (instruction_id)
            GROUP BY instruction_id, s.state
            HAVING count(r.item_id) <> CASE WHEN s.state IN ('cancelled', 'failed', 'returned') THEN count(*) ELSE 0 END
            UNION ALL
            SELECT format('release of item %s, claim %s, and there is no such claim', r.item_id, r.claim_no)
            FROM claim_releases r LEFT JOIN instruction_claims c USING (item_id, claim_no) WHERE c.item_id IS NULL""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "an instruction is the net of its items": TableRule(
        f"""SELECT format('instruction %s of %s: %s %s %s, and %s of its %s items are of that party and currency and net to '
                          '%s; do not send it', i.instruction_id, i.party_id, i.direction, i.amount_minor, i.currency,
                          count(e.entry_id), count(c.item_id), coalesce(sum({SIGNED}), 0))
            FROM payout_instructions i LEFT JOIN instruction_claims c USING (instruction_id)
            LEFT JOIN ledger_entries e ON e.entry_id = c.item_id AND e.is_item AND e.party_id = i.party_id
                                      AND e.currency = i.currency
            GROUP BY i.instruction_id
            HAVING coalesce(sum({SIGNED}), 0) <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
                OR count(c.item_id) <> count(e.entry_id) OR count(c.item_id) = 0""",
        "SELECT count(*) FROM payout_instructions",
    ),
    "a sweep makes one instruction per party and currency": TableRule(
        """SELECT format('sweep %s of %s: %s instructions of %s in %s; do not send them', sweep_seq, sweep_day, count(*),
                         party_id, currency)
           FROM payout_instructions GROUP BY sweep_day, sweep_seq, party_id, currency HAVING count(*) > 1
           UNION ALL
           SELECT format('sweep %s of %s says %s instructions, and there are %s', seq, sweep_day, s.instructions, i.made)
           FROM sweeps s
           FULL JOIN (SELECT sweep_day, sweep_seq AS seq, count(*) AS made FROM payout_instructions GROUP BY 1, 2) i
               USING (sweep_day, seq)
           WHERE s.instructions IS DISTINCT FROM coalesce(i.made, 0)""",
        "SELECT count(*) FROM sweeps",
    ),
    "a party's balance is its open items and those under instructions not yet sent": TableRule(
        f"""SELECT format('%s: balance %s %s, items %s', party_id, balance, currency, items) FROM (
                SELECT party_id, currency, sum(balance) AS balance, sum(items) AS items FROM (
                    SELECT e.party_id, e.currency::text, {SIGNED} AS balance, 0 AS items FROM ledger_entries e
                    WHERE e.party_id IS NOT NULL
                    UNION ALL
                    SELECT o.party_id, o.currency::text, 0, o.amount_minor FROM open_items o
                    UNION ALL
                    SELECT e.party_id, e.currency::text, 0, {SIGNED}
                    FROM instruction_claims c JOIN ledger_entries e ON e.entry_id = c.item_id
                    JOIN ({STATES}) s USING (instruction_id)
                    WHERE s.state IN ('created', 'held', 'approved')) parts
                GROUP BY 1, 2) p WHERE balance <> items""",
        "SELECT count(*) FROM (SELECT DISTINCT party_id, currency FROM ledger_entries WHERE party_id IS NOT NULL) p",
    ),
}
