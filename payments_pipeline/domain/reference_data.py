"""Reference data: competitions, parties and fee schedules together.

Belongs here: reading the three tables and asking what holds on a day. Does not belong here: each table's own rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import orjson
import pandas as pd

from payments_pipeline.domain.competitions import COMPETITIONS, TERMS, Competition, Competitions, parse_competitions
from payments_pipeline.domain.fee_schedules import FEE_SCHEDULES, FeeSchedules, ScheduleVersion, parse_fee_schedules
from payments_pipeline.domain.landing_files import LandingFile, read_file
from payments_pipeline.domain.parties import PARTIES, Parties, parse_parties
from payments_pipeline.domain.reference_rows import ReferenceProblem

#: The tables, each in one file.
TABLES = {layout.name: layout for layout in (COMPETITIONS, PARTIES, FEE_SCHEDULES)}


@dataclass(frozen=True)
class Rules:
    """What a competition's matches of one day fall under, or why they cannot be taken in.

    Attributes:
        competition: the row in force; None where there is none to use.
        competition_fault: why the row in force cannot be used; None where it can or there is none.
        schedule: the version in force; None where there is none to use.
        schedule_fault: why no version can be told or used; None where one can or there is none.
    """

    competition: Competition | None
    competition_fault: str | None
    schedule: ScheduleVersion | None
    schedule_fault: str | None

    @property
    def rules_hash(self) -> str:
        """SHA-256 of the canonical JSON of the competition's terms (not its name) and all lines of the version."""
        terms = None if self.competition is None else [self.competition.terms[name] for name in TERMS]
        lines = None if self.schedule is None else [self.schedule.version, self.schedule.lines]
        return hashlib.sha256(orjson.dumps([terms, lines])).hexdigest()


@dataclass(frozen=True)
class ReferenceData:
    """The reference data, checked.

    Attributes:
        competitions: effective-dated rows.
        parties: as of now.
        fee_schedules: versions.
        input_hashes: of each table: competitions and fee_schedules by their bytes, parties by id and type alone.
        unknown_columns: (source, column) left out.
    """

    competitions: Competitions
    parties: Parties
    fee_schedules: FeeSchedules
    input_hashes: dict[str, str]
    unknown_columns: tuple[tuple[str, str], ...]

    @property
    def problems(self) -> tuple[ReferenceProblem, ...]:
        """Every bad row; each rejects what uses it, and nothing else."""
        return self.competitions.problems + self.parties.problems + self.fee_schedules.problems

    @property
    def schedule_lines(self) -> pd.DataFrame:
        """Lines of valid versions, one row per line and status; `fee_schedules.LINE_TYPES`."""
        return self.fee_schedules.lines()

    @property
    def schedule_hashes(self) -> dict[tuple[str, str], str]:
        """SHA-256 of each valid version's lines, by competition_id and version."""
        return {
            (version.competition_id, version.version): version.hash
            for versions in self.fee_schedules.versions.values()
            for version in versions
            if version.problem is None
        }

    def rules_on(self, day: date) -> dict[str, Rules]:
        """Give the rules of every known competition on a day."""
        found = {}
        for competition_id, competition in self.competitions.on(day).items():
            schedule = self.fee_schedules.on(day, competition_id)
            found[competition_id] = Rules(
                competition if isinstance(competition, Competition) else None,
                competition if isinstance(competition, str) else None,
                schedule if isinstance(schedule, ScheduleVersion) else None,
                schedule if isinstance(schedule, str) else None,
            )
        return found

    def competitions_on(self, day: date) -> pd.DataFrame:
        """Give the usable competitions in force on a day.

        Returns:
            competition_id, organiser_id, federation_id, platform_id, currency, payout_policy: text, None where empty;
            one row per competition, sorted by id.
        """
        rows = [row.terms for row in self.competitions.on(day).values() if isinstance(row, Competition)]
        frame = pd.DataFrame({name: [terms[name] for terms in rows] for name in TERMS}, dtype=object)
        return frame.sort_values("competition_id", ignore_index=True)


def parse_reference(files: Mapping[str, LandingFile]) -> ReferenceData:
    """Read and check the reference data.

    Args:
        files: by table: competitions, parties, fee_schedules.

    Raises:
        BadFileError: one of the files cannot be read at all.
    """
    records = {name: read_file(files[name], layout) for name, layout in TABLES.items()}
    parties = parse_parties(records["parties"])
    competitions = parse_competitions(records["competitions"], parties)
    fee_schedules = parse_fee_schedules(records["fee_schedules"], parties, competitions.by_id)
    return ReferenceData(
        competitions,
        parties,
        fee_schedules,
        {
            "competitions": files["competitions"].sha256,
            "parties": parties.input_hash(),
            "fee_schedules": files["fee_schedules"].sha256,
        },
        tuple(pair for read in records.values() for pair in read.unknown_columns),
    )
