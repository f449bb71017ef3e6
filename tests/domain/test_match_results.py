import hashlib
import io
import json
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_samples import (
    COMPETITIONS,
    DAY,
    FEE_SCHEDULES,
    LONDON,
    MATCH,
    MATCH_COLUMNS,
    matches_file,
    reasons,
    reference,
    taken_in,
)

from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.schemas import MATCH_RESULTS


def outcomes(accepted) -> dict[int, str]:
    """Give what became of each line of the one file."""
    found = dict.fromkeys(accepted.match_results["line_number"].tolist(), "accepted")
    return found | {line: reason for _, line, reason in reasons(accepted)}


def reason_of(**changes: str) -> str:
    return outcomes(taken_in(matches_file(changes)))[2]


def test_an_accepted_match_has_everything_parsed():
    (row,) = taken_in(matches_file({"home_score": "02", "winner_club_id": "club:b"})).match_results.to_dict("records")
    assert len(row.pop("content_hash")) == len(row.pop("rules_hash")) == 64
    assert row == {
        "match_id": "m1",
        "competition_id": "c1",
        "match_day": DAY,
        "kicked_off_at": pd.Timestamp("2024-08-17T14:00:00", tz="UTC"),
        "home_club_id": "club:a",
        "away_club_id": "club:b",
        "status": "completed",
        "home_score": 2,
        "away_score": 1,
        "winner_club_id": "club:b",
        "revenue_minor": 1001,
        "revision": 1,
        "currency": "GBP",
        "schedule_version": "v1",
        "payout_policy": "immediate",
        "source": "match_results/a.csv",
        "line_number": 2,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"match_id": ""}, "match_id_invalid"),
        ({"match_id": "../../etc/passwd"}, "match_id_invalid"),
        ({"match_id": "m1'; DROP TABLE matches; --"}, "match_id_invalid"),
        ({"match_id": "матч"}, "match_id_invalid"),
        ({"match_id": "x" * 129}, "match_id_invalid"),
        *(
            ({"revision": text}, "revision_invalid")
            for text in ("0", "-1", "1.0", "1e3", "x", str(2**63), str(10**15 + 1))
        ),
        ({"kicked_off_at": ""}, "kicked_off_at_invalid"),
        ({"kicked_off_at": "2024-02-30T15:00:00Z"}, "kicked_off_at_invalid"),
        ({"kicked_off_at": "2024-08-17T15:00:00"}, "kicked_off_at_without_offset"),
        ({"kicked_off_at": "2024-08-18T15:00:00Z"}, "other_day"),
        ({"kicked_off_at": "2024-08-17T23:30:00Z"}, "other_day"),
        ({"kicked_off_at": "2024-08-17T00:30:00+02:00"}, "other_day"),
        ({"kicked_off_at": "9999-12-31T23:59:59-23:59"}, "other_day"),
        ({"kicked_off_at": "0001-01-01T00:00:00+23:59"}, "other_day"),
        ({"competition_id": ""}, "competition_unknown"),
        ({"competition_id": "c9"}, "competition_unknown"),
        ({"home_club_id": ""}, "home_club_unknown"),
        ({"home_club_id": "club:zz"}, "home_club_unknown"),
        ({"home_club_id": "player:1"}, "home_club_unknown"),
        ({"away_club_id": "club:zz"}, "away_club_unknown"),
        ({"away_club_id": "club:a"}, "clubs_equal"),
        ({"status": ""}, "status_unknown"),
        ({"status": "Completed"}, "status_unknown"),
        *(
            ({"home_score": text}, "score_invalid")
            for text in ("1.0", "-1", "1,000", "1e3", "NaN", "+1", "1_0", str(2**63))
        ),
        ({"away_score": "x"}, "score_invalid"),
        ({"away_score": ""}, "score_incomplete"),
        ({"home_score": "", "status": "void"}, "score_incomplete"),
        ({"home_score": "", "away_score": ""}, "score_missing"),
        ({"status": "postponed"}, "score_not_allowed"),
        ({"status": "cancelled"}, "score_not_allowed"),
        ({"winner_club_id": "club:c"}, "winner_not_in_match"),
        ({"winner_club_id": "draw"}, "winner_not_in_match"),
        *(
            ({"revenue_minor": text}, "revenue_invalid")
            for text in ("-1", "1.0", "10.01", "1e3", "£5", "NaN", str(10**15 + 1))
        ),
    ],
)
def test_a_row_that_breaks_a_rule_has_that_rules_reason(changes, reason):
    assert reason_of(**changes) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "postponed", "home_score": "", "away_score": ""},
        {"status": "cancelled", "home_score": "", "away_score": ""},
        {"status": "void", "home_score": "", "away_score": ""},
        {"status": "abandoned"},
        {"status": "awarded", "home_score": "", "away_score": "", "winner_club_id": "club:b"},
        {"revenue_minor": ""},
        {"revenue_minor": "0"},
        {"revenue_minor": str(10**15)},
        {"revision": ""},
        {"revision": "0007"},
        {"kicked_off_at": " 2024-08-16T23:00:00Z "},
        {"kicked_off_at": "2024-08-17T23:59:59.999999+01:00"},
        {"home_club_id": "club:b", "away_club_id": "club:a"},
    ],
)
def test_a_row_within_the_rules_is_accepted(changes):
    assert reason_of(**changes) == "accepted"


