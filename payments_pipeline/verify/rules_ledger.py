"""Rules over the ledger: balance, accounts, the postings of matches.

Belongs here: what holds of journals and entries by themselves. Does not belong here: items and claims, instructions.
"""

from __future__ import annotations

import psycopg
from iso4217 import Currency

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.table_rule import TableCheck, TableRule


def currencies_are_of_iso_4217(connection: psycopg.Connection) -> Found:
    """Money is an integer of minor units with its ISO 4217 currency."""
    found = connection.execute(
        """SELECT currency::text, array_agg(DISTINCT place) FROM (
               SELECT currency, 'ledger_entries' AS place FROM ledger_entries
               UNION ALL SELECT currency, 'payout_instructions' FROM payout_instructions
               UNION ALL SELECT currency, 'match_postings' FROM match_postings
               UNION ALL SELECT currency, 'report_lines' FROM report_lines
               UNION ALL SELECT currency, 'report_balances' FROM report_balances) c
           GROUP BY currency ORDER BY currency"""
    ).fetchall()
    known = {currency.code for currency in Currency}
    return Found(
        len(found),
        [
            f"currency {code} in {', '.join(places)} is not in ISO 4217: find out what wrote it"
            for code, places in found
            if code not in known
        ],
    )


RULES: dict[str, TableCheck] = {
    "debits equal credits per currency": TableRule(
        """SELECT format('%s: debits %s, credits %s; restore the ledger before anything is sent', currency,
                         sum(debit_minor), sum(credit_minor))
           FROM ledger_entries GROUP BY currency HAVING sum(debit_minor) <> sum(credit_minor)""",
        "SELECT count(DISTINCT currency) FROM ledger_entries",
    ),
    "debits equal credits per journal": TableRule(
        """SELECT format('journal %s, %s: debits %s, credits %s of %s entries; restore them before anything is sent',
                         j.journal_id, e.currency, sum(e.debit_minor), sum(e.credit_minor), count(e.entry_id))
           FROM journals j LEFT JOIN ledger_entries e USING (journal_id) GROUP BY j.journal_id, e.currency
           HAVING sum(e.debit_minor) IS DISTINCT FROM sum(e.credit_minor) OR count(e.entry_id) < 2""",
        "SELECT count(*) FROM journals",
    ),
    "entries belong to the journal they say": TableRule(
        """SELECT format('entry %s: kind %s, day %s, match %s, its journal says %s, %s, %s; one of them was changed', e.entry_id,
                         e.kind, e.day, e.match_id, j.kind, j.day, j.match_id)
           FROM ledger_entries e LEFT JOIN journals j USING (journal_id)
           WHERE j.journal_id IS NULL OR (e.kind, e.day, e.match_id) IS DISTINCT FROM (j.kind, j.day, j.match_id)""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "amounts are whole and above zero on one side": TableRule(
        """SELECT format('entry %s on %s: debit %s, credit %s', entry_id, account, debit_minor, credit_minor)
           FROM ledger_entries
           WHERE debit_minor < 0 OR credit_minor < 0 OR (debit_minor = 0) = (credit_minor = 0)
           UNION ALL
           SELECT format('instruction %s of %s: %s of %s', instruction_id, party_id, direction, amount_minor)
           FROM payout_instructions WHERE amount_minor < 0 OR (direction = 'none') <> (amount_minor = 0)""",
        "SELECT (SELECT count(*) FROM ledger_entries) + (SELECT count(*) FROM payout_instructions)",
    ),
    "currencies are of ISO 4217": currencies_are_of_iso_4217,
    "accounts are of the chart, and party accounts name their party": TableRule(
        """SELECT format('entry %s: account %s, party %s', entry_id, account, party_id) FROM ledger_entries
           WHERE account !~ '^((cash|in_transit|fees|pot|party):[A-Za-z0-9:._-]+|suspense|loss)$'
              OR length(account) - position(':' IN account) > 128
              OR party_id IS DISTINCT FROM CASE WHEN account LIKE 'party:%' THEN substr(account, 7) END""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "an item is a line that says what is owed, never one that moves money": TableRule(
        """SELECT format('entry %s of kind %s on %s: is_item is %s', e.entry_id, e.kind, e.account, e.is_item)
           FROM ledger_entries e
           WHERE (e.kind IN ('accrual', 'refund') AND e.is_item <> (e.account LIKE 'party:%'))
              OR (e.kind IN ('submission', 'fee', 'funding', 'unmatched') AND e.is_item)
              OR (e.is_item AND e.account NOT LIKE 'party:%')""",
        "SELECT count(*) FROM ledger_entries",
    ),
    "what is posted for a pot sums to zero": TableRule(
        """SELECT format('match %s, %s %s: its postings sum to %s %s; run its day again', match_id, pot, pot_party_id,
                         sum(credit_minor) - sum(debit_minor), currency)
           FROM ledger_entries WHERE kind = 'accrual' GROUP BY match_id, pot, pot_party_id, currency
           HAVING sum(credit_minor) <> sum(debit_minor)""",
        "SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id FROM ledger_entries WHERE kind = 'accrual') p",
    ),
    "postings of a key are numbered without gap": TableRule(
        """SELECT format('match %s, %s %s line %s %s: %s postings, the last is number %s', match_id, pot, pot_party_id, line_no,
                         account, count(*), max(posting_no))
           FROM ledger_entries WHERE kind = 'accrual'
           GROUP BY match_id, pot, pot_party_id, line_no, account, currency
           HAVING count(*) <> max(posting_no) OR count(DISTINCT posting_no) <> count(*) OR min(posting_no) <> 1
           UNION ALL
           SELECT format('match %s: %s postings, the last is number %s', match_id, count(*), max(posting_no))
           FROM match_postings GROUP BY match_id HAVING count(*) <> max(posting_no) OR min(posting_no) <> 1""",
        """SELECT count(*) FROM (SELECT DISTINCT match_id, pot, pot_party_id, line_no, account, currency
                                 FROM ledger_entries WHERE kind = 'accrual') k""",
    ),
    "accruals are posted with their match": TableRule(
        """SELECT format('journal %s: posting %s of match %s on %s, and match_postings has no such posting', j.journal_id,
                         j.posting_no, j.match_id, j.day)
           FROM journals j LEFT JOIN match_postings m USING (match_id, posting_no)
           WHERE j.kind = 'accrual' AND m.match_day IS DISTINCT FROM j.day""",
        "SELECT count(*) FROM journals WHERE kind = 'accrual'",
    ),
    "a match is posted under one day": TableRule(
        """SELECT format('match %s has money under %s: take it back under all but one, by a newer revision', match_id,
                         string_agg(day::text, ' and ' ORDER BY day)) FROM (
               SELECT match_id, day FROM (
                   SELECT match_id, day, account, sum(credit_minor) - sum(debit_minor) AS net FROM ledger_entries
                   WHERE kind = 'accrual' GROUP BY 1, 2, 3) a WHERE net <> 0 GROUP BY 1, 2) d
           GROUP BY match_id HAVING count(*) > 1""",
        "SELECT count(DISTINCT match_id) FROM match_postings",
    ),
    "revisions posted of a match never go back": TableRule(
        """SELECT format('match %s: posting %s has revision %s after %s; deliver the newer revision again', n.match_id,
                         n.posting_no, n.revision, p.revision)
           FROM match_postings n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
           WHERE p.revision > n.revision""",
        "SELECT count(*) FROM match_postings",
    ),
    "no money is in suspense": TableRule(
        # Each line and pot by itself: they do not make up for each other.
        """SELECT format('%s %s in suspense of %s', sum(e.credit_minor) - sum(e.debit_minor), e.currency, CASE
                         WHEN e.match_id IS NULL THEN format('entry %s of %s: match the report line',
                             coalesce(j.entry_reference, j.matched_reference), j.processor)
                         ELSE format('match %s: give its %s pot a recipient', e.match_id, e.pot) END)
           FROM ledger_entries e JOIN journals j USING (journal_id) WHERE e.account = 'suspense'
           GROUP BY e.currency, e.match_id, e.pot, e.pot_party_id, coalesce(j.entry_reference, j.matched_reference), j.processor
           HAVING sum(e.credit_minor) <> sum(e.debit_minor)""",
        "SELECT count(*) FROM ledger_entries WHERE account = 'suspense'",
    ),
}
