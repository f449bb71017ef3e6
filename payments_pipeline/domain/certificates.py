"""What a certificate says of a posting, and its bytes: the same posting gives the same bytes, whoever writes them.

Belongs here: the content, its canonical JSON, the object's name. Does not belong here: reading the posting, writing the
object (`storage.certificates`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date

#: Below the storage's root.
FOLDER = "certificates"
#: Of the content's shape; a reader that does not know it says so.
VERSION = 1


@dataclass(frozen=True)
class Schedule:
    """Rules that matches of the posting were divided by.

    Attributes:
        competition_id: the competition.
        version: of its fee schedule.
        rules_hash: over the competition's terms and the version's lines.
        matches: posted under them.
    """

    competition_id: str
    version: str
    rules_hash: str
    matches: int


@dataclass(frozen=True)
class Total:
    """Lines of one kind, pot and currency.

    Attributes:
        kind: of the journals.
        pot: `match_fee` or `revenue`.
        currency: ISO 4217.
        entries: lines.
        debit_minor: sum of their debits.
        credit_minor: sum of their credits; equal.
    """

    kind: str
    pot: str
    currency: str
    entries: int
    debit_minor: int
    credit_minor: int


@dataclass(frozen=True)
class Head:
    """The audit chain's newest link when the posting was committed.

    Attributes:
        day: UTC day of the link.
        seq: its number in the day.
        commit_no: of the posting's commit.
        hash: covers every link before.
    """

    day: date
    seq: int
    commit_no: int
    hash: str


@dataclass(frozen=True)
class Certificate:
    """One posting of a day.

    Attributes:
        day: match day.
        posting: number of the posting within the day.
        posted_at: as Postgres writes the instant, UTC.
        run_id: Dagster's run.
        code_version: of the program that posted.
        input_hashes: of the landing files and reference data it was computed from.
        matches_accepted: matches of the input.
        matches_posted: of them, posted or posted again now.
        matches_left_alone: breaks.
        shares: shares of the input.
        schedules: rules of the matches posted now, by competition and version.
        entries: ledger lines posted now.
        entries_sha256: over the audit digests of these lines, by entry id.
        totals: of these lines, by kind, pot and currency.
        chain: head of the audit chain.
    """

    day: date
    posting: int
    posted_at: str
    run_id: str
    code_version: str
    input_hashes: Mapping[str, str]
    matches_accepted: int
    matches_posted: int
    matches_left_alone: int
    shares: int
    schedules: tuple[Schedule, ...]
    entries: int
    entries_sha256: str
    totals: tuple[Total, ...]
    chain: Head

    def encode(self) -> bytes:
        """Give the object's bytes: JSON, keys sorted, no white space, a line feed at the end."""
        content = asdict(self) | {"version": VERSION}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=date.isoformat)
        return f"{text}\n".encode()

    @property
    def key(self) -> str:
        """Name of the object: `certificates/date=<day>/<posting>-<first 16 digits of the bytes' SHA-256>.json`."""
        digest = hashlib.sha256(self.encode()).hexdigest()[:16]
        return f"{day_prefix(self.day)}{self.posting:04d}-{digest}.json"


def day_prefix(day: date) -> str:
    """Give the folder of a day's certificates."""
    return f"{FOLDER}/date={day.isoformat()}/"


def posting_of(key: str) -> int | None:
    """Give the posting that an object is named after; None where its name is no certificate's."""
    number, dash, rest = key.rpartition("/")[2].partition("-")
    return int(number) if dash and number.isascii() and number.isdigit() and rest.endswith(".json") else None
