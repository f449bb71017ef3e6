import logging
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from payout_rows import Addresses, PayoutRows

from payments_pipeline.domain.alerts import Alert, AlertKind, InstructionGroup, alert_id, instructions_in_trouble
from payments_pipeline.domain.errors import DatabaseUnavailableError
from payments_pipeline.storage import postgres
from payments_pipeline.storage.alerts import (
    LOG_CHANNEL,
    amounts_of_days,
    deliver,
    deliver_to_log,
    instructions_ended,
    instructions_waiting,
    raise_alert,
    raise_alerts,
    undelivered,
)

DAY, NEXT = date(2026, 1, 10), date(2026, 1, 11)
NOBODY = "postgresql://nobody:x@127.0.0.1:1/none"


def an_alert(name: str, title: str = "title") -> Alert:
    kind = AlertKind.RUN_FAILED
    return Alert(alert_id(kind, name), kind, DAY, title, "body", "run")


@pytest.fixture
def rows(database: Addresses) -> PayoutRows:
    return PayoutRows(database.superuser_url)


def test_an_incident_raised_again_is_one_row_as_it_was_first_told(database_url: str) -> None:
    assert raise_alert(database_url, an_alert("a", "first"))
    assert not raise_alert(database_url, an_alert("a", "second"))
    assert [alert.title for alert in undelivered(database_url, LOG_CHANNEL)] == ["first"]


def test_an_alert_comes_back_as_it_was_raised(database_url: str) -> None:
    raise_alert(database_url, an_alert("a"))
    assert undelivered(database_url, LOG_CHANNEL) == [an_alert("a")]


def test_alerts_raised_together_are_stored_together_and_counted_where_new(database_url: str) -> None:
    raise_alert(database_url, an_alert("a"))
    assert raise_alerts(database_url, [an_alert("a"), an_alert("b"), an_alert("c")]) == 2
    assert raise_alerts(database_url, []) == 0


def test_an_alert_that_cannot_be_stored_is_not_taken_for_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_WAIT_S", 0.2)
    with pytest.raises(DatabaseUnavailableError, match="does not answer"):
        raise_alert(NOBODY, an_alert("a"))


