"""Objects by key, in a local folder or below a prefix of an S3 bucket: whole, or not there.

Belongs here: listing, reading and writing bytes so that no reader ever sees half of them. Does not belong here: what
the bytes mean, which keys there are.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from payments_pipeline.domain.errors import ConfigurationError, ConflictError, PaymentsError

#: A writer's own file until it is whole; a segment that begins so is no part of any key.
TEMPORARY_PREFIX = ".incomplete-"
#: After this, one that no writer holds is what a killed writer left.
LEFT_BEHIND_AFTER_S = 24 * 60 * 60
_S3_SCHEME = "s3://"
_ATTEMPTS = 5
_PAGE_KEYS = 1000
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
#: The service's own words for "not now"; every 5xx is one as well.
_TRANSIENT_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "BadDigest",
        "XAmzContentChecksumMismatch",
    }
)
_ABSENT_CODES = frozenset({"NoSuchKey", "404"})
_EXISTS_CODES = frozenset({"PreconditionFailed", "412"})


class StorageUnavailableError(PaymentsError):
    """The storage did not take or give the data now; nothing was half-written, and the same call may be made again."""


class ObjectNotFoundError(PaymentsError, FileNotFoundError):
    """There is no object under the key; the storage itself answers."""


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """One object as listed.

    Attributes:
        key: relative to the store, segments joined by `/`.
        size: bytes.
        etag: changes with the content, as far as the store can tell; an opaque string.
    """

    key: str
    size: int
    etag: str | None = None


class ObjectStore(ABC):
    """Objects below one root. Keys are relative, `/` joins their segments, and none leads out of the root."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Give the objects whose key begins with `prefix`, by key in byte order.

        Raises:
            ConfigurationError: the root does not exist or may not be read.
            StorageUnavailableError: no answer; may be tried again.
        """

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Give an object's bytes.

        Raises:
            ObjectNotFoundError: there is none under the key.
            ConfigurationError: the root does not exist or may not be read.
            StorageUnavailableError: no answer; may be tried again.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Say whether there is an object under the key; raises as `list` does where that cannot be known."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Give the object's address as people and other programs write it."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put an object in place of whatever is there; readers see the old one or the new one, whole.

        Raises:
            ConfigurationError: the root cannot be written to.
            StorageUnavailableError: it was not taken; what was there stands. May be tried again.
        """

    @abstractmethod
    def _create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none; false, and nothing changed, where there is one."""

    def write_new(self, key: str, data: bytes) -> None:
        """Put an object where there is none; the same bytes again are no-op.

        Raises:
            ConflictError: there is one with other content; it stands.
            ConfigurationError: the root cannot be written to.
            StorageUnavailableError: it was not taken. May be tried again.
        """
        if self._create(key, data):
            return
        stored = self.read(key)
        if stored != data:
            raise ConflictError(
                f"{self.uri(key)} exists with other content ({_digest(stored)}, not {_digest(data)}). It stands; "
                "nothing was written. Find out who wrote it, and use another key for other content."
            )


def open_store(url: str, make_client: Callable[[], Any] | None = None) -> ObjectStore:
    """Give the store at an address; nothing is opened, and no connection made, before it is used.

    Args:
        url: a folder, or `s3://bucket` or `s3://bucket/prefix`.
        make_client: gives the boto3 client of a bucket. Without it endpoint, region and credentials are those of the
            usual AWS environment and configuration files, which boto3 reads itself.

    Raises:
        ConfigurationError: it is neither.
    """
    if url.startswith(_S3_SCHEME):
        bucket, _, prefix = url.removeprefix(_S3_SCHEME).partition("/")
        prefix = prefix.strip("/")
        if not bucket:
            raise ConfigurationError(f"{url!r} names no bucket: write s3://bucket or s3://bucket/prefix.")
        if prefix:
            _check_key(prefix, url)
        return S3Store(bucket, prefix, make_client)
    if not url or "://" in url or "\0" in url:
        raise ConfigurationError(f"{url!r} is no storage address: write a folder or s3://bucket/prefix.")
    return LocalStore(Path(url).expanduser().absolute())


def _digest(data: bytes) -> str:
    return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}…"


def _check_key(key: str, root: str) -> str:
    """Give the key back if it is one: no way out of the root, no two spellings of one object."""
    fault = None
    segments = key.split("/")
    if "\0" in key:
        fault = "holds a NUL"
    elif "" in segments:
        fault = "is empty, absolute or has an empty segment"
    elif "." in segments or ".." in segments:
        fault = "has a segment . or .."
    elif any(segment.startswith(TEMPORARY_PREFIX) for segment in segments):
        fault = f"has a segment that begins with {TEMPORARY_PREFIX}"
    if fault:
        raise ConfigurationError(f"{root}: the key {key!r} {fault}. Nothing was read or written; use another key.")
    return key


class LocalStore(ObjectStore):
    """Objects as files below a folder, which the first write makes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def _path(self, key: str) -> Path:
        return self.root / _check_key(key, str(self.root))

    def uri(self, key: str) -> str:
        """Give the file's path."""
        return str(self._path(key))

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Walk the folder; files that writers have not finished are no objects."""
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        if not self.root.is_dir():
            raise ConfigurationError(
                f"the folder {self.root} does not exist, or is none. Nothing was read. Make it, or correct its address."
            )
        found = []
        for parent, folders, names in os.walk(start, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY_PREFIX)]
            for name in names:
                path = Path(parent, name)
                key = path.relative_to(self.root).as_posix()
                if name.startswith(TEMPORARY_PREFIX) or not key.startswith(prefix):
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # removed since the folder was read: not there
                found.append(
                    ObjectInfo(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}")
                )
        return sorted(found)

    def read(self, key: str) -> bytes:
        """Read the file."""
        path = self._path(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectNotFoundError(f"there is no {path}.") from error
        except OSError as error:
            _raise_local(error, path, "read")

    def exists(self, key: str) -> bool:
        """Look for the file."""
        path = self._path(key)
        try:
            return path.is_file()
        except OSError as error:
            _raise_local(error, path, "read")

    def write(self, key: str, data: bytes) -> None:
        """Write beside the file, make that durable, and rename it into place."""
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            temporary.replace(path)

    def _create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        """Give a durable file of the data in the folder of `path`; what became of it by name is durable afterwards."""
        temporary = path.with_name(TEMPORARY_PREFIX + uuid.uuid4().hex)
        try:
            _make_folder(path.parent)
            _remove_left_behind(path.parent)
            try:
                with temporary.open("xb") as file:
                    # Where the file system has no locks, nothing is ever taken for left behind.
                    with suppress(OSError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            _raise_local(error, path, "written")


def _raise(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return  # a folder that nobody has written to holds nothing
    _raise_local(error, Path(str(error.filename)), "listed")


def _raise_local(error: OSError, path: Path, verb: str) -> NoReturn:
    words = f"{path} cannot be {verb}: {error.strerror}. What was there stands."
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError):
        raise ConfigurationError(f"{words} Correct the address, or the rights on the folder.") from error
    raise StorageUnavailableError(f"{words} Free space or mend the disk, then run the same again.") from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in its own parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync_folder(each.parent)


def _remove_left_behind(folder: Path) -> None:
    """Remove the files that killed writers left in a folder: old ones that no writer holds the lock of."""
    before = time.time() - LEFT_BEHIND_AFTER_S
    with os.scandir(folder) as entries:
        own = [entry for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
    for entry in own:
        # Another writer removed it meanwhile, or its owner lets nobody read it: it is not ours to remove.
        with suppress(FileNotFoundError, PermissionError):
            if not entry.is_file(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_mtime > before:
                continue
            with open(entry.path, "rb") as file:  # noqa: PTH123 - an entry of scandir
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue  # its writer lives, or the file system has no locks
                os.unlink(entry.path)  # noqa: PTH108 - an entry of scandir


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _service_models() -> Any:
    """Give boto3's descriptions of services, read once: a tenth of a second for each client otherwise."""
    from botocore.loaders import create_loader

    return create_loader()


