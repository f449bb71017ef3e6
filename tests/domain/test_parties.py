import pandas as pd
import pytest
from input_samples import DAY, PARTIES, REFEREE, matches_file, participants_file, reasons, reference, taken_in

from payments_pipeline.domain.participant_shares import compute_shares
from payments_pipeline.domain.parties import PartyStatus

HEADER, *ROWS = PARTIES.splitlines()


def with_rows(*rows: str) -> str:
    return "\n".join([HEADER, *ROWS, *rows]) + "\n"


def test_valid_parties_are_sorted_with_empty_cells_as_none():
    frame = reference().parties.frame
    assert frame["party_id"].tolist() == sorted(row.split(",")[0] for row in ROWS)
    club = frame.set_index("party_id").loc["club:c"]
    assert (club["status"], club["payout_token"], club["collection_token"]) == ("closed", None, None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("player:9,players,N,GB,active,,", "no known party_type"),
        ("player:9,,N,GB,active,,", "no known party_type"),
        ("player:9,player,N,GB,Active,,", "no known status"),
        ("player:9,player,N,GB,,,", "no known status"),
        ("player 9,player,N,GB,active,,", "no usable party_id"),
        (",player,N,GB,active,,", "no usable party_id"),
        ("player:9,player,N,GB,active,", "another number of fields"),
        ("player:9,player,N,GB,active,t\x00,", "payout_token that is not text"),
    ],
)
def test_a_bad_row_makes_its_party_unknown_and_no_other(row, words):
    data = reference(parties=with_rows(row))
    (problem,) = data.parties.problems
    assert words in problem.words
    assert problem.line_number == len(ROWS) + 2
    assert len(data.parties.frame) == len(ROWS)
    assert not data.parties.knows("player:9")
    accepted = taken_in(matches_file({}), participants_file({"party_id": "player:9"}, {}), data=data)
    assert reasons(accepted) == [("match_participants", 2, "party_unknown")]


def test_a_repeated_party_makes_all_its_rows_bad():
    data = reference(parties=with_rows("player:1,player,Other,GB,active,t,"))
    assert [problem.line_number for problem in data.parties.problems] == [5, len(ROWS) + 2]
    accepted = taken_in(matches_file({}), participants_file({}), data=data)
    (words,) = accepted.rejected_records["words"]
    assert words == "party_id player:1 has a bad row: parties.csv line 5 repeats its party_id. Keep one of the rows."


@pytest.mark.rule("posting/parties")
@pytest.mark.parametrize("status", PartyStatus)
@pytest.mark.parametrize("tokens", [",", "other,other"])
def test_status_and_tokens_change_no_share_and_no_row_that_is_taken_in(status, tokens):
    """A party's status and tokens never change shares."""

    def taken_and_shared(parties: str) -> list[pd.DataFrame]:
        data = reference(parties=parties)
        taken = taken_in(matches_file({}), participants_file({}, {"party_id": "player:2"}, REFEREE), data=data)
        matches, people = taken.match_results, taken.match_participants
        shares = compute_shares(matches, people, data.schedule_lines, data.competitions_on(DAY))
        return [shares, matches, people, taken.rejected_records]

    rows = [",".join([*row.split(",")[:4], status, tokens]) for row in ROWS]
    before, after = taken_and_shared(PARTIES), taken_and_shared("\n".join([HEADER, *rows]) + "\n")
    assert len(before[0]) == 7
    for one, other in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(one, other)


@pytest.mark.rule("posting/parties")
def test_the_hash_is_over_id_and_type_alone():
    def input_hash(parties: str) -> str:
        return reference(parties=parties).input_hashes["parties"]

    assert input_hash(PARTIES) == input_hash(
        PARTIES.replace("on_hold", "active").replace("k3", "").replace("日本", "JP")
    )
    assert input_hash("\n".join([HEADER, *ROWS[::-1]]) + "\n") == input_hash(PARTIES)
    assert input_hash(PARTIES.replace("club:c,club", "club:c,platform")) != input_hash(PARTIES)
    assert input_hash(with_rows("player:9,player,N,GB,active,,")) != input_hash(PARTIES)
