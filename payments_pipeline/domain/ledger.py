"""Posting: the difference between what a day's shares say and what has already been posted for them.

Belongs here: which matches may be posted, the entries that post them, and why the others are left alone. Does not
belong here: locks, tables, how shares are computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.errors import AllocationOverflowError, InvariantError
from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.keys import key_codes
from payments_pipeline.domain.money import MOST_A_DAY, exact_sum
from payments_pipeline.domain.proposals import RuleChange, rule_changes

#: A share's key: what a posting is the n-th of. The account stands for the party.
ENTRY_KEY = ["match_id", "pot", "pot_party_id", "line_no", "account", "currency"]
#: `recipient` of the line that debits the pot itself.
POT_RECIPIENT = "pot"
SUSPENSE = "suspense"
#: Before a party in the name of its account.
_PARTY = "party:"


class BreakReason(StrEnum):
    """Why a match was left alone; the first that applies."""

    POSTED_UNDER_ANOTHER_DAY = "posted_under_another_day"
    OLDER_REVISION = "older_revision"
    SAME_REVISION_OTHER_CONTENT = "same_revision_other_content"
    REVENUE_MISSING = "revenue_missing"
    PARTICIPANT_MISSING = "participant_missing"
    CURRENCY_CHANGED = "currency_changed"
    RULES_CHANGED = "rules_changed"
    ABSENT = "absent"
    REJECTED = "rejected"


WORDS = {
    BreakReason.POSTED_UNDER_ANOTHER_DAY: (
        "is posted under {posted_day}. To move it, give {posted_day} a newer revision that owes nothing "
        "(postponed, cancelled or void, revenue 0), run {posted_day}, then this day."
    ),
    BreakReason.OLDER_REVISION: (
        "comes as revision {revision}, and revision {posted_revision} is posted. Deliver the newer revision again."
    ),
    BreakReason.SAME_REVISION_OTHER_CONTENT: (
        "comes with other content under the revision {revision} that is posted. Deliver the change as a newer revision."
    ),
    BreakReason.REVENUE_MISSING: (
        "has no revenue_minor now, and had when it was posted. Deliver the revenue, or 0 where there is none."
    ),
    BreakReason.PARTICIPANT_MISSING: (
        "lacks {missing}, posted earlier. Deliver the participant again, or a newer revision of the match without."
    ),
    BreakReason.CURRENCY_CHANGED: (
        "is in {currency} now, and {competition_id} was posted in {posted_currency}. A competition's currency never "
        "changes: restore it, and start a new competition."
    ),
    BreakReason.RULES_CHANGED: (
        "was posted under other rules of {competition_id}. The difference is proposed, and waits until an "
        "approver accepts it: `payments-pipeline status` shows the proposal."
    ),
    BreakReason.ABSENT: (
        "is posted and not in the landing zone now. Deliver it again, or a newer revision that says what became of it."
    ),
    BreakReason.REJECTED: (
        "is posted and its input is rejected now ({why}). Mend the input; rejected_records has the rows."
    ),
}

#: Of rules that changed and whose effect an approver refused.
REFUSED_RULES_WORDS = (
    "was posted under other rules of {competition_id}, and the difference was refused: it stays as it was posted, its "
    "unsent items wait, and the same is not proposed again. Restore the rules, or change them otherwise."
)


@dataclass(frozen=True)
class PostingPlan:
    """What a posting writes; all frames empty where there is nothing to say.

    Attributes:
        matches: one row per match whose posted state changes; columns of `match_postings` but day and sequence.
        journals: journal_id, match_id, posting_no.
        entries: columns of `ledger_entries`; per journal and currency debits equal credits.
        breaks: match_id, reason, words.
        rule_changes: what changed rules would do to matches that wait for a person: one a competition; without those
            that were refused.
        changed_policies: by competition of those, when its posted matches would be paid out and are now, in words; left
            out where that does not change.
    """

    matches: pd.DataFrame
    journals: pd.DataFrame
    entries: pd.DataFrame
    breaks: pd.DataFrame
    rule_changes: tuple[RuleChange, ...] = ()
    changed_policies: Mapping[str, str] = field(default_factory=dict)


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object)


def share_entries(shares: pd.DataFrame) -> pd.DataFrame:
    """Give the ledger lines that shares stand for, one per key.

    Args:
        shares: frame of `schemas.PARTICIPANT_SHARES`.

    Returns:
        ENTRY_KEY, recipient, schedule_version, amount_minor: int64, > 0 a credit, < 0 a debit; each match sums to 0.
    """
    party = shares["party_id"].astype("category")
    lines = pd.DataFrame(
        {
            "match_id": _text(shares["match_id"]),
            "pot": _text(shares["pot"]),
            "pot_party_id": _text(shares["pot_party_id"]),
            "line_no": shares["line_no"].astype("int64"),
            "account": np.where(
                shares["line_no"] == 0,
                SUSPENSE,
                # Each account is made once, however many lines it has.
                (_PARTY + party.cat.categories.astype(object)).to_numpy(object)[party.cat.codes.to_numpy()],
            ),
            "currency": _text(shares["currency"]),
            "recipient": _text(shares["recipient"]),
            "schedule_version": _text(shares["schedule_version"]),
            "amount_minor": shares["amount_minor"].astype("int64"),
        }
    )
    revenue = lines["pot"] == "revenue"
    pots = (
        lines[revenue]
        .assign(account="pot:" + _text(shares["competition_id"])[revenue], line_no=0, recipient=POT_RECIPIENT)
        .groupby([*ENTRY_KEY, "recipient", "schedule_version"], sort=False, observed=True, as_index=False)[
            "amount_minor"
        ]
        .sum()
    )
    pots["amount_minor"] = -pots["amount_minor"]
    return pd.concat([lines, pots[lines.columns]], ignore_index=True)


def participant_keys(participants: pd.DataFrame) -> pd.Series:
    """Give each match's participants as sorted canonical JSON, `[[party_id, club_id, role], …]`, by match_id."""
    if participants.empty:
        return pd.Series([], index=pd.Index([], name="match_id", dtype=object), dtype=object)
    frame = participants[["match_id", "party_id", "club_id", "role"]].astype(object)
    frame = frame.where(frame.notna(), "").sort_values(["match_id", "party_id"])
    match_id = frame["match_id"].to_numpy(object)
    starts = np.flatnonzero(np.r_[True, match_id[1:] != match_id[:-1]])
    quoted = [pa.array(frame[name], pa.large_string()).dictionary_encode() for name in ("party_id", "club_id", "role")]
    triples = _bracketed(pc.binary_join_element_wise(*map(_as_json, quoted), _large(",")))
    offsets = pa.array(np.append(starts, len(frame)), pa.int64())
    texts = _bracketed(pc.binary_join(pa.LargeListArray.from_arrays(offsets, triples), _large(",")))
    return pd.Series(
        texts.to_numpy(zero_copy_only=False), index=pd.Index(match_id[starts], name="match_id"), dtype=object
    )


