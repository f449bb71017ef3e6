"""A plain SQL file and a script of the standard library alone check a certificate against tables and files.

The commands are those of the docs, run by a shell, with the psql of the embedded Postgres and nothing of the package.
"""

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from money_zone import (
    DAY,
    NEXT,
    RUN,
    MoneyZone,
    fee,
    frame,
    match,
    matches_frame,
    participants_frame,
    share,
    shares_frame,
)
from psycopg import sql

from payments_pipeline.domain.reference_data import parse_reference
from payments_pipeline.domain.refund_requests import DATASET
from payments_pipeline.local.postgres import binaries
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.landing import hash_landing_day
from payments_pipeline.storage.ledger_entries import DayInput, post_day
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.reference import read_reference
from payments_pipeline.storage.refunds import accept_refunds
from payments_pipeline.verify.rules_audit import AUDITED

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = re.search(r"```bash\n(.*?)```", (ROOT / "docs/operating/checking.md").read_text("utf-8"), re.DOTALL)
SCRIPT = runpy.run_path(str(ROOT / "checker/check_certificate.py"))
PARTIES = '''\ufeffparty_id,party_type, name ,country,status,payout_token,collection_token
b, club ,"B, the ""second""",GB,active,t,
a,club,A,GB,closed,,
a2,player,twice,GB,active,,
a2,player,twice,GB,active,,
é,player,no id,GB,active,,
c,wizard,no type,GB,active,,
d,player,too,many,fields,GB,active,,
org,organiser,Org,GB,active,t,
'''

COMPETITIONS = "competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy\n"
SCHEDULES = "competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses\n"


@dataclass
class Checked:
    """One day posted from real files, and what the docs' commands say of it."""

    folder: Path
    url: str
    superuser_url: str

    def post(self, matches: list[dict[str, Any]], shares: list[dict[str, Any]]) -> None:
        landing = open_store(str(self.folder / "landing"))
        reference = parse_reference(read_reference(open_store(str(self.folder / "reference"))))
        hashes = {name: hash_landing_day(landing, name, DAY) for name in ("match_results", "match_participants")}
        hashes |= reference.input_hashes
        nobody = frame([], {"dataset": "", "outcome": "", "match_id": "", "reason": ""})
        read = DayInput(matches_frame(matches), participants_frame([]), shares_frame(shares), nobody, hashes)
        post_day(self.url, DAY, read, lambda: hashes, RUN)
        write_certificates(self.url, open_store(str(self.folder / "storage")), DAY)

    def refund(self, on: date = DAY, by_command: bool = False, **amounts: int) -> None:
        asked = {"match_id": "m1", "party_id": "c", "reason": "x", "source": "f"}
        requests = [asked | {"refund_id": refund_id, "amount_minor": minor} for refund_id, minor in amounts.items()]
        landed = self.folder / "landing/refund_requests" / f"date={on}"
        if not by_command:
            landed.mkdir(parents=True)
            (landed / "asked.jsonl").write_text(json.dumps(requests))
        read_from = None if by_command else hash_landing_day(open_store(str(self.folder / "landing")), DATASET, on)
        frame_of = pd.DataFrame(requests).astype({"amount_minor": "Int64"})
        accept_refunds(self.url, on, frame_of, "jane", RUN, read_from)
        write_certificates(self.url, open_store(str(self.folder / "storage")), on)

    def tamper(self, statements: str) -> None:
        with psycopg.connect(self.superuser_url, options="-c search_path=payments") as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statements.encode())

    @property
    def certificates(self) -> list[Path]:
        return sorted(self.folder.glob("storage/certificates/*/*.json"))

    def __call__(self, commands: str = "") -> tuple[int, list[str]]:
        """Run both commands; gives the exit code, and the lines that tell of faults or notes."""
        assert COMMANDS is not None
        places = {name.upper(): str(self.folder / name) for name in ("storage", "landing", "reference")}
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands or COMMANDS[1]],
            env=os.environ | places | {"DATABASE": self.url, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert not done.stderr, done.stderr
        *told, _ = done.stdout.splitlines()
        return done.returncode, told


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url) as connection:
        yield connection