def test_the_first_reason_in_the_documented_order_is_given():
    assert reason_of(home_club_id="x", kicked_off_at="x", revenue_minor="x") == "kicked_off_at_invalid"
    assert reason_of(home_club_id="x", revenue_minor="x") == "home_club_unknown"


@pytest.mark.parametrize(
    ("zone", "day", "first", "last"),
    [
        ("Europe/London", "2024-03-31", "2024-03-31T00:00:00Z", "2024-03-31T22:59:59.999999Z"),  # 23 hours
        ("Europe/London", "2024-10-27", "2024-10-26T23:00:00Z", "2024-10-27T23:59:59.999999Z"),  # 25 hours
        ("Asia/Kathmandu", "2024-08-17", "2024-08-16T18:15:00Z", "2024-08-17T18:14:59.999999Z"),
        ("Pacific/Kiritimati", "2024-08-17", "2024-08-16T10:00:00Z", "2024-08-17T09:59:59.999999Z"),
        ("America/St_Johns", "2024-08-17", "2024-08-17T02:30:00Z", "2024-08-18T02:29:59.999999Z"),
    ],
)
def test_a_match_belongs_to_the_local_day_of_its_kick_off(zone, day, first, last):
    start, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    moment = timedelta(microseconds=1)
    times = [start - moment, start, end, end + moment]
    file = matches_file(*({"match_id": f"m{n}", "kicked_off_at": at.isoformat()} for n, at in enumerate(times)))
    accepted = taken_in(
        file,
        day=date.fromisoformat(day),
        zone=ZoneInfo(zone),
        data=reference(fee_schedules=FEE_SCHEDULES.replace("2024-07-01,2024-12-31", ",")),
    )
    assert accepted.match_results["match_id"].tolist() == ["m1", "m2"]
    assert set(accepted.rejected_records["reason"]) == {"other_day"}


@given(
    st.datetimes(datetime(2024, 8, 15), datetime(2024, 8, 20)),  # noqa: DTZ001 (Hypothesis takes naive bounds)
    st.sampled_from(["Europe/London", "Asia/Kathmandu", "Pacific/Chatham"]),
)
def test_local_days_agree_with_the_standard_library(at, zone):
    instant = at.replace(tzinfo=UTC)
    accepted = taken_in(matches_file({"kicked_off_at": instant.isoformat()}), zone=ZoneInfo(zone))
    assert len(accepted.match_results) == (instant.astimezone(ZoneInfo(zone)).date() == DAY)


def test_the_newest_revision_decides_and_older_ones_are_superseded_unread():
    file = matches_file(
        {"revision": "1", "status": "nonsense"}, {"revision": "3", "home_score": "5"}, {"revision": "2"}
    )
    accepted = taken_in(file)
    assert outcomes(accepted) == {2: "older_revision", 3: "accepted", 4: "older_revision"}
    assert accepted.match_results["home_score"].tolist() == [5]
    assert set(accepted.rejected_records["outcome"]) == {"superseded"}


