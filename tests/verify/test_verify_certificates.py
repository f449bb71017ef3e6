"""Certificates pin what was posted, and the chain, from outside the database."""

import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from verify_results import broken, results
from verify_world import FIRST, World, match, share

from payments_pipeline import verify
from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import ObjectStore
from payments_pipeline.verify import rules_audit
from payments_pipeline.verify.rules_certificates import CERTIFICATES, certificate_keys

THIRD = date(2024, 8, 25)
CHAIN, ROWS, _ = rules_audit.RULES


def certificates(settings: Settings) -> list[Path]:
    return sorted(Path(settings.storage).glob("certificates/*/*.json"))


def forge(path: Path, change: Callable[[dict[str, Any]], None], rename: bool = True) -> Path:
    """Change what a certificate says; by default under the name that its new content has."""
    said = json.loads(path.read_bytes())
    change(said)
    data = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    path.unlink()
    digest = hashlib.sha256(data).hexdigest()[:16]
    forged = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.json") if rename else path
    forged.write_bytes(data)
    return forged


def test_every_posting_of_the_world_has_one(world: World) -> None:
    assert [path.parent.name + "/" + path.name[:4] for path in certificates(world.settings)] == [
        "date=2024-08-17/0001",
        "date=2024-08-17/0002",
        "date=2024-08-18/0001",
        "date=2024-08-19/refu",
        "date=2024-08-19/refu",
    ]
    assert results(world)[CERTIFICATES].checked == 5