@pytest.fixture
def day(database, tmp_path) -> Checked:
    """A day of two pots and currencies, posted, and corrected by a second file."""
    landed = tmp_path / "landing/match_results/date=2024-08-17"
    people = tmp_path / "landing/match_participants/date=2024-08-17"
    for folder in (landed, people, *(tmp_path / name for name in ("storage", "bin", "reference"))):
        folder.mkdir(parents=True)
    for name, text in (("parties", PARTIES), ("competitions", COMPETITIONS), ("fee_schedules", SCHEDULES)):
        (tmp_path / "reference" / f"{name}.csv").write_text(text, "utf-8")
    (tmp_path / "checker").symlink_to(ROOT / "checker")
    (tmp_path / "bin" / "psql").symlink_to(binaries() / "psql")
    # Isolated, without site-packages: the standard library alone.
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    (landed / "en.csv").write_text("match_id\nm1\n")
    (landed / ".hidden.csv").write_text("not input")
    (landed / "read me.txt").write_text("not input")
    (people / "en.jsonl").write_text("{}")
    checked = Checked(tmp_path, database.url, database.superuser_url)
    euros = match("m2", competition_id="c2", currency="EUR", revenue_minor=7)
    shares = [share("m1", "a", 600), share("m1", "b", 400, 2), *fee("m1", "c", {"a": 25})]
    also = share("m2", "a", 7, competition_id="c2", currency="EUR")
    MoneyZone(database.url).owe(day=NEXT, z=1)
    checked.post([match("m1"), euros], [*shares, also])
    (landed / "late.csv").write_text("match_id\nm1\n")
    checked.post([match("m1", 2), euros], [share("m1", "a", 700), share("m1", "b", 300, 2), *shares[2:], also])
    return checked


def test_a_day_as_it_was_posted_agrees_in_every_part(day):
    assert len(day.certificates) == 2
    assert day() == (0, [])


def test_every_audited_column_is_exported_in_the_order_in_which_it_is_hashed(day):
    day.refund(r1=20)
    assert day()[0] == 0
    rows = [json.loads(line) for line in (day.folder / "day.jsonl").read_text("utf-8").splitlines()]
    columns = {given["of"]: list(given["row"]) for given in rows if given["of"] in AUDITED}
    assert columns == {table: AUDITED[table][1].split(", ") for table in columns}
    assert columns.keys() == {"day_postings", "match_postings", "refunds", "journals", "ledger_entries"}


def test_a_day_posted_again_without_a_change_agrees(day):
    day.post([match("m1", 2)], [share("m1", "a", 700), share("m1", "b", 300, 2), *fee("m1", "c", {"a": 25})])
    day.post([match("m1", 2)], [share("m1", "a", 700), share("m1", "b", 300, 2), *fee("m1", "c", {"a": 25})])
    assert day() == (0, [])


def test_refunds_that_a_correction_changes_are_in_its_certificate_by_their_kind(day):
    day.refund(NEXT, r1=20, r2=5)
    assert day() == (0, []), "what is accepted beside a posting is none of its lines"
    day.post([match("m1", 3)], [share("m1", "a", 700), share("m1", "b", 300, 2), *fee("m1", "c", {"a": 10})])
    totals = json.loads(day.certificates[2].read_bytes())["totals"]
    assert [(total["kind"], total["pot"], total["credit_minor"]) for total in totals] == [
        ("accrual", "match_fee", 15),
        ("refund", "match_fee", 15),
    ]
    assert day() == (0, [])
    assert COMMANDS is not None
    code, lines = day(COMMANDS[1].replace(str(DAY), str(NEXT)).split(" --landing")[0])
    assert (code, [line for line in lines if "note" not in line]) == (0, []), "nor is the correction the acceptance's"
    day.tamper("UPDATE ledger_entries SET refund_id = 'r9' WHERE refund_id = 'r1' AND posting_no = 2")
    code, lines = day()
    assert code == 1
    assert any(re.match("FAULT ledger_entries .* was changed", line) for line in lines)


