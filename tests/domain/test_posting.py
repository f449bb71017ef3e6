"""What a day posts: the difference to what is posted, and nothing for a match that is not plainly newer."""

import datetime as dt
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money_zone import (
    DAY,
    NEXT,
    fee,
    match,
    matches_frame,
    participant,
    participants_frame,
    share,
    shares_frame,
)

from payments_pipeline.domain.errors import AllocationOverflowError, InvariantError
from payments_pipeline.domain.ledger import ENTRY_KEY, BreakReason, PostingPlan, check_balanced, plan_posting
from payments_pipeline.domain.proposals import RuleChange


@dataclass(frozen=True)
class Delivered:
    """One match as a day's input has it."""

    match_id: str = "m1"
    revision: int = 1
    content: str = "a"
    rules: str = "r"  # under t it is paid out when it is collected
    revenue_minor: int | None = 1000
    split: int = 600  # of the revenue, to club:a; club:b has the rest
    players: frozenset[str] = frozenset()  # each owes 10 to club:a
    currency: str = "GBP"

    def amounts(self) -> dict[tuple[str, str], int]:
        """What each party is owed, by the model: (party, currency)."""
        owed: dict[tuple[str, str], int] = {}
        revenue = self.revenue_minor or 0
        first = min(self.split, revenue)
        for party, amount in [("club:a", first + 10 * len(self.players)), ("club:b", revenue - first)]:
            owed[party, self.currency] = amount
        owed |= {(player, self.currency): -10 for player in self.players}
        return {key: amount for key, amount in owed.items() if amount}

    @property
    def payout_policy(self) -> str:
        return "when_collected" if self.rules == "t" else "immediate"

    def rows(self, day: dt.date) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
        row = match(
            self.match_id,
            self.revision,
            day,
            content_hash=self.content,
            rules_hash=self.rules,
            payout_policy=self.payout_policy,
            revenue_minor=self.revenue_minor,
            currency=self.currency,
        )
        revenue = self.revenue_minor or 0
        first = min(self.split, revenue)
        money = {"currency": self.currency}
        shares = [
            *[share(self.match_id, "club:a", first, 1, **money)],
            *[share(self.match_id, "club:b", revenue - first, 2, **money)],
        ]
        for player in sorted(self.players):
            shares += fee(self.match_id, player, {"club:a": 10}, **money)
        kept = [line for line in shares if line["amount_minor"]]
        return row, [participant(self.match_id, player) for player in sorted(self.players)], kept


@dataclass
class Books:
    """What is posted, kept in memory as the store keeps it."""

    matches: list[dict[str, Any]] = field(default_factory=list)
    entries: pd.DataFrame = field(default_factory=pd.DataFrame)

    def plan(
        self,
        *delivered: Delivered,
        day: dt.date = DAY,
        rejected: tuple[str, ...] = (),
        accepted_rules: tuple[RuleChange, ...] = (),
        refused_rules: tuple[RuleChange, ...] = (),
    ) -> PostingPlan:
        rows = [one.rows(day) for one in delivered]
        return plan_posting(
            day,
            matches_frame([row for row, _, _ in rows]).astype({"revenue_minor": "Int64"}),
            participants_frame([person for _, people, _ in rows for person in people]),
            shares_frame([line for _, _, shares in rows for line in shares]),
            pd.DataFrame({"match_id": list(rejected), "reason": "bad_value"}, dtype=object),
            self._posted_matches(day, [one.match_id for one in delivered]),
            self._posted_entries([one.match_id for one in delivered]),
            accepted_rules,
            refused_rules,
        )

    def post(self, *delivered: Delivered, day: dt.date = DAY, **other: Any) -> PostingPlan:
        plan = self.plan(*delivered, day=day, **other)
        self.matches += plan.matches.assign(match_day=day).to_dict("records")
        if len(plan.entries):
            self.entries = pd.concat([self.entries, plan.entries], ignore_index=True)
        return plan

    def _posted_matches(self, day: dt.date, match_ids: list[str]) -> pd.DataFrame:
        newest = {row["match_id"]: row for row in self.matches}
        held = {row["match_id"] for row in self.matches if row["match_day"] == day}
        columns = [*match("none"), "posting_no", "is_open", "participants"]
        rows = [row for match_id, row in newest.items() if match_id in match_ids or match_id in held]
        types = {"revenue_minor": "Int64", "revision": "int64", "posting_no": "int64", "is_open": bool}
        return pd.DataFrame(rows, columns=columns).astype(types)

    def _posted_entries(self, match_ids: list[str]) -> pd.DataFrame:
        columns = [*ENTRY_KEY, "recipient", "schedule_version", "amount_minor", "posting_no"]
        if self.entries.empty:
            numbers = dict.fromkeys(["line_no", "amount_minor", "posting_no"], "int64")
            return pd.DataFrame(columns=columns, dtype=object).astype(numbers)
        entries = self.entries[self.entries["match_id"].isin(match_ids)]
        entries = entries.assign(amount_minor=entries["credit_minor"] - entries["debit_minor"])
        return entries.groupby(ENTRY_KEY, as_index=False).agg(
            recipient=("recipient", "max"),
            schedule_version=("schedule_version", "max"),
            amount_minor=("amount_minor", "sum"),
            posting_no=("posting_no", "size"),
        )

    def owed(self, match_id: str = "m1") -> dict[tuple[str, str], int]:
        """What each party is owed by all that is posted."""
        if self.entries.empty:
            return {}
        entries = self.entries[self.entries["party_id"].notna() & self.entries["match_id"].eq(match_id)]
        sums = entries.assign(net=entries["credit_minor"] - entries["debit_minor"]).groupby(["party_id", "currency"])
        return {key: int(amount) for key, amount in sums["net"].sum().items() if amount}