def _as_json(column: pa.DictionaryArray) -> pa.LargeStringArray:
    """Write text as JSON does, each distinct value once."""
    texts = [json.dumps(text, ensure_ascii=False) for text in column.dictionary.to_pylist()]
    return pa.array(texts, pa.large_string()).take(column.indices)


def _bracketed(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    return pc.binary_join_element_wise(_large("["), texts, _large("]"), _large(""))


def _large(text: str) -> pa.LargeStringScalar:
    return pa.scalar(text, pa.large_string())


def _missing_participants(posted: str, current: str) -> list[str]:
    now = {tuple(triple) for triple in json.loads(current)}
    return [triple[0] for triple in json.loads(posted) if tuple(triple) not in now]


def plan_posting(
    day: date,
    matches: pd.DataFrame,
    participants: pd.DataFrame,
    shares: pd.DataFrame,
    rejected: pd.DataFrame,
    posted_matches: pd.DataFrame,
    posted_entries: pd.DataFrame,
    accepted_rules: Collection[RuleChange] = (),
    refused_rules: Collection[RuleChange] = (),
    posted_currencies: Mapping[str, Collection[str]] = MappingProxyType({}),
    refund_effect: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> PostingPlan:
    """Work out what a day's posting writes.

    Args:
        day: the match day.
        matches: frame of `schemas.MATCH_RESULTS`, of this day.
        participants: frame of `schemas.MATCH_PARTICIPANTS`.
        shares: frame of `schemas.PARTICIPANT_SHARES`, computed from the two.
        rejected: match_id and reason of the day's rejected match rows.
        posted_matches: newest `match_postings` row of every match in `matches` and of every match held by this day.
        posted_entries: per key of those matches: ENTRY_KEY, recipient, schedule_version, amount_minor (the sum
            posted, > 0 a credit) and posting_no (how many postings).
        accepted_rules: changes of rules that an approver accepted; one that would be proposed again, word for word, is
            posted.
        refused_rules: those that an approver refused; one that would be proposed again, word for word, is not.
        posted_currencies: by competition, every currency that anything of it was posted in.
        refund_effect: gives match_id, account, currency, amount_minor of what posting entries (columns of
            `ledger_entries`) would post of refunds besides; None where no refund was accepted of these matches.

    Returns:
        The plan; empty where the day says what is posted already.

    Raises:
        InvariantError: an entry set does not balance; nothing may be posted.
        AllocationOverflowError: the day comes to more than is posted of a day; names the currency.

    Source: docs/concepts/posting.md.
    """
    if matches.empty and posted_matches.empty:
        return _NOTHING
    current = share_entries(shares)
    keys_now = participant_keys(participants)
    state = _text_frame(matches, MATCH_STATE).merge(
        posted_matches.add_prefix("posted_").rename(columns={"posted_match_id": "match_id"}), on="match_id", how="left"
    )
    state["participants"] = state["match_id"].map(keys_now).fillna("[]")
    deltas = _deltas(current, posted_entries)
    differs = state["match_id"].isin(deltas["match_id"].unique())
    has_shares = state["match_id"].isin(current["match_id"].unique())
    state["posting_no"] = state["posted_posting_no"].fillna(0).astype("int64") + 1
    state["other_currency"] = _other_currencies(state, posted_currencies)
    reasons, details = _break_reasons(day, state, differs)
    waiting = state[reasons.eq(BreakReason.RULES_CHANGED)]
    changes = rule_changes(day, waiting, _effects(day, deltas, waiting, refund_effect))
    accepted = [match[0] for change in changes if change in accepted_rules for match in change.matches]
    reasons = reasons.mask(state["match_id"].isin(accepted), "")
    refused = [match[0] for change in changes if change in refused_rules for match in change.matches]
    # What owes nothing here and is not news is where it was before it moved.
    is_news = state["revision"].gt(state["posted_revision"].fillna(0))
    silent = reasons.eq(BreakReason.POSTED_UNDER_ANOTHER_DAY) & ~has_shares & ~is_news
    postable = state[reasons.eq("")]
    breaks = [_break_rows(state, reasons.where(~silent, ""), details, refused)]
    breaks.append(_absent(day, state, rejected, posted_matches))

    deltas = deltas[deltas["match_id"].isin(postable["match_id"])]
    changed = postable[
        postable["posted_posting_no"].isna()
        | postable["match_id"].isin(deltas["match_id"].unique())
        | _state_differs(postable)
    ].copy()
    changed["is_open"] = changed["match_id"].isin(current["match_id"].unique())
    journals, entries = _entries(day, deltas, changed)
    _refuse_too_much(day, entries)
    return PostingPlan(
        matches=changed[["posting_no", "is_open", "participants", *MATCH_STATE]].reset_index(drop=True),
        journals=journals,
        entries=entries,
        breaks=pd.concat(breaks, ignore_index=True).sort_values("match_id", ignore_index=True),
        rule_changes=tuple(change for change in changes if change not in (*accepted_rules, *refused_rules)),
        changed_policies=_changed_policies(waiting),
    )


#: What of a match is kept with its posting.
MATCH_STATE = [
    "match_id",
    "competition_id",
    "revision",
    "content_hash",
    "rules_hash",
    "schedule_version",
    "currency",
    "payout_policy",
    "revenue_minor",
]


_ENTRY_COLUMNS = [
    "entry_id",
    "journal_id",
    "kind",
    "day",
    "account",
    "party_id",
    "currency",
    "debit_minor",
    "credit_minor",
    "is_item",
    "match_id",
    "pot",
    "pot_party_id",
    "line_no",
    "recipient",
    "schedule_version",
    "posting_no",
]
#: Of a day on which nothing was played and nothing is posted.
_NOTHING = PostingPlan(
    matches=pd.DataFrame(columns=["posting_no", "is_open", "participants", *MATCH_STATE], dtype=object),
    journals=pd.DataFrame(columns=["match_id", "posting_no", "journal_id"], dtype=object),
    entries=pd.DataFrame(columns=_ENTRY_COLUMNS, dtype=object),
    breaks=pd.DataFrame(columns=["match_id", "reason", "words"], dtype=object),
)


def _text_frame(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    picked = frame[columns].copy()
    for column in columns:
        if isinstance(picked[column].dtype, pd.CategoricalDtype):
            picked[column] = _text(picked[column])
    picked["revision"] = picked["revision"].astype("int64")
    picked["revenue_minor"] = picked["revenue_minor"].astype("Int64")
    return picked


def _deltas(current: pd.DataFrame, posted: pd.DataFrame) -> pd.DataFrame:
    if posted.empty:
        # Every day the first time, and the largest most of all.
        return current.loc[current["amount_minor"] != 0].assign(posting_no=1)
    merged = current.merge(posted, on=ENTRY_KEY, how="outer", suffixes=("", "_posted"), sort=False)
    for column in ("recipient", "schedule_version"):
        merged[column] = merged[column].where(merged[column].notna(), merged[f"{column}_posted"])
    now = merged["amount_minor"].astype("Int64").fillna(0).astype("int64")
    before = merged["amount_minor_posted"].astype("Int64").fillna(0).astype("int64")
    merged["amount_minor"] = now - before
    merged["posting_no"] = merged["posting_no"].astype("Int64").fillna(0).astype("int64") + 1
    return merged.loc[
        merged["amount_minor"] != 0, [*ENTRY_KEY, "recipient", "schedule_version", "amount_minor", "posting_no"]
    ]


def _state_differs(state: pd.DataFrame) -> pd.Series:
    differs = pd.Series(data=False, index=state.index)
    for column in ("revision", "content_hash", "rules_hash", "participants"):
        differs |= state[column].ne(state[f"posted_{column}"])
    return differs


def _other_currencies(state: pd.DataFrame, posted: Mapping[str, Collection[str]]) -> list[str]:
    """Give of each match a currency other than its own that it, or anything of its competition, was posted in."""
    held = state["posted_currency"].where(state["posted_is_open"].eq(True))  # noqa: FBT003 - null counts as not open
    rows = zip(state["competition_id"], state["currency"], held, strict=True)
    return [
        next(iter(sorted({*posted.get(competition_id, ()), *([own] if isinstance(own, str) else [])} - {currency})), "")
        for competition_id, currency, own in rows
    ]


def _other_policy(state: pd.DataFrame) -> pd.Series:
    """Say of each match whether it would be paid out at another time than it is posted for."""
    return state["posted_is_open"].eq(True) & state["payout_policy"].ne(state["posted_payout_policy"])  # noqa: FBT003


def _changed_policies(waiting: pd.DataFrame) -> dict[str, str]:
    changed = waiting[_other_policy(waiting)].drop_duplicates("competition_id")
    return {
        row["competition_id"]: f"paid out {row['payout_policy']}, and is posted as {row['posted_payout_policy']}"
        for row in changed.to_dict("records")
    }


def _effects(
    day: date, deltas: pd.DataFrame, waiting: pd.DataFrame, refund_effect: Callable[[pd.DataFrame], pd.DataFrame] | None
) -> pd.DataFrame:
    """Give what posting matches that wait would post: of their shares, and of what was refunded of them."""
    named = ["match_id", "account", "currency", "amount_minor"]
    mine = deltas[deltas["match_id"].isin(waiting["match_id"])]
    if refund_effect is None or mine.empty:
        return mine[named]
    _, entries = _entries(day, mine, waiting)
    return pd.concat([mine[named], refund_effect(entries)[named]], ignore_index=True)


def _break_reasons(day: date, state: pd.DataFrame, differs: pd.Series) -> tuple[pd.Series, dict[str, list[str]]]:
    """Give each match its break reason ("" where it may be posted) and the participants that are missing."""
    posted = state["posted_posting_no"].notna()
    is_open = state["posted_is_open"].eq(True)  # noqa: FBT003 - null counts as not open
    same_revision = posted & state["revision"].eq(state["posted_revision"])
    suspects = same_revision & state["participants"].ne(state["posted_participants"])
    missing = {
        match_id: gone
        for match_id, before, now in state.loc[
            suspects, ["match_id", "posted_participants", "participants"]
        ].itertuples(index=False, name=None)
        if (gone := _missing_participants(before, now))
    }
    conditions = [
        (BreakReason.POSTED_UNDER_ANOTHER_DAY, is_open & state["posted_match_day"].ne(day)),
        (BreakReason.OLDER_REVISION, posted & state["revision"].lt(state["posted_revision"].fillna(0))),
        (
            BreakReason.SAME_REVISION_OTHER_CONTENT,
            same_revision & state["content_hash"].ne(state["posted_content_hash"]),
        ),
        (BreakReason.REVENUE_MISSING, state["revenue_minor"].isna() & state["posted_revenue_minor"].notna()),
        (BreakReason.PARTICIPANT_MISSING, state["match_id"].isin(missing)),
        (BreakReason.CURRENCY_CHANGED, state["other_currency"].ne("")),
        (
            BreakReason.RULES_CHANGED,
            # One that nothing is posted of is asked about too, where nothing but the rules is new. Where no amount
            # changes there is nothing to ask, unless it would be paid out at another time.
            posted
            & (is_open | same_revision)
            & state["rules_hash"].ne(state["posted_rules_hash"])
            & (differs | _other_policy(state)),
        ),
    ]
    reasons = np.select(
        [condition.to_numpy(dtype=bool) for _, condition in conditions], [str(reason) for reason, _ in conditions], ""
    )
    return pd.Series(reasons, index=state.index, dtype=object), missing


def _break_rows(
    state: pd.DataFrame, reasons: pd.Series, missing: dict[str, list[str]], refused: Collection[str]
) -> pd.DataFrame:
    named = reasons[reasons.ne("")]
    broken = state.loc[named.index].assign(reason=named)
    words = [
        f"match {row['match_id']} "
        + (
            REFUSED_RULES_WORDS
            if row["reason"] == BreakReason.RULES_CHANGED and row["match_id"] in refused
            else WORDS[BreakReason(row["reason"])]
        ).format(
            posted_day=row["posted_match_day"],
            revision=row["revision"],
            posted_revision=row["posted_revision"],
            currency=row["currency"],
            posted_currency=row["other_currency"],
            competition_id=row["competition_id"],
            missing=", ".join(missing.get(row["match_id"], [])),
        )
        for row in broken.to_dict("records")
    ]
    return pd.DataFrame(
        {"match_id": broken["match_id"].to_numpy(object), "reason": broken["reason"].to_numpy(object), "words": words},
        dtype=object,
    )


def _absent(day: date, state: pd.DataFrame, rejected: pd.DataFrame, posted: pd.DataFrame) -> pd.DataFrame:
    held = posted["is_open"].astype(bool) & posted["match_day"].eq(day) & ~posted["match_id"].isin(state["match_id"])
    gone = posted.loc[held, "match_id"]
    why = rejected.drop_duplicates("match_id").set_index("match_id")["reason"]
    reasons = np.where(gone.isin(why.index), BreakReason.REJECTED, BreakReason.ABSENT)
    words = [
        f"match {match_id} " + WORDS[BreakReason(reason)].format(why=why.get(match_id, ""))
        for match_id, reason in zip(gone, reasons, strict=True)
    ]
    return pd.DataFrame({"match_id": gone.to_numpy(object), "reason": reasons, "words": words}, dtype=object)


def party_of(account: pd.Series) -> np.ndarray:
    """Give the parties of `party:` accounts, null for the others."""
    accounts = pa.array(account, pa.large_string())
    parties: np.ndarray = pc.if_else(
        pc.starts_with(accounts, _PARTY), pc.utf8_slice_codeunits(accounts, len(_PARTY)), None
    ).to_numpy(zero_copy_only=False)
    return parties


def _entries(day: date, deltas: pd.DataFrame, changed: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    journals = changed.loc[changed["match_id"].isin(deltas["match_id"].unique()), ["match_id", "posting_no"]].copy()
    journals["journal_id"] = business_ids("accrual", journals["match_id"], journals["posting_no"])
    amount = deltas["amount_minor"]
    account = deltas["account"].astype(object)
    party_id = party_of(account)
    entries = pd.DataFrame(
        {
            "entry_id": business_ids("accrual_entry", *(deltas[column] for column in [*ENTRY_KEY, "posting_no"])),
            "journal_id": deltas["match_id"].map(journals.set_index("match_id")["journal_id"]).to_numpy(object),
            "kind": "accrual",
            "day": day,
            "account": account.to_numpy(object),
            "party_id": party_id,
            "currency": deltas["currency"].to_numpy(object),
            "debit_minor": (-amount).clip(lower=0).to_numpy(),
            "credit_minor": amount.clip(lower=0).to_numpy(),
            "is_item": pd.notna(party_id),
            **{column: deltas[column].to_numpy(object) for column in ("match_id", "pot", "pot_party_id")},
            "line_no": deltas["line_no"].to_numpy("int64"),
            "recipient": deltas["recipient"].to_numpy(object),
            "schedule_version": deltas["schedule_version"].to_numpy(object),
            "posting_no": deltas["posting_no"].to_numpy("int64"),
        }
    )
    check_balanced(entries)
    return journals.reset_index(drop=True), entries


def _refuse_too_much(day: date, entries: pd.DataFrame) -> None:
    for currency in entries["currency"].unique():
        total = exact_sum(entries.loc[entries["currency"].eq(currency), "debit_minor"].to_numpy(np.int64))
        if total > MOST_A_DAY:
            raise AllocationOverflowError(
                f"{day}: {total} {currency} (minor units) would be posted, and {MOST_A_DAY} is the most of a day. "
                "Nothing was posted. Correct the revenues and fees that are too large."
            )


def check_balanced(entries: pd.DataFrame) -> None:
    """Refuse entries whose debits and credits differ within a journal and currency.

    Raises:
        InvariantError: names the journal, its currency and by how much; nothing was posted.
    """
    of_row, first = key_codes([entries[name].to_numpy(object) for name in ("journal_id", "currency")])
    debit, credit = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    np.add.at(debit, of_row, entries["debit_minor"].to_numpy(np.int64))
    np.add.at(credit, of_row, entries["credit_minor"].to_numpy(np.int64))
    for bad in np.flatnonzero(debit != credit):
        row = entries.iloc[first[bad]]
        raise InvariantError(
            f"journal {row['journal_id']} would not balance in {row['currency']}: debits {debit[bad]}, credits "
            f"{credit[bad]}. Nothing was posted. This is a defect of the program: report it."
        )