def test_what_refunds_posted_when_they_were_accepted_is_checked_too(day):
    day.refund(r1=20)
    day.refund(by_command=True, r2=3, r3=1)
    of_refunds = [json.loads(path.read_bytes()) for path in day.certificates[2:]]
    assert [(said["refunds"], said["entries"], len(said["input_hashes"])) for said in of_refunds] == [
        (1, 2, 1),
        (2, 4, 0),
    ]
    assert day() == (0, [])
    day.certificates[2].unlink()
    commit = of_refunds[0]["chain"]["commit_no"]
    assert day() == (1, [f"FAULT refunds accepted in commit {commit}, of {DAY}, have no certificate among those given"])


def test_what_was_committed_on_several_days_agrees_and_a_cut_between_them_is_told(day):
    """As if each commit had been of a UTC day of its own, with days between that the match day knows nothing of."""
    day.refund(NEXT, r1=5)
    day.post([match("m1", 3)], [share("m1", "a", 700), share("m1", "b", 300, 2), *fee("m1", "c", {"a": 10})])
    day.refund(NEXT, by_command=True, r2=1)
    day.refund(by_command=True, r3=1)
    with psycopg.connect(day.superuser_url, options="-c search_path=payments") as connection:
        connection.execute("SET session_replication_role = replica")
        links = connection.execute(
            """SELECT commit_no, entry_id, content_sha256 FROM audit_chain JOIN audit_entries USING (entry_id)
               ORDER BY commit_no, seq"""
        ).fetchall()
        connection.execute("DELETE FROM audit_chain")
        previous, seq, commit_before = "0" * 64, 0, 0
        for commit_no, entry_id, content in links:
            seq = seq + 1 if commit_no == commit_before else 1
            commit_before, on = commit_no, DAY + timedelta(commit_no)
            previous = hashlib.sha256(f"{previous} {on} {seq} {commit_no} {content}".encode()).hexdigest()
            connection.execute(
                "INSERT INTO audit_chain VALUES (%s, %s, %s, %s, %s)", (on, seq, entry_id, commit_no, previous)
            )
    for path in day.certificates:
        path.unlink()
    for of in (DAY, NEXT):
        write_certificates(day.url, open_store(str(day.folder / "storage")), of)
    assert COMMANDS is not None
    commands = [COMMANDS[1].replace(str(DAY), str(of)).split(" --landing")[0] for of in (DAY, NEXT)]
    assert [day(command)[0] for command in commands] == [0, 0]
    day.tamper("DELETE FROM audit_chain WHERE commit_no = 2")
    assert all(any("FAULT the chain" in line for line in day(command)[1]) for command in commands)


