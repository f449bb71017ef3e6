"""A fault for every asset check: what is wrong with a day, the row that the check then names, and the cure it gives.

Where the program itself cannot go wrong so, a step of it is made to, a stored file is rewritten, or a superuser changes
a table with all triggers off.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from checked_days import ASSETS, OWED, PARTIES, PLAYED, RESULTS, SCHEDULES, CheckedDays
from dispatches import REJECTED, UNAVAILABLE, UNKNOWN
from money_zone import DAY, NEXT, line

from payments_pipeline.defs.assets import (
    ingest,
    ledger_entries,
    participant_shares,
    payout_instructions,
    reconciliation,
    settlement_records,
)
from payments_pipeline.domain.errors import ProcessorUnavailableError
from payments_pipeline.domain.schemas import SETTLEMENT_REPORTS
from payments_pipeline.processors.base import LookUp
from payments_pipeline.storage.ledger_entries import DayInput, Posted, post_day
from payments_pipeline.storage.payout_instructions import Swept, sweep_day_items

DEFECT = "a defect of the program, report it"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        check: `asset:check` that it turns red.
        plant: makes the fault, and mends it in the end.
        row: cells of one of the rows that the check names; of words, part of them.
        cure: part of the cure.
        breaches: rows that the check counts.
        before: last asset that ran, without that check failing, before the fault was made; empty for none.
        first: first asset that runs with the fault.
        day: the day that runs with the fault.
        also: checks that the fault cannot but turn red as well.
        warns: whether nothing is wrong with the money.
        owed: what each party is owed once it is mended.
    """

    check: str
    plant: Callable[[CheckedDays], AbstractContextManager[None]]
    row: Mapping[str, str]
    cure: str
    breaches: int = 1
    before: str = ""
    first: str = ASSETS[0]
    day: dt.date = DAY
    also: frozenset[str] = frozenset()
    warns: bool = False
    owed: Mapping[str, int] = field(default_factory=lambda: OWED)

    @property
    def asset(self) -> str:
        return self.check.partition(":")[0]

    @property
    def name(self) -> str:
        return str(self.plant.__name__)


FAULTS: list[Fault] = []


def fault(check: str, **said: Any) -> Callable[[Callable[[CheckedDays], Iterator[None]]], None]:
    """Enter a generator into the table of faults: up to its yield it makes the fault, after it mends it."""

    def enter(plant: Callable[[CheckedDays], Iterator[None]]) -> None:
        FAULTS.append(Fault(check, contextmanager(plant), **said))

    return enter


