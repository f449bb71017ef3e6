"""The rules of the design, checked on everything that is stored, after every operation.

Belongs here: what must hold of the tables by themselves, and against the model. Does not belong here: what the product
computes; nothing of it is used. A breach is a sentence that names the record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from datetime import date
from itertools import product
from operator import is_
from typing import Any

from simulation.database import APPEND_ONLY, Row, Snapshot
from simulation.inputs import FIRST_DAY
from simulation.model import Account, Model

_UNSENT = {"created", "held", "approved"}
#: What the model calls each state.
FATES = {
    "created": "unsent",
    "held": "unsent",
    "approved": "unsent",
    "netted": "netted",
    "cancelled": "cancelled",
    "submitting": "sent",
    "submitted": "sent",
    "unknown": "sent",
    "settled": "settled",
    "failed": "undone",
    "returned": "undone",
}


class RuleBroken(BaseException):
    """Something does not hold; says what, and after which operation. No handler of the product takes it for its own."""


#: What postings of one key have alike.
_KEY = ("kind", "refund_id", "match_id", "pot", "pot_party_id", "line_no", "account", "currency")


def breaches(before: Snapshot, now: Snapshot, model: Model, under_way: Collection[str]) -> Iterator[str]:
    """Name everything that breaks a rule.

    Args:
        before: what was stored at the last look.
        now: what is stored.
        model: told of what is new.
        under_way: runs that were under way at the last look, and may have read before it.
    """
    yield from _append_only(before, now)
    yield from _balanced(now)
    yield from _pots(now)
    yield from _claims(now)
    yield from _attempts(now)
    yield from _events(now)
    yield from _records(now)
    yield from _too_early(before, now, under_way)
    yield from _before_its_run(before, now, under_way)
    yield from _by_themselves(before, now, under_way)
    yield from _paid_already(before, now)
    yield from _untold(before, now, under_way)
    yield from _as_the_model_says(now, model)


def _append_only(before: Snapshot, now: Snapshot) -> Iterator[str]:
    for table in APPEND_ONLY:
        if not goes_on(before.get(table, []), now[table]):
            rows = set(map(repr, now[table]))
            for row in before[table]:
                if repr(row) not in rows:
                    yield f"rule 5: {table} lost or changed {row}"


def goes_on(before: list[Row], now: list[Row]) -> bool:
    """Say whether rows are those of before, the very same, and perhaps more after them."""
    return len(before) <= len(now) and all(map(is_, before, now))


def _signed(entry: Row) -> int:
    """> 0 owed to the account."""
    signed: int = entry["credit_minor"] - entry["debit_minor"]
    return signed


def _balanced(now: Snapshot) -> Iterator[str]:
    sums: Counter[Any] = Counter()
    for entry in now["ledger_entries"]:
        sums[entry["currency"]] += _signed(entry)
        sums[entry["journal_id"], entry["currency"]] += _signed(entry)
    for key, difference in sums.items():
        if difference:
            yield f"rule 1: {key} is out of balance by {difference}"


def _pots(now: Snapshot) -> Iterator[str]:
    sums: Counter[Any] = Counter()
    for entry in now["ledger_entries"]:
        if entry["kind"] == "accrual":
            sums[entry["match_id"], entry["pot"], entry["pot_party_id"], entry["currency"]] += _signed(entry)
    for pot, difference in sums.items():
        if difference:
            yield f"rule 2: pot {pot} is not divided to the last minor unit: {difference}"


def states_of(now: Snapshot) -> dict[str, str]:
    """Give each instruction's state as its events say."""
    return {
        event["instruction_id"]: event["to_state"]
        for event in sorted(now["instruction_events"], key=lambda event: event["seq"])
    }


