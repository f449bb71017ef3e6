"""Check the certificates of one day against the tables, the audit trail and the files they were computed from.

Needs Python's standard library alone, nothing of the pipeline and no connection: the rows come from
`check_certificate.sql`, run by psql. docs/operating/checking.md says how, docs/concepts/audit.md what is hashed.

    psql -X -v day=2024-08-17 -f check_certificate.sql "$DATABASE" > day.jsonl
    python3 check_certificate.py day.jsonl certificates/date=2024-08-17/*.json --landing LANDING --reference REFERENCE

Exit code 0: everything agrees; 1: something does not, each told on a line of its own; 2: it cannot be checked.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

VERSION = 1
#: Columns that make the key of each table that postings and acceptances of refunds write; they come first in its rows.
KEYS = {"day_postings": 2, "posting_breaks": 3, "match_postings": 2, "refunds": 1, "journals": 1, "ledger_entries": 1}
#: What is kept of a ledger line beside its digest: there may be a million.
OF_LINE = ("journal_id", "kind", "pot", "currency", "debit_minor", "credit_minor")
_IN_CONTENT = ("entry_id", "recorded_at", "transaction_id", "table_name", "by_migration", "row_count")
PARTY_TYPES = ("player", "club", "organiser", "referee", "federation", "platform")
PARTY_STATUSES = ("active", "on_hold", "closed")
REFERENCE_TABLES = ("competitions", "parties", "fee_schedules")
REFUND_REQUESTS = "refund_requests"
EXTENSIONS = ("csv", "jsonl", "parquet")
#: What PostgreSQL quotes in a composite value; its white space is that of ASCII.
_QUOTED = re.compile(r'[\s"\\(),]', re.ASCII)

Row = dict[str, Any]


def record(values: list[str | None]) -> str:
    """Write a composite value as PostgreSQL does."""
    return "(" + ",".join(map(_element, values)) + ")"


def _element(value: str | None) -> str:
    if value is None:
        return ""
    if value == "" or _QUOTED.search(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '""') + '"'
    return value


def digest(values: list[str | None]) -> str:
    """Give a row's digest: 16 bytes, hexadecimal."""
    return hashlib.sha256(record(values).rstrip(",)").encode()).digest()[:16].hex()


def sha256(data: str | bytes) -> str:
    """Give the SHA-256 of bytes, or of text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


class Export:
    """What psql wrote: rows and their digests by table and key, entries and links of the trail."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.day = ""
        self.rows: dict[str, dict[str, Row]] = {table: {} for table in KEYS}
        self.digests: dict[str, dict[str, str]] = {table: {} for table in KEYS}
        self.entries: list[Row] = []
        self.links: list[Row] = []
        self.before_the_trail: set[str] = set()
        for line in lines:
            if line.strip():
                self._take(json.loads(line))
        if not self.day:
            raise ValueError("it has no line that says its match day")
        self.links.sort(key=lambda link: (link["day"], link["seq"]))
        self.entries.sort(key=lambda entry: int(entry["entry_id"]))

    def _take(self, given: Row) -> None:
        of = given["of"]
        if of == "match_day":
            self.day = given["day"]
        elif of == "before_the_trail":
            self.before_the_trail.add(given["posting"])
        elif of == "audit_entries":
            self.entries.append(given["row"])
        elif of == "audit_chain":
            # An older copy of the SQL does not say it.
            self.links.append(given["row"] | {"of_whole_day": bool(given["row"]["of_whole_day"])})
        else:
            row = given["row"]
            values = list(row.values())
            key = values[0] if KEYS[of] == 1 else record(values[: KEYS[of]])
            self.digests[of][key] = digest(values)
            self.rows[of][key] = {name: row[name] for name in OF_LINE} if of == "ledger_entries" else row

    def of(self, table: str, **having: str) -> list[Row]:
        """Give the rows of a table that have these values."""
        return [row for row in self.rows[table].values() if all(row[name] == value for name, value in having.items())]

    def entry_of(self, seq: str) -> Row | None:
        """Give the entry that recorded a posting of the day."""
        key = record([self.day, seq])
        return next((e for e in self.entries if e["table_name"] == "day_postings" and key in e["row_keys"]), None)

    @cached_property
    def acceptances(self) -> dict[int, dict[str, Row]]:
        """Give the refunds of the day, by id, by the commit that accepted them."""
        commits = {link["entry_id"]: link["commit_no"] for link in self.links}
        found: dict[int, dict[str, Row]] = defaultdict(dict)
        for entry in self.entries:
            if entry["table_name"] == "refunds" and entry["entry_id"] in commits:
                for key in entry["row_keys"]:
                    row = self.rows["refunds"].get(key)
                    if row is not None and row["accepted_day"] == self.day:
                        found[commits[entry["entry_id"]]][key] = row
        return found


