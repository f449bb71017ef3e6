"""The hashes of the input that a frame was computed from travel with it; frames of different input are not mixed."""

from collections.abc import Mapping

import pandas as pd

from payments_pipeline.domain.errors import StaleInputError


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