def _claims(now: Snapshot) -> Iterator[str]:
    states = states_of(now)
    entries = {entry["entry_id"]: entry for entry in now["ledger_entries"]}
    released = {(release["item_id"], release["claim_no"]) for release in now["claim_releases"]}
    live: dict[str, list[str]] = defaultdict(list)
    net: Counter[str] = Counter()
    for claim in now["instruction_claims"]:
        entry, instruction = entries[claim["item_id"]], claim["instruction_id"]
        net[instruction] += _signed(entry)
        free = (claim["item_id"], claim["claim_no"]) in released
        if free != (states[instruction] in ("cancelled", "failed", "returned")):
            yield f"rule 9: {instruction} is {states[instruction]}, its item {claim['item_id']} released: {free}"
        if not free:
            live[claim["item_id"]].append(instruction)
        if not entry["is_item"]:
            yield f"entry {entry['entry_id']} of kind {entry['kind']} is claimed and is no item"
    for item, instructions in live.items():
        if len(instructions) > 1:
            yield f"rule 9: item {item} is under {instructions}"
    yield from _apart(live, entries, states)
    for row in now["payout_instructions"]:
        sign = -1 if row["direction"] == "debit" else 1
        instruction = row["instruction_id"]
        if net[instruction] != sign * row["amount_minor"]:
            yield f"instruction {instruction} of {row['amount_minor']} has items of {net[instruction]}"
    items = {entry["entry_id"] for entry in now["ledger_entries"] if entry["is_item"]}
    shown = {item["item_id"] for item in now["open_items"]}
    if shown != items - live.keys():
        yield f"open_items is not the items without a live claim: {shown ^ (items - live.keys())}"


def _apart(live: dict[str, list[str]], entries: dict[str, Row], states: dict[str, str]) -> Iterator[str]:
    unsent: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for item, instructions in live.items():
        if entries[item]["kind"] in ("accrual", "refund"):
            unsent[tuple(entries[item][name] for name in _KEY)] |= {
                each for each in instructions if states[each] in ("created", "held", "approved")
            }
    for key, apart in unsent.items():
        if len(apart) > 1:
            yield f"{key} and its correction are about to leave apart, under {sorted(apart)}"


def _attempts(now: Snapshot) -> Iterator[str]:
    outcomes = {(row["instruction_id"], row["attempt_no"]): row["outcome"] for row in now["payout_attempt_outcomes"]}
    of: dict[str, list[Row]] = defaultdict(list)
    for attempt in sorted(now["payout_attempts"], key=lambda attempt: attempt["attempt_no"]):
        of[attempt["instruction_id"]].append(attempt)
    for instruction, attempts in of.items():
        same = {(row["idempotency_key"], row["request"], row["not_after"]) for row in attempts}
        if len(same) != 1:
            yield f"rule 6: the attempts of {instruction} differ in key, bytes or deadline"
        for attempt in attempts[:-1]:
            outcome = outcomes.get((instruction, attempt["attempt_no"]))
            if outcome in (None, "acknowledged", "rejected"):
                yield f"rule 9: attempt {attempt['attempt_no']} of {instruction} was {outcome}, and another followed"


def _events(now: Snapshot) -> Iterator[str]:
    reported = {(line["instruction_id"], line["kind"]) for line in now["report_lines"]}
    makers = _makers(now)
    for event in now["instruction_events"]:
        state, instruction = event["to_state"], event["instruction_id"]
        if state in ("settled", "returned") and (instruction, state) not in reported:
            yield f"rule 10: {instruction} became {state} without a report line"
        if event["from_state"] == "held" and state == "approved" and event["login"] in makers[instruction]:
            yield f"rule 13: {instruction} was approved by a maker of it, {event['login']}"
    proposals = {row["proposal_id"]: row for row in now["proposals"]}
    for row in now["proposal_decisions"]:
        proposal = proposals[row["proposal_id"]]
        if row["login"] in (proposal["login"], proposal["maker"]):
            yield f"rule 13: {row['login']} {row['decision']} proposal {row['proposal_id']} of their own"
    accepted = {row["proposal_id"] for row in now["proposal_decisions"] if row["decision"] == "accepted"}
    for journal in now["journals"]:
        if journal["kind"] == "write_off" and journal["proposal_id"] not in accepted:
            yield f"rule 13: journal {journal['journal_id']} writes off what nobody accepted"
    states = {row["instruction_id"]: row["state"] for row in now["instruction_states"]}
    if states != states_of(now):
        yield "instruction_states is not where the events lead"


