"""Refunds: what of a match fee is given back to its payer, and by whom.

Belongs here: which requests are accepted and for how much, what of an accepted refund applies to a pot as it is now,
how it is taken from the pot's lines, the entries that post the difference. Does not belong here: reading requests
(`domain.refund_requests`), locks, tables.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from payments_pipeline.domain.allocation import NO_CAP, REMAINDER, Claims, divide
from payments_pipeline.domain.errors import InvariantError
from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.keys import key_codes, rows_of, turns
from payments_pipeline.domain.ledger import ENTRY_KEY, check_balanced, party_of

POT = "match_fee"
#: What names the pot of a refund.
POT_KEY = ["match_id", "pot_party_id", "currency"]
LINE_KEY = ["refund_id", *ENTRY_KEY]


class Decision(StrEnum):
    """What became of a request; the first that applies."""

    REPEATED = "repeated"
    OTHER_CONTENT = "other_content"
    MATCH_NOT_POSTED = "match_not_posted"
    NOT_A_PAYER = "not_a_payer"
    NOTHING_LEFT = "nothing_left"
    MORE_THAN_LEFT = "more_than_left"
    ACCEPTED = "accepted"


#: Of decisions that refuse: what is wrong, and the cure.
REFUSED_WORDS = {
    Decision.OTHER_CONTENT: (
        "was accepted before for another match, party, amount, reason or requester. What was accepted stands. Ask for "
        "another refund under an id of its own."
    ),
    Decision.MATCH_NOT_POSTED: "is of match {match_id}, which is not posted. Run the match's day, then this one again.",
    Decision.NOT_A_PAYER: "is of {party_id}, whom no fee of match {match_id} charges. Correct match_id or party_id.",
    Decision.NOTHING_LEFT: "is of the fee of {party_id} in match {match_id}, of which nothing is left to refund.",
    Decision.MORE_THAN_LEFT: (
        "asks for {amount_minor} of the fee of {party_id} in match {match_id}, of which {left_minor} is left to "
        "refund. Ask for at most that, or leave amount_minor empty."
    ),
}


def decide_requests(
    requests: pd.DataFrame, accepted: pd.DataFrame, posted: frozenset[str], pots: pd.DataFrame
) -> pd.DataFrame:
    """Say what becomes of each request, in order: what is refused takes nothing from those after it.

    Args:
        requests: refund_id (each once), match_id, party_id, amount_minor (Int64; null: all that is left), reason, and
            requester where they name one (null: none).
        accepted: accepted before under these ids: refund_id, match_id, pot_party_id, requested_minor (Int64), reason,
            requester.
        posted: matches that are posted.
        pots: match_id, pot_party_id, currency, left_minor (what the pot still charges its payer, >= 0), refunds (how
            many were accepted of it); one row per pot.

    Returns:
        The requests, with decision, words, fixed_minor (int64, 0 unless accepted), currency and pot_no.
    """
    before = rows_of(requests, accepted, ["refund_id"])
    again = before >= 0
    asked = _or_zero(requests["amount_minor"])
    same = again.copy()
    if len(accepted):
        earlier = accepted.iloc[before]
        for name, name_before in (("match_id", "match_id"), ("party_id", "pot_party_id"), ("reason", "reason")):
            same &= requests[name].to_numpy(object) == earlier[name_before].to_numpy(object)
        same &= asked == _or_zero(earlier["requested_minor"])
        if "requester" in requests:
            named = requests["requester"].to_numpy(object)
            same &= pd.isna(named) | (named == earlier["requester"].to_numpy(object))
    names = ["match_id", "party_id"]
    pot, first = key_codes([requests[name].to_numpy(object) for name in names])
    charging = rows_of(requests.iloc[first][names], pots.rename(columns={"pot_party_id": "party_id"}), names)
    charged = (charging >= 0)[pot]
    fixed, left = np.zeros(len(requests), np.int64), np.zeros(len(requests), np.int64)
    number = np.zeros(len(requests), np.int64)
    remaining, taken = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    remaining[charging >= 0] = pots["left_minor"].to_numpy(np.int64)[charging[charging >= 0]]
    taken[charging >= 0] = pots["refunds"].to_numpy(np.int64)[charging[charging >= 0]]
    candidates = np.flatnonzero(charged & ~again)
    turn_of = turns(pot[candidates])
    for turn in range(turn_of.max(initial=-1) + 1):
        rows = candidates[turn_of == turn]
        left[rows] = remaining[pot[rows]]
        wanted = np.where(asked[rows] == 0, left[rows], asked[rows])
        wanted[wanted > left[rows]] = 0
        fixed[rows] = wanted
        taken[pot[rows]] += wanted > 0
        number[rows] = taken[pot[rows]]
        remaining[pot[rows]] -= wanted
    conditions = [
        (Decision.REPEATED, same),
        (Decision.OTHER_CONTENT, again),
        (Decision.MATCH_NOT_POSTED, ~requests["match_id"].isin(posted).to_numpy(bool)),
        (Decision.NOT_A_PAYER, ~charged),
        (Decision.NOTHING_LEFT, left == 0),
        (Decision.MORE_THAN_LEFT, fixed == 0),
    ]
    decided = np.select(
        [condition for _, condition in conditions],
        [str(decision) for decision, _ in conditions],
        str(Decision.ACCEPTED),
    )
    currency = np.full(len(first), None, object)
    currency[charging >= 0] = pots["currency"].to_numpy(object)[charging[charging >= 0]]
    found = requests.assign(
        decision=decided.astype(object), fixed_minor=fixed, left_minor=left, currency=currency[pot], pot_no=number
    )
    found["words"] = [
        "" if (words := REFUSED_WORDS.get(Decision(row["decision"]))) is None else _said(words, row)
        for row in found.to_dict("records")
    ]
    return found[[*requests.columns, "decision", "words", "fixed_minor", "currency", "pot_no"]]


def _said(words: str, row: dict[Hashable, Any]) -> str:
    return (
        f"refund {row['refund_id']} "
        + words.format_map({str(name): value for name, value in row.items()})
        + " Nothing of it was refunded."
    )


def charges(accruals: pd.DataFrame, refunded: pd.DataFrame, refunds: pd.DataFrame) -> pd.DataFrame:
    """Give what each pot still charges its payer.

    Args:
        accruals: per key of the pots: ENTRY_KEY, amount_minor (the sum posted, < 0 charged).
        refunded: per key of the pots: ENTRY_KEY, amount_minor posted by refunds.
        refunds: accepted ones of the pots: match_id, pot_party_id.

    Returns:
        POT_KEY, left_minor, refunds; of a pot with charges in two currencies, the one that is still charged.
    """
    both = [np.concatenate([accruals[name].to_numpy(object), refunded[name].to_numpy(object)]) for name in POT_KEY]
    pot, first = key_codes(both)
    posted, back = accruals["amount_minor"].to_numpy(np.int64), refunded["amount_minor"].to_numpy(np.int64)
    left = np.zeros(len(first), np.int64)
    np.add.at(left, pot, np.concatenate([np.maximum(-posted, 0), -np.maximum(back, 0)]))
    paid = (posted < 0) | (accruals["recipient"].to_numpy(object) == "payer")
    payers = np.unique(pot[: len(accruals)][paid])
    payers = payers[np.argsort(-left[payers], kind="stable")]
    found: pd.DataFrame = accruals.iloc[first[payers]][POT_KEY].assign(left_minor=left[payers])
    found = found.drop_duplicates(POT_KEY[:2], ignore_index=True)
    of_pot = rows_of(refunds, found, POT_KEY[:2])
    return found.assign(refunds=np.bincount(of_pot[of_pot >= 0], minlength=len(found)))


def _or_zero(amounts: pd.Series) -> npt.NDArray[np.int64]:
    return amounts.to_numpy(np.int64, na_value=0) if amounts.hasnans else amounts.to_numpy(np.int64)


@dataclass(frozen=True)
class RefundPlan:
    """What brings the posted refunds of some pots to what they should be; empty where they are.

    Attributes:
        journals: journal_id, refund_id, match_id, posting_no (of the match), day (that of acceptance, or the match's
            where that is later).
        entries: columns of `ledger_entries`; per journal and currency debits equal credits.
        applied: refund_id, applied_minor: what of each refund applies now, of every refund given.
    """

    journals: pd.DataFrame
    entries: pd.DataFrame
    applied: pd.DataFrame


def plan_refunds(
    accruals: pd.DataFrame, refunds: pd.DataFrame, posted: pd.DataFrame, postings: pd.DataFrame
) -> RefundPlan:
    """Work out what posts the refunds of pots anew, after a correction of their accruals or the acceptance of one more.

    A refund applies as far as its pot, less the refunds accepted before it, still charges its payer. It is taken from
    the lines that hold something by what each still holds, and given to the charged ones by what each still charges.

    Args:
        accruals: per key of the pots as they will stand: ENTRY_KEY, recipient, schedule_version, amount_minor
            (> 0 a credit).
        refunds: all accepted refunds of these pots: refund_id, POT_KEY, pot_no (order of acceptance), amount_minor,
            accepted_day.
        posted: per refund and key what is posted: LINE_KEY, recipient, schedule_version, amount_minor, posting_no (how
            many postings).
        postings: match_id, posting_no and match_day: the newest of each match.

    Returns:
        The difference to what is posted.

    Raises:
        InvariantError: an entry set does not balance; nothing may be posted.

    Source: Hamilton's method, as for pots; docs/concepts/refunds.md.
    """
    lines = accruals[accruals["amount_minor"] != 0].assign(pays=lambda frame: frame["amount_minor"] < 0)
    lines = lines.sort_values([*POT_KEY, "pays", "line_no", "account"], ignore_index=True)
    ordered = refunds.sort_values([*POT_KEY, "pot_no"], ignore_index=True)
    places = ordered[POT_KEY].drop_duplicates(ignore_index=True).reset_index(names="pot_at")
    pot = ordered.merge(places, on=POT_KEY, how="left")["pot_at"].to_numpy(np.int64)
    lines = lines.merge(places, on=POT_KEY, how="inner").sort_values(
        ["pot_at", "pays"], kind="stable", ignore_index=True
    )
    # Each pot is two to be divided: what its lines hold (even), what its payer is charged (odd).
    side = lines["pot_at"].to_numpy(np.int64) * 2 + lines["pays"].to_numpy(np.int64)
    holds = np.abs(lines["amount_minor"].to_numpy(np.int64))
    left = np.zeros(2 * len(places), np.int64)
    np.add.at(left, side, holds)
    if (left[0::2] != left[1::2]).any():
        bad = places.iloc[int(np.flatnonzero(left[0::2] != left[1::2])[0])]
        raise InvariantError(
            f"match {bad['match_id']}: what the fee of {bad['pot_party_id']} charges is not what its lines hold. "
            "Nothing was posted. Run `payments-pipeline verify`."
        )
    turn_of = turns(pot)
    fixed = ordered["amount_minor"].to_numpy(np.int64)
    applied = np.zeros(len(ordered), np.int64)
    parts = []
    for turn in range(turn_of.max(initial=-1) + 1):
        rows = np.flatnonzero(turn_of == turn)
        pots = pot[rows]
        applied[rows] = np.minimum(fixed[rows], left[pots * 2])
        left[pots * 2] -= applied[rows]
        refund_of = np.full(len(places), -1, np.int64)
        refund_of[pots] = rows
        mine = np.flatnonzero((refund_of[side // 2] >= 0) & (holds > 0))
        taken = _divided(applied[refund_of], side[mine], holds[mine], refund_of)
        holds[mine] -= taken
        part = lines.loc[mine, [*ENTRY_KEY, "recipient", "schedule_version"]]
        signed = np.where(lines["pays"].to_numpy(bool)[mine], taken, -taken)
        parts.append(
            part.assign(
                refund_id=ordered["refund_id"].to_numpy(object)[refund_of[side[mine] // 2]], amount_minor=signed
            )
        )
    return RefundPlan(
        *_entries(_difference(parts, posted), refunds, postings),
        applied=pd.DataFrame({"refund_id": ordered["refund_id"], "applied_minor": applied}),
    )


def accruals_after(posted: pd.DataFrame, entries: pd.DataFrame) -> pd.DataFrame:
    """Give the accruals of match fees per key once entries are posted on top of what is.

    Args:
        posted: ENTRY_KEY, recipient, schedule_version, amount_minor.
        entries: columns of `ledger_entries`, accruals alone.
    """
    names = [*ENTRY_KEY, "recipient", "schedule_version", "amount_minor"]
    added = entries.assign(amount_minor=entries["credit_minor"] - entries["debit_minor"])
    both = pd.concat([frame.loc[frame["pot"] == POT, names] for frame in (posted, added)], ignore_index=True)
    groups = both.groupby(ENTRY_KEY, sort=False)
    newest = groups[["recipient", "schedule_version"]].last()
    return newest.assign(amount_minor=groups["amount_minor"].sum()).reset_index()


def _divided(amounts: np.ndarray, side: np.ndarray, holds: np.ndarray, refund_of: np.ndarray) -> np.ndarray:
    """Divide one refund of each pot over the lines of both its sides by what each holds."""
    of_side = np.where(np.repeat(refund_of, 2) >= 0, np.repeat(amounts, 2), 0)
    each = np.ones(len(side), np.int64)
    claims = Claims(
        pot=side,
        method=each * REMAINDER,
        line_no=np.arange(len(side), dtype=np.int64),
        value=holds,
        cap_minor=each * NO_CAP,
        sharers=each,
    )
    given, _ = divide(of_side, claims)
    return given


def _difference(parts: list[pd.DataFrame], posted: pd.DataFrame) -> pd.DataFrame:
    names = [*LINE_KEY, "recipient", "schedule_version", "amount_minor"]
    target = pd.concat([part[names] for part in parts], ignore_index=True) if parts else posted.iloc[:0][names]
    merged = target.merge(posted, on=LINE_KEY, how="outer", suffixes=("", "_posted"), sort=False)
    for column in ("recipient", "schedule_version"):
        merged[column] = merged[column].where(merged[column].notna(), merged[f"{column}_posted"])
    now, before, count = (
        merged[name].astype("Int64").fillna(0).astype("int64")
        for name in ("amount_minor", "amount_minor_posted", "posting_no")
    )
    merged = merged.assign(amount_minor=now - before, posting_no=count + 1)
    differs = merged.loc[merged["amount_minor"] != 0, [*names, "posting_no"]]
    return differs.sort_values(LINE_KEY, ignore_index=True)


def _entries(deltas: pd.DataFrame, refunds: pd.DataFrame, postings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    journals = deltas[["refund_id", "match_id"]].drop_duplicates(ignore_index=True).merge(postings, on="match_id")
    journals = journals.merge(refunds[["refund_id", "accepted_day"]], on="refund_id")
    journals["day"] = journals[["accepted_day", "match_day"]].max(axis=1)
    journals = journals.drop(columns=["accepted_day", "match_day"])
    journals["journal_id"] = business_ids("refund", journals["refund_id"], journals["posting_no"])
    of_journal = deltas[["refund_id"]].merge(journals, on="refund_id", how="left")
    amount, account = deltas["amount_minor"], deltas["account"].astype(object)
    entries = pd.DataFrame(
        {
            "entry_id": business_ids("refund_entry", *(deltas[column] for column in [*LINE_KEY, "posting_no"])),
            "journal_id": of_journal["journal_id"].to_numpy(object),
            "kind": "refund",
            "day": of_journal["day"].to_numpy(object),
            "account": account.to_numpy(object),
            "party_id": party_of(account) if len(account) else account.to_numpy(object),
            "currency": deltas["currency"].to_numpy(object),
            "debit_minor": (-amount).clip(lower=0).to_numpy("int64"),
            "credit_minor": amount.clip(lower=0).to_numpy("int64"),
            "is_item": account.astype(str).str.startswith("party:").to_numpy(dtype=bool),
            **{
                column: deltas[column].to_numpy(object)
                for column in ("match_id", "pot", "pot_party_id", "recipient", "schedule_version", "refund_id")
            },
            "line_no": deltas["line_no"].to_numpy("int64"),
            "posting_no": deltas["posting_no"].to_numpy("int64"),
        }
    )
    check_balanced(entries)
    return journals, entries
