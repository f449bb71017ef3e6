"""Rules over what became of a day's input: no row is lost between a landing file and what is stored.

Belongs here: one stored day's counts beside its rows. Does not belong here: what a row says (`rules_matches`).
"""

from __future__ import annotations

from collections import Counter

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.stored_days import StoredDay

_STORED = ("match_results", "match_participants", "rejected_records")
_CURE = "run the day again"


def each_row_read_is_kept(stored: StoredDay) -> Found:
    """Rows read are those accepted, superseded and rejected, of each dataset; all are stored, of the same input."""
    files = {asset: stored.file(asset) for asset in _STORED}
    results, participants, rejected = files.values()
    if results is None or participants is None or rejected is None:
        gone = [asset for asset, found in files.items() if found is None]
        if stored.posting is None and len(gone) == len(files):
            return Found()  # nothing was read
        return Found(0, [f"{stored.day}: {', '.join(gone)} is not stored; {_CURE}"])
    if len({str(metadata.get("input_hashes")) for _, metadata in (results, participants, rejected)}) > 1:
        words = f"{', '.join(_STORED)} are not of the same input: a run was interrupted between them; {_CURE}"
        return Found(0, [], [f"{stored.day}: {words}"])
    outcomes = Counter((row["dataset"], row["outcome"]) for row in rejected[0])
    found = Found()
    for dataset, (rows, metadata) in (("match_results", results), ("match_participants", participants)):
        superseded, refused = outcomes[dataset, "superseded"], outcomes[dataset, "rejected"]
        read = metadata.get("counts", {}).get(dataset, {}).get("read")
        found.checked += len(rows) + superseded + refused
        if read != len(rows) + superseded + refused:
            found.breaches.append(
                f"{stored.day}, {dataset}: {read} rows were read; {len(rows)} accepted, {superseded} superseded and "
                f"{refused} rejected are stored; {_CURE}"
            )
    return found


RULES = {"each row read is accepted, superseded or rejected, and kept": each_row_read_is_kept}
