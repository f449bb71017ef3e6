"""A small world with a bit of everything, built by the pipeline's own stores; amounts are worked out by hand.

Two match days. On the first: a correction before sending, then payouts that are settled, overpaid, paid short, failed,
returned, refused, and one whose answer was lost. On the second: what is free again is swept once more and waits. On the
third, half of a match fee is refunded in two parts. `build_on` adds what is rare, so that no table and no column of the
audit trail is empty.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg

from payments_pipeline.domain import schemas
from payments_pipeline.domain.alerts import Alert, AlertKind, alert_id
from payments_pipeline.domain.errors import PayoutOutcomeUnknownError, PayoutRejectedError
from payments_pipeline.domain.proposals import Match, WriteOff
from payments_pipeline.domain.schemas import TableSchema
from payments_pipeline.processors.base import Acknowledgement, Capabilities, LookUp, LookUpStatus, PayoutRequest
from payments_pipeline.processors.dispatch import Dispatch
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage import alerts, approvals
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.ledger_entries import DayInput, post_day
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.parquet import encode, partition_key
from payments_pipeline.storage.payout_instructions import sweep_day_items
from payments_pipeline.storage.postgres import RunInfo, connect
from payments_pipeline.storage.reconciliation import reconcile_day
from payments_pipeline.storage.refunds import accept_refunds
from payments_pipeline.storage.settlement_records import take_report_in
from payments_pipeline.storage.table_declarations import Table
from payments_pipeline.storage.tables import WriteMode, write_rows

FIRST, SECOND, THIRD, FOURTH = (date(2024, 8, day) for day in (17, 18, 19, 20))
RUN = RunInfo("run", "0.1.0", "scheduler")
NOBODY = pd.DataFrame({"dataset": [], "outcome": [], "match_id": [], "reason": []}, dtype=object)
COMPETITIONS = (
    "competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy\nC,Cup,org,fed,,GBP,\n"
)
PARTIES = """party_id,party_type,name,country,status,payout_token,collection_token,token_changed_by
A,club,A,GB,active,tok_A,,
B,club,B,GB,active,tok_B,,joe
fed,federation,Fed,GB,active,tok_fed,,
org,organiser,Org,GB,active,tok_org,,
p1,player,One,GB,active,tok_p1,col_p1,
ref,referee,Ref,GB,active,tok_ref,,
"""
SCHEDULES = """competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
C,v1,2024-01-01,,1,revenue,each_referee,fixed,1000,,
C,v1,2024-01-01,,3,revenue,organiser,percent,1000,,
C,v1,2024-01-01,,4,revenue,federation,percent,500,400,
C,v1,2024-01-01,,5,revenue,home_club,remainder,2,,
C,v1,2024-01-01,,6,revenue,away_club,remainder,1,,
C,v1,2024-01-01,,7,match_fee,each_player,charge,300,,
C,v1,2024-01-01,,8,match_fee,own_club,remainder,1,,
"""
#: What the matches fall under, as docs/reference/verify.md spells it out.
RULES_HASH = hashlib.sha256(
    (
        '[["C","org","fed",null,"GBP","immediate"],["v1",['
        + ",".join(
            f'{{"line_no":{line_no},"pot":"{pot}","recipient":"{recipient}","method":"{method}","value":{value},'
            f'"cap_minor":{cap or "null"},"statuses":["completed","awarded"]}}'
            for line_no, pot, recipient, method, value, cap, _ in (
                line.split(",")[4:] for line in SCHEDULES.splitlines()[1:]
            )
        )
        + "]]]"
    ).encode()
).hexdigest()


STORED = (schemas.MATCH_RESULTS, schemas.MATCH_PARTICIPANTS, schemas.PARTICIPANT_SHARES, schemas.REJECTED_RECORDS)
REJECTED = {
    "dataset": "match_results",
    "outcome": "rejected",
    "line_number": 3,
    "match_id": "m9",
    "party_id": None,
    "reason": "unknown_club",
    "words": "no such club",
    "raw": "m9,…",
}


FOUND = LookUp(LookUpStatus.ACCEPTED, processor_reference="pay_found")
#: An answer about another request than ours: it stays unknown.
OF_ANOTHER = LookUp(LookUpStatus.REJECTED, code="account_closed", request_sha256="0" * 64)


@dataclass
class Answers:
    """A processor that does as it is told, by token."""

    found: LookUp
    name: str = "sandbox"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(timedelta(hours=24), 4, 1000, 1.0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def encode(self, request: PayoutRequest) -> bytes:
        return json.dumps(asdict(request), default=str).encode()

    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        if b"tok_ref" in body:
            raise PayoutRejectedError("no such account", code="account_closed")
        if b"tok_B" in body:
            raise PayoutOutcomeUnknownError("no answer")
        return Acknowledgement(f"pay_{idempotency_key}")

    async def look_up(self, _key: str) -> LookUp:
        return self.found


def share(match_id: str, line_no: int, recipient: str, party_id: str, amount: int, payer: str = "") -> dict[str, Any]:
    return {
        "match_id": match_id,
        "competition_id": "C",
        "pot": "match_fee" if payer else "revenue",
        "pot_party_id": payer,
        "schedule_version": "v1",
        "line_no": line_no,
        "recipient": recipient,
        "party_id": party_id,
        "amount_minor": amount,
        "currency": "GBP",
    }


def match(match_id: str, day: date, revenue: int, revision: int = 1) -> dict[str, Any]:
    kicked_off_at = datetime(day.year, day.month, day.day, 15, tzinfo=UTC)
    content = f'["{match_id}","C",{int(kicked_off_at.timestamp())}000000,"A","B","completed",2,1,null,{revenue}]'
    return {
        "match_id": match_id,
        "competition_id": "C",
        "match_day": day,
        "kicked_off_at": pd.Timestamp(kicked_off_at),
        "home_club_id": "A",
        "away_club_id": "B",
        "status": "completed",
        "home_score": 2,
        "away_score": 1,
        "winner_club_id": None,
        "revenue_minor": revenue,
        "revision": revision,
        "currency": "GBP",
        "schedule_version": "v1",
        "payout_policy": "immediate",
        "content_hash": hashlib.sha256(content.encode()).hexdigest(),
        "rules_hash": RULES_HASH,
        "source": "a.csv",
        "line_number": 2,
    }


#: Revenue 20 000: 1 000 to the referee; of 19 000 a tenth is 1 900, a twentieth 950, capped at 400; of the 16 700 left
#: two thirds are 11 133⅓ and a third 5 566⅔: the unit left over goes to the larger part.
M1 = [
    share("m1", 7, "payer", "p1", -300, "p1"),
    share("m1", 8, "own_club", "A", 300, "p1"),
    share("m1", 1, "each_referee", "ref", 1000),
    share("m1", 3, "organiser", "org", 1900),
    share("m1", 4, "federation", "fed", 400),
    share("m1", 5, "home_club", "A", 11133),
    share("m1", 6, "away_club", "B", 5567),
]
#: What was said first: revenue 11 000; 1 000, then 1 000, 400, and 8 600 in 5 733⅓ and 2 866⅔.
M1_BEFORE = [
    *M1[:2],
    share("m1", 1, "each_referee", "ref", 1000),
    share("m1", 3, "organiser", "org", 1000),
    share("m1", 4, "federation", "fed", 400),
    share("m1", 5, "home_club", "A", 5733),
    share("m1", 6, "away_club", "B", 2867),
]
#: Revenue 500 runs out at once; what is left, nothing, is divided no further.
M2 = [share("m2", 1, "each_referee", "ref", 500)]


@dataclass
class World:
    """Where it is built, and how it is looked at."""

    url: str
    settings: Settings
    superuser_url: str = ""
    approver_url: str = ""

    def build(self) -> None:
        """Write reference data, two posted days, payouts and their reports."""
        reference = Path(self.settings.reference)
        reference.mkdir(parents=True)
        for name, text in (("competitions", COMPETITIONS), ("parties", PARTIES), ("fee_schedules", SCHEDULES)):
            (reference / f"{name}.csv").write_text(text, "utf-8")
        self.post(FIRST, [match("m1", FIRST, 11000)], M1_BEFORE, players=True)
        self.sweep(FIRST)
        self.post(FIRST, [match("m1", FIRST, 20000, revision=2)], M1, players=True)
        self.sweep(FIRST)
        self.dispatch(FIRST)
        self.dispatch(FIRST)  # asks about what was not answered
        self.report(
            SECOND,
            [
                self.line("e-fund", "funding", 30000, subject="pot:C"),
                self.line("e-fee", "fee", -25),
                self.line("e-A", "settled", -11434, "A"),  # one more than instructed
                self.line("e-B", "settled", -5566, "B"),  # one less
                self.line("e-fed", "settled", -400, "fed"),
                self.line("e-org", "settled", -1900, "org"),
                self.line("e-org-back", "returned", 1900, "org", reason="account closed"),
                self.line("e-p1", "failed", 0, "p1", reason="insufficient funds"),
            ],
            closing=30000 - 25 - 11434 - 5566 - 400,
        )
        self.post(SECOND, [match("m2", SECOND, 500)], M2)
        self.sweep(SECOND)
        self.sweep(THIRD)
        self.refund("r1", 100)
        self.refund("r2", 50)

    def build_on(self) -> None:
        """Add what is rare: cash of nobody, what two people decide, a doubtful answer, a match left alone, an alert."""
        stray = self.line("e-stray", "other", 900, processor_reference="pay_stray") | {"report_date": THIRD}
        self.report(THIRD, [stray], closing=12575 + 900, opening=12575)
        self.decide("accepted", Match("sandbox", "e-stray", "party:B"))
        self.decide("refused", approvals.write_off(self.url, "A", "GBP", 100))
        self.decide("accepted", approvals.write_off(self.url, "A", "GBP", 151))  # overpaid 1, and refunds of 150
        carried = approvals.carry_out_accepted(self.url, THIRD, RUN)
        assert (len(carried.done), carried.waiting) == (2, {})
        self.sweep(FOURTH, instruction_limit_minor=800)
        [held] = approvals.held(self.url)
        approvals.approve(self.approver_url, held["instruction_id"], held["digest"], "as B asked", FOURTH)
        self.dispatch(FOURTH)
        self.dispatch(FOURTH, OF_ANOTHER)
        self.post(FIRST, [match("m1", FIRST, 20000)], M1, players=True)  # older than the one posted
        kind = AlertKind.RUN_FAILED
        alerts.raise_alert(self.url, Alert(alert_id(kind, "run"), kind, FIRST, "a run failed", "look at it", "run"))
        assert alerts.deliver(self.url, "mail", lambda _alert: None) == 1

    def post(
        self, day: date, matches: list[dict[str, Any]], shares: list[dict[str, Any]], *, players: bool = False
    ) -> None:
        people = [("ref", None, "referee"), *([("p1", "A", "player")] if players else [])]
        participants = pd.DataFrame(
            [
                {
                    "match_id": matches[0]["match_id"],
                    "party_id": party,
                    "club_id": club,
                    "role": role,
                    "source": "b.csv",
                }
                | {"line_number": 2}
                for party, club, role in people
            ]
        )
        hashes = {"match_results": matches[0]["content_hash"], "parties": "as they were"} | {
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in (("competitions", COMPETITIONS), ("fee_schedules", SCHEDULES))
        }
        named = pd.DataFrame(shares, columns=schemas.PARTICIPANT_SHARES.names)
        frames = [pd.DataFrame(matches), participants, named.astype({"line_no": "int64", "amount_minor": "int64"})]
        rejected = pd.DataFrame([REJECTED | {"source": f"{day}.csv"}])
        # Of the results one more was read than is accepted.
        counts = {"match_results": {"read": len(matches) + 1}, "match_participants": {"read": len(participants)}}
        for schema, frame in zip(STORED, (*frames, rejected), strict=True):
            self.store(schema, day, frame, {"input_hashes": hashes, "counts": counts})
        post_day(self.url, day, DayInput(*frames, NOBODY, hashes), lambda: hashes, RUN)
        write_certificates(self.url, open_store(self.settings.storage), day)

    def store(self, schema: TableSchema, day: date, frame: pd.DataFrame, metadata: dict[str, Any]) -> None:
        key = partition_key(schema.name, day.isoformat())
        open_store(self.settings.storage).write(key, encode(frame, schema, metadata))

    def refund(self, refund_id: str, amount: int) -> None:
        asked = {"refund_id": refund_id, "match_id": "m1", "party_id": "p1", "amount_minor": amount}
        requests = pd.DataFrame([asked | {"reason": "rained off", "source": "r.csv"}]).astype({"amount_minor": "Int64"})
        accept_refunds(self.url, THIRD, requests, "jane", RUN, hashlib.sha256(refund_id.encode()).hexdigest())
        write_certificates(self.url, open_store(self.settings.storage), THIRD)

    def decide(self, decision: str, proposal: Match | WriteOff) -> None:
        proposal_id = approvals.propose(self.url, proposal, "a letter", "jane")
        approvals.decide(self.approver_url, proposal_id, decision, "seen the letter")

    def sweep(self, day: date, **limits: int) -> None:
        policy = load_policy(self.settings)
        policy = policy.model_copy(update={"default": policy.default.model_copy(update=limits)})
        sweep_day_items(self.url, day, self.parties(), "sandbox", policy, RUN)

    def dispatch(self, day: date, found: LookUp = FOUND) -> None:
        zone = ZoneInfo("Europe/London")
        Dispatch(self.url, day, Answers(found), load_policy(self.settings), zone, RUN)(self.parties())

    def parties(self) -> pd.DataFrame:
        return pd.read_csv(Path(self.settings.reference) / "parties.csv", dtype=object).replace({float("nan"): None})

    def line(self, reference: str, kind: str, amount: int, party: str | None = None, **more: str) -> dict[str, Any]:
        return {
            "processor": "sandbox",
            "entry_reference": reference,
            "report_date": SECOND,
            "kind": kind,
            "idempotency_key": party and self.sent(party),
            "processor_reference": None,
            "subject": None,
            "amount_minor": amount,
            "currency": "GBP",
            "reason": None,
            "occurred_at": datetime(2024, 8, 18, 10, tzinfo=UTC),
        } | more

    def tamper(self, statements: str) -> None:
        """Change what is stored as nobody may: a superuser, all triggers off."""
        with psycopg.connect(self.superuser_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("SET search_path = payments")
            connection.execute(statements.encode())

    def sent(self, party: str) -> str:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                """SELECT instruction_id::text FROM payments.payout_attempts JOIN payments.payout_instructions
                   USING (instruction_id) WHERE attempt_no = 1 AND party_id = %s""",
                (party,),
            ).fetchone()
        assert row is not None
        return str(row[0])

    def report(self, day: date, lines: list[dict[str, Any]], closing: int, opening: int = 0) -> None:
        frame = pd.DataFrame(lines)
        balances = [{"currency": "GBP", "opening_minor": opening, "closing_minor": closing}]
        said = {"processor": "sandbox", "digest": f"{len(lines)} lines", "balances": balances}
        self.store(schemas.SETTLEMENT_REPORTS, day, frame, said)
        taken = take_report_in(
            self.url, day, "sandbox", frame, pd.DataFrame(balances), said["digest"], frozenset({"pot:C"}), RUN
        )
        reconciled = reconcile_day(self.url, day, "sandbox", load_policy(self.settings))
        with connect(self.url) as connection:
            records = Table("payments", schemas.SETTLEMENT_RECORDS)
            write_rows(connection, records, taken.records, WriteMode.INSERT_ONCE, day.isoformat())
            table = Table("payments", schemas.RECONCILIATION)
            write_rows(connection, table, reconciled, WriteMode.REPLACE_PARTITION, day.isoformat())
