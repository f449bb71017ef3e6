"""What changes over time: corrections, reports that grow or come late, files written again; and faults among them."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from verify_results import broken_but_for_the_trail as broken
from verify_results import results, rewrite
from verify_world import FIRST, M1, SECOND, World, match, share

from payments_pipeline.verify.files import FILE_RULES
from payments_pipeline.verify.tables import TABLE_RULES

READ, POTS, FORM, DIVISION, POSTED, MATCHES, BREAKS, REPORTS, INTAKES, CERTIFICATES = FILE_RULES
CASH = "cash equals the processor's closing balance"
REVISIONS = "a match is posted again only as its revision allows"
LOST = "nobody posted with a match is lost under the same revision"
OPEN = "a match is open while its accruals do not net to zero"
SAYS = "a day's posting says what it posted"
THIRD, FOURTH = date(2024, 8, 19), date(2024, 8, 20)
assert {CASH, REVISIONS, LOST, OPEN, SAYS} <= TABLE_RULES.keys()


def left_out(world: World) -> dict[str, tuple[str, ...]]:
    return {rule: result.left_out for rule, result in results(world).items() if result.left_out}


def state_other_input(world: World, asset: str, day: date) -> None:
    """Have a stored partition say that it was computed from other files than before."""
    path = Path(world.settings.storage) / asset / f"date={day}" / "part-0.parquet"
    table = pq.read_table(path)
    said = json.loads(table.schema.metadata[b"payments_pipeline"])
    said["input_hashes"]["match_results"] = "delivered since"
    metadata = table.schema.metadata | {b"payments_pipeline": json.dumps(said).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_shares_written_again_and_not_posted_yet_are_no_breach_and_said_to_wait(world: World) -> None:
    for asset in ("match_results", "match_participants", "rejected_records", "participant_shares"):
        state_other_input(world, asset, SECOND)
    rewrite(world, "participant_shares", lambda table: table.slice(0, 0), str(SECOND))
    assert broken(world).keys() == {DIVISION}, "what is stored still has to follow from the schedule"
    waiting = "of input that is not what was posted; run the day to post them"
    assert left_out(world) == {
        POSTED: (f"{SECOND}: 0 shares, {waiting}",),
        MATCHES: (f"{SECOND}: 1 matches, {waiting}",),
    }


def test_shares_of_the_input_that_was_posted_must_be_what_is_posted(world: World) -> None:
    rewrite(world, "participant_shares", lambda table: table.slice(0, 0), str(SECOND))
    assert broken(world).keys() == {DIVISION, POSTED, MATCHES}


def test_accruals_of_a_day_that_was_never_posted_are_found(world: World) -> None:
    world.tamper("DELETE FROM day_postings WHERE match_day = '2024-08-18'")
    assert broken(world).keys() == {POSTED, SAYS}


#: Posting 1 made to be of the revision and content of posting 2.
EQUAL = "revision = 2, content_hash = n.content_hash, "


@pytest.mark.parametrize(
    ("fault", "rule", "words"),
    [
        ("revision = 2", REVISIONS, "posting 2 has other content than posting 1, both under revision 2"),
        (EQUAL + "revenue_minor = NULL", None, ""),
        (
            EQUAL + """participants = '[["p1","A","player"],["p2","B","player"]]'""",
            LOST,
            "posting 2 lacks p2, posted before it under the same revision 2",
        ),
        (
            EQUAL + """participants = '[["p1","B","player"],["ref","","referee"]]'""",
            LOST,
            "posting 2 lacks p1, posted before it under the same revision 2",
        ),
        ("""participants = '[["p9","B","player"]]'""", None, ""),
    ],
)
def test_content_and_participants_change_under_a_newer_revision_alone(
    world: World, fault: str, rule: str | None, words: str
) -> None:
    world.tamper(
        f"UPDATE match_postings p SET {fault} FROM match_postings n "
        "WHERE p.match_id = 'm1' AND p.posting_no = 1 AND n.match_id = 'm1' AND n.posting_no = 2"
    )
    found = broken(world)
    assert found.keys() == ({rule} if rule else set())
    assert rule is None or words in found[rule][0]


def test_revenue_once_posted_is_not_absent_later_whatever_the_revision(world: World) -> None:
    world.tamper("UPDATE match_postings SET revenue_minor = NULL WHERE match_id = 'm1' AND posting_no = 2")
    assert broken(world).keys() == {REVISIONS, MATCHES}


@pytest.mark.parametrize("posting_no", [1, 2])
def test_a_match_said_to_hold_no_money_holds_none(world: World, posting_no: int) -> None:
    world.tamper(f"UPDATE match_postings SET is_open = false WHERE match_id = 'm1' AND posting_no = {posting_no}")
    assert broken(world).keys() == {OPEN}


def test_a_match_taken_back_is_not_open_and_no_breach(world: World) -> None:
    world.post(SECOND, [match("m2", SECOND, 0, revision=2)], [], players=False)
    assert broken(world) == {}
    world.tamper("UPDATE match_postings SET is_open = true WHERE match_id = 'm2' AND posting_no = 2")
    assert broken(world).keys() == {OPEN}


@pytest.mark.parametrize(
    "change",
    [
        "content_hash = 'of something else'",
        "rules_hash = 'of something else'",
        "schedule_version = 'v2'",
        "payout_policy = 'when_collected'",
        "currency = 'EUR'",
        "competition_id = 'D'",
        "revenue_minor = 501",
        "revision = 2",
        "participants = '[]'",
        "participants = 'no longer JSON'",
    ],
)
def test_what_is_posted_of_a_match_is_what_is_stored(world: World, change: str) -> None:
    world.tamper(f"UPDATE match_postings SET {change} WHERE match_id = 'm2'")
    assert broken(world).keys() - {"only accruals and refunds are of a share"} == {MATCHES}


@pytest.mark.parametrize("change", ["matches = 2", "shares = 0"])
def test_a_posting_says_what_it_was_of(world: World, change: str) -> None:
    world.tamper(f"UPDATE day_postings SET {change} WHERE match_day = '2024-08-18'")
    assert broken(world).keys() == {MATCHES}


def test_a_match_that_is_left_alone_stands_in_the_reconciliation_of_later_dates_too(world: World) -> None:
    world.post(FIRST, [match("m1", FIRST, 20000, revision=1)], M1, players=True)  # older than the one posted
    world.report(THIRD, fees(world, THIRD, "f3"), CLOSING - 10, CLOSING)
    with psycopg.connect(world.url) as connection:
        rows = connection.execute(
            "SELECT subject_id FROM payments.reconciliation WHERE report_date = %s AND subject_type = 'posting'",
            (THIRD,),
        ).fetchall()
    assert rows == [("m1",)]
    assert broken(world) == {}
    world.tamper("UPDATE reconciliation SET subject_id = 'm7' WHERE subject_type = 'posting'")
    assert "there is no such thing" in broken(world)["reconciliation's differences are right"][0]


def test_a_match_left_alone_for_a_reason_is_no_breach(world: World) -> None:
    world.post(FIRST, [match("m1", FIRST, 20000, revision=1)], M1, players=True)  # older than the one posted
    found = results(world)
    assert {rule for rule, result in found.items() if not result.ok} == set()
    assert found[BREAKS].checked == 1
    world.post(FIRST, [match("m1", FIRST, 14434, revision=2)], [*M1[:-1], share("m1", 6, "away_club", "B", 1)])
    assert BREAKS not in broken(world)
    world.post(FIRST, [match("m3", FIRST, 0)], [])  # m1 is absent
    assert broken(world) == {}


@pytest.mark.parametrize(
    "reason", ["older_revision", "rules_changed", "revenue_missing", "absent", "posted_under_another_day", "no_such"]
)
def test_a_match_left_alone_for_no_reason_is_found(world: World, reason: str) -> None:
    world.tamper(f"INSERT INTO posting_breaks VALUES ('2024-08-18', 1, 'm2', '{reason}', 'said so')")
    assert broken(world).keys() == {BREAKS}


@pytest.mark.parametrize(
    "change",
    [
        "reason = 'because'",
        "processor_reference = 'another'",
        "occurred_at = occurred_at + interval '1 microsecond'",
        "subject = 'about this'",
    ],
)
def test_every_column_of_a_report_line_is_what_was_reported(world: World, change: str) -> None:
    world.tamper(f"UPDATE report_lines SET {change} WHERE entry_reference = 'e-fee'")
    if change.startswith("reason"):
        world.tamper(f"UPDATE settlement_records SET {change} WHERE entry_reference = 'e-fee'")
    found = broken(world)
    assert found.keys() == {REPORTS}
    column = change.split(" ")[0]
    assert found[REPORTS][0].startswith(f"sandbox entry e-fee: taken in with {column} ")


CLOSING = 30000 - 25 - 11434 - 5566 - 400


def fees(world: World, day: date, *references: str) -> list[dict[str, Any]]:
    return [world.line(reference, "fee", -10) | {"report_date": day} for reference in references]


def three_dates(world: World) -> None:
    """Reports of two more dates, each with a fee of 10."""
    world.report(THIRD, fees(world, THIRD, "f3"), CLOSING - 10, CLOSING)
    world.report(FOURTH, fees(world, FOURTH, "f4"), CLOSING - 20, CLOSING - 10)


def test_cash_is_held_against_the_balance_of_every_date(world: World) -> None:
    three_dates(world)
    assert broken(world) == {}
    world.tamper("UPDATE report_balances SET closing_minor = closing_minor + 1 WHERE report_date = '2024-08-19'")
    found = broken(world)
    assert found.keys() == {CASH, INTAKES}
    assert [words.split(":")[1].split(" on ")[1] for words in found[CASH]] == ["2024-08-19", "2024-08-19", "2024-08-20"]


def test_a_date_opens_with_what_the_one_before_closed_with(world: World) -> None:
    three_dates(world)
    world.tamper("UPDATE report_balances SET opening_minor = opening_minor + 1 WHERE report_date = '2024-08-20'")
    found = broken(world)
    assert found.keys() == {CASH, INTAKES}
    assert f"opening balance {CLOSING - 9} GBP, moved -10, closing balance {CLOSING - 20}" in found[CASH][0]
    assert f"closing balance of 2024-08-19 was {CLOSING - 10}" in found[CASH][1]


def test_a_report_that_grew_after_the_next_one_leaves_that_one_behind_and_breaks_nothing(world: World) -> None:
    three_dates(world)
    world.report(THIRD, fees(world, THIRD, "f3", "f3-late"), CLOSING - 20, CLOSING)
    assert broken(world) == {}
    (words,) = left_out(world)[CASH]
    assert words == (
        f"cash:sandbox on 2024-08-20: ledger {CLOSING - 30} GBP, closing balance {CLOSING - 20}, and lines of "
        "earlier dates were taken in since; take the report in again"
    )
    world.report(date(2024, 8, 21), fees(world, date(2024, 8, 21), "f5"), CLOSING - 40, CLOSING - 30)
    assert broken(world) == {}
    world.report(FOURTH, fees(world, FOURTH, "f4"), CLOSING - 30, CLOSING - 20)
    assert (broken(world), left_out(world)) == ({}, {})


def test_reports_may_be_taken_in_out_of_their_order(world: World) -> None:
    world.report(FOURTH, fees(world, FOURTH, "f4"), CLOSING - 20, CLOSING - 10)
    assert broken(world) == {}, "reconciliation has it as a break"
    world.report(THIRD, fees(world, THIRD, "f3"), CLOSING - 10, CLOSING)
    assert (broken(world), left_out(world)) == ({}, {})


def test_a_report_that_was_never_taken_in_is_found(world: World) -> None:
    world.report(FOURTH, fees(world, FOURTH, "f4"), CLOSING - 20, CLOSING - 10)
    world.tamper("UPDATE reconciliation SET status = 'matched', actual_minor = expected_minor, difference_minor = 0")
    words = broken(world)[CASH]
    assert f"opening balance {CLOSING - 10} GBP, closing balance of 2024-08-18 was {CLOSING}" in words[1]


@pytest.mark.parametrize("change", ["digest = 'other'", "entry_count = entry_count + 1"])
def test_an_intake_is_of_the_stored_report(world: World, change: str) -> None:
    world.tamper(f"UPDATE report_intakes SET {change}")
    assert broken(world).keys() == {INTAKES}


def test_a_balance_of_no_intake_is_found(world: World) -> None:
    world.tamper("INSERT INTO report_balances VALUES ('sandbox', '2024-08-18', 9, 'GBP', 0, 0)")
    assert broken(world).keys() == {CASH}