def reasons(plan: PostingPlan) -> dict[str, str]:
    return dict(zip(plan.breaks["match_id"], plan.breaks["reason"], strict=True))


def expected_reason(posted: Delivered | None, posted_day: dt.date, now: Delivered, day: dt.date) -> str:
    """Say by the rules why a match is left alone; "" where it is posted."""
    if posted is None:
        return ""
    is_open = bool(posted.amounts())
    rules = [
        (is_open and day != posted_day, BreakReason.POSTED_UNDER_ANOTHER_DAY),
        (now.revision < posted.revision, BreakReason.OLDER_REVISION),
        (
            now.revision == posted.revision and now.content != posted.content,
            BreakReason.SAME_REVISION_OTHER_CONTENT,
        ),
        (now.revenue_minor is None and posted.revenue_minor is not None, BreakReason.REVENUE_MISSING),
        (now.revision == posted.revision and not posted.players <= now.players, BreakReason.PARTICIPANT_MISSING),
        (is_open and now.currency != posted.currency, BreakReason.CURRENCY_CHANGED),
        (
            (is_open or now.revision == posted.revision)
            and now.rules != posted.rules
            and (now.amounts() != posted.amounts() or (is_open and now.payout_policy != posted.payout_policy)),
            BreakReason.RULES_CHANGED,
        ),
    ]
    return next((str(reason) for applies, reason in rules if applies), "")


deliveries = st.builds(
    Delivered,
    revision=st.integers(1, 3),
    content=st.sampled_from("ab"),
    rules=st.sampled_from("rst"),
    revenue_minor=st.sampled_from([None, 0, 1, 1000]),
    split=st.sampled_from([0, 600, 1000]),
    players=st.frozensets(st.sampled_from(["p1", "p2"])),
    currency=st.sampled_from(["GBP", "GBP", "EUR"]),
)
# A step is a day, and for each of its matches what is delivered: many matches a plan, for a plan costs the same.
MATCHES = [f"m{number}" for number in range(8)]
steps = st.tuples(
    st.sampled_from([DAY, DAY, NEXT]),
    st.lists(deliveries | st.sampled_from(["absent", "rejected"]), min_size=len(MATCHES), max_size=len(MATCHES)),
)


@pytest.mark.rule("posting/breaks")
@settings(max_examples=14, deadline=None)
@given(st.lists(steps, min_size=2, max_size=6))
def test_posted_is_always_what_was_last_accepted_and_a_break_says_why_not(sequence):
    books = Books()
    posted: dict[str, tuple[Delivered, dt.date]] = {}
    for day, given_now in sequence:
        came: list[Delivered] = []
        rejected: list[str] = []
        expected: dict[str, str] = {}
        for match_id, now in zip(MATCHES, given_now, strict=True):
            before, before_on = posted.get(match_id, (None, day))
            if isinstance(now, str):
                rejected += [match_id] if now == "rejected" else []
                if before is not None and before.amounts() and before_on == day:
                    expected[match_id] = now
                continue
            came.append(replace(now, match_id=match_id))
            reason = expected_reason(before, before_on, now, day)
            if not reason:
                posted[match_id] = (now, day)
            elif reason != BreakReason.POSTED_UNDER_ANOTHER_DAY or now.amounts() or now.revision > before.revision:
                expected[match_id] = reason
        plan = books.post(*came, day=day, rejected=tuple(rejected))
        assert reasons(plan) == expected
        assert all(books.owed(match_id) == one.amounts() for match_id, (one, _) in posted.items())
        check_balanced(plan.entries)
    again = books.plan(*came, day=day, rejected=tuple(rejected))
    assert again.entries.empty
    assert again.matches.empty
    assert reasons(again) == expected
    assert books.entries.empty or not books.entries.duplicated("entry_id").any()


