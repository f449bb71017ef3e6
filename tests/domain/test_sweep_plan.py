"""Netting: every item is claimed once or waits once, for a reason that a person can act on."""

import datetime as dt
import uuid
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money_zone import DAY, NEXT, parties_frame, policy

from payments_pipeline.domain.errors import AllocationOverflowError
from payments_pipeline.domain.payout_instructions import (
    WAIT_WORDS,
    SweepPlan,
    WaitReason,
    instruction_digest,
    plan_sweep,
)

POLICY = policy(minimum_minor=100, instruction_limit_minor=5000)
NOBODY_FAILS = pd.DataFrame({"party_id": [], "currency": [], "token": []}, dtype=object)
PARTIES = parties_frame(
    a="active",
    b="active",
    hold="on_hold",
    closed="closed",
    unpaid={"payout_token": None},
    uncollected={"collection_token": None},
)


def item(party_id: str, amount_minor: int, wait: str | None = None, **other: Any) -> dict[str, Any]:
    return {
        "item_id": str(uuid.uuid4()),
        "claim_no": 1,
        "party_id": party_id,
        "currency": "GBP",
        "amount_minor": amount_minor,
        "wait": wait,
        "later_minor": None,
    } | other


def sweep(
    *items: dict[str, Any],
    failing: pd.DataFrame = NOBODY_FAILS,
    day: dt.date = DAY,
    parties: pd.DataFrame = PARTIES,
) -> SweepPlan:
    columns = ["item_id", "claim_no", "party_id", "currency", "amount_minor", "wait", "later_minor"]
    frame = pd.DataFrame(list(items), columns=columns).astype({"later_minor": "Int64"})
    return plan_sweep(day, frame, parties, failing, POLICY)


def made(plan: SweepPlan) -> list[tuple[Any, ...]]:
    columns = ["party_id", "currency", "direction", "amount_minor", "token", "state"]
    return list(plan.instructions[columns].itertuples(index=False, name=None))


def waits(plan: SweepPlan) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (party, reason): (count, amount)
        for party, reason, count, amount in plan.deferrals[["party_id", "reason", "items", "amount_minor"]].itertuples(
            index=False
        )
    }


amounts = st.integers(-6000, 6000).filter(bool)
items = st.builds(
    item,
    st.sampled_from(["a", "b", "hold", "closed", "unpaid", "uncollected", "stranger"]),
    amounts | st.sampled_from([50, -50, 100, -100]),
    st.sampled_from([None, None, None, None, "posting_break", "not_collected", "day_not_swept"]),
    currency=st.sampled_from(["GBP", "EUR"]),
    claim_no=st.integers(1, 3),
)


@pytest.mark.rule("sweeping/claimed-once")
@settings(max_examples=25, deadline=None)
@given(st.lists(items, max_size=30), st.randoms())
def test_every_item_is_claimed_once_or_waits_once_whatever_the_order_of_rows(rows, random):
    plan = sweep(*rows)
    by_id = {row["item_id"]: row for row in rows}
    assert not plan.claims["item_id"].duplicated().any()
    assert len(plan.claims) + plan.deferrals["items"].sum() == len(rows)
    assert not plan.instructions.duplicated(["party_id", "currency"]).any()
    claimed = plan.claims.groupby("instruction_id")["item_id"].agg(list)
    for made_one in plan.instructions.to_dict("records"):
        mine = [by_id[item_id] for item_id in claimed[made_one["instruction_id"]]]
        assert {(row["party_id"], row["currency"], row["wait"]) for row in mine} == {
            (made_one["party_id"], made_one["currency"], None)
        }
        sign = {"credit": 1, "debit": -1, "none": 0}[made_one["direction"]]
        assert sum(row["amount_minor"] for row in mine) == sign * made_one["amount_minor"]
    waiting = sum(row["amount_minor"] for row in rows if row["item_id"] not in set(plan.claims["item_id"]))
    assert plan.deferrals["amount_minor"].sum() == waiting
    random.shuffle(rows)
    again = sweep(*rows)
    key = ["party_id", "currency"]
    assert again.instructions.sort_values(key, ignore_index=True).equals(
        plan.instructions.sort_values(key, ignore_index=True)
    )
    assert again.deferrals.equals(plan.deferrals)


