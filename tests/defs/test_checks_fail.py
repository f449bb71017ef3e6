"""Each check of each asset turns red for what it is declared for, in real runs, and a blocking one stops the money."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import dagster as dg
import pytest
from check_faults import FAULTS, Fault
from checked_days import ASSETS, INGESTED, OWED, PLAYED, RESULTS, CheckedDays, Processor, Said, table_of
from money_zone import DAY, NEXT, line

from payments_pipeline.definitions import build_defs
from payments_pipeline.defs import resources
from payments_pipeline.settings import Settings

#: Cells that hold words, of which a fault gives a part.
WORDS = {"words", "what_to_do", "reason", "instructions"}
DEFINITIONS = build_defs(Settings(start_date=DAY))
DECLARED = {
    f"{spec.asset_key.to_user_string()}:{spec.name}": spec
    for asset in DEFINITIONS.assets or ()
    if isinstance(asset, dg.AssetsDefinition)
    for spec in asset.check_specs
}
#: Checks behind which money would move on a false premise.
BLOCKING = {
    "match_results:rows_accounted_for",
    "match_results:schema",
    "match_participants:rows_accounted_for",
    "match_participants:schema",
    "participant_shares:schema",
    "participant_shares:pots_conserved",
    "ledger_entries:balanced",
    "ledger_entries:equals_shares",
    "refunds:refunds_bounded",
    "payout_instructions:equal_their_items",
    "payout_instructions:no_item_claimed_twice",
    "payout_instructions:none_for_a_party_on_hold",
    "settlement_reports:schema",
    "settlement_records:equal_reports",
}
#: Of each of them the first fault.
STOPPING = [next(each for each in FAULTS if each.check == check) for check in sorted(BLOCKING)]


class Database(Protocol):
    """What the fixture `database` gives."""

    @property
    def url(self) -> str: ...

    @property
    def superuser_url(self) -> str: ...


@pytest.fixture
def days(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckedDays]:
    processor = Processor()
    monkeypatch.setattr(resources, "open_processor", lambda *_: processor)
    with dg.DagsterInstance.ephemeral() as instance:
        yield CheckedDays(tmp_path, database.url, database.superuser_url, instance, processor)


def after(asset: str) -> set[str]:
    """Assets that a run makes only after this one."""
    graph = DEFINITIONS.resolve_asset_graph()
    found, next_ones = set[str](), {dg.AssetKey(asset)}
    while next_ones:
        next_ones = {child for key in next_ones for child in graph.get(key).child_keys}
        found |= {key.to_user_string() for key in next_ones}
    return found


def name_of(fault: Fault) -> str:
    return fault.name


def test_no_check_is_declared_without_a_fault_that_turns_it_red_and_what_blocks_is_what_is_said_here() -> None:
    assert {each.check for each in FAULTS} == DECLARED.keys()
    assert {check for check, spec in DECLARED.items() if spec.blocking} == BLOCKING


def test_a_day_without_fault_turns_no_check_red_and_pays_what_is_owed(days: CheckedDays) -> None:
    said = days.run()
    assert said.result.success
    assert {
        f"{each.asset_key.to_user_string()}:{each.check_name}" for each in said.result.get_asset_check_evaluations()
    } == DECLARED.keys()
    assert not said.red
    assert days.sent() == OWED


def turned_red(said: Said, fault: Fault) -> None:
    """The run turned the fault's check red and no other, and the check says what is wrong and what to do."""
    assert said.red.keys() == {fault.check} | fault.also
    evaluation = said.red[fault.check]
    assert evaluation.severity is (dg.AssetCheckSeverity.WARN if fault.warns else dg.AssetCheckSeverity.ERROR)
    assert evaluation.partition == fault.day.isoformat()
    rows = table_of(evaluation)
    assert any(
        all(part in row[name] if name in WORDS else part == row[name] for name, part in fault.row.items())
        for row in rows
    ), rows
    assert evaluation.metadata["breaches"].value == fault.breaches
    cure = str(evaluation.metadata["cure"].value)
    assert fault.cure in cure
    assert cure in str(evaluation.description)


@pytest.mark.parametrize("fault", [each for each in FAULTS if each not in STOPPING], ids=name_of)
def test_a_check_turns_red_for_what_it_is_declared_for_and_names_the_row_the_amount_and_the_cure(
    days: CheckedDays, fault: Fault
) -> None:
    if fault.before:
        assert not days.run(fault.before).red
    with fault.plant(days):
        said = days.run(fault.asset, fault.first, fault.day)
    turned_red(said, fault)
    assert said.result.success is (fault.check not in BLOCKING)


