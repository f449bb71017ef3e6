"""Alerts: one value for each incident, and the words of each kind.

Belongs here: what an alert says, and the id by which repeated sightings are one incident. Does not belong here: seeing
the incident, keeping or delivering the alert. Every kind has its section in docs/operating/alerts.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from payments_pipeline.domain.money import EXPONENTS, format_minor

#: Namespace of alert ids.
_NAMESPACE = uuid.UUID("5a3c5d0e-6a0f-5a0e-9a53-0d0f3f5f5e11")
#: Longest text of an error or a check that an alert repeats; the run has the rest.
_QUOTED_CHARACTERS = 1_000
#: Days or instructions that an alert names; the rest are counted.
NAMED = 5


class AlertKind(StrEnum):
    """What happened."""

    RUN_FAILED = "run_failed"
    RUN_RETRYING = "run_retrying"
    CHECK_FAILED = "check_failed"
    INSTRUCTIONS_FAILED = "instructions_failed"
    INSTRUCTIONS_RETURNED = "instructions_returned"
    INSTRUCTIONS_UNKNOWN = "instructions_unknown"
    INSTRUCTIONS_OVERDUE = "instructions_overdue"
    INSTRUCTIONS_HELD = "instructions_held"
    INSTRUCTIONS_UNSENT = "instructions_unsent"
    DAY_MISSED = "day_missed"
    DAYS_NEVER_RUN = "days_never_run"
    INPUT_GONE = "input_gone"


@dataclass(frozen=True)
class Alert:
    """One incident.

    Attributes:
        alert_id: the same for every sighting of the incident.
        kind: what happened.
        day: match day or report date it is about, where it is about one.
        title: one line.
        body: what, how much money, what to do.
        run_id: Dagster run it comes from, where there is one.
    """

    alert_id: uuid.UUID
    kind: AlertKind
    day: date | None
    title: str
    body: str
    run_id: str | None = None


@dataclass(frozen=True)
class InstructedAmount:
    """What a set of instructions comes to in one currency.

    Attributes:
        currency: ISO 4217.
        instructions: how many, netted ones left out.
        sent: how many of them were sent or perhaps sent; no money of the others can have moved.
        credit_minor: to be paid, minor units.
        debit_minor: to be collected, minor units.
    """

    currency: str
    instructions: int
    sent: int
    credit_minor: int
    debit_minor: int

    def __str__(self) -> str:
        return (
            f"{self.currency}: instructions {self.instructions}, to pay {_amount(self.credit_minor, self.currency)}, "
            f"to collect {_amount(self.debit_minor, self.currency)}, of them sent {self.sent}"
        )


@dataclass(frozen=True)
class NamedInstruction:
    """An instruction as an alert names it; amount in minor units of `currency`."""

    instruction_id: str
    party_id: str
    direction: str
    amount_minor: int
    currency: str

    def __str__(self) -> str:
        return (
            f"{self.instruction_id}: {self.direction} {_amount(self.amount_minor, self.currency)} {self.currency}, "
            f"party {self.party_id}"
        )


@dataclass(frozen=True)
class InstructionGroup:
    """Instructions of one day that are in one state that somebody must hear of.

    Attributes:
        kind: which.
        day: day on which they came into the state; of overdue ones the day that sent them.
        mark: changes when instructions join the group, and not when they leave it.
        amounts: what they come to, one per currency.
        first: the first few.
    """

    kind: AlertKind
    day: date
    mark: str
    amounts: tuple[InstructedAmount, ...]
    first: tuple[NamedInstruction, ...]


@dataclass(frozen=True)
class FailedRun:
    """A run that failed.

    Attributes:
        run_id: the run.
        root_run_id: the first attempt, where the run is a retry; else the run itself.
        job: its job.
        day: its partition, where it has one.
        will_retry: Dagster will start it again by itself.
        error: why it failed, in words.
    """

    run_id: str
    root_run_id: str
    job: str
    day: date | None
    will_retry: bool
    error: str


@dataclass(frozen=True)
class FailedCheck:
    """A data-quality check of severity ERROR that failed.

    Attributes:
        run_id: run that evaluated it.
        asset: asset checked.
        check: its name.
        day: partition checked, where it has one.
        blocking: whether the rest of its run was stopped.
        description: how many rows break it, and the cure.
    """

    run_id: str
    asset: str
    check: str
    day: date | None
    blocking: bool
    description: str


def alert_id(kind: AlertKind, *identity: str) -> uuid.UUID:
    """Give the id of an incident: UUIDv5 over its kind and what makes it this one."""
    return uuid.uuid5(_NAMESPACE, "\x1f".join((kind.value, *identity)))


def run_failure(run: FailedRun, amounts: Sequence[InstructedAmount]) -> Alert:
    """Say that a run failed.

    Args:
        run: the run.
        amounts: what the instructions of its day come to; empty where there are none.
    """
    what = f"{run.job} for {run.day}" if run.day else run.job
    money = f"Instructions of {run.day}: {_amounts(amounts)}." if run.day else "It is about no one day."
    if run.will_retry:
        kind, identity, title = AlertKind.RUN_RETRYING, run.root_run_id, f"{what} died and is started again"
        cure = "Nothing is to be done unless an alert run_failed follows."
    else:
        kind, identity, title = AlertKind.RUN_FAILED, run.run_id, f"{what} failed"
        again = f"run the day again with `payments-pipeline run --date {run.day}`" if run.day else "launch it again"
        cure = f"Mend what the error names, then {again}: what is posted or sent already is not posted or sent twice."
    body = "\n".join(
        (
            f"Error: {_quoted(run.error)}",
            money,
            "What had been committed before the failure stands.",
            cure,
            f"Run: {run.run_id}",
        )
    )
    return Alert(alert_id(kind, identity), kind, run.day, title, body, run.run_id)


def check_failure(check: FailedCheck, amounts: Sequence[InstructedAmount]) -> Alert:
    """Say that a check failed.

    Args:
        check: the check.
        amounts: what the instructions of its day come to; empty where there are none.
    """
    kind = AlertKind.CHECK_FAILED
    of_day = f" of {check.day}" if check.day else ""
    body = "\n".join(
        (
            f"Found: {_quoted(check.description)}",
            *((f"Instructions{of_day}: {_amounts(amounts)}.",) if check.day else ()),
            "The rest of the run was stopped." if check.blocking else "The run went on.",
            f"The rows that break it are with the check in the UI. Run: {check.run_id}",
        )
    )
    return Alert(
        alert_id(kind, check.run_id, check.asset, check.check, str(check.day or "")),
        kind,
        check.day,
        f"check {check.check} on {check.asset}{of_day} failed",
        body,
        check.run_id,
    )


_INSTRUCTION_WORDS = {
    AlertKind.INSTRUCTIONS_FAILED: (
        "failed",
        (
            "No money is known to have moved. Their items are open again and a later day's sweep takes them; after the "
            "failures in a row that the policy names they wait for a new token. Ask the party or the processor why."
        ),
    ),
    AlertKind.INSTRUCTIONS_RETURNED: (
        "returned",
        (
            "Their money came back, and their items are open again for a later day's sweep. Ask the party for account "
            "details that are right."
        ),
    ),
    AlertKind.INSTRUCTIONS_UNKNOWN: (
        "without an answer",
        (
            "They may have been carried out. None is sent again blind: every dispatch asks about them by their keys. "
            "If they stay, ask the processor: only its report settles them."
        ),
    ),
    AlertKind.INSTRUCTIONS_OVERDUE: (
        "overdue",
        (
            "No report says what became of them: they may have been carried out. Ask the processor, and see that the "
            "reports since are taken in."
        ),
    ),
    AlertKind.INSTRUCTIONS_UNSENT: (
        "approved and not sent for more than a day",
        (
            "Nothing was sent. They are over a sending limit, or the dispatches since did not run or were stopped: the "
            "metadata of payout_submissions says which. Raise party_day_limit_minor or day_limit_minor, or refuse them."
        ),
    ),
    AlertKind.INSTRUCTIONS_HELD: (
        "held for an approver",
        (
            "They are over the limit of one instruction. Nothing was sent. An approver who did not make them lets them "
            "pass by a login of their own (docs/operating/daily.md); unapproved they expire, and their items are open "
            "again."
        ),
    ),
}


def instructions_in_trouble(group: InstructionGroup) -> Alert:
    """Say which instructions of a day failed, came back, got no answer, are overdue or wait for an approver."""
    words, cure = _INSTRUCTION_WORDS[group.kind]
    count = sum(amount.instructions for amount in group.amounts)
    named = group.first[:NAMED]
    rest = f" The first {len(named)}:" if count > len(named) else ""
    body = "\n".join((f"{_amounts(group.amounts)}.{rest}", *(f"- {each}" for each in named), cure))
    return Alert(
        alert_id(group.kind, group.day.isoformat(), group.mark),
        group.kind,
        group.day,
        f"payout instructions of {group.day} {words}: {count}",
        body,
    )


def days_missed(days: Sequence[date]) -> Alert:
    """Say that days passed without a run, and that they were asked for.

    Args:
        days: at least one, ascending.
    """
    kind = AlertKind.DAY_MISSED
    body = (
        f"{_days(days)}: no run was started at its hour, so the scheduler was down then. A run of each was asked for "
        "now, oldest first. Nothing was posted or sent twice. See that the scheduler stays up."
    )
    title = f"{days[0]} was missed" if len(days) == 1 else f"{len(days)} days were missed, {days[0]} to {days[-1]}"
    return Alert(alert_id(kind, *(day.isoformat() for day in days)), kind, days[0], title, body)


def days_never_run(days: Sequence[date], window_days: int) -> Alert:
    """Say that days are missing from longer ago than days are caught up by themselves.

    Args:
        days: at least one, ascending.
        window_days: how far back days are caught up.
    """
    kind = AlertKind.DAYS_NEVER_RUN
    body = (
        f"{_days(days)}. They are more than {window_days} days past and are not run by themselves. If matches were "
        f"played on them: `payments-pipeline backfill --from {days[0]} --to {days[-1]}`."
    )
    return Alert(
        alert_id(kind, days[0].isoformat()), kind, days[0], f"{len(days)} days since {days[0]} have never run", body
    )


def input_gone(landing_url: str, days: Sequence[date], *, everything: bool) -> Alert:
    """Say that landing files of days that have run are gone.

    Args:
        landing_url: where they were.
        days: at least one, ascending.
        everything: the landing zone lists no day at all.
    """
    kind = AlertKind.INPUT_GONE
    title = "the landing zone is empty" if everything else f"landing files of {len(days)} days are gone"
    body = (
        f"{landing_url} lists {'no day at all' if everything else 'nothing'} for {_days(days)}, which have run. "
        "Nothing was asked for and what is posted stands: absence is no correction. Check PAYMENTS_LANDING_URL and "
        "that the files are where they were; bring them back before those days are run again."
    )
    return Alert(
        alert_id(kind, landing_url, str(everything), *(day.isoformat() for day in days)), kind, days[0], title, body
    )


def _amount(amount_minor: int, currency: str) -> str:
    """Write an amount; one in a code without known decimals is said in minor units rather than not at all."""
    return format_minor(amount_minor, currency) if currency in EXPONENTS else f"{amount_minor} (minor units)"


def _amounts(amounts: Sequence[InstructedAmount]) -> str:
    return "; ".join(map(str, amounts)) or "none"


def _days(days: Sequence[date]) -> str:
    named = ", ".join(map(str, days[:NAMED]))
    return f"{named} and {len(days) - NAMED} more up to {days[-1]}" if len(days) > NAMED else named


def _quoted(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _QUOTED_CHARACTERS else f"{one_line[:_QUOTED_CHARACTERS]}…"
