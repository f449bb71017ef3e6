"""What report lines do, whatever their order and number: every sequence up to four lines, against a model."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from money_zone import DAY, line

from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.settlement_records import SettlementPlan, plan_settlement

AMOUNT = 100
#: What a line may say: its kind, and the cash that moves as instructed (settled) or back (returned).
SAYINGS = [
    ("settled", AMOUNT),
    ("settled", AMOUNT - 30),
    ("settled", AMOUNT + 50),
    ("failed", 0),
    ("returned", AMOUNT),
    ("returned", AMOUNT - 30),
    ("returned", AMOUNT + 50),
]
SEQUENCES = [sequence for length in range(1, 5) for sequence in itertools.product(SAYINGS, repeat=length)]
#: What the model expects of a line, by state; any other line leaves the state as it is.
MOVES = {
    (State.SUBMITTED, "settled"): State.SETTLED,
    (State.SUBMITTED, "failed"): State.FAILED,
    (State.SUBMITTED, "returned"): State.RETURNED,
    (State.SETTLED, "returned"): State.RETURNED,
}


@dataclass
class Instruction:
    """An instruction that was sent, and by the model what its lines have led to."""

    key: str
    direction: str
    state: str = State.SUBMITTED
    events: int = 0
    moved: int = 0  # cash in the instruction's direction, less what came back

    def take(self, kind: str, amount: int) -> None:
        after = MOVES.get((State(self.state), kind), self.state)
        self.events += after != self.state
        self.state = after
        self.moved += {"settled": amount, "failed": 0, "returned": -amount}[kind]

    @property
    def undone(self) -> bool:
        return self.state in (State.FAILED, State.RETURNED)

    @property
    def due(self) -> int:
        """What is to have moved, by its state."""
        return 0 if self.undone else AMOUNT

    @property
    def overpaid(self) -> int:
        return max(0, self.moved - self.due)

    @property
    def outstanding(self) -> int:
        """What is left in transit: short of, or behind, what is to have moved."""
        return max(0, self.due - self.moved)

    @property
    def open(self) -> int:
        """Its party's open items, in the direction of the instruction: those released, less what was paid beyond."""
        return (AMOUNT if self.undone else 0) - self.overpaid

    def cash(self, kind: str, amount: int) -> int:
        """Effect of a line on our balance: a payout takes out, its return brings back in."""
        out = kind == "settled"
        return -amount if out == (self.direction == "credit") else amount


@dataclass
class World:
    """Many instructions at once, each with a sequence of its own, and the ledger that their lines post."""

    instructions: list[Instruction]
    entries: list[pd.DataFrame] = field(default_factory=list)
    plans: list[SettlementPlan] = field(default_factory=list)
    known: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        self.known = pd.DataFrame(
            {
                "idempotency_key": [one.key for one in self.instructions],
                "instruction_id": [f"id {one.key}" for one in self.instructions],
                "party_id": [f"party-{one.key}" for one in self.instructions],
                "currency": "GBP",
                "direction": [one.direction for one in self.instructions],
                "amount_minor": AMOUNT,
                "state": str(State.SUBMITTED),
                "seq": 4,
                "net_minor": 0,
            }
        )

    def take_in(self, lines: list[dict[str, Any]]) -> None:
        frame = pd.DataFrame(lines)
        plan = plan_settlement(DAY, "sandbox", frame, self.known, frozenset(["pot:c1"]))
        self.plans.append(plan)
        self.entries.append(plan.entries)
        by_key = frame.groupby("idempotency_key")["amount_minor"].sum()
        sign = self.known["direction"].map({"credit": -1, "debit": 1})
        self.known["net_minor"] += sign * self.known["idempotency_key"].map(by_key).fillna(0).astype("int64")
        last = plan.events.drop_duplicates("instruction_id", keep="last").set_index("instruction_id")
        for column, source in (("state", "to_state"), ("seq", "seq")):
            told = self.known["instruction_id"].map(last[source])
            self.known[column] = told.where(told.notna(), self.known[column])
        self.known["seq"] = self.known["seq"].astype("int64")


