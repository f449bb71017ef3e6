"""Settlement: what each report line does to its instruction, the ledger and the items. Only a report line settles.

Belongs here: states, postings and items that follow from report lines, in any order and number of them. Does not
belong here: fetching reports, tables.

For an instruction of amount A let N be the cash of its lines so far in its own direction (out for a credit, in for a
debit). A line posts its own cash between `cash` and `in_transit`, once. On the first `failed` or `returned` the
submission is reversed and the items are free again. What is paid beyond what is owed is an item against the party:
max(0, N - A) while settled, max(0, N) once failed or returned. What is left in `in_transit` is a break.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd

from payments_pipeline.domain.ids import business_ids
from payments_pipeline.domain.keys import Codes, rows_of, turns
from payments_pipeline.domain.ledger import check_balanced
from payments_pipeline.domain.lifecycle import SENT, State
from payments_pipeline.domain.movements import Leg, movement_lines

#: States whose instruction has been sent: a line can be about it.
LINES_ABOUT = (*SENT, State.SETTLED, State.FAILED, State.RETURNED)
_SENT = [str(state) for state in SENT]
#: What stands for an instruction that is not there, at the end of a column: place -1.
_NULL = np.array([None], object)
_UNDONE = [str(State.FAILED), str(State.RETURNED)]


@dataclass(frozen=True)
class SettlementPlan:
    """What taking in report lines writes.

    Attributes:
        lines: the lines with instruction_id, journal_id, outcome and note filled in.
        journals: journal_id, kind, day, instruction_id, entry_reference.
        entries: columns of `ledger_entries`.
        events: instruction_id, seq, from_state, to_state, reason.
        released: instructions whose items are free again.
    """

    lines: pd.DataFrame
    journals: pd.DataFrame
    entries: pd.DataFrame
    events: pd.DataFrame
    released: list[str]


def plan_settlement(
    day: date, processor: str, lines: pd.DataFrame, instructions: pd.DataFrame, pots: frozenset[str]
) -> SettlementPlan:
    """Work out what new report lines of one date do.

    Args:
        day: the report date.
        processor: who reports.
        lines: entry_reference, kind, idempotency_key, subject, amount_minor (cash effect, > 0 in), currency, reason.
        instructions: those that the lines' keys name: idempotency_key, instruction_id, party_id, currency, direction,
            amount_minor, state, seq (of its last event), net_minor (N so far).
        pots: accounts `pot:<competition>` that a funding can be for.

    Returns:
        The plan; per journal debits equal credits.

    Raises:
        InvariantError: a journal would not balance; nothing was posted.

    Source: docs/concepts/settlement.md.
    """
    known = instructions[np.isin(instructions["state"].to_numpy(str), [str(state) for state in LINES_ABOUT])]
    # Within a date, what settles comes before what fails or returns: the order in which money can have moved.
    rank = lines["kind"].map({"settled": 0, "failed": 1, "returned": 2}).fillna(3).to_numpy(np.int64)
    ordered = np.lexsort((lines["entry_reference"].to_numpy(str), rank))
    frame, rank = lines.iloc[ordered].reset_index(drop=True), rank[ordered]
    place = rows_of(frame, known, ["idempotency_key"])

    def of_its_instruction(name: str) -> np.ndarray:
        return np.append(known[name].to_numpy(object), _NULL)[place]

    about = (rank < 3) & (frame["currency"].to_numpy(object) == of_its_instruction("currency"))
    frame = frame.assign(
        **{name: of_its_instruction(name) for name in ("instruction_id", "direction", "party_id")},
        instructed_minor=of_its_instruction("amount_minor"),
        journal_id=business_ids("report_line", [processor] * len(frame), frame["entry_reference"]),
    )
    mine = np.flatnonzero(about)
    stepped = _stepped(frame.iloc[mine], place[mine], known)
    others = _others(frame[~about], pots)
    posted = [_instruction_entries(day, processor, stepped), _other_entries(day, processor, others)]
    entries = pd.concat([frame for frame in posted if len(frame)] or posted[:1], ignore_index=True)
    check_balanced(entries)
    return _plan(day, processor, stepped, others, entries)


def _stepped(lines: pd.DataFrame, place: Codes, known: pd.DataFrame) -> pd.DataFrame:
    """Let lines act on their instructions, those of one instruction one after the other.

    Columns from_* and to_* say what an instruction was and became.
    """
    state, seq, net = known["state"].to_numpy(object, copy=True), _numbers(known["seq"]), _numbers(known["net_minor"])
    kind, amount = lines["kind"].to_numpy(object), _numbers(lines["instructed_minor"])
    cash = np.where(lines["direction"].to_numpy(object) == "credit", -1, 1) * _numbers(lines["amount_minor"])
    from_state, to_state = np.empty(len(lines), object), np.empty(len(lines), object)
    to_seq, to_net, excess = (np.zeros(len(lines), np.int64) for _ in range(3))
    turn_of = turns(place)
    for turn in range(turn_of.max(initial=-1) + 1):
        rows = np.flatnonzero(turn_of == turn)
        at = place[rows]
        was, asked = state[at], amount[rows]
        sent, was_undone = np.isin(was.astype(str), _SENT), np.isin(was.astype(str), _UNDONE)
        now = np.select(
            [
                (kind[rows] == "settled") & sent,
                (kind[rows] == "failed") & sent,
                (kind[rows] == "returned") & (sent | (was == State.SETTLED)),
            ],
            [State.SETTLED, State.FAILED, State.RETURNED],
            was,
        ).astype(object)
        undone = np.isin(now.astype(str), _UNDONE)
        net_now = net[at] + cash[rows]
        was_excess = np.where(sent, 0, np.maximum(net[at] - np.where(was_undone, 0, asked), 0))
        excess[rows] = np.maximum(net_now - np.where(undone, 0, asked), 0) - was_excess
        seq[at] += now != was
        state[at], net[at] = now, net_now
        from_state[rows], to_state[rows], to_seq[rows], to_net[rows] = was, now, seq[at], net_now
    changed = to_state != from_state
    return lines.assign(
        from_state=from_state,
        to_state=to_state,
        changed=changed.astype(bool),
        to_seq=to_seq,
        to_net=to_net,
        reversed_minor=np.where(changed & np.isin(to_state.astype(str), _UNDONE), amount, 0),
        excess_minor=excess,
    )


def _numbers(column: pd.Series) -> Codes:
    return column.to_numpy(np.int64, copy=True)


def _instruction_entries(day: date, processor: str, steps: pd.DataFrame) -> pd.DataFrame:
    cash = steps["amount_minor"].to_numpy("int64")
    credit = steps["direction"].eq("credit").to_numpy()
    kind = steps["kind"].map({"settled": "settlement", "failed": "failure", "returned": "return"}).to_numpy(object)
    party = steps["party_id"].to_numpy(object)
    party_account = "party:" + party
    transit = f"in_transit:{processor}"
    # Amounts signed as debits: the submission reversed pays the party's account back; an excess is taken from it.
    undone = np.where(credit, -1, 1) * steps["reversed_minor"].to_numpy("int64")
    excess = np.where(credit, 1, -1) * steps["excess_minor"].to_numpy("int64")
    legs = [
        Leg(f"cash:{processor}", None, cash, name="cash"),
        Leg(transit, None, -cash, name="cash"),
        Leg(party_account, party, undone, name="submission"),
        Leg(transit, None, -undone, name="submission"),
        Leg(party_account, party, excess, is_item=True, name="excess"),
        Leg(transit, None, -excess, name="excess"),
    ]
    currency = steps["currency"].to_numpy(object)
    return movement_lines(steps["journal_id"].to_numpy(object), kind, day, currency, legs)


def _others(lines: pd.DataFrame, pots: frozenset[str]) -> pd.DataFrame:
    fee = lines["kind"].eq("fee")
    funding = lines["kind"].eq("funding") & lines["subject"].isin(pots) & lines["amount_minor"].gt(0)
    outcome = np.select([fee, funding], ["fee", "funding"], "unmatched")
    about_us = lines["kind"].isin(["settled", "failed", "returned"])
    note = np.select(
        [
            fee | funding,
            about_us & lines["instruction_id"].notna(),
            about_us,
            lines["kind"].eq("funding"),
        ],
        [
            "",
            "its currency is not its instruction's",
            "no instruction was sent under its key",
            "its subject names no pot",
        ],
        "nothing is known of it",
    )
    return lines.assign(outcome=outcome, note=note, instruction_id=None)


def _other_entries(day: date, processor: str, others: pd.DataFrame) -> pd.DataFrame:
    cash = others["amount_minor"].to_numpy("int64")
    outcome = others["outcome"].to_numpy(object)
    subject = others["subject"].to_numpy(object)
    counter = np.select([outcome == "fee", outcome == "funding"], [f"fees:{processor}", subject], "suspense")
    legs = [Leg(f"cash:{processor}", None, cash), Leg(counter, None, -cash)]
    currency = others["currency"].to_numpy(object)
    return movement_lines(others["journal_id"].to_numpy(object), outcome, day, currency, legs)


def _plan(
    day: date, processor: str, steps: pd.DataFrame, others: pd.DataFrame, entries: pd.DataFrame
) -> SettlementPlan:
    note = np.where(
        ~steps["changed"].to_numpy(dtype=bool),
        "came when its instruction was " + steps["from_state"].astype(object).astype(str),
        "",
    )
    steps = steps.assign(outcome=steps["kind"], note=note)
    lines = pd.concat([steps, others], ignore_index=True)
    posted = lines["journal_id"].isin(entries["journal_id"])
    lines["journal_id"] = lines["journal_id"].where(posted)
    lines["note"] = lines["note"].where(lines["note"].ne(""))
    kinds = entries.drop_duplicates("journal_id").set_index("journal_id")["kind"]
    journalled = lines[posted]
    journals = pd.DataFrame(
        {
            "journal_id": journalled["journal_id"].to_numpy(object),
            "kind": journalled["journal_id"].map(kinds).to_numpy(object),
            "day": day,
            "instruction_id": journalled["instruction_id"].to_numpy(object),
            "processor": processor,
            "entry_reference": journalled["entry_reference"].to_numpy(object),
        }
    )
    changed = steps[steps["changed"].to_numpy(dtype=bool)]
    events = pd.DataFrame(
        {
            "instruction_id": changed["instruction_id"].to_numpy(object),
            "seq": changed["to_seq"].to_numpy("int64"),
            "from_state": changed["from_state"].to_numpy(object),
            "to_state": changed["to_state"].to_numpy(object),
            "reason": ("report line " + changed["entry_reference"].astype(object)).to_numpy(object),
        }
    )
    released = changed.loc[changed["to_state"].isin([State.FAILED, State.RETURNED]), "instruction_id"].tolist()
    return SettlementPlan(lines=lines, journals=journals, entries=entries, events=events, released=released)
