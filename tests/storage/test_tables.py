"""Frames in Postgres tables: one transaction or nothing, and no row ever changed unnoticed."""

import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments_pipeline.domain import schemas
from payments_pipeline.domain.errors import ConfigurationError, ConflictError, InvariantError
from payments_pipeline.domain.schemas import BOOL, CATEGORY, DATE, INSTANT, INT, STRING, Column, TableSchema
from payments_pipeline.storage import tables
from payments_pipeline.storage.objects import StorageUnavailableError
from payments_pipeline.storage.postgres import connect
from payments_pipeline.storage.table_declarations import Table
from payments_pipeline.storage.tables import WriteMode, Written, read_frame, write_rows

RECORDS = TableSchema(
    name="records",
    description="One column of each kind.",
    key=("record_id",),
    sort_by=("paid_on", "record_id"),
    partition_column="paid_on",
    columns=(
        Column("record_id", STRING, "Key."),
        Column("paid_on", DATE, "Partition."),
        Column("amount_minor", INT, "Money.", unit="minor units"),
        Column("label", CATEGORY, "Repeats.", nullable=True),
        Column("note", STRING, "Words.", nullable=True),
        Column("goals", INT, "May be missing.", nullable=True),
        Column("paid_at", INSTANT, "Instant.", nullable=True),
        Column("is_final", BOOL, "Flag.", nullable=True),
    ),
)
TABLE = Table("payments", RECORDS)
DAY, NEXT_DAY = "2024-01-01", "2024-01-02"
ONCE, REPLACE = WriteMode.INSERT_ONCE, WriteMode.REPLACE_PARTITION


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[psycopg.Connection]:
    with connect(empty_database_url) as opened:
        opened.execute("CREATE SCHEMA payments")
        opened.execute(
            """CREATE TABLE payments.records (
                   note text, record_id text PRIMARY KEY, paid_on date NOT NULL, amount_minor bigint NOT NULL,
                   label text, goals bigint, paid_at timestamptz, is_final boolean,
                   stored_at timestamptz NOT NULL DEFAULT now())"""
        )
        yield opened


def records(day: str = DAY, **columns: Any) -> pd.DataFrame:
    length = len(next(iter(columns.values()))) if columns else 2
    given_columns: dict[str, Any] = {
        "record_id": [f"record-{number}" for number in range(length)],
        "paid_on": [dt.date.fromisoformat(day)] * length,
        "amount_minor": [100] * length,
        "label": [None] * length,
        "note": [None] * length,
        "goals": [None] * length,
        "paid_at": [None] * length,
        "is_final": [None] * length,
    }
    return pd.DataFrame(given_columns | columns)


def stored(connection: psycopg.Connection) -> list[Any]:
    return connection.execute(
        "SELECT record_id, paid_on::text, amount_minor FROM records ORDER BY record_id"
    ).fetchall()


# Inserting once


def test_equal_rows_again_are_no_op_and_are_counted(connection: psycopg.Connection) -> None:
    first = write_rows(connection, TABLE, records(), ONCE, DAY)
    assert (first.inserted, first.unchanged, first.deleted) == (2, 0, 0)
    assert first.sent_bytes > 0
    again = write_rows(connection, TABLE, records(record_id=["record-1", "record-2"]), ONCE, DAY)
    assert (again.inserted, again.unchanged, again.deleted) == (1, 1, 0)
    assert len(stored(connection)) == 3


def test_a_row_of_the_same_key_and_other_content_is_refused_with_key_and_both_contents(
    connection: psycopg.Connection,
) -> None:
    write_rows(connection, TABLE, records(), ONCE, DAY)
    with pytest.raises(ConflictError) as caught:
        write_rows(
            connection,
            TABLE,
            records(record_id=["new", "record-1"], amount_minor=[1, 250], note=[None, "x"]),
            ONCE,
            DAY,
        )
    for words in ("record_id record-1", "amount_minor is 100, and now 250", "note is None, and now x", "(1 such)"):
        assert words in str(caught.value)
    assert [row[0] for row in stored(connection)] == ["record-0", "record-1"], "none of the frame was written"


