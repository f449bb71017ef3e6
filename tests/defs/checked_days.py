"""The whole pipeline on a small landing zone, run as far as a test asks, and what its checks say of each run."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
from dispatches import ONCE
from money_zone import DAY, SANDBOX, FakeProcessor, MoneyZone, frame, line

from payments_pipeline.definitions import build_defs
from payments_pipeline.defs import resources
from payments_pipeline.defs.io_managers import PostgresIOManager
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.domain.schemas import TableSchema
from payments_pipeline.processors.base import SettlementReport
from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.parquet import decode, encode, partition_key

INGESTED = ("match_results", "match_participants", "rejected_records")
#: In the order in which a day's run materialises them.
ASSETS = (
    *INGESTED,
    "participant_shares",
    "ledger_entries",
    "refunds",
    "payout_instructions",
    "payout_submissions",
    "settlement_reports",
    "settlement_records",
    "reconciliation",
)
PARTIES = """party_id,party_type,name,country,status,payout_token,collection_token
A,club,A,GB,active,tok_A,
B,club,B,GB,active,tok_B,
org,organiser,Org,GB,active,tok_org,
p1,player,One,GB,active,tok_p1,col_p1
ref,referee,Ref,GB,active,tok_ref,
"""
COMPETITIONS = """competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy
c1,Cup,org,,,GBP,immediate
"""
SCHEDULES = """competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
c1,v1,2024-01-01,,1,revenue,each_referee,fixed,1000,,
c1,v1,2024-01-01,,2,revenue,organiser,percent,1000,,
c1,v1,2024-01-01,,3,revenue,home_club,remainder,2,,
c1,v1,2024-01-01,,4,revenue,away_club,remainder,1,,
c1,v1,2024-01-01,,5,match_fee,each_player,charge,300,,
c1,v1,2024-01-01,,6,match_fee,own_club,remainder,1,,
"""
RESULTS = """match_id,competition_id,kicked_off_at,home_club_id,away_club_id,status,home_score,away_score,revenue_minor
m1,c1,2024-08-17T15:00:00+01:00,A,B,completed,1,0,20000
m2,c1,2024-08-17T18:00:00+01:00,A,B,completed,1,1,3000
"""
PLAYED = """match_id,party_id,club_id,role
m1,p1,A,player
m1,ref,,referee
"""
#: What the day owes. Of m1's 20 000 the referee takes 1 000 and the organiser a tenth of the rest, of m2's 3 000 the
#: organiser a tenth; the clubs divide what is left two to one. p1 owes A a fee.
OWED = {"A": 11_400 + 1_800 + 300, "B": 5_700 + 900, "org": 1_900 + 300, "p1": -300, "ref": 1_000}


@dataclass
class Processor(FakeProcessor):
    """One that also reports what a test says."""

    reported: dict[dt.date, Sequence[dict[str, Any]]] = field(default_factory=dict)
    closing_minor: int | None = None

    async def report(self, day: dt.date) -> SettlementReport:
        lines = [row | {"report_date": day} for row in self.reported.get(day, ())]
        cash = sum(row["amount_minor"] for row in lines)
        balances = pd.DataFrame(
            {
                "currency": ["GBP"],
                "opening_minor": [0],
                "closing_minor": [cash if self.closing_minor is None else self.closing_minor],
            }
        )
        return SettlementReport(day, f"{len(lines)} lines", frame(lines, line("none", 0)), balances)


@dataclass(frozen=True)
class Said:
    """What a run's checks said."""

    result: dg.ExecuteInProcessResult

    @property
    def red(self) -> dict[str, dg.AssetCheckEvaluation]:
        """Those that failed, by `asset:check`."""
        return {
            f"{each.asset_key.to_user_string()}:{each.check_name}": each
            for each in self.result.get_asset_check_evaluations()
            if not each.passed
        }

    @property
    def materialised(self) -> list[str]:
        return [
            event.asset_key.to_user_string()
            for event in self.result.get_asset_materialization_events()
            if event.asset_key is not None
        ]


def table_of(evaluation: dg.AssetCheckEvaluation) -> list[dict[str, str]]:
    """The rows that a check names, cell by cell."""
    lines = str(evaluation.metadata["rows"].value).splitlines()
    names, _, *rows = [
        [cell.strip() for cell in text.removeprefix("|").removesuffix("|").split(" | ")] for text in lines
    ]
    return [dict(zip(names, cells, strict=True)) for cells in rows]


@dataclass(frozen=True)
class CheckedDays:
    """A landing zone, reference data, storage and a database of their own, and the real job of a day over them."""

    folder: Path
    url: str
    superuser_url: str
    instance: dg.DagsterInstance
    processor: Processor

    def __post_init__(self) -> None:
        for name, text in (("parties", PARTIES), ("competitions", COMPETITIONS), ("fee_schedules", SCHEDULES)):
            self.refer(name, text)
        self.land("match_results", RESULTS)
        self.land("match_participants", PLAYED)

    @property
    def zone(self) -> MoneyZone:
        return MoneyZone(self.url)

    def refer(self, name: str, text: str) -> None:
        self._write(self.folder / "reference" / f"{name}.csv", text)

    def land(self, dataset: str, text: str, day: dt.date = DAY) -> None:
        self._write(self.folder / "landing" / dataset / f"date={day}" / "a.csv", text)

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def job(self) -> dg.JobDefinition:
        settings = Settings(home=self.folder, config=None, start_date=DAY)
        given = {
            "money_zone": resources.MoneyZone(named_url=self.url, policy_json=ONCE.model_dump_json()),
            "gateway": resources.PayoutGateway(name=SANDBOX, named_url="http://nowhere", named_key="key"),
            "postgres": PostgresIOManager(url=self.url),
        }
        return build_defs(settings, given).resolve_job_def(DAILY)

    def run(self, last: str = ASSETS[-1], first: str = ASSETS[0], day: dt.date = DAY) -> Said:
        """Run a day's assets from one to another, both included."""
        last = INGESTED[-1] if last in INGESTED else last
        chosen = ASSETS[ASSETS.index(first) : ASSETS.index(last) + 1]
        return Said(
            self.job().execute_in_process(
                partition_key=day.isoformat(),
                instance=self.instance,
                asset_selection=[dg.AssetKey(name) for name in chosen],
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
        )

    def tamper(self, statements: str) -> None:
        """Change what is stored as nobody may: a superuser, all triggers off."""
        with psycopg.connect(self.superuser_url, options="-c search_path=payments") as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statements.encode())

    def rewrite(self, schema: TableSchema, change: Callable[[pd.DataFrame], pd.DataFrame], day: dt.date = DAY) -> None:
        """Change a partition's stored file; what it says of its origin stays."""
        store, key = open_store(str(self.folder / "storage")), partition_key(schema.name, day.isoformat())
        stored = decode(store.read(key), schema)
        said = {str(name): told for name, told in stored.attrs.items()}
        store.write(key, encode(change(stored), schema, said))

    def sent(self) -> dict[str, int]:
        """What each party was sent in all, each request counted as often as it was made; below zero is collected."""
        keys = [key for key, _ in self.processor.requests]
        told = self.zone.rows(
            """SELECT instruction_id::text, party_id,
                      CASE direction WHEN 'debit' THEN -amount_minor ELSE amount_minor END
               FROM payout_instructions WHERE direction <> 'none'"""
        )
        found: dict[str, int] = {}
        for instruction_id, party_id, amount_minor in told:
            if instruction_id in keys:
                found[party_id] = found.get(party_id, 0) + amount_minor * keys.count(instruction_id)
        return found