def test_rows_equal_in_what_they_say_are_one_match_and_its_duplicates():
    first = matches_file({}, {"kicked_off_at": "2024-08-17T14:00Z", "home_score": "002", "revision": ""}, name="b.csv")
    second = matches_file({"revenue_minor": " 1001 "}, name="a.csv")
    accepted = taken_in([first, second])
    assert accepted.match_results["source"].tolist() == ["match_results/a.csv"]
    frame = accepted.rejected_records
    assert frame["reason"].tolist() == ["duplicate", "duplicate"]
    assert frame["words"].str.contains("match_results/a.csv line 2").all()


@pytest.mark.parametrize(
    "change",
    [
        {"competition_id": "c2"},
        {"kicked_off_at": "2024-08-17T15:00:01+01:00"},
        {"home_club_id": "club:c"},
        {"away_club_id": "club:c"},
        {"home_score": "3"},
        {"away_score": "0"},
        {"home_score": "", "away_score": "", "status": "void"},
        {"status": "awarded"},
        {"winner_club_id": "club:a"},
        {"revenue_minor": "1002"},
        {"revenue_minor": ""},
    ],
)
def test_rows_of_the_newest_revision_that_differ_reject_the_match(change):
    assert outcomes(taken_in(matches_file({}, change, {"match_id": "m2"}))) == {
        2: "rows_differ",
        3: "rows_differ",
        4: "accepted",
    }


def test_no_revenue_differs_from_a_revenue_of_zero():
    assert set(outcomes(taken_in(matches_file({"revenue_minor": "0"}, {"revenue_minor": ""}))).values()) == {
        "rows_differ"
    }


def test_an_invalid_row_of_the_newest_revision_rejects_the_match_with_its_older_revisions():
    file = matches_file({"revision": "1"}, {"revision": "2", "status": "x"}, {"revision": "2"}, {"match_id": "m2"})
    assert outcomes(taken_in(file)) == {
        2: "newest_revision_invalid",
        3: "status_unknown",
        4: "newest_revision_invalid",
        5: "accepted",
    }


def test_a_revision_that_cannot_be_read_rejects_the_match():
    file = matches_file({"revision": "5"}, {"revision": "1.0"}, {"revision": "4"}, {"match_id": "m2"})
    assert outcomes(taken_in(file)) == {
        2: "revision_of_match_invalid",
        3: "revision_invalid",
        4: "revision_of_match_invalid",
        5: "accepted",
    }


def test_rows_with_an_invalid_match_id_are_rejected_singly():
    file = matches_file({"match_id": "a b"}, {"match_id": "a b", "revision": "x"}, {})
    assert outcomes(taken_in(file)) == {2: "match_id_invalid", 3: "match_id_invalid", 4: "accepted"}


def test_a_row_with_another_field_count_takes_its_match_with_it():
    content = matches_file({}, {"match_id": "m2"}).content + b"m1,c1\n,c1\nm 3,c1\n"
    accepted = taken_in(LandingFile.of("match_results/a.csv", content))
    assert outcomes(accepted) == {
        2: "bad_row_of_match",
        3: "accepted",
        4: "field_count",
        5: "field_count",
        6: "field_count",
    }
    assert accepted.rejected_records["match_id"].tolist() == ["m1", "m1", None, "m 3"]


def test_a_broken_json_line_holds_up_nothing_else():
    lines = matches_as_json({}) + b'\n{"match_id": "m1", "revision": 2,\n'
    accepted = taken_in(LandingFile.of("match_results/a.jsonl", lines))
    assert outcomes(accepted) == {1: "accepted", 2: "broken_json_line"}


def matches_as_json(*rows: dict) -> bytes:
    numbers = {"home_score": 2, "away_score": 1, "revenue_minor": 1001, "revision": 1}
    return b"\n".join(json.dumps({**MATCH, **numbers, **row}).encode() for row in rows)


