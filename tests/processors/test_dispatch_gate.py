"""Which instructions a dispatch lets leave: the gate, the limits, whose they are, and what changes meanwhile."""

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from zoneinfo import ZoneInfo

import psycopg
import pytest
from dispatches import BEFORE, LATER, ONCE, PARTIES, UNAVAILABLE, UNKNOWN, Clock, keys, many_approved, two_approved
from money_zone import DAY, NEXT, RUN, FakeProcessor, MoneyZone, line, match, parties_frame, policy, share
from refunding import charge, refund, request, settle

from payments_pipeline.domain.errors import LedgerFaultError
from payments_pipeline.processors.dispatch import Dispatch, Dispatched
from payments_pipeline.storage import dispatch_gate
from payments_pipeline.storage import payout_submissions as store
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify import rules_dispatch


@pytest.fixture
def zone(database) -> MoneyZone:
    """a is owed 600 and d owes 400; both instructions are approved."""
    return two_approved(database.url)


REFUNDED = parties_frame(p1="active", a="active", b="active")
GATE = [
    ({"a": "on_hold"}, "the party is on_hold"),
    ({"a": "closed"}, "the party is closed"),
    ({"a": {"payout_token": "new"}}, "the party's token changed"),
    ({"a": {"payout_token": None}}, "the party's token changed"),
    ({}, "the party is not in the reference data"),
]


@pytest.mark.rule("dispatch/instruction-gate")
@pytest.mark.parametrize(("now", "reason"), GATE, ids=[reason for _, reason in GATE])
def test_the_gate_cancels_what_a_party_may_no_longer_be_sent(zone, now, reason):
    processor = FakeProcessor()
    done = zone.dispatch(parties_frame(**now, d="active"), processor)
    assert (done.cancelled, done.sent) == (1, 1)
    assert zone.states()[f"a {DAY}"] == "cancelled"
    assert zone.open_items() == {"a": 600}
    assert zone.rows("SELECT reason FROM instruction_events WHERE to_state = 'cancelled'") == [(reason,)]
    assert keys(processor) == [zone.instruction("d")]
    assert zone.sweep(PARTIES, NEXT).plan.instructions["amount_minor"].tolist() == [600]


@pytest.mark.parametrize(("now", "reason"), GATE, ids=[reason for _, reason in GATE])
def test_what_was_never_accepted_asks_the_gate_before_it_leaves_again(zone, now, reason):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=ONCE)
    processor = FakeProcessor()
    zone.dispatch(parties_frame(**now, d="active"), processor, NEXT)
    assert keys(processor) == [zone.instruction("d")]
    assert zone.states()[f"a {DAY}"] == "failed"
    assert zone.rows("SELECT reason FROM instruction_events WHERE to_state = 'failed'") == [
        (f"never accepted, and not sent again: {reason}",)
    ]
    assert zone.open_items() == {"a": 600}
    assert zone.balances() == {"pot:c1": 600, "party:a": -600, "suspense": -400, "in_transit:sandbox": 400}
    assert zone.sweep(PARTIES, LATER[1]).plan.instructions["amount_minor"].tolist() == [600]
    assert zone.party_balances_disagree() == []
    with connect(zone.url) as connection:
        rule = rules_dispatch.RULES["states of sending follow from an outcome or a look-up"]
        assert rule(connection).breaches == []


def _lines_read_by_the_gate(url: str) -> tuple[int, int]:
    """Ask the gate about one instruction: gives how many ledger lines it looked at, and how many there are."""
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'ledger_entries'"
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        [(one,)] = cursor.execute("SELECT instruction_id::text FROM payout_instructions LIMIT 1").fetchall()
        [(lines,)] = cursor.execute("SELECT count(*) FROM ledger_entries").fetchall()
        [(before,)] = cursor.execute(read).fetchall()
        assert dispatch_gate.faults(cursor, [one], PARTIES) != []  # its party is none of these
        [(after,)] = cursor.execute(read).fetchall()
    return after - before, lines


