"""The policy file: what it may say, what follows for a currency, and what the sending limits let pass."""

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from money_zone import POLICY, policy
from pydantic import ValidationError

from payments_pipeline.domain.payout_submissions import within_limits
from payments_pipeline.domain.policy import Policy
from payments_pipeline.settings import Settings, load_policy


def _with(path: str, value: Any) -> dict[str, Any]:
    content = POLICY.model_dump()
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    return content


def test_a_currency_has_the_defaults_limits_where_it_states_none():
    content = POLICY.model_dump() | {"currencies": {"JPY": {"minimum_minor": 7, "day_limit_minor": None}}}
    read = Policy.model_validate(content)
    assert read.of("JPY") == read.default.model_copy(update={"minimum_minor": 7})
    assert read.of("GBP") == read.default


def test_a_limit_of_zero_is_stated_and_not_missing():
    content = POLICY.model_dump() | {"currencies": {"JPY": {"instruction_limit_minor": 0}}}
    assert Policy.model_validate(content).of("JPY").instruction_limit_minor == 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("default.minimum_minor", -1),
        ("default.minimum_minor", 1.0),
        ("default.day_limit_minor", "100"),
        ("default.unheard_of", 1),
        ("unheard_of", 1),
        ("version", ""),
        ("version", 1),
        ("currencies", {"gbp": {}}),
        ("currencies", {"POUND": {}}),
        ("currencies", {"GBP": {"minimum_minor": -1}}),
        ("currencies", {"GBP": {"unheard_of": 1}}),
        ("dispatch.batch_size", 0),
        ("dispatch.retries", -1),
        ("dispatch.breaker_failures", 0),
        ("dispatch.key_margin_s", -1),
        ("sweep.failures_in_a_row", 0),
        ("default.expires_days", 0),
        ("approval", {"expires_days": 14}),
        ("currencies", {"GBP": {"expires_days": 0}}),
        ("checks.reject_rate_bp", 10_001),
    ],
)
def test_what_a_policy_does_not_know_or_cannot_mean_is_refused(path, value):
    with pytest.raises(ValidationError):
        Policy.model_validate(_with(path, value))


def test_the_shipped_policy_states_every_key(tmp_path):
    shipped = load_policy(Settings(home=tmp_path, config=None))
    assert Policy.model_validate(shipped.model_dump()) == shipped
    assert shipped.model_fields_set == set(Policy.model_fields)


def test_a_policy_cannot_be_changed_once_read():
    with pytest.raises(ValidationError):
        POLICY.version = "2"


def _frame(rows: list[tuple[str, str, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["party_id", "currency", "amount_minor"])
    return frame.astype({"party_id": object, "currency": object, "amount_minor": "int64"})


def _allowed(
    approved: list[tuple[str, str, int]], sent: list[tuple[str, str, int]], party_limit: int, day_limit: int
) -> list[bool]:
    """Say by the rules which may be sent: one after the other, each party in order."""
    by_party: dict[tuple[str, str], int] = {}
    by_currency: dict[str, int] = {}
    for party, currency, amount in sent:
        by_party[party, currency] = by_party.get((party, currency), 0) + amount
        by_currency[currency] = by_currency.get(currency, 0) + amount
    waiting = set()
    allowed = []
    for party, currency, amount in approved:
        key = (party, currency)
        fits = (
            key not in waiting
            and by_party.get(key, 0) + amount <= party_limit
            and by_currency.get(currency, 0) + amount <= day_limit
        )
        allowed.append(fits)
        if fits:
            by_party[key] = by_party.get(key, 0) + amount
            by_currency[currency] = by_currency.get(currency, 0) + amount
        else:
            waiting.add(key)
    return allowed


instructions = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["GBP", "EUR"]), st.integers(1, 60)), max_size=12
)


@given(
    instructions,
    instructions.map(lambda rows: list({row[:2]: row for row in rows}.values())),
    st.integers(0, 120),
    st.integers(0, 200),
)
def test_instructions_are_sent_in_order_up_to_the_limits_and_only_their_own_party_waits(
    approved, sent, party_limit, day_limit
):
    limits = policy(party_day_limit_minor=party_limit, day_limit_minor=day_limit)
    fits = within_limits(_frame(approved), _frame(sent), limits)
    assert fits.tolist() == _allowed(approved, sent, party_limit, day_limit)
