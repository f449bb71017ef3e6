"""Rules over what people decided: by whom, of what, and that nothing was done without."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

#: Postings of matches with money posted, under other rules than before, as one question a day's run and competition.
#: Proposals of before their matches named the posting asked about may stand for it too, whatever came of them.
_CHANGED_RULES = """
    WITH changed AS (
        SELECT m.match_day, m.day_seq, m.competition_id::text AS competition_id, m.match_id, j.journal_id,
               jsonb_build_array(m.match_id, m.rules_hash, m.content_hash) AS named, m.posting_no
        FROM match_postings m
        JOIN match_postings b ON b.match_id = m.match_id AND b.posting_no = m.posting_no - 1
        LEFT JOIN journals j ON j.kind = 'accrual' AND j.match_id = m.match_id AND j.posting_no = m.posting_no
        WHERE (b.is_open OR b.revision = m.revision) AND b.rules_hash <> m.rules_hash
          -- Where no amount changes, nobody was asked, unless it is paid out at another time.
          AND (j.journal_id IS NOT NULL OR b.is_open AND b.payout_policy <> m.payout_policy)
    ), asked AS (
        SELECT match_day, day_seq, competition_id, jsonb_agg(named) AS named,
               jsonb_agg(named || to_jsonb(posting_no) ORDER BY match_id COLLATE "C") AS matches
        FROM changed GROUP BY 1, 2, 3
    ), did AS (
        SELECT match_day, day_seq, competition_id,
               jsonb_agg(jsonb_build_array(account, currency, minor)
                         ORDER BY account COLLATE "C", currency COLLATE "C") AS effect
        FROM (SELECT c.match_day, c.day_seq, c.competition_id, e.account::text AS account,
                     e.currency::text AS currency, sum(e.credit_minor - e.debit_minor)::bigint AS minor
              -- What was refunded of it is posted anew with it.
              FROM changed c JOIN journals a USING (journal_id)
              JOIN journals j ON j.journal_id = a.journal_id
                  OR j.kind = 'refund' AND j.match_id = a.match_id AND j.created_xid = a.created_xid
              JOIN ledger_entries e ON e.journal_id = j.journal_id GROUP BY 1, 2, 3, 4, 5) sums
        WHERE minor <> 0 GROUP BY 1, 2, 3
    )
"""

RULES = {
    "what is approved is what was looked at, by its login and in time": TableRule(
        """SELECT format('instruction %s was approved by %s (login %s) at %s, until %s, of digest %s and not %s',
                         i.instruction_id, e.actor, e.login, e.recorded_at,
                         i.created_at + make_interval(days => i.approval_days), e.evidence ->> 'digest', i.digest)
           FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
           WHERE e.from_state = 'held' AND e.to_state = 'approved' AND (
               e.actor <> e.login OR e.evidence ->> 'digest' IS DISTINCT FROM i.digest
               OR e.login IN (i.maker, i.token_changed_by)
               OR coalesce(e.recorded_at > i.created_at + make_interval(days => i.approval_days), true))""",
        "SELECT count(*) FROM instruction_events WHERE from_state = 'held' AND to_state = 'approved'",
    ),
    "a proposal is decided by another than who made it": TableRule(
        """SELECT format('proposal %s of %s (login %s) was %s by %s (login %s)', proposal_id, p.maker, p.login, d.decision,
                         d.actor, d.login)
           FROM proposals p JOIN proposal_decisions d USING (proposal_id)
           WHERE d.actor <> d.login OR d.login IN (p.maker, p.login)""",
        "SELECT count(*) FROM proposal_decisions",
    ),
    "what is written off was accepted": TableRule(
        """SELECT format('journal %s writes off %s %s of %s, proposal %s says %s and was %s; ask who posted it',
                         j.journal_id, e.credit_minor, e.currency, coalesce(e.party_id, e.account), j.proposal_id,
                         coalesce(p.content::text, 'nothing'), coalesce(d.decision, 'not decided'))
           FROM journals j JOIN ledger_entries e ON e.journal_id = j.journal_id AND e.credit_minor > 0
           LEFT JOIN proposals p USING (proposal_id) LEFT JOIN proposal_decisions d USING (proposal_id)
           WHERE j.kind = 'write_off' AND (
               d.decision IS DISTINCT FROM 'accepted' OR p.kind IS DISTINCT FROM 'write_off'
               OR p.content ->> 'party_id' IS DISTINCT FROM e.party_id OR p.content ->> 'currency' <> e.currency
               OR (p.content ->> 'amount_minor')::bigint IS DISTINCT FROM e.credit_minor OR NOT e.is_item)""",
        "SELECT count(*) FROM journals WHERE kind = 'write_off'",
    ),
    "what was matched was accepted": TableRule(
        """SELECT format('journal %s takes %s %s of entry %s out of suspense, to %s; proposal %s says %s and was %s; ask who '
                         'posted it', j.journal_id, e.credit_minor - e.debit_minor, e.currency, j.matched_reference,
                         e.account, j.proposal_id, coalesce(p.content::text, 'nothing'), coalesce(d.decision, 'not decided'))
           FROM journals j JOIN ledger_entries e ON e.journal_id = j.journal_id AND e.account <> 'suspense'
           LEFT JOIN proposals p USING (proposal_id) LEFT JOIN proposal_decisions d USING (proposal_id)
           LEFT JOIN report_lines l ON (l.processor, l.entry_reference) = (j.processor, j.matched_reference)
           WHERE j.kind = 'match' AND (
               d.decision IS DISTINCT FROM 'accepted' OR p.kind IS DISTINCT FROM 'match'
               OR p.content ->> 'entry_reference' IS DISTINCT FROM j.matched_reference
               OR p.content ->> 'processor' IS DISTINCT FROM j.processor OR p.content ->> 'account' IS DISTINCT FROM e.account
               OR (l.amount_minor, l.currency) IS DISTINCT FROM (e.credit_minor - e.debit_minor, e.currency))""",
        "SELECT count(*) FROM journals WHERE kind = 'match'",
    ),
    "rules changed in the past are posted as their effect was accepted": TableRule(
        f"""{_CHANGED_RULES}
            SELECT format('the %s-th run of %s posted %s under other rules of %s, in all %s, and nobody accepted that; '
                          'ask who posted it', day_seq, match_day, matches, competition_id, effect)
            FROM asked LEFT JOIN did USING (match_day, day_seq, competition_id)
            WHERE NOT EXISTS (
                SELECT FROM proposals p JOIN proposal_decisions d USING (proposal_id)
                WHERE p.kind = 'rule_change' AND d.decision = 'accepted'
                  AND p.content ->> 'match_day' = to_char(match_day, 'YYYY-MM-DD')
                  AND p.content ->> 'competition_id' = competition_id
                  AND (p.content -> 'matches' = matches
                       AND jsonb_path_query_array(p.content -> 'effect', 'strict $[*] ? (@[2] != 0)')
                           = coalesce(effect, '[]'::jsonb)
                       OR jsonb_array_length(p.content #> '{{matches,0}}') = 3
                       AND p.content -> 'matches' @> named))""",
        f"{_CHANGED_RULES} SELECT count(*) FROM changed",
    ),
}