def make_s3_client(*, profile_name: str | None = None, max_attempts: int = _ATTEMPTS, **given: Any) -> Any:
    """Make a boto3 client of S3 that gives up in time, and that speaks to other servers than AWS by path.

    Args:
        profile_name: of the AWS configuration files.
        max_attempts: of each call, the first included.
        given: what `boto3.session.Session.client` takes; None for what the environment says.

    Raises:
        ValueError: the endpoint is no address.
    """
    import boto3
    from botocore.config import Config
    from botocore.session import get_session

    core = get_session()
    core.register_component("data_loader", _service_models())
    session = boto3.session.Session(profile_name=profile_name, botocore_session=core)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        user_agent_extra="payments_pipeline",
    )
    client = session.client("s3", config=config, **given)
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return client
    # Other servers are seldom given a name per bucket.
    return session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})), **given)


class S3Store(ObjectStore):
    """Objects below a prefix of a bucket, which exists already."""

    def __init__(self, bucket: str, prefix: str = "", make_client: Callable[[], Any] | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._make_client = make_client or make_s3_client

    def __repr__(self) -> str:
        return f"S3Store({self.bucket!r}, {self.prefix!r})"

    @cached_property
    def client(self) -> Any:
        """The boto3 client; made when first needed, it connects when first called."""
        with self._errors("reached", self.uri("")):
            try:
                return self._make_client()
            except ValueError as error:  # boto3's word for an endpoint that is no address
                raise _aws_environment(error, "reached", self.uri("")) from error

    def _name(self, key: str) -> str:
        return self.prefix + _check_key(key, f"s3://{self.bucket}/{self.prefix}")

    def uri(self, key: str) -> str:
        """Give `s3://bucket/prefix/key`."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List page by page; the empty objects that stand for folders are left out."""
        with self._errors("listed", self.uri(prefix)):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix, PaginationConfig={"PageSize": _PAGE_KEYS}
            )
            return sorted(
                ObjectInfo(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"].strip('"'))
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")
            )

    def read(self, key: str) -> bytes:
        """Get the object; its checksum is compared where it has one."""
        name = self._name(key)
        with self._errors("read", self.uri(key)):
            response = self.client.get_object(Bucket=self.bucket, Key=name, ChecksumMode="ENABLED")
            data: bytes = response["Body"].read()
        return data

    def exists(self, key: str) -> bool:
        """Look for the object by listing: HEAD cannot tell a missing object from a missing bucket."""
        name = self._name(key)
        with self._errors("listed", self.uri(key)):
            page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=name, MaxKeys=1)
        return any(item["Key"] == name for item in page.get("Contents", ()))

    def write(self, key: str, data: bytes) -> None:
        """Put the object with its SHA-256, which the server compares."""
        self._put(key, data)

    def _create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._put(key, data, IfNoneMatch="*")
        except PaymentsError as error:
            # Also where an earlier attempt of ours was taken and its answer was lost.
            if isinstance(error.__cause__, ClientError) and _code(error.__cause__) in _EXISTS_CODES:
                return False
            raise
        return True

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        name = self._name(key)
        # Computed here it is a header; left to boto3 it is a trailer over TLS, which not every server reads.
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")
        with self._errors("written", self.uri(key)):
            self.client.put_object(
                Bucket=self.bucket,
                Key=name,
                Body=data,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
                **condition,
            )

    @contextmanager
    def _errors(self, verb: str, address: str) -> Iterator[None]:
        """Turn boto3's errors into ours: what cannot be, what is not there, what may be tried again."""
        from botocore import exceptions as aws

        try:
            yield
        except aws.ClientError as error:
            raise self._client_error(error, verb, address) from error
        except (
            aws.NoCredentialsError,
            aws.PartialCredentialsError,
            aws.CredentialRetrievalError,
            aws.ProfileNotFound,
            aws.InvalidRegionError,
            aws.NoRegionError,
            aws.ParamValidationError,
            aws.ConfigParseError,
        ) as error:
            raise _aws_environment(error, verb, address) from error
        except aws.BotoCoreError as error:
            raise StorageUnavailableError(
                f"{address} was not {verb}: {error}. After {_ATTEMPTS} attempts at most it was given up; no object is "
                "half-written. See that the endpoint answers, then run the same again."
            ) from error

    def _client_error(self, error: Any, verb: str, address: str) -> PaymentsError:
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"{code}: {error.response.get('Error', {}).get('Message', '')}".strip()
        if code == "NoSuchBucket":
            return ConfigurationError(
                f"{address} cannot be {verb}: there is no bucket {self.bucket}. Nothing was written. Make the bucket, "
                "or correct the address."
            )
        if code in _ABSENT_CODES:
            return ObjectNotFoundError(f"there is no {address}.")
        if code in _TRANSIENT_CODES or status >= 500:
            return StorageUnavailableError(
                f"{address} was not {verb} ({said}). No object is half-written; run the same again."
            )
        return ConfigurationError(
            f"{address} cannot be {verb} ({said}). Nothing was written. Check the credentials, what they permit on "
            f"bucket {self.bucket}, its region and the endpoint."
        )


def _aws_environment(error: Exception, verb: str, address: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address} cannot be {verb}: {error}. Nothing was written. Set the usual AWS environment (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3), or correct it."
    )


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
