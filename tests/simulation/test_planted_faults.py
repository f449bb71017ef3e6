"""What this system survives: one statement of the product changed, and the shortest history that shows it.

Each fault is planted into the code that ships. Where Postgres, or the program itself, refuses what follows, its words
stand with the fault (`refused_by`); what refuses it is then taken away, and the rules find it all the same
(`caught_by`): right after the last operation of the history or, where it says so, at the end, when the days have run
on. Every history is also lived through without its fault, and nothing is found.
"""

from pathlib import Path

import planted_statements as put
import pytest
from planted_statements import undone, without
from planting import Fault, letting, live, tell_refusals

from simulation import runner
from simulation.database import server
from simulation.effects import Fate
from simulation.history import (
    UNLIMITED,
    Act,
    Bank,
    ChangeParty,
    ChangeRules,
    Deliver,
    Jump,
    OtherLine,
    Overlap,
    Resume,
    Spoil,
    Weather,
)
from simulation.rules import RuleBroken

ROOT = Path(__file__).resolve().parents[2]
MATCH = Deliver("match-1", "cup", 0, 1, "completed", 10_000, ("player:1",))
#: 30 fixed, 12.5 % of 971, the rest 2 to 1: one unit is left over when everybody has had their whole ones.
UNEVEN = Deliver("match-1", "cup", 0, 1, "completed", 1_001, ())
BETTER = Deliver("match-1", "cup", 0, 1, "completed", 20_000, ("player:1",))
ALSO = Deliver("match-3", "cup", 1, 1, "completed", 10_000, ("player:1",))
MOVED = Deliver("match-1", "cup", 1, 1, "completed", 20_000, ("player:1",))
VOID = Deliver("match-1", "cup", 0, 1, "void", 0, ())
#: The same clubs, in another currency.
UNCOLLECTED = Deliver("match-1", "league", 0, 1, "completed", 10_000, ("player:1",))
LEAGUE = Deliver("match-2", "league", 0, 1, "completed", 10_000, ())
POST, SWEEP, DISPATCH = (Act(kind, 0) for kind in ("post", "sweep", "dispatch"))
SWEPT = (MATCH, POST, SWEEP)
SENT = (*SWEPT, DISPATCH)
#: Payments ask to be carried out the day after they are sent: that day's report has them.
REPORTED = Act("settle", 1)
REPORTED_LATER = Act("settle", 2)
REFUND_ALL, REFUND_1200 = Act("refund", 0), Act("refund", 4)
HOLD, NEW_TOKEN = ChangeParty("club:home", "on_hold"), ChangeParty("club:home", "new_token")
NO_ANSWER, NO_ANSWERS = Weather(("lost_response",), down=False), Weather(("lost_response",) * 8, down=False)
REFUSED, UNAVAILABLE = Weather(("rejected",), down=False), Weather(("unavailable",), down=False)
#: Where a dispatch has sent its first batch, and is about to write down the answers.
_ANSWERED = "finish"
DIED = Act("dispatch", 0, Fate(crash_at=1, within=_ANSWERED))
_FAILS = Bank(-1, "fail", 0)
#: What was sent last fails three times, each time with the items that the failure before freed.
THREE_FAILED = (
    *(UNEVEN, POST, SWEEP, DISPATCH, _FAILS, Act("settle", 1)),
    *(Act("sweep", 2), Act("dispatch", 2), _FAILS, Act("settle", 3)),
    *(Act("sweep", 4), Act("dispatch", 4), _FAILS, Act("settle", 5), Act("sweep", 6)),
)