@pytest.mark.rule("posting/ids")
@settings(max_examples=6, deadline=None)
@given(st.lists(deliveries, min_size=1, max_size=4, unique_by=lambda one: one.revision), st.randoms())
def test_ids_depend_on_key_and_number_alone(sequence, random):
    def entry_ids(others: list[Delivered]) -> set[tuple[Any, ...]]:
        books = Books()
        for number, one in enumerate(sequence):
            books.post(*others[:number], one, day=DAY)
        if books.entries.empty:
            return set()
        mine = books.entries[books.entries["match_id"] == "m1"]
        return set(mine[["entry_id", *ENTRY_KEY, "posting_no"]].itertuples(index=False, name=None))

    others = [Delivered(match_id=f"other{number}") for number in range(len(sequence))]
    random.shuffle(others)
    alone, in_company = entry_ids([]), entry_ids(others)
    assert alone == in_company
    by_key = {row[1:]: row[0] for row in alone}
    assert len(by_key) == len(alone) == len(set(by_key.values()))


@pytest.mark.rule("posting/ids")
def test_an_id_never_changes_from_one_release_to_the_next():
    entries = Books().post(Delivered(split=1000)).entries.set_index("account")
    assert entries["entry_id"].to_dict() == {
        "party:club:a": "f4dd0d49-5d65-52e5-9cd0-145b6546fec3",
        "pot:c1": "8694d4df-61e7-56cb-bf56-e52be5294256",
    }


@pytest.mark.rule("posting/difference")
def test_only_the_difference_is_posted():
    books = Books()
    books.post(Delivered())
    entries = books.post(Delivered(revision=2, split=650)).entries
    lines = entries.set_index("account")[["debit_minor", "credit_minor", "posting_no"]]
    assert lines.loc["party:club:a"].tolist() == [0, 50, 2]
    assert lines.loc["party:club:b"].tolist() == [50, 0, 2]
    assert len(entries) == 2


@pytest.mark.rule("posting/difference")
def test_a_difference_of_zero_posts_nothing_and_keeps_the_revision():
    books = Books()
    books.post(Delivered())
    plan = books.post(Delivered(revision=2, content="b"))
    assert plan.entries.empty
    assert plan.journals.empty
    assert plan.matches[["posting_no", "revision"]].to_numpy().tolist() == [[2, 2]]
    assert reasons(books.plan(Delivered(revision=1))) == {"m1": "older_revision"}


@pytest.mark.rule("posting/key")
def test_the_schedules_version_is_no_part_of_a_shares_key():
    books = Books()
    books.post(Delivered())
    rows = shares_frame([share("m1", "club:a", 600, 1), share("m1", "club:b", 400, 2)]).assign(schedule_version="v2")
    state = books._posted_matches(DAY, ["m1"])
    plan = plan_posting(
        DAY,
        matches_frame([match("m1", schedule_version="v2", content_hash="a", rules_hash="r")]),
        participants_frame([]),
        rows,
        pd.DataFrame(columns=["match_id", "reason"], dtype=object),
        state,
        books._posted_entries(["m1"]),
    )
    assert plan.entries.empty


@pytest.mark.rule("posting/lower-revision")
def test_a_lower_revision_is_left_alone():
    books = Books()
    books.post(Delivered(revision=2))
    assert reasons(books.post(Delivered(revision=1, split=0))) == {"m1": BreakReason.OLDER_REVISION}


@pytest.mark.rule("posting/equal-revision")
def test_an_equal_revision_with_other_content_is_left_alone():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(content="b", split=0))) == {"m1": BreakReason.SAME_REVISION_OTHER_CONTENT}


@pytest.mark.rule("posting/missing-participant")
def test_a_posted_participant_that_is_missing_without_a_newer_revision_leaves_the_match_alone():
    books = Books()
    books.post(Delivered(players=frozenset({"p1", "p2"})))
    plan = books.post(Delivered(players=frozenset({"p2"})))
    assert reasons(plan) == {"m1": BreakReason.PARTICIPANT_MISSING}
    assert "lacks p1, posted earlier" in plan.breaks["words"].iloc[0]
    assert books.owed()["p1", "GBP"] == -10


