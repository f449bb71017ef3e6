"""What Postgres refuses though it balances: entries out of place, facts without their cause, corrections that are none.

Tried by hand, as the pipeline's own login and as the owner of the schema.
"""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import nullcontext

import psycopg
import pytest
from by_hand import (
    answer,
    attempt,
    claim,
    connect,
    entries,
    event,
    instruct,
    journal_of,
    look_up,
    posting,
    release,
    submit,
)
from dispatches import ONCE, UNKNOWN
from money_zone import DAY, NEXT, FakeProcessor, MoneyZone, line, match, parties_frame, share
from psycopg import errors

PARTIES = parties_frame(a="active", b="active", c="on_hold")
MATCH = f"m-{DAY}"
LATER = DAY + dt.timedelta(days=3)


@pytest.fixture
def zone(database) -> MoneyZone:
    """Approved for a (600) and b (100); c's 300 are open."""
    zone = MoneyZone(database.url)
    zone.owe(a=600, b=100, c=300)
    zone.sweep(PARTIES)
    return zone


@pytest.fixture(params=["url", "migrator_url"], ids=["runtime", "owner"])
def connection(zone, database, request) -> Iterator[psycopg.Connection]:
    with connect(getattr(database, request.param)) as opened:
        yield opened


def _refused(error, words):
    return pytest.raises(error, match=words)


@pytest.mark.rule("accounts/kinds")
@pytest.mark.parametrize(
    ("kind", "accounts"),
    [
        ("fee", ("fees:p", "party:a")),
        ("funding", ("cash:p", "party:a")),
        ("unmatched", ("cash:p", "fees:p")),
        ("settlement", ("cash:p", "loss")),
        ("return", ("in_transit:p", "pot:c1")),
        ("submission", ("party:a", "cash:p")),
        ("failure", ("party:a", "suspense")),
        ("refund", ("party:a", "cash:p")),
        ("match", ("suspense", "loss")),
    ],
)
def test_a_journal_touches_the_accounts_of_its_kind_alone(zone, connection, kind, accounts):
    with (
        _refused(errors.CheckViolation, "account_of_kind|ledger_entries_check|of_refund|journals_of_(match|proposal)"),
        connection.transaction(),
    ):
        journal = journal_of(connection, kind=kind, instruction=zone.instruction("a"))
        entries(connection, journal, (accounts[0], 5), (accounts[1], -5), kind=kind)


@pytest.mark.rule("accounts/movements-are-no-items")
@pytest.mark.parametrize("kind", ["submission", "fee", "funding", "unmatched"])
def test_what_moves_money_makes_no_item(zone, connection, kind):
    with _refused(errors.CheckViolation, "item_of_kind|account_of_kind"), connection.transaction():
        journal = journal_of(connection, kind=kind, instruction=zone.instruction("a"))
        entries(connection, journal, ("in_transit:p", 5), ("party:a", -5), kind=kind, is_item=True)
    assert zone.open_items() == {"c": 300}


@pytest.mark.rule("accounts/movements-are-no-items")
def test_a_submission_makes_no_item_though_its_accounts_are_right(zone, connection):
    with _refused(errors.CheckViolation, "item_of_kind"), connection.transaction():
        journal = journal_of(connection, kind="submission", instruction=zone.instruction("a"))
        entries(connection, journal, ("in_transit:p", 5), ("party:a", -5), kind="submission", is_item=True)


def test_a_journal_speaks_of_a_posting_and_an_instruction_that_exist(connection):
    accrual = """INSERT INTO journals (journal_id, kind, day, match_id, posting_no, run_id, code_version)
                 VALUES (gen_random_uuid(), 'accrual', %s, %s, %s, 'r', '1')"""
    with _refused(errors.ForeignKeyViolation, "journals_of_posting"):
        connection.execute(accrual, (DAY, MATCH, 2))
    with _refused(errors.ForeignKeyViolation, "journals_of_instruction"):
        journal_of(connection, kind="submission", instruction=uuid.uuid4())


def test_a_settlement_record_is_of_a_line_that_was_taken_in(connection):
    with _refused(errors.ForeignKeyViolation, "settlement_records_of_line"):
        connection.execute(
            """INSERT INTO settlement_records (processor, entry_reference, report_date, outcome, currency, cash_minor)
               VALUES ('sandbox', 'nowhere', %s, 'settled', 'GBP', -600)""",
            (NEXT,),
        )


