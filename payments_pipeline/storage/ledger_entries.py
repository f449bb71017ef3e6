"""The store of `ledger_entries`: posts a day under its lock, in one transaction.

Belongs here: reading what is posted, writing a plan. Does not belong here: what to post (`domain.ledger`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial

import pandas as pd
import psycopg
import pyarrow as pa
from psycopg.types.json import Jsonb

from payments_pipeline.domain.checks import pots_not_conserved
from payments_pipeline.domain.errors import ConflictError, InvariantError, StaleInputError
from payments_pipeline.domain.ledger import PostingPlan, plan_posting
from payments_pipeline.domain.proposals import RuleChange
from payments_pipeline.storage.approvals import write_proposal
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, copy_frame, day_key, read_frame, session_lock
from payments_pipeline.storage.refunds import POSTED_LINES, recompute_refunds, refund_effect, write_journals

_STRING, _INT, _DATE, _BOOL = pa.string(), pa.int64(), pa.date32(), pa.bool_()

_POSTED_MATCHES = """
    SELECT DISTINCT ON (match_id) match_id, posting_no, match_day, competition_id, revision, content_hash, rules_hash,
           schedule_version, currency, payout_policy, revenue_minor, participants, is_open
    FROM match_postings
    WHERE match_id IN (
        SELECT match_id FROM day_matches UNION SELECT match_id FROM match_postings WHERE match_day = {day})
    ORDER BY match_id, posting_no DESC
"""
_POSTED_MATCHES_SCHEMA = {
    "match_id": _STRING,
    "posting_no": _INT,
    "match_day": _DATE,
    "competition_id": _STRING,
    "revision": _INT,
    "content_hash": _STRING,
    "rules_hash": _STRING,
    "schedule_version": _STRING,
    "currency": _STRING,
    "payout_policy": _STRING,
    "revenue_minor": _INT,
    "participants": _STRING,
    "is_open": _BOOL,
}

_POSTED_ENTRIES = """
    SELECT match_id, pot, pot_party_id, line_no, account, currency, max(recipient), max(schedule_version),
           (sum(credit_minor) - sum(debit_minor))::bigint, count(*)
    FROM ledger_entries
    WHERE kind = 'accrual' AND match_id IN (SELECT match_id FROM day_matches)
    GROUP BY 1, 2, 3, 4, 5, 6
"""


#: Changes of rules that an approver has accepted or refused for a day.
_DECIDED_RULES = """
    SELECT decision, content FROM proposals JOIN proposal_decisions USING (proposal_id)
    WHERE kind = 'rule_change' AND content ->> 'match_day' = %s
"""


#: The currencies of competitions, as far as anything of them is posted: the first and the last by name are enough.
_CURRENCIES = """
    SELECT c, ARRAY[(SELECT min(m.currency::text) FROM match_postings m WHERE m.competition_id = c),
                    (SELECT max(m.currency::text) FROM match_postings m WHERE m.competition_id = c)]
    FROM unnest(%s::text[]) AS c
    WHERE EXISTS (SELECT FROM match_postings m WHERE m.competition_id = c)
"""


#: Nobody accepts a refund while a day is posted: it would be bounded by what the pot charged before.
_BEGIN = f"""
    CREATE TEMPORARY TABLE day_matches (match_id text PRIMARY KEY) ON COMMIT DROP;
    SELECT pg_advisory_xact_lock_shared({int(Lock.REFUNDS)}, 0)