def _makers(now: Snapshot) -> dict[str, set[str]]:
    """Give who made each instruction: started the run, by which login, changed its token, asked for its refunds."""
    requesters = {row["refund_id"]: row["requester"] for row in now["refunds"]}
    refunds = {row["entry_id"]: row["refund_id"] for row in now["ledger_entries"] if row["kind"] == "refund"}
    makers = {row["instruction_id"]: {row["maker"], row["token_changed_by"]} for row in now["payout_instructions"]}
    for event in now["instruction_events"]:
        if event["to_state"] == "created":
            makers[event["instruction_id"]].add(event["login"])
    for claim in now["instruction_claims"]:
        if claim["item_id"] in refunds:
            makers[claim["instruction_id"]].add(requesters[refunds[claim["item_id"]]])
    return makers


def _untold(before: Snapshot, now: Snapshot, under_way: Collection[str]) -> Iterator[str]:
    """Find what a sweep could have taken and left open without a word."""
    sweeps = [row for row in now["sweeps"][len(before.get("sweeps", [])) :] if row["run_id"] not in under_way]
    if not sweeps:
        return
    told = {(row["sweep_day"], row["seq"], row["party_id"], row["currency"]) for row in now["sweep_deferrals"]}
    unswept = unswept_days(before.get("sweeps", []), now["day_postings"])
    claimed = {row["item_id"]: row["next_claim_no"] for row in before.get("open_items", [])}
    match_days = days_of(now)
    for sweep, item in product(sweeps, now["open_items"]):
        day, key = sweep["sweep_day"], (item["party_id"], item["currency"])
        if claimed.get(item["item_id"]) != item["next_claim_no"]:
            continue  # it came to be open, or was claimed and freed, while the sweep was under way
        free = item["available_after"] is None or item["available_after"] < day
        due = item["day"] <= day and (of_day(item, match_days) == day or of_day(item, match_days) not in unswept)
        if free and due and (day, sweep["seq"], *key) not in told:
            yield f"the sweep of {day} left item {item['item_id']} of {key} open and does not say why"


def unswept_days(sweeps: list[Row], postings: list[Row]) -> dict[str, bool]:
    """Give the days that posted something after their own last sweep, and whether they were ever swept."""
    posted: Counter[str] = Counter()
    for row in postings:
        if row["entries_posted"]:
            posted[row["match_day"]] = max(posted[row["match_day"]], row["seq"])
    seen: dict[str, int] = {}
    for row in sweeps:
        seen[row["sweep_day"]] = max(seen.get(row["sweep_day"], 0), row["posting_seq"])
    return {day: day in seen for day, newest in posted.items() if newest > seen.get(day, 0)}


def days_of(now: Snapshot) -> dict[str, str]:
    """Give the day of each posted match."""
    return {
        row["match_id"]: row["match_day"] for row in sorted(now["match_postings"], key=lambda row: row["posting_no"])
    }


def of_day(item: Row, match_days: dict[str, str]) -> str | None:
    """Give the day whose run an item belongs to: its match's; None where it is of no match."""
    if item["match_id"] is None:
        return None
    day: str = match_days[item["match_id"]] if item["kind"] == "refund" else item["day"]
    return day


def came_back_in_a_row(snapshot: Snapshot, payee: tuple[str, str, str], day: str) -> int:
    """Count the payments that came back since the newest which shows that the account works; not those put aside.

    Args:
        snapshot: any.
        payee: party, currency and token.
        day: what is dated on it or later is not known yet.
    """
    accepted = {row["proposal_id"] for row in snapshot["proposal_decisions"] if row["decision"] == "accepted"}
    aside = {
        instruction_id
        for row in snapshot["proposals"]
        if row["kind"] == "retry" and row["proposal_id"] in accepted
        for instruction_id in row["content"]["failed"]
    }
    mine = {
        row["instruction_id"]
        for row in snapshot["payout_instructions"]
        if (row["party_id"], row["currency"], row["token"]) == payee and row["instruction_id"] not in aside
    }
    sent: dict[str, str] = {}
    back: dict[str, str] = {}
    settled = set()
    for event in snapshot["instruction_events"]:
        instruction, state, on = event["instruction_id"], event["to_state"], event["occurred_on"]
        if instruction not in mine or on >= day:
            continue
        if state == "submitting":
            sent.setdefault(instruction, on)
        elif state in ("failed", "returned"):
            back[instruction] = on
        elif state == "settled":
            settled.add(instruction)
    # One that settled may come back still while those sent before it did so only after it was sent. Days may have been
    # run in another order: what came back before the day may have been sent on it or later.
    shown = [
        sent[each]
        for each in (settled - back.keys()) & sent.keys()
        if not any(sent[other] <= sent[each] <= back[other] for other in back.keys() & sent.keys())
    ]
    return sum(not shown or (each in sent and sent[each] > max(shown)) for each in back)