def gives(module: ModuleType, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """What a step's function gives is changed."""
    real = getattr(module, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lambda *given, **more: change(real(*given, **more)))
        yield


# Input


@fault("match_results:rows_accounted_for", row={"read": "2", "accepted_superseded_rejected": "1"}, cure=DEFECT)
def a_match_is_lost_between_file_and_frame(_: CheckedDays) -> Iterator[None]:
    yield from gives(ingest, "accept_input", lambda read: replace(read, match_results=read.match_results.iloc[:1]))


@fault("match_participants:rows_accounted_for", row={"read": "2", "accepted_superseded_rejected": "1"}, cure=DEFECT)
def a_participant_is_lost_between_file_and_frame(_: CheckedDays) -> Iterator[None]:
    yield from gives(
        ingest, "accept_input", lambda read: replace(read, match_participants=read.match_participants.iloc[1:])
    )


@fault(
    "match_results:schema",
    row={"column": "match_id", "check": "multiple_fields_uniqueness", "index": "0", "failure_case": "m1"},
    cure=DEFECT,
    breaches=2,
)
def a_match_stands_there_twice(_: CheckedDays) -> Iterator[None]:
    yield from gives(
        ingest,
        "accept_input",
        lambda read: replace(read, match_results=read.match_results.iloc[[0, 0]].reset_index(drop=True)),
    )


@fault(
    "match_participants:schema",
    row={"column": "party_id", "check": "multiple_fields_uniqueness", "index": "1", "failure_case": "p1"},
    cure=DEFECT,
    breaches=4,
)
def a_participant_stands_there_twice(_: CheckedDays) -> Iterator[None]:
    yield from gives(
        ingest, "accept_input", lambda read: replace(read, match_participants=twice(read.match_participants))
    )


@fault(
    "rejected_records:schema",
    row={"column": "line_number", "check": "multiple_fields_uniqueness", "index": "0", "failure_case": "4"},
    cure=DEFECT,
    breaches=6,
)
def a_superseded_record_stands_there_twice(days: CheckedDays) -> Iterator[None]:
    days.land("match_participants", PLAYED + "".join(PLAYED.splitlines(keepends=True)[1:]))
    yield from gives(ingest, "accept_input", lambda read: replace(read, rejected_records=twice(read.rejected_records)))


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    """The first row once more in the place of the second."""
    return frame.iloc[[0, 0]].reset_index(drop=True)


@fault("match_results:previous_day_exists", row={"missing_day": str(DAY)}, cure="backfill it", day=NEXT, warns=True)
def the_day_before_never_ran(_: CheckedDays) -> Iterator[None]:
    yield


@fault(
    "rejected_records:reject_rate",
    row={
        "source": f"match_participants/date={DAY}/a.csv",
        "line_number": "4",
        "reason": "party_unknown",
        "words": "party_id nobody",
    },
    cure="more than 500 basis points of the rows read were rejected: mend and deliver them again",
)
def one_row_of_five_names_a_party_that_nobody_knows(days: CheckedDays) -> Iterator[None]:
    days.land("match_participants", PLAYED + "m1,nobody,A,player\n")
    yield


# Shares


def in_two_rows(shares: pd.DataFrame) -> pd.DataFrame:
    """One share as two rows of its key, a unit in the second."""
    first = shares.iloc[[0]]
    parts = [first.assign(amount_minor=first["amount_minor"] - 1), first.assign(amount_minor=1), shares.iloc[1:]]
    return pd.concat(parts, ignore_index=True)


@fault(
    "participant_shares:schema",
    row={"column": "match_id", "check": "multiple_fields_uniqueness", "index": "0", "failure_case": "m1"},
    cure=DEFECT,
    breaches=10,
)
def a_share_stands_there_in_two_rows(_: CheckedDays) -> Iterator[None]:
    yield from gives(participant_shares, "compute_shares", in_two_rows)


def a_unit_less(shares: pd.DataFrame) -> pd.DataFrame:
    is_bs = (shares["match_id"] == "m1") & (shares["party_id"] == "B")
    return shares.assign(amount_minor=shares["amount_minor"] - is_bs.astype("int64"))


@fault(
    "participant_shares:pots_conserved",
    row={"match_id": "m1", "pot": "revenue", "expected_minor": "20000", "actual_minor": "19999"},
    cure="a defect of the program, report it; nothing is posted",
)
def a_share_lost_a_unit(_: CheckedDays) -> Iterator[None]:
    yield from gives(participant_shares, "compute_shares", a_unit_less)


@fault(
    "participant_shares:no_suspense",
    row={"match_id": "m2", "schedule_version": "v1", "amount_minor": "2700", "currency": "GBP"},
    cure="give their schedule a remainder line that always has a recipient",
    breaches=2,
)
def a_schedule_says_nothing_of_what_is_left(days: CheckedDays) -> Iterator[None]:
    days.refer(
        "fee_schedules",
        "".join(row for row in SCHEDULES.splitlines(keepends=True) if "_club,rem" not in row or "own" in row),
    )
    yield


# Ledger

ONE_SIDED = "00000000-0000-0000-0000-000000000001"


@fault(
    "ledger_entries:balanced",
    row={"journal_id": ONE_SIDED, "currency": "GBP", "debits_minor": "5", "credits_minor": "0"},
    cure="nothing is sent until it does; run `payments-pipeline verify`",
)
def a_journal_has_one_side(days: CheckedDays) -> Iterator[None]:
    days.tamper(
        f"""INSERT INTO journals (journal_id, kind, day, processor, entry_reference, run_id, code_version)
            VALUES ('{ONE_SIDED}', 'fee', '{DAY}', 'sandbox', 'e', 'r', '0');
            INSERT INTO ledger_entries
                (entry_id, journal_id, kind, day, account, currency, debit_minor, credit_minor, is_item)
            VALUES (gen_random_uuid(), '{ONE_SIDED}', 'fee', '{DAY}', 'fees:sandbox', 'GBP', 5, 0, false)"""
    )
    yield
    days.tamper(
        f"""DELETE FROM ledger_entries WHERE journal_id = '{ONE_SIDED}';
            DELETE FROM journals WHERE journal_id = '{ONE_SIDED}'"""
    )


@fault(
    "ledger_entries:equals_shares",
    row={"match_id": "m1", "account": "party:B", "amount_minor_shares": "5700", "amount_minor_posted": "5701"},
    cure=DEFECT,
    breaches=2,
)
def a_unit_is_posted_to_another_party_than_its_share_says(_: CheckedDays) -> Iterator[None]:
    def another_unit(url: str, day: dt.date, read: DayInput, *more: Any) -> Posted:
        shares = read.shares
        is_of = [(shares["match_id"] == "m1") & (shares["pot"] == "revenue") & (shares["party_id"] == p) for p in "AB"]
        moved = shares["amount_minor"] - is_of[0].astype("int64") + is_of[1].astype("int64")
        return post_day(url, day, replace(read, shares=shares.assign(amount_minor=moved)), *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_entries, "post_day", another_unit)
        yield


@fault(
    "ledger_entries:no_posting_breaks",
    row={"match_id": "m2", "reason": "absent", "words": "m2"},
    cure="what was posted for these matches stands and their unsent items wait; the words say what to do",
    before="ledger_entries",
)
def a_match_that_was_posted_is_delivered_no_more(days: CheckedDays) -> Iterator[None]:
    days.land("match_results", "".join(RESULTS.splitlines(keepends=True)[:2]))
    yield


REQUEST = "refund_id,match_id,party_id,amount_minor,reason\nr1,m1,p1,,rained off\n"
REFUNDED = {party: minor for party, minor in OWED.items() if party != "p1"} | {"A": OWED["A"] - 300}


@fault(
    "refunds:refunds_bounded",
    row={
        "refund_id": "r1",
        "pot_party_id": "p1",
        "amount_minor": "299",
        "applied_minor": "300",
        "pot_charged_minor": "300",
    },
    cure="more is refunded than was accepted or charged: a defect; run `payments-pipeline verify`",
    owed=REFUNDED,
)
def a_refund_gives_back_more_than_was_accepted(days: CheckedDays) -> Iterator[None]:
    days.land("refund_requests", REQUEST)
    assert not days.run("refunds").red
    days.tamper("UPDATE refunds SET amount_minor = 299")
    yield
    days.tamper("UPDATE refunds SET amount_minor = 300")


@fault(
    "refunds:refunds_bounded",
    row={"refund_id": "r1", "applied_minor": "300", "pot_charged_minor": "60", "pot_refunded_minor": "300"},
    cure="more is refunded than was accepted or charged: a defect; run `payments-pipeline verify`",
    first="refunds",
)
def a_pot_gives_back_more_than_it_charged(days: CheckedDays) -> Iterator[None]:
    days.land("refund_requests", REQUEST)
    assert not days.run("refunds").red
    days.tamper("UPDATE ledger_entries SET debit_minor = 60 WHERE kind = 'accrual' AND account = 'party:p1'")
    yield


@fault(
    "refunds:no_refused_requests",
    row={
        "source": f"refund_requests/date={DAY}/a.csv",
        "line_number": "2",
        "refund_id": "r1",
        "reason": "more_than_left",
        "words": "of which 300 is left",
    },
    cure="nothing of these was refunded; the words say what to do, and the next run of this day looks again",
    warns=True,
)
def a_unit_more_than_the_fee_is_asked_back(days: CheckedDays) -> Iterator[None]:
    days.land("refund_requests", REQUEST.replace("p1,,", "p1,301,"))
    yield


# Sweep

OF_B = "party_id = 'B'"


@fault(
    "payout_instructions:equal_their_items",
    row={"party_id": "B", "direction": "credit", "amount_minor": "6601", "items_minor": "6600"},
    cure="an instruction is not the net of its items: a defect, report it; it is not sent",
    before="payout_instructions",
)
def an_instruction_is_for_a_unit_more_than_its_items(days: CheckedDays) -> Iterator[None]:
    days.tamper(f"UPDATE payout_instructions SET amount_minor = amount_minor + 1 WHERE {OF_B}")
    yield
    days.tamper(f"UPDATE payout_instructions SET amount_minor = amount_minor - 1 WHERE {OF_B}")


@fault(
    "payout_instructions:equal_their_items",
    row={"party_id": "B", "amount_minor": "6600", "items_minor": "6600"},
    cure="an instruction is not the net of its items: a defect, report it; it is not sent",
    before="payout_instructions",
    first="payout_instructions",
)
def an_instruction_claims_an_item_of_nobody(days: CheckedDays) -> Iterator[None]:
    days.tamper(
        f"""INSERT INTO instruction_claims (item_id, claim_no, instruction_id)
            SELECT gen_random_uuid(), 1, instruction_id FROM payout_instructions WHERE {OF_B}"""
    )
    yield


TWIN = "00000000-0000-0000-0000-000000000002"


@fault(
    "payout_instructions:no_item_claimed_twice",
    row={"live_claims": "2", "instructions": TWIN},
    cure="an item is under two live instructions: a defect, report it; run `payments-pipeline verify`",
    breaches=2,
    before="payout_instructions",
)
def the_items_of_a_party_are_under_an_instruction_of_the_next_day_as_well(days: CheckedDays) -> Iterator[None]:
    days.tamper(
        f"""CREATE TEMPORARY TABLE twin AS SELECT * FROM payout_instructions WHERE {OF_B};
            UPDATE twin SET instruction_id = '{TWIN}', sweep_day = '{NEXT}';
            INSERT INTO payout_instructions SELECT * FROM twin;
            INSERT INTO instruction_claims (item_id, claim_no, instruction_id)
            SELECT item_id, 2, '{TWIN}' FROM instruction_claims JOIN payout_instructions USING (instruction_id)
            WHERE {OF_B} AND sweep_day = '{DAY}'"""
    )
    yield
    days.tamper(
        f"""DELETE FROM instruction_claims WHERE instruction_id = '{TWIN}';
            DELETE FROM payout_instructions WHERE instruction_id = '{TWIN}'"""
    )


def with_b(days: CheckedDays, status: str = "active", token: str = "tok_B") -> None:
    days.refer("parties", PARTIES.replace("active,tok_B", f"{status},{token}"))


@fault(
    "payout_instructions:none_for_a_party_on_hold",
    row={"party_id": "B", "direction": "credit", "amount_minor": "6600", "token": "tok_B"},
    cure="an instruction pays a party that is not active: a defect, report it; dispatch cancels it",
    owed={party: amount_minor for party, amount_minor in OWED.items() if party != "B"},
)
def a_sweep_heeds_no_hold(days: CheckedDays) -> Iterator[None]:
    with_b(days, status="on_hold")

    def heedless(url: str, day: dt.date, parties: pd.DataFrame, *more: Any) -> Swept:
        return sweep_day_items(url, day, parties.assign(status="active"), *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payout_instructions, "sweep_day_items", heedless)
        yield


@fault(
    "payout_instructions:nothing_waits",
    row={
        "party_id": "B",
        "currency": "GBP",
        "reason": "no_payout_token",
        "items": "2",
        "amount_minor": "6600",
        "what_to_do": "the party has no payout_token: add one",
    },
    cure="these items stay open and are swept again by later days; what_to_do says how",
    warns=True,
)
def a_party_that_is_owed_has_no_account(days: CheckedDays) -> Iterator[None]:
    with_b(days, token="")
    yield


# Dispatch


def down(_key: str) -> LookUp:
    raise ProcessorUnavailableError("503")


def answers_b(days: CheckedDays, answer: Callable[[str], None]) -> None:
    def to_b(key: str) -> None:
        if key == days.zone.instruction("B"):
            answer(key)

    days.processor.answer = to_b


@fault(
    "payout_submissions:all_answered",
    row={"party_id": "B", "currency": "GBP", "direction": "credit", "amount_minor": "6600", "state": "unknown"},
    cure="these may have been carried out; every later dispatch asks about them, and none is sent blind",
)
def the_processor_does_not_answer(days: CheckedDays) -> Iterator[None]:
    answers_b(days, UNKNOWN)
    yield


@fault(
    "payout_submissions:all_answered",
    row={"party_id": "B", "currency": "GBP", "direction": "credit", "amount_minor": "6600", "state": "submitting"},
    cure="these may have been carried out; every later dispatch asks about them, and none is sent blind",
)
def the_processor_is_down(days: CheckedDays) -> Iterator[None]:
    answers_b(days, UNAVAILABLE)
    yield


@fault(
    "payout_submissions:all_answered",
    row={"party_id": "B", "amount_minor": "6600", "state": "unknown", "since_on": str(DAY)},
    cure="these may have been carried out; every later dispatch asks about them, and none is sent blind",
    first="payout_submissions",
    day=NEXT,
)
def the_processor_has_not_answered_since_the_day_before(days: CheckedDays) -> Iterator[None]:
    answers_b(days, UNKNOWN)
    days.processor.look = down
    days.run("payout_submissions")
    yield


@fault(
    "payout_submissions:none_refused",
    row={"party_id": "B", "amount_minor": "6600", "state": "failed", "reason": "rejected: closed"},
    cure="their items are open again for later days; mend the party's token, or ask the processor",
    warns=True,
)
def the_processor_refuses_an_account(days: CheckedDays) -> Iterator[None]:
    answers_b(days, REJECTED)
    yield


@fault(
    "payout_submissions:none_refused",
    row={"party_id": "B", "amount_minor": "6600", "state": "cancelled", "reason": "the party is on_hold"},
    cure="their items are open again for later days; mend the party's token, or ask the processor",
    before="payout_instructions",
    first="payout_submissions",
    warns=True,
)
def the_gate_refuses_a_party_that_went_on_hold(days: CheckedDays) -> Iterator[None]:
    with_b(days, status="on_hold")
    yield


@fault(
    "payout_submissions:nothing_sent_to_a_party_on_hold",
    row={"party_id": "B", "currency": "GBP", "direction": "credit", "amount_minor": "6600", "outcome": "acknowledged"},
    cure="the party went on hold after its instruction was sent, or this is a defect: look at both times",
    before="payout_submissions",
    first="payout_submissions",
)
def a_party_goes_on_hold_after_it_was_paid(days: CheckedDays) -> Iterator[None]:
    with_b(days, status="on_hold")
    yield


# Settlement


def charged(reference: str, amount_minor: int) -> dict[str, Any]:
    return line(None, -amount_minor, "fee", entry_reference=reference)


@fault(
    "settlement_reports:schema",
    row={"column": "entry_reference", "check": "multiple_fields_uniqueness", "index": "1", "failure_case": "e1"},
    cure="ask the processor which of these lines holds",
    breaches=4,
    first="settlement_reports",
)
def the_processor_gives_one_reference_two_amounts(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25), charged("e1", 26)]
    yield
    days.processor.reported[DAY] = [charged("e1", 25)]


