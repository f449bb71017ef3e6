"""A rule as SQL, and the fragments that several rules share.

Belongs here: how a rule is run. Does not belong here: any rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from payments_pipeline.verify.found import Found

#: Runs a rule.
TableCheck = Callable[[psycopg.Connection], Found]
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
        left_out: gives one text a row: what could not be compared, and why; none where everything can be.
    """

    breaches: str
    checked: str
    left_out: str | None = None

    def __call__(self, connection: psycopg.Connection) -> Found:
        """Run it."""
        row = connection.execute(self.checked.encode()).fetchone()
        assert row is not None
        return Found(row[0], _texts(connection, self.breaches), _texts(connection, self.left_out))


def _texts(connection: psycopg.Connection, query: str | None) -> list[str]:
    return [] if query is None else [text for (text,) in connection.execute(query.encode()).fetchall()]
