"""Small inputs for tests of taking in: reference data, headers, files made of rows."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from zoneinfo import ZoneInfo

from payments_pipeline.domain.accepted_input import AcceptedInput, accept_input
from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.reference_data import ReferenceData, parse_reference

DAY = date(2024, 8, 17)
LONDON = ZoneInfo("Europe/London")

MATCH_COLUMNS = [
    *("match_id", "competition_id", "kicked_off_at", "home_club_id", "away_club_id", "home_score", "away_score"),
    *("status", "winner_club_id", "revenue_minor", "revision"),
]
PARTICIPANT_COLUMNS = ["match_id", "party_id", "club_id", "role"]
#: A row that is accepted; tests change what they are about.
MATCH = {
    "match_id": "m1",
    "competition_id": "c1",
    "kicked_off_at": "2024-08-17T15:00:00+01:00",
    "home_club_id": "club:a",
    "away_club_id": "club:b",
    "home_score": "2",
    "away_score": "1",
    "status": "completed",
    "winner_club_id": "",
    "revenue_minor": "1001",
    "revision": "1",
}
PLAYER = {"match_id": "m1", "party_id": "player:1", "club_id": "club:a", "role": "player"}
REFEREE = {"match_id": "m1", "party_id": "referee:1", "club_id": "", "role": "referee"}

COMPETITIONS = """\
competition_id,name,organiser_id,federation_id,platform_id,currency,payout_policy
c1,One,organiser:1,,platform:1,GBP,
c2,Two,organiser:1,federation:1,,IQD,when_collected
"""
PARTIES = """\
party_id,party_type,name,country,status,payout_token,collection_token
club:a,club,Ä,GB,active,t1,
club:b,club,日本,JP,active,t2,
club:c,club,C,GB,closed,,
player:1,player,Иван,GB,active,t3,k3
player:2,player,P,GB,on_hold,t4,k4
referee:1,referee,R,GB,active,t5,
organiser:1,organiser,O,GB,active,t6,
federation:1,federation,F,GB,active,t7,
platform:1,platform,P,GB,active,t8,
"""
FEE_SCHEDULES = """\
competition_id,version,effective_from,effective_to,line_no,pot,recipient,method,value,cap_minor,statuses
c1,v1,2024-07-01,2024-12-31,1,match_fee,each_player,charge,500,,completed;abandoned
c1,v1,2024-07-01,2024-12-31,2,match_fee,own_club,remainder,1,,
c1,v1,2024-07-01,2024-12-31,3,revenue,organiser,percent,1000,50,
c1,v1,2024-07-01,2024-12-31,4,revenue,each_club,remainder,1,,
c2,v1,,,1,revenue,federation,remainder,1,,
"""


def table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Write rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    return text.getvalue().encode()


def reference(
    competitions: str = COMPETITIONS, parties: str = PARTIES, fee_schedules: str = FEE_SCHEDULES
) -> ReferenceData:
    """Check reference data given as CSV."""
    texts = {"competitions": competitions, "parties": parties, "fee_schedules": fee_schedules}
    return parse_reference({name: LandingFile.of(f"{name}.csv", text.encode()) for name, text in texts.items()})


def matches_file(*rows: Mapping[str, str], name: str = "a.csv") -> LandingFile:
    """Make a CSV of match rows, each the accepted row with changes."""
    return LandingFile.of(f"match_results/{name}", table(MATCH_COLUMNS, [{**MATCH, **row} for row in rows]))


def participants_file(*rows: Mapping[str, str], name: str = "p.csv") -> LandingFile:
    """Make a CSV of participant rows, each the accepted player with changes."""
    return LandingFile.of(f"match_participants/{name}", table(PARTICIPANT_COLUMNS, [{**PLAYER, **row} for row in rows]))


def taken_in(
    matches: Sequence[LandingFile] | LandingFile,
    participants: Sequence[LandingFile] | LandingFile = (),
    *,
    data: ReferenceData | None = None,
    day: date = DAY,
    zone: ZoneInfo = LONDON,
) -> AcceptedInput:
    """Take in files of a day."""
    match_files = [matches] if isinstance(matches, LandingFile) else matches
    participant_files = [participants] if isinstance(participants, LandingFile) else participants
    return accept_input(day, zone, match_files, participant_files, data or reference())


def reasons(accepted: AcceptedInput) -> list[tuple[str, int, str]]:
    """Give (dataset, line, reason) of every row that was not accepted."""
    frame = accepted.rejected_records
    return list(zip(frame["dataset"], frame["line_number"], frame["reason"], strict=True))
