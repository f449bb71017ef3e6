"""Every rule of `verify`: a clean world keeps it, and it finds the fault planted against it."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from table_faults import AUDITED, FAULTS, OF_NO_RECORD
from verify_results import broken, results, rewrite
from verify_world import World

from payments_pipeline.domain.errors import BadFileError, ConfigurationError
from payments_pipeline.settings import Settings
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify import rules_decisions, rules_schema, verify
from payments_pipeline.verify.files import FILE_RULES
from payments_pipeline.verify.tables import TABLE_RULES

RULES = [*TABLE_RULES, *FILE_RULES]


#: Nobody decides anything in this world.
DECISIONS = set(rules_decisions.RULES)


def test_a_clean_world_keeps_every_rule(world: World) -> None:
    found = results(world)
    assert list(found) == RULES
    assert {rule: result.breaches for rule, result in found.items() if not result.ok} == {}
    unchecked = {rule for rule, result in found.items() if not result.checked}
    assert unchecked == {
        "no money is in suspense",
        "over the limit the approver is not the maker",
        "nobody approves what pays a refund that they asked for",
        BREAKS,
        *DECISIONS,
    }
    assert {rule: result.left_out for rule, result in found.items() if result.left_out} == {}


def test_an_empty_database_keeps_every_rule_and_needs_no_files(database_url: str, tmp_path: Path) -> None:
    found = list(verify(database_url, Settings(home=tmp_path / "nothing")))
    assert [result.rule for result in found if not result.ok] == []
    of_rows = [result for result in found if "lifecycle" not in result.rule and result.rule not in SCHEMA_RULES]
    assert {result.checked for result in of_rows} == {0}


SCHEMA_RULES = {
    "every column of what is append-only is in the audit trail",
    "append-only tables refuse change",
    "what is inserted is checked by its trigger",
    "no role or database has its triggers off",
    "every column of money is a whole number",
    "the run-time login can only insert and read",
}


@pytest.mark.parametrize(("rule", "fault", "also"), FAULTS, ids=[rule for rule, _, _ in FAULTS])
def test_a_fault_in_a_table_is_found_by_its_rule_and_those_it_cannot_but_break(
    world: World, rule: str, fault: str, also: set[str]
) -> None:
    world.tamper(fault)
    audited = set() if rule in OF_NO_RECORD else {AUDITED}
    assert broken(world).keys() == {rule} | also | audited, "the audit trail tells of it too, whatever was changed"


def test_every_rule_over_tables_has_a_fault() -> None:
    assert [rule for rule, _, _ in FAULTS] == list(TABLE_RULES)


def test_every_trigger_on_insert_would_be_missed(database_url: str) -> None:
    """Those of foreign keys are Postgres's own."""
    with connect(database_url) as connection:
        found = connection.execute(
            """SELECT c.relname, p.proname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
               JOIN pg_proc p ON p.oid = t.tgfoid
               WHERE c.relnamespace = 'payments'::regnamespace AND NOT t.tgisinternal AND (t.tgtype & 4) = 4"""
        ).fetchall()
    assert sorted(found) == sorted(rules_schema._CHECKED_IN)


READ, POTS, FORM, DIVISION, POSTED, MATCHES, BREAKS, REPORTS, INTAKES, CERTIFICATES = FILE_RULES


def with_amounts(changes: dict[int, int]) -> Callable[[pa.Table], pa.Table]:
    """Change amounts by row."""

    def change(table: pa.Table) -> pa.Table:
        amounts = [amount + changes.get(row, 0) for row, amount in enumerate(table["amount_minor"].to_pylist())]
        place = table.schema.get_field_index("amount_minor")
        return table.set_column(place, table.schema.field(place), pa.array(amounts, pa.int64()))

    return change


def with_clubs_swapped(table: pa.Table) -> pa.Table:
    names = [
        "away_club_id" if n == "home_club_id" else "home_club_id" if n == "away_club_id" else n
        for n in table.column_names
    ]
    return table.rename_columns(names)


def with_a_share_of_zero(table: pa.Table) -> pa.Table:
    last = table.slice(len(table) - 1)
    return pa.concat_tables([table, with_amounts({0: -last["amount_minor"][0].as_py()})(last)])


FILE_FAULTS: list[tuple[str, str, Callable[[pa.Table], pa.Table], set[str]]] = [
    ("a share of one more", "participant_shares", with_amounts({4: 1}), {POTS, DIVISION, POSTED}),
    ("a unit from one party to another", "participant_shares", with_amounts({4: 1, 5: -1}), {DIVISION, POSTED}),
    ("another order", "participant_shares", lambda table: table.take(pc.sort_indices(table["amount_minor"])), {FORM}),
    ("a share of zero, twice the same key", "participant_shares", with_a_share_of_zero, {FORM, DIVISION, MATCHES}),
    (
        "a share lost",
        "participant_shares",
        lambda table: table.slice(0, len(table) - 1),
        {POTS, DIVISION, POSTED, MATCHES},
    ),
    ("another home club", "match_results", with_clubs_swapped, {DIVISION, MATCHES}),
    ("no participants", "match_participants", lambda table: table.slice(0, 0), {READ, DIVISION, MATCHES}),
    ("no matches", "match_results", lambda table: table.slice(0, 0), {READ, POTS, DIVISION, MATCHES}),
    ("a rejected row lost", "rejected_records", lambda table: table.slice(1), {READ}),
]