def check_trail(export: Export) -> Iterator[str]:
    """Hold every row against the digest recorded when it was inserted, and every entry against its own hash."""
    recorded: dict[str, dict[str, tuple[str, Row]]] = {table: {} for table in KEYS}
    for entry in export.entries:
        keys = json.dumps(entry["row_keys"], ensure_ascii=False, separators=(",", ":"))
        hashes = (sha256(keys), sha256(bytes.fromhex("".join(entry["row_digests"]))))
        if (
            sha256(" ".join([*(entry[name] for name in _IN_CONTENT), *hashes, entry["login"]]))
            != entry["content_sha256"]
        ):
            yield f"audit entry {entry['entry_id']} of {entry['table_name']} was changed: its hash is another one's"
        for key, of_row in zip(entry["row_keys"], entry["row_digests"], strict=True):
            if entry["table_name"] in recorded:
                recorded[entry["table_name"]][key] = (of_row, entry)
    older = _keys_before_the_trail(export)
    for table, rows in recorded.items():
        for key in sorted(rows.keys() | export.digests[table].keys()):
            of_row, entry = rows.get(key, (None, {}))
            if key not in export.digests[table]:
                yield f"{table} {key} is missing: audit entry {entry['entry_id']} recorded it at {entry['recorded_at']}"
            elif of_row is None:
                if key not in older[table]:
                    yield f"{table} {key} was inserted: nothing posted of {export.day} recorded it"
            elif of_row != export.digests[table][key]:
                yield f"{table} {key} was changed: audit entry {entry['entry_id']} recorded another content"


def _keys_before_the_trail(export: Export) -> dict[str, set[str]]:
    """Give the rows of postings that were there before the audit trail: it recorded them in other entries."""
    postings = {
        (row["match_id"], row["posting_no"])
        for row in export.of("match_postings")
        if row["day_seq"] in export.before_the_trail
    }
    journals = {
        row["journal_id"]
        for row in export.of("journals", kind="accrual")
        if (row["match_id"], row["posting_no"]) in postings
    }
    is_older: dict[str, Callable[[Row], bool]] = {
        "refunds": lambda _: False,
        "day_postings": lambda row: row["seq"] in export.before_the_trail,
        "posting_breaks": lambda row: row["seq"] in export.before_the_trail,
        "match_postings": lambda row: row["day_seq"] in export.before_the_trail,
        "journals": lambda row: row["journal_id"] in journals,
        "ledger_entries": lambda row: row["journal_id"] in journals,
    }
    return {table: {key for key, row in rows.items() if is_older[table](row)} for table, rows in export.rows.items()}


def check_chain(export: Export) -> Iterator[str]:
    """Compute every link again from the one before it; what comes before a whole day is taken as it is."""
    links = export.links
    if links and links[0]["commit_no"] == links[0]["seq"] == 1:
        yield from _check_link("0" * 64, links[0])
    elif links and links[0]["of_whole_day"]:
        yield f"the chain begins at link {links[0]['seq']} of {links[0]['day']}: what was before it was removed"
    for before, link in pairwise(links):
        if not link["of_whole_day"]:
            continue
        due = before["seq"] + 1 if before["day"] == link["day"] else 1
        if link["seq"] != due:
            yield f"the chain of {link['day']} has link {link['seq']} where {due} is due: links were removed"
        yield from _check_link(before["hash"], link)


def _check_link(previous: str, link: Row) -> Iterator[str]:
    text = f"{previous} {link['day']} {link['seq']} {link['commit_no']} {link['content_sha256']}"
    if sha256(text) != link["hash"]:
        yield f"the chain breaks at link {link['seq']} of {link['day']}: it does not follow from the link before it"


