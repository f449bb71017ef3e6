"""What a certificate says of a posting or an acceptance of refunds, and its bytes: always the same of the same commit.

Belongs here: the content, its canonical JSON, the object's name. Does not belong here: reading what was posted, writing
the object (`storage.certificates`).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
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


@dataclass(frozen=True, kw_only=True)
class Certificate(ABC):
    """What one commit posted of a day.

    Attributes:
        day: match day, or day of acceptance.
        run_id: Dagster's run.
        code_version: of the program that posted.
        input_hashes: of what it was computed from.
        schedules: rules of the matches whose lines were posted now, by competition and version.
        entries: ledger lines posted now.
        entries_sha256: over the audit digests of these lines, by entry id.
        totals: of these lines, by kind, pot and currency.
        chain: head of the audit chain.
    """

    day: date
    run_id: str
    code_version: str
    input_hashes: Mapping[str, str]
    schedules: tuple[Schedule, ...]
    entries: int
    entries_sha256: str
    totals: tuple[Total, ...]
    chain: Head

    @property
    @abstractmethod
    def subject(self) -> str:
        """What it is of, within its day."""

    def encode(self) -> bytes:
        """Give the object's bytes: JSON, keys sorted, no white space, a line feed at the end."""
        content = asdict(self) | {"version": VERSION}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=date.isoformat)
        return f"{text}\n".encode()

    @property
    def key(self) -> str:
        """Name of the object: `certificates/date=<day>/<subject>-<first 16 digits of the bytes' SHA-256>.json`."""
        digest = hashlib.sha256(self.encode()).hexdigest()[:16]
        return f"{day_prefix(self.day)}{self.subject}-{digest}.json"


@dataclass(frozen=True, kw_only=True)
class PostingCertificate(Certificate):
    """One posting of a day.

    Attributes:
        posting: number of the posting within the day.
        posted_at: as Postgres writes the instant, UTC.
        matches_accepted: matches of the input.
        matches_posted: of them, posted or posted again now.
        matches_left_alone: breaks.
        shares: shares of the input.
    """

    posting: int
    posted_at: str
    matches_accepted: int
    matches_posted: int
    matches_left_alone: int
    shares: int

    @property
    def subject(self) -> str:
        """The posting's number."""
        return posting_subject(self.posting)


@dataclass(frozen=True, kw_only=True)
class RefundCertificate(Certificate):
    """Refunds that one commit accepted.

    Attributes:
        accepted_at: when the last of them was, as Postgres writes the instant, UTC.
        refunds: how many.
        refunds_sha256: over their audit digests, by refund id.
    """

    accepted_at: str
    refunds: int
    refunds_sha256: str

    @property
    def subject(self) -> str:
        """The commit's number, since acceptances are not numbered by day."""
        return refund_subject(self.chain.commit_no)


def posting_subject(posting: int) -> str:
    """Name a posting within its day."""
    return f"{posting:04d}"


def refund_subject(commit_no: int) -> str:
    """Name an acceptance of refunds."""
    return f"refunds-{commit_no:06d}"


def day_prefix(day: date) -> str:
    """Give the folder of a day's certificates."""
    return f"{FOLDER}/date={day.isoformat()}/"


def subject_of(key: str) -> str:
    """Give what an object of that name is a certificate of, within its day; empty where it is none."""
    return key.rpartition("/")[2].rpartition("-")[0] if key.endswith(".json") else ""