@fault(
    "settlement_records:schema",
    row={"column": "entry_reference", "check": "multiple_fields_uniqueness", "index": "2", "failure_case": "e1"},
    cure=DEFECT,
    breaches=4,
    first="settlement_reports",
)
def a_record_is_given_twice(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25), charged("e2", 10)]
    yield from gives(
        settlement_records,
        "take_report_in",
        lambda taken: replace(taken, records=taken.records.iloc[[0, 1, 0]].reset_index(drop=True)),
    )


CURE_OF_RECORDS = (
    "the report and the records of this date differ: where the report lost or changed a line that was taken in, what "
    "was posted of it stands, and the processor mends it; else run the day again"
)


@fault(
    "settlement_records:equal_reports",
    row={"entry_reference": "e2", "amount_minor": "-10", "currency": "GBP", "stands_in": "the report alone"},
    cure=CURE_OF_RECORDS,
    first="settlement_reports",
)
def a_line_is_recorded_nowhere(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25), charged("e2", 10)]
    yield from gives(
        settlement_records,
        "take_report_in",
        lambda taken: replace(taken, records=taken.records[taken.records["entry_reference"] != "e2"]),
    )


@fault(
    "settlement_records:equal_reports",
    row={"entry_reference": "e1", "amount_minor": "-25", "currency": "GBP", "stands_in": "the records alone"},
    cure=CURE_OF_RECORDS,
    first="settlement_records",
)
def a_line_that_was_recorded_is_gone_from_the_stored_report(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25), charged("e2", 10)]
    assert not days.run("settlement_records", first="settlement_reports").red
    days.rewrite(SETTLEMENT_REPORTS, lambda stored: stored[stored["entry_reference"] != "e1"])
    yield


