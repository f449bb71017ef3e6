"""Certificates in simulated worlds: the object store that they are written to, and what must hold of them at the end.

Belongs here: objects in memory, with a boundary before and after each that is written. Does not belong here: what a
certificate says, which `verify` works out by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date

from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.objects import ObjectInfo, ObjectNotFoundError, ObjectStore
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify.rules_certificates import certificate_keys, certificates_say_what_was_posted


class Objects(ObjectStore):
    """Objects in memory, whole or not there; none is ever replaced."""

    def __init__(self, boundary: Callable[[], None]) -> None:
        self._boundary = boundary
        self._objects: dict[str, bytes] = {}

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List by key."""
        self._boundary()
        return [ObjectInfo(key, len(data)) for key, data in sorted(self._objects.items()) if key.startswith(prefix)]

    def read(self, key: str) -> bytes:
        """Give an object's bytes."""
        if key not in self._objects:
            raise ObjectNotFoundError(f"there is no {key}.")
        return self._objects[key]

    def exists(self, key: str) -> bool:
        """Say whether there is one."""
        return key in self._objects

    def uri(self, key: str) -> str:
        """Give its address."""
        return f"memory:{key}"

    def write(self, key: str, data: bytes) -> None:
        """Refuse: nothing here may be replaced."""
        raise AssertionError(f"{key} would be replaced by {len(data)} bytes")

    def _create(self, key: str, data: bytes) -> bool:
        self._boundary()
        if key in self._objects:
            return False
        self._objects[key] = data
        self._boundary()
        return True


def breaches_of_certificates(url: str, store: ObjectStore, days: Iterable[date]) -> list[str]:
    """Write those that runs left out, as the next run of their day does, and say what is wrong with any."""
    for day in days:
        write_certificates(url, store, day)
    with connect(url) as connection:
        return certificates_say_what_was_posted(connection, store, certificate_keys(store)).breaches
