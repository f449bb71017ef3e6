"""What is compared with what, what is a break, and how old it is."""

import datetime as dt
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from money_zone import DAY

from payments_pipeline.domain.reconciliation import reconcile
from payments_pipeline.domain.schemas import RECONCILIATION

EARLIER = DAY - dt.timedelta(days=5)
COLUMNS = {
    "cash": ["account", "currency", "expected_minor", "actual_minor"],
    "instructions": ["instruction_id", "currency", "expected_minor", "actual_minor", "since_on", "overdue"],
    "unmatched": ["subject_id", "currency", "amount_minor", "since_on", "note"],
    "breaks": ["match_id", "words", "since_on"],
    "before": ["subject_type", "subject_id", "currency", "since_on"],
}


def reconciled(**rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    frames = {}
    for name, columns in COLUMNS.items():
        frame = pd.DataFrame(rows.get(name, []), columns=columns, dtype=object)
        numbers = dict.fromkeys([column for column in columns if column.endswith("_minor")], "int64")
        frames[name] = frame.astype(numbers | ({"overdue": bool} if "overdue" in columns else {}))
    return reconcile(DAY, **frames)


def only(frame: pd.DataFrame) -> dict[str, Any]:
    [row] = frame.to_dict("records")
    return row


def test_a_day_without_anything_has_the_columns_and_no_row():
    frame = reconciled()
    assert list(frame.columns) == RECONCILIATION.names
    assert frame.empty


def test_cash_that_agrees_is_matched():
    row = only(reconciled(cash=[("cash:sandbox", "GBP", 500, 500)]))
    assert (row["status"], row["difference_minor"], row["since_on"], row["age_days"]) == ("matched", 0, DAY, 0)


@pytest.mark.rule("settlement/balances")
def test_cash_that_differs_is_a_break_with_both_sides_in_its_words():
    row = only(reconciled(cash=[("cash:sandbox", "GBP", 500, 430)]))
    assert (row["status"], row["difference_minor"]) == ("break", -70)
    assert "is 500" in row["words"]
    assert "430" in row["words"]


@pytest.mark.parametrize(
    ("actual", "overdue", "status", "age"),
    [(600, False, "matched", 0), (500, False, "break", 5), (0, True, "break", 5)],
)
def test_an_instruction_is_matched_when_what_should_have_moved_has(actual, overdue, status, age):
    row = only(reconciled(instructions=[("i", "GBP", 600, actual, EARLIER, overdue)]))
    assert (row["subject_type"], row["status"], row["age_days"]) == ("instruction", status, age)
    assert row["difference_minor"] == actual - 600


def test_an_overdue_instruction_is_a_break_even_where_no_money_was_to_move():
    assert only(reconciled(instructions=[("i", "GBP", 0, 0, EARLIER, True)]))["status"] == "break"


def test_cash_that_belongs_to_nothing_and_a_match_left_alone_are_breaks():
    frame = reconciled(unmatched=[("e1", "GBP", -5, EARLIER, "why")], breaks=[("m1", "match m1 is absent", DAY)])
    rows = frame.set_index("subject_id")
    assert rows["status"].tolist() == ["break", "break"]
    assert rows.loc["e1", ["expected_minor", "actual_minor", "age_days"]].tolist() == [0, -5, 5]
    assert "why" in rows.loc["e1", "words"]
    assert rows.loc["m1", ["currency", "words", "age_days"]].tolist() == ["", "match m1 is absent", 0]


def test_unmatched_lines_that_cancel_out_do_not_hide_each_other():
    frame = reconciled(unmatched=[("e1", "GBP", -5, DAY, ""), ("e2", "GBP", 5, DAY, "")])
    assert frame["status"].tolist() == ["break", "break"]


@pytest.mark.rule("settlement/age")
def test_a_break_grows_older_from_day_to_day_and_begins_anew_after_it_was_matched():
    cash = [("cash:sandbox", "GBP", 500, 430)]
    known = [("cash", "cash:sandbox", "GBP", EARLIER)]
    assert only(reconciled(cash=cash, before=known))["age_days"] == 5
    assert only(reconciled(cash=cash))["age_days"] == 0
    assert only(reconciled(cash=[("cash:sandbox", "GBP", 500, 500)], before=known))["since_on"] == DAY


def test_a_break_is_known_again_by_its_type_subject_and_currency():
    for other in [
        ("instruction", "cash:sandbox", "GBP"),
        ("cash", "cash:other", "GBP"),
        ("cash", "cash:sandbox", "EUR"),
    ]:
        frame = reconciled(cash=[("cash:sandbox", "GBP", 1, 2)], before=[(*other, EARLIER)])
        assert only(frame)["age_days"] == 0


def test_a_report_of_the_future_makes_no_negative_age():
    row = only(reconciled(instructions=[("i", "GBP", 600, 0, DAY + dt.timedelta(days=3), False)]))
    assert (row["since_on"], row["age_days"]) == (DAY, 0)


amounts = st.integers(-(10**15), 10**15)
days = st.integers(0, 400).map(lambda number: DAY - dt.timedelta(days=number))


@given(
    st.lists(st.tuples(st.sampled_from(["GBP", "EUR"]), amounts, amounts), max_size=4),
    st.lists(st.tuples(amounts, amounts, days, st.booleans()), max_size=4),
    days,
)
def test_every_difference_is_a_break_and_no_break_is_younger_than_its_facts(cash, instructions, since):
    given_cash = [(f"cash:{number}", *row) for number, row in enumerate(cash)]
    given_instructions = [(f"i{number}", "GBP", *row) for number, row in enumerate(instructions)]
    before = [("instruction", row[0], "GBP", since) for row in given_instructions]
    frame = reconciled(cash=given_cash, instructions=given_instructions, before=before)
    assert len(frame) == len(cash) + len(instructions)
    assert (frame["difference_minor"] == frame["actual_minor"] - frame["expected_minor"]).all()
    differs = frame["difference_minor"].ne(0)
    assert frame.loc[differs, "status"].eq("break").all()
    overdue = {row[0] for row in given_instructions if row[-1]}
    assert set(frame.loc[~differs & frame["status"].eq("break"), "subject_id"]) <= overdue
    of_instructions = frame[frame["subject_type"].eq("instruction") & frame["status"].eq("break")]
    assert of_instructions["since_on"].eq(since).all()
    assert frame["age_days"].ge(0).all()
