"""Rules over what people decided: by whom, of what, and that nothing was done without."""

from __future__ import annotations

from payments_pipeline.verify.table_rule import TableRule

RULES = {
    "what is approved is what was looked at, by its login and in time": TableRule(
        """SELECT format('instruction %s was approved by %s (login %s) at %s, until %s, of digest %s and not %s',
                         i.instruction_id, e.actor, e.login, e.recorded_at,
                         i.created_at + make_interval(days => i.approval_days), e.evidence ->> 'digest', i.digest)
           FROM instruction_events e JOIN payout_instructions i USING (instruction_id)
           WHERE e.from_state = 'held' AND e.to_state = 'approved' AND (
               e.actor <> e.login OR e.evidence ->> 'digest' IS DISTINCT FROM i.digest
               OR e.recorded_at > i.created_at + make_interval(days => i.approval_days))""",
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
}