def test_the_three_formats_say_the_same():
    from_csv = taken_in(matches_file({}, {"match_id": "m2", "revenue_minor": "", "revision": ""}))
    content = matches_as_json({}, {"match_id": "m2", "revenue_minor": None, "revision": ""})
    from_json = taken_in(LandingFile.of("match_results/a.jsonl", content))
    sink = io.BytesIO()
    pq.write_table(
        pa.table(
            {
                **{name: [MATCH[name]] * 2 for name in MATCH_COLUMNS},
                "match_id": ["m1", "m2"],
                "kicked_off_at": pa.array(
                    [datetime(2024, 8, 17, 14, tzinfo=UTC)] * 2, pa.timestamp("ns", "Europe/London")
                ),
                "home_score": [2, 2],
                "away_score": pa.array([1, 1], pa.int8()),
                "revenue_minor": [1001, None],
                "revision": [1.0, None],
            }
        ),
        sink,
    )
    from_parquet = taken_in(LandingFile.of("match_results/a.parquet", sink.getvalue()))
    said = [name for name in MATCH_RESULTS.names if name not in ("source", "line_number")]
    for other in (from_json, from_parquet):
        pd.testing.assert_frame_equal(from_csv.match_results[said], other.match_results[said])


def test_the_content_hash_is_over_what_a_match_says_without_its_revision():
    def content_hash(**changes: str) -> str:
        return taken_in(matches_file(changes)).match_results["content_hash"].iloc[0]

    said = ["m1", "c1", 1723903200000000, "club:a", "club:b", "completed", 2, 1, None, 1001]
    assert content_hash() == hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
    assert content_hash(revision="7", kicked_off_at="2024-08-17T14:00Z") == content_hash()
    assert content_hash(revenue_minor="") != content_hash(revenue_minor="0")


def test_the_rules_hash_covers_terms_and_lines_and_not_the_name():
    def rules_hash(competitions: str = COMPETITIONS, fee_schedules: str = FEE_SCHEDULES) -> str:
        data = reference(competitions, fee_schedules=fee_schedules)
        return taken_in(matches_file({}), data=data).match_results["rules_hash"].iloc[0]

    assert rules_hash(COMPETITIONS.replace("c1,One", "c1,Renamed")) == rules_hash()
    assert rules_hash(fee_schedules=FEE_SCHEDULES.replace("c2,v1,,,1,revenue", "c2,v1,,,2,revenue")) == rules_hash()
    assert rules_hash(COMPETITIONS.replace("GBP,", "GBP,immediate")) == rules_hash()
    changes = [
        rules_hash(COMPETITIONS.replace("GBP", "EUR")),
        rules_hash(COMPETITIONS.replace("GBP,", "GBP,when_collected")),
        rules_hash(COMPETITIONS.replace(",,platform:1,GBP", ",,,GBP")),
        rules_hash(fee_schedules=FEE_SCHEDULES.replace("charge,500", "charge,501")),
        rules_hash(fee_schedules=FEE_SCHEDULES.replace("percent,1000,50", "percent,1000,")),
        rules_hash(fee_schedules=FEE_SCHEDULES.replace("completed;abandoned", "completed")),
    ]
    assert len({rules_hash(), *changes}) == 7


def test_matches_are_sorted_by_id_as_bytes_and_fit_the_schema():
    ids = ["m10", "m2", "M1", "a:b", "a-b", "0"]
    frame = taken_in(matches_file(*({"match_id": name} for name in ids))).match_results
    assert frame["match_id"].tolist() == sorted(ids, key=str.encode)
    assert pa.Table.from_pandas(frame, schema=MATCH_RESULTS.arrow(), preserve_index=False).num_rows == len(ids)
    assert list(frame.columns) == MATCH_RESULTS.names


def test_a_day_without_files_is_an_empty_day():
    accepted = taken_in([])
    for frame in (accepted.match_results, accepted.match_participants, accepted.rejected_records):
        assert len(frame) == 0
    assert (
        pa.Table.from_pandas(accepted.match_results, schema=MATCH_RESULTS.arrow(), preserve_index=False).num_rows == 0
    )


def test_the_zone_decides_the_day_and_the_words_say_so():
    (words,) = taken_in(matches_file({"kicked_off_at": "2024-08-17T23:30:00Z"})).rejected_records["words"]
    assert words == (
        f"kicked_off_at 2024-08-17T23:30:00Z is not on 2024-08-17 in {LONDON.key}. Deliver the row under the day of "
        "its local kick-off, or correct kicked_off_at."
    )