@fault(
    "settlement_records:all_matched",
    row={"entry_reference": "e3", "outcome": "unmatched", "currency": "GBP", "cash_minor": "-77"},
    cure="their cash is in suspense until they are matched: ask the processor what they are for",
    first="settlement_reports",
)
def a_line_settles_what_nobody_instructed(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [line("another's key", -77, entry_reference="e3"), charged("e1", 25)]
    yield


# Reconciliation


@fault(
    "reconciliation:schema",
    row={"column": "difference_minor", "check": "whole numbers", "failure_case": "False"},
    cure=DEFECT,
    first="settlement_reports",
)
def amounts_are_no_column_of_whole_numbers(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25)]
    yield from gives(reconciliation, "reconcile_day", lambda rows: rows.astype({"difference_minor": object}))


@fault(
    "reconciliation:no_breaks",
    row={
        "subject_type": "cash",
        "subject_id": "cash:sandbox",
        "currency": "GBP",
        "difference_minor": "-1",
        "age_days": "0",
        "words": "the ledger's cash is -25, the processor's closing balance -26",
    },
    cure="each row's words say what to do",
    first="settlement_reports",
    warns=True,
)
def the_processor_holds_a_unit_less_than_the_ledger_says(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [charged("e1", 25)]
    days.processor.closing_minor = -26
    yield


@fault(
    "reconciliation:no_old_breaks",
    row={
        "subject_type": "unmatched",
        "subject_id": "e3",
        "currency": "GBP",
        "difference_minor": "-77",
        "age_days": "7",
        "words": "its cash is in suspense",
    },
    cure="these are 7 days old or more: they need a person",
    first="reconciliation",
    day=DAY + dt.timedelta(days=7),
    also=frozenset({"reconciliation:no_breaks"}),
)
def cash_belongs_to_nothing_for_a_week(days: CheckedDays) -> Iterator[None]:
    days.processor.reported[DAY] = [line("another's key", -77, entry_reference="e3")]
    days.run(first="settlement_reports")
    yield
