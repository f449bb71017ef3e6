"""Which rules the posted matches fall under, by day: for finding days that a change of rules reaches.

Belongs here: reading. Does not belong here: what the rules are now (`domain.reference_data`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from payments_pipeline.storage.postgres import connect


@dataclass(frozen=True)
class PostedRules:
    """Rules of a competition's posted matches of a day.

    Attributes:
        day: the match day.
        competition_id: competition.
        rules_hash: of the rules that some of its matches are posted under.
        seen: hash of each file of reference data that the day last ran on.
        accepted: id of a change of rules of that day that was accepted after it last ran; empty where there is none.
    """

    day: date
    competition_id: str
    rules_hash: str
    seen: dict[str, str]
    accepted: str


_POSTED = """
    SELECT p.match_day, p.competition_id, p.rules_hash, d.input_hashes, coalesce((
        SELECT max(q.proposal_id::text) FROM proposals q JOIN proposal_decisions c USING (proposal_id)
        WHERE q.kind = 'rule_change' AND c.decision = 'accepted' AND q.content ->> 'match_day' = p.match_day::text
          AND c.decided_at > d.posted_at), '')
    FROM (
        SELECT DISTINCT match_day, competition_id, rules_hash FROM (
            SELECT DISTINCT ON (match_id) match_day, competition_id, rules_hash, is_open FROM match_postings
            ORDER BY match_id, posting_no DESC) newest
        WHERE is_open) p
    JOIN LATERAL (SELECT input_hashes, posted_at FROM day_postings
                  WHERE match_day = p.match_day ORDER BY seq DESC LIMIT 1) d ON true
    ORDER BY 1, 2, 3
"""


def posted_rules(url: str) -> list[PostedRules]:
    """Give the rules that matches with money still posted are posted under, in order of day."""
    with connect(url) as connection:
        return [PostedRules(*row) for row in connection.execute(_POSTED.encode()).fetchall()]
