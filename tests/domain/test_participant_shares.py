"""Shares of whole days: equal to a second reading of the rules, row by row in exact fractions, and to real days."""

import csv
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from payments_pipeline.domain.accepted_input import accept_input
from payments_pipeline.domain.errors import AllocationOverflowError
from payments_pipeline.domain.participant_shares import compute_shares
from payments_pipeline.domain.reference_data import parse_reference
from payments_pipeline.domain.schemas import PARTICIPANT_SHARES
from payments_pipeline.storage.frames import conform
from payments_pipeline.storage.landing import read_landing_day
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.reference import read_reference
from payments_pipeline.verify.division import divide_day
from payments_pipeline.verify.reference import Reference

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
DAY = date(2025, 3, 1)
STATUSES = ("completed", "awarded", "abandoned", "void")
ONE = ("organiser", "federation", "platform", "home_club", "away_club", "winning_club", "losing_club", "own_club")
MANY = ("each_club", "each_player", "each_referee", "party:somebody")
Row = dict[str, Any]


@st.composite
def schedules(draw: st.DrawFn) -> list[Row]:
    lines: list[Row] = []
    for pot in ("match_fee", "revenue"):
        if pot == "match_fee":
            charged = sorted(draw(st.sets(st.sampled_from(["each_player", "each_referee"]))))
            fees = [draw(st.integers(0, 40)) for _ in charged]
            lines += [
                {"pot": pot, "recipient": recipient, "method": "charge", "value": fee}
                for recipient, fee in zip(charged, fees, strict=True)
            ]
        for method, value in (
            ("fixed", st.integers(0, 30)),
            ("percent", st.integers(0, 2_500)),
            ("remainder", st.integers(1, 9)),
        ):
            for recipient in draw(st.lists(st.sampled_from(ONE + MANY), max_size=3)):
                cap = draw(st.none() | st.integers(0, 50)) if method == "percent" else None
                lines.append(
                    {"pot": pot, "recipient": recipient, "method": method, "value": draw(value), "cap_minor": cap}
                )
    lines = list(draw(st.permutations(lines)))
    for number, line in enumerate(lines, start=1):
        statuses = draw(st.sets(st.sampled_from(STATUSES[:3]), min_size=1))
        line |= {"line_no": number * 3, "statuses": ";".join(sorted(statuses)), "cap_minor": line.get("cap_minor")}
    return lines


@st.composite
def days(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row], Row]:
    competition = {
        "competition_id": "c",
        "organiser_id": "organiser",
        "federation_id": draw(st.none() | st.just("federation")),
        "platform_id": draw(st.none() | st.just("platform")),
    }
    matches, people = [], []
    for number in range(draw(st.integers(0, 3))):
        scores = draw(st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)))
        match = {
            "match_id": f"m{number}",
            "competition_id": "c",
            "schedule_version": "v",
            "status": draw(st.sampled_from(STATUSES)),
            "home_club_id": "club:h",
            "away_club_id": "club:a",
            "home_score": scores[0] if scores else None,
            "away_score": scores[1] if scores else None,
            "winner_club_id": draw(st.sampled_from([None, None, "club:h", "club:a"])),
            "revenue_minor": draw(st.none() | st.integers(0, 400) | st.integers(0, 10**15)),
            "currency": "EUR",
        }
        matches.append(match)
        for place in range(draw(st.integers(0, 5))):
            role = draw(st.sampled_from(["player", "player", "referee", "coach"]))
            club = draw(st.sampled_from(["club:h", "club:a"])) if role == "player" else None
            # Not in the order of numbers: ids are compared as bytes.
            people.append({"match_id": match["match_id"], "party_id": f"p{place * 7}", "club_id": club, "role": role})
    return matches, people, draw(schedules()), competition


def frames(matches: list[Row], people: list[Row], lines: list[Row], competition: Row) -> tuple[pd.DataFrame, ...]:
    match = pd.DataFrame(matches, columns=[*matches[0]] if matches else ["match_id"], dtype=object)
    for name in ("home_score", "away_score", "revenue_minor"):
        if matches:
            match[name] = match[name].astype("Int64")
    exploded = [
        {**line, "competition_id": "c", "schedule_version": "v", "status": status}
        for line in lines
        for status in line["statuses"].split(";")
    ]
    columns = [
        "competition_id",
        "schedule_version",
        "line_no",
        "pot",
        "recipient",
        "method",
        "value",
        "cap_minor",
        "status",
    ]
    schedule = pd.DataFrame(exploded, columns=columns).astype(
        {"line_no": "int64", "value": "int64", "cap_minor": "Int64"}
    )
    participants = pd.DataFrame(people, columns=["match_id", "party_id", "club_id", "role"], dtype=object)
    return match, participants, schedule, pd.DataFrame([competition], dtype=object)


CAPPED_AT_NOTHING: tuple[list[Row], list[Row], list[Row], Row] = (
    [
        {
            "match_id": "m0",
            "competition_id": "c",
            "schedule_version": "v",
            "status": "completed",
            "home_club_id": "club:h",
            "away_club_id": "club:a",
            "home_score": None,
            "away_score": None,
            "winner_club_id": None,
            "revenue_minor": 93,
            "currency": "EUR",
        }
    ],
    [],
    [
        {
            "pot": "revenue",
            "recipient": "organiser",
            "method": "percent",
            "value": 108,
            "cap_minor": 0,
            "line_no": 3,
            "statuses": "completed",
        }
    ],
    {"competition_id": "c", "organiser_id": "organiser", "federation_id": None, "platform_id": None},
)


