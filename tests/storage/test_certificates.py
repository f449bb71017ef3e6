"""Each posting writes a small JSON under a new name, once, and a run that died before leaves it to the next."""

import hashlib
import json
from datetime import date
from pathlib import Path

import psycopg
import pytest
from money_zone import DAY, NEXT, RUN, MoneyZone, fee, match, share
from refunding import frame, request

from payments_pipeline.domain.errors import ConflictError
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.objects import LocalStore, StorageUnavailableError, open_store
from payments_pipeline.storage.refunds import accept_refunds


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    root = tmp_path / "storage"
    root.mkdir()
    return LocalStore(root)


def stored(store: LocalStore) -> dict[str, dict]:
    return {found.key: json.loads(store.read(found.key)) for found in store.list("certificates/")}


def posted(database_url: str) -> MoneyZone:
    zone = MoneyZone(database_url)
    shares = [share("m1", "a", 600), share("m1", "b", 400, 2), *fee("m1", "c", {"a": 25})]
    zone.post([match("m1"), match("m2", competition_id="c2", currency="EUR", revenue_minor=7)], [
        *shares, share("m2", "a", 7, competition_id="c2", currency="EUR"),
    ])  # fmt: skip
    return zone


@pytest.mark.rule("always/certificate")
def test_a_certificate_says_input_schedules_totals_per_pot_and_currency_and_the_head(database_url, store):
    zone = posted(database_url)
    [address] = write_certificates(database_url, store, DAY)
    [(key, said)] = stored(store).items()
    assert Path(address) == store.root / key
    data = store.read(key)
    assert key == f"certificates/date={DAY}/0001-{hashlib.sha256(data).hexdigest()[:16]}.json"
    assert data == json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    head, digests = zone.rows(
        """SELECT json_build_object('day', c.day, 'seq', c.seq, 'commit_no', c.commit_no, 'hash', c.hash), e.row_digests
           FROM audit_chain c JOIN audit_entries e USING (entry_id) ORDER BY c.seq DESC LIMIT 1"""
    )[0]
    keys = [
        str(row[0])
        for row in zone.rows("SELECT unnest(row_keys) FROM audit_entries WHERE table_name = 'ledger_entries'")
    ]
    in_order = b"".join(digest for _, digest in sorted(zip(keys, digests, strict=True)))
    fees, revenue, euros = (
        {"kind": "accrual", "pot": pot, "currency": currency, "entries": n, "debit_minor": minor, "credit_minor": minor}
        for pot, currency, n, minor in (
            ("match_fee", "GBP", 2, 25),
            ("revenue", "GBP", 3, 1000),
            ("revenue", "EUR", 2, 7),
        )
    )
    assert said == {
        "version": 1,
        "day": str(DAY),
        "posting": 1,
        "posted_at": zone.value("SELECT posted_at::text FROM day_postings"),
        "run_id": "run",
        "code_version": "1",
        "input_hashes": {"landing": "1"},
        "matches_accepted": 2,
        "matches_posted": 2,
        "matches_left_alone": 0,
        "shares": 5,
        "schedules": [
            {"competition_id": competition, "version": "v1", "rules_hash": "rules", "matches": 1}
            for competition in ("c1", "c2")
        ],
        "entries": 7,
        "entries_sha256": hashlib.sha256(in_order).hexdigest(),
        "totals": [fees, euros, revenue],
        "chain": head,
    }


def test_a_posting_that_changed_nothing_writes_none(database_url, store):
    zone = posted(database_url)
    write_certificates(database_url, store, DAY)
    before = stored(store)
    posted(database_url)
    assert zone.value("SELECT max(seq) FROM day_postings") == 2
    assert write_certificates(database_url, store, DAY) == []
    assert stored(store) == before


def test_a_correction_has_a_certificate_of_its_own(database_url, store):
    zone = MoneyZone(database_url)
    zone.owe(a=600)
    zone.owe(revision=2, a=500)
    zone.owe(day=NEXT, a=1)
    assert len(write_certificates(database_url, store, DAY)) == 2
    first, second = stored(store).values()
    assert (first["posting"], second["posting"]) == (1, 2)
    assert [total["credit_minor"] for total in first["totals"] + second["totals"]] == [600, 100]
    assert first["chain"]["seq"] < second["chain"]["seq"]


def test_a_day_without_matches_has_one_too(database_url, store):
    MoneyZone(database_url).post([], [])
    [said] = [stored(store) for _ in write_certificates(database_url, store, DAY)]
    assert [(each["entries"], each["totals"]) for each in said.values()] == [(0, [])]
    assert [each["entries_sha256"] for each in said.values()] == [hashlib.sha256(b"").hexdigest()]


