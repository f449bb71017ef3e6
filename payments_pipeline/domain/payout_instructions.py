"""Sweeping: open items netted into one instruction per party and currency.

Belongs here: amounts, reasons to wait, ids and digests. Does not belong here: which items are open (the store reads
them once, and amounts come from exactly those rows), what happens to an instruction later.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from payments_pipeline.domain.errors import AllocationOverflowError
from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.keys import key_codes
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.policy import Policy


class WaitReason(StrEnum):
    """Why items stay open; for a party and currency the first that applies."""

    DAY_NOT_SWEPT = "day_not_swept"
    POSTING_BREAK = "posting_break"
    CORRECTION_UNDER_WAY = "correction_under_way"
    NETS_LATER = "nets_later"
    NOT_COLLECTED = "not_collected"
    COLLECTION_NOT_SETTLED = "collection_not_settled"
    PARTY_UNKNOWN = "party_unknown"
    PARTY_CLOSED = "party_closed"
    PARTY_ON_HOLD = "party_on_hold"
    NO_PAYOUT_TOKEN = "no_payout_token"  # noqa: S105 - a reason, not a secret
    NO_COLLECTION_TOKEN = "no_collection_token"  # noqa: S105 - a reason, not a secret
    FAILURES_IN_A_ROW = "failures_in_a_row"
    BELOW_MINIMUM = "below_minimum"


WAIT_WORDS = {
    WaitReason.DAY_NOT_SWEPT: (
        "a day of theirs was posted, and its run did not get to its sweep: run it again; status names it, days_to_run"
    ),
    WaitReason.POSTING_BREAK: "their match has a break: mend its input and run its day again",
    WaitReason.CORRECTION_UNDER_WAY: "what they correct is about to be sent: the next sweep nets the two",
    WaitReason.NETS_LATER: "what they are to be netted with is free to later days only, or waits itself",
    WaitReason.NOT_COLLECTED: "the competition pays when the payer has paid, and the payer has not",
    WaitReason.COLLECTION_NOT_SETTLED: "what is given back is being collected still: it is paid once that is settled",
    WaitReason.PARTY_UNKNOWN: "the party is not in the reference data: add it",
    WaitReason.PARTY_CLOSED: "the party is closed",
    WaitReason.PARTY_ON_HOLD: "the party is on hold: lift the hold in the reference data",
    WaitReason.NO_PAYOUT_TOKEN: "the party has no payout_token: add one",
    WaitReason.NO_COLLECTION_TOKEN: "the party has no collection_token: they wait until what it is owed covers them",
    WaitReason.FAILURES_IN_A_ROW: "its last instructions failed in a row: give it a new token, or accept a retry",
    WaitReason.BELOW_MINIMUM: "the net is below the currency's minimum: it is carried forward",
}


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep writes.

    Attributes:
        instructions: instruction_id, party_id, currency, direction (credit, debit, none), amount_minor, token,
            token_changed_by, digest, state (netted, held or approved) and reason.
        claims: item_id, claim_no, instruction_id.
        deferrals: party_id, currency, reason, items, amount_minor (> 0 owed to the party).
    """

    instructions: pd.DataFrame
    claims: pd.DataFrame
    deferrals: pd.DataFrame


