"""One world: the program, the processor, the clock and the input, moved by the operations of a history.

Belongs here: carrying out operations, starting acts and judging what they raise, and what leaves for the processor.
Does not belong here: what an act does (`acts`), what was committed by it (`observations`), what must hold (`model`,
`rules`), the end in which all troubles are over (`ending`), which operations there are (`history`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import singledispatchmethod
from random import Random

import psycopg

from payments_pipeline.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvariantError,
    LedgerFaultError,
    PaymentsError,
)
from payments_pipeline.domain.policy import CurrencyPolicy, Policy
from payments_pipeline.storage.objects import StorageUnavailableError
from payments_pipeline.storage.postgres import RunInfo, lend_from
from simulation import history as ops
from simulation.acts import BODIES, ZONE
from simulation.certificates import Objects
from simulation.database import APPEND_ONLY, SEARCH_PATH, Database, Snapshot
from simulation.effects import Effects, SimulatedPool, Status, Task
from simulation.inputs import PARTIES, PLAYED_STATUSES, Match, Party, day_of
from simulation.model import Model
from simulation.observations import tell
from simulation.processor import Payment, SimulatedProcessor
from simulation.rules import RuleBroken, breaches, states_of

#: How Postgres says so, of an attempt and of one that was looked up and never seen.
_PAST_ITS_DEADLINE = ("its deadline was", "ends what is unknown as submitting, and neither its look-up (never_seen)")


class World:
    """One world; emptied database, first morning."""

    def __init__(self, database: Database, settings: ops.History, policy: Policy) -> None:
        database.empty()
        self.database = database
        self.days = settings.days
        self.policy = policy_of(policy, settings)
        self.effects = Effects(database.admin)
        for url, idle in database.idle.items():
            lend_from(url, SimulatedPool(url, self.effects, SEARCH_PATH, idle))
        self.true_now = datetime.combine(day_of(1), datetime.min.time(), ZONE) + timedelta(hours=3)
        self.skew = timedelta()
        self.sender_skew = timedelta()
        self.processor = SimulatedProcessor(self.effects, lambda: self.true_now, self.seen)
        self.storage = Objects(self.effects.boundary)
        self.landing: dict[int, dict[str, Match]] = {}
        self.delivered: dict[str, Match] = {}
        self.parties = {party_id: Party() for party_id in PARTIES}
        self.model = Model()
        self.snapshot: Snapshot = {}
        #: What each posting run had before it: day, landed matches, how many times something had been accepted.
        self.inputs: dict[str, tuple[int, tuple[Match, ...], int]] = {}
        #: What each posting run's input was when it had the lock of its day.
        self.hashed: dict[str, dict[str, str]] = {}
        self.accepted = [self.model.accepted]
        self.payable: dict[str, set[str]] = {}
        self.faults: Counter[str] = Counter()
        self.acts = 0
        #: How many boundaries each act came to that got to its end.
        self.lengths: defaultdict[str, set[int]] = defaultdict(set)
        #: Tasks started since the last look at what is stored, or under way then, by run; and the runs of the latter.
        self.started: dict[Task, str] = {}
        self.under_way_before: frozenset[str] = frozenset()
        self.lost_minor = 0
        #: What each refund was asked for, whenever: match, payer, amount; and what was answered since the last look.
        self.asked: defaultdict[str, set[tuple[str, str, int | None]]] = defaultdict(set)
        self.told: list[tuple[str, tuple[str, str, int | None], str]] = []
        database.set_clock(self.now())

    def now(self) -> datetime:
        """Give the time as Postgres has it."""
        return self.true_now + self.skew

    def sender_now(self) -> datetime:
        """Give the time as whoever dispatches has it."""
        return self.now() + self.sender_skew

    async def sleep(self, seconds: float) -> None:
        """Let whole seconds go by at once; what is less of them is the sender's jitter, which no seed gives."""
        self.true_now += timedelta(seconds=int(seconds))
        self.database.set_clock(self.now())

    def close(self) -> None:
        """Leave nothing under way."""
        for task in list(self.effects.under_way):
            self.effects.crash(task)

    def perform(self, operation: ops.Operation) -> None:
        """Carry out one operation, then check everything; where no step of the program ran, nothing can be new."""
        self.true_now += timedelta(minutes=1)
        self.database.set_clock(self.now())
        before = self.effects.count()
        self.do(operation)
        if self.effects.count() != before or self.started:
            self.observe()

    # Operations ------------------------------------------------------------------------------------------------------

    @singledispatchmethod
    def do(self, operation: ops.Operation) -> None:
        """Carry out one operation."""
        raise TypeError(f"no such operation: {operation}")

    @do.register
    def _(self, operation: ops.Deliver) -> None:
        before = self.delivered.get(operation.match_id)
        revision = 1 if before is None else max(1, before.revision + operation.bump)
        self.land(
            Match(
                operation.match_id,
                operation.competition_id,
                operation.day,
                revision,
                operation.status,
                operation.revenue_minor,
                operation.players,
                0 if before is None else before.rules,
            )
        )
        if before is not None:
            self.faults[{1: "correction", 0: "contradiction"}.get(operation.bump, "outdated_delivery")] += 1
            played = [match.status in PLAYED_STATUSES for match in (before, self.delivered[operation.match_id])]
            if played[0] != played[1]:
                self.faults["reinstated" if played[1] else "voided"] += 1
            if before.day != operation.day:
                self.faults["moved_to_another_day"] += 1

    def land(self, match: Match) -> None:
        """Put a match into its day's folder, and nowhere else."""
        for landed in self.landing.values():
            landed.pop(match.match_id, None)
        self.landing.setdefault(match.day, {})[match.match_id] = match
        before = self.delivered.get(match.match_id)
        newest = match.revision if before is None else max(match.revision, before.revision)
        self.delivered[match.match_id] = replace(match, revision=newest)

    @do.register
    def _(self, operation: ops.Spoil) -> None:
        for landed in self.landing.values():
            match = landed.pop(operation.match_id, None)
            if match is not None:
                self.faults[f"input_{operation.how}"] += 1
                if operation.how == "rejected":
                    landed[operation.match_id] = replace(match, rejected=True)
                return

    @do.register
    def _(self, operation: ops.ChangeRules) -> None:
        match = self.delivered.get(operation.match_id)
        if match is not None:
            self.delivered[operation.match_id] = replace(match, rules=operation.rules)
            for landed in self.landing.values():
                if operation.match_id in landed:
                    landed[operation.match_id] = replace(landed[operation.match_id], rules=operation.rules)
                    self.faults["rules_changed"] += 1

    @do.register
    def _(self, operation: ops.ChangeParty) -> None:
        party = self.parties[operation.party_id]
        self.faults[f"party_{operation.how}"] += 1
        changer = self.database.approver if ((party.token or 0) + party.mandate) % 2 else "somebody"
        self.parties[operation.party_id] = {
            "new_token": lambda: replace(party, token=(party.token or 0) + 1, changed_by=changer),
            "new_mandate": lambda: replace(party, mandate=party.mandate + 1, changed_by=changer),
            "no_token": lambda: replace(party, token=None),
            "no_collection": lambda: replace(party, collectable=False),
            "collection": lambda: replace(party, collectable=True),
        }.get(operation.how, lambda: replace(party, status=operation.how))()

    @do.register
    def _(self, operation: ops.Act) -> None:
        self.finish(self.start(operation))

    def finish(self, task: Task) -> None:
        """Let a task go on to its end, or what befalls it."""
        self.effects.run(task)

    @do.register
    def _(self, operation: ops.Overlap) -> None:
        self.faults["overlap"] += 1
        tasks = [self.start(act) for act in operation.acts]
        self.effects.overlap(tasks, Random(operation.order).randrange)  # noqa: S311 - reproducible

    @do.register
    def _(self, operation: ops.Resume) -> None:
        stalled = [task for task in self.effects.under_way if task.status is Status.STALLED]
        if not stalled:
            return
        task = stalled[0]
        self.faults[f"stalled_{operation.how.replace(' ', '_')}"] += 1
        if operation.how == "crash":
            self.effects.crash(task)
            return
        if operation.how == "sever":
            self.effects.sever(task)
        self.effects.run(task)

    @do.register
    def _(self, operation: ops.Jump) -> None:
        self.faults["clock_jump"] += 1
        if operation.hours:
            self.faults["down_for_hours"] += self.processor.down
            # An HTTP call that takes longer than its time-out is over; who stood at it has died with the machine.
            for task in [task for task in self.effects.under_way if task.outside]:
                self.effects.crash(task)
        self.true_now += timedelta(hours=operation.hours)
        self.skew = timedelta(minutes=operation.skew_minutes)
        self.sender_skew = timedelta(hours=operation.sender_hours)
        self.database.set_clock(self.now())

    @do.register
    def _(self, operation: ops.Weather) -> None:
        self.processor.answers = deque(operation.answers)
        self.processor.down = operation.down

    @do.register
    def _(self, operation: ops.Bank) -> None:
        waiting = [payment for payment in self.processor.payments if not payment.over]
        if waiting:
            self.bank(waiting[operation.pick % len(waiting)], operation.habit, operation.late)

    def bank(self, payment: Payment, habit: str, late: int) -> None:
        """Let the processor do something with a payment, so many days off the date asked for."""
        amount: int = payment.request["amount_minor"]
        day = date.fromisoformat(payment.request["execute_on"]) + timedelta(days=late)
        later = day + timedelta(days=1)
        some = max(1, amount // 3)
        moves = {
            "settle": [(day, "settled", amount)],
            "fail": [(day, "failed", 0)],
            "settle_short": [(day, "settled", some)],
            "settle_in_parts": [(day, "settled", some), (later, "settled", amount - some)],
            "settle_then_return": [(day, "settled", amount), (later, "returned", -amount)],
            "return_before_settled": [(day, "returned", -amount), (later, "settled", amount)],
            "settle_then_fail": [(day, "settled", amount), (later, "failed", 0)],
            "fail_then_settle": [(day, "failed", 0), (later, "settled", amount)],
            "settle_twice": [(day, "settled", amount), (later, "settled", amount)],
        }[habit]
        for on, kind, moved in moves:
            self.processor.move(payment, on, kind, moved)
        if habit != "settle":
            self.faults[f"bank_{habit}"] += 1
        if late:
            self.faults["bank_late" if late > 0 else "bank_early"] += 1

    @do.register
    def _(self, operation: ops.OtherLine) -> None:
        self.faults[f"line_{operation.kind}"] += 1
        day = day_of(operation.day)
        processor = self.processor
        if operation.kind == "repeated":
            if processor.lines:
                processor.lines.append(processor.lines[-1])
        elif operation.kind == "funding":
            processor.report_line(day, "funding", 5_000, "GBP", subject="pot:cup")
        elif operation.kind == "fee":
            processor.report_line(day, "fee", -3, "GBP")
        elif operation.kind == "unknown_key":
            processor.report_line(day, "settled", -77, "GBP", key="a key that nobody sent")
        else:
            processor.report_line(day, "other", 11, "EUR", subject="a remark")

    # Acts of the program ---------------------------------------------------------------------------------------------

    def start(self, act: ops.Act) -> Task:
        """Begin an act, as a run of its own."""
        self.acts += 1
        run = RunInfo(f"run {self.acts}", "simulated", "scheduler")
        name = f"{act.kind} {act.day} ({run.run_id})"
        task = self.effects.start(name, lambda: self._judged(task, run, act), act.fate)
        self.started[task] = run.run_id
        return task

    def _judged(self, task: Task, run: RunInfo, act: ops.Act) -> None:
        """Let the errors pass that the program raises on purpose, and those of a session that was ended."""
        try:
            BODIES[act.kind](self, run, act.day)
            self.lengths[act.kind].add(len(task.sites))
        except (InvariantError, LedgerFaultError):
            raise
        except (ConfigurationError, DatabaseUnavailableError, StorageUnavailableError):
            if not task.severed:
                raise
        except PaymentsError as error:
            self.faults[f"refused_{type(error).__name__}"] += 1
        except psycopg.OperationalError:
            if not task.severed:
                raise
        except psycopg.errors.RestrictViolation as error:
            # Stalled between reading the clock and committing: Postgres refuses what can no longer be sent.
            if not any(words in str(error) for words in _PAST_ITS_DEADLINE):
                raise
            self.faults["refused_past_its_deadline"] += 1

    def seen(self, key: str, body: bytes, in_doubt: bool) -> None:  # noqa: FBT001 - the processor's callback
        """Hold what reaches the processor against what is committed: nothing leaves without an attempt of its bytes."""
        row = self.database.admin.execute(
            """SELECT count(*), bool_or(request = %s), max(attempt_no), min(not_after),
                      (SELECT state FROM instruction_states s WHERE s.instruction_id::text = %s),
                      (SELECT run_id FROM payout_attempts l WHERE idempotency_key = %s ORDER BY attempt_no DESC LIMIT 1)
               FROM payout_attempts WHERE idempotency_key = %s""",
            (body, key, key, key),
        ).fetchone()
        assert row is not None
        attempts, same, _newest, not_after, state, run_id = row
        if not attempts or not same:
            raise RuleBroken(f"rule 6: key {key} was sent, and no attempt with its bytes is committed")
        if in_doubt:
            raise RuleBroken(f"rule 8: key {key} was sent again, and nobody asked what became of it before")
        if self.processor.submissions[key] > attempts:
            raise RuleBroken(f"rule 6: key {key} was sent more often than the {attempts} attempts that are committed")
        if self.now() >= not_after:
            raise RuleBroken(f"rule 12: key {key} was sent at {self.now()}, after its deadline {not_after}")
        if state == "submitting" and json.loads(body)["token"] not in self.payable[run_id]:
            raise RuleBroken(f"key {key} was sent to a token of a party that may not be paid: {json.loads(body)}")

    # What was committed ----------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Read what is stored, tell the model what is new, and hold every rule."""
        for task in self.started:
            if task.error is not None:
                raise RuleBroken(f"{task.name} raised {type(task.error).__name__}: {task.error}") from task.error
        before, self.snapshot = self.snapshot, self.database.snapshot()
        tell(self, before)
        found = list(breaches(before, self.snapshot, self.model, self.under_way_before))
        if any(self.snapshot[table] is not before.get(table) for table in APPEND_ONLY):
            found += self.database.audit(self.snapshot)
        self.started = {task: self.started[task] for task in self.effects.under_way}
        self.under_way_before = frozenset(self.started.values())
        twice = self.processor.paid_twice()
        found += [f"key {key} was carried out twice" for key in twice]
        if found:
            raise RuleBroken("; ".join(found[:5]))

    def waits(self, instruction: str) -> bool:
        """Say whether an instruction has no end yet."""
        return self.model.instructed[instruction].fate in ("unsent", "sent")

    def is_for_a_person(self, instruction: str) -> bool:
        """Say whether its deadline passed and the processor does not know its key: it is never sent again."""
        return states_of(self.snapshot).get(instruction) == "unknown" and self.is_past(instruction)

    def never_accepted(self, instruction: str) -> bool:
        """Say whether each attempt was answered, and none of the answers leaves a doubt."""
        outcomes = {
            (row["instruction_id"], row["attempt_no"]): row["outcome"]
            for row in self.snapshot["payout_attempt_outcomes"]
        }
        return all(
            outcomes.get((instruction, row["attempt_no"])) in ("unavailable", "not_sent")
            for row in self.snapshot["payout_attempts"]
            if row["instruction_id"] == instruction
        )

    def was_never_seen(self, instruction: str) -> bool:
        """Say whether the newest answer about it, that it was never seen, was given after its deadline."""
        answers = [
            row
            for row in self.snapshot["payout_look_ups"]
            if row["instruction_id"] == instruction and row["answer"] != "unanswered"
        ]
        newest = max(answers, key=lambda row: row["look_up_no"], default=None)
        return (
            newest is not None
            and newest["answer"] == "never_seen"
            and all(
                datetime.fromisoformat(newest["asked_at"]) > datetime.fromisoformat(row["not_after"])
                for row in self.snapshot["payout_attempts"]
                if row["instruction_id"] == instruction
            )
        )

    def is_past(self, instruction: str) -> bool:
        """Say whether the deadline of an instruction that was sent has passed."""
        return any(
            self.now() > datetime.fromisoformat(row["not_after"])
            for row in self.snapshot["payout_attempts"]
            if row["instruction_id"] == instruction
        )


def policy_of(policy: Policy, settings: ops.History, *, minimum_minor: int = 100, batch_size: int = 3) -> Policy:
    """Give a policy with the limits of a history."""
    limits = CurrencyPolicy(
        minimum_minor=minimum_minor,
        instruction_limit_minor=settings.limit_minor,
        party_day_limit_minor=settings.party_day_limit_minor,
        day_limit_minor=settings.day_limit_minor,
        expires_days=policy.default.expires_days,
    )
    dispatch = policy.dispatch.model_copy(update={"batch_size": batch_size, "retries": 1, "breaker_failures": 4})
    return policy.model_copy(update={"default": limits, "currencies": {}, "dispatch": dispatch})
