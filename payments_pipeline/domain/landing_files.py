"""Files of the landing zone and of the reference data: from bytes to records.

Belongs here: what a file is, which formats there are, what makes a whole file bad. Does not belong here: the
formats themselves (csv_files, json_lines, parquet_files), finding and fetching files (storage), judging rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from payments_pipeline.domain.bad_files import bad_file
from payments_pipeline.domain.csv_files import read_csv
from payments_pipeline.domain.json_lines import read_json_lines
from payments_pipeline.domain.parquet_files import read_parquet
from payments_pipeline.domain.records import Layout, Records, concatenate

_READERS = {"csv": read_csv, "jsonl": read_json_lines, "parquet": read_parquet}
EXTENSIONS = tuple(_READERS)


@dataclass(frozen=True)
class LandingFile:
    """A file as fetched.

    Attributes:
        source: where it lies below its root, for people: `match_results/date=2024-08-17/en.csv`.
        content: its bytes.
        sha256: of `content`, hexadecimal.
    """

    source: str
    content: bytes
    sha256: str

    @classmethod
    def of(cls, source: str, content: bytes) -> LandingFile:
        """Make a file and its hash; a name that is not UTF-8 is written with escapes."""
        printable = source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return cls(printable, content, hashlib.sha256(content).hexdigest())


def extension(name: str) -> str | None:
    """Give the format that a file's name says, None where it is none of ours (hidden files are none)."""
    stem, dot, suffix = name.rpartition(".")
    return suffix if stem and dot and not name.startswith(".") and suffix in _READERS else None


def input_hash(files: Iterable[LandingFile]) -> str:
    """Hash a set of files: SHA-256 of the canonical JSON of (name, sha256) sorted by name; order does not matter."""
    pairs = sorted((file.source, file.sha256) for file in files)
    return hashlib.sha256(orjson.dumps(pairs)).hexdigest()


def read_file(file: LandingFile, layout: Layout) -> Records:
    """Read one file.

    Raises:
        BadFileError: it cannot be read at all: not UTF-8, unclosed quote, zero bytes, truncated Parquet, a repeated
            header name, a required column missing. Names the file, the fault and the cure.
    """
    format_ = extension(file.source.rpartition("/")[2])
    if format_ is None:
        raise bad_file(file.source, "is neither .csv nor .jsonl nor .parquet", "Name it after its format")
    if not file.content:
        raise bad_file(
            file.source, "has zero bytes", "Deliver it again; a day without rows is a header alone or no file"
        )
    return _READERS[format_](file.source, file.content, layout)


def read_files(files: Sequence[LandingFile], layout: Layout) -> Records:
    """Read files in the order of their names.

    Raises:
        BadFileError: one of them cannot be read at all.
    """
    ordered = sorted(files, key=lambda file: file.source.encode())
    return concatenate(layout, [read_file(file, layout) for file in ordered])
