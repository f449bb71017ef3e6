"""The landing zone: a day's files, found, fetched and hashed.

Belongs here: which objects are a day's input. Does not belong here: what is in them (domain/landing_files and beyond),
how objects are fetched (objects).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from payments_pipeline.domain.landing_files import LandingFile, extension, input_hash
from payments_pipeline.storage.objects import ObjectStore


@dataclass(frozen=True)
class LandingDay:
    """One day's input of one dataset.

    Attributes:
        dataset: match_results or match_participants.
        day: the partition.
        files: by name.
        ignored: names of the objects below the day's folder that are no input: other extensions, hidden, nested.
    """

    dataset: str
    day: date
    files: tuple[LandingFile, ...]
    ignored: tuple[str, ...]

    @property
    def input_hash(self) -> str:
        """Hash over names and contents; a day without files has one too."""
        return input_hash(self.files)


def day_prefix(dataset: str, day: date) -> str:
    """Give the folder of a day: `match_results/date=2024-08-17/`."""
    return f"{dataset}/date={day.isoformat()}/"


def read_landing_day(store: ObjectStore, dataset: str, day: date) -> LandingDay:
    """Find and fetch a day's files, each once.

    Raises whatever the store raises: a file that was listed and cannot be fetched is never taken for an absent one.
    """
    prefix = day_prefix(dataset, day)
    keys, ignored = [], []
    for key in sorted((found.key for found in store.list(prefix)), key=_octets):
        name = key.removeprefix(prefix)
        if "/" not in name and extension(name) is not None:
            keys.append(key)
        else:
            ignored.append(_octets(name).decode("utf-8", "backslashreplace"))
    return LandingDay(dataset, day, tuple(LandingFile.of(key, store.read(key)) for key in keys), tuple(ignored))


def hash_landing_day(store: ObjectStore, dataset: str, day: date) -> str:
    """List, fetch and hash a day's files again, without reading what is in them."""
    return read_landing_day(store, dataset, day).input_hash


def _octets(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