def _too_early(before: Snapshot, now: Snapshot, under_way: Collection[str]) -> Iterator[str]:
    """Name what was claimed newly though its match has a break, or though its payer has not paid."""
    if not before or goes_on(now["instruction_claims"], before["instruction_claims"]):
        return
    entries = {entry["entry_id"]: entry for entry in now["ledger_entries"]}
    broken = _open_breaks(before) & _open_breaks(now)
    policies = [_policies(before), _policies(now)]
    waits = {match for match in policies[1] if all(each.get(match) == "when_collected" for each in policies)}
    late = {row["instruction_id"] for row in now["payout_instructions"] if row["run_id"] in under_way}
    known = {(claim["item_id"], claim["claim_no"]) for claim in before["instruction_claims"]}
    states = [states_of(before), states_of(now)]
    collected = {
        claim["item_id"]
        for claim in now["instruction_claims"]
        if any(each.get(claim["instruction_id"]) in ("settled", "netted") for each in states)
    }
    pots: Counter[Any] = Counter()
    for claim in now["instruction_claims"]:
        entry = entries[claim["item_id"]]
        if (claim["item_id"], claim["claim_no"]) in known or claim["instruction_id"] in late:
            continue  # what its sweep read was so when it read it; the gate looks again
        if entry["match_id"] is None:
            continue
        if entry["kind"] == "accrual" and (entry["day"], entry["match_id"]) in broken:
            yield f"item {entry['entry_id']} is claimed, and its match {entry['match_id']} has a break"
        if entry["match_id"] in waits and entry["pot"] == "match_fee" and entry["recipient"] != "payer":
            pots[entry["party_id"], entry["match_id"], entry["pot_party_id"]] += _signed(entry)
    for entry in now["ledger_entries"]:
        if entry["kind"] == "accrual" and entry["recipient"] == "payer" and entry["entry_id"] not in collected:
            for (party, match, payer), net in pots.items():
                if net > 0 and _signed(entry) < 0 and (entry["match_id"], entry["pot_party_id"]) == (match, payer):
                    yield f"{party} is paid of the fee of {payer} in {match}, which was not collected"


def _before_its_run(before: Snapshot, now: Snapshot, under_way: Collection[str]) -> Iterator[str]:
    """Name what was claimed newly though its own day's run has not swept it, or though it may net with such."""
    if not before or goes_on(now["instruction_claims"], before["instruction_claims"]):
        return
    match_days, unswept = days_of(now), unswept_days(now["sweeps"], before["day_postings"])
    waiting: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in now["open_items"]:
        home = of_day(item, match_days)
        if home in unswept and item in before["open_items"]:
            waiting[item["party_id"], item["currency"]].add(home)
    entries = {entry["entry_id"]: entry for entry in now["ledger_entries"]}
    made = {row["instruction_id"]: row for row in now["payout_instructions"]}
    known = {(claim["item_id"], claim["claim_no"]) for claim in before["instruction_claims"]}
    for claim in now["instruction_claims"]:
        instruction, entry = made[claim["instruction_id"]], entries[claim["item_id"]]
        if (claim["item_id"], claim["claim_no"]) in known or instruction["run_id"] in under_way:
            continue
        day, home = instruction["sweep_day"], of_day(entry, match_days)
        if home in unswept and home != day:
            yield f"item {entry['entry_id']} of {home} is claimed, and its own run did not get to its sweep"
        for other in waiting[entry["party_id"], entry["currency"]]:
            if other < day and (home is None or unswept[other]):
                yield f"item {entry['entry_id']} is claimed, and what it may net with waits for a run of {other}"