def expected(export: Export, said: Row) -> Row | None:
    """Work out what a certificate has to say; None where there is nothing that it could be of."""
    return expected_posting(export, str(said["posting"])) if "posting" in said else expected_refunds(export, said)


def expected_posting(export: Export, seq: str) -> Row | None:
    """Work out what the certificate of a posting has to say; None where there is no such posting."""
    posting = export.rows["day_postings"].get(record([export.day, seq]))
    entry = export.entry_of(seq)
    link = next((link for link in export.links if entry and link["entry_id"] == entry["entry_id"]), None)
    if posting is None or entry is None or link is None:
        return None
    matches = export.of("match_postings", day_seq=seq, match_day=export.day)
    journals = _journals(export, link["commit_no"])
    journals = {key: row for key, row in journals.items() if row["run_id"] == posting["run_id"]}
    return {
        "posting": int(seq),
        "posted_at": posting["posted_at"],
        "run_id": posting["run_id"],
        "code_version": posting["code_version"],
        "input_hashes": json.loads(posting["input_hashes"]),
        "matches_accepted": int(posting["matches"]),
        "matches_posted": len(matches),
        "matches_left_alone": len(export.of("posting_breaks", seq=seq)),
        "shares": int(posting["shares"]),
        "schedules": _schedules(matches),
    } | _of_commit(export, link["commit_no"], journals)


def expected_refunds(export: Export, said: Row) -> Row | None:
    """Work out what the certificate of an acceptance of refunds has to say; None where its commit accepted none."""
    commit_no = said["chain"].get("commit_no")
    accepted = export.acceptances.get(commit_no)
    if not accepted:
        return None
    refunds = list(accepted.values())
    stamp = {name: min(row[name] for row in refunds) for name in ("run_id", "code_version")}
    journals = {key: row for key, row in _journals(export, commit_no).items() if row["refund_id"] in accepted}
    of = {(row["match_id"], row["posting_no"]) for row in journals.values()}
    hashes = [row["input_hash"] for row in refunds if row["input_hash"]]
    return {
        # As text, instants of one zone are in order but for their fractions.
        "accepted_at": max((row["accepted_at"] for row in refunds), key=_instant),
        **stamp,
        "input_hashes": {REFUND_REQUESTS: min(hashes)} if hashes else {},
        "refunds": len(refunds),
        "refunds_sha256": sha256(bytes.fromhex("".join(export.digests["refunds"][key] for key in sorted(accepted)))),
        "schedules": _schedules(
            row for row in export.of("match_postings") if (row["match_id"], row["posting_no"]) in of
        ),
    } | _of_commit(export, commit_no, journals)


def _instant(written: str) -> tuple[str, str]:
    """Give what puts an instant of PostgreSQL's, in UTC, in order: its seconds, its fraction."""
    seconds, _, fraction = written.removesuffix("+00").partition(".")
    return seconds, fraction


def _journals(export: Export, commit_no: int) -> dict[str, Row]:
    """Give the journals that the transaction of a commit made."""
    entries = {entry["entry_id"]: entry for entry in export.entries}
    made = {
        entries[link["entry_id"]]["transaction_id"]
        for link in export.links
        if link["commit_no"] == commit_no and link["entry_id"] in entries
    }
    return {key: row for key, row in export.rows["journals"].items() if row["created_xid"] in made}


def _schedules(matches: Iterable[Row]) -> list[Row]:
    counted = Counter((row["competition_id"], row["schedule_version"], row["rules_hash"]) for row in matches)
    return [
        {"competition_id": competition, "version": version, "rules_hash": rules, "matches": count}
        for (competition, version, rules), count in sorted(counted.items())
    ]


def _of_commit(export: Export, commit_no: int, journals: dict[str, Row]) -> Row:
    """Work out what every certificate says of its commit."""
    head = [link for link in export.links if link["commit_no"] == commit_no][-1]
    lines = {key: row for key, row in export.rows["ledger_entries"].items() if row["journal_id"] in journals}
    totals: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in lines.values():
        total = totals[row["kind"], row["pot"], row["currency"]]
        for place, amount in enumerate((1, int(row["debit_minor"]), int(row["credit_minor"]))):
            total[place] += amount
    digests = "".join(export.digests["ledger_entries"][key] for key in sorted(lines))
    return {
        "version": VERSION,
        "day": export.day,
        "entries": len(lines),
        "entries_sha256": sha256(bytes.fromhex(digests)),
        "totals": [
            {"kind": kind, "pot": pot, "currency": currency, "entries": n, "debit_minor": debit, "credit_minor": credit}
            for (kind, pot, currency), (n, debit, credit) in sorted(totals.items())
        ],
        "chain": {name: head[name] for name in ("day", "seq", "commit_no", "hash")},
    }


