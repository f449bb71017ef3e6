"""Frames of different input are never mixed, though each step of a day is a step of its own."""

import pandas as pd
import pytest

from payments_pipeline.defs.assets.lineage import same_input
from payments_pipeline.domain.errors import StaleInputError


def _frame(**hashes: str) -> pd.DataFrame:
    frame = pd.DataFrame({"match_id": ["m-1"]})
    frame.attrs["input_hashes"] = hashes
    return frame


def test_frames_of_one_input_give_its_hashes() -> None:
    one = {"landing": "1", "parties": "2"}
    assert same_input(_frame(**one), _frame(**one), reference={"parties": "2"}) == one


@pytest.mark.rule("posting/same-input")
def test_a_step_that_ran_on_other_input_is_named_and_nothing_goes_on() -> None:
    with pytest.raises(StaleInputError, match=r"^parties changed between two steps of this day\. Nothing was posted"):
        same_input(_frame(landing="1", parties="2"), _frame(landing="1", parties="3"))


@pytest.mark.rule("posting/same-input")
def test_a_frame_that_does_not_say_what_it_is_of_is_of_other_input() -> None:
    with pytest.raises(StaleInputError, match=r"^landing changed"):
        same_input(_frame(landing="1"), _frame())


@pytest.mark.rule("posting/same-input")
def test_reference_data_that_changed_since_stops_the_day() -> None:
    with pytest.raises(StaleInputError, match=r"^parties changed"):
        same_input(_frame(landing="1", parties="2"), reference={"parties": "3"})
