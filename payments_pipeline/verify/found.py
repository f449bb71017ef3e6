"""What a rule found.

Belongs here: the shape that every rule gives. Does not belong here: any rule, how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Found:
    """What a rule found.

    Attributes:
        checked: records looked at.
        breaches: each names the record, what is wrong with it and what to do.
        left_out: what could not be compared, how much of it and why; no breach.
    """

    checked: int = 0
    breaches: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take in what was found elsewhere."""
        self.checked += other.checked
        self.breaches += other.breaches
        self.left_out += other.left_out