def test_request_files_added_since_are_noted_since_refused_requests_post_nothing(day):
    day.refund(r1=20)
    (day.folder / "landing/refund_requests/date=2024-08-17/late.csv").write_text("refund_id\n")
    code, [line] = day()
    assert (code, line.split(" below ")[0]) == (0, "note  refund_requests")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("UPDATE refunds SET reason = 'y' WHERE refund_id = 'r2'", "refunds r2 was changed"),
        ("UPDATE refunds SET input_hash = repeat('a', 64) WHERE refund_id = 'r1'", "input_hashes is"),
        ("UPDATE refunds SET accepted_day = '2024-08-19' WHERE refund_id = 'r2'", "refunds r2 was changed"),
        (
            "UPDATE refunds SET accepted_day = '2024-08-19' WHERE refund_id = 'r1'",
            "there is no refund accepted in",
        ),
        ("DELETE FROM refunds WHERE refund_id = 'r2'", "refunds r2 is missing"),
        ("DELETE FROM refunds WHERE refund_id = 'r1'", "refunds r1 is missing"),
        ("UPDATE ledger_entries SET recipient = 'y' WHERE refund_id = 'r3'", "entries_sha256 is"),
        ("UPDATE ledger_entries SET debit_minor = 2 WHERE refund_id = 'r3' AND debit_minor > 0", "totals is"),
        (
            "DELETE FROM ledger_entries WHERE refund_id = 'r3'; DELETE FROM journals WHERE refund_id = 'r3'",
            "ledger_entries .* is missing",
        ),
        (
            """INSERT INTO refunds SELECT 'r9', match_id, pot, pot_party_id, 4, currency, 1, 1, reason, requester,
               accepted_day, source, run_id, code_version FROM refunds WHERE refund_id = 'r1'""",
            "refunds r9 was inserted",
        ),
        ("DELETE FROM match_postings WHERE (match_id, posting_no) = ('m1', 2)", "schedules is"),
    ],
)
def test_a_fault_in_what_refunds_posted_is_told(day, fault, told):
    day.refund(r1=20)
    day.refund(by_command=True, r2=3, r3=1)
    assert day() == (0, [])
    day.tamper(fault)
    code, lines = day()
    assert code == 1
    assert any(re.match(f"FAULT .*{told}", line) for line in lines), lines


LINE = "(SELECT entry_id FROM ledger_entries WHERE kind = 'accrual' AND day = '2024-08-17' ORDER BY entry_id LIMIT 1)"
JOURNAL = "(SELECT journal_id FROM journals WHERE match_id = 'm2')"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (f"UPDATE ledger_entries SET recipient = 'y' WHERE entry_id = {LINE}", "ledger_entries .* was changed"),
        (f"UPDATE ledger_entries SET day = '2024-08-19' WHERE entry_id = {LINE}", "ledger_entries .* was changed"),
        (f"DELETE FROM ledger_entries WHERE entry_id = {LINE}", "ledger_entries .* is missing"),
        (
            f"""INSERT INTO ledger_entries SELECT gen_random_uuid(), journal_id, kind, day, account, party_id,
                currency, 1, 0, is_item, match_id, pot, pot_party_id, 9, recipient, schedule_version, 1
                FROM ledger_entries WHERE entry_id = {LINE}""",
            "ledger_entries .* was inserted",
        ),
        (
            "UPDATE match_postings SET schedule_version = 'v2' WHERE match_id = 'm1'",
            r"match_postings \(m1,2\) was changed",
        ),
        (
            "UPDATE match_postings SET is_open = false WHERE match_id = 'm2'",
            r"match_postings \(m2,1\) was changed",
        ),
        ("DELETE FROM match_postings WHERE match_id = 'm2'", r"match_postings \(m2,1\) is missing"),
        (
            "INSERT INTO posting_breaks VALUES ('2024-08-17', 1, 'm9', 'absent', 'never \"was\"')",
            r"posting_breaks \(2024-08-17,1,m9\) was inserted",
        ),
        ("UPDATE journals SET code_version = '2' WHERE match_id = 'm2'", "journals .* was changed"),
        ("UPDATE journals SET created_xid = '7' WHERE match_id = 'm2'", "entries is 7, and the tables give 5"),
        ("UPDATE day_postings SET shares = 4 WHERE seq = 1", r"day_postings \(2024-08-17,1\) was changed"),
        ("DELETE FROM day_postings WHERE match_day = '2024-08-17' AND seq = 2", "there is no posting 2 of 2024-08-17"),
        (
            "UPDATE audit_entries SET login = 'x' WHERE table_name = 'journals'",
            "audit entry .* of journals was changed",
        ),
        (
            "UPDATE audit_entries SET row_digests[1] = sha256('x') WHERE table_name = 'journals'",
            "audit entry .* of journals was changed",
        ),
        ("UPDATE audit_chain SET hash = repeat('b', 64) WHERE seq = 3", "the chain breaks at link 3 of"),
        ("DELETE FROM audit_chain WHERE seq = 2", "has link 3 where 2 is due"),
        ("DELETE FROM audit_chain WHERE seq <= 2", "what was before it was removed"),
        ("DELETE FROM audit_chain WHERE seq >= 9", "the chain was cut off or written anew"),
        ("DELETE FROM audit_chain WHERE seq = 5", "day_postings .* was inserted"),
    ],
)
def test_a_fault_in_the_tables_is_told(day, fault, told):
    day.tamper(fault)
    code, lines = day()
    assert code == 1
    assert any(re.match(f"FAULT .*{told}", line) for line in lines), lines


