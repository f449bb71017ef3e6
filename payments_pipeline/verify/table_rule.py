"""A rule as SQL, and the fragments that several rules share.

Belongs here: how a rule is run. Does not belong here: any rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

#: Runs a rule: how many were looked at, and the breaches.
TableCheck = Callable[[psycopg.Connection], tuple[int, list[str]]]
#: Amount of ledger entry `e`, > 0 owed to its party.
SIGNED = "(e.credit_minor - e.debit_minor)"
#: State of each instruction as its last event says, whatever the projection does.
STATES = """
    SELECT DISTINCT ON (instruction_id) instruction_id, to_state AS state, seq, occurred_on
    FROM instruction_events ORDER BY instruction_id, seq DESC
"""
#: Each instruction with its state and the cash of its report lines in its own direction.
NET = f"""
    SELECT i.instruction_id, i.party_id, i.processor, i.currency, i.direction, i.amount_minor, s.state, l.last_on,
           coalesce(l.cash, 0) * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END AS net
    FROM payout_instructions i
    JOIN ({STATES}) s USING (instruction_id)
    LEFT JOIN (SELECT instruction_id, sum(amount_minor) AS cash, max(report_date) AS last_on
               FROM report_lines GROUP BY 1) l USING (instruction_id)
"""  # noqa: S608 - a constant


@dataclass(frozen=True)
class TableRule:
    """A rule as SQL.

    Attributes:
        breaches: gives one text a row: the record, what is wrong with it and what to do.
        checked: counts what was looked at.
    """

    breaches: str
    checked: str

    def __call__(self, connection: psycopg.Connection) -> tuple[int, list[str]]:
        """Give how many were looked at, and the breaches."""
        row = connection.execute(self.checked.encode()).fetchone()
        assert row is not None
        return row[0], [text for (text,) in connection.execute(self.breaches.encode()).fetchall()]
