"""Rules over the ledger: balance, accounts, the postings of matches.

Belongs here: what holds of journals and entries by themselves. Does not belong here: what they were posted for.
"""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

RULES = {
    "debits equal credits per currency": TableRule(
        """SELECT format('%s: debits %s, credits %s; restore the ledger before anything is sent', currency,
                         sum(debit_minor), sum(credit_minor))
           FROM ledger_entries GROUP BY currency HAVING sum(debit_minor) <> sum(credit_minor)""",
        "SELECT count(DISTINCT currency) FROM ledger_entries",
    ),
    "debits equal credits per journal": TableRule(
        """SELECT format('journal %s, %s: debits %s, credits %s', j.journal_id, e.currency, sum(e.debit_minor),
                         sum(e.credit_minor))
           FROM journals j LEFT JOIN ledger_entries e USING (journal_id) GROUP BY j.journal_id, e.currency
           HAVING sum(e.debit_minor) IS DISTINCT FROM sum(e.credit_minor) OR count(e.entry_id) < 2""",
        "SELECT count(*) FROM journals",
    ),
    "entries belong to the journal they say": TableRule(
        """SELECT format('entry %s: kind %s, day %s, its journal says %s, %s', e.entry_id, e.kind, e.day, j.kind, j.day)
           FROM ledger_entries e LEFT JOIN journals j USING (journal_id)
           WHERE j.journal_id IS NULL OR (e.kind, e.day) <> (j.kind, j.day)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "amounts are whole and above zero on one side": TableRule(
        """SELECT format('entry %s: debit %s, credit %s', entry_id, debit_minor, credit_minor) FROM ledger_entries
           WHERE debit_minor < 0 OR credit_minor < 0 OR (debit_minor = 0) = (credit_minor = 0)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "an item is a line that says what is owed, never one that moves money": TableRule(
        """SELECT format('entry %s of kind %s on %s: is_item %s', e.entry_id, e.kind, e.account, e.is_item)
           FROM ledger_entries e
           WHERE (e.kind = 'accrual' AND e.is_item <> (e.party_id IS NOT NULL))
              OR (e.kind IN ('submission', 'fee', 'funding', 'unmatched') AND e.is_item)
              OR (e.party_id IS NOT NULL AND e.account <> 'party:' || e.party_id)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "each match sums to zero": TableRule(
        """SELECT format('match %s, %s %s: its postings sum to %s', match_id, pot, pot_party_id,
                         sum(credit_minor) - sum(debit_minor))
           FROM ledger_entries WHERE kind = 'accrual' GROUP BY match_id, pot, pot_party_id
           HAVING sum(credit_minor) <> sum(debit_minor)""",
        "SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id FROM ledger_entries WHERE kind = 'accrual') p",
    ),
    "postings of a key are numbered without gap": TableRule(
        """SELECT format('match %s, %s %s line %s %s: postings %s of %s', match_id, pot, pot_party_id, line_no, account,
                         count(*), max(posting_no))
           FROM ledger_entries WHERE kind = 'accrual'
           GROUP BY match_id, pot, pot_party_id, line_no, account, currency
           HAVING count(*) <> max(posting_no) OR count(DISTINCT posting_no) <> count(*)""",
        """SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id, line_no, account, currency
                                 FROM ledger_entries WHERE kind = 'accrual') k""",
    ),
    "a match is posted under one day": TableRule(
        """SELECT format('match %s has money under %s days', match_id, count(*)) FROM (
               SELECT match_id, day FROM (
                   SELECT match_id, day, account, sum(credit_minor) - sum(debit_minor) AS net FROM ledger_entries
                   WHERE kind = 'accrual' GROUP BY 1, 2, 3) a WHERE net <> 0 GROUP BY 1, 2) d
           GROUP BY match_id HAVING count(*) > 1""",
        "SELECT count(DISTINCT match_id) FROM match_postings",
    ),
    "revisions posted of a match never go back": TableRule(
        """SELECT format('match %s: posting %s has revision %s after %s', n.match_id, n.posting_no, n.revision, p.revision)
           FROM match_postings n LEFT JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
           WHERE p.revision > n.revision OR (n.posting_no > 1 AND p.match_id IS NULL)""",
        "SELECT count(*) FROM match_postings",
    ),
    "no money is in suspense": TableRule(
        """SELECT format('%s %s in suspense: give the pot a recipient, or match the report line',
                         sum(credit_minor) - sum(debit_minor), currency)
           FROM ledger_entries WHERE account = 'suspense' GROUP BY currency HAVING sum(credit_minor) <> sum(debit_minor)""",
        "SELECT count(*) FROM ledger_entries WHERE account = 'suspense'",
    ),
}
