import re

from input_samples import matches_file, taken_in

from payments_pipeline.domain.match_participants import MATCH_PARTICIPANT_FILES
from payments_pipeline.domain.match_results import MATCH_RESULT_FILES
from payments_pipeline.domain.refund_requests import REFUND_REQUEST_FILES
from payments_pipeline.domain.rejected_records import SUPERSEDING, WORDS, Reason


def test_every_reason_has_words_that_end_in_a_cure():
    assert list(WORDS) == list(Reason)
    assert all(words.rstrip().endswith((".", "{detail}")) for words in WORDS.values())


def test_words_ask_only_for_what_there_is():
    layouts = (MATCH_RESULT_FILES, MATCH_PARTICIPANT_FILES, REFUND_REQUEST_FILES)
    names = {name for layout in layouts for name in layout.names} | {"detail", "newer"}
    assert {name for words in WORDS.values() for name in re.findall(r"\{(\w+)\}", words)} <= names


def test_what_supersedes_comes_after_every_fault():
    assert tuple(Reason)[-len(SUPERSEDING) :] == SUPERSEDING


def test_long_values_are_cut_in_words_and_whole_in_raw():
    long = "x" * 500
    frame = taken_in(matches_file({"match_id": long})).rejected_records
    assert frame["words"].iloc[0].startswith(f"match_id {'x' * 80} is no id.")
    assert long in frame["raw"].iloc[0]
    assert frame["match_id"].iloc[0] == long
