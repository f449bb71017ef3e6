"""Refunds of pots: bounded, divided to the last minor unit, recomputed from what stands."""

import datetime as dt
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payments_pipeline.domain.errors import InvariantError
from payments_pipeline.domain.refunds import charges, decide_requests, plan_refunds

#: Each example builds frames, which costs some ten milliseconds.
FEW = settings(max_examples=25, deadline=None)
DAY, NEXT = dt.date(2024, 8, 17), dt.date(2024, 8, 18)
LINE = ["match_id", "pot", "pot_party_id", "line_no", "account", "currency"]


def pot(holds: list[int], match_id: str = "m", payer: str = "p") -> list[dict]:
    """Accruals of one fee: what each line holds, in the order of lines, and what the payer is charged."""
    lines = [(1, payer, -sum(holds), "payer"), *((n, f"c{n}", held, "club") for n, held in enumerate(holds, 2))]
    return [
        {"match_id": match_id, "pot": "match_fee", "pot_party_id": payer, "line_no": line_no}
        | {"account": f"party:{party}", "currency": "GBP", "recipient": recipient, "schedule_version": "v1"}
        | {"amount_minor": amount}
        for line_no, party, amount, recipient in lines
        if amount
    ]


COLUMNS = [*LINE, "recipient", "schedule_version", "amount_minor"]
NOTHING = pd.DataFrame({name: [] for name in ["refund_id", *COLUMNS, "posting_no"]}, dtype=object).astype(
    {"line_no": "int64", "amount_minor": "int64", "posting_no": "int64"}
)


def accruals(*pots: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([line for each in pots for line in each], columns=COLUMNS)


def refunds(amounts: list[int], match_id: str = "m", payer: str = "p") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"refund_id": f"r{match_id}{number}", "match_id": match_id, "pot_party_id": payer, "currency": "GBP"}
            | {"pot_no": number, "amount_minor": amount, "accepted_day": NEXT}
            for number, amount in enumerate(amounts, 1)
        ]
    )


def postings(*match_ids: str, posting_no: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"match_id": match_ids, "posting_no": posting_no, "match_day": DAY})


def posted_by(entries: pd.DataFrame, before: pd.DataFrame = NOTHING) -> pd.DataFrame:
    """What stands once entries are posted on top of what was."""
    added = entries.assign(amount_minor=entries["credit_minor"] - entries["debit_minor"], posting_no=1)
    both = pd.concat([frame for frame in (before, added[before.columns]) if len(frame)] or [before])
    keys = ["refund_id", *LINE]
    sums = {"recipient": "last", "schedule_version": "last", "amount_minor": "sum", "posting_no": "sum"}
    return both.groupby(keys, as_index=False).agg(sums)


def by_hand(holds: list[int], amounts: list[int]) -> list[list[int]]:
    """What each refund takes from each line, in exact fractions, written a second time."""
    left, taken = list(holds), []
    for amount in amounts:
        total = sum(left)
        applied = min(amount, total)
        exact = [Fraction(applied * held, total) if total else Fraction(0) for held in left]
        parts = [int(part) for part in exact]
        order = sorted(range(len(left)), key=lambda n: (parts[n] - exact[n], n))
        for n in order[: applied - sum(parts)]:
            parts[n] += 1
        left = [held - part for held, part in zip(left, parts, strict=True)]
        taken.append(parts)
    return taken


holdings = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)
amounts = st.lists(st.integers(1, 10**6), min_size=1, max_size=5)


def matrix(posted: pd.DataFrame, holds: list[int], count: int) -> list[list[int]]:
    """Taken from each line by each refund."""
    found = posted.set_index(["refund_id", "line_no"])["amount_minor"].to_dict()
    return [[-found.get((f"rm{r}", n), 0) for n in range(2, len(holds) + 2)] for r in range(1, count + 1)]


@pytest.mark.rule("refunds/division")
@FEW
@given(holdings, amounts)
def test_each_refund_is_taken_by_what_each_line_still_holds_largest_remainder_in_order(holds, asked):
    plan = plan_refunds(accruals(pot(holds)), refunds(asked), NOTHING, postings("m"))
    assert matrix(posted_by(plan.entries), holds, len(asked)) == by_hand(holds, asked)


@FEW
@given(holdings, amounts)
def test_a_refund_applies_as_far_as_the_pot_still_charges_and_no_line_gives_more_than_it_holds(holds, asked):
    plan = plan_refunds(accruals(pot(holds)), refunds(asked), NOTHING, postings("m"))
    taken = np.array(matrix(posted_by(plan.entries), holds, len(asked)))
    assert (taken >= 0).all()
    assert (taken.sum(axis=0) <= holds).all()
    assert plan.applied["applied_minor"].tolist() == taken.sum(axis=1).tolist()
    assert plan.applied["applied_minor"].sum() == min(sum(asked), sum(holds))


@FEW
@given(holdings, holdings, amounts)
def test_only_the_difference_is_posted_and_leads_to_the_same_as_from_nothing(before, after, asked):
    accepted = refunds(asked)
    first = posted_by(plan_refunds(accruals(pot(before)), accepted, NOTHING, postings("m")).entries)
    plan = plan_refunds(accruals(pot(after)), accepted, first, postings("m", posting_no=2))
    then = posted_by(plan.entries, first)
    wide = max(before, after, key=len)
    assert matrix(then, wide, len(asked)) == [row + [0] * (len(wide) - len(after)) for row in by_hand(after, asked)]
    again = plan_refunds(accruals(pot(after)), accepted, then, postings("m", posting_no=3))
    assert (len(again.journals), len(again.entries)) == (0, 0)