@pytest.mark.parametrize("fault", STOPPING, ids=name_of)
def test_a_blocking_check_keeps_a_days_run_from_what_comes_after_it_and_once_mended_the_day_pays_once(
    days: CheckedDays, fault: Fault
) -> None:
    if fault.before:
        assert not days.run(fault.before).red
    with fault.plant(days):
        stopped = days.run()
    turned_red(stopped, fault)
    assert not stopped.result.success
    not_run = after(fault.asset)
    assert not not_run & set(stopped.materialised)
    if "payout_instructions" in not_run:
        assert days.zone.value("SELECT count(*) FROM sweeps") == 0
        assert days.zone.value("SELECT count(*) FROM payout_instructions") == 0
    if "payout_submissions" in not_run:
        assert days.zone.value("SELECT count(*) FROM payout_attempts") == 0
        assert days.processor.requests == []
    mended = days.run()
    assert mended.result.success
    assert fault.check not in mended.red
    assert set(mended.materialised) == set(ASSETS)
    assert days.sent() == fault.owed
    assert days.zone.party_balances_disagree() == []


def test_what_a_day_posted_that_was_stopped_before_its_sweep_is_paid_by_no_later_day_until_its_own_run_is_through(
    days: CheckedDays,
) -> None:
    [fault] = [each for each in FAULTS if each.check == "ledger_entries:equals_shares"]
    with fault.plant(days):
        assert days.run().red.keys() == {fault.check}
    assert days.zone.open_items()["B"] == OWED["B"] + 1
    assert days.run(day=NEXT).result.success
    assert days.sent() == {}
    assert days.run().result.success
    assert days.run(day=NEXT + dt.timedelta(days=1)).result.success
    assert days.sent() == OWED


@pytest.mark.rule("sweeping/own-run-first")
def test_what_a_rerun_posted_that_was_stopped_is_paid_by_no_other_day(days: CheckedDays) -> None:
    assert days.run().result.success
    days.land(
        "match_results",
        RESULTS.replace("revenue_minor\n", "revenue_minor,revision\n")
        .replace("20000\n", "30000,2\n")
        .replace("3000\n", "3000,1\n"),
    )
    [fault] = [each for each in FAULTS if each.check == "ledger_entries:equals_shares"]
    with fault.plant(days):
        assert days.run().red.keys() == {fault.check}
    assert days.run(day=NEXT).result.success
    assert days.sent() == OWED
    assert days.run().result.success
    assert days.sent() == OWED | {"A": OWED["A"] + 6_000, "B": OWED["B"] + 3_000, "org": OWED["org"] + 1_000}
    assert days.zone.party_balances_disagree() == []


@pytest.mark.parametrize(
    ("check", "first", "last", "words"),
    [
        ("participant_shares:pots_conserved", "ledger_entries", "ledger_entries", "sum to 19999"),
        ("match_results:rows_accounted_for", "participant_shares", "payout_submissions", "2 rows were read, and 1"),
        ("match_participants:rows_accounted_for", "participant_shares", "payout_submissions", "2 rows were read"),
    ],
)
def test_what_a_check_refused_is_not_posted_by_a_run_of_what_comes_after_it_alone(
    days: CheckedDays, check: str, first: str, last: str, words: str
) -> None:
    fault = next(each for each in FAULTS if each.check == check)
    with fault.plant(days):
        assert days.run().red.keys() == {check}
    alone = days.run(last, first)
    assert not alone.result.success
    assert any(words in str(event.event_specific_data) for event in alone.result.get_step_failure_events())
    assert days.zone.value("SELECT count(*) FROM ledger_entries") == 0
    assert days.run().result.success
    assert days.sent() == OWED


@pytest.mark.parametrize(("repeated", "too_many"), [(14, True), (15, False)])
def test_rejects_are_too_many_above_the_share_of_all_rows_read_and_superseded_ones_are_none(
    days: CheckedDays, repeated: int, too_many: bool
) -> None:
    *_, referee = PLAYED.splitlines(keepends=True)
    days.land("match_participants", PLAYED + referee * repeated + "m1,nobody,A,player\n")
    assert ("rejected_records:reject_rate" in days.run(INGESTED[-1]).red) is too_many


def test_a_break_is_old_from_the_day_that_the_policy_says(days: CheckedDays) -> None:
    days.processor.reported[DAY] = [line("another's key", -77, entry_reference="e3")]
    days.run(first="settlement_reports")
    for age in (6, 7, 8):
        said = days.run(first="reconciliation", day=DAY + dt.timedelta(days=age))
        assert ("reconciliation:no_old_breaks" in said.red) is (age >= 7)


def test_a_day_whose_day_before_ran_is_not_told_to_backfill(days: CheckedDays) -> None:
    days.run(INGESTED[-1])
    assert not days.run(INGESTED[-1], day=NEXT).red
