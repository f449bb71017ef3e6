"""The asset `ledger_entries`: days posted in real runs on a real database, and what the UI says of them."""

import datetime as dt
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from checked_days import PLAYED, RESULTS, CheckedDays, Processor
from money_zone import DAY, HASHES, MoneyZone, match, matches_frame, participants_frame, share, shares_frame

from payments_pipeline.defs import resources
from payments_pipeline.defs.assets.ledger_entries import ledger_entries
from payments_pipeline.defs.partitions import match_day_partitions
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage.parquet import partition_key

SETTINGS = Settings(home=Path("unused"), config=None, start_date=DAY)
MATCH_DAYS = match_day_partitions(SETTINGS)


class Unchanged(resources.Inputs):
    """Input that is what the frames were computed from."""

    def input_hashes(self, day: dt.date) -> dict[str, str]:
        return HASHES


class Frames(dg.IOManager):
    """What the assets before have stored."""

    def __init__(self, **frames: pd.DataFrame) -> None:
        self.frames = frames
        for frame in frames.values():
            frame.attrs["input_hashes"] = HASHES
            frame.attrs["counts"] = {"match_results": {"read": 1}, "match_participants": {"read": 0}}

    def load_input(self, context: dg.InputContext) -> pd.DataFrame:
        return self.frames[context.asset_key.to_user_string()]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise AssertionError(f"{context.asset_key} is stored by its own transaction")


def _posted(zone: MoneyZone, storage: Path, revision: int, **amounts: int) -> dict[str, Any]:
    frames = Frames(
        match_results=matches_frame([match("m1", revision, revenue_minor=sum(amounts.values()))]),
        match_participants=participants_frame([]),
        rejected_records=pd.DataFrame({"dataset": [], "outcome": [], "match_id": [], "reason": []}, dtype=object),
        participant_shares=shares_frame([share("m1", party, minor) for party, minor in amounts.items()]),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [ledger_entries(MATCH_DAYS), *(dg.AssetSpec(name, partitions_def=MATCH_DAYS) for name in frames.frames)],
            partition_key=DAY.isoformat(),
            resources={
                "inputs": Unchanged(landing_url="", reference_url="", timezone=SETTINGS.timezone),
                "money_zone": resources.MoneyZone(
                    named_url=zone.url, policy_json=load_policy(SETTINGS).model_dump_json()
                ),
                "certificates": resources.Certificates(storage_url=str(storage)),
                "io_manager": frames,
            },
            instance=instance,
        )
        assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
        (event,) = result.get_asset_materialization_events()
        return {name: value.value for name, value in event.materialization.metadata.items()}


@pytest.mark.rule("corrections/explained")
def test_a_posting_shows_what_it_corrected_and_why_and_one_without_corrections_says_so(
    database_url: str, tmp_path: Path
) -> None:
    zone = MoneyZone(database_url)
    assert _posted(zone, tmp_path, 1, a=600)["corrections"] == "none"
    shown = str(_posted(zone, tmp_path, 2, a=700)["corrections"])
    assert "| party:a | GBP | 100 | revision 2 after 1" in " ".join(shown.split())
    again = _posted(zone, tmp_path, 2, a=700)
    assert (again["corrections"], again["entries_posted"]) == ("none", 0)


#: m1 as before its correction, m2 with a club that nobody knows, m3 in two revisions.
EARLIER = f"""{RESULTS.splitlines()[0]},revision
m1,c1,2024-08-17T15:00:00+01:00,A,B,completed,0,0,18000,1
m2,c1,2024-08-17T18:00:00+01:00,A,nobody,completed,1,1,3000,1
m3,c1,2024-08-17T12:00:00+01:00,A,B,completed,2,0,1000,1
m3,c1,2024-08-17T12:00:00+01:00,A,B,completed,2,0,1100,2
"""
CORRECTED = EARLIER.replace("0,0,18000,1", "1,0,20000,2").replace("nobody", "B")


@pytest.mark.rule("posting/rejection")
def test_the_same_files_give_the_same_rejected_records_whether_or_not_their_matches_are_posted(
    database: Any, tmp_path: Path
) -> None:
    """Rejection of a row never depends on the ledger."""
    with dg.DagsterInstance.ephemeral() as instance:
        days = CheckedDays(tmp_path, database.url, database.superuser_url, instance, Processor())
        days.land("match_participants", f"{PLAYED}m9,p1,A,player\nm3,p1,org,player\n")
        stored = tmp_path / "storage" / partition_key("rejected_records", DAY.isoformat())

        def rejected(last: str) -> bytes:
            days.land("match_results", EARLIER)
            assert days.run(last).result.success
            return stored.read_bytes()

        before = rejected("rejected_records")
        days.land("match_results", CORRECTED)
        assert days.run("ledger_entries").result.success
        assert days.zone.value("SELECT count(*) FROM match_postings") == 3
        assert stored.read_bytes() != before
        assert rejected("ledger_entries") == before
        assert rejected("rejected_records") == before
        breaks = days.zone.rows("SELECT match_id, reason FROM posting_breaks ORDER BY 1")
        assert breaks == [("m1", "older_revision"), ("m2", "rejected")]
    rows = pd.read_parquet(stored)
    assert list(zip(rows["match_id"], rows["reason"], strict=True)) == [
        ("m9", "match_absent"),
        ("m3", "player_club_not_in_match"),
        ("m2", "away_club_unknown"),
        ("m3", "older_revision"),
    ]
