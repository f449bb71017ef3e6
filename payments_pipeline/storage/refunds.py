"""The store of `refunds`: accepts requests under the lock of refunds, and recomputes them with each correction.

Belongs here: locks, reading pots, writing refunds and what posts them. Does not belong here: what is accepted
and how it is divided (`domain.refunds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa

from payments_pipeline.domain.errors import ConfigurationError, ConflictError
from payments_pipeline.domain.refunds import (
    POT,
    Decision,
    RefundPlan,
    accruals_after,
    charges,
    decide_requests,
    plan_refunds,
)
from payments_pipeline.storage.postgres import Lock, RunInfo, connect, copy_frame, read_frame, transaction_lock

_STRING, _INT, _DATE = pa.string(), pa.int64(), pa.date32()

#: Columns of posted lines summed by their key.
POSTED_LINES = {
    "match_id": _STRING,
    "pot": _STRING,
    "pot_party_id": _STRING,
    "line_no": _INT,
    "account": _STRING,
    "currency": _STRING,
    "recipient": _STRING,
    "schedule_version": _STRING,
    "amount_minor": _INT,
    "posting_no": _INT,
}
_ACCRUALS = """
    SELECT match_id, pot, pot_party_id, line_no, account, currency, max(recipient), max(schedule_version),
           (sum(credit_minor) - sum(debit_minor))::bigint, count(*)
    FROM ledger_entries
    WHERE kind = 'accrual' AND pot = 'match_fee' AND (match_id, pot_party_id) IN (SELECT * FROM refund_pots)
    GROUP BY 1, 2, 3, 4, 5, 6
"""
#: What is posted of the accepted refunds of matches.
_POSTED = """
    SELECT refund_id, match_id, pot, pot_party_id, line_no, account, currency, max(recipient), max(schedule_version),
           (sum(credit_minor) - sum(debit_minor))::bigint, count(*)
    FROM ledger_entries
    WHERE kind = 'refund' AND match_id = ANY ({matches}) GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
_POSTED_SCHEMA = {"refund_id": _STRING} | POSTED_LINES
_REFUNDS = """
    SELECT refund_id, match_id, pot_party_id, currency, pot_no, amount_minor, accepted_day FROM refunds
    WHERE match_id IN (SELECT match_id FROM %s)
"""
_REFUNDS_SCHEMA = {
    "refund_id": _STRING,
    "match_id": _STRING,
    "pot_party_id": _STRING,
    "currency": _STRING,
    "pot_no": _INT,
    "amount_minor": _INT,
    "accepted_day": _DATE,
}
_KNOWN = """
    SELECT refund_id, match_id, pot_party_id, requested_minor, reason, requester FROM refunds
    WHERE refund_id = ANY ({ids})
"""
_KNOWN_SCHEMA = {
    "refund_id": _STRING,
    "match_id": _STRING,
    "pot_party_id": _STRING,
    "requested_minor": _INT,
    "reason": _STRING,
    "requester": _STRING,
}
_POSTINGS = """
    SELECT DISTINCT ON (match_id) match_id, posting_no, match_day FROM match_postings
    WHERE match_id IN (SELECT match_id FROM refund_pots) ORDER BY match_id, posting_no DESC
"""
_POSTINGS_SCHEMA = {"match_id": _STRING, "posting_no": _INT, "match_day": _DATE}


@dataclass(frozen=True)
class Accepted:
    """What came of requests.

    Attributes:
        decisions: the requests in order, with decision, words, fixed_minor, currency and pot_no.
        entries: ledger lines inserted.
    """

    decisions: pd.DataFrame
    entries: int

    @property
    def refused(self) -> pd.DataFrame:
        """The requests that were refused."""
        return self.decisions[~self.decisions["decision"].isin([Decision.ACCEPTED, Decision.REPEATED])]


def accept_refunds(
    url: str, day: date, requests: pd.DataFrame, requester: str, run: RunInfo, input_hash: str | None = None
) -> Accepted:
    """Accept what can be refunded and post it, all in one transaction; what was accepted before is a no-op.

    The journals are of the day of acceptance, or of the match's where that is later: the sweep of that day or a later
    one takes their items.

    Args:
        url: business database, by the run-time login.
        day: the day of acceptance, a partition.
        requests: refund_id (each once), match_id, party_id, amount_minor (Int64; null: all that is left), reason,
            source and, where they name one, requester (null: none); in the order in which they are accepted.
        requester: who asks where a request names nobody; who asks is a maker of what pays it.
        run: who writes.
        input_hash: of the day's request files that they were read from; None where they were asked for by command.

    Raises:
        ConfigurationError: a requester is blank: what they asked for, they could approve; nothing was accepted.
        ConflictError: another program accepted one of them at the same moment otherwise; nothing was accepted.
    """
    if not _requesters(requests, requester).str.strip().astype(bool).all():
        raise ConfigurationError(f"{day}: a refund's requester is blank. No refund was accepted. Say who asks.")
    try:
        with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
            transaction_lock(cursor, Lock.REFUNDS)
            return _accept(cursor, day, requests.assign(input_hash=input_hash), requester, run)
    except (psycopg.errors.UniqueViolation, psycopg.errors.RestrictViolation) as error:
        raise ConflictError(f"{day}: {str(error).strip()}. No refund was accepted. Run the day again.") from error