def balances(world: World) -> pd.DataFrame:
    """Debits less credits by key of the instruction, in columns cash, in_transit, party and item."""
    entries = pd.concat(world.entries, ignore_index=True)
    journals = pd.concat([plan.journals for plan in world.plans], ignore_index=True)
    assert not entries["entry_id"].duplicated().any()
    assert not journals["journal_id"].duplicated().any()
    totals = entries.groupby("journal_id")[["debit_minor", "credit_minor"]].sum()
    assert totals["debit_minor"].equals(totals["credit_minor"])
    key = entries["journal_id"].map(journals.set_index("journal_id")["instruction_id"]).str.removeprefix("id ")
    net = entries["debit_minor"] - entries["credit_minor"]
    kind = entries["account"].str.split(":").str[0]
    named = pd.DataFrame({"key": key, "kind": kind, "net": net})
    table = named.pivot_table(index="key", columns="kind", values="net", aggfunc="sum", fill_value=0)
    items = net.where(entries["is_item"], 0).groupby(key).sum()
    return table.assign(item=items).reindex(
        index=[one.key for one in world.instructions], columns=["cash", "in_transit", "party", "item"], fill_value=0
    )


def settle(direction: str, *, together: bool) -> World:
    world = World([Instruction(f"{direction}-{number}", direction) for number in range(len(SEQUENCES))])
    reports: list[list[dict[str, Any]]] = [[] for _ in range(1 if together else 4)]
    for one, sequence in zip(world.instructions, SEQUENCES, strict=True):
        order = range(len(sequence))
        if together:  # within a date, what settles comes before what fails or returns, then by reference
            order = sorted(order, key=lambda at: ["settled", "failed", "returned"].index(sequence[at][0]))
        for at in order:
            one.take(*sequence[at])
        for at, (kind, amount) in enumerate(sequence):
            reference = f"{one.key}/{at}"
            reports[0 if together else at].append(
                line(one.key, one.cash(kind, amount), kind, entry_reference=reference)
            )
    for report in reports:
        world.take_in(report)
    return world


@pytest.fixture(scope="module", params=itertools.product(["credit", "debit"], [True, False]), ids=str)
def world(request) -> World:
    direction, together = request.param
    return settle(direction, together=together)


def _column(world: World, name: str) -> list[int]:
    sign = -1 if world.instructions[0].direction == "credit" else 1
    return [sign * value for value in balances(world)[name].tolist()]


@pytest.mark.rule("accounts/line-once")
def test_cash_is_the_sum_of_the_lines(world):
    assert _column(world, "cash") == [one.moved for one in world.instructions]


def test_the_party_has_open_what_is_not_paid_and_never_twice(world):
    released = pd.Series([key for plan in world.plans for key in plan.released]).str.removeprefix("id ")
    assert not released.duplicated().any()
    assert set(released) == {one.key for one in world.instructions if one.undone}
    # Items that a line opens are of the other sign than those that are released: what was paid beyond what was owed.
    assert _column(world, "item") == [-one.overpaid for one in world.instructions]
    # The submission took AMOUNT from the party's account; its balance is then what it has open.
    assert [-value for value in _column(world, "party")] == [-one.open for one in world.instructions]


@pytest.mark.rule("accounts/party-balance")
def test_paid_plus_open_plus_outstanding_is_what_was_owed(world):
    table = zip(world.instructions, _column(world, "cash"), _column(world, "party"), strict=True)
    for one, cash, party in table:
        assert cash + party + one.outstanding == AMOUNT, one


@pytest.mark.rule("accounts/short")
def test_what_is_left_in_transit_is_what_is_short_or_late(world):
    # Sending put AMOUNT into in_transit on the other side.
    assert [AMOUNT + value for value in _column(world, "in_transit")] == [one.outstanding for one in world.instructions]


@pytest.mark.rule("instructions/transitions")
def test_states_follow_the_lifecycle_and_a_final_state_never_changes(world):
    assert world.known["state"].tolist() == [str(one.state) for one in world.instructions]
    assert (world.known["seq"] - 4).tolist() == [one.events for one in world.instructions]
    events = pd.concat([plan.events for plan in world.plans])
    assert not events.duplicated(["instruction_id", "seq"]).any()
    assert not events["from_state"].isin([State.FAILED, State.RETURNED]).any()


def test_every_line_is_kept_with_its_instruction_and_cash_with_its_journal(world):
    lines = pd.concat([plan.lines for plan in world.plans])
    assert len(lines) == sum(map(len, SEQUENCES))
    assert lines["instruction_id"].notna().all()
    assert lines.loc[lines["amount_minor"] != 0, "journal_id"].notna().all()


def _one(direction: str, *sayings: tuple[str, int]) -> World:
    world = World([Instruction("k", direction)])
    for at, (kind, amount) in enumerate(sayings):
        world.take_in([line("k", world.instructions[0].cash(kind, amount), kind, entry_reference=f"e{at}")])
    return world