def test_a_changed_line_is_told_by_table_and_key_and_by_its_certificate(day):
    [(key,)] = MoneyZone(day.url).rows(f"SELECT {LINE}::text")
    day.tamper(f"UPDATE ledger_entries SET line_no = 4 WHERE entry_id = '{key}'")
    _, lines = day()
    assert any(line.startswith(f"FAULT ledger_entries {key} was changed: audit entry ") for line in lines)
    assert any(re.search("json: entries_sha256 is .*, and the tables give ", line) for line in lines)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda folder: (folder / "match_results/date=2024-08-17/en.csv").write_text("match_id\nm1 \n"),
            "match_results",
        ),
        (lambda folder: (folder / "match_results/date=2024-08-17/late.csv").unlink(), "match_results"),
        (lambda folder: (folder / "match_results/date=2024-08-17/more.csv").write_text("match_id\n"), "match_results"),
        (lambda folder: shutil.rmtree(folder / "match_participants"), "match_participants"),
    ],
)
def test_a_landing_file_changed_missing_or_added_is_told(day, change: Callable[[Path], object], told):
    change(day.folder / "landing")
    code, lines = day()
    assert code == 1
    assert [line.split(" below ")[0] for line in lines] == [f"FAULT {told}"]


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("parties", "b, club ", "b, player ", ["parties"]),
        ("parties", "org,organiser", "org2,organiser", ["parties"]),
        ("parties", "GB,closed,,", "FR,active,t9,", []),
        ("competitions", "name", "Name", ["competitions"]),
        ("fee_schedules", "\n", "\n\n", ["fee_schedules"]),
    ],
)
def test_reference_data_is_compared_as_far_as_it_bears_on_shares(day, name, before, after, told):
    path = day.folder / "reference" / f"{name}.csv"
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after), "utf-8")
    code, lines = day()
    assert (code, [line.split(" below ")[0] for line in lines]) == (len(told), [f"FAULT {table}" for table in told])


def forged(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads(path.read_bytes())
    change(said)
    data = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    path.unlink()
    subject = f"{said['posting']:04d}" if "posting" in said else path.name.rpartition("-")[0]
    path.with_name(f"{subject}-{hashlib.sha256(data).hexdigest()[:16]}.json").write_bytes(data)


@pytest.mark.rule("always/checked-without-us")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said["totals"][0].update(debit_minor=26), "totals is"),
        (lambda said: said["input_hashes"].update(parties="0" * 64), "input_hashes is"),
        (lambda said: said["chain"].update(hash="0" * 64), "the chain has no such link as its head"),
        (lambda said: said["chain"].update(seq=7), "the chain has no such link as its head"),
        (lambda said: said.update(note="as agreed"), "note is"),
        (lambda said: said.pop("schedules"), "schedules is null"),
        (lambda said: said.update(posting=3), "there is no posting 3 of 2024-08-17"),
        (lambda said: said.update(day="2024-08-18"), "it is of 2024-08-18, and the rows are of 2024-08-17"),
        (lambda said: said.update(version=2), "it is no certificate that this program knows"),
    ],
)
def test_a_forged_certificate_is_told(day, change, told):
    forged(day.certificates[0], change)
    code, lines = day()
    assert code == 1
    assert any(re.match(f"FAULT .*json: {told}", line) for line in lines), lines


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said["totals"][0].update(debit_minor=26), "totals is"),
        (lambda said: said["input_hashes"].update(refund_requests="0" * 64), "input_hashes is"),
        (lambda said: said["chain"].update(hash="0" * 64), "the chain has no such link as its head"),
        (lambda said: said.update(refunds=2), "refunds is"),
        (lambda said: said.update(refunds_sha256="0" * 64), "refunds_sha256 is"),
        (lambda said: said.update(accepted_at="2024-08-17 00:00:00+00"), "accepted_at is"),
        (lambda said: said["schedules"].clear(), "schedules is"),
    ],
)
def test_a_forged_certificate_of_refunds_is_told(day, change, told):
    day.refund(r1=20)
    forged(day.certificates[2], change)
    code, lines = day()
    assert code == 1
    assert any(re.match(f"FAULT .*json: {told}", line) for line in lines), lines