def _accept(cursor: psycopg.Cursor[Any], day: date, requests: pd.DataFrame, requester: str, run: RunInfo) -> Accepted:
    cursor.execute(
        """CREATE TEMPORARY TABLE refund_pots (match_id text, pot_party_id text, PRIMARY KEY (match_id, pot_party_id))
           ON COMMIT DROP"""
    )
    pots = requests[["match_id", "party_id"]].drop_duplicates().rename(columns={"party_id": "pot_party_id"})
    copy_frame(cursor, "refund_pots", pots)
    known = read_frame(cursor, _KNOWN, {"ids": requests["refund_id"].tolist()}, _KNOWN_SCHEMA)
    postings = read_frame(cursor, _POSTINGS, {}, _POSTINGS_SCHEMA)
    accruals = read_frame(cursor, _ACCRUALS, {}, POSTED_LINES)
    before = read_frame(cursor, _REFUNDS % "refund_pots", {}, _REFUNDS_SCHEMA)
    before = before.merge(pots, on=["match_id", "pot_party_id"])
    posted = _read_posted(cursor, before)
    decisions = decide_requests(requests, known, frozenset(postings["match_id"]), charges(accruals, posted, before))
    accepted = decisions[decisions["decision"] == Decision.ACCEPTED]
    if accepted.empty:
        return Accepted(decisions, 0)
    new = accepted[["refund_id", "match_id", "currency", "pot_no"]].assign(
        pot_party_id=accepted["party_id"], amount_minor=accepted["fixed_minor"], accepted_day=day
    )
    copy_frame(
        cursor,
        "refunds",
        new.assign(
            pot=POT,
            requested_minor=accepted["amount_minor"],
            reason=accepted["reason"],
            source=accepted["source"],
            input_hash=accepted["input_hash"],
            requester=_requesters(accepted, requester),
            run_id=run.run_id,
            code_version=run.code_version,
        ),
    )
    plan = plan_refunds(accruals, pd.concat([before, new[before.columns]], ignore_index=True), posted, postings)
    write_journals(cursor, plan, run)
    copy_frame(cursor, "ledger_entries", plan.entries)
    return Accepted(decisions, len(plan.entries))


def _requesters(requests: pd.DataFrame, otherwise: str) -> pd.Series:
    named = requests.get("requester", pd.Series(None, requests.index, object))
    return named.where(named.notna(), otherwise)


def recompute_refunds(
    cursor: psycopg.Cursor[Any], day: date, posted: pd.DataFrame, entries: pd.DataFrame, matches: pd.DataFrame
) -> RefundPlan | None:
    """Say what brings the refunds of the matches of a posting to what its corrections leave of them.

    Args:
        cursor: in the posting's transaction, which shares the lock of refunds; its matches are in `day_matches`.
        day: the day posted.
        posted: accruals posted before: ENTRY_KEY, recipient, schedule_version, amount_minor.
        entries: accruals that the posting inserts, columns of `ledger_entries`.
        matches: match_id and posting_no of those that it posts.

    Returns:
        The plan; None where no refund was ever accepted of what is posted.
    """
    refunds = read_frame(cursor, _REFUNDS % "day_matches", {}, _REFUNDS_SCHEMA)
    refunds = refunds[refunds["match_id"].isin(entries["match_id"].unique())]
    if refunds.empty:
        return None
    of_pots = refunds[["match_id", "pot_party_id"]].drop_duplicates()
    accruals = accruals_after(posted, entries).merge(of_pots, on=["match_id", "pot_party_id"])
    postings = matches[["match_id", "posting_no"]].assign(match_day=day)
    return plan_refunds(accruals, refunds, _read_posted(cursor, refunds), postings)


def refund_effect(cursor: psycopg.Cursor[Any], day: date, posted: pd.DataFrame, entries: pd.DataFrame) -> pd.DataFrame:
    """Say what posting entries would post of refunds besides: match_id, account, currency, amount_minor.

    Args:
        cursor: in the posting's transaction, which shares the lock of refunds; its matches are in `day_matches`.
        day: the day posted.
        posted: accruals posted before: ENTRY_KEY, recipient, schedule_version, amount_minor.
        entries: accruals that would be inserted, columns of `ledger_entries`.
    """
    matches = entries[["match_id"]].drop_duplicates().assign(posting_no=0)
    plan = recompute_refunds(cursor, day, posted, entries, matches)
    found = _NO_ENTRIES if plan is None else plan.entries
    return found.assign(amount_minor=found["credit_minor"] - found["debit_minor"])


def write_journals(cursor: psycopg.Cursor[Any], plan: RefundPlan, run: RunInfo) -> None:
    """Insert a plan's journals; its entries follow in one statement with the corrections that they come from."""
    copy_frame(cursor, "journals", plan.journals, {"kind": "refund"} | run.stamp)


def _read_posted(cursor: psycopg.Cursor[Any], refunds: pd.DataFrame) -> pd.DataFrame:
    """Read what is posted of the refunds given; one not accepted yet has none."""
    matches = refunds["match_id"].unique().tolist()
    found = read_frame(cursor, _POSTED, {"matches": matches}, _POSTED_SCHEMA) if matches else _NOTHING_POSTED
    return found[found["refund_id"].isin(refunds["refund_id"])]


_NO_ENTRIES = pd.DataFrame(columns=["match_id", "account", "currency", "debit_minor", "credit_minor"], dtype=object)
_NOTHING_POSTED = pd.DataFrame(
    {name: pd.Series([], dtype="int64" if kind == _INT else object) for name, kind in _POSTED_SCHEMA.items()}
)
