"""Objects are whole or not there, in a folder and in S3 alike."""

import errno
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from urllib3 import HTTPResponse

from payments_pipeline.domain.errors import ConfigurationError, ConflictError
from payments_pipeline.storage import objects
from payments_pipeline.storage.objects import (
    TEMPORARY_PREFIX,
    LocalStore,
    ObjectNotFoundError,
    ObjectStore,
    S3Store,
    StorageUnavailableError,
    open_store,
)


@pytest.fixture(params=["folder", "s3", "s3 with prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        folder = tmp_path / "root"
        folder.mkdir()
        return open_store(str(folder))
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket}/some/prefix/" if "prefix" in request.param else f"s3://{bucket}")


# What both kinds of store promise


def test_what_is_written_is_read_and_listed(store: ObjectStore) -> None:
    store.write("a/date=2024-01-01/part-0.parquet", b"\x00one")
    store.write("a/date=2024-01-02/part-0.parquet", b"")
    assert store.read("a/date=2024-01-01/part-0.parquet") == b"\x00one"
    assert [(found.key, found.size) for found in store.list("a/")] == [
        ("a/date=2024-01-01/part-0.parquet", 4),
        ("a/date=2024-01-02/part-0.parquet", 0),
    ]
    assert store.exists("a/date=2024-01-02/part-0.parquet")
    assert not store.exists("a/date=2024-01-0")


def test_the_newest_write_stands_and_shows_in_the_etag(store: ObjectStore) -> None:
    store.write("key", b"old")
    (before,) = store.list()
    store.write("key", b"new")
    (after,) = store.list()
    assert store.read("key") == b"new"
    assert before.etag != after.etag


def test_a_prefix_is_a_prefix_of_the_key_and_not_a_folder(store: ObjectStore) -> None:
    for key in ("a/b", "a/bc/d", "a.csv", "b"):
        store.write(key, b"x")
    assert [found.key for found in store.list("a/b")] == ["a/b", "a/bc/d"]
    assert [found.key for found in store.list("a")] == ["a.csv", "a/b", "a/bc/d"]
    assert [found.key for found in store.list("a/b/c")] == []
    assert store.list("nothing/here") == []


def test_keys_are_listed_in_byte_order(store: ObjectStore) -> None:
    keys = ["Z", "a-b", "a/b", "ab", "é", "z", "😀"]
    for key in reversed(keys):
        store.write(key, b"")
    assert [found.key for found in store.list()] == sorted(keys, key=str.encode)


def test_a_missing_object_is_named_with_its_address(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFoundError) as caught:
        store.read("a/missing")
    assert store.uri("a/missing") in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_write_new_takes_the_same_bytes_again_and_refuses_others(store: ObjectStore) -> None:
    store.write_new("once", b"first")
    store.write_new("once", b"first")
    with pytest.raises(ConflictError, match="other content"):
        store.write_new("once", b"second")
    assert store.read("once") == b"first"


def test_of_many_writers_of_one_new_key_one_wins_and_the_others_are_told(store: ObjectStore) -> None:
    gate = threading.Barrier(6)

    def write(number: int) -> int | None:
        gate.wait()
        try:
            store.write_new("race", bytes([number]) * 1000)
        except ConflictError:
            return None
        return number

    with ThreadPoolExecutor(6) as pool:
        won = [number for number in pool.map(write, range(6)) if number is not None]
    assert len(won) == 1
    assert store.read("race") == bytes(won) * 1000


@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", f"a/{TEMPORARY_PREFIX}b"]
)
def test_no_key_leads_out_of_the_root_or_to_a_writers_own_file(store: ObjectStore, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.exists(key),
        lambda: store.write(key, b""),
        lambda: store.write_new(key, b""),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="key"):
            call()
    assert store.list() == []


