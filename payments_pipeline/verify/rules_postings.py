"""Rules over postings of matches beside each other: what a day's posting says of itself, and what may follow what.

Belongs here: `day_postings`, `match_postings`. Does not belong here: entries by themselves (`rules_ledger`), the stored
files of a day (`rules_matches`).
"""

from __future__ import annotations

import json

import psycopg

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.table_rule import TableCheck, TableRule

#: Each posting `n` of a match with the one before it, `p`.
_FOLLOWING = """
    match_postings n JOIN match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
"""


def nobody_is_lost_under_the_same_revision(connection: psycopg.Connection) -> Found:
    """Whoever was posted with a match stays with it, club and role too, until a newer revision says otherwise."""
    rows = connection.execute(
        f"""SELECT n.match_id, n.posting_no, n.revision, p.revision, p.participants, n.participants FROM {_FOLLOWING}
            ORDER BY 1, 2"""
    ).fetchall()
    return Found(
        len(rows),
        [
            f"match {match_id}: posting {posting_no} lacks {', '.join(person[0] for person in lost)}, posted before it under "
            f"the same revision {revision}; deliver the participant again"
            for match_id, posting_no, revision, revision_before, before, now in rows
            if revision == revision_before
            and (lost := [person for person in people(before) if person not in people(now)])
        ],
    )


def people(participants: str) -> list[list[str]]:
    """Read `participants` of match_postings: party, club and role of each; none where somebody made it unreadable."""
    try:
        found: list[list[str]] = json.loads(participants)
    except ValueError:
        return []
    return found


RULES: dict[str, TableCheck] = {
    "a match is posted again only as its revision allows": TableRule(
        f"""SELECT format('match %s: posting %s has other content than posting %s, both under revision %s; deliver the change as '
                          'a newer revision', n.match_id, n.posting_no, p.posting_no, n.revision)
            FROM {_FOLLOWING} WHERE n.revision = p.revision AND n.content_hash <> p.content_hash
            UNION ALL
            SELECT format('match %s: posting %s has no revenue, and posting %s had %s; deliver the revenue, or 0', n.match_id,
                          n.posting_no, p.posting_no, p.revenue_minor)
            FROM {_FOLLOWING} WHERE n.revenue_minor IS NULL AND p.revenue_minor IS NOT NULL""",
        "SELECT count(*) FROM match_postings WHERE posting_no > 1",
    ),
    "nobody posted with a match is lost under the same revision": nobody_is_lost_under_the_same_revision,
    "a match is open while its accruals do not net to zero": TableRule(
        """WITH keys AS (
               SELECT e.match_id, j.posting_no, pot, pot_party_id, line_no, account, currency,
                      sum(credit_minor) - sum(debit_minor) AS amount
               FROM ledger_entries e JOIN journals j USING (journal_id)
               WHERE e.kind = 'accrual' GROUP BY 1, 2, 3, 4, 5, 6, 7
           ), holding AS (
               SELECT DISTINCT match_id, posting_no FROM (
                   SELECT m.match_id::text, m.posting_no FROM match_postings m
                   JOIN keys k ON k.match_id = m.match_id AND k.posting_no <= m.posting_no
                   GROUP BY m.match_id, m.posting_no, pot, pot_party_id, line_no, account, k.currency
                   HAVING sum(amount) <> 0) h)
           SELECT format('match %s: posting %s says that it is %s, and its accruals %s; one of them was changed', m.match_id,
                         m.posting_no, CASE WHEN m.is_open THEN 'open' ELSE 'not open' END,
                         CASE WHEN h.match_id IS NULL THEN 'net to zero' ELSE 'do not net to zero' END)
           FROM match_postings m LEFT JOIN holding h USING (match_id, posting_no)
           WHERE m.is_open <> (h.match_id IS NOT NULL)""",
        "SELECT count(*) FROM match_postings",
    ),
    "a day's posting says what it posted": TableRule(
        """SELECT format('%s, posting %s: says %s entries, and there are %s', d.match_day, d.seq, d.entries_posted, count(e.entry_id))
           FROM day_postings d
           LEFT JOIN match_postings m ON (m.match_day, m.day_seq) = (d.match_day, d.seq)
           LEFT JOIN journals j ON j.kind = 'accrual' AND (j.match_id, j.posting_no) = (m.match_id, m.posting_no)
           LEFT JOIN ledger_entries e USING (journal_id)
           GROUP BY d.match_day, d.seq HAVING d.entries_posted <> count(e.entry_id)
           UNION ALL
           SELECT format('%s: %s postings, the last is number %s', match_day, count(*), max(seq))
           FROM day_postings GROUP BY match_day HAVING count(*) <> max(seq)
           UNION ALL
           SELECT format('match %s is posted by posting %s of %s, which there is not', m.match_id, m.day_seq, m.match_day)
           FROM match_postings m LEFT JOIN day_postings d ON (d.match_day, d.seq) = (m.match_day, m.day_seq)
           WHERE d.seq IS NULL
           UNION ALL
           SELECT format('journal %s of match %s is of run %s, its posting of %s', j.journal_id, j.match_id, j.run_id, d.run_id)
           FROM journals j JOIN match_postings m USING (match_id, posting_no)
           JOIN day_postings d ON (d.match_day, d.seq) = (m.match_day, m.day_seq)
           WHERE j.kind = 'accrual' AND (j.run_id, j.code_version) <> (d.run_id, d.code_version)""",
        "SELECT count(*) FROM day_postings",
    ),
}