@pytest.mark.rule("always/certificate")
def test_what_accepts_refunds_has_one_that_says_what_they_posted_and_from_what(database_url, store):
    zone = posted(database_url)
    head_before = zone.value("SELECT max(commit_no) FROM audit_chain")
    requests = frame(request("r1", 20, "c", "m1"), request("r2", 5, "c", "m1"))
    accept_refunds(database_url, NEXT, requests, "jane", RUN, "a" * 64)
    zone.owe(day=NEXT, a=1)
    [own, _] = sorted(stored_of(database_url, store, NEXT), key=lambda said: "posting" in said)
    assert {name: own[name] for name in own.keys() - {"chain", "entries_sha256", "refunds_sha256"}} == {
        "version": 1,
        "day": str(NEXT),
        "accepted_at": zone.value("SELECT max(accepted_at)::text FROM refunds"),
        "run_id": "run",
        "code_version": "1",
        "input_hashes": {"refund_requests": "a" * 64},
        "refunds": 2,
        "schedules": [{"competition_id": "c1", "version": "v1", "rules_hash": "rules", "matches": 1}],
        "entries": 4,
        "totals": [
            {
                "kind": "refund",
                "pot": "match_fee",
                "currency": "GBP",
                "entries": 4,
                "debit_minor": 25,
                "credit_minor": 25,
            }
        ],
    }
    chain = zone.rows("SELECT day::text, seq, commit_no, hash FROM audit_chain ORDER BY day, seq")
    of_commit = [link for link in chain if link[2] == head_before + 1]
    assert tuple(own["chain"][name] for name in ("day", "seq", "commit_no", "hash")) == of_commit[-1]
    for table in ("refunds", "ledger_entries"):
        digests = zone.rows(
            f"""SELECT digest FROM audit_entries JOIN audit_chain USING (entry_id),
                unnest(row_keys, row_digests) l (key, digest)
                WHERE table_name = '{table}' AND commit_no = {head_before + 1} ORDER BY key COLLATE "C" """
        )
        said = own["refunds_sha256" if table == "refunds" else "entries_sha256"]
        assert said == hashlib.sha256(b"".join(digest for (digest,) in digests)).hexdigest()
    assert list(stored(store))[-1].startswith(f"certificates/date={NEXT}/refunds-{head_before + 1:06d}-")


def test_each_acceptance_has_its_own_and_what_is_refused_or_known_before_none(database_url, store):
    posted(database_url)
    for requests in ([("r1", 20)], [("r1", 20), ("r2", 3)], [("r1", 20), ("r3", 99)]):
        asked = frame(*(request(refund_id, minor, "c", "m1") for refund_id, minor in requests))
        accept_refunds(database_url, NEXT, asked, "jane", RUN)
    first, second = stored_of(database_url, store, NEXT)
    assert [said["totals"][0]["credit_minor"] for said in (first, second)] == [20, 3]
    assert [said["input_hashes"] for said in (first, second)] == [{}, {}], "asked for by command"
    assert write_certificates(database_url, store, NEXT) == []


def stored_of(database_url: str, store: LocalStore, day: date) -> list[dict]:
    write_certificates(database_url, store, day)
    return [said for said in stored(store).values() if said["day"] == str(day)]


class Full(LocalStore):
    def write_new(self, key: str, data: bytes) -> None:
        raise StorageUnavailableError("full")


def test_what_a_run_that_died_left_out_the_next_run_of_the_day_writes_the_same_bytes(database_url, store, tmp_path):
    zone = posted(database_url)
    in_time = LocalStore(tmp_path)
    write_certificates(database_url, in_time, DAY)
    with pytest.raises(StorageUnavailableError):
        write_certificates(database_url, Full(store.root), DAY)
    zone.owe(day=NEXT, a=1)
    posted(database_url)
    write_certificates(database_url, store, DAY)
    assert {key: store.read(key) for key in stored(store)} == {key: in_time.read(key) for key in stored(in_time)}


@pytest.mark.rule("always/certificate")
def test_a_certificate_is_never_replaced(database_url, store):
    posted(database_url)
    [address] = write_certificates(database_url, store, DAY)
    Path(address).write_text("{}")
    assert write_certificates(database_url, store, DAY) == [], "verify tells of it"
    assert Path(address).read_text() == "{}"


def test_it_is_written_to_a_bucket_as_to_a_folder(database_url, bucket):
    posted(database_url)
    store = open_store(f"s3://{bucket}/assets")
    [address] = write_certificates(database_url, store, DAY)
    assert address.startswith(f"s3://{bucket}/assets/certificates/date={DAY}/0001-")
    assert write_certificates(database_url, store, DAY) == []
    [found] = store.list("certificates/")
    with pytest.raises(ConflictError):
        store.write_new(found.key, b"other")


def test_what_was_posted_before_there_was_an_audit_trail_has_none(database_url, database, store):
    posted(database_url)
    with psycopg.connect(database.superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE payments.audit_entries SET by_migration = true")
    assert write_certificates(database_url, store, DAY) == []