def test_null_and_empty_are_different_contents(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(note=["", None]), ONCE, DAY)
    assert write_rows(connection, TABLE, records(note=["", None]), ONCE, DAY).unchanged == 2
    with pytest.raises(ConflictError, match="note"):
        write_rows(connection, TABLE, records(note=[None, None]), ONCE, DAY)
    assert read_frame(connection, TABLE)["note"].tolist() == ["", None]


def test_an_equal_row_twice_in_one_frame_is_one_row_and_an_unequal_one_a_conflict(
    connection: psycopg.Connection,
) -> None:
    twice = records(record_id=["a", "a", "b"])
    written = write_rows(connection, TABLE, twice, ONCE, DAY)
    assert (written.inserted, written.unchanged) == (2, 1)
    with pytest.raises(ConflictError, match="record_id c is in the frame twice"):
        write_rows(connection, TABLE, records(record_id=["c", "c"], amount_minor=[1, 2]), ONCE, DAY)
    assert [row[0] for row in stored(connection)] == ["a", "b"]


def test_a_key_stored_under_another_partition_is_a_conflict(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), ONCE, DAY)
    with pytest.raises(ConflictError, match="paid_on is 2024-01-01, and now 2024-01-02"):
        write_rows(connection, TABLE, records(NEXT_DAY), ONCE, NEXT_DAY)


def test_rows_that_a_later_frame_lacks_stay(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), ONCE, DAY)
    assert write_rows(connection, TABLE, records().iloc[:0], ONCE, DAY) == Written(0, 0, 0, 0)
    assert len(stored(connection)) == 2


def test_two_writers_of_one_key_under_two_partitions_make_one_row_and_one_conflict(
    connection: psycopg.Connection, empty_database_url: str
) -> None:
    gate = threading.Barrier(4)

    def write(number: int) -> bool:
        with connect(empty_database_url) as own:
            gate.wait()
            try:
                write_rows(own, TABLE, records(f"2024-01-{number + 1:02d}"), ONCE, f"2024-01-{number + 1:02d}")
            except ConflictError:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(4))) == 1
    assert len({row[1] for row in stored(connection)}) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 2), st.sampled_from([None, "", "x"])), max_size=4),
        max_size=5,
    )
)
def test_any_sequence_of_frames_does_what_a_dictionary_would(
    connection: psycopg.Connection, frames: list[list[tuple[str, int, str | None]]]
) -> None:
    connection.execute("TRUNCATE records")
    model: dict[str, tuple[int, str | None]] = {}
    for rows in frames:
        expected = dict(model)
        conflict = False
        for key, *content in rows:
            conflict |= expected.setdefault(key, (content[0], content[1])) != tuple(content)
        frame = records(
            record_id=[row[0] for row in rows], amount_minor=[row[1] for row in rows], note=[row[2] for row in rows]
        )
        if conflict:
            with pytest.raises(ConflictError):
                write_rows(connection, TABLE, frame, ONCE, DAY)
        else:
            written = write_rows(connection, TABLE, frame, ONCE, DAY)
            assert written.inserted == len(expected) - len(model)
            assert written.inserted + written.unchanged == len(rows)
            model = expected
    found = read_frame(connection, TABLE)
    assert dict(zip(found["record_id"], zip(found["amount_minor"], found["note"], strict=True), strict=True)) == model


# Replacing a partition


def test_a_partition_is_replaced_and_its_neighbour_is_not_touched(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(record_id=["a", "b"]), REPLACE, DAY)
    write_rows(connection, TABLE, records(NEXT_DAY, record_id=["c"]), REPLACE, NEXT_DAY)
    written = write_rows(connection, TABLE, records(record_id=["b"], amount_minor=[7]), REPLACE, DAY)
    assert (written.inserted, written.unchanged, written.deleted) == (1, 0, 2)
    assert stored(connection) == [("b", DAY, 7), ("c", NEXT_DAY, 100)]