@pytest.mark.rule("sweeping/net")
@pytest.mark.parametrize(
    ("amounts", "direction", "amount_minor", "token", "state"),
    [
        ([300, 400], "credit", 700, "pay_a", "approved"),
        ([300, -400], "debit", 100, "collect_a", "approved"),
        ([300, -300], "none", 0, None, "netted"),
        ([5000], "credit", 5000, "pay_a", "approved"),
        ([5001], "credit", 5001, "pay_a", "held"),
        ([-5001], "debit", 5001, "collect_a", "held"),
        ([9000, -9000], "none", 0, None, "netted"),
        ([100], "credit", 100, "pay_a", "approved"),
        ([-100], "debit", 100, "collect_a", "approved"),
    ],
)
def test_items_of_a_party_and_currency_are_netted_into_one_instruction(amounts, direction, amount_minor, token, state):
    [instruction] = made(sweep(*[item("a", amount) for amount in amounts]))
    assert tuple(None if pd.isna(value) else value for value in instruction) == (
        "a", "GBP", direction, amount_minor, token, state,
    )  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_a_net_that_63_bits_do_not_hold_is_refused_by_name_and_never_wraps(sign):
    with pytest.raises(AllocationOverflowError, match="the items of a in GBP come to more than 62 bits hold"):
        sweep(item("b", 5), *(item("a", sign * 10**15) for _ in range(4_700)))
    plan = sweep(*(item("a", sign * 10**15) for _ in range(4_000)))
    assert plan.instructions["amount_minor"].tolist() == [4_000 * 10**15]


@pytest.mark.rule("always/currencies-apart")
def test_currencies_are_never_added():
    plan = sweep(item("a", 300), item("a", -300, currency="EUR"))
    assert [row[1:4] for row in made(plan)] == [("EUR", "debit", 300), ("GBP", "credit", 300)]


REASONS = [
    (item("a", 500, "day_not_swept"), WaitReason.DAY_NOT_SWEPT),
    (item("a", 500, "posting_break"), WaitReason.POSTING_BREAK),
    (item("a", 500, "correction_under_way"), WaitReason.CORRECTION_UNDER_WAY),
    (item("a", 500, "nets_later"), WaitReason.NETS_LATER),
    (item("a", 500, "not_collected"), WaitReason.NOT_COLLECTED),
    (item("a", 500, "collection_not_settled"), WaitReason.COLLECTION_NOT_SETTLED),
    (item("stranger", 500), WaitReason.PARTY_UNKNOWN),
    (item("closed", 500), WaitReason.PARTY_CLOSED),
    (item("hold", -500), WaitReason.PARTY_ON_HOLD),
    (item("unpaid", 500), WaitReason.NO_PAYOUT_TOKEN),
    (item("uncollected", -500), WaitReason.NO_COLLECTION_TOKEN),
    (item("b", 500), WaitReason.FAILURES_IN_A_ROW),
    (item("a", 99), WaitReason.BELOW_MINIMUM),
    (item("a", -99), WaitReason.BELOW_MINIMUM),
]
B_FAILS = pd.DataFrame({"party_id": ["b"], "currency": ["GBP"], "token": ["pay_b"]}, dtype=object)


@pytest.mark.parametrize(("waiting", "reason"), REASONS, ids=[str(reason) for _, reason in REASONS])
def test_an_item_waits_for_its_reason(waiting, reason):
    plan = sweep(waiting, failing=B_FAILS)
    assert waits(plan) == {(waiting["party_id"], reason): (1, waiting["amount_minor"])}
    assert (len(plan.instructions), len(plan.claims)) == (0, 0)


@pytest.mark.rule("sweeping/own-run-first")
def test_what_may_net_with_an_item_of_a_day_that_was_not_swept_waits_with_it():
    waiting = item("a", -500, "day_not_swept")
    plan = sweep(
        waiting, item("a", 600), item("a", 70, "not_collected"), item("a", 600, currency="EUR"), item("b", 600)
    )
    assert [row[:4] for row in made(plan)] == [("a", "EUR", "credit", 600), ("b", "GBP", "credit", 600)]
    assert waits(plan) == {("a", WaitReason.DAY_NOT_SWEPT): (2, 100), ("a", WaitReason.NOT_COLLECTED): (1, 70)}


@pytest.mark.rule("sweeping/claimed-once")
def test_every_reason_is_tested_and_has_words():
    assert {reason for _, reason in REASONS} == set(WaitReason) == set(WAIT_WORDS)


@pytest.mark.rule("sweeping/token")
def test_a_token_is_needed_for_the_way_the_money_goes_alone():
    plan = sweep(item("uncollected", 500), item("unpaid", -500))
    assert [row[:5] for row in made(plan)] == [
        ("uncollected", "GBP", "credit", 500, "pay_uncollected"),
        ("unpaid", "GBP", "debit", 500, "collect_unpaid"),
    ]