def test_an_instruction_is_submitted_and_a_posting_accrued_in_one_journal(zone, connection):
    zone.dispatch(PARTIES, FakeProcessor())
    with _refused(errors.UniqueViolation, "journals_one_submission"):
        journal_of(connection, kind="submission", instruction=zone.instruction("a"))
    with _refused(errors.UniqueViolation, "journals_one_accrual"):
        connection.execute(
            """INSERT INTO journals (journal_id, kind, day, match_id, posting_no, run_id, code_version)
               VALUES (gen_random_uuid(), 'accrual', %s, %s, 1, 'r', '1')""",
            (DAY, MATCH),
        )


def test_a_sweep_makes_one_instruction_of_a_party_and_currency(zone, connection):
    with _refused(errors.UniqueViolation, "one_a_sweep"):
        connection.execute(
            """INSERT INTO payout_instructions (instruction_id, sweep_day, sweep_seq, party_id, currency, direction,
                   amount_minor, processor, token, digest, policy_version, maker, run_id, code_version)
               SELECT gen_random_uuid(), sweep_day, sweep_seq, party_id, currency, direction, amount_minor, processor,
                   token, digest, policy_version, maker, run_id, code_version
               FROM payout_instructions WHERE party_id = 'a'"""
        )


@pytest.mark.rule("posting/revenue")
def test_a_match_does_not_lose_its_revenue_by_silence(connection):
    with _refused(errors.RestrictViolation, f"match {MATCH}: posting 2 .* absence is not a correction"):
        posting(connection, DAY, 2, revision=2, revenue=None)
    posting(connection, DAY, 2, revision=2, revenue=0)


@pytest.mark.rule("posting/lower-revision")
def test_a_revision_stands_for_one_content(connection):
    with _refused(errors.RestrictViolation, f"match {MATCH}: posting 2 differs .* same revision 1"):
        posting(connection, DAY, 2, content="other")
    posting(connection, DAY, 2, revision=2, content="other")


@pytest.mark.rule("posting/missing-participant")
def test_nobody_who_took_part_is_lost_under_the_same_revision(connection):
    both, one = '[["p1","c","player"],["p2","c","player"]]', '[["p2","c","player"]]'
    posting(connection, DAY, 2, revision=2, participants=one)
    posting(connection, DAY, 3, revision=2, participants=both)
    for fewer in (one, "[]", '[["c","p1","player"],["p2","c","player"]]'):
        with _refused(errors.RestrictViolation, "lacks one of its participants"):
            posting(connection, DAY, 4, revision=2, participants=fewer)
    posting(connection, DAY, 4, revision=3, participants=one)


@pytest.mark.rule("posting/one-day")
def test_a_match_that_holds_money_keeps_its_day_whatever_is_said_of_it(connection):
    posting(connection, DAY, 2, revision=2, is_open=False)
    with _refused(errors.RestrictViolation, f"match {MATCH}: posting 3 is under {LATER}, and {DAY} holds its accruals"):
        posting(connection, LATER, 3, revision=3)


@pytest.mark.rule("posting/one-day")
def test_a_match_whose_accruals_net_to_zero_is_free_for_another_day(zone, connection):
    zone.post([match(MATCH, 2, revenue_minor=0, status="void")], [])
    posting(connection, LATER, 3, revision=3)
    assert zone.value("SELECT match_day FROM match_postings WHERE posting_no = 3") == LATER


@pytest.mark.rule("instructions/failed-by-proof")
def test_what_was_accepted_fails_by_a_report_line_alone(zone, connection):
    zone.dispatch(PARTIES, FakeProcessor())
    a = zone.instruction("a")
    with _refused(errors.RestrictViolation, f"instruction {a}: event 5 says failed, and after submitted nothing shows"):
        event(connection, a, 5, "submitted", "failed")


@pytest.mark.rule("instructions/failed-by-proof")
@pytest.mark.parametrize("outcome", [None, "unknown", "acknowledged"])
def test_what_may_have_arrived_is_not_called_failed(zone, connection, outcome):
    a = zone.instruction("a")
    with connection.transaction():
        submit(connection, a)
        attempt(connection, a)
    if outcome:
        answer(connection, a, outcome)
    with _refused(errors.RestrictViolation, "after submitting nothing shows that it was not carried out"):
        event(connection, a, 4, "submitting", "failed")


@pytest.mark.rule("instructions/settled-by-line")
@pytest.mark.parametrize("state", ["settled", "returned"])
def test_only_a_report_line_of_the_instruction_and_kind_settles_or_returns_it(zone, connection, state):
    zone.dispatch(PARTIES, FakeProcessor())
    a, b = zone.instruction("a"), zone.instruction("b")
    zone.take_in([line(b, -100)])
    zone.take_in([line(a, 0, "failed", currency="EUR")])
    with _refused(errors.RestrictViolation, f"instruction {a}: event 5 says {state}, and no report line does"):
        event(connection, a, 5, "submitted", state)
    if state == "returned":
        with _refused(errors.RestrictViolation, f"instruction {b}: event 6"):
            event(connection, b, 6, "settled", "returned")


