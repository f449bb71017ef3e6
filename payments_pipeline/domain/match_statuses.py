"""The statuses of a match.

Belongs here: their names and what they ask of the score. Does not belong here: what is owed under them.
"""

from __future__ import annotations

from enum import StrEnum


class MatchStatus(StrEnum):
    """What became of a match."""

    COMPLETED = "completed"
    AWARDED = "awarded"
    ABANDONED = "abandoned"
    POSTPONED = "postponed"
    CANCELLED = "cancelled"
    VOID = "void"


#: A match of this status has a score.
NEEDS_SCORE = (MatchStatus.COMPLETED,)
#: A match of these has none.
FORBIDS_SCORE = (MatchStatus.POSTPONED, MatchStatus.CANCELLED)
#: Under which a fee schedule line applies that names no status.
DEFAULT_STATUSES = (MatchStatus.COMPLETED, MatchStatus.AWARDED)