def test_rows_of_an_older_sql_cannot_be_checked(day):
    assert day()[0] == 0
    rows = (day.folder / "day.jsonl").read_text("utf-8")
    (day.folder / "day.jsonl").write_text(re.sub(r', ?"of_whole_day" ?: ?(true|false)', "", rows), "utf-8")
    code, lines = day(f"python3 checker/check_certificate.py day.jsonl {day.certificates[0]} 2>&1; exit $?")
    assert (code, lines) == (2, [])


def test_refunds_whose_rows_are_gone_with_their_certificate_are_told_on_every_day(day):
    day.refund(NEXT, r1=20)
    day.certificates[-1].unlink()
    day.tamper(
        """DELETE FROM ledger_entries WHERE refund_id = 'r1'; DELETE FROM journals WHERE refund_id = 'r1';
           DELETE FROM refunds"""
    )
    assert "FAULT refunds r1 is missing" in " ".join(day()[1])


def test_a_certificate_changed_under_its_name_is_told(day):
    path = day.certificates[0]
    path.write_bytes(path.read_bytes().replace(b'"GBP"', b'"EUR"'))
    assert any("one of them was changed" in line for line in day()[1])


def test_a_certificate_that_is_missing_is_told(day):
    day.certificates[0].unlink()
    assert day() == (1, ["FAULT posting 1 of 2024-08-17 has no certificate among those given"])


def test_without_folders_the_files_are_left_out_and_said_to_be(day):
    assert COMMANDS is not None
    code, lines = day(COMMANDS[1].split(" --landing")[0])
    assert code == 0
    assert [line.split(" was ")[0] for line in lines] == [
        f"note  {name}" for name in ("competitions", "fee_schedules", "match_participants", "match_results", "parties")
    ]


def test_rows_that_are_none_cannot_be_checked(day):
    (day.folder / "day.jsonl").write_text("nothing")
    command = f"python3 checker/check_certificate.py day.jsonl {day.certificates[0]} 2>&1 || echo; exit $?"
    done = subprocess.run(["bash", "-c", command], cwd=day.folder, capture_output=True, text=True)
    assert "cannot check: " in done.stdout


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([None, "", " ", "a\u00a0b", "\u2003", "\x1c\x0b", '"', "\\", "(),", "NULL", None])
@example(["x,)", None, None])
def test_a_row_is_written_and_hashed_as_postgres_does(connection, values):
    columns = sql.SQL(", ").join([sql.SQL("%s::text")] * len(values))
    query = sql.SQL(
        """SELECT ROW({0})::text, to_json(%s::text[])::text,
                  encode(substring(sha256(rtrim(convert_to(ROW({0})::text, 'UTF8'), ',)'::bytea)) FOR 16), 'hex')"""
    ).format(columns)
    written, keys, digest = connection.execute(query, [*values, values, *values]).fetchone()
    assert SCRIPT["record"](values) == written
    assert SCRIPT["digest"](values) == digest
    assert json.dumps(values, ensure_ascii=False, separators=(",", ":")) == keys


@pytest.mark.rule("always/checked-without-us")
def test_the_script_imports_the_standard_library_alone():
    text = (ROOT / "checker/check_certificate.py").read_text("utf-8")
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported <= sys.stdlib_module_names