def more_revenue(said: dict[str, Any]) -> None:
    [total] = [each for each in said["totals"] if each["pot"] == "revenue"]
    total["debit_minor"] += 1
    total["credit_minor"] += 1


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "totals": more_revenue,
    "input_hashes": lambda said: said["input_hashes"].update(match_results="another"),
    "schedules": lambda said: said["schedules"][0].update(version="v9"),
    "entries_sha256": lambda said: said.update(entries_sha256="0" * 64),
    "entries": lambda said: said.update(entries=1),
    "run_id": lambda said: said.update(run_id="another"),
    "posted_at": lambda said: said.update(posted_at="2024-08-17 00:00:00+00"),
    "note": lambda said: said.update(note="as agreed"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_certificate_is_found_by_what_it_says(world: World, name: str) -> None:
    path = forge(certificates(world.settings)[0], FORGED[name])
    assert broken(world).keys() == {CERTIFICATES}
    [words] = broken(world)[CERTIFICATES]
    assert words.startswith(f"certificates/date=2024-08-17/{path.name}: {name} is ")


FORGED_REFUNDS: dict[str, Callable[[dict[str, Any]], None]] = {
    name: FORGED[name] for name in ("schedules", "entries_sha256", "entries", "run_id", "note")
} | {
    "totals": lambda said: said["totals"][0].update(debit_minor=1),
    "input_hashes": lambda said: said["input_hashes"].update(refund_requests="another"),
    "refunds": lambda said: said.update(refunds=2),
    "refunds_sha256": lambda said: said.update(refunds_sha256="0" * 64),
    "accepted_at": lambda said: said.update(accepted_at="2024-08-25 00:00:00+00"),
}


@pytest.mark.parametrize("name", FORGED_REFUNDS)
def test_a_forged_certificate_of_refunds_is_found_by_what_it_says(world: World, name: str) -> None:
    path = forge(certificates(world.settings)[3], FORGED_REFUNDS[name])
    assert broken(world).keys() == {CERTIFICATES}
    [words] = broken(world)[CERTIFICATES]
    assert words.startswith(f"certificates/date=2024-08-19/{path.name}: {name} is ")


def test_refunds_whose_certificate_is_gone_are_told_and_the_day_s_next_run_writes_it(world: World) -> None:
    gone = certificates(world.settings)[4]
    commit = json.loads(gone.read_bytes())["chain"]["commit_no"]
    gone.unlink()
    [words] = broken(world)[CERTIFICATES]
    accepted = f"what of refunds was accepted for 2024-08-19 in commit {commit}"
    assert words == f"{accepted} has no certificate: run the day, or give the refund command again, which writes it"


def test_a_changed_refund_is_told_by_its_certificate_as_well(world: World) -> None:
    world.tamper("UPDATE refunds SET reason = 'asked by a friend' WHERE refund_id = 'r1'")
    assert {ROWS, CERTIFICATES} <= broken(world).keys()
    [words] = broken(world)[CERTIFICATES]
    assert "date=2024-08-19/refunds-" in words
    assert ": refunds_sha256 is " in words


def test_a_certificate_changed_under_its_name_is_found_by_it(world: World) -> None:
    path = forge(certificates(world.settings)[0], more_revenue, rename=False)
    found = broken(world)[CERTIFICATES]
    assert f"{path.name} is not as it was written" in found[0]
    assert found[1:] == (), "the posting has one, such as it is"


UNNUMBERED = [
    f'{{"day": "2024-08-17", "posting": {number}, "chain": {{"day": "x", "seq": 1, "hash": "x"}}}}'.encode()
    for number in ("1e999", '"3"', "3.0", "true", "null")
]


@pytest.mark.parametrize("data", [b"", b"{}", b"no JSON", b"[1]", b'{"day": "x"}', b"\xff", *UNNUMBERED])
def test_what_is_no_certificate_is_told_and_stops_nothing(world: World, data: bytes) -> None:
    certificates(world.settings)[0].with_name("0003-0000000000000000.json").write_bytes(data)
    [words] = broken(world)[CERTIFICATES]
    assert "0003-0000000000000000.json is not as it was written" in words


def test_a_posting_whose_certificate_is_gone_is_told_and_running_the_day_writes_it(world: World) -> None:
    gone = certificates(world.settings)[0]
    data = gone.read_bytes()
    gone.unlink()
    assert broken(world)[CERTIFICATES] == ("posting 1 of 2024-08-17 has no certificate: run the day, which writes it",)
    world.post(FIRST, [match("m1", FIRST, 1, revision=2)], [share("m1", 1, "each_referee", "ref", 1)])
    assert gone.read_bytes() == data


def test_a_posting_made_while_verify_looks_is_no_breach(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing the certificates and the moment that the tables are seen at."""

    def listed(store: ObjectStore) -> list[str]:
        keys = certificate_keys(store)
        monkeypatch.undo()
        world.post(THIRD, [match("m3", THIRD, 500)], [share("m3", 1, "each_referee", "ref", 500)])
        return keys

    monkeypatch.setattr(verify, "certificate_keys", listed)
    assert broken(world) == {}
    assert results(world)[CERTIFICATES].checked == 6


def test_a_second_certificate_of_a_posting_is_told(world: World) -> None:
    path = certificates(world.settings)[0]
    data = path.read_bytes()
    forge(path, more_revenue)
    path.write_bytes(data)
    assert any("one is forged" in words or "totals is" in words for words in broken(world)[CERTIFICATES])


def test_a_changed_line_is_told_by_the_certificate_as_well(world: World) -> None:
    world.tamper(
        "UPDATE ledger_entries SET schedule_version = 'v2' WHERE kind = 'accrual' AND match_id = 'm2' AND is_item"
    )
    assert {ROWS, CERTIFICATES} <= broken(world).keys()
    [words] = broken(world)[CERTIFICATES]
    assert "date=2024-08-18/0001-" in words
    assert ": entries_sha256 is " in words


def test_a_trail_whose_end_was_cut_off_with_what_it_recorded_is_told_by_the_certificate(world: World) -> None:
    """Everything that the last posting and whatever came after it wrote is gone, without a trace in the database."""
    last = json.loads(certificates(world.settings)[2].read_bytes())["chain"]["commit_no"]
    tables = "\n".join(
        f"""DELETE FROM {table} WHERE {f"ROW({key})" if "," in key else key}::text IN (
                SELECT unnest(row_keys) FROM audit_entries JOIN audit_chain USING (entry_id)
                WHERE table_name = '{table}' AND commit_no >= {last});"""
        for table, (key, _) in rules_audit.AUDITED.items()
    )
    world.tamper(
        f"""{tables}
            DELETE FROM audit_entries WHERE entry_id IN (SELECT entry_id FROM audit_chain WHERE commit_no >= {last});
            DELETE FROM audit_chain WHERE commit_no >= {last}"""
    )
    found = broken(world)
    assert not found.keys() & {CHAIN, ROWS}, "a chain without its end is a chain"
    assert any("its end was cut off" in words for words in found[CERTIFICATES])
    assert any("is not there, or changed nothing" in words for words in found[CERTIFICATES])


def test_a_trail_written_anew_over_changed_rows_is_told_by_the_certificate(world: World) -> None:
    again = "\n".join(
        f"SELECT payments.audit('{table}', '{key}', '{columns}');"
        for table, (key, columns) in rules_audit.AUDITED.items()
    )
    world.tamper(
        f"""UPDATE report_lines SET note = 'checked by hand';
            DELETE FROM audit_chain; DELETE FROM audit_entries;
            DROP TRIGGER audit_entries_kept ON audit_entries;
            DROP TRIGGER audit_chain_kept ON audit_chain;
            SET session_replication_role = origin;
            {again}"""
    )
    found = broken(world)
    assert not found.keys() & {CHAIN, ROWS}, "the trail itself is whole"
    assert len([words for words in found[CERTIFICATES] if "written anew" in words]) == 5


def test_postings_from_before_the_trail_are_left_out_and_said_to_be(world: World) -> None:
    for path in certificates(world.settings):
        path.unlink()
    world.tamper("UPDATE audit_entries SET by_migration = true")
    found = results(world)[CERTIFICATES]
    assert found.ok
    assert found.left_out == ("3 postings from before there was an audit trail: they have no certificate",)