def test_the_log_is_given_each_alert_once(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    raise_alerts(database_url, [an_alert("a", "one"), an_alert("b", "two")])
    with caplog.at_level(logging.WARNING, "payments_pipeline.alerts"):
        assert deliver_to_log(database_url) == 2
        assert deliver_to_log(database_url) == 0
    assert sorted(record.args[1] for record in caplog.records if isinstance(record.args, tuple)) == ["one", "two"]


def test_each_channel_is_given_every_alert(database_url: str) -> None:
    raise_alert(database_url, an_alert("a"))
    assert deliver_to_log(database_url) == 1
    assert undelivered(database_url, "mail") == [an_alert("a")]


def test_what_a_channel_did_not_take_is_given_to_it_again(database_url: str) -> None:
    raise_alerts(database_url, [an_alert("a"), an_alert("b")])
    taken: list[UUID] = []

    def breaks_at_second(alert: Alert) -> None:
        if len(taken) == 1:
            raise OSError("the line is down")
        taken.append(alert.alert_id)

    with pytest.raises(OSError, match="the line is down"):
        deliver(database_url, "mail", breaks_at_second)
    left = undelivered(database_url, "mail")
    assert len(left) == 1
    assert left[0].alert_id not in taken
    assert deliver(database_url, "mail", lambda alert: taken.append(alert.alert_id)) == 1
    assert len(set(taken)) == 2


def test_alerts_and_deliveries_are_never_changed(database: Addresses) -> None:
    raise_alert(database.url, an_alert("a"))
    deliver_to_log(database.url)
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        for statement in (b"UPDATE payments.alerts SET title = 'x'", b"DELETE FROM payments.alert_deliveries"):
            with pytest.raises(psycopg.errors.RestrictViolation):
                connection.execute(statement)


def test_the_amounts_of_a_day_are_per_currency_without_what_was_cancelled(database_url: str, rows: PayoutRows) -> None:
    rows.add("approved", DAY, amount_minor=100)
    rows.add("submitted", DAY, amount_minor=20)
    rows.add("submitted", DAY, amount_minor=7, direction="debit")
    rows.add("submitted", DAY, amount_minor=5, currency="JPY")
    rows.add("cancelled", DAY, amount_minor=10_000)
    rows.add("netted", DAY, amount_minor=0, direction="none")
    amounts = amounts_of_days(database_url, [DAY, NEXT])
    assert {
        day: [(a.currency, a.instructions, a.sent, a.credit_minor, a.debit_minor) for a in each]
        for day, each in amounts.items()
    } == {DAY: [("GBP", 3, 2, 120, 7), ("JPY", 1, 1, 5, 0)]}
    assert amounts_of_days(database_url, []) == {}


def totals(groups: list[InstructionGroup]) -> dict[tuple[str, date], list[tuple[str, int, int]]]:
    return {
        (group.kind.value, group.day): [(a.currency, a.instructions, a.credit_minor) for a in group.amounts]
        for group in groups
    }


def test_waiting_instructions_are_grouped_by_kind_and_day_with_amounts_per_currency(
    database_url: str, rows: PayoutRows
) -> None:
    rows.add("held", DAY, amount_minor=100)
    rows.add("held", DAY, amount_minor=50)
    rows.add("held", DAY, amount_minor=9, currency="KWD")
    rows.add("held", NEXT, amount_minor=1)
    rows.add("unknown", DAY, amount_minor=3, execute_on=date(2026, 3, 1))
    rows.add("approved", DAY)
    assert totals(instructions_waiting(database_url, date(2026, 2, 1))) == {
        ("instructions_held", DAY): [("GBP", 2, 150), ("KWD", 1, 9)],
        ("instructions_held", NEXT): [("GBP", 1, 1)],
        ("instructions_unknown", DAY): [("GBP", 1, 3)],
        ("instructions_unsent", DAY): [("GBP", 1, 1_000)],
    }


def test_what_was_approved_is_told_of_once_the_dispatch_of_the_next_day_ought_to_have_sent_it(
    database_url: str, rows: PayoutRows
) -> None:
    now = datetime.now(UTC)
    rows.add("approved", DAY, at=now - timedelta(hours=35))
    assert instructions_waiting(database_url, date(2025, 1, 1)) == []
    stuck = rows.add("approved", DAY, amount_minor=7, at=now - timedelta(hours=37))
    (group,) = instructions_waiting(database_url, date(2025, 1, 1))
    assert totals([group]) == {("instructions_unsent", DAY): [("GBP", 1, 7)]}
    assert str(stuck) in instructions_in_trouble(group).body


def test_instructions_without_outcome_are_overdue_from_the_day_given(database_url: str, rows: PayoutRows) -> None:
    rows.add("submitted", DAY, execute_on=date(2026, 1, 11))
    rows.add("submitted", NEXT, execute_on=date(2026, 1, 12))
    rows.add("settled", DAY, execute_on=date(2026, 1, 11))
    assert totals(instructions_waiting(database_url, date(2026, 1, 11))) == {
        ("instructions_overdue", DAY): [("GBP", 1, 1_000)]
    }


def test_ended_instructions_are_those_that_failed_or_came_back_on_the_days_asked_for(
    database_url: str, rows: PayoutRows
) -> None:
    rows.add("failed", DAY, amount_minor=1)
    rows.add("returned", DAY, amount_minor=2)
    rows.add("failed", NEXT, amount_minor=3)
    rows.add("settled", DAY)
    assert totals(instructions_ended(database_url, [DAY])) == {
        ("instructions_failed", DAY): [("GBP", 1, 1)],
        ("instructions_returned", DAY): [("GBP", 1, 2)],
    }
    assert instructions_ended(database_url, []) == []


def test_the_mark_of_a_group_moves_when_one_joins_and_stays_when_one_leaves(
    database_url: str, rows: PayoutRows
) -> None:
    def mark() -> str:
        found = {group.kind: group.mark for group in instructions_waiting(database_url, date(2025, 1, 1))}
        return found[AlertKind.INSTRUCTIONS_HELD]

    rows.add("held", DAY, at=datetime(2026, 1, 11, 3, tzinfo=UTC))
    first = mark()
    second = rows.add("held", DAY, at=datetime(2026, 1, 11, 4, tzinfo=UTC))
    joined = mark()
    assert joined != first
    rows.move(second, "approved", DAY)
    assert mark() == joined


def test_a_group_that_is_still_being_written_is_told_of_when_it_is_quiet(database_url: str, rows: PayoutRows) -> None:
    rows.add("held", DAY)
    rows.add("held", DAY, at=datetime.now(UTC))
    assert instructions_waiting(database_url, date(2025, 1, 1)) == []
    (group,) = instructions_waiting(database_url, date(2025, 1, 1), quiet_s=-60)
    assert group.amounts[0].instructions == 2


def test_the_largest_instructions_of_a_group_are_named_first(database_url: str, rows: PayoutRows) -> None:
    for amount in (5, 900, 30, 1, 70, 6, 8):
        rows.add("held", DAY, amount_minor=amount)
    (group,) = instructions_waiting(database_url, date(2025, 1, 1))
    assert [each.amount_minor for each in group.first] == [900, 70, 30, 8, 6]
    assert group.amounts[0].instructions == 7
