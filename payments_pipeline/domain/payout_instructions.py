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

from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.policy import Policy


class WaitReason(StrEnum):
    """Why items stay open; for a party and currency the first that applies."""

    POSTING_BREAK = "posting_break"
    NOT_COLLECTED = "not_collected"
    PARTY_UNKNOWN = "party_unknown"
    PARTY_CLOSED = "party_closed"
    PARTY_ON_HOLD = "party_on_hold"
    NO_PAYOUT_TOKEN = "no_payout_token"  # noqa: S105 - a reason, not a secret
    NO_COLLECTION_TOKEN = "no_collection_token"  # noqa: S105 - a reason, not a secret
    FAILURES_IN_A_ROW = "failures_in_a_row"
    BELOW_MINIMUM = "below_minimum"


WAIT_WORDS = {
    WaitReason.POSTING_BREAK: "their match has a break: mend its input and run its day again",
    WaitReason.NOT_COLLECTED: "the competition pays when the payer has paid, and the payer has not",
    WaitReason.PARTY_UNKNOWN: "the party is not in the reference data: add it",
    WaitReason.PARTY_CLOSED: "the party is closed",
    WaitReason.PARTY_ON_HOLD: "the party is on hold: lift the hold in the reference data",
    WaitReason.NO_PAYOUT_TOKEN: "the party has no payout_token: add one",
    WaitReason.NO_COLLECTION_TOKEN: "the party has no collection_token: they wait until what it is owed covers them",
    WaitReason.FAILURES_IN_A_ROW: "the party's last instructions failed in a row: give it a new token",
    WaitReason.BELOW_MINIMUM: "the net is below the currency's minimum: it is carried forward",
}


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep writes.

    Attributes:
        instructions: instruction_id, party_id, currency, direction (credit, debit, none), amount_minor, token, digest,
            state (netted, held or approved) and reason.
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
            item's own, or None).
        parties: party_id, status, payout_token, collection_token as of now.
        failing: party_id, currency, token of parties whose last instructions all failed with that token.
        policy: minimums and limits.

    Returns:
        The plan. Every item is either claimed by one instruction or counted in one deferral.

    Source: docs/concepts/sweeping.md.
    """
    if items.empty:
        return _NOTHING
    waiting = items[items["wait"].notna()].rename(columns={"wait": "reason"})
    free = items[items["wait"].isna()].sort_values(["party_id", "currency", "item_id"], ignore_index=True)
    nets = _nets(free, parties, failing, policy)
    group = free.merge(nets[["party_id", "currency", "reason"]], on=["party_id", "currency"], how="left", sort=False)
    claimed = free[group["reason"].eq("").to_numpy()]
    instructions, claims = _instructions(sweep_day, claimed, nets[nets["reason"].eq("")], policy)
    held_back = pd.concat([waiting, group[group["reason"].ne("")]], ignore_index=True)
    deferrals = (
        held_back.groupby(["party_id", "currency", "reason"], as_index=False, sort=True)
        .agg(items=("item_id", "size"), amount_minor=("amount_minor", "sum"))
        .astype({"items": "int64", "amount_minor": "int64"})
    )
    assert len(claims) + int(deferrals["items"].sum()) == len(items), "an item was neither claimed nor deferred"
    return SweepPlan(instructions=instructions, claims=claims, deferrals=deferrals)


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


def _nets(free: pd.DataFrame, parties: pd.DataFrame, failing: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    nets = free.groupby(["party_id", "currency"], as_index=False, sort=False).agg(amount_minor=("amount_minor", "sum"))
    known = parties[["party_id", "status", "payout_token", "collection_token"]].astype(object)
    nets = nets.merge(known, on="party_id", how="left")
    pays = nets["amount_minor"] > 0
    collects = nets["amount_minor"] < 0
    tokens = [nets[column].to_numpy(object) for column in ("payout_token", "collection_token")]
    # Null where nothing is sent, as it is stored: pandas would put NaN, and the digest would be over that.
    nets["token"] = np.select([pays.to_numpy(bool), collects.to_numpy(bool)], tokens, np.array(None, dtype=object))
    failed = nets.merge(failing.assign(failing=True), on=["party_id", "currency", "token"], how="left")["failing"]
    minimum = _per_currency(nets["currency"], policy, "minimum_minor")
    conditions = [
        (WaitReason.PARTY_UNKNOWN, nets["status"].isna()),
        (WaitReason.PARTY_CLOSED, nets["status"].eq("closed")),
        (WaitReason.PARTY_ON_HOLD, nets["status"].ne("active")),
        (WaitReason.NO_PAYOUT_TOKEN, pays & nets["payout_token"].isna()),
        (WaitReason.NO_COLLECTION_TOKEN, collects & nets["collection_token"].isna()),
        (WaitReason.FAILURES_IN_A_ROW, (pays | collects) & failed.notna()),
        (WaitReason.BELOW_MINIMUM, (pays | collects) & (nets["amount_minor"].abs() < minimum)),
    ]
    reasons = np.select(
        [condition.to_numpy(dtype=bool) for _, condition in conditions], [str(reason) for reason, _ in conditions], ""
    )
    return nets.assign(reason=reasons.astype(object))


def _instructions(
    sweep_day: date, claimed: pd.DataFrame, nets: pd.DataFrame, policy: Policy
) -> tuple[pd.DataFrame, pd.DataFrame]:
    net = nets["amount_minor"]
    instructions = pd.DataFrame(
        {
            "party_id": nets["party_id"].to_numpy(object),
            "currency": nets["currency"].to_numpy(object),
            "direction": np.select([net > 0, net < 0], ["credit", "debit"], "none").astype(object),
            "amount_minor": net.abs().to_numpy("int64"),
            "token": nets["token"].to_numpy(object),
        }
    )
    # `claimed` is sorted by party, currency and item: each instruction's claims are one run of rows.
    labels = claimed["item_id"].astype(str) + ":" + claimed["claim_no"].astype(str)
    runs = labels.groupby([claimed["party_id"], claimed["currency"]], sort=False).agg("\n".join)
    runs.index.names = ["party_id", "currency"]
    instructions["claims"] = instructions.merge(
        runs.rename("claims").reset_index(), on=["party_id", "currency"], how="left"
    )["claims"].to_numpy(object)
    claims_hash = [hashlib.sha256(text.encode()).hexdigest() for text in instructions["claims"]]
    instructions["instruction_id"] = business_ids(
        "instruction",
        pd.Series(sweep_day.isoformat(), index=instructions.index, dtype=object),
        instructions["party_id"],
        instructions["currency"],
        pd.Series(claims_hash, index=instructions.index, dtype=object),
    )
    instructions["digest"] = [
        instruction_digest(
            party_id=party_id, token=token, currency=currency, direction=direction, amount_minor=amount, claims=claims
        )
        for party_id, token, currency, direction, amount, claims in instructions[
            ["party_id", "token", "currency", "direction", "amount_minor", "claims"]
        ].itertuples(index=False, name=None)
    ]
    over = instructions["amount_minor"] > _per_currency(instructions["currency"], policy, "instruction_limit_minor")
    none = instructions["direction"].eq("none")
    instructions["state"] = np.select([none, over], [State.NETTED, State.HELD], State.APPROVED).astype(object)
    instructions["reason"] = np.select(
        [none, over],
        ["items net to zero", f"over the instruction limit of policy {policy.version}"],
        f"within the limits of policy {policy.version}",
    ).astype(object)
    claims = claimed.merge(
        instructions[["party_id", "currency", "instruction_id"]], on=["party_id", "currency"], how="left", sort=False
    )[["item_id", "claim_no", "instruction_id"]]
    return instructions.drop(columns="claims"), claims