@pytest.mark.rule("posting/late-participant")
def test_a_participant_is_taken_off_by_a_newer_revision():
    books = Books()
    books.post(Delivered(players=frozenset({"p1"})))
    assert reasons(books.post(Delivered(revision=2))) == {}
    assert books.owed() == {("club:a", "GBP"): 600, ("club:b", "GBP"): 400}


@pytest.mark.rule("posting/late-participant")
def test_a_further_participant_needs_no_newer_revision():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(players=frozenset({"p1"})))) == {}
    assert books.owed()["p1", "GBP"] == -10


@pytest.mark.rule("posting/revenue")
def test_revenue_that_is_empty_now_and_was_not_is_left_alone():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(revision=2, revenue_minor=None))) == {"m1": BreakReason.REVENUE_MISSING}
    assert books.owed() == Delivered().amounts()


@pytest.mark.rule("posting/revenue")
def test_revenue_of_zero_in_a_newer_revision_takes_everything_back():
    books = Books()
    books.post(Delivered())
    plan = books.post(Delivered(revision=2, revenue_minor=0))
    assert (reasons(plan), books.owed()) == ({}, {})
    assert plan.matches["is_open"].tolist() == [False]


@pytest.mark.rule("posting/absence")
@pytest.mark.parametrize("reason", [BreakReason.ABSENT, BreakReason.REJECTED])
def test_absence_is_not_a_correction(reason):
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2"))
    plan = books.post(Delivered(match_id="m2"), rejected=("m1",) if reason == BreakReason.REJECTED else ())
    assert reasons(plan) == {"m1": reason}
    assert plan.entries.empty
    assert books.owed() == Delivered().amounts()


@pytest.mark.rule("posting/absence")
def test_an_empty_bucket_claws_nothing_back():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2"))
    plan = books.post()
    assert reasons(plan) == {"m1": BreakReason.ABSENT, "m2": BreakReason.ABSENT}
    assert plan.entries.empty


def test_a_changed_currency_is_left_alone_until_nothing_is_posted_in_the_old_one():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(revision=2, currency="EUR"))) == {"m1": BreakReason.CURRENCY_CHANGED}
    books.post(Delivered(revision=2, revenue_minor=0))
    assert reasons(books.post(Delivered(revision=3, currency="EUR"))) == {}
    assert books.owed() == Delivered(currency="EUR").amounts()


def test_rules_changed_in_the_past_wait_only_where_they_change_an_amount():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2"))
    plan = books.post(Delivered(rules="s", split=0), Delivered(match_id="m2", rules="s"))
    assert reasons(plan) == {"m1": BreakReason.RULES_CHANGED}
    assert books.owed() == Delivered().amounts()


@pytest.mark.rule("posting/changed-rules")
def test_rules_changed_in_the_past_are_proposed_with_their_effect_and_posted_once_accepted():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2"))
    changed = Delivered(rules="s", split=0)
    plan = books.post(changed, Delivered(match_id="m2", rules="s"))
    [proposed] = plan.rule_changes
    assert [match[0] for match in proposed.matches] == ["m1"]
    assert sum(minor for *_, minor in proposed.effect) == 0
    plan = books.post(changed, Delivered(match_id="m2", rules="s"), accepted_rules=(proposed,))
    assert reasons(plan) == {}
    assert plan.rule_changes == ()
    assert books.owed() == changed.amounts()
    difference = plan.entries.assign(minor=plan.entries["credit_minor"] - plan.entries["debit_minor"])
    posted = difference.groupby(["account", "currency"])["minor"].sum()
    assert {(a, c): m for a, c, m in proposed.effect} == {key: int(m) for key, m in posted.items() if m}


def test_an_acceptance_is_of_the_rules_and_results_that_were_proposed():
    books = Books()
    books.post(Delivered())
    [proposed] = books.post(Delivered(rules="s", split=0)).rule_changes
    plan = books.post(Delivered(rules="t", split=1), accepted_rules=(proposed,))
    assert reasons(plan) == {"m1": BreakReason.RULES_CHANGED}


def test_a_refused_change_of_rules_waits_with_its_words_and_is_proposed_again_only_with_other_content():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2"))
    changed = Delivered(rules="s", split=0)
    [refused] = books.post(changed, Delivered(match_id="m2")).rule_changes
    plan = books.post(changed, Delivered(match_id="m2"), refused_rules=(refused,))
    assert (reasons(plan), plan.rule_changes) == ({"m1": BreakReason.RULES_CHANGED}, ())
    [words] = plan.breaks["words"]
    assert "was refused" in words
    assert "Restore the rules" in words
    for other in ([Delivered(rules="t", split=0)], [changed, Delivered(match_id="m2", rules="s", split=0)]):
        plan = books.post(*other, refused_rules=(refused,))
        assert len(plan.rule_changes) == 1
        assert not plan.breaks["words"].str.contains("was refused").any()
    plan = books.post(changed, Delivered(match_id="m2"), refused_rules=(refused,), accepted_rules=(refused,))
    assert reasons(plan) == {}
    assert plan.rule_changes == ()