@pytest.mark.rule("instructions/submitting")
def test_nothing_is_attempted_before_its_submission_is_posted(zone, connection):
    a = zone.instruction("a")
    words = f"instruction {a}: attempt 1 comes before the posting"
    with _refused(errors.RestrictViolation, words), connection.transaction():
        event(connection, a, 3, "approved", "submitting")
        attempt(connection, a)


@pytest.mark.rule("dispatch/deadline")
def test_nothing_is_attempted_after_its_deadline(zone, connection):
    a = zone.instruction("a")
    words = f"instruction {a}: attempt 1 would begin at .* its deadline was 2024"
    with connection.transaction():
        submit(connection, a)
        with _refused(errors.RestrictViolation, words), connection.transaction():
            attempt(connection, a, deadline="2024-08-19")
        attempt(connection, a)


@pytest.mark.rule("instructions/submitting")
def test_nothing_is_being_sent_without_an_attempt(zone, connection):
    a = zone.instruction("a")
    words = f"instruction {a}: event 3 says that it is being sent, and it has no attempt"
    with _refused(errors.RestrictViolation, words), connection.transaction():
        submit(connection, a)


@pytest.mark.rule("instructions/submitting")
@pytest.mark.parametrize("other", [{"amount": 599}, {"amount": -600}, {"party": "b"}, {"processor": "other"}])
def test_a_submission_is_of_what_is_instructed(zone, connection, other):
    a = zone.instruction("a")
    words = f"instruction {a}: attempt 1 comes before the posting of its submission, a credit of 600 GBP of a"
    with _refused(errors.RestrictViolation, words), connection.transaction():
        submit(connection, a, **other)
        attempt(connection, a)


@pytest.mark.rule("accounts/report-lines")
def test_a_submission_is_reversed_once_by_its_failure(zone, connection):
    a = zone.instruction("a")
    with connection.transaction():
        submit(connection, a)
        attempt(connection, a)
    lines = ("party:a", -600), ("in_transit:sandbox", 600)
    made = """INSERT INTO journals (journal_id, kind, day, processor, instruction_id, run_id, code_version)
              VALUES (%s, 'failure', %s, 'sandbox', %s, 'r', '1')"""
    with connection.transaction():
        journal = uuid.uuid4()
        connection.execute(made, (journal, DAY, a))
        entries(connection, journal, *lines, kind="failure")
    with _refused(errors.UniqueViolation, "journals_one_failure"):
        connection.execute(made, (uuid.uuid4(), DAY, a))


@pytest.mark.rule("posting/changed-rules")
def test_when_a_posted_match_is_paid_out_changes_by_nobody_s_word_alone(zone, connection):
    words = "is posted as paid out immediate, and nobody accepted that it is when_collected"
    with _refused(errors.RestrictViolation, words), connection.transaction():
        posting(connection, DAY, 2, 2, payout_policy="when_collected")
    posting(connection, DAY, 2, 2)


def _report_line(connection, journal, amount, processor="p", currency="GBP"):
    connection.execute(
        """INSERT INTO report_lines (processor, entry_reference, report_date, kind, amount_minor, currency, occurred_at,
               journal_id, run_id) VALUES (%s, %s, %s, 'fee', %s, %s, now(), %s, 'r')""",
        (processor, f"of {journal}", DAY, amount, currency, journal),
    )


@pytest.mark.rule("accounts/line-once")
@pytest.mark.parametrize(
    "other", [{"amount": -6}, {"amount": 5}, {"amount": 0}, {"processor": "q"}, {"currency": "EUR"}]
)
def test_the_journal_of_a_report_line_moves_the_lines_own_cash(connection, other):
    with _refused(errors.RestrictViolation, "report line of .* its journal .* moves"), connection.transaction():
        journal = journal_of(connection)
        entries(connection, journal, ("fees:p", 5), ("cash:p", -5))
        _report_line(connection, journal, **{"amount": -5} | other)
    with connection.transaction():
        journal = journal_of(connection)
        entries(connection, journal, ("fees:p", 5), ("cash:p", -5))
        _report_line(connection, journal, -5)


def test_the_journal_of_a_report_line_moves_no_other_cash(connection):
    with _refused(errors.RestrictViolation, "and 1 other entries of cash"), connection.transaction():
        journal = journal_of(connection)
        entries(connection, journal, ("fees:p", 7), ("cash:p", -5), ("cash:q", -2))
        _report_line(connection, journal, -5)


