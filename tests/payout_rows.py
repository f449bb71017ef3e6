"""Instructions put into the database as they would stand there, without the runs that lead to them."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Protocol
from uuid import UUID, uuid4

import psycopg


class Addresses(Protocol):
    """What the fixture `database` gives."""

    @property
    def url(self) -> str: ...

    @property
    def superuser_url(self) -> str: ...


LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class PayoutRows:
    """Writes rows as the superuser with triggers off: what they must be, other tests hold."""

    superuser_url: str
    instructions: dict[UUID, int] = field(default_factory=dict)

    def add(
        self,
        state: str,
        on: date,
        *,
        direction: str = "credit",
        amount_minor: int = 1_000,
        currency: str = "GBP",
        party: str = "P1",
        at: datetime = LONG_AGO,
        execute_on: date | None = None,
    ) -> UUID:
        """Insert an instruction of sweep day `on` that came into `state` on that day, recorded at `at`."""
        instruction_id = uuid4()
        self._execute(
            """INSERT INTO payments.payout_instructions (instruction_id, sweep_day, sweep_seq, party_id, currency,
                   direction, amount_minor, processor, token, digest, policy_version, maker, run_id, code_version)
               VALUES (%s, %s, %s, %s, %s, %s, %s, 'sandbox', 'tok', 'd', '1', 'scheduler', 'r', '0')""",
            (instruction_id, on, len(self.instructions) + 1, party, currency, direction, amount_minor),
        )
        self.instructions[instruction_id] = 0
        self.move(instruction_id, state, on, at=at)
        if execute_on is not None:
            self._execute(
                """INSERT INTO payments.payout_attempts (instruction_id, attempt_no, idempotency_key, request,
                       request_sha256, execute_on, not_after, dispatched_on, run_id, started_at)
                   VALUES (%s, 1, %s, 'x', encode(sha256('x'), 'hex'), %s, %s, %s, 'r', %s)""",
                (instruction_id, str(instruction_id), execute_on, at, on, at),
            )
        return instruction_id

    def move(self, instruction_id: UUID, state: str, on: date, *, at: datetime = LONG_AGO) -> None:
        """Bring an instruction into another state."""
        self.instructions[instruction_id] += 1
        seq = self.instructions[instruction_id]
        self._execute(
            """INSERT INTO payments.instruction_events
                   (instruction_id, seq, to_state, occurred_on, actor, reason, run_id, recorded_at)
               VALUES (%s, %s, %s, %s, 'test', 'test', 'r', %s)""",
            (instruction_id, seq, state, on, at),
        )
        self._execute(
            """INSERT INTO payments.instruction_states (instruction_id, state, seq, since_on) VALUES (%s, %s, %s, %s)
               ON CONFLICT (instruction_id) DO UPDATE SET state = excluded.state, seq = excluded.seq,
                   since_on = excluded.since_on""",
            (instruction_id, state, seq, on),
        )

    def _execute(self, statement: str, parameters: tuple[object, ...]) -> None:
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statement.encode(), parameters)
