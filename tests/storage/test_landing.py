from datetime import date
from pathlib import Path

import pytest

from payments_pipeline.domain.errors import InputError
from payments_pipeline.domain.reference_data import parse_reference
from payments_pipeline.storage.landing import day_prefix, hash_landing_day, read_landing_day
from payments_pipeline.storage.objects import LocalStore, ObjectInfo, ObjectNotFoundError
from payments_pipeline.storage.reference import read_reference

DAY = date(2024, 8, 17)


class CountingStore(LocalStore):
    """A folder that remembers what was fetched."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []

    def read(self, key: str) -> bytes:
        self.fetched.append(key)
        return super().read(key)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def put(store: LocalStore, name: str, content: bytes = b"x", dataset: str = "match_results", day: date = DAY) -> None:
    path = store.root / day_prefix(dataset, day) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_days_files_are_those_directly_in_its_folder_each_fetched_once(store):
    for name in ("b.csv", "a.jsonl", "c d é.parquet"):
        put(store, name)
    put(store, "other.csv", day=date(2024, 8, 18))
    put(store, "other.csv", dataset="match_participants")
    found = read_landing_day(store, "match_results", DAY)
    prefix = "match_results/date=2024-08-17/"
    assert [file.source for file in found.files] == [prefix + name for name in ("a.jsonl", "b.csv", "c d é.parquet")]
    assert store.fetched == [prefix + name for name in ("a.jsonl", "b.csv", "c d é.parquet")]
    assert found.ignored == ()


def test_other_names_are_ignored_and_named_and_not_fetched(store):
    names = ["notes.txt", "_SUCCESS", ".hidden.csv", "a.CSV", "a.csv.gz", "sub/a.csv", "a.csv~", "x.csv/part-0.csv"]
    for name in names:
        put(store, name)
    found = read_landing_day(store, "match_results", DAY)
    assert found.files == ()
    assert sorted(found.ignored) == sorted(names)
    assert store.fetched == []


def test_odd_names_break_nothing(store):
    for name in (
        "a\nb.csv",
        "'; DROP TABLE x.csv",
        "日本.csv",
        "%2e%2e.csv",
        "..csv",
        b"\xff.csv".decode("utf-8", "surrogateescape"),
    ):
        put(store, name)
    found = read_landing_day(store, "match_results", DAY)
    assert len(found.files) == 5
    assert found.ignored == ("..csv",)
    assert all(file.source.encode() for file in found.files)
    assert hash_landing_day(store, "match_results", DAY) == found.input_hash


def test_a_day_without_files_has_a_hash_of_its_own(store):
    put(store, "a.csv", day=date(2024, 8, 18))
    empty = read_landing_day(store, "match_results", DAY)
    assert empty.files == ()
    assert empty.input_hash == hash_landing_day(store, "match_results", DAY)
    assert empty.input_hash != hash_landing_day(store, "match_results", date(2024, 8, 18))


def test_the_hash_follows_names_and_contents_of_input_alone(store):
    def now() -> str:
        return hash_landing_day(store, "match_results", DAY)

    put(store, "a.csv", b"1")
    first = now()
    put(store, "readme.txt")
    assert now() == first
    put(store, "a.csv", b"2")
    second = now()
    put(store, "b.csv", b"1")
    third = now()
    (store.root / day_prefix("match_results", DAY) / "a.csv").rename(
        store.root / day_prefix("match_results", DAY) / "c.csv"
    )
    assert len({first, second, third, now()}) == 4


def test_a_file_that_was_listed_and_is_gone_is_never_taken_for_an_absent_one(store, monkeypatch):
    listed = [ObjectInfo(day_prefix("match_results", DAY) + "gone.csv", 1)]
    put(store, "a.csv")
    monkeypatch.setattr(store, "list", lambda prefix="": listed)
    with pytest.raises(ObjectNotFoundError):
        read_landing_day(store, "match_results", DAY)


def reference_files(store: LocalStore, *names: str) -> None:
    store.root.mkdir(exist_ok=True)
    for name in names:
        (store.root / name).write_bytes(b"{}\n" if name.endswith("jsonl") else b"x\n")


def test_each_reference_table_comes_from_its_one_file(store):
    reference_files(store, "competitions.csv", "parties.jsonl", "fee_schedules.parquet", "notes.txt", "parties.csv.bak")
    assert {table: file.source for table, file in read_reference(store).items()} == {
        "competitions": "competitions.csv",
        "parties": "parties.jsonl",
        "fee_schedules": "fee_schedules.parquet",
    }


def test_a_missing_reference_table_is_an_input_error(store):
    reference_files(store, "competitions.csv", "parties.csv")
    with pytest.raises(InputError, match=r"table fee_schedules is missing.*Nothing was posted.*fee_schedules\.csv"):
        read_reference(store)


def test_a_reference_table_that_is_there_twice_is_an_input_error(store):
    reference_files(store, "competitions.csv", "parties.csv", "parties.jsonl", "fee_schedules.csv")
    with pytest.raises(InputError, match=r"table parties is there 2 times \(parties\.csv, parties\.jsonl\)"):
        read_reference(store)


def test_a_bad_reference_file_is_an_input_error(store):
    reference_files(store, "competitions.csv", "parties.csv", "fee_schedules.csv")
    with pytest.raises(InputError, match=r"competitions\.csv has no column competition_id"):
        parse_reference(read_reference(store))
