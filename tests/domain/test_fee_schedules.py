from datetime import date

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_samples import FEE_SCHEDULES, matches_file, reasons, reference, taken_in

from payments_pipeline.domain.fee_schedules import LINE_TYPES
from payments_pipeline.domain.match_statuses import MatchStatus

HEADER = FEE_SCHEDULES.splitlines()[0]
GOOD = "c1,v1,2024-07-01,2024-12-31,1,revenue,organiser,remainder,1,,"
OTHER = "c2,v1,,,1,revenue,federation,remainder,1,,"


def of(*rows: str):
    return reference(fee_schedules="\n".join([HEADER, *rows, OTHER]) + "\n")


def line(number: int, rest: str, version: str = "v1") -> str:
    return f"c1,{version},2024-07-01,2024-12-31,{number},{rest}"


def fate(data, **changes: str) -> str:
    accepted = taken_in(matches_file(changes), data=data)
    return reasons(accepted)[0][2] if len(accepted.rejected_records) else "accepted"


def words(data) -> str:
    return taken_in(matches_file({}), data=data).rejected_records["words"].iloc[0]


def test_lines_come_one_row_per_status_with_exact_types():
    frame = reference().schedule_lines
    assert {name: str(frame[name].dtype) for name in frame} == LINE_TYPES
    charges = frame[frame["method"] == "charge"]
    assert charges["status"].tolist() == ["completed", "abandoned"]
    percents = frame[frame["method"] == "percent"]
    assert percents["status"].tolist() == ["completed", "awarded"]
    assert (percents["value"].tolist(), percents["cap_minor"].tolist()) == ([1000, 1000], [50, 50])
    assert frame["cap_minor"].isna().sum() == len(frame) - 2
    assert not frame.duplicated(["competition_id", "schedule_version", "line_no", "status"]).any()


def test_no_valid_version_is_an_empty_frame_of_the_same_types():
    frame = reference(fee_schedules=HEADER + "\n").schedule_lines
    assert {name: str(frame[name].dtype) for name in frame} == LINE_TYPES
    assert len(frame) == 0


def test_big_values_stay_exact():
    frame = of(
        line(1, f"revenue,organiser,percent,1,{10**15 - 1},"), line(2, f"revenue,platform,fixed,{10**15},,")
    ).schedule_lines
    assert frame["cap_minor"].iloc[0] == 10**15 - 1
    assert frame["value"].iloc[2] == 10**15
    assert isinstance(frame["cap_minor"].dtype, pd.Int64Dtype)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (line(2, "bar_takings,organiser,fixed,1,,"), "pot 'bar_takings'"),
        (line(2, ",organiser,fixed,1,,"), "pot None"),
        (line(2, "revenue,organiser,half,1,,"), "method 'half'"),
        (line(2, "revenue,organiser,fixed,,,"), "value None"),
        (line(2, "revenue,organiser,fixed,-1,,"), "value '-1'"),
        (line(2, "revenue,organiser,fixed,1.5,,"), "value '1.5'"),
        (line(2, f"revenue,organiser,fixed,{10**15 + 1},,"), "value"),
        (line(2, "revenue,organiser,remainder,0,,"), "remainder of weight 0"),
        (line(2, "revenue,organiser,fixed,1,5,"), "beside another method than percent"),
        (line(2, "revenue,organiser,percent,1,x,"), "cap_minor that is no whole number"),
        (line(2, "revenue,,fixed,1,,"), "no recipient"),
        (line(2, "revenue,everybody,fixed,1,,"), "recipient 'everybody'"),
        (line(2, "revenue,payer,fixed,1,,"), "recipient 'payer'"),
        (line(2, "revenue,party:nobody,fixed,1,,"), "party 'nobody', which is not in parties"),
        (line(2, "revenue,party:,fixed,1,,"), "party ''"),
        (line(2, "revenue,each_player,charge,1,,"), "charges in the pot revenue"),
        (line(2, "match_fee,own_club,charge,1,,"), "charges own_club"),
        (line(2, "match_fee,party:club:a,charge,1,,"), "charges party:club:a"),
        (line(2, "revenue,organiser,fixed,1,,finished"), "status 'finished'"),
        (line(2, "revenue,organiser,fixed,1,,completed;"), "status ''"),
        (line(0, "revenue,organiser,fixed,1,,"), "line_no '0'"),
        (line(1, "revenue,platform,fixed,1,,"), "repeats the line_no 1"),
        ("c1,v1,2024-07-01,2024-12-31,x,revenue,platform,fixed,1,,", "line_no 'x'"),
        ("c1,v1,2024-07-01,2024-12-30,2,revenue,platform,fixed,1,,", "Make them equal"),
        ("c1,v1,2024-07-01,,2,revenue,platform,fixed,1,,", "Make them equal"),
        ("c1,v1,,2024-12-31,2,revenue,platform,fixed,1,,", "Make them equal"),
        ("c1,v1,2024-07-32,2024-12-31,2,revenue,platform,fixed,1,,", "effective_from '2024-07-32'"),
        ("c1,v1,2024-07-01,2024-06-01,2,revenue,platform,fixed,1,,", "before it begins"),
        ("c1,v1,2024-07-01", "another number of fields"),
        ("c1,,2024-07-01,2024-12-31,2,revenue,platform,fixed,1,,", "no usable version"),
        (line(2, "revenue,winning_club,percent,10001,,"), "10001 basis points, above 10000"),
    ],
)
def test_an_invalid_line_makes_its_whole_version_invalid_and_no_other(row, fault):
    data = of(GOOD, row)
    assert [problem.line_number for problem in data.problems] == [3]
    assert fault in data.problems[0].words
    assert fate(data) == "schedule_invalid"
    assert "fee_schedules.csv line 3" in words(data)
    assert fate(data, competition_id="c2") == "accepted"
    assert data.schedule_lines["competition_id"].unique().tolist() == ["c2"]
    assert set(data.schedule_hashes) == {("c2", "v1")}