"""


@dataclass(frozen=True)
class DayInput:
    """What a day is posted from; the four frames were computed from the same input.

    Attributes:
        matches: frame of `schemas.MATCH_RESULTS`.
        participants: frame of `schemas.MATCH_PARTICIPANTS`.
        shares: frame of `schemas.PARTICIPANT_SHARES`.
        rejected: frame of `schemas.REJECTED_RECORDS`.
        input_hashes: hashes of the landing files and reference data they were computed from.
    """

    matches: pd.DataFrame
    participants: pd.DataFrame
    shares: pd.DataFrame
    rejected: pd.DataFrame
    input_hashes: Mapping[str, str]


@dataclass(frozen=True)
class Posted:
    """What a posting did.

    Attributes:
        seq: its number for the day, from 1.
        entries: ledger lines of accruals inserted.
        plan: what was written.
        refund_entries: ledger lines inserted for refunds that the corrections changed.
    """

    seq: int
    entries: int
    plan: PostingPlan
    refund_entries: int


def post_day(
    url: str, day: date, day_input: DayInput, hash_again: Callable[[], Mapping[str, str]], run: RunInfo
) -> Posted:
    """Post the difference between a day's shares and what is posted for them.

    Args:
        url: business database.
        day: match day.
        day_input: frames and the hashes they were computed from.
        hash_again: lists and hashes the day's input as it is now; called under the day's lock.
        run: who posts.

    Raises:
        StaleInputError: the input is no longer what the shares were computed from; nothing was posted.
        ConflictError: another day's run posted one of the matches at the same moment; nothing was posted.
        InvariantError: the shares of a pot do not sum to it; nothing was posted.
    """
    # As the check of the shares does, which stops its own run alone.
    for match_id, pot, payer, expected, actual in pots_not_conserved(day_input.matches, day_input.shares).itertuples(
        index=False, name=None
    ):
        raise InvariantError(
            f"{day}, match {match_id}: the shares of its {pot} {payer} sum to {actual} and not to {expected}. Nothing "
            "was posted. Run the whole day again; if that does not help, this is a defect: report it."
        )
    with connect(url) as connection, session_lock(connection, Lock.DAY, day_key(day)):
        now = dict(hash_again())
        if now != dict(day_input.input_hashes):
            changed = sorted(
                name
                for name in now.keys() | day_input.input_hashes.keys()
                if now.get(name) != day_input.input_hashes.get(name)
            )
            raise StaleInputError(
                f"{day}: {', '.join(changed)} changed after the shares were computed. Nothing was posted. "
                "Run the day again: it reads the input as it is now."
            )
        try:
            with connection.transaction(), connection.cursor() as cursor:
                return _post(cursor, day, day_input, run)
        except (psycopg.errors.UniqueViolation, psycopg.errors.RestrictViolation) as error:
            raise ConflictError(
                f"{day}: {str(error).strip()}. Nothing was posted for this day. Another run posted one of its matches "
                "at the same moment: run the day again, and what is posted already stays as it is."
            ) from error


def _post(cursor: psycopg.Cursor, day: date, day_input: DayInput, run: RunInfo) -> Posted:
    cursor.execute(_BEGIN)
    copy_frame(cursor, "day_matches", day_input.matches[["match_id"]].astype(object))
    posted_matches = read_frame(cursor, _POSTED_MATCHES, {"day": day}, _POSTED_MATCHES_SCHEMA)
    posted_entries = read_frame(cursor, _POSTED_ENTRIES, {}, POSTED_LINES)
    rejected = day_input.rejected
    rejected = rejected[(rejected["dataset"] == "match_results") & (rejected["outcome"] == "rejected")]
    decided = cursor.execute(_DECIDED_RULES, (day.isoformat(),)).fetchall()
    currencies = cursor.execute(_CURRENCIES, (day_input.matches["competition_id"].astype(object).unique().tolist(),))
    plan = plan_posting(
        day,
        day_input.matches,
        day_input.participants,
        day_input.shares,
        rejected[["match_id", "reason"]].astype(object).dropna(),
        posted_matches,
        posted_entries,
        [RuleChange(**content) for decision, content in decided if decision == "accepted"],
        [RuleChange(**content) for decision, content in decided if decision == "refused"],
        posted_currencies=dict(currencies.fetchall()),
        refund_effect=partial(refund_effect, cursor, day, posted_entries),
    )
    row = cursor.execute(
        """INSERT INTO day_postings
               (match_day, seq, input_hashes, matches, shares, entries_posted, run_id, code_version)
           SELECT %(day)s, coalesce(max(seq), 0) + 1, %(hashes)s, %(matches)s, %(shares)s, %(entries)s, %(run_id)s,
                  %(code_version)s
           FROM day_postings WHERE match_day = %(day)s RETURNING seq""",
        {
            "day": day,
            "hashes": Jsonb(dict(day_input.input_hashes)),
            "matches": len(day_input.matches),
            "shares": len(day_input.shares),
            "entries": len(plan.entries),
            "run_id": run.run_id,
            "code_version": run.code_version,
        },
    ).fetchone()
    assert row is not None
    seq: int = row[0]
    for change in plan.rule_changes:
        policy = plan.changed_policies.get(change.competition_id)
        reason = "rules changed with effect in the past" + (f"; {policy}" if policy else "")
        write_proposal(cursor, change, reason, run.maker)
    copy_frame(cursor, "posting_breaks", plan.breaks, {"match_day": day, "seq": seq})
    copy_frame(cursor, "match_postings", plan.matches, {"match_day": day, "day_seq": seq})
    copy_frame(cursor, "journals", plan.journals, {"kind": "accrual", "day": day} | run.stamp)
    refunds = recompute_refunds(cursor, day, posted_entries, plan.entries, plan.matches)
    entries = plan.entries
    if refunds is not None:
        write_journals(cursor, refunds, run)
        entries = pd.concat([entries, refunds.entries], ignore_index=True)
    copy_frame(cursor, "ledger_entries", entries)
    return Posted(seq=seq, entries=len(plan.entries), plan=plan, refund_entries=len(entries) - len(plan.entries))