@pytest.mark.parametrize(
    ("asset", "change", "rules"), [row[1:] for row in FILE_FAULTS], ids=[row[0] for row in FILE_FAULTS]
)
def test_a_fault_in_a_stored_day_is_found(
    world: World, asset: str, change: Callable[[pa.Table], pa.Table], rules: set[str]
) -> None:
    rewrite(world, asset, change)
    assert broken(world).keys() == rules


def test_a_breach_names_the_record_its_amounts_and_the_cure(world: World) -> None:
    rewrite(world, "participant_shares", with_amounts({4: 1, 5: -1}))
    assert broken(world)[POSTED][0] == (
        "2024-08-17, match m1, revenue  line 4, party:fed: posted 400, the stored shares say 401 GBP; run the day again"
    )


@pytest.mark.rule("accounts/suspense")
def test_what_is_in_suspense_is_named_line_by_line_and_pot_by_pot(world: World) -> None:
    world.tamper(
        """ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_account_of_kind;
           UPDATE ledger_entries SET account = 'suspense', party_id = NULL, is_item = false
           WHERE account = 'fees:sandbox' OR (match_id, account) = ('m2', 'party:ref')"""
    )
    assert sorted(broken(world)["no money is in suspense"]) == [
        "-25 GBP in suspense of entry e-fee of sandbox: match the report line",
        "500 GBP in suspense of match m2: give its revenue pot a recipient",
    ]


def test_a_posted_day_without_stored_shares_is_found(world: World) -> None:
    (Path(world.settings.storage) / "participant_shares" / "date=2024-08-18" / "part-0.parquet").unlink()
    words = "is posted and its participant_shares are not stored; see PAYMENTS_STORAGE_URL, or run the day again"
    assert broken(world)[POSTED] == (f"2024-08-18 {words}",)


def test_a_match_that_the_newest_posting_left_alone_may_differ(world: World) -> None:
    rewrite(world, "participant_shares", with_amounts({4: 1}))
    world.tamper("INSERT INTO posting_breaks VALUES ('2024-08-17', 2, 'm1', 'absent', 'gone')")
    assert POSTED not in broken(world)
    world.tamper(
        "INSERT INTO day_postings SELECT match_day, 3, input_hashes, 1, 7, 0, 'r', '0' FROM day_postings WHERE seq = 2"
    )
    assert POSTED in broken(world), "a break of an older posting explains nothing"


def test_a_report_line_that_no_stored_report_has_is_found(world: World) -> None:
    rewrite(world, "settlement_reports", lambda table: table.slice(1), "2024-08-18")
    assert broken(world).keys() == {REPORTS, INTAKES}


def test_reference_data_that_is_not_there_is_an_error_and_no_silence(world: World) -> None:
    (Path(world.settings.reference) / "fee_schedules.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"no fee_schedules\.csv"):
        results(world)


def test_twenty_breaches_are_named_and_the_rest_counted(world: World) -> None:
    world.tamper("UPDATE ledger_entries SET day = day + 1")
    breaches = broken(world)["entries belong to the journal they say"]
    assert len(breaches) == 21
    assert breaches[-1].startswith("… and ")


def test_stored_shares_without_their_matches_are_found(world: World) -> None:
    (Path(world.settings.storage) / "match_results" / "date=2024-08-18" / "part-0.parquet").unlink()
    found = broken(world)
    assert found.keys() == {READ, POTS, DIVISION, MATCHES}
    assert found[MATCHES] == (
        "2024-08-18 is posted and its match_results are not stored; see PAYMENTS_STORAGE_URL, or run the day again",
    )


@pytest.mark.parametrize("asset", ["match_participants", "rejected_records"])
def test_a_posted_day_without_what_it_was_computed_of_is_found(world: World, asset: str) -> None:
    (Path(world.settings.storage) / asset / "date=2024-08-18" / "part-0.parquet").unlink()
    found = broken(world)
    assert found[READ] == (f"2024-08-18: {asset} is not stored; run the day again",)
    assert (MATCHES in found) == (asset == "match_participants")


def test_files_of_different_input_are_left_out_of_the_count(world: World) -> None:
    path = Path(world.settings.storage) / "rejected_records" / "date=2024-08-18" / "part-0.parquet"
    path.write_bytes((Path(world.settings.storage) / "rejected_records/date=2024-08-17/part-0.parquet").read_bytes())
    result = results(world)[READ]
    assert result.ok
    assert [words[:10] for words in result.left_out] == ["2024-08-18"]


def test_a_torn_file_is_an_error_and_no_silence(world: World) -> None:
    path = Path(world.settings.storage) / "participant_shares" / "date=2024-08-18" / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadFileError, match="no whole Parquet file"):
        results(world)