def test_a_reader_sees_the_old_object_or_the_new_one_whole(store: ObjectStore) -> None:
    contents = [bytes([65 + number]) * 200_000 for number in range(2)]
    store.write("key", contents[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def watch() -> None:
        while not stop.is_set():
            seen.add(store.read("key"))
            assert [found.size for found in store.list()] == [200_000]

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for number in range(30):
            store.write("key", contents[number % 2])
        stop.set()
        watching.result()
    assert seen <= set(contents)


# Addresses


@pytest.mark.parametrize(
    "url", ["", "s3://", "s3:///prefix", "gs://bucket", "http://host/x", "s3://bucket/a/../b", "a\0b"]
)
def test_an_address_that_is_neither_folder_nor_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_store(url)


def test_opening_a_store_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(objects.S3Store, "client", property(refuse))
    assert isinstance(open_store("s3://nowhere/at/all"), S3Store)
    assert isinstance(open_store(str(tmp_path / "absent")), LocalStore)
    assert not (tmp_path / "absent").exists()


def test_a_relative_folder_is_the_one_it_was_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("here")
    store.write("key", b"x")
    monkeypatch.chdir("/")
    assert store.read("key") == b"x"


# A folder


def test_a_missing_folder_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        open_store(str(tmp_path / "mistyped")).list()


def test_a_writer_killed_before_the_rename_leaves_the_old_object_and_nothing_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a/key", b"old")
    program = """
import os, signal, sys
from pathlib import Path
from payments_pipeline.storage.objects import LocalStore
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
LocalStore(Path(sys.argv[1])).write("a/key", b"new")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(list((tmp_path / "a").iterdir())) == 2, "the writer's own file is still there"
    assert store.read("a/key") == b"old"
    assert [found.key for found in store.list()] == ["a/key"]
    store.write("a/key", b"new")
    assert store.read("a/key") == b"new"


def left_behind(folder: Path, age_s: float, name: str = "0") -> Path:
    path = folder / f"{TEMPORARY_PREFIX}{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    at = time.time() - age_s
    os.utime(path, (at, at))
    return path


@pytest.mark.parametrize("write", [LocalStore.write, LocalStore.write_new])
def test_what_killed_writers_left_is_removed_when_the_folder_is_written_to_a_day_later(
    tmp_path: Path, write: Callable[[LocalStore, str, bytes], None]
) -> None:
    store = LocalStore(tmp_path)
    old, older = (left_behind(tmp_path / "a", age * objects.LEFT_BEHIND_AFTER_S, str(age)) for age in (1.1, 900))
    young = left_behind(tmp_path / "a", objects.LEFT_BEHIND_AFTER_S / 2, "young")
    elsewhere = left_behind(tmp_path / "b", 2 * objects.LEFT_BEHIND_AFTER_S)
    folder = tmp_path / "a" / f"{TEMPORARY_PREFIX}folder"
    folder.mkdir()
    os.utime(folder, (0, 0))
    write(store, "a/key", b"new")
    assert (old.exists(), older.exists()) == (False, False)
    assert (young.exists(), elsewhere.exists(), folder.exists()) == (True, True, True)
    assert [found.key for found in store.list()] == ["a/key"]


def test_what_a_live_writer_holds_is_never_removed_however_old_it_looks(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("key", b"old")
    program = """
import sys
from pathlib import Path
from payments_pipeline.storage.objects import LocalStore
replace = Path.replace
def pause(source, target):
    print(source.name, flush=True)
    sys.stdin.read()
    return replace(source, target)
Path.replace = pause
LocalStore(Path(sys.argv[1])).write("key", b"from the slow writer")
"""
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        held = tmp_path / writer.stdout.readline().strip()
        os.utime(held, (0, 0))
        store.write("key", b"from the quick writer")
        assert held.exists()
        writer.communicate()
    assert (writer.returncode, store.read("key")) == (0, b"from the slow writer")


def test_what_a_killed_writer_held_is_removed_once_it_is_old(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from payments_pipeline.storage.objects import LocalStore
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
LocalStore(Path(sys.argv[1])).write("key", b"new")
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    LocalStore(tmp_path).write("key", b"new")
    assert left.exists(), "it is young: nobody can know"
    os.utime(left, (0, 0))
    LocalStore(tmp_path).write("key", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_leaves_the_old_object_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.write("key", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailableError, match="No space left"):
        store.write("key", b"new")
    monkeypatch.undo()
    assert store.read("key") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_the_file_and_its_folder_are_made_durable_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        done.append("file" if name.startswith(TEMPORARY_PREFIX) else name)
        sync(descriptor)

    def replaced(source: Path, target: Path) -> Path:
        done.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    LocalStore(tmp_path / "root").write("a/b/key", b"x")
    assert done == [tmp_path.name, "root", "a", "file", "rename", "b"]


def test_a_folder_in_the_place_of_an_object_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    store = LocalStore(tmp_path)
    with pytest.raises(ConfigurationError, match="key"):
        store.write("key", b"x")
    with pytest.raises(ConfigurationError, match="key"):
        store.read("key")
    store.write("file", b"x")
    with pytest.raises(ConfigurationError):
        store.write("file/below", b"x")


# S3


def test_every_page_of_a_long_listing_is_read(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PAGE_KEYS", 3)
    store = open_store(f"s3://{bucket}/p")
    keys = [f"{number:02d}" for number in range(10)]
    for key in keys:
        store.write(key, b"")
    assert [found.key for found in store.list()] == keys


def test_empty_objects_that_stand_for_folders_are_not_listed(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="p/folder/", Body=b"")
    assert open_store(f"s3://{bucket}/p").list() == []


def test_an_object_goes_up_with_its_sha256(bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    store.write("key", b"hello")
    head = boto3.client("s3").head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="


def test_the_sha256_goes_ahead_of_the_object_and_not_behind_it(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS boto3 would send it as a trailer, which not every server of the kind reads."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://storage.example")
    store = S3Store("bucket")
    sent: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, HTTPResponse(io.BytesIO(), preload_content=False))

    store.client.meta.events.register("before-send.s3.PutObject", answer)
    store.write("key", b"hello")
    (request,) = sent
    assert request.headers["x-amz-checksum-sha256"] == b"LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    assert "x-amz-trailer" not in request.headers


def test_a_missing_bucket_is_one_clear_error_for_every_call(s3_environment: str) -> None:
    store = open_store("s3://no-such-bucket-at-all/p")
    calls: list[Callable[[], object]] = [
        store.list,
        lambda: store.read("key"),
        lambda: store.exists("key"),
        lambda: store.write("key", b""),
        lambda: store.write_new("key", b""),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="there is no bucket no-such-bucket-at-all"):
            call()


def test_an_endpoint_that_does_not_answer_is_a_passing_failure(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(objects, "_ATTEMPTS", 2)
        with pytest.raises(StorageUnavailableError, match="s3://bucket/key was not written"):
            open_store("s3://bucket").write("key", b"x")


def test_no_credentials_at_all_are_a_setting_to_mend(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket").list()


def test_an_endpoint_that_is_no_address_is_a_setting_to_mend(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not an address")
    with pytest.raises(ConfigurationError, match="not an address"):
        open_store("s3://bucket").list()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "SignatureDoesNotMatch", ConfigurationError),
        (403, "AccessDenied", ConfigurationError),
        (301, "PermanentRedirect", ConfigurationError),
        (503, "SlowDown", StorageUnavailableError),
        (500, "InternalError", StorageUnavailableError),
        (409, "ConditionalRequestConflict", StorageUnavailableError),
        (400, "XAmzContentChecksumMismatch", StorageUnavailableError),
    ],
)
def test_what_the_service_answers_is_permanent_or_passing(
    bucket: str, status: int, code: str, expected: type[Exception]
) -> None:
    store = S3Store(bucket)

    def answer(**_: object) -> tuple[object, dict[str, object]]:
        class Http:
            status_code = status

        return Http(), {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}

    store.client.meta.events.register("before-call.s3.PutObject", answer)
    for call in (store.write, store.write_new):
        with pytest.raises(expected, match=code):
            call("key", b"x")


def test_a_first_attempt_whose_answer_was_lost_is_no_conflict(bucket: str) -> None:
    """The bytes were taken, the answer was not heard, and boto3's own retry meets the object it made."""
    store = S3Store(bucket)
    lost: list[int] = []

    def lose(**_: object) -> int | None:
        lost.append(1)
        return 0 if len(lost) == 1 else None

    store.client.meta.events.register_first("needs-retry.s3.PutObject", lose)
    store.write_new("key", b"x")
    assert len(lost) == 2
    assert store.read("key") == b"x"


def test_a_server_named_by_host_gets_the_bucket_in_the_path(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://storage.example:9000")
    address = S3Store("bucket").client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    assert address.startswith("http://storage.example:9000/bucket/key?")
