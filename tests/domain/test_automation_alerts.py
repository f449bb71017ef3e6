from datetime import date
from pathlib import Path

import pytest

from payments_pipeline.domain.alerts import (
    Alert,
    AlertKind,
    FailedCheck,
    FailedRun,
    InstructedAmount,
    InstructionGroup,
    NamedInstruction,
    check_failure,
    days_missed,
    days_never_run,
    input_gone,
    instructions_in_trouble,
    run_failure,
)

DAY, NEXT = date(2026, 1, 10), date(2026, 1, 11)
AMOUNT = InstructedAmount("GBP", 3, 1, 123_405, 7)


def failed_run(*, run_id: str = "r1", root: str = "r1", will_retry: bool = False, day: date | None = DAY) -> Alert:
    return run_failure(FailedRun(run_id, root, "daily", day, will_retry, "ingest: bad\nfile"), [AMOUNT] if day else [])


def group(kind: AlertKind, mark: str = "m", count: int = 7) -> Alert:
    first = tuple(NamedInstruction(f"i{n}", f"P{n}", "credit", 100 + n, "KWD") for n in range(6))
    amounts = (InstructedAmount("KWD", count, 0, 1_234, 0),)
    return instructions_in_trouble(InstructionGroup(kind, DAY, mark, amounts, first))


def test_a_failed_run_says_what_how_much_and_what_to_do() -> None:
    alert = failed_run()
    assert alert.title == "daily for 2026-01-10 failed"
    assert "ingest: bad file" in alert.body
    assert "GBP: instructions 3, to pay 1234.05, to collect 0.07, of them sent 1" in alert.body
    assert "payments-pipeline run --date 2026-01-10" in alert.body
    assert "r1" in alert.body
    assert (alert.day, alert.run_id) == (DAY, "r1")


def test_a_run_is_one_incident_however_often_it_is_seen() -> None:
    assert failed_run().alert_id == failed_run().alert_id
    assert failed_run().alert_id != failed_run(run_id="r2").alert_id


def test_attempts_that_are_retried_are_one_incident_and_the_last_is_another() -> None:
    first = failed_run(will_retry=True)
    second = failed_run(run_id="r2", root="r1", will_retry=True)
    last = failed_run(run_id="r3", root="r1")
    assert first.alert_id == second.alert_id
    assert first.kind is AlertKind.RUN_RETRYING
    assert last.kind is AlertKind.RUN_FAILED
    assert last.alert_id != first.alert_id


def test_a_run_of_no_day_says_so() -> None:
    alert = failed_run(day=None)
    assert "no one day" in alert.body
    assert alert.title == "daily failed"


def test_a_failed_check_is_told_once_for_each_run() -> None:
    def check(run_id: str) -> Alert:
        return check_failure(FailedCheck(run_id, "ledger_entries", "balanced", DAY, True, "2 of 9: cure"), [AMOUNT])

    alert = check("r1")
    assert alert.title == "check balanced on ledger_entries of 2026-01-10 failed"
    assert "2 of 9: cure" in alert.body
    assert "stopped" in alert.body
    assert alert.alert_id == check("r1").alert_id != check("r2").alert_id


@pytest.mark.parametrize("kind", [kind for kind in AlertKind if kind.value.startswith("instructions_")])
def test_instructions_in_trouble_are_one_alert_with_count_amounts_and_the_first_few(kind: AlertKind) -> None:
    alert = group(kind)
    assert alert.title.startswith("payout instructions of 2026-01-10")
    assert alert.title.endswith(": 7")
    assert "KWD: instructions 7, to pay 1.234" in alert.body
    assert "i4" in alert.body
    assert "i5" not in alert.body


def test_an_instruction_that_joins_a_group_makes_a_new_alert_and_one_that_leaves_makes_none() -> None:
    kind = AlertKind.INSTRUCTIONS_HELD
    assert group(kind, mark="m", count=7).alert_id == group(kind, mark="m", count=6).alert_id
    assert group(kind, mark="m").alert_id != group(kind, mark="n").alert_id


def test_an_amount_in_a_code_without_decimals_is_said_and_not_lost() -> None:
    assert "5 (minor units)" in str(InstructedAmount("XAU", 1, 0, 5, 0))


def test_missed_days_are_one_alert_for_the_days_together() -> None:
    assert days_missed([DAY]).title == "2026-01-10 was missed"
    assert days_missed([DAY, NEXT]).title == "2 days were missed, 2026-01-10 to 2026-01-11"
    assert days_missed([DAY]).alert_id != days_missed([DAY, NEXT]).alert_id


def test_a_gap_that_grows_at_its_end_is_the_same_incident() -> None:
    assert days_never_run([DAY], 31).alert_id == days_never_run([DAY, NEXT], 31).alert_id
    assert "payments-pipeline backfill --from 2026-01-10 --to 2026-01-11" in days_never_run([DAY, NEXT], 31).body


def test_input_that_is_gone_names_the_address_and_says_that_what_is_posted_stands() -> None:
    alert = input_gone("s3://bucket/landing", [DAY], everything=True)
    assert "s3://bucket/landing" in alert.body
    assert "what is posted stands" in alert.body


def test_a_long_error_is_cut() -> None:
    alert = run_failure(FailedRun("r", "r", "daily", DAY, False, "x" * 100_000), [])
    assert len(alert.body) < 2_000


def test_every_kind_of_alert_has_its_section_in_the_operating_guide() -> None:
    guide = Path(__file__).parents[2] / "docs" / "operating" / "alerts.md"
    sections = [
        line.removeprefix("## ").strip("`") for line in guide.read_text("utf-8").splitlines() if line[:3] == "## "
    ]
    assert sections == [kind.value for kind in AlertKind]