def test_the_gate_looks_at_what_an_instruction_claims_and_never_at_the_whole_ledger(database):
    zone = MoneyZone(database.url)
    for number in range(40):
        zone.owe(match_id=f"m{number}", **{f"p{number}x{party}": 100 for party in range(100)})
    zone.sweep(parties_frame(**{f"p{number}x{party}": "active" for number in range(40) for party in range(100)}))
    looked_at, lines = _lines_read_by_the_gate(database.url)
    assert lines == 40 * 101
    # The item and the lines of its journal, whose balance is looked at too.
    assert 0 < looked_at <= 4 * 101


def test_what_was_ever_in_doubt_and_may_not_leave_again_stays_locked_until_it_is_answered(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    held, processor = parties_frame(a="on_hold", d="active"), FakeProcessor()
    for day in LATER[:2]:
        zone.dispatch(held, processor, day)
        assert zone.states()[f"a {DAY}"] == "unknown"
        assert zone.open_items() == {}
    assert set(keys(processor)) == {zone.instruction("d")}
    assert zone.dispatch(PARTIES, processor, LATER[2]).acknowledged == 1
    assert zone.states()[f"a {DAY}"] == "submitted"


def test_a_doubt_before_the_last_refusal_is_a_doubt(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), NEXT, policy=ONCE)
    assert set(zone.states().values()) == {"submitting"}
    processor = FakeProcessor()
    zone.dispatch(parties_frame(a="on_hold", d="active"), processor, LATER[1])
    assert keys(processor) == [zone.instruction("d")]
    assert zone.states()[f"a {DAY}"] == "submitting"
    assert zone.open_items() == {}


def test_the_gate_cancels_what_was_corrected_since_the_sweep(zone):
    zone.owe(revision=2, a=700, d=-400)
    assert zone.dispatch(PARTIES, FakeProcessor()).cancelled == 1
    assert zone.open_items() == {"a": 700}


@pytest.mark.rule("posting/waits-with-break")
def test_the_gate_cancels_what_has_a_break(zone):
    zone.post([], [])
    processor = FakeProcessor()
    assert zone.dispatch(PARTIES, processor).cancelled == 2
    assert processor.requests == []
    assert zone.open_items() == {"a": 600, "d": -400}


def test_what_was_never_accepted_does_not_leave_again_once_its_match_is_void_or_has_a_break(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=ONCE)
    zone.owe(revision=2, d=-400)
    zone.sweep(PARTIES)  # nets what corrects a's 600 alone: the 600 are on their way
    assert zone.states()[f"a {DAY}"] in ("submitting", "approved")
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor)
    assert keys(processor) == [zone.instruction("d")]
    assert done.cancelled == 1
    assert zone.open_items() == {"a": 0}
    assert zone.sweep(PARTIES, NEXT).plan.instructions["state"].tolist() == ["netted"]
    assert zone.party_balances_disagree() == []


def test_what_was_never_accepted_does_not_leave_again_while_its_match_has_a_break(zone):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=ONCE)
    zone.post([], [])
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor)
    assert processor.requests == []
    assert set(zone.states().values()) == {"failed"}
    assert zone.open_items() == {"a": 600, "d": -400}


@pytest.mark.rule("dispatch/instruction-gate")
def test_the_gate_cancels_what_pays_or_takes_a_refund_that_was_computed_anew_since(database):
    zone = MoneyZone(database.url)
    charge(zone, a=600, b=400)
    zone.sweep(REFUNDED)
    settle(zone)
    zone.take_in([line(zone.instruction("b"), -400)], DAY)
    refund(zone, request("r1", 500), day=NEXT)
    zone.sweep(REFUNDED, NEXT)
    assert zone.states()[f"b {NEXT}"] == "approved"
    charge(zone, revision=2, a=600, b=1400)  # of the 500 b gives 350 now, and not 200
    zone.dispatch(REFUNDED, FakeProcessor(), NEXT)
    assert zone.states()[f"b {NEXT}"] == "cancelled"
    assert zone.states()[f"p1 {NEXT}"] == "submitted"