@given(days())
@example(CAPPED_AT_NOTHING)
@settings(max_examples=250, deadline=None)
def test_the_shares_of_a_day_are_those_of_a_second_reading_of_the_rules(
    day: tuple[list[Row], list[Row], list[Row], Row],
) -> None:
    matches, people, lines, competition = day
    shares = compute_shares(*frames(matches, people, lines, competition))
    named = [{**line, "competition_id": "c", "version": "v"} for line in lines]
    expected = divide_day(matches, people, Reference([competition], named), DAY)
    columns = ["match_id", "pot", "pot_party_id", "line_no", "party_id", "currency", "amount_minor", "recipient"]
    got = {row[:6]: row[6:] for row in shares[columns].itertuples(index=False, name=None)}
    assert got == expected
    assert len(got) == len(shares)
    conform(shares, PARTICIPANT_SHARES)
    keys = [
        tuple(
            str(part).encode() if name != "line_no" else part
            for name, part in zip(PARTICIPANT_SHARES.sort_by, row, strict=True)
        )
        for row in shares[list(PARTICIPANT_SHARES.sort_by)].itertuples(index=False, name=None)
    ]
    assert keys == sorted(keys)


@pytest.mark.rule("posting/same-bytes")
@given(days(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_changes_nothing(day: tuple[list[Row], list[Row], list[Row], Row], shuffle: Any) -> None:
    matches, people, lines, competition = day
    once = compute_shares(*frames(matches, people, lines, competition))
    for rows in (matches, people, lines):
        shuffle.shuffle(rows)
    pd.testing.assert_frame_equal(once, compute_shares(*frames(matches, people, lines, competition)))


@given(days(), st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_parts_worked_on_at_once_come_to_the_same(
    day: tuple[list[Row], list[Row], list[Row], Row], threads: int
) -> None:
    of_day = frames(*day)
    pd.testing.assert_frame_equal(compute_shares(*of_day), compute_shares(*of_day, threads=threads))


def test_text_as_categories_comes_to_the_same_as_plain_text() -> None:
    matches, people, lines, competitions = frames(
        [CAPPED_AT_NOTHING[0][0] | {"match_id": name, "status": "completed"} for name in ("m2", "m1")],
        [
            {"match_id": match, "party_id": party, "club_id": "club:h", "role": "player"}
            for match, party in (("m1", "p9"), ("m2", "p10"), ("m1", "p10"), ("gone", "p1"))
        ],
        [
            {
                "pot": pot,
                "recipient": recipient,
                "method": method,
                "value": value,
                "cap_minor": None,
                "line_no": line_no,
            }
            | {"statuses": "completed"}
            for line_no, (pot, recipient, method, value) in enumerate(
                [
                    ("match_fee", "each_player", "charge", 7),
                    ("match_fee", "own_club", "remainder", 1),
                    ("revenue", "each_player", "remainder", 1),
                ],
                start=1,
            )
        ],
        CAPPED_AT_NOTHING[3],
    )
    plain = compute_shares(matches, people, lines, competitions)
    assert plain["party_id"].astype(str).tolist() == [
        *("p10", "club:h", "p9", "club:h", "p10", "p9"),
        *("p10", "club:h", "p10"),
    ]
    names = ["match_id", "competition_id", "schedule_version", "status", "home_club_id", "away_club_id", "currency"]
    coded = matches.astype({**dict.fromkeys(names, "category"), "winner_club_id": "category"})
    people = people.astype(dict.fromkeys(people.columns, "category"))
    pd.testing.assert_frame_equal(plain.astype(str), compute_shares(coded, people, lines, competitions).astype(str))


@pytest.mark.parametrize("revenue", [-1, 10**15 + 1])
def test_a_revenue_beyond_what_is_divided_is_refused_by_its_match(revenue: int) -> None:
    matches, people, lines, competition = CAPPED_AT_NOTHING
    with pytest.raises(AllocationOverflowError, match="match m0"):
        compute_shares(*frames([matches[0] | {"revenue_minor": revenue}], people, lines, competition))


@pytest.mark.parametrize("fault", [{"value": 10**15 + 1}, {"cap_minor": 10**15 + 1}, {"value": -1}])
def test_a_line_beyond_what_is_divided_is_refused_by_its_number(fault: Row) -> None:
    matches, people, lines, competition = CAPPED_AT_NOTHING
    with pytest.raises(AllocationOverflowError, match="line 3"):
        compute_shares(*frames(matches, people, [lines[0] | fault], competition))


def test_a_day_without_matches_has_an_empty_frame_of_the_declared_shape() -> None:
    shares = compute_shares(*frames([], [], [], {"competition_id": "c"}))
    assert list(shares.columns) == PARTICIPANT_SHARES.names
    assert conform(shares, PARTICIPANT_SHARES).num_rows == 0


@pytest.mark.parametrize("name", sorted(path.name for path in (REAL / "expected").glob("*.csv")) or ["absent"])
def test_real_days_equal_an_independent_computation_in_every_row_and_their_order(name: str) -> None:
    if name == "absent":
        pytest.skip("the real matches are not beside this checkout")
    data, _, text = name.removesuffix(".csv").partition("-")
    day = date.fromisoformat(text)
    reference = parse_reference(read_reference(open_store(str(REAL / data / "reference"))))
    landing = open_store(str(REAL / data / "landing"))
    results, participants = (
        read_landing_day(landing, dataset, day).files for dataset in ("match_results", "match_participants")
    )
    accepted = accept_input(day, ZoneInfo("Europe/London"), results, participants, reference)
    shares = compute_shares(
        accepted.match_results, accepted.match_participants, reference.schedule_lines, reference.competitions_on(day)
    )
    with (REAL / "expected" / name).open(newline="", encoding="utf-8") as file:
        expected = list(csv.reader(file))
    assert [list(shares.columns), *shares.astype(str).to_numpy().tolist()] == expected