def test_an_empty_frame_empties_its_partition_alone(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), REPLACE, DAY)
    write_rows(connection, TABLE, records(NEXT_DAY, record_id=["c"]), REPLACE, NEXT_DAY)
    assert write_rows(connection, TABLE, records().iloc[:0], REPLACE, DAY).deleted == 2
    assert [row[0] for row in stored(connection)] == ["c"]


def test_without_partitions_the_whole_table_is_one(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), REPLACE)
    assert write_rows(connection, TABLE, records(NEXT_DAY, record_id=["c"]), REPLACE).deleted == 2
    assert [row[0] for row in stored(connection)] == ["c"]


def test_a_key_twice_in_a_replaced_partition_is_refused_and_the_old_rows_stand(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), REPLACE, DAY)
    with pytest.raises(ConflictError, match=r"record_id\)=\(a\)"):
        write_rows(connection, TABLE, records(record_id=["a", "a"]), REPLACE, DAY)
    assert len(stored(connection)) == 2


def test_writers_of_one_partition_take_turns_and_the_last_frame_stands_whole(
    connection: psycopg.Connection, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without turns each would delete what it saw, and the rows of both would stand."""
    write_rows(connection, TABLE, records(record_id=["old"]), REPLACE, DAY)
    both_inside = threading.Barrier(2)
    send = tables._send

    def meet(*arguments: Any) -> int:
        with suppress(threading.BrokenBarrierError):
            both_inside.wait(timeout=0.5)
        return send(*arguments)

    monkeypatch.setattr(tables, "_send", meet)

    def write(number: int) -> None:
        with connect(empty_database_url) as own:
            frame = records(record_id=[f"{number}-{row}" for row in range(50)])
            assert write_rows(own, TABLE, frame, REPLACE, DAY).inserted == 50

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert both_inside.broken, "the second was let in while the first was writing"
    assert len(stored(connection)) == 50
    assert len({row[0].partition("-")[0] for row in stored(connection)}) == 1


def test_writers_of_two_partitions_do_not_wait_for_each_other(
    connection: psycopg.Connection, empty_database_url: str
) -> None:
    with connect(empty_database_url) as slow, slow.transaction():
        write_rows(slow, TABLE, records(record_id=["slow"]), REPLACE, DAY)
        connection.execute("SET lock_timeout = '2s'")
        assert write_rows(connection, TABLE, records(NEXT_DAY), REPLACE, NEXT_DAY).inserted == 2
        connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(StorageUnavailableError, match="lock timeout"):
            write_rows(connection, TABLE, records(), REPLACE, DAY)


def test_a_reader_sees_the_old_partition_or_the_new_one(
    connection: psycopg.Connection, empty_database_url: str
) -> None:
    write_rows(
        connection, TABLE, records(record_id=[f"{row}" for row in range(40)], amount_minor=[0] * 40), REPLACE, DAY
    )
    stop = threading.Event()
    sums: set[tuple[int, int]] = set()

    def watch() -> None:
        with connect(empty_database_url) as own:
            while not stop.is_set():
                frame = read_frame(own, TABLE, [DAY])
                sums.add((len(frame), int(frame["amount_minor"].sum())))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for number in range(1, 20):
            frame = records(record_id=[f"{row}" for row in range(40)], amount_minor=[number] * 40)
            write_rows(connection, TABLE, frame, REPLACE, DAY)
        stop.set()
        watching.result()
    assert sums
    assert all(count == 40 and total % 40 == 0 for count, total in sums)


# Refusals before anything is written


@pytest.mark.parametrize("mode", WriteMode)
def test_a_row_of_another_partition_is_refused_with_its_key(connection: psycopg.Connection, mode: WriteMode) -> None:
    with pytest.raises(InvariantError, match=r"partition 2024-01-02 .* paid_on 2024-01-01 \(record_id record-0\)"):
        write_rows(connection, TABLE, records(), mode, NEXT_DAY)
    assert stored(connection) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP COLUMN note", "note is missing"),
        ("ADD COLUMN extra text", "extra is not declared and has no default"),
        ("ALTER amount_minor TYPE integer", "amount_minor is integer, declared int64 (that is bigint)"),
        ("ALTER paid_at TYPE timestamp", "paid_at is timestamp without time zone"),
        ("ALTER amount_minor TYPE numeric", "amount_minor is numeric"),
        ("ALTER amount_minor DROP NOT NULL", "amount_minor admits null, the declaration does not"),
        ("ALTER label SET NOT NULL", "label does not admit null, the declaration does"),
        ("DROP CONSTRAINT records_pkey", "there is no unique key on record_id"),
        ("RENAME TO elsewhere", "there is no table payments.records"),
    ],
)
def test_a_table_that_is_not_what_is_declared_is_refused_with_the_difference(
    connection: psycopg.Connection, change: str, words: str
) -> None:
    connection.execute(f"ALTER TABLE payments.records {change}".encode())
    with pytest.raises(ConfigurationError) as caught:
        write_rows(connection, TABLE, records(), ONCE, DAY)
    assert words in str(caught.value)


def test_a_unique_index_that_does_not_hold_for_all_rows_is_no_key(connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE records DROP CONSTRAINT records_pkey, ALTER record_id SET NOT NULL")
    connection.execute("CREATE UNIQUE INDEX some_records ON records (record_id) WHERE amount_minor > 0")
    with pytest.raises(ConfigurationError, match="no unique key"):
        write_rows(connection, TABLE, records(), ONCE, DAY)
    connection.execute("CREATE UNIQUE INDEX all_records ON records (record_id) INCLUDE (note)")
    assert write_rows(connection, TABLE, records(), ONCE, DAY).inserted == 2


def test_a_frame_that_is_not_what_is_declared_opens_no_transaction(connection: psycopg.Connection) -> None:
    connection.close()
    with pytest.raises(InvariantError, match="amount_minor"):
        write_rows(connection, TABLE, records(amount_minor=[1.0, float("nan")]), ONCE, DAY)


def test_a_partition_that_its_column_cannot_hold_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(ConfigurationError, match="'2024-W01-x'"):
        write_rows(connection, TABLE, records(), ONCE, "2024-W01-x")
    unpartitioned = Table("payments", replace(RECORDS, partition_column=None))
    with pytest.raises(ConfigurationError, match="declares no partition column"):
        write_rows(connection, unpartitioned, records(), ONCE, DAY)
    instant = Table("payments", replace(RECORDS, partition_column="paid_at"))
    with pytest.raises(ConfigurationError, match="paid_at holds timestamp"):
        read_frame(connection, instant, [DAY])


# Failures half-way


class _BrokenCopy:
    """Ends the session from outside after the first block of a COPY."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, superuser_url: str, pid: int) -> None:
        write = psycopg.Copy.write

        def broken(copy: psycopg.Copy, buffer: Any) -> None:
            write(copy, buffer)
            with psycopg.connect(superuser_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

        monkeypatch.setattr(psycopg.Copy, "write", broken)


@pytest.mark.parametrize("mode", WriteMode)
def test_a_connection_lost_in_the_middle_of_copy_leaves_what_was_there(
    connection: psycopg.Connection, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, mode: WriteMode
) -> None:
    write_rows(connection, TABLE, records(), mode, DAY)
    monkeypatch.setattr(tables, "_BATCH_ROWS", 1)
    with connect(empty_database_url) as doomed, monkeypatch.context() as breaking:
        _BrokenCopy(breaking, empty_database_url, doomed.info.backend_pid)
        with pytest.raises(StorageUnavailableError, match="run it again"):
            write_rows(doomed, TABLE, records(record_id=["x", "y", "z"]), mode, DAY)
    assert [row[0] for row in stored(connection)] == ["record-0", "record-1"]
    assert write_rows(connection, TABLE, records(record_id=["x", "y", "z"]), mode, DAY).inserted == 3


def test_a_full_disk_is_a_passing_failure_and_leaves_what_was_there(connection: psycopg.Connection) -> None:
    write_rows(connection, TABLE, records(), REPLACE, DAY)
    connection.execute(
        """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$"""
    )
    connection.execute("CREATE TRIGGER t AFTER INSERT ON records EXECUTE FUNCTION full_disk()")
    with pytest.raises(StorageUnavailableError, match="No space left"):
        write_rows(connection, TABLE, records(record_id=["x"]), REPLACE, DAY)
    assert [row[0] for row in stored(connection)] == ["record-0", "record-1"]


def test_what_the_tables_own_rules_refuse_is_a_defect_and_leaves_what_was_there(connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE records ADD CHECK (amount_minor > 0)")
    with pytest.raises(InvariantError, match="records_amount_minor_check"):
        write_rows(connection, TABLE, records(amount_minor=[1, 0]), ONCE, DAY)
    with pytest.raises(InvariantError, match="0x00"):
        write_rows(connection, TABLE, records(note=["fine", "a\0b"]), ONCE, DAY)
    assert stored(connection) == []


def test_a_login_that_may_not_write_is_told_so(connection: psycopg.Connection) -> None:
    connection.execute("CREATE ROLE reader_of_records")
    try:
        connection.execute("GRANT USAGE ON SCHEMA payments TO reader_of_records")
        connection.execute("GRANT SELECT ON records TO reader_of_records")
        connection.execute("SET ROLE reader_of_records")
        with pytest.raises(ConfigurationError, match="permission denied for table records"):
            write_rows(connection, TABLE, records(), ONCE, DAY)
        assert read_frame(connection, TABLE).empty
    finally:
        connection.execute("RESET ROLE")
        connection.execute("DROP OWNED BY reader_of_records")
        connection.execute("DROP ROLE reader_of_records")


# Reading


def test_every_kind_of_value_comes_back_exactly(connection: psycopg.Connection) -> None:
    frame = records(
        record_id=["a", "b", "c"],
        amount_minor=[2**63 - 1, -(2**63), 0],
        label=pd.Categorical(["x", None, "NULL"]),
        note=['quote " comma , line\nbreak \\. \\N', None, "Zażółć\t😀"],
        goals=pd.array([2**62 + 1, None, 0], dtype="Int64"),
        paid_at=pd.to_datetime(["1969-12-31T23:59:59.999999Z", None, "2024-02-29T00:00:00Z"], format="ISO8601"),
        is_final=pd.array([True, None, False], dtype="boolean"),
    )
    write_rows(connection, TABLE, frame, ONCE, DAY)
    found = read_frame(connection, TABLE, [DAY])
    assert {name: str(kind) for name, kind in found.dtypes.items()} == {
        "record_id": "object",
        "paid_on": "object",
        "amount_minor": "int64",
        "label": "category",
        "note": "object",
        "goals": "Int64",
        "paid_at": "datetime64[us, UTC]",
        "is_final": "boolean",
    }
    expected = frame.assign(paid_at=frame["paid_at"].astype("datetime64[us, UTC]"))
    pd.testing.assert_frame_equal(found, expected, check_categorical=False)
    assert write_rows(connection, TABLE, found, ONCE, DAY).unchanged == 3


def test_partitions_are_read_alone_together_and_all_in_the_declared_order(connection: psycopg.Connection) -> None:
    for number, day in enumerate(("2024-01-03", DAY, NEXT_DAY)):
        write_rows(connection, TABLE, records(day, record_id=[f"{number}-b", f"{number}-a"]), ONCE, day)
    assert read_frame(connection, TABLE, [DAY])["record_id"].tolist() == ["1-a", "1-b"]
    assert read_frame(connection, TABLE, [NEXT_DAY, DAY])["record_id"].tolist() == ["1-a", "1-b", "2-a", "2-b"]
    assert len(read_frame(connection, TABLE)) == 6
    assert read_frame(connection, TABLE, []).empty
    empty = read_frame(connection, TABLE, ["2030-01-01"])
    assert empty.dtypes.equals(read_frame(connection, TABLE).dtypes)


def test_a_table_of_one_column_keeps_its_nulls(connection: psycopg.Connection) -> None:
    schema = TableSchema("notes", "", (Column("note", STRING, "", nullable=True),), (), ())
    table = Table("payments", schema)
    written = write_rows(connection, table, pd.DataFrame({"note": [None, "", "x", None]}), REPLACE, create=True)
    assert written.inserted == 4
    assert read_frame(connection, table)["note"].tolist() == [None, "", "x", None]


def test_a_string_is_a_uuid_where_the_column_is_one(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE payments.ids (id uuid PRIMARY KEY, amount_minor bigint NOT NULL)")
    table = Table(
        "payments",
        TableSchema("ids", "", (Column("id", STRING, ""), Column("amount_minor", INT, "")), ("id",), ("id",)),
    )
    lower, upper = ("aeb9998a-54d7-4f67-b675-fba48e59c496", "AEB9998A-54D7-4F67-B675-FBA48E59C496")
    write_rows(connection, table, pd.DataFrame({"id": [lower], "amount_minor": [1]}), ONCE)
    assert write_rows(connection, table, pd.DataFrame({"id": [upper], "amount_minor": [1]}), ONCE).unchanged == 1
    assert read_frame(connection, table)["id"].tolist() == [lower]
    with pytest.raises(InvariantError, match="uuid"):
        write_rows(connection, table, pd.DataFrame({"id": ["no uuid"], "amount_minor": [1]}), ONCE)


# Making tables


def test_a_made_table_has_the_declared_types_key_and_words_and_is_made_once(empty_database_url: str) -> None:
    gate = threading.Barrier(4)

    def write(number: int) -> int:
        day = f"2024-01-{number + 1:02d}"
        with connect(empty_database_url) as own:
            gate.wait()
            return write_rows(own, TABLE, records(day, record_id=[str(number)]), REPLACE, day, create=True).inserted

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [1] * 4
    with connect(empty_database_url) as own:
        assert len(read_frame(own, TABLE)) == 4
        with pytest.raises(ConflictError):
            write_rows(own, TABLE, records(record_id=["0"], amount_minor=[1]), ONCE, DAY)
        comment = own.execute("SELECT col_description('payments.records'::regclass, 3)").fetchone()
        assert comment == ("Money. [minor units]",)


@pytest.mark.parametrize("schema", [schemas.SETTLEMENT_RECORDS, schemas.RECONCILIATION], ids=lambda schema: schema.name)
def test_the_migrated_tables_are_what_is_declared_for_the_pipelines_own_login(
    database_url: str, schema: TableSchema
) -> None:
    with connect(database_url) as own:
        assert read_frame(own, Table("payments", schema), [DAY]).empty
        mode = ONCE if schema is schemas.SETTLEMENT_RECORDS else REPLACE
        assert write_rows(own, Table("payments", schema), pd.DataFrame(columns=schema.names), mode, DAY).inserted == 0


def test_the_appended_table_lets_nobody_replace_a_partition(database_url: str) -> None:
    table = Table("payments", schemas.SETTLEMENT_RECORDS)
    with connect(database_url) as own, pytest.raises(ConfigurationError, match="permission denied"):
        write_rows(own, table, pd.DataFrame(columns=schemas.SETTLEMENT_RECORDS.names), REPLACE, DAY)