def test_when_a_match_is_paid_out_is_of_its_rules_and_asked_about_though_no_amount_changes():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2", revenue_minor=0, split=0))
    changed = Delivered(rules="t"), Delivered(match_id="m2", rules="t", revenue_minor=0, split=0)
    plan = books.post(*changed)
    assert reasons(plan) == {"m1": BreakReason.RULES_CHANGED}, "nothing is posted of the other: it is free"
    [change] = plan.rule_changes
    assert change.effect == [["pot:c1", "GBP", 0]]
    assert change.matches == [["m1", "t", "a", 2]]
    assert plan.changed_policies == {"c1": "paid out when_collected, and is posted as immediate"}
    plan = books.post(*changed, accepted_rules=(change,))
    assert reasons(plan) == {}
    assert plan.matches["payout_policy"].tolist() == ["when_collected"]
    assert plan.entries.empty


@pytest.mark.rule("posting/one-day")
def test_news_of_a_match_under_another_day_is_a_break_though_it_owes_nothing_there():
    books = Books()
    books.post(Delivered())
    void = Delivered(revision=2, revenue_minor=0, split=0)
    assert reasons(books.post(void, day=NEXT)) == {"m1": BreakReason.POSTED_UNDER_ANOTHER_DAY}
    assert books.owed() == Delivered().amounts()


@pytest.mark.rule("posting/one-day")
def test_a_match_is_posted_under_one_day_until_its_accruals_net_to_zero():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(revision=2), day=NEXT)) == {"m1": BreakReason.POSTED_UNDER_ANOTHER_DAY}
    assert reasons(books.post(Delivered(revision=2, revenue_minor=0))) == {}
    assert reasons(books.post(Delivered(revision=3), day=NEXT)) == {}
    assert reasons(books.post(Delivered(revision=3))) == {"m1": BreakReason.POSTED_UNDER_ANOTHER_DAY}
    assert books.entries["posting_no"].max() == 3


def test_what_owes_nothing_under_another_day_and_is_no_news_is_no_break():
    books = Books()
    books.post(Delivered())
    assert reasons(books.post(Delivered(revenue_minor=0, split=0), day=NEXT)) == {}
    assert books.owed() == Delivered().amounts()


@pytest.mark.rule("posting/breaks")
def test_every_break_names_its_match_and_what_to_do():
    books = Books()
    books.post(Delivered(), Delivered(match_id="m2", players=frozenset({"p1"})), Delivered(match_id="m3"))
    plans = [
        books.plan(Delivered(), day=NEXT),
        books.plan(Delivered(revision=2, revenue_minor=None), Delivered(match_id="m2"), Delivered("m3", content="b")),
        books.plan(
            Delivered(revision=2, currency="EUR"),
            Delivered("m2", rules="s", split=0, players=frozenset({"p1"})),
            rejected=("m3",),
        ),
        books.plan(Delivered(match_id="m2", players=frozenset({"p1"}))),
    ]
    words = pd.concat([plan.breaks for plan in plans], ignore_index=True)
    assert set(words["reason"]) == set(BreakReason) - {BreakReason.OLDER_REVISION}
    for row in words.to_dict("records"):
        assert row["words"].startswith(f"match {row['match_id']} ")
        assert "{" not in row["words"]
        assert "nan" not in row["words"]


@pytest.mark.rule("posting/unbalanced")
def test_entries_that_do_not_balance_are_never_posted():
    rows = [share("m1", "club:a", 600), *fee("m1", "p1", {"club:a": 10})[1:]]
    with pytest.raises(InvariantError, match="would not balance in GBP: debits 600, credits 610"):
        plan_posting(
            DAY,
            matches_frame([match("m1")]),
            participants_frame([]),
            shares_frame(rows),
            pd.DataFrame(columns=["match_id", "reason"], dtype=object),
            Books()._posted_matches(DAY, []),
            Books()._posted_entries([]),
        )


def test_a_day_that_comes_to_more_than_sums_may_hold_is_refused_by_name():
    most = [Delivered(f"m{number}", revenue_minor=10**15, split=0) for number in range(1_001)]
    with pytest.raises(AllocationOverflowError, match=r"1001000000000000000 GBP .* would be posted"):
        Books().post(*most)
    assert len(Books().post(*most[:-1]).entries) == 2_000
