"""Dispatch: which approved instructions may be sent now, and the ledger lines of sending and of failing.

Belongs here: limits, and postings as values. Does not belong here: sending, tables, the clock.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd

from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.keys import key_codes, running_sums
from payments_pipeline.domain.movements import Leg, movement_lines
from payments_pipeline.domain.policy import Policy


def execution_day(sweep_day: date, dispatch_day: date) -> date:
    """Give the date that an instruction asks for: the day after the later of its sweep and of the dispatching day."""
    return max(sweep_day, dispatch_day) + timedelta(days=1)


def sendable_for(key_lifetime: timedelta, policy: Policy) -> timedelta:
    """Give the time from their first sending after which bytes are never sent again: before their key can die."""
    return max(key_lifetime - timedelta(seconds=policy.dispatch.key_margin_s), key_lifetime / 2)


def within_limits(approved: pd.DataFrame, sent_today: pd.DataFrame, policy: Policy) -> pd.Series:
    """Say which approved instructions fit under the sending limits of the calendar day.

    Args:
        approved: party_id, currency, amount_minor, in the order in which they are to be sent.
        sent_today: party_id, currency, amount_minor already sent on this calendar day.
        policy: limits per currency.

    Returns:
        Booleans aligned with `approved`. An instruction that does not fit waits, and does not hold up smaller ones of
        other parties; the later ones of its own party wait with it.
    """
    if approved.empty:
        return pd.Series([], index=approved.index, dtype=bool)
    limits = {currency: policy.of(currency) for currency in approved["currency"].unique()}
    party_limit = approved["currency"].map({c: limit.party_day_limit_minor for c, limit in limits.items()})
    day_limit = approved["currency"].map({c: limit.day_limit_minor for c, limit in limits.items()})
    names = ("party_id", "currency", "amount_minor")
    party, currency, amount = (np.append(sent_today[name].to_numpy(), approved[name].to_numpy()) for name in names)
    amount, sent = amount.astype(np.int64), len(sent_today)
    of_party, _ = key_codes([party.astype(object), currency.astype(object)])
    of_currency, _ = key_codes([currency.astype(object)])
    running = running_sums(of_party, amount)[sent:]
    fits = pd.Series(running <= party_limit.to_numpy("int64"), index=approved.index)
    counted = np.append(amount[:sent], np.where(fits, amount[sent:], 0))
    total = running_sums(of_currency, counted)[sent:]
    over = fits & (total > day_limit)
    for code in approved.loc[over, "currency"].unique():
        mine = approved["currency"].eq(code) & fits
        spent = int(amount[:sent][currency[:sent] == code].sum())
        fits[mine] = _fill(approved[mine], limits[code].day_limit_minor - spent)
    return fits


def beyond_limits(approved: pd.DataFrame, policy: Policy) -> list[tuple[str, int, str]]:
    """Give instruction_id, amount_minor and currency of what no calendar day's sending limits ever let pass.

    Args:
        approved: instruction_id, currency, amount_minor.
        policy: limits per currency.
    """
    limits = {currency: policy.of(currency) for currency in approved["currency"].unique()}
    most = approved["currency"].map(
        {code: min(limit.party_day_limit_minor, limit.day_limit_minor) for code, limit in limits.items()}
    )
    beyond = approved[approved["amount_minor"].gt(most)]
    return list(beyond[["instruction_id", "amount_minor", "currency"]].itertuples(index=False, name=None))


def _fill(approved: pd.DataFrame, room_minor: int) -> list[bool]:
    """Let pass, in order, what fits into what is left of a day; once a party has to wait, its later ones do too.

    Each decision hangs on the one before, so this is a loop; it runs only where a day's limit is reached.
    """
    waiting: set[str] = set()
    passes = []
    for party_id, amount_minor in approved[["party_id", "amount_minor"]].itertuples(index=False, name=None):
        fits = party_id not in waiting and amount_minor <= room_minor
        passes.append(fits)
        if fits:
            room_minor -= amount_minor
        else:
            waiting.add(party_id)
    return passes


def submission_entries(instructions: pd.DataFrame, day: date, *, reverse: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Post instructions as sent, or as failed.

    Args:
        instructions: instruction_id, party_id, currency, direction (credit or debit), amount_minor, processor.
        day: day of the act.
        reverse: False for submitting (party against in_transit), True for the reverse when it failed.

    Returns:
        Journals (journal_id, kind, day, instruction_id) and their entries.
    """
    kind = "failure" if reverse else "submission"
    journals = pd.DataFrame(
        {
            "journal_id": business_ids(kind, instructions["instruction_id"]),
            "kind": kind,
            "day": day,
            "instruction_id": instructions["instruction_id"].to_numpy(object),
        }
    )
    paid_out = np.where(instructions["direction"].eq("credit").to_numpy() != reverse, 1, -1)
    debit_minor = paid_out * instructions["amount_minor"].to_numpy("int64")
    party_id = instructions["party_id"].to_numpy(object)
    legs = [
        Leg("party:" + party_id, party_id, debit_minor),
        Leg("in_transit:" + instructions["processor"].to_numpy(object), None, -debit_minor),
    ]
    journal_id, currency = journals["journal_id"].to_numpy(object), instructions["currency"].to_numpy(object)
    return journals, movement_lines(journal_id, kind, day, currency, legs)