DIVIDING = (
    Fault(
        "each share is rounded in floats",
        (UNEVEN, POST),
        put.ROUNDED,
        refused_by="InvariantError: match match-1: the shares of a pot sum to 1000 and not to 1001",
        letting=(put.UNCHECKED, put.POSTED_UNCHECKED),
        caught_by="rule 14: posted for",
    ),
    Fault(
        "shares are rounded in floats, and the last takes what is left",
        (UNEVEN, POST),
        put.ROUNDED_BUT_THE_LAST,
        caught_by="rule 14: posted for",
    ),
    Fault(
        "the unit left over is lost",
        (UNEVEN, POST),
        put.UNIT_LOST,
        refused_by="InvariantError: match match-1: the shares of a pot sum to 1000 and not to 1001",
        letting=(put.UNCHECKED, put.POSTED_UNCHECKED),
        caught_by="rule 14: posted for",
    ),
    Fault(
        "the unit left over is given twice",
        (UNEVEN, POST),
        put.UNIT_TWICE,
        refused_by="InvariantError: match match-1: the shares of a pot sum to 1002 and not to 1001",
        letting=(put.UNCHECKED, put.POSTED_UNCHECKED),
        caught_by="rule 14: posted for",
    ),
)
POSTING = (
    Fault("a void is not reversed", (MATCH, POST, VOID, POST), (put.VOID_KEPT,), caught_by="rule 14: posted for"),
    Fault("a void is reversed twice", (MATCH, POST, VOID, POST), (put.VOID_TWICE,), caught_by="rule 14: posted for"),
    Fault(
        "a void is reversed again by each run",
        (MATCH, POST, VOID, POST, POST),
        (put.FIRST_POSTING_ONLY,),
        refused_by="ConflictError: .*ledger_entries_(pkey|accrual_key)",
    ),
    Fault(
        "a match that moved to another day is posted there too",
        (MATCH, POST, MOVED, Act("post", 1)),
        (put.ANY_DAY,),
        refused_by="ConflictError: .*does not follow what is posted",
        letting=without("match_postings", "match_postings_check", "match_postings_corrections"),
        caught_by="rule 14: posted for",
    ),
)
POSTING += (
    Fault(
        "what was computed from an older input is posted",
        (MATCH, Act("post", 0, Fate(stall_at=1)), BETTER, Resume("go on")),
        (put.STALE_INPUT,),
        caught_by="run 1 posted 2024-08-17 from what is not its input",
    ),
    Fault(
        "a match is never posted",
        (MATCH, POST),
        (put.NEVER_POSTED,),
        caught_by="at the end: .* can be posted and is not",
    ),
)
REFUNDING = (
    Fault(
        "the next run of a day undoes a refund",
        (MATCH, POST, REFUND_ALL, POST),
        (put.REFUND_UNDONE,),
        caught_by="rule 14: posted for",
    ),
    Fault(
        "a refund outlives the fee that it came from",
        (MATCH, POST, REFUND_ALL, VOID, POST),
        (put.REFUND_KEPT,),
        refused_by="ConflictError: .*refunds of it come to",
        letting=without("ledger_entries", "ledger_entries_refund_check"),
        caught_by="open of",
    ),
    Fault(
        "a refund is above what is left of its fee",
        (MATCH, POST, REFUND_1200),
        (put.REFUND_UNBOUNDED,),
        refused_by="ConflictError: .*still charges 500 GBP, and 1200 is to be refunded",
        letting=without("refunds", "refunds_check", "refunds_births"),
        caught_by="refund refund-4 of 1200 is above the 500 that its fee charged",
    ),
)
SWEEPING = (
    Fault(
        "a sweep takes what another has claimed",
        (*SWEPT, Act("sweep", 1)),
        (put.CLAIMED_TOO,),
        refused_by="UniqueViolation: .*instruction_claims_pkey",
        letting=undone("instruction_claims", "instruction_claims_pkey"),
        caught_by="RestrictViolation: item .* is not an open item",
    ),
    Fault(
        "a sweep takes what another has claimed, and neither key nor trigger minds",
        (*SWEPT, Act("sweep", 1)),
        (put.CLAIMED_TOO,),
        letting=(*undone("instruction_claims", "instruction_claims_pkey"), *put.OPEN_OR_NOT, put.ANY_NET),
        caught_by="rule 9: item .* is under",
    ),
    Fault(
        "what a sweep deferred is dropped",
        SWEPT,
        (put.DEFERRED_DROPPED,),
        caught_by="at the end: the sweep of .* left item .*platform.* open and does not say why",
    ),
    Fault(
        "what a sweep leaves open is told to nobody",
        SWEPT,
        (put.NOT_TOLD,),
        caught_by="the sweep of .* left item .*platform.* open and does not say why",
    ),
    Fault(
        "a party is paid again whatever came back before",
        THREE_FAILED,
        (put.FAILURES_FORGOTTEN,),
        caught_by="which came back 3 times",
    ),
    Fault(
        "two sweeps run at once",
        (MATCH, POST, Overlap((SWEEP, SWEEP), 1)),
        (put.SWEPT_AT_ONCE,),
        refused_by="UniqueViolation",
    ),
    Fault(
        "two postings of a day run at once",
        (MATCH, Overlap((POST, POST), 1)),
        (put.POSTED_AT_ONCE,),
        refused_by="ConflictError",
    ),
    Fault(
        "two dispatches run at once",
        (*SWEPT, Act("dispatch", 0, Fate(stall_at=1, within=_ANSWERED)), DISPATCH, Resume("go on")),
        (put.SENT_AT_ONCE,),
        refused_by="UniqueViolation",
    ),
    Fault(
        "items are netted with the wrong sign",
        SWEPT,
        (put.WRONG_SIGN,),
        refused_by="CheckViolation: instruction .* and its items net to",
        letting=(put.ANY_NET,),
        caught_by="instruction .* has items of",
    ),
    Fault(
        "what is owed in two currencies is paid in one",
        (MATCH, LEAGUE, POST, SWEEP),
        (put.CURRENCIES_MERGED,),
        refused_by="RestrictViolation: item .* is not an open item of the party and currency",
        letting=(put.ANY_CURRENCY,),
        caught_by="open of",
    ),
)
SWEEPING += (
    Fault(
        "what is over its limit needs no approver",
        SWEPT,
        (put.NO_APPROVER,),
        caught_by="rule 13: instruction .* is over its limit",
        limit_minor=500,
    ),
    Fault(
        "what is below the minimum is paid",
        SWEPT,
        (put.NO_MINIMUM,),
        caught_by="instruction .* of 30 is below the minimum",
    ),
    Fault(
        "what a broken match owes is paid",
        (MATCH, POST, Spoil("match-1", "withdrawn"), POST, SWEEP),
        put.BROKEN_TOO,
        caught_by="item .* is claimed, and its match match-1 has a break",
    ),
    Fault(
        "what a run posted before it was stopped is paid by another day's",
        (*SWEPT, BETTER, POST, Act("sweep", 1)),
        (put.STOPPED_TOO,),
        caught_by="is claimed, and its own run did not get to its sweep",
    ),
    Fault(
        "what may net with what a stopped run posted is paid",
        (*SWEPT, VOID, POST, ALSO, Act("post", 1), Act("sweep", 1)),
        (put.APART_FROM_STOPPED,),
        caught_by="is claimed, and what it may net with waits for a run of 2024-08-17",
    ),
    Fault(
        "what makes up for what is posted and not swept is paid by itself",
        (*SENT, Bank(0, "fail_then_settle", 0), REPORTED, REPORTED_LATER, ALSO, Act("post", 1), Act("sweep", 4)),
        (put.MADE_UP_APART,),
        caught_by="is claimed, and what it may net with waits for a run of 2024-08-18",
    ),
    Fault(
        "what is corrected while a sweep runs is paid and taken back at once",
        (*SWEPT, VOID, Act("sweep", 0, Fate(stall_at=1, within="read_frame")), POST, Resume("go on")),
        (put.APART,),
        refused_by="RestrictViolation: .* another posting of its key, is under .* unsent",
        letting=without("instruction_claims", "instruction_claims_siblings"),
        caught_by="and its correction are about to leave apart",
    ),
    Fault(
        "a fee is paid out before it is collected",
        (UNCOLLECTED, POST, SWEEP),
        (put.NOT_COLLECTED_TOO,),
        caught_by="club:home is paid of the fee of player:1",
    ),
)
SENDING = (
    Fault(
        "a request leaves before its attempt is committed",
        SENT,
        (put.SENT_FIRST,),
        caught_by="rule 6: key .* was sent, and no attempt with its bytes is committed",
    ),
    Fault(
        "no answer is taken for a failure",
        (NO_ANSWER, *SENT),
        (put.UNKNOWN_FAILED,),
        caught_by="rule 8: instruction .* failed, and the processor never refused it",
    ),
    Fault(
        "what a sender left when it died is taken for a failure",
        (*SWEPT, DIED, Act("dispatch", 1)),
        (put.DEAD_IS_FAILED,),
        refused_by="RestrictViolation: .* says failed, and after submitting nothing shows that it was not carried out",
        letting=without("instruction_events", "instruction_events_reported"),
        caught_by="rule 8: instruction .* failed, and the processor never refused it",
    ),
    Fault(
        "what had no answer is tried again, and nobody is asked",
        (NO_ANSWER, *SENT),
        (put.UNKNOWN_AGAIN,),
        caught_by="rule 8: key .* was sent again, and nobody asked what became of it before",
    ),
    Fault(
        "a request leaves twice under one attempt",
        SENT,
        (put.SENT_TWICE,),
        caught_by="rule 6: key .* was sent more often than the 1 attempts that are committed",
    ),
    Fault(
        "what had no answer is tried again under a new key",
        (NO_ANSWER, *SENT),
        (put.UNKNOWN_AGAIN, put.NEW_KEY),
        refused_by="RestrictViolation: instruction .*: attempt 2 refused: .* or its bytes, key or deadline differ",
        letting=without("payout_attempts", "payout_attempts_check"),
        caught_by="rule 6: the attempts of .* differ in key, bytes or deadline",
    ),
    Fault(
        "other bytes are committed under the same key",
        (UNAVAILABLE, *SENT),
        (put.OTHER_BYTES,),
        refused_by="RestrictViolation: instruction .*: attempt 2 refused: .* or its bytes, key or deadline differ",
        letting=without("payout_attempts", "payout_attempts_check"),
        caught_by="rule 6: the attempts of .* differ in key, bytes or deadline",
    ),
    Fault(
        "other bytes are sent than were committed",
        (UNAVAILABLE, *SENT),
        (put.OTHER_BYTES_SENT,),
        caught_by="rule 6: key .* was sent, and no attempt with its bytes is committed",
    ),
    Fault(
        "a key is trusted beyond its lifetime",
        (NO_ANSWERS, *SENT, Jump(30, 0), Act("dispatch", 1)),
        (put.TRUSTED_TOO_LONG,),
        caught_by="carried out twice",
    ),
    Fault(
        "a clock that was fast when a request left is trusted later",
        (NO_ANSWERS, Jump(0, 0, 50), *SENT, Jump(30, 0), Act("dispatch", 1)),
        (put.OWN_CLOCK,),
        caught_by="carried out twice",
    ),
    Fault(
        "a party on hold is paid",
        (*SWEPT, HOLD, DISPATCH),
        (put.HOLD_IGNORED,),
        caught_by="was sent to a token of a party that may not be paid",
    ),
    Fault(
        "a payment goes to an account that was given up",
        (*SWEPT, NEW_TOKEN, DISPATCH),
        (put.TOKEN_IGNORED,),
        caught_by="was sent to a token of a party that may not be paid",
    ),
    Fault(
        "a cancelled instruction is sent",
        (*SWEPT, BETTER, POST, SWEEP, DISPATCH),
        put.CANCELLED_TOO,
        refused_by="RestrictViolation: instruction .* from approved to submitting is not a transition that can follow",
        letting=(put.ANY_STATE_BEFORE,),
        caught_by="rule 9: .* is submitted, its item .* released: True",
    ),
    Fault(
        "a collection is sent as a payment",
        SENT,
        (put.COLLECTION_PAYS,),
        caught_by="at the end: .*player:1.* was owed 1000",
    ),
    Fault(
        "the items of a refused payment are freed twice",
        (REFUSED, *SENT),
        (put.FREED_TWICE,),
        refused_by="UniqueViolation: .*claim_releases_pkey",
        letting=(*undone("claim_releases", "claim_releases_pkey"), *undone("open_items", "open_items_pkey")),
        caught_by="open of",
    ),
    Fault(
        "the items of a refused payment are never freed",
        (REFUSED, *SENT),
        (put.NEVER_FREED,),
        refused_by="RestrictViolation: instruction .* became failed and still claims its items",
        letting=without("instruction_events", "instruction_events_ends"),
        caught_by="rule 9: .* is failed, its item .* released: False",
    ),
)
SENDING += (
    Fault(
        "more is sent in a day than its limit",
        SENT,
        (put.NO_DAY_LIMIT,),
        caught_by="GBP was sent on .*, above the day's limit",
        day_limit_minor=500,
    ),
    *(
        Fault(
            f"a payment is sent again to {whom}",
            (
                MATCH,
                POST,
                SWEEP,
                Weather(("unavailable",) * 12, down=False),
                DISPATCH,
                change,
                Weather((), down=False),
                Act("dispatch", 1),
            ),
            (put.GATE_LEFT_OPEN,),
            caught_by="was sent to a token of a party that may not be paid",
        )
        for whom, change in (("a party on hold", HOLD), ("an account that was given up", NEW_TOKEN))
    ),
)
SETTLING = (
    Fault(
        "what sending moves is taken for an item",
        SENT,
        (put.SENDING_IS_ITEM,),
        refused_by="CheckViolation: .*ledger_entries_item_of_kind",
        letting=undone("ledger_entries", "ledger_entries_item_of_kind"),
        caught_by="open of",
    ),
    Fault(
        "what a failure moves back is taken for an item",
        (*SENT, Bank(0, "fail", 0), REPORTED),
        (put.FAILING_IS_ITEM,),
        caught_by="open of",
    ),
    Fault(
        "what was paid beyond what is owed is not claimed back",
        (*SENT, Bank(0, "settle_twice", 0), REPORTED, REPORTED_LATER),
        (put.EXCESS_LEFT,),
        caught_by="open of",
    ),
    Fault(
        "a report line is taken in again",
        (*SENT, Bank(0, "settle", 0), REPORTED, REPORTED),
        (put.TAKEN_IN_AGAIN,),
        refused_by="UniqueViolation: .*journals_pkey",
    ),
    Fault(
        "a report line is posted twice over",
        (*SENT, Bank(0, "settle", 0), REPORTED),
        (put.CASH_TWICE,),
        refused_by="RestrictViolation: report line .* moves",
        letting=without("report_lines", "report_lines_check"),
        caught_by="rule 11: cash in",
    ),
    Fault(
        "a settlement that fell short is taken for the whole",
        (*SENT, Bank(0, "settle_short", 0), REPORTED),
        (put.CASH_AS_INSTRUCTED,),
        refused_by="RestrictViolation: report line .* moves",
        letting=without("report_lines", "report_lines_check"),
        caught_by="rule 11: cash in",
    ),
    Fault(
        "a failure after a settlement frees the items",
        (*SENT, Bank(0, "settle_then_fail", 0), REPORTED, REPORTED_LATER),
        (put.FAILED_AFTER_SETTLED,),
        refused_by="RestrictViolation: instruction .* from settled to failed is not a transition that can follow",
        letting=(put.ANY_TRANSITION,),
        caught_by="instruction .* is failed; by what happened it is settled",
    ),
    Fault(
        "a return after a settlement is ignored",
        (*SENT, Bank(0, "settle_then_return", 0), REPORTED, REPORTED_LATER),
        (put.RETURN_IGNORED,),
        caught_by="instruction .* is settled; by what happened it is undone",
    ),
    Fault(
        "a line under nobody's key settles somebody's payment",
        (*SENT, Bank(0, "settle", 0), OtherLine("unknown_key", 1), REPORTED),
        (put.ANYBODYS_KEY,),
        caught_by="report line .* is not what the processor said",
    ),
)
SETTLING += (
    Fault(
        "what belongs to nobody is recorded as settled",
        (MATCH, OtherLine("unknown_key", 1), REPORTED),
        (put.RECORDED_AS_SETTLED,),
        caught_by="settlement record .* is not what its line says",
    ),
    Fault(
        "a settlement that fell short is no break",
        (*SENT, Bank(0, "settle_short", 0), REPORTED),
        (put.BREAKS_UNSEEN,),
        caught_by="at the end: no break names",
    ),
)
LOWER = Deliver("match-1", "cup", 0, 1, "completed", 400, ("player:1",))
ONLY_A_FEE = Deliver("match-1", "cup", 0, 1, "completed", None, ("player:1",))
SETTLED = (*SENT, *[Bank(0, "settle", 0)] * 8, REPORTED)
DEBT, GIFT = (*SETTLED, VOID, POST), Act("write_off", 0)
NEVER_TAKEN = Weather(("lost_request",) * 8, down=False)
DECIDING = (
    Fault(
        "when a match is paid out changes, and nobody is asked",
        (UNCOLLECTED, POST, ChangeRules("match-1", 2), POST),
        (put.POLICY_UNASKED,),
        refused_by="ConflictError: .* nobody accepted that it is immediate",
        letting=without("match_postings", "match_postings_policies"),
        caught_by=r"breaks of 2024-08-17 are \[\]; by what was landed \['match-1'\]",
    ),
    Fault(
        "a debt that was written off is collected",
        (*DEBT, GIFT, SWEEP),
        (put.NETTED_APART,),
        caught_by="instruction .* was made without .*, which it nets with",
    ),
    Fault(
        "what was written off is paid out while the debt waits",
        (*SETTLED, LOWER, POST, GIFT, Spoil("match-1", "rejected"), POST, SWEEP, Act("sweep", 3)),
        (put.GIFT_WITHOUT_ITS_DEBT,),
        caught_by="instruction .* was made without .*, which it nets with",
    ),
    Fault(
        "what failed and was settled all the same is paid again",
        (*SENT, Bank(0, "fail_then_settle", 0), REPORTED, Act("sweep", 2), REPORTED_LATER, Act("dispatch", 2)),
        (put.LATE_SETTLEMENT_UNSEEN,),
        caught_by="instruction .* was sent for item .*, which had been paid already",
    ),
    Fault(
        "all that is left of a fee is refunded as one unit",
        (*SWEPT, REFUND_ALL),
        (put.ALL_THAT_IS_LEFT_IS_ONE,),
        caught_by="refund refund-0 is of 1; asked was for",
    ),
    Fault(
        "a refund of the whole fee is refused",
        (*SWEPT, REFUND_ALL),
        (put.THE_WHOLE_IS_TOO_MUCH,),
        caught_by="refund refund-0 of None of .* was told more_than_left",
    ),
)
#: What people may not do, what refuses it (program, Postgres, or both), and the rule that finds it where it is done.
_FEE_COLLECTED = (ONLY_A_FEE, POST, SWEEP, Act("approve", 0), DISPATCH, *[Bank(0, "settle", 0)] * 3, REPORTED)
REFUSED_PEOPLE = {
    "more is written off than is owed": (
        (*DEBT, Act("write_off", 2)),
        (put.WRITTEN_OFF_BEYOND_THE_DEBT, put.ANY_GIFT),
        "was written off of .*, which owed",
    ),
    "people take for failed what nobody asked the processor about": (
        (NEVER_TAKEN, *SENT, Jump(30, 0), Act("resolve", 0)),
        (put.NOBODY_WAS_ASKED, put.ANY_RESOLUTION),
        "rule 8: instruction .* failed, and the processor never refused it",
    ),
    "who asked for a refund approves it": (
        (*_FEE_COLLECTED, REFUND_ALL, Act("sweep", 2), Act("approve", 0)),
        (put.OWN_REFUND,),
        "rule 13: .* was approved by a maker of it",
    ),
    "who changed a token approves what is paid to it": (
        (
            ONLY_A_FEE,
            ChangeParty("player:1", "new_mandate"),
            ChangeParty("player:1", "new_token"),
            POST,
            SWEEP,
            Act("approve", 0),
        ),
        (put.OWN_TOKEN,),
        "rule 13: .* was approved by a maker of it",
    ),
    "who proposed it accepts it": (
        (*SETTLED, VOID, POST, Act("write_off", 4)),
        (put.OWN_PROPOSAL,),
        "rule 13: .* accepted proposal .* of their own",
    ),
    "what a sweep did is not in the audit trail": (
        SWEPT,
        without("sweeps", "sweeps_audit"),
        "rule 17: sweeps has 1 rows, and the audit trail 0",
    ),
}
FAULTS = (*DIVIDING, *POSTING, *REFUNDING, *SWEEPING, *SENDING, *SETTLING, *DECIDING)
HISTORIES = {(fault.history, fault.limit_minor, fault.day_limit_minor): fault for fault in FAULTS}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with server(tmp_path_factory.mktemp("planted")) as running:
        yield running


