"""The hashes of the input that a frame was computed from travel with it; frames of different input are not mixed."""

from collections.abc import Mapping

import pandas as pd

from payments_pipeline.domain.checks import rows_lost
from payments_pipeline.domain.errors import InvariantError, StaleInputError


def same_input(*frames: pd.DataFrame, reference: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the input hashes that all frames share.

    Raises:
        StaleInputError: two of them, or the reference data now and then, are of different input; nothing was posted.
    """
    hashes = [dict(frame.attrs.get("input_hashes", {})) for frame in frames]
    first = hashes[0]
    others = [*hashes[1:], first | dict(reference or {})]
    for other in others:
        if other != first:
            names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
            raise StaleInputError(
                f"{', '.join(names)} changed between two steps of this day. Nothing was posted. Run the whole day "
                "again."
            )
    return first


def refuse_lost_rows(match_results: pd.DataFrame, match_participants: pd.DataFrame, rejected: pd.DataFrame) -> None:
    """Hold again what a blocking check holds of the input: a run of these steps alone does not know that it failed.

    Raises:
        InvariantError: a row that was read is neither accepted, superseded nor rejected; nothing was posted.
    """
    counts = match_results.attrs.get("counts", {})
    for dataset, frame in (("match_results", match_results), ("match_participants", match_participants)):
        lost = rows_lost(dataset, int(counts.get(dataset, {}).get("read", 0)), frame, rejected)
        for read, found in lost.itertuples(index=False, name=None):
            raise InvariantError(
                f"{dataset}: {read} rows were read, and {found} are accepted, superseded or rejected. Nothing was "
                "posted. Run the whole day again; if that does not help, this is a defect: report it."
            )