def _policies(snapshot: Snapshot) -> dict[str, str]:
    newest = sorted(snapshot["match_postings"], key=lambda row: row["posting_no"])
    return {row["match_id"]: row["payout_policy"] for row in newest}


def _by_themselves(before: Snapshot, now: Snapshot, under_way: Collection[str]) -> Iterator[str]:
    """Name what was claimed newly without what it is to be netted with."""
    if not before or goes_on(now["instruction_claims"], before["instruction_claims"]):
        return
    known = {row["instruction_id"] for row in before["payout_instructions"]}
    entries = {entry["entry_id"]: entry for entry in now["ledger_entries"]}
    claimed: dict[str, list[Row]] = defaultdict(list)
    for claim in now["instruction_claims"]:
        claimed[claim["instruction_id"]].append(entries[claim["item_id"]])
    was_open = {(item["item_id"], item["next_claim_no"]) for item in before["open_items"]}
    left: dict[Account, list[Row]] = defaultdict(list)
    all_left: dict[Account, list[Row]] = defaultdict(list)
    match_days, unswept = days_of(now), unswept_days(now["sweeps"], now["day_postings"])
    for item in now["open_items"]:
        if of_day(item, match_days) in unswept:
            continue  # of a day whose run did not get to its sweep: another rule's
        all_left[item["party_id"], item["currency"]].append(item)
        if (item["item_id"], item["next_claim_no"]) in was_open:
            left[item["party_id"], item["currency"]].append(item)
    for row in now["payout_instructions"]:
        if row["instruction_id"] in known or row["run_id"] in under_way:
            continue
        account = row["party_id"], row["currency"]
        net = -row["amount_minor"] if row["direction"] == "debit" else row["amount_minor"]
        # What came to be open meanwhile the sweep may have seen, or not.
        beside = [
            _held_beside(claimed[row["instruction_id"]], each[account], row["sweep_day"]) for each in (left, all_left)
        ]
        if all(net * held < 0 for held in beside):
            yield f"instruction {row['instruction_id']} of {net} was made without {beside[0]}, which it nets with"


def _held_beside(claimed: list[Row], left: list[Row], day: str) -> int:
    """Give what a party has open beside what was claimed, and that makes up for it; 0 where all is of matches."""
    newest = max((row["day"] for row in [*claimed, *left] if row["match_id"] is None), default="")
    return sum(
        item["amount_minor"]
        for item in left
        if newest and (item["day"] <= max(day, newest) or (item["available_after"] or "") >= day)
    )