def instruction_digest(
    *, party_id: str, token: str | None, currency: str, direction: str, amount_minor: int, claims: str
) -> str:
    """Give what an approval is bound to: party, token, currency, amount and items.

    Args:
        party_id: party.
        token: the processor's token of its account; None where nothing is sent.
        currency: ISO 4217.
        direction: credit, debit or none.
        amount_minor: minor units of currency.
        claims: sorted `item_id:claim_no`, joined by newlines.
    """
    content = json.dumps([party_id, token, currency, direction, amount_minor, claims], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def plan_sweep(
    sweep_day: date, items: pd.DataFrame, parties: pd.DataFrame, failing: pd.DataFrame, policy: Policy
) -> SweepPlan:
    """Net open items into instructions.

    Args:
        sweep_day: day of the sweep.
        items: item_id, claim_no, party_id, currency, amount_minor (int64, > 0 owed to the party), wait (a reason of the
            item's own, or None), later_minor (Int64: of a party and currency with items of no match, what of its open
            items is not among these because it is free to later days only; null of the others).
        parties: party_id, status, payout_token, collection_token, token_changed_by as of now.
        failing: party_id, currency, token of parties whose last instructions all failed with that token.
        policy: minimums and limits.

    Returns:
        The plan. Every item is either claimed by one instruction or counted in one deferral.

    Source: docs/concepts/sweeping.md.
    """
    if items.empty:
        return _NOTHING
    items = _with_their_party(items)
    has_wait = items["wait"].notna().to_numpy()
    free = _in_order(items[~has_wait])
    nets, of_item = _nets(free, parties, failing, policy)
    reasons = nets["reason"].to_numpy(object)[of_item]
    is_claimed = reasons == ""
    instructions, claims = _instructions(sweep_day, free, of_item, is_claimed, nets, policy)
    if is_claimed.all() and not has_wait.any():
        return SweepPlan(instructions=instructions, claims=claims, deferrals=_NOTHING.deferrals)
    held_back = pd.concat(
        [items[has_wait].rename(columns={"wait": "reason"}), free.assign(reason=reasons)[~is_claimed]],
        ignore_index=True,
    )
    amounts = held_back.groupby(["party_id", "currency", "reason"], sort=True)["amount_minor"]
    deferrals = pd.DataFrame({"items": amounts.size(), "amount_minor": amounts.sum()}).reset_index()
    assert len(claims) + int(deferrals["items"].sum()) == len(items), "an item was neither claimed nor deferred"
    return SweepPlan(instructions=instructions, claims=claims, deferrals=deferrals)


def _in_order(items: pd.DataFrame) -> pd.DataFrame:
    """Order items by party, currency and id: text is compared by its bytes."""
    keys = ["party_id", "currency", "item_id"]
    order = pc.sort_indices(
        pa.table({name: pa.array(items[name], pa.large_string()) for name in keys}),
        [(name, "ascending") for name in keys],
    )
    return items.take(order.to_numpy()).reset_index(drop=True)


def _with_their_party(items: pd.DataFrame) -> pd.DataFrame:
    """Let all items of a party and currency wait where others wait that they are to be netted with.

    What is of a day whose run did not get to its sweep may correct the others. What is of no match makes up for others,
    or they for it: where what is free and what waits have opposite signs, what is free would move what nobody owes. A
    debt would be collected that was written off, or the write-off paid out.
    """
    has_wait = items["wait"].notna().to_numpy()
    is_loose = items["later_minor"].notna().to_numpy()
    is_unswept = items["wait"].eq(WaitReason.DAY_NOT_SWEPT).to_numpy()
    if not is_unswept.any() and not is_loose.any():
        return items
    of_row, _ = key_codes([items[name].to_numpy(object) for name in ("party_id", "currency")])
    amount = items["amount_minor"].to_numpy("int64")
    free, waiting = (np.zeros(of_row.max() + 1, object) for _ in range(2))
    np.add.at(free, of_row[~has_wait], amount[~has_wait].astype(object))
    np.add.at(waiting, of_row[has_wait], amount[has_wait].astype(object))
    later = np.zeros(len(free), object)
    later[of_row[is_loose]] = items["later_minor"].to_numpy(object)[is_loose]
    held = waiting + later
    holds_up = np.zeros((2, len(free)), bool)
    holds_up[0, of_row[is_unswept]] = True
    holds_up[1, of_row[is_loose]] = ((free > 0) & (held < 0) | (free < 0) & (held > 0))[of_row[is_loose]]
    wait = items["wait"].to_numpy(object).copy()
    for reason, held_up in zip((WaitReason.NETS_LATER, WaitReason.DAY_NOT_SWEPT), holds_up[::-1], strict=True):
        wait[~has_wait & held_up[of_row]] = str(reason)
    return items.assign(wait=wait)


def no_longer_payable(unsent: pd.DataFrame, parties: pd.DataFrame) -> pd.Series:
    """Say why instructions that have not been sent are for nobody who can be paid or collected from now.

    Args:
        unsent: party_id, direction, token.
        parties: party_id, status, payout_token, collection_token as of now.

    Returns:
        Why, in words; empty where the party may be paid, or collected from, with the same token still.
    """
    now = unsent[["party_id"]].merge(parties, on="party_id", how="left", indicator=True)
    token = np.where(unsent["direction"] == "credit", now["payout_token"], now["collection_token"])
    conditions = {
        "the party is not in the reference data": now["_merge"].ne("both").to_numpy(),
        "the party is not active": now["status"].ne("active").to_numpy(),
        "the party's token changed": unsent["token"].to_numpy(object) != token,
    }
    return pd.Series(np.select(list(conditions.values()), [*conditions], ""), unsent.index, dtype=object)


#: Of a sweep that finds no item.
_NOTHING = SweepPlan(
    instructions=pd.DataFrame(
        {
            name: pd.Series([], dtype="int64" if name == "amount_minor" else object)
            for name in (
                "party_id",
                "currency",
                "direction",
                "amount_minor",
                "token",
                "token_changed_by",
                "instruction_id",
                "digest",
                "state",
                "reason",
            )
        }
    ),
    claims=pd.DataFrame(columns=["item_id", "claim_no", "instruction_id"], dtype=object),
    deferrals=pd.DataFrame(columns=["party_id", "currency", "reason", "items", "amount_minor"], dtype=object),
)


def _per_currency(currencies: pd.Series, policy: Policy, limit: str) -> pd.Series:
    amounts = {currency: getattr(policy.of(currency), limit) for currency in currencies.unique()}
    return currencies.map(amounts).astype("int64")


def _nets(
    free: pd.DataFrame, parties: pd.DataFrame, failing: pd.DataFrame, policy: Policy
) -> tuple[pd.DataFrame, np.ndarray]:
    """Net items that are in order of party and currency, each net a run of rows; give the nets, and each item's."""
    party, currency = free["party_id"].to_numpy(object), free["currency"].to_numpy(object)
    begins = np.ones(len(free), dtype=bool)
    begins[1:] = (party[1:] != party[:-1]) | (currency[1:] != currency[:-1])
    starts = np.flatnonzero(begins)
    amounts = free["amount_minor"].to_numpy("int64")
    net = np.add.reduceat(amounts, starts) if len(starts) else np.empty(0, "int64")
    # A sum of halves that would not fit is one that wrapped.
    wide = np.abs(np.add.reduceat(amounts >> 31, starts)) >= 2**31 if len(starts) else np.empty(0, bool)
    if wide.any():
        raise AllocationOverflowError(
            f"the items of {party[starts][wide][0]} in {currency[starts][wide][0]} come to more than 62 bits hold. "
            "Nothing was swept. Correct the matches that owe so much."
        )
    nets = pd.DataFrame({"party_id": party[starts], "currency": currency[starts], "amount_minor": net})
    place = pd.Index(parties["party_id"].to_numpy(object)).get_indexer(pd.Index(party[starts], dtype=object))

    def known(column: str) -> np.ndarray:
        # Place -1, of a party that is not known, is that of the null appended.
        return np.append(parties[column].to_numpy(object), np.array([None], dtype=object))[place]

    status, payout_token, collection_token, changed_by = map(
        known, ("status", "payout_token", "collection_token", "token_changed_by")
    )
    pays, collects = net > 0, net < 0
    # Null where nothing is sent, as it is stored: pandas would put NaN, and the digest would be over that.
    nets["token"] = np.select([pays, collects], [payout_token, collection_token], np.array(None, dtype=object))
    nets["token_changed_by"] = np.where(pays | collects, changed_by, np.array(None, dtype=object))
    has_failed = np.zeros(len(nets), dtype=bool)
    if len(failing):
        same = nets.merge(failing.assign(failing=True), on=["party_id", "currency", "token"], how="left")["failing"]
        has_failed = same.notna().to_numpy()
    minimum = _per_currency(nets["currency"], policy, "minimum_minor").to_numpy()
    conditions = [
        # What nets to zero moves nothing, whoever the party is.
        (WaitReason.PARTY_UNKNOWN, (pays | collects) & (place < 0)),
        (WaitReason.PARTY_CLOSED, (pays | collects) & (status == "closed")),
        (WaitReason.PARTY_ON_HOLD, (pays | collects) & (status != "active")),
        (WaitReason.NO_PAYOUT_TOKEN, pays & pd.isna(payout_token)),
        (WaitReason.NO_COLLECTION_TOKEN, collects & pd.isna(collection_token)),
        (WaitReason.FAILURES_IN_A_ROW, (pays | collects) & has_failed),
        (WaitReason.BELOW_MINIMUM, (pays | collects) & (np.abs(net) < minimum)),
    ]
    nets["reason"] = np.select(
        [condition.astype(bool) for _, condition in conditions], [str(reason) for reason, _ in conditions], ""
    ).astype(object)
    return nets, np.cumsum(begins) - 1


def _instructions(
    sweep_day: date,
    free: pd.DataFrame,
    of_item: np.ndarray,
    is_claimed: np.ndarray,
    nets: pd.DataFrame,
    policy: Policy,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    of_net = nets["reason"].eq("").to_numpy()
    party_id, currency, token, changed_by = (
        nets[name].to_numpy(object)[of_net] for name in ("party_id", "currency", "token", "token_changed_by")
    )
    net = nets["amount_minor"].to_numpy("int64")[of_net]
    direction = np.select([net > 0, net < 0], ["credit", "debit"], "none").astype(object)
    amount_minor = np.abs(net)
    claims = free.loc[is_claimed, ["item_id", "claim_no"]].reset_index(drop=True)
    # Of each claim the place of its instruction; they are one run of rows, in order of item.
    place = (np.cumsum(of_net) - 1)[of_item[is_claimed]]
    labels = (claims["item_id"].astype(str) + ":" + claims["claim_no"].astype(str)).to_numpy(object)
    ends = np.cumsum(np.bincount(place, minlength=len(net)))
    texts = ["\n".join(labels[end - size : end]) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]
    instruction_id = business_ids(
        "instruction",
        [sweep_day.isoformat()] * len(net),
        party_id,
        currency,
        [hashlib.sha256(text.encode()).hexdigest() for text in texts],
    )
    digests = [
        instruction_digest(party_id=p, token=t, currency=c, direction=d, amount_minor=a, claims=text)
        for p, t, c, d, a, text in zip(party_id, token, currency, direction, amount_minor.tolist(), texts, strict=True)
    ]
    over = amount_minor > _per_currency(pd.Series(currency, dtype=object), policy, "instruction_limit_minor").to_numpy()
    none = net == 0
    instructions = pd.DataFrame(
        {
            "party_id": party_id,
            "currency": currency,
            "direction": direction,
            "amount_minor": amount_minor,
            "token": token,
            "token_changed_by": changed_by,
            "instruction_id": instruction_id,
            "digest": np.array(digests, dtype=object),
            "state": np.select([none, over], [State.NETTED, State.HELD], State.APPROVED).astype(object),
            "reason": np.select(
                [none, over],
                ["items net to zero", f"over the instruction limit of policy {policy.version}"],
                f"within the limits of policy {policy.version}",
            ).astype(object),
        }
    )
    claims["instruction_id"] = np.asarray(instruction_id, dtype=object)[place]
    return instructions, claims
