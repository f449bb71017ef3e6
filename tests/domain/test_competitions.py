from datetime import date

import pytest
from input_samples import COMPETITIONS, DAY, FEE_SCHEDULES, PARTIES, matches_file, reasons, reference, taken_in

HEADER = (
    "competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy,effective_from,effective_to\n"
)


def of(*rows: str):
    return reference("\n".join([HEADER.strip(), *rows]) + "\n")


def fate(data, **changes: str) -> str:
    accepted = taken_in(matches_file(changes), data=data)
    return reasons(accepted)[0][2] if len(accepted.rejected_records) else "accepted"


def words(data) -> str:
    return taken_in(matches_file({}), data=data).rejected_records["words"].iloc[0]


def test_the_usable_competitions_of_a_day():
    assert reference().competitions_on(DAY).to_dict("records") == [
        {
            "competition_id": "c1",
            "organiser_id": "organiser:1",
            "federation_id": None,
            "platform_id": "platform:1",
            "currency": "GBP",
            "payout_policy": "immediate",
        },
        {
            "competition_id": "c2",
            "organiser_id": "organiser:1",
            "federation_id": "federation:1",
            "platform_id": None,
            "currency": "IQD",
            "payout_policy": "when_collected",
        },
    ]


@pytest.mark.parametrize(
    ("row", "words_"),
    [
        ("c1,One,,,,GBP,,,", "no organiser_id"),
        ("c1,One,organiser:9,,,GBP,,,", "organiser_id 'organiser:9', which is not in parties"),
        ("c1,One,organiser:1,federation:9,,GBP,,,", "federation_id 'federation:9'"),
        ("c1,One,organiser:1,,platform:9,GBP,,,", "platform_id 'platform:9'"),
        ("c1,One,organiser:1,,,,,,", "ISO 4217"),
        ("c1,One,organiser:1,,,GBX,,,", "currency 'GBX'"),
        ("c1,One,organiser:1,,,XAU,,,", "currency 'XAU'"),
        ("c1,One,organiser:1,,,gbp,,,", "currency 'gbp'"),
        ("c1,One,organiser:1,,,GBP,later,,", "payout_policy 'later'"),
        ("c1,One,organiser:1,,,GBP,,2024-02-30,", "effective_from '2024-02-30'"),
        ("c1,One,organiser:1,,,GBP,,,17/08/2024", "effective_to '17/08/2024'"),
        ("c1,One,organiser:1,,,GBP,,2024-09-01,2024-08-01", "before it begins"),
        ("c1,One,organiser:1,,,GBP,", "another number of fields"),
    ],
)
def test_a_bad_row_rejects_the_matches_that_use_it_and_nothing_else(row, words_):
    data = of(row, "c2,Two,organiser:1,,,EUR,,,")
    (problem,) = data.problems
    assert words_ in problem.words
    assert fate(data) == "competition_invalid"
    assert words(data).startswith(f"competition c1 cannot be used: competitions.csv line 2 {problem.words}.")
    assert fate(data, competition_id="c2") == "accepted"
    assert data.competitions_on(DAY)["competition_id"].tolist() == ["c2"]


def test_a_row_whose_id_cannot_be_read_is_a_problem_that_no_match_uses():
    data = of("c 1,One,organiser:1,,,GBP,,,", "c1,One,organiser:1,,,GBP,,,")
    assert [problem.line_number for problem in data.competitions.problems] == [2]
    assert fate(data) == "accepted"


@pytest.mark.rule("posting/competition-in-force")
def test_the_row_in_force_on_the_day_counts():
    data = of(
        "c1,One,organiser:1,,,GBP,,,2024-08-16",
        "c1,One,organiser:1,federation:1,,GBP,when_collected,2024-08-17,2024-08-17",
        "c1,One,organiser:1,,,GBP,,2024-08-18,",
    )
    assert not data.competitions.problems
    assert [data.competitions_on(date(2024, 8, day))["federation_id"].tolist() for day in (16, 17, 18)] == [
        [None],
        ["federation:1"],
        [None],
    ]
    assert taken_in(matches_file({}), data=data).match_results["payout_policy"].tolist() == ["when_collected"]


def test_no_row_in_force_rejects_the_match():
    assert fate(of("c1,One,organiser:1,,,GBP,,2024-08-18,")) == "competition_not_in_force"
    assert fate(of("c1,One,organiser:1,,,GBP,,,2024-08-16")) == "competition_not_in_force"


def test_two_rows_in_force_reject_the_match():
    data = of("c1,One,organiser:1,,,GBP,,,", "c1,One,organiser:1,,,GBP,,2024-08-01,")
    assert fate(data) == "competition_invalid"
    assert "two rows are in force" in words(data)


def test_a_bad_row_of_another_time_holds_up_nothing():
    data = of("c1,One,organiser:1,,,GBP,,,2024-08-31", "c1,One,organiser:9,,,GBP,,2024-09-01,")
    assert len(data.competitions.problems) == 1
    assert fate(data) == "accepted"


def test_repeated_keys_are_all_bad():
    data = of("c1,One,organiser:1,,,GBP,,2024-01-01,", "c1,Uno,organiser:1,,,GBP,,2024-01-01,2024-02-01")
    assert [problem.line_number for problem in data.competitions.problems] == [2, 3]
    assert fate(data) == "competition_invalid"


@pytest.mark.rule("posting/competition-currency")
def test_a_currency_never_changes_between_the_rows_of_a_competition():
    data = of(
        "c1,One,organiser:1,,,GBP,,,2024-08-31",
        "c1,One,organiser:1,,,EUR,,2024-09-01,",
        "c2,Two,organiser:1,,,EUR,,,",
    )
    assert [problem.line_number for problem in data.competitions.problems] == [2, 3]
    assert fate(data) == "competition_invalid"
    assert "EUR, GBP" in words(data)
    assert fate(data, competition_id="c2") == "accepted"


def test_a_party_with_a_bad_row_makes_what_names_it_bad():
    data = reference(parties=PARTIES.replace("organiser:1,organiser,O,GB,active", "organiser:1,organiser,O,GB,aktiv"))
    assert fate(data) == "competition_invalid"
    assert "parties.csv line 8 has no known status" in words(data)


def test_hashes_follow_the_bytes_of_competitions_and_schedules():
    one, other = reference(), reference(COMPETITIONS.replace("GBP", "EUR"), fee_schedules=FEE_SCHEDULES + "\n")
    assert one.input_hashes["competitions"] != other.input_hashes["competitions"]
    assert one.input_hashes["fee_schedules"] != other.input_hashes["fee_schedules"]
    assert one.input_hashes == reference().input_hashes