def test_a_new_token_or_another_currency_ends_the_wait_after_failures():
    plan = sweep(item("b", -500), item("b", 500, currency="EUR"), failing=B_FAILS)
    assert [row[1:3] for row in made(plan)] == [("EUR", "credit"), ("GBP", "debit")]


@pytest.mark.rule("sweeping/minimum")
def test_the_minimum_is_of_the_net_and_not_of_each_item():
    assert made(sweep(item("a", 60), item("a", 60)))[0][3] == 120
    assert waits(sweep(item("a", 500), item("a", -450))) == {("a", WaitReason.BELOW_MINIMUM): (2, 50)}


def test_what_is_of_no_match_waits_with_what_it_makes_up_for_where_their_signs_differ():
    """A debt waits because its match has a break: what was written off of it would be paid out."""
    a = {"later_minor": 0}
    plan = sweep(item("a", -700, "posting_break", **a), item("a", 700, **a), item("a", 50, **a), item("b", 600))
    assert plan.instructions["party_id"].tolist() == ["b"]
    assert waits(plan) == {("a", WaitReason.POSTING_BREAK): (1, -700), ("a", WaitReason.NETS_LATER): (2, 750)}
    assert sweep(item("a", -700, **a), item("a", 700, **a)).instructions["state"].tolist() == ["netted"]
    # A share that its payer has not paid yet holds up no payment of the same way.
    plan = sweep(item("a", 500, "not_collected", **a), item("a", 300, **a))
    assert made(plan)[0][2:4] == ("credit", 300)


@pytest.mark.parametrize(("later", "is_held"), [(700, True), (1, True), (0, False), (-50, False)])
def test_a_debt_waits_for_what_makes_up_for_it_and_is_free_to_later_days_only(later, is_held):
    plan = sweep(item("a", -700, later_minor=later), item("a", -50, currency="EUR"))
    assert (("a", WaitReason.NETS_LATER) in waits(plan)) == is_held


@pytest.mark.parametrize("status", ["on_hold", "closed", None])
def test_what_nets_to_zero_is_netted_at_once_whoever_its_party_is(status):
    """A payer who is closed owes nothing more: who shares the fee need not wait for ever."""
    plan = sweep(item("z", 500), item("z", -500), parties=parties_frame(**({"z": status} if status else {})))
    assert plan.instructions["state"].tolist() == ["netted"]
    assert plan.instructions["token"].tolist() == [None]
    assert plan.deferrals.empty


def test_an_item_that_waits_takes_no_part_in_the_net():
    plan = sweep(item("a", 500), item("a", -450, "posting_break"))
    assert made(plan)[0][3] == 500
    assert waits(plan) == {("a", WaitReason.POSTING_BREAK): (1, -450)}


@pytest.mark.rule("instructions/id")
def test_an_instructions_id_is_over_day_party_currency_and_claims():
    one, other = item("a", 300), item("a", 400)

    def id_of(*rows: dict[str, Any], day: dt.date = DAY) -> str:
        return sweep(*rows, day=day).instructions["instruction_id"].item()

    ids = [
        id_of(one, other),
        id_of(one),
        id_of(one, other, day=NEXT),
        id_of(one | {"claim_no": 2}, other),
        id_of(one | {"currency": "EUR"}, other | {"currency": "EUR"}),
        id_of(one | {"party_id": "b"}, other | {"party_id": "b"}),
    ]
    assert len(set(ids)) == len(ids)
    assert id_of(other, one) == ids[0]
    assert id_of(one | {"amount_minor": 4900}, other) == ids[0]  # an item's amount never changes: its id says it


@pytest.mark.rule("people/digest")
def test_a_digest_covers_party_token_currency_amount_and_items():
    content = {
        "party_id": "a",
        "token": "t",
        "currency": "GBP",
        "direction": "credit",
        "amount_minor": 5,
        "claims": "i:1",
    }
    others = {
        "party_id": "b",
        "token": "u",
        "currency": "EUR",
        "direction": "debit",
        "amount_minor": 6,
        "claims": "i:2",
    }
    digests = [instruction_digest(**(content | {name: value})) for name, value in others.items()]
    assert len({*digests, instruction_digest(**content)}) == len(others) + 1


def test_a_sweep_without_items_makes_nothing():
    plan = sweep()
    assert [len(part) for part in (plan.instructions, plan.claims, plan.deferrals)] == [0, 0, 0]
    full = sweep(item("a", 500), item("hold", 5))
    assert set(plan.instructions) == set(full.instructions)
    assert set(plan.claims) == set(full.claims)
    assert set(plan.deferrals) == set(full.deferrals)