def _paid_already(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Name what was sent though something sent for its items before had moved cash, and that was known."""
    if not before or goes_on(now["payout_attempts"], before["payout_attempts"]):
        return
    journals = {row["journal_id"]: row for row in now["journals"]}
    entries = {entry["entry_id"]: entry for entry in now["ledger_entries"]}
    late = {
        journals[entries[item["item_id"]]["journal_id"]]["instruction_id"]
        for item in before["open_items"]
        if item["match_id"] is None and item in now["open_items"]
    }
    sent = {row["instruction_id"] for row in now["payout_attempts"]}
    sent -= {row["instruction_id"] for row in before["payout_attempts"]}
    of: dict[str, set[str]] = defaultdict(set)
    for claim in now["instruction_claims"]:
        of[claim["item_id"]].add(claim["instruction_id"])
    for item, instructions in of.items():
        for instruction in sent & instructions:
            if late & (instructions - {instruction}):
                yield f"instruction {instruction} was sent for item {item}, which had been paid already, as was known"


def _open_breaks(snapshot: Snapshot) -> set[tuple[str, str]]:
    newest = {row["match_day"]: row["seq"] for row in sorted(snapshot["day_postings"], key=lambda row: row["seq"])}
    return {
        (row["match_day"], row["match_id"])
        for row in snapshot["posting_breaks"]
        if row["seq"] == newest[row["match_day"]]
    }


def _records(now: Snapshot) -> Iterator[str]:
    lines = {line["entry_reference"]: line for line in now["report_lines"]}
    amounts = {row["instruction_id"]: row["amount_minor"] for row in now["payout_instructions"]}
    kinds = {row["journal_id"]: row["kind"] for row in now["journals"]}
    for record in now["settlement_records"]:
        line = lines[record["entry_reference"]]
        instruction = line["instruction_id"]
        outcome = line["kind"] if instruction else kinds.get(line["journal_id"], "unmatched")
        said = [record[name] for name in ("outcome", "instruction_id", "instructed_minor", "cash_minor", "journal_id")]
        if said != [outcome, instruction, amounts.get(instruction), line["amount_minor"], line["journal_id"]]:
            yield f"settlement record {record} is not what its line says: {line}"


def _as_the_model_says(now: Snapshot, model: Model) -> Iterator[str]:
    for instruction, state in states_of(now).items():
        expected = model.instructed[instruction]
        if FATES[state] != expected.fate and not (state == "netted" and expected.amount_minor == 0):
            yield f"instruction {instruction} is {state}; by what happened it is {expected.fate}"
    yield from _differ("rule 14: posted for", accrued_of(now), model.accrued())
    yield from _differ("open of", open_of(now), model.open())
    yield from _differ("balance of", _party_balances(now), _unpaid(now))
    cash = Counter[Any]()
    reported = Counter[Any]()
    for entry in now["ledger_entries"]:
        if entry["account"].startswith("cash:"):
            cash[entry["currency"]] -= _signed(entry)
    for line in now["report_lines"]:
        reported[line["currency"]] += line["amount_minor"]
    yield from _differ("rule 11: cash in", cash, reported)
    newest: dict[str, tuple[int, set[str]]] = {}
    for posting in now["day_postings"]:
        if posting["seq"] >= newest.get(posting["match_day"], (0, set()))[0]:
            broken = {
                row["match_id"]
                for row in now["posting_breaks"]
                if (row["match_day"], row["seq"]) == (posting["match_day"], posting["seq"])
            }
            newest[posting["match_day"]] = (posting["seq"], broken)
    for on, (_, broken) in newest.items():
        day = (date.fromisoformat(on) - FIRST_DAY).days
        if broken != model.breaks[day]:
            yield f"breaks of {on} are {sorted(broken)}; by what was landed {sorted(model.breaks[day])}"


def _differ(what: str, stored: dict[Any, int], expected: dict[Any, int]) -> Iterator[str]:
    for key in stored.keys() | expected.keys():
        if stored.get(key, 0) != expected.get(key, 0):
            yield f"{what} {key}: stored {stored.get(key, 0)}, must be {expected.get(key, 0)}"


def accrued_of(now: Snapshot) -> dict[Account, int]:
    """Give what is posted for each party, but for refunds and write-offs."""
    sums: Counter[Account] = Counter()
    for entry in now["ledger_entries"]:
        if entry["kind"] == "accrual" and entry["party_id"]:
            sums[entry["party_id"], entry["currency"]] += _signed(entry)
    return sums


def open_of(now: Snapshot) -> dict[Account, int]:
    """Give what each party has open."""
    sums: Counter[Account] = Counter()
    for item in now["open_items"]:
        sums[item["party_id"], item["currency"]] += item["amount_minor"]
    return sums


def _party_balances(now: Snapshot) -> dict[Account, int]:
    sums: Counter[Account] = Counter()
    for entry in now["ledger_entries"]:
        if entry["party_id"]:
            sums[entry["party_id"], entry["currency"]] += _signed(entry)
    return sums


def _unpaid(now: Snapshot) -> dict[Account, int]:
    """Open items, and those claimed by instructions not yet sent."""
    sums: Counter[Account] = Counter(open_of(now))
    states = states_of(now)
    for row in now["payout_instructions"]:
        if states[row["instruction_id"]] in _UNSENT:
            sign = -1 if row["direction"] == "debit" else 1
            sums[row["party_id"], row["currency"]] += sign * row["amount_minor"]
    return sums
