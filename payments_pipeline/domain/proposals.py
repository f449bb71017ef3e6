"""Proposals: what one person asks for and another decides, as values.

Belongs here: what a proposal says, its id, what it posts. Does not belong here: who may decide, tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from payments_pipeline.domain.ids import business_id
from payments_pipeline.domain.movements import Leg, movement_lines


class ProposalKind(StrEnum):
    """What is asked for."""

    WRITE_OFF = "write_off"
    RESOLUTION = "resolution"
    RULE_CHANGE = "rule_change"
    RETRY = "retry"
    MATCH = "match"


@dataclass(frozen=True)
class WriteOff:
    """A debt of a party that will not be recovered.

    Attributes:
        party_id: who owes.
        currency: ISO 4217.
        amount_minor: > 0, minor units of currency.
        items_sha256: over the open items of the party and currency that the debt is the net of: of another debt than
            the one that was looked at nothing is written off.
    """

    party_id: str
    currency: str
    amount_minor: int
    items_sha256: str = ""


@dataclass(frozen=True)
class Resolution:
    """What became of an instruction whose outcome is unknown, as a person found out.

    Attributes:
        instruction_id: the instruction.
        to_state: `failed` where the processor never carried it out, `submitted` where it has it.
        evidence: where that is written: a ticket, a letter, a statement.
    """

    instruction_id: str
    to_state: str
    evidence: str


@dataclass(frozen=True)
class Retry:
    """That a party's account works again, so that what failed before no longer stops it.

    Attributes:
        party_id: whose items wait after failures in a row.
        currency: ISO 4217.
        failed: ids of the instructions that are not counted any more, sorted; what fails later counts anew.
    """

    party_id: str
    currency: str
    failed: list[str]


@dataclass(frozen=True)
class Match:
    """What a report line was for that belonged to nothing when it came.

    Attributes:
        processor: whose line.
        entry_reference: the processor's own reference of it.
        account: `pot:<competition>` for a funding, `fees:<processor>` for a fee, `party:<id>` for what a party paid or
            was paid beside all instructions: an item.
    """

    processor: str
    entry_reference: str
    account: str


@dataclass(frozen=True)
class RuleChange:
    """What rules that were changed with effect in the past do to matches that are posted.

    Attributes:
        competition_id: whose rules.
        match_day: day of the matches, ISO 8601.
        matches: match_id, rules_hash, content_hash and posting_no of each, as they would be posted: once posted, or
            posted otherwise, they are the next posting no more, and what was accepted is used up.
        effect: account, currency and amount_minor (> 0 a credit) of each account that changes.
    """

    competition_id: str
    match_day: str
    matches: list[list[Any]]
    effect: list[list[Any]]


def rule_changes(day: date, changed: pd.DataFrame, deltas: pd.DataFrame) -> list[RuleChange]:
    """Say what a change of rules does to a day's matches, one proposal per competition.

    Args:
        day: the match day.
        changed: match_id, competition_id, currency, rules_hash, content_hash, posting_no of the matches that wait.
        deltas: match_id, account, currency, amount_minor of what posting them would post.
    """
    found = []
    for competition_id, matches in changed.sort_values("match_id").groupby("competition_id", sort=True):
        of_matches = deltas[deltas["match_id"].isin(matches["match_id"])]
        effect = of_matches.groupby(["account", "currency"], sort=True, as_index=False)["amount_minor"].sum()
        found.append(
            RuleChange(
                str(competition_id),
                day.isoformat(),
                [
                    [*map(str, texts), int(number)]
                    for *texts, number in matches[["match_id", "rules_hash", "content_hash", "posting_no"]].itertuples(
                        index=False, name=None
                    )
                ],
                [[a, c, int(m)] for a, c, m in effect[effect["amount_minor"] != 0].itertuples(index=False)]
                # It may even out within an account, or change nothing but when it is paid out.
                or [[f"pot:{competition_id}", str(matches["currency"].iloc[0]), 0]],
            )
        )
    return found


def proposal_id(kind: ProposalKind, content: dict[str, Any], n: int) -> str:
    """Give the id of the n-th proposal (from 1) that says the same; asked twice before a decision it is one."""
    return business_id("proposal", kind, json.dumps(content, sort_keys=True, separators=(",", ":")), n)


def match_entries(
    accepted: str, match: Match, amount_minor: int, currency: str, day: date
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Post what a report line was for: its cash out of suspense, to where it belongs.

    Args:
        accepted: the proposal's id.
        match: what was accepted.
        amount_minor: the line's cash, > 0 received and < 0 paid.
        currency: ISO 4217, the line's.
        day: day of the act.

    Returns:
        The journal (journal_id, kind, day, processor, matched_reference, proposal_id) and its entries.
    """
    kind = str(ProposalKind.MATCH)
    journals = pd.DataFrame(
        {
            "journal_id": [business_id(kind, accepted)],
            "kind": [kind],
            "day": [day],
            "processor": [match.processor],
            "matched_reference": [match.entry_reference],
            "proposal_id": [accepted],
        }
    )
    debit_minor = np.array([amount_minor])
    party_id = match.account.removeprefix("party:") if match.account.startswith("party:") else None
    legs = [
        Leg("suspense", None, debit_minor),
        Leg(match.account, party_id, -debit_minor, is_item=party_id is not None),
    ]
    return journals, movement_lines(
        journals["journal_id"].to_numpy(object), kind, day, np.array([currency], dtype=object), legs
    )


def write_off_entries(accepted: str, write_off: WriteOff, day: date) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Post an accepted write-off: a loss of ours, and an item that the party's debt is netted with.

    Args:
        accepted: the proposal's id.
        write_off: what was accepted.
        day: day of the act.

    Returns:
        The journal (journal_id, kind, day, proposal_id) and its entries.
    """
    kind = str(ProposalKind.WRITE_OFF)
    journals = pd.DataFrame(
        {"journal_id": [business_id(kind, accepted)], "kind": [kind], "day": [day], "proposal_id": [accepted]}
    )
    amount_minor = np.array([write_off.amount_minor])
    legs = [
        Leg("loss", None, amount_minor),
        Leg(f"party:{write_off.party_id}", write_off.party_id, -amount_minor, is_item=True),
    ]
    currency = np.array([write_off.currency], dtype=object)
    return journals, movement_lines(journals["journal_id"].to_numpy(object), kind, day, currency, legs)
