"""Which days a change of rules reaches."""

from datetime import date

from payments_pipeline.domain.automation import days_under_other_rules

FIRST, SECOND = date(2025, 3, 1), date(2025, 3, 2)
OLD, NEW = {"competitions": "c", "fee_schedules": "old"}, {"competitions": "c", "fee_schedules": "new"}


def days(*posted, now=NEW, rules="after"):
    return days_under_other_rules(posted, lambda _day: {"c1": rules}, {**now, "parties": "p"})


def test_a_day_whose_matches_fall_under_other_rules_is_run_once_for_each_state_of_the_rules():
    first, second = (FIRST, "c1", "before", OLD, ""), (SECOND, "c1", "before", OLD, "")
    assert list(days(second, first)) == [FIRST, SECOND]
    assert days(first) != days(first, now={"competitions": "d", "fee_schedules": "new"})
    assert days((FIRST, "c1", "before", NEW, "")) == {}, "it has run on these rules"


def test_a_day_whose_own_rules_are_what_they_were_is_left_alone():
    assert days((FIRST, "c1", "after", OLD, "")) == {}


def test_a_day_whose_change_was_accepted_is_run_once_more():
    seen = days((FIRST, "c1", "before", NEW, "proposal"))
    assert list(seen) == [FIRST]
    assert seen != days((FIRST, "c1", "before", NEW, "another"))


def test_a_competition_that_is_gone_is_under_other_rules():
    assert list(days((FIRST, "gone", "before", OLD, ""))) == [FIRST]