def test_the_gate_is_asked_in_the_transaction_in_which_an_attempt_begins(zone, monkeypatch):
    begin = store.begin

    def corrected_just_before(*arguments):
        zone.owe(revision=2, a=700, d=-400)
        return begin(*arguments)

    monkeypatch.setattr(store, "begin", corrected_just_before)
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor)
    assert keys(processor) == [zone.instruction("d")]
    assert (done.sent, done.cancelled) == (1, 1)
    assert zone.open_items() == {"a": 700}


@pytest.mark.rule("dispatch/limits")
def test_what_leaves_again_on_another_calendar_day_counts_for_that_days_limits(zone, database):
    limited = policy(day_limit_minor=1000, dispatch={"retries": 0})
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=limited)
    _tamper(database, "UPDATE payout_attempts SET started_at = started_at - interval '1 day'")
    zone.owe(NEXT, b=700)
    zone.sweep(PARTIES, NEXT)
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor, NEXT, limited)
    assert sorted(keys(processor)) == sorted([zone.instruction("a"), zone.instruction("d")])
    assert (done.sent, done.waiting) == (0, 1)
    assert zone.states()[f"b {NEXT}"] == "approved"


@pytest.mark.rule("dispatch/limits")
def test_what_would_leave_again_waits_for_another_calendar_day_where_it_is_over_the_limit(zone, database):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNAVAILABLE), policy=ONCE)
    _tamper(database, "UPDATE payout_attempts SET started_at = started_at - interval '1 day'")
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor, NEXT, policy(day_limit_minor=500))
    assert keys(processor) == [zone.instruction("d")]
    assert done.waiting == 1
    assert zone.states()[f"a {DAY}"] == "submitting"
    zone.dispatch(PARTIES, processor, NEXT)
    assert keys(processor)[1:] == [zone.instruction("a")]


def _tamper(database, statement: str) -> None:
    with psycopg.connect(database.superuser_url, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode())


@pytest.mark.rule("dispatch/instruction-gate")
def test_the_gate_cancels_what_is_not_for_the_net_of_its_items(zone, database):
    _tamper(database, "UPDATE payout_instructions SET amount_minor = 601 WHERE party_id = 'a'")
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor)
    assert keys(processor) == [zone.instruction("d")]


@pytest.mark.rule("dispatch/instruction-gate")
def test_the_gate_cancels_what_is_of_a_pot_or_journal_that_does_not_balance(zone, database):
    """The ledger as a whole balances: two journals are out by as much, each the other way."""
    zone.owe(NEXT, b=600)
    zone.sweep(PARTIES, NEXT)
    _tamper(
        database,
        f"""UPDATE ledger_entries SET debit_minor = debit_minor + 1 WHERE account = 'pot:c1' AND day = '{DAY}';
            UPDATE ledger_entries SET debit_minor = debit_minor - 1 WHERE account = 'pot:c1' AND day = '{NEXT}'""",
    )
    processor = FakeProcessor()
    zone.dispatch(PARTIES, processor, NEXT)
    assert processor.requests == []
    reasons = zone.rows("SELECT DISTINCT reason FROM instruction_events WHERE to_state = 'cancelled'")
    assert reasons == [("the journal of an item of it does not balance",)]


@pytest.mark.rule("dispatch/limits")
def test_what_no_day_ever_lets_pass_is_told_at_each_dispatch(zone):
    done = zone.dispatch(PARTIES, FakeProcessor(), policy=policy(party_day_limit_minor=500))
    assert (done.sent, done.waiting) == (1, 1)
    assert f"{zone.instruction('a')} of 600 GBP (minor units) is above what may be sent on a day" in done.doubts