def subject(said: Row) -> str:
    """Give the beginning of a certificate's name."""
    return f"{said['posting']:04d}" if "posting" in said else f"refunds-{said['chain']['commit_no']:06d}"


def check_certificate(name: str, data: bytes, export: Export) -> Iterator[str]:
    """Hold one certificate against its own name, the tables and the chain."""
    said = parsed(data)
    if said is None:
        yield "it is no certificate that this program knows"
        return
    due_name = f"{subject(said)}-{sha256(data)[:16]}.json"
    if name != due_name:
        yield f"its content gives it the name {due_name}: one of them was changed"
    if said["day"] != export.day:
        yield f"it is of {said['day']}, and the rows are of {export.day}"
        return
    head = said["chain"]
    if not any({name: link[name] for name in ("day", "seq", "commit_no", "hash")} == head for link in export.links):
        yield f"the chain has no such link as its head, {json.dumps(head)}: the chain was cut off or written anew"
    due = expected(export, said)
    if due is None:
        what = f"posting {said['posting']}" if "posting" in said else f"refund accepted in commit {head['commit_no']}"
        yield f"there is no {what} of {export.day} in the tables and the audit trail"
        return
    for field in sorted(due.keys() | said.keys()):
        if due.get(field) != said.get(field):
            yield f"{field} is {json.dumps(said.get(field))}, and the tables give {json.dumps(due.get(field))}"


