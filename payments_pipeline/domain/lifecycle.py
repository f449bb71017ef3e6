"""The states of a payout instruction and the transitions between them; Postgres has the same table, refuses others.

Belongs here: names and what follows from a state. Does not belong here: who may cause a transition, or when.
"""

from enum import StrEnum


class State(StrEnum):
    """State of a payout instruction."""

    CREATED = "created"
    NETTED = "netted"
    HELD = "held"
    APPROVED = "approved"
    CANCELLED = "cancelled"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    FAILED = "failed"
    RETURNED = "returned"


#: What may follow what; None is before the instruction exists.
TRANSITIONS: frozenset[tuple[State | None, State]] = frozenset(
    [
        (None, State.CREATED),
        (State.CREATED, State.NETTED),
        (State.CREATED, State.HELD),
        (State.CREATED, State.APPROVED),
        (State.HELD, State.APPROVED),
        (State.CREATED, State.CANCELLED),
        (State.HELD, State.CANCELLED),
        (State.APPROVED, State.CANCELLED),
        (State.APPROVED, State.SUBMITTING),
        (State.SUBMITTING, State.SUBMITTED),
        (State.SUBMITTING, State.FAILED),
        (State.SUBMITTING, State.UNKNOWN),
        (State.UNKNOWN, State.SUBMITTING),
        (State.UNKNOWN, State.SUBMITTED),
        (State.UNKNOWN, State.FAILED),
        (State.SUBMITTING, State.SETTLED),
        (State.SUBMITTED, State.SETTLED),
        (State.UNKNOWN, State.SETTLED),
        (State.SUBMITTED, State.FAILED),
        (State.SUBMITTING, State.RETURNED),
        (State.SUBMITTED, State.RETURNED),
        (State.UNKNOWN, State.RETURNED),
        (State.SETTLED, State.RETURNED),
    ]
)

#: Nothing has left under these: the instruction can still be cancelled.
UNSENT = (State.CREATED, State.HELD, State.APPROVED)
#: Sent, or perhaps sent: the outcome is the processor's to tell.
SENT = (State.SUBMITTING, State.SUBMITTED, State.UNKNOWN)
#: The items of an instruction in one of these are free again.
RELEASING = (State.CANCELLED, State.FAILED, State.RETURNED)
