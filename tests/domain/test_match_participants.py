import pyarrow as pa
import pytest
from input_samples import PLAYER, REFEREE, matches_file, participants_file, reasons, taken_in

from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.schemas import MATCH_PARTICIPANTS


def outcomes(*rows: dict, matches: LandingFile | None = None) -> dict[int, str]:
    accepted = taken_in(matches or matches_file({}), participants_file(*rows))
    found = dict.fromkeys(accepted.match_participants["line_number"].tolist(), "accepted")
    return found | {line: reason for dataset, line, reason in reasons(accepted) if dataset == "match_participants"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"match_id": ""}, "match_id_invalid"),
        ({"match_id": "../m1"}, "match_id_invalid"),
        ({"match_id": "m9"}, "match_absent"),
        ({"party_id": ""}, "party_unknown"),
        ({"party_id": "player:99"}, "party_unknown"),
        ({"party_id": "'; DELETE FROM parties"}, "party_unknown"),
        ({"role": ""}, "role_missing"),
        ({"role": "pla\x00yer"}, "role_invalid"),
        ({"club_id": ""}, "player_club_not_in_match"),
        ({"club_id": "club:c"}, "player_club_not_in_match"),
        ({"club_id": "not an id"}, "club_id_invalid"),
        ({**REFEREE, "club_id": "club:a"}, "referee_has_club"),
        ({}, "accepted"),
        ({"club_id": "club:b"}, "accepted"),
        (REFEREE, "accepted"),
        ({"role": "trainer", "club_id": "club:c"}, "accepted"),
        ({"role": "тренер", "club_id": ""}, "accepted"),
        ({"role": "Referee"}, "accepted"),
    ],
)
def test_a_row_has_the_reason_of_the_rule_it_breaks(row, reason):
    assert outcomes(row) == {2: reason}


def test_participants_of_a_rejected_match_are_rejected():
    assert outcomes({}, matches=matches_file({"status": "x"})) == {2: "match_rejected"}
    assert outcomes({}, matches=matches_file({}, {"home_score": "9"})) == {2: "match_rejected"}


def test_clubs_are_those_of_the_participants_own_match():
    matches = matches_file({}, {"match_id": "m2", "home_club_id": "club:b", "away_club_id": "club:c"})
    rows = [{"match_id": "m2", "club_id": club} for club in ("club:a",)] + [{"match_id": "m1", "club_id": "club:c"}]
    assert outcomes(*rows, matches=matches) == {2: "player_club_not_in_match", 3: "player_club_not_in_match"}
    assert outcomes({"match_id": "m2", "club_id": "club:c"}, {}, matches=matches) == {2: "accepted", 3: "accepted"}


def test_equal_rows_are_one_participant_and_its_duplicates():
    assert outcomes({}, {"role": " player "}, REFEREE, {}) == {
        2: "accepted",
        3: "duplicate",
        4: "accepted",
        5: "duplicate",
    }


@pytest.mark.parametrize("other", [{"club_id": "club:b"}, {"role": "trainer"}, {"club_id": ""}])
def test_differing_rows_for_one_match_and_party_are_all_rejected(other):
    found = outcomes({}, other, {}, REFEREE)
    assert found[5] == "accepted"
    assert found[2] == found[4] == "rows_differ"
    assert found[3] in ("rows_differ", "player_club_not_in_match")


def test_one_party_may_take_part_in_several_matches():
    matches = matches_file({}, {"match_id": "m2"})
    assert outcomes({}, {"match_id": "m2", "club_id": "club:b"}, matches=matches) == {2: "accepted", 3: "accepted"}


def test_a_row_with_another_field_count_takes_its_match_with_it():
    content = participants_file({}).content + b"m1,player:2\n"
    accepted = taken_in(matches_file({}, {"match_id": "m2"}), LandingFile.of("match_participants/p.csv", content))
    assert accepted.match_results["match_id"].tolist() == ["m2"]
    assert reasons(accepted) == [
        ("match_participants", 2, "match_rejected"),
        ("match_participants", 3, "field_count"),
        ("match_results", 2, "bad_row_of_match"),
    ]
    assert accepted.rejected_records["party_id"].tolist() == ["player:1", "player:2", None]


def test_participants_are_sorted_as_bytes_and_fit_the_schema():
    accepted = taken_in(
        matches_file({}, {"match_id": "M2"}),
        participants_file({"party_id": "player:2"}, REFEREE, {}, {"match_id": "M2"}),
    )
    frame = accepted.match_participants
    assert list(zip(frame["match_id"], frame["party_id"], strict=True)) == [
        ("M2", "player:1"),
        ("m1", "player:1"),
        ("m1", "player:2"),
        ("m1", "referee:1"),
    ]
    assert frame["club_id"].isna().tolist() == [False, False, False, True]
    assert list(frame.columns) == MATCH_PARTICIPANTS.names
    stored = pa.Table.from_pandas(frame, schema=MATCH_PARTICIPANTS.arrow(), preserve_index=False)
    assert stored.column("party_id").to_pylist() == frame["party_id"].tolist()


def test_the_words_name_the_row_the_value_and_the_cure():
    rows = ({"club_id": "club:c"}, {"party_id": "player:9"})
    frame = taken_in(matches_file({}), participants_file(*rows)).rejected_records
    assert frame["words"].tolist() == [
        "club_id club:c of player player:1 is neither of the match's clubs. Write the club the player played for.",
        "party_id player:9 is not in parties. Add it there, or correct it here.",
    ]
    assert frame["raw"].tolist() == ["m1,player:1,club:c,player", "m1,player:9,club:a,player"]
    assert PLAYER["role"] in frame["raw"].iloc[0]