def test_items_are_released_on_the_day_of_what_ended_their_instruction(zone, connection):
    a = zone.instruction("a")
    for wrong in (DAY - dt.timedelta(days=1), NEXT):
        with (
            _refused(errors.RestrictViolation, f"would be released on {wrong}, and instruction {a} is cancelled since"),
            connection.transaction(),
        ):
            event(connection, a, 3, "approved", "cancelled")
            release(connection, a, wrong)
    with connection.transaction():
        event(connection, a, 3, "approved", "cancelled")
        release(connection, a)
    assert zone.open_items() == {"a": 600, "c": 300}


@pytest.mark.rule("sweeping/released-once")
@pytest.mark.parametrize("freed", [0, 1], ids=["none of two", "one of two"])
def test_what_ends_an_instruction_frees_its_items_in_the_same_transaction(zone, connection, freed):
    zone.post([match("x", day=NEXT), match("y", day=NEXT)], [share("x", "a", 500), share("y", "a", 70)], NEXT)
    zone.sweep(PARTIES, NEXT)
    a = zone.instruction("a", NEXT)
    still = _refused(errors.RestrictViolation, f"instruction {a} became cancelled and still claims its items")
    with still, connection.transaction():
        event(connection, a, 3, "approved", "cancelled")
        connection.execute(
            """INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
               SELECT item_id, claim_no, %s, false, 'r' FROM instruction_claims WHERE instruction_id = %s LIMIT %s""",
            (DAY, a, freed),
        )
    assert zone.states()[f"a {NEXT}"] == "approved"


@pytest.mark.rule("instructions/unknown-by-two")
@pytest.mark.parametrize("to_state", ["submitting", "submitted", "failed"])
@pytest.mark.parametrize("answer", [None, "unanswered", "doubtful", "accepted", "rejected", "never_seen"])
def test_an_unknown_outcome_ends_as_its_newest_look_up_says(zone, connection, answer, to_state):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    a = zone.instruction("a")
    if answer is not None:
        for each in ("never_seen" if answer != "never_seen" else "rejected", answer):
            look_up(connection, a, each)
    leads = {"accepted": "submitted", "rejected": "failed", "never_seen": "submitting", "unanswered": "submitting"}
    said = leads.get(answer or "") == to_state
    refused = nullcontext() if said else _refused(errors.RestrictViolation, "ends what is unknown")
    with refused, connection.transaction():
        event(connection, a, 5, "unknown", to_state)
        if to_state == "failed":
            release(connection, a)
    assert zone.states()[f"a {DAY}"] == (to_state if said else "unknown")


@pytest.mark.rule("dispatch/deadline")
def test_what_was_never_seen_is_not_sent_again_after_its_deadline(zone, connection, database):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    a = zone.instruction("a")
    look_up(connection, a, "never_seen")
    with connect(database.superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("UPDATE payout_attempts SET not_after = now() - interval '1 second'")
    with _refused(errors.RestrictViolation, "ends what is unknown as submitting"):
        event(connection, a, 5, "unknown", "submitting")


def test_an_answer_about_another_request_ends_nothing(zone, connection):
    zone.dispatch(PARTIES, FakeProcessor(answer=UNKNOWN), policy=ONCE)
    a = zone.instruction("a")
    look_up(connection, a, "accepted", request_sha256="0" * 64)
    with _refused(errors.RestrictViolation, "ends what is unknown as submitted"):
        event(connection, a, 5, "unknown", "submitted")


@pytest.mark.rule("sweeping/claimed-at-birth")
def test_no_item_is_hidden_by_an_instruction_that_nobody_ever_made(zone, connection):
    with _refused(errors.RestrictViolation, "was made without its first event"), connection.transaction():
        instruction = instruct(connection)
        connection.execute(
            "INSERT INTO instruction_claims SELECT item_id, 1, %s FROM open_items WHERE party_id = 'c'", (instruction,)
        )
    assert zone.open_items() == {"c": 300}
    with connection.transaction():
        claim(connection, instruct(connection), "c")
    assert zone.open_items() == {}


def test_what_is_refused_says_that_nothing_was_written_and_what_to_do(connection):
    with pytest.raises(errors.RestrictViolation) as refused:
        posting(connection, DAY, 2, content="other")
    assert refused.value.diag.message_hint == "Deliver it as a newer revision. Nothing was posted."


def test_everything_refused_left_the_money_zone_as_it_was(zone, connection):
    with pytest.raises(errors.RestrictViolation):
        instruct(connection)
    zone.dispatch(PARTIES, FakeProcessor())
    zone.take_in([line(zone.instruction("a"), -600), line(zone.instruction("b"), -100), line(None, -7, "fee")])
    assert set(zone.states().values()) == {"settled"}
    assert zone.party_balances_disagree() == []