def parsed(data: bytes) -> Row | None:
    """Read a certificate; None where it is none, or of a version unknown."""
    try:
        said: Row = json.loads(data)
        number = said["posting"] if "posting" in said else said["chain"]["commit_no"]
        is_one = said["version"] == VERSION and isinstance(number, int) and isinstance(said["day"], str)
        return said if is_one and isinstance(said["chain"], dict) and isinstance(said["input_hashes"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def missing_certificates(export: Export, given: Iterable[Row]) -> Iterator[str]:
    """Name what posted something and has no certificate among those given."""
    subjects = set(map(subject, given))
    hashes_before = None
    for row in sorted(export.rows["day_postings"].values(), key=lambda row: int(row["seq"])):
        is_due = row["input_hashes"] != hashes_before or row["entries_posted"] != "0"
        hashes_before = row["input_hashes"]
        is_due |= bool(export.of("match_postings", day_seq=row["seq"]))
        if (
            is_due
            and row["seq"] not in export.before_the_trail
            and subject({"posting": int(row["seq"])}) not in subjects
        ):
            yield f"posting {row['seq']} of {export.day} has no certificate among those given"
    for commit_no in sorted(export.acceptances):
        if subject({"chain": {"commit_no": commit_no}}) not in subjects:
            yield f"refunds accepted in commit {commit_no}, of {export.day}, have no certificate among those given"


# Files ---------------------------------------------------------------------------------------------------------------


def landing_hash(landing: Path, dataset: str, day: str) -> str:
    """Hash a day's landing files as the pipeline does: over the names and the SHA-256 of each, by name."""
    folder = f"{dataset}/date={day}"
    pairs = sorted(
        # A name that is not UTF-8 is written with escapes.
        [os.fsencode(f"{folder}/{path.name}").decode("utf-8", "backslashreplace"), sha256(path.read_bytes())]
        for path in (landing / folder).glob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix[1:] in EXTENSIONS
    )
    return sha256(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")))


def reference_hash(reference: Path, table: str) -> str | None:
    """Hash a reference table: `parties` by id and type of its valid rows (None in Parquet), others by their bytes."""
    paths = [path for name in EXTENSIONS if (path := reference / f"{table}.{name}").is_file()]
    if len(paths) != 1:
        raise ValueError(f"there are {len(paths)} files of it")
    path = paths[0]
    if table != "parties":
        return sha256(path.read_bytes())
    if path.suffix == ".parquet":
        return None
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    ids = Counter(row.get("party_id") for row in rows)
    pairs = sorted(
        [row["party_id"], row["party_type"]]
        for row in rows
        if re.fullmatch(r"[A-Za-z0-9:._-]{1,128}", row.get("party_id") or "")
        and ids[row["party_id"]] == 1
        and row.get("party_type") in PARTY_TYPES
        and row.get("status") in PARTY_STATUSES
    )
    return sha256(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")))


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    header = [name.strip() for name in next(reader)]
    for fields in reader:
        if len(fields) == len(header):
            yield dict(zip(header, map(str.strip, fields), strict=True))


def _json_rows(path: Path) -> Iterator[dict[str, str]]:
    for line in path.read_bytes().decode("utf-8-sig").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield {name: value.strip() for name, value in row.items() if isinstance(value, str)}


def check_files(said: Row, landing: Path | None, reference: Path | None) -> Iterator[tuple[bool, str]]:
    """Compare the input that a certificate names with files; each comes with whether it is a fault, or a note."""
    for name, stated in sorted(said["input_hashes"].items()):
        root = reference if name in REFERENCE_TABLES else landing
        if root is None:
            yield False, f"{name} was not compared: no folder was given"
            continue
        try:
            found = landing_hash(root, name, said["day"]) if root is landing else reference_hash(root, name)
        except (OSError, ValueError) as error:
            yield True, f"{name} cannot be read below {root}: {error}"
            continue
        if found is None:
            yield False, f"{name} was not compared: the standard library reads no Parquet"
        elif found != stated and name == REFUND_REQUESTS:
            # Only what is accepted is posted: files of refused requests, or of none, come without a new certificate.
            yield False, f"{name} below {root} is not what was accepted from: it was changed or added to since"
        elif found != stated:
            yield (
                True,
                f"{name} below {root} is not what was posted: it gives {found[:16]}…, and {stated[:16]}… was posted",
            )


# Command -------------------------------------------------------------------------------------------------------------


def _cannot(words: str) -> NoReturn:
    sys.stderr.write(f"cannot check: {words}\n")
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> int:
    """Check, and say what was found; gives the exit code."""
    parser = argparse.ArgumentParser(description="Check the certificates of one day.")
    parser.add_argument("rows", type=Path, help="what psql wrote with check_certificate.sql")
    parser.add_argument("certificates", type=Path, nargs="+", help="every certificate of that day")
    parser.add_argument("--landing", type=Path, help="folder of the landing zone, to compare its files of the day")
    parser.add_argument("--reference", type=Path, help="folder of the reference data as it was when the day was posted")
    given = parser.parse_args(arguments)
    try:
        with given.rows.open(encoding="utf-8") as lines:
            export = Export(lines)
        certificates = {path: path.read_bytes() for path in given.certificates}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _cannot(f"{error}. Make {given.rows} with check_certificate.sql, and name certificates that there are.")
    faults = [*check_trail(export), *check_chain(export)]
    for path, data in certificates.items():
        faults += [f"{path}: {words}" for words in check_certificate(path.name, data, export)]
    read = [said for said in map(parsed, certificates.values()) if said and said["day"] == export.day]
    faults += missing_certificates(export, read)
    notes: list[str] = []
    # Files are as the newest of each kind found them: what older ones were computed from was replaced.
    postings = [said for said in read if "posting" in said]
    acceptances = [said for said in read if "posting" not in said and said["input_hashes"]]
    newest = [max(postings, key=lambda said: said["posting"])] if postings else []
    newest += [max(acceptances, key=lambda said: said["chain"]["commit_no"])] if acceptances else []
    for said in newest:
        for is_fault, words in check_files(said, given.landing, given.reference):
            (faults if is_fault else notes).append(words)
    for words in faults:
        sys.stdout.write(f"FAULT {words}\n")
    for words in notes:
        sys.stdout.write(f"note  {words}\n")
    sys.stdout.write(
        f"{'FAULT' if faults else 'ok'}: {len(given.certificates)} certificates of {export.day}, "
        f"{sum(map(len, export.rows.values()))} rows, {len(export.links)} links, {len(faults)} faults\n"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