def _lines(world: World) -> list[tuple[str, int, bool]]:
    last = world.plans[-1].entries
    return [
        (account.split(":")[0], debit - credit, is_item)
        for account, debit, credit, is_item in last[["account", "debit_minor", "credit_minor", "is_item"]].itertuples(
            index=False
        )
    ]


S, F, R = ("settled", AMOUNT), ("failed", 0), ("returned", AMOUNT)
POSTINGS = {
    "settled": ([S], [("cash", -100, False), ("in_transit", 100, False)]),
    "failed": ([F], [("party", -100, False), ("in_transit", 100, False)]),
    "returned": (
        [S, R],
        [("cash", 100, False), ("in_transit", -100, False), ("party", -100, False), ("in_transit", 100, False)],
    ),
    "returned before its settled line": (
        [R],
        [("cash", 100, False), ("in_transit", -100, False), ("party", -100, False), ("in_transit", 100, False)],
    ),
    "settled after returned": ([R, S], [("cash", -100, False), ("in_transit", 100, False)]),
    "settled after failed": (
        [F, S],
        [("cash", -100, False), ("in_transit", 100, False), ("party", 100, True), ("in_transit", -100, False)],
    ),
    "returned after settled after failed": (
        [F, S, R],
        [("cash", 100, False), ("in_transit", -100, False), ("party", -100, True), ("in_transit", 100, False)],
    ),
    "failed after settled": ([S, F], []),
    "failed after failed": ([F, F], []),
}


@pytest.mark.rule("accounts/report-lines")
@pytest.mark.parametrize("direction", ["credit", "debit"])
@pytest.mark.parametrize("case", POSTINGS)
def test_postings_are_those_of_the_table_of_accounts(case, direction):
    sayings, expected = POSTINGS[case]
    sign = 1 if direction == "credit" else -1
    assert sorted(_lines(_one(direction, *sayings))) == sorted(
        (account, sign * debit, is_item) for account, debit, is_item in expected
    )


OTHERS = {
    "fee": (line(None, -7, "fee"), "fee", {"fees:sandbox": 7, "cash:sandbox": -7}),
    "funding": (line(None, 50, "funding", subject="pot:c1"), "funding", {"cash:sandbox": 50, "pot:c1": -50}),
    "funding of no pot": (line(None, 5, "funding", subject="pot:x"), "unmatched", {"cash:sandbox": 5, "suspense": -5}),
    "funding back": (line(None, -5, "funding", subject="pot:c1"), "unmatched", {"cash:sandbox": -5, "suspense": 5}),
    "in": (line(None, 5, "other"), "unmatched", {"cash:sandbox": 5, "suspense": -5}),
    "out": (line(None, -5, "other"), "unmatched", {"cash:sandbox": -5, "suspense": 5}),
    "key that was never sent": (line("nobody", -5), "unmatched", {"cash:sandbox": -5, "suspense": 5}),
    "other currency": (line("k", -100, currency="EUR"), "unmatched", {"cash:sandbox": -100, "suspense": 100}),
}  # fmt: skip


@pytest.mark.rule("accounts/suspense")
@pytest.mark.parametrize("case", OTHERS)
def test_cash_that_belongs_to_no_instruction_is_posted_all_the_same(case):
    given, outcome, expected = OTHERS[case]
    world = World([Instruction("k", "credit")])
    world.take_in([given])
    plan = world.plans[0]
    assert plan.lines["outcome"].tolist() == [outcome]
    assert plan.lines["instruction_id"].isna().all()
    net = plan.entries["debit_minor"] - plan.entries["credit_minor"]
    assert dict(zip(plan.entries["account"], net, strict=True)) == expected
    assert plan.events.empty
    assert (plan.lines["note"].notna()).tolist() == [outcome == "unmatched"]


def test_an_instruction_that_was_never_sent_is_not_settled():
    world = World([Instruction("k", "credit")])
    world.known["state"] = str(State.APPROVED)
    world.take_in([line("k", -100)])
    assert world.plans[0].lines["outcome"].tolist() == ["unmatched"]


def test_lines_of_two_instructions_and_of_none_do_not_touch_each_other():
    world = World([Instruction("a", "credit"), Instruction("b", "debit")])
    world.take_in(
        [line("a", -100), line("b", 100), line(None, -3, "fee"), line("b", 9, currency="EUR"), line("a", 0, "failed")]
    )
    assert world.known["state"].tolist() == [State.SETTLED, State.SETTLED]
    assert balances(world)["in_transit"].tolist() == [100, -100]
