"""A day's input, taken in: the one entry from files to accepted frames.

Belongs here: putting matches, participants and rejected rows together, and proving that no row disappeared. Does not
belong here: finding and fetching files (storage), the rules of either dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa

from payments_pipeline.domain.errors import InvariantError
from payments_pipeline.domain.landing_files import LandingFile, read_files
from payments_pipeline.domain.match_participants import MATCH_PARTICIPANT_FILES, accept_participants
from payments_pipeline.domain.match_results import MATCH_RESULT_FILES, accept_matches
from payments_pipeline.domain.records import Records, RowFault
from payments_pipeline.domain.reference_data import ReferenceData
from payments_pipeline.domain.rejected_records import Verdict
from payments_pipeline.domain.values import are_ids

#: The datasets of the landing zone.
DATASETS = {layout.name: layout for layout in (MATCH_RESULT_FILES, MATCH_PARTICIPANT_FILES)}


@dataclass(frozen=True)
class DatasetCounts:
    """What became of a dataset's rows: read = accepted + superseded + rejected.

    Attributes:
        reasons: rows by reason code, rejected and superseded, in order of precedence.
        unknown_columns: (source, column) left out, for columns that the layout does not know.
        files: number of files read.
    """

    read: int
    accepted: int
    superseded: int
    rejected: int
    reasons: dict[str, int]
    unknown_columns: tuple[tuple[str, str], ...]
    files: int


@dataclass(frozen=True)
class AcceptedInput:
    """A day's input.

    Attributes:
        match_results: frame of `schemas.MATCH_RESULTS`.
        match_participants: frame of `schemas.MATCH_PARTICIPANTS`.
        rejected_records: frame of `schemas.REJECTED_RECORDS`, of both datasets, superseded rows too.
        counts: by dataset.
    """

    match_results: pd.DataFrame
    match_participants: pd.DataFrame
    rejected_records: pd.DataFrame
    counts: dict[str, DatasetCounts]


def accept_input(
    day: date,
    zone: ZoneInfo,
    match_files: Sequence[LandingFile],
    participant_files: Sequence[LandingFile],
    reference: ReferenceData,
) -> AcceptedInput:
    """Take in a day's files. The same files give the same frames, whatever their order.

    Args:
        day: the partition: the local date of kick-off.
        zone: the pipeline's time zone.
        match_files: of `match_results`.
        participant_files: of `match_participants`.
        reference: reference data, checked.

    Raises:
        BadFileError: a file cannot be read at all; names the file, the fault and the cure.
        InvariantError: rows read are not rows accepted, superseded and rejected.
    """
    match_records = read_files(match_files, MATCH_RESULT_FILES)
    participant_records = read_files(participant_files, MATCH_PARTICIPANT_FILES)
    bad_row_ids = pa.concat_arrays([_bad_row_ids(match_records), _bad_row_ids(participant_records)])
    matches = accept_matches(match_records, day, zone, reference, bad_row_ids)
    participants = accept_participants(participant_records, matches, reference.parties)
    taken = {
        "match_results": (match_records, matches.verdict, matches.frame, len(match_files)),
        "match_participants": (participant_records, participants.verdict, participants.frame, len(participant_files)),
    }
    # In the order of their names, as the frame is sorted.
    rejected = [taken[dataset][1].rejected_records(dataset) for dataset in sorted(taken)]
    counts = {dataset: _counts(dataset, *parts) for dataset, parts in taken.items()}
    return AcceptedInput(matches.frame, participants.frame, _stacked(rejected), counts)


def _bad_row_ids(records: Records) -> pa.StringArray:
    """Give the matches named by rows that have another field count than their header, or a misplaced quote."""
    column = records.columns["match_id"]
    bad = column.take(np.flatnonzero(records.fault != RowFault.NONE)).drop_null().unique()
    return bad.filter(pa.array(are_ids(bad)))


def _counts(dataset: str, records: Records, verdict: Verdict, frame: pd.DataFrame, files: int) -> DatasetCounts:
    counts = DatasetCounts(
        read=len(records),
        accepted=len(frame),
        superseded=int(verdict.superseded.sum()),
        rejected=int(verdict.rejected.sum()),
        reasons=verdict.counts(),
        unknown_columns=records.unknown_columns,
        files=files,
    )
    if counts.read != counts.accepted + counts.superseded + counts.rejected:
        raise InvariantError(
            f"{dataset}: {counts.read} rows were read, but {counts.accepted} accepted, {counts.superseded} superseded "
            f"and {counts.rejected} rejected. Nothing was posted. This is a defect: report it with the day's files."
        )
    return counts


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Put frames with categories together; each column's categories are those that occur, sorted as bytes."""
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    columns = {}
    for name in frames[0].columns:
        parts = [frame[name] for frame in filled]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            joined = pd.api.types.union_categoricals([part.cat.remove_unused_categories() for part in parts])
            used = sorted(joined.categories, key=str.encode)
            columns[name] = pd.Series(joined.set_categories(used))
        else:
            columns[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(columns)