@pytest.mark.rule("dispatch/ledger-gate")
def test_a_ledger_that_does_not_balance_stops_the_dispatch_before_anything_is_sent(zone, database):
    _tamper(database, "UPDATE ledger_entries SET debit_minor = debit_minor + 1 WHERE account = 'pot:c1'")
    processor = FakeProcessor()
    with pytest.raises(LedgerFaultError, match="differ by 1 in GBP"):
        zone.dispatch(PARTIES, processor)
    assert processor.requests == []
    assert set(zone.states().values()) == {"approved"}


def test_what_is_cancelled_while_the_dispatch_runs_is_not_sent_and_stops_nothing_else(zone):
    class Cancelling(FakeProcessor):
        def encode(self, request):
            if not self.requests and zone.states().get(f"a {DAY}") == "approved":
                zone.owe(revision=2, a=700, d=-400)
                zone.sweep(PARTIES)
            return super().encode(request)

    processor = Cancelling()
    zone.dispatch(PARTIES, processor)
    assert keys(processor) == [zone.instruction("d")]
    assert sorted(
        state
        for _, state in zone.rows(
            "SELECT party_id, state FROM payout_instructions JOIN instruction_states USING (instruction_id)"
        )
    ) == ["approved", "cancelled", "submitted"]


@pytest.mark.rule("dispatch/limits")
def test_over_a_partys_limit_instructions_stay_approved_and_wait_for_another_calendar_day(zone, database):
    limited = policy(party_day_limit_minor=700)
    zone.owe(LATER[0], a=200)
    zone.owe(LATER[1], a=50, b=500)
    for day in LATER[:2]:
        zone.sweep(PARTIES, day)
    done = zone.dispatch(PARTIES, FakeProcessor(), LATER[1], limited)
    assert (done.sent, done.waiting) == (3, 1)
    assert zone.states()[f"a {LATER[0]}"] == "approved"
    clock = Clock()
    clock.days_later(1)  # a wrong clock of the sender makes no other day
    assert zone.dispatch(PARTIES, FakeProcessor(), LATER[1], limited, clock=clock).sent == 0
    _tamper(database, "UPDATE payout_attempts SET started_at = started_at - interval '1 day'")
    assert zone.dispatch(PARTIES, FakeProcessor(), LATER[1], limited).sent == 1


def _zone_in_which_it_is(hour: int) -> ZoneInfo:
    """A zone of whole hours in which it is so many hours after midnight now."""
    ahead = (hour - dt.datetime.now(dt.UTC).hour) % 24
    ahead -= 24 * (ahead > 14)
    return ZoneInfo(f"Etc/GMT{-ahead:+d}")


@pytest.mark.rule("dispatch/limits")
def test_a_calendar_day_is_that_of_the_pipelines_zone(zone, database):
    zone.owe(NEXT, a=700)
    zone.sweep(PARTIES, NEXT)
    limited = policy(party_day_limit_minor=1000)
    assert zone.dispatch(PARTIES, FakeProcessor(), DAY, limited).sent == 2
    _tamper(database, "UPDATE payout_attempts SET started_at = started_at - interval '61 minutes'")

    def dispatch(in_zone: ZoneInfo) -> Dispatched:
        return Dispatch(database.url, NEXT, FakeProcessor(), limited, in_zone, RUN)(PARTIES)

    assert dispatch(_zone_in_which_it_is(12)).waiting == 1, "sent an hour ago, this morning"
    assert dispatch(_zone_in_which_it_is(0)).sent == 1, "sent an hour ago, yesterday"


@pytest.mark.rule("dispatch/limits")
def test_an_instruction_over_the_days_limit_does_not_hold_up_smaller_ones_of_others(zone):
    zone.owe(BEFORE, b=5000, c=300)
    zone.sweep(PARTIES, BEFORE)
    done = zone.dispatch(PARTIES, FakeProcessor(), policy=policy(day_limit_minor=1300))
    assert (done.sent, done.waiting) == (3, 1)
    assert zone.states()[f"b {BEFORE}"] == "approved"