def test_one_recipient_is_charged_once_per_status():
    twice = of(
        line(1, "match_fee,each_player,charge,1,,"), line(2, "match_fee,each_player,charge,2,,abandoned;awarded")
    )
    assert "charges each_player a second time when awarded" in twice.problems[0].words
    assert fate(twice) == "schedule_invalid"
    apart = of(
        line(1, "match_fee,each_player,charge,1,,completed"), line(2, "match_fee,each_player,charge,2,,abandoned")
    )
    both = of(line(1, "match_fee,each_player,charge,1,,"), line(2, "match_fee,each_referee,charge,2,,"))
    assert not apart.problems
    assert not both.problems


def test_percents_count_by_pot_and_status():
    assert not of(
        line(1, "revenue,winning_club,percent,5000,,"),
        line(2, "revenue,losing_club,percent,5000,,"),
        line(3, "match_fee,organiser,percent,10000,,"),
        line(4, "revenue,organiser,percent,10000,,abandoned"),
    ).problems
    (problem,) = of(
        line(1, "revenue,winning_club,percent,5000,,"),
        line(2, "revenue,losing_club,percent,5000,,void"),
        line(3, "revenue,federation,percent,5001,,void"),
    ).problems
    assert problem.line_number == 4
    assert "revenue when void to 10001" in problem.words


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["revenue", "match_fee"]),
            st.integers(0, 6000),
            st.sets(st.sampled_from(list(MatchStatus)), max_size=3),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_version_is_valid_exactly_where_no_sum_of_percents_is_above_the_whole(lines):
    rows = [
        line(number, f"{pot},organiser,percent,{value},,{';'.join(sorted(statuses))}")
        for number, (pot, value, statuses) in enumerate(lines, start=1)
    ]
    sums: dict[tuple[str, str], int] = {}
    for pot, value, statuses in lines:
        for status in statuses or {"completed", "awarded"}:
            sums[pot, status] = sums.get((pot, status), 0) + value
    assert (not of(*rows).problems) == (max(sums.values()) <= 10_000)


def test_effective_dates_are_inclusive_and_empty_is_open():
    data = of(line(1, "revenue,organiser,remainder,1,,"), "c1,v2,2025-01-01,,1,revenue,platform,remainder,1,,")
    found = {
        day: getattr(data.fee_schedules.on(day, "c1"), "version", None)
        for day in map(date.fromisoformat, ("2024-06-30", "2024-07-01", "2024-12-31", "2025-01-01", "2199-01-01"))
    }
    assert list(found.values()) == [None, "v1", "v1", "v2", "v2"]
    assert data.fee_schedules.on(date(1999, 1, 1), "c2") is not None


def test_no_version_in_force_rejects_the_match():
    assert fate(of("c1,v1,2024-07-01,2024-08-16,1,revenue,organiser,remainder,1,,")) == "schedule_not_in_force"
    assert fate(of("c9,v1,,,1,revenue,organiser,remainder,1,,")) == "schedule_not_in_force"


def test_two_versions_in_force_reject_the_match():
    data = of(GOOD, "c1,v2,2024-08-17,,1,revenue,organiser,remainder,1,,")
    assert fate(data) == "schedule_invalid"
    assert "versions v1 (2024-07-01 to 2024-12-31) and v2 (2024-08-17 to open) are in force" in words(data)
    assert not data.problems


def test_an_invalid_version_of_another_time_holds_up_nothing():
    data = of(GOOD, "c1,v2,2025-01-01,,1,revenue,nobody,remainder,1,,")
    assert len(data.problems) == 1
    assert fate(data) == "accepted"


def test_a_version_whose_dates_cannot_be_read_may_be_in_force_on_any_day():
    assert fate(of(GOOD, "c1,v2,soon,,1,revenue,organiser,remainder,1,,")) == "schedule_invalid"


def test_a_schedule_of_an_unknown_competition_is_a_problem_that_no_match_uses():
    data = of(GOOD, "c7,v1,,,1,revenue,organiser,remainder,1,,")
    assert "competition 'c7', which is not in competitions" in data.problems[0].words
    assert fate(data) == "accepted"


def test_a_row_whose_competition_cannot_be_read_is_a_problem_that_no_match_uses():
    data = of(GOOD, ",v1,,,1,revenue,organiser,remainder,1,,", "c 1")
    assert [problem.line_number for problem in data.problems] == [3, 4]
    assert fate(data) == "accepted"


def test_known_parties_may_be_named_and_statuses_be_repeated_in_any_order():
    data = of(line(1, "revenue,party:player:1,percent,100,7,void; completed ;void"))
    assert not data.problems
    frame = data.schedule_lines
    assert frame.loc[frame["competition_id"] == "c1", ["recipient", "status"]].to_numpy().tolist() == [
        ["party:player:1", "completed"],
        ["party:player:1", "void"],
    ]


def test_the_hash_of_a_version_is_over_its_lines_in_any_order():
    first, second = line(1, "revenue,organiser,fixed,5,,"), line(2, "revenue,platform,remainder,1,,")
    key = ("c1", "v1")
    assert of(first, second).schedule_hashes[key] == of(second, first).schedule_hashes[key]
    changed = of(first.replace("fixed,5", "fixed,6"), second).schedule_hashes
    assert changed[key] != of(first, second).schedule_hashes[key]
    assert changed["c2", "v1"] == of(first, second).schedule_hashes["c2", "v1"]