@pytest.fixture(scope="module")
def intact(running):
    with runner.database_of(running, "intact") as opened:
        yield opened


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.refused_by], ids=lambda fault: fault.name)
def test_a_planted_fault_is_refused(intact, monkeypatch, fault):
    tell_refusals(monkeypatch)
    for edit in fault.edits:
        edit.plant(monkeypatch)
    with pytest.raises(RuleBroken, match=fault.words(fault.refused_by)):
        live(fault, intact)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.caught_by], ids=lambda fault: fault.name)
def test_a_planted_fault_that_nobody_refuses_is_found(running, monkeypatch, fault):
    for edit in fault.edits:
        edit.plant(monkeypatch)
    with (
        letting(fault, running, monkeypatch) as database,
        pytest.raises(RuleBroken, match=fault.words(fault.caught_by)),
    ):
        live(fault, database)


@pytest.mark.parametrize("fault", HISTORIES.values(), ids=lambda fault: f"not {fault.name}")
def test_without_its_fault_the_same_history_breaks_and_refuses_nothing(intact, monkeypatch, fault):
    tell_refusals(monkeypatch)
    live(fault, intact)


@pytest.mark.parametrize("what", REFUSED_PEOPLE)
def test_what_is_refused_to_people_is_found_where_it_is_done(running, monkeypatch, intact, what):
    history, letting_it, words = REFUSED_PEOPLE[what]
    limit = 450 if "approve" in what else UNLIMITED
    fault = Fault(what, history, (), letting=letting_it, caught_by=words, limit_minor=limit)
    with letting(fault, running, monkeypatch) as database, pytest.raises(RuleBroken, match=fault.words(words)):
        live(fault, database)
    live(fault, intact)


def test_every_fault_is_refused_or_found_and_is_told_of():
    words = (ROOT / "docs" / "operating" / "simulating.md").read_text()
    told = [line.removeprefix("- ") for line in words.splitlines() if line.startswith("- ")]
    assert told == [fault.name + " (*refused*)" * bool(fault.refused_by) for fault in FAULTS]
    assert all(fault.refused_by or fault.caught_by for fault in FAULTS)