@pytest.mark.rule("dispatch/instruction-gate")
@pytest.mark.parametrize("parties", [PARTIES, parties_frame(a="on_hold", d="active")], ids=["payable", "on hold"])
def test_an_item_that_is_free_though_its_instruction_is_approved_stops_the_dispatch_by_name(zone, database, parties):
    _tamper(
        database,
        f"""INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
            SELECT item_id, claim_no, '{DAY}', false, 'r' FROM instruction_claims
            WHERE instruction_id = '{zone.instruction("a")}'""",
    )
    processor = FakeProcessor()
    with pytest.raises(
        LedgerFaultError, match=rf"instruction {zone.instruction('a')} is approved, and an item of it is"
    ):
        zone.dispatch(parties, processor)
    assert processor.requests == []


@pytest.mark.rule("dispatch/up-to-its-day")
def test_an_instruction_of_a_later_sweep_waits_for_its_day(zone):
    zone.owe(NEXT, b=500)
    zone.sweep(PARTIES, NEXT)
    assert zone.dispatch(PARTIES, FakeProcessor()).sent == 2
    processor = FakeProcessor()
    assert zone.dispatch(PARTIES, processor, LATER[2]).sent == 1
    assert b"2024, 8, 21" in processor.requests[0][1]


def test_another_processors_instructions_are_left_alone(zone):
    processor = FakeProcessor(name="other")
    assert zone.dispatch(PARTIES, processor).sent == 0
    assert processor.requests == []


def test_two_dispatches_at_once_send_each_instruction_once(zone):
    parties = many_approved(zone, 10)
    processor = FakeProcessor()
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: zone.dispatch(parties, processor), range(3)))
    assert sum(one.sent for one in done) == len(processor.requests) == 12
    assert set(zone.states().values()) == {"submitted"}


def test_a_dispatch_and_sweeps_at_once_end_well(zone):
    parties = many_approved(zone, 10)
    processor = FakeProcessor()
    started = threading.Barrier(3)

    def sweep(day: dt.date) -> int:
        started.wait()
        zone.owe(day, b=500)
        return len(zone.sweep(parties_frame(b="active"), day).plan.instructions)

    def dispatch(_day: dt.date) -> int:
        started.wait()
        return zone.dispatch(parties, processor).sent

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(sweep, LATER[0]), pool.submit(sweep, LATER[1]), pool.submit(dispatch, DAY)]
        assert [future.result() for future in futures] == [1, 1, 12]
    assert zone.party_balances_disagree() == []


def test_nothing_to_send_asks_the_processor_for_nothing(database):
    zone = MoneyZone(database.url)
    zone.post([], [share("m", "a", 1)][:0])
    processor = FakeProcessor()
    done = zone.dispatch(PARTIES, processor)
    assert (done.sent, processor.requests, processor.looked_up) == (0, [], [])


def test_what_is_corrected_while_a_long_dispatch_is_under_way_does_not_leave(database):
    zone = MoneyZone(database.url)
    first, second = match("m1"), match("m2")
    zone.post([first, second], [share("m1", "a", 600), share("m2", "b", 500)])
    zone.sweep(PARTIES)

    def correct(_key: str) -> None:
        if len(processor.requests) == 1:
            zone.post([first, match("m2", revision=2)], [share("m1", "a", 600), share("m2", "b", 400)])

    processor = FakeProcessor(answer=correct)
    done = zone.dispatch(PARTIES, processor, policy=policy(dispatch={"batch_size": 1}))
    assert keys(processor) == [zone.instruction("a")]
    assert (done.sent, done.cancelled) == (1, 1)
    assert zone.states()[f"b {DAY}"] == "cancelled"
    assert zone.party_balances_disagree() == []