@FEW
@given(st.lists(st.tuples(holdings, amounts), min_size=2, max_size=4))
def test_pots_are_worked_apart(pots):
    names = [f"m{n}" for n in range(len(pots))]
    together = plan_refunds(
        accruals(*(pot(holds, name) for name, (holds, _) in zip(names, pots, strict=True))),
        pd.concat([refunds(asked, name) for name, (_, asked) in zip(names, pots, strict=True)]),
        NOTHING,
        postings(*names),
    )
    apart = pd.concat(
        [
            plan_refunds(accruals(pot(holds, name)), refunds(asked, name), NOTHING, postings(name)).entries
            for name, (holds, asked) in zip(names, pots, strict=True)
        ]
    )
    assert set(together.entries["entry_id"]) == set(apart["entry_id"])
    columns = ["entry_id", "debit_minor", "credit_minor"]
    assert {*together.entries[columns].itertuples(index=False)} == {*apart[columns].itertuples(index=False)}


def test_a_tie_goes_to_the_lower_line():
    plan = plan_refunds(accruals(pot([5, 5, 5])), refunds([1]), NOTHING, postings("m"))
    assert matrix(posted_by(plan.entries), [5, 5, 5], 1) == [[1, 0, 0]]


def test_amounts_beyond_the_kernel_are_divided_exactly():
    holds = [10**15 // 3, 10**15 // 3, 10**14 + 7]
    plan = plan_refunds(accruals(pot(holds)), refunds([10**14 + 1]), NOTHING, postings("m"))
    assert matrix(posted_by(plan.entries), holds, 1) == by_hand(holds, [10**14 + 1])


def test_a_payer_who_shares_their_own_fee_gives_from_that_line_and_is_credited_on_the_other():
    lines = pot([60, 40])
    lines[1]["account"] = "party:p"
    entries = plan_refunds(accruals(lines), refunds([50]), NOTHING, postings("m")).entries
    signed = entries["credit_minor"] - entries["debit_minor"]
    assert dict(zip(zip(entries["account"], entries["line_no"], strict=True), signed, strict=True)) == {
        ("party:p", 1): 50,
        ("party:p", 2): -30,
        ("party:c3", 3): -20,
    }


def test_what_is_in_suspense_gives_too_and_is_no_item():
    lines = pot([60, 40])
    lines[2] |= {"account": "suspense", "line_no": 0, "recipient": "suspense"}
    entries = plan_refunds(accruals(lines), refunds([50]), NOTHING, postings("m")).entries
    assert entries.loc[entries["account"] == "suspense", ["debit_minor", "is_item"]].to_numpy().tolist() == [
        [20, False]
    ]


def test_a_journal_is_of_the_day_of_acceptance_or_the_matchs_where_that_is_later():
    for match_day, due in ((DAY, NEXT), (dt.date(2024, 9, 1), dt.date(2024, 9, 1))):
        newest = postings("m").assign(match_day=match_day)
        plan = plan_refunds(accruals(pot([5])), refunds([1]), NOTHING, newest)
        assert plan.journals["day"].tolist() == plan.entries["day"].unique().tolist() == [due]


def test_a_pot_that_does_not_balance_is_refused():
    with pytest.raises(InvariantError, match="Nothing was posted"):
        plan_refunds(accruals(pot([5, 5])[:2]), refunds([1]), NOTHING, postings("m"))


def requests(*rows: tuple[str, int | None], match_id: str = "m", party: str = "p") -> pd.DataFrame:
    frame = pd.DataFrame([{"refund_id": name, "amount_minor": amount} for name, amount in rows])
    return frame.assign(match_id=match_id, party_id=party, reason="x").astype({"amount_minor": "Int64"})


KNOWN = pd.DataFrame(
    {name: [] for name in ("refund_id", "match_id", "pot_party_id", "requested_minor", "reason")}, dtype=object
)


@FEW
@given(st.integers(0, 1000), st.lists(st.one_of(st.none(), st.integers(1, 500)), min_size=1, max_size=6))
def test_what_is_refused_takes_nothing_from_those_after_it(left, asked):
    pots = pd.DataFrame([{"match_id": "m", "pot_party_id": "p", "currency": "GBP", "left_minor": left, "refunds": 2}])
    decided = decide_requests(
        requests(*((f"r{n}", amount) for n, amount in enumerate(asked))), KNOWN, frozenset("m"), pots
    )
    expected, number = [], 2
    for amount in asked:
        fixed = left if amount is None else amount
        if left == 0:
            expected.append(("nothing_left", 0))
        elif fixed > left:
            expected.append(("more_than_left", 0))
        else:
            number += 1
            left -= fixed
            expected.append(("accepted", fixed))
    assert list(zip(decided["decision"], decided["fixed_minor"], strict=True)) == expected
    accepted = decided[decided["decision"] == "accepted"]
    assert accepted["pot_no"].tolist() == list(range(3, number + 1))


def test_what_a_pot_still_charges_is_its_charge_less_what_was_refunded():
    found = charges(
        accruals(pot([60, 40]), pot([5], "n")),
        posted_by(plan_refunds(accruals(pot([60, 40])), refunds([30, 20]), NOTHING, postings("m")).entries),
        refunds([30, 20]),
    )
    assert found.set_index("match_id")[["left_minor", "refunds"]].to_dict("index") == {
        "m": {"left_minor": 50, "refunds": 2},
        "n": {"left_minor": 5, "refunds": 0},
    }
