"""One world: the program, the processor, the clock and the input, moved by the operations of a history.

Belongs here: carrying out operations, telling the model what was committed, and the end in which all troubles are
over. Does not belong here: what must hold (`model`, `rules`), which operations there are (`history`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import singledispatchmethod
from itertools import permutations, product
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg

from payments_pipeline.domain.errors import ConfigurationError, InvariantError, LedgerFaultError, PaymentsError
from payments_pipeline.domain.policy import CurrencyPolicy, Policy
from payments_pipeline.domain.proposals import Resolution, WriteOff
from payments_pipeline.domain.schemas import RECONCILIATION, SETTLEMENT_RECORDS
from payments_pipeline.processors.base import SettlementReport
from payments_pipeline.processors.dispatch import Dispatch
from payments_pipeline.storage import approvals
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.ledger_entries import post_day
from payments_pipeline.storage.objects import StorageUnavailableError
from payments_pipeline.storage.payout_instructions import sweep_day_items
from payments_pipeline.storage.postgres import RunInfo, connect, lend_from
from payments_pipeline.storage.reconciliation import reconcile_day
from payments_pipeline.storage.refunds import accept_refunds
from payments_pipeline.storage.settlement_records import take_report_in
from payments_pipeline.storage.table_declarations import Table
from payments_pipeline.storage.tables import WriteMode, write_rows
from payments_pipeline.verify.rules_certificates import CERTIFICATES
from payments_pipeline.verify.tables import TABLE_RULES
from simulation import history as ops
from simulation.certificates import Objects, breaches_of_certificates
from simulation.database import SEARCH_PATH, Database, Row, Snapshot
from simulation.effects import Effects, Fate, SimulatedPool, Status, Task
from simulation.inputs import (
    FIRST_DAY,
    PARTIES,
    PLAYERS,
    POTS,
    Match,
    Party,
    day_input,
    day_of,
    input_hash,
    parties_frame,
)
from simulation.model import Account, Instructed, Model, RuleChange, shares
from simulation.processor import NAME, Payment, SimulatedProcessor
from simulation.rules import accrued_of, breaches, goes_on, states_of

_ZONE = ZoneInfo("Europe/London")
_TABLES = {schema.name: Table("payments", schema) for schema in (SETTLEMENT_RECORDS, RECONCILIATION)}
#: Nobody approves in time, so what was held has expired by then.
_CALM_AFTER_DAYS = 22
_CALM_ROUNDS = 8
#: What refunds are asked for; None is all that is left.
_ASKED = (None, 1, 57, 300, 1_200)
#: Rules of `verify` that a world may end in breach of: report lines that belong to nobody wait for a person.
_EXPLAINED = frozenset({"no money is in suspense"})


class RuleBroken(Exception):  # noqa: N818 - it says what happened
    """Something does not hold; says what, and after which operation."""


class World:
    """One world; emptied database, first morning."""

    def __init__(self, database: Database, settings: ops.History, policy: Policy) -> None:
        database.empty()
        self.database = database
        self.days = settings.days
        self.policy = _policy(policy, settings)
        self.effects = Effects(database.admin)
        for url, idle in database.idle.items():
            lend_from(url, SimulatedPool(url, self.effects, SEARCH_PATH, idle))
        self.true_now = datetime.combine(day_of(1), datetime.min.time(), _ZONE) + timedelta(hours=3)
        self.skew = timedelta()
        self.processor = SimulatedProcessor(self.effects, lambda: self.true_now, self._seen)
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
        self.started: list[Task] = []
        self.lost_minor = 0
        database.set_clock(self.now())

    def now(self) -> datetime:
        """Give the time as the pipeline has it."""
        return self.true_now + self.skew

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
        self._land(
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

    def _land(self, match: Match) -> None:
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
        self.parties[operation.party_id] = {
            "new_token": lambda: replace(party, token=(party.token or 0) + 1),
            "no_token": lambda: replace(party, token=None),
            "no_collection": lambda: replace(party, collectable=False),
            "collection": lambda: replace(party, collectable=True),
        }.get(operation.how, lambda: replace(party, status=operation.how))()

    @do.register
    def _(self, operation: ops.Act) -> None:
        self._finish(self._start(operation))

    def _finish(self, task: Task) -> None:
        self.effects.run(task)

    @do.register
    def _(self, operation: ops.Overlap) -> None:
        self.faults["overlap"] += 1
        tasks = [self._start(act) for act in operation.acts]
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
            # An HTTP call that takes longer than its time-out is over; who stood at it has died with the machine.
            for task in [task for task in self.effects.under_way if task.outside]:
                self.effects.crash(task)
        self.true_now += timedelta(hours=operation.hours)
        self.skew = timedelta(minutes=operation.skew_minutes)
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

    def _start(self, act: ops.Act) -> Task:
        self.acts += 1
        run = RunInfo(f"run {self.acts}", "simulated", "scheduler")
        body: Callable[[RunInfo, int], object] = getattr(self, f"_{act.kind}")
        task = self.effects.start(
            f"{act.kind} {act.day} ({run.run_id})", lambda: self._judged(task, body, run, act), act.fate
        )
        self.started.append(task)
        return task

    def _judged(self, task: Task, body: Callable[[RunInfo, int], object], run: RunInfo, act: ops.Act) -> None:
        """Let the errors pass that the program raises on purpose, and those of a session that was ended."""
        try:
            body(run, act.day)
        except (InvariantError, LedgerFaultError):
            raise
        except (ConfigurationError, StorageUnavailableError):
            if not task.severed:
                raise
        except PaymentsError as error:
            self.faults[f"refused_{type(error).__name__}"] += 1
        except psycopg.OperationalError:
            if not task.severed:
                raise
        except psycopg.errors.RestrictViolation as error:
            # Stalled between reading the clock and committing: Postgres refuses what can no longer be sent.
            if "its deadline was" not in str(error):
                raise
            self.faults["refused_past_its_deadline"] += 1

    def _post(self, run: RunInfo, day: int) -> None:
        landed = tuple(self.landing.get(day, {}).values())
        self.inputs[run.run_id] = (day, landed, len(self.accepted) - 1)
        computed = day_input(landed)
        self.effects.boundary()

        def hash_again() -> dict[str, str]:
            self.effects.boundary()
            self.hashed[run.run_id] = input_hash(self.landing.get(day, {}).values())
            return self.hashed[run.run_id]

        post_day(self.database.url, day_of(day), computed, hash_again, run)
        write_certificates(self.database.url, self.storage, day_of(day))

    def _sweep(self, run: RunInfo, day: int) -> None:
        parties = parties_frame(self.parties)
        self.effects.boundary()
        approvals.carry_out_accepted(self.database.url, self.now().date(), run)
        sweep_day_items(self.database.url, day_of(day), parties, NAME, self.policy, run)

    def _dispatch(self, run: RunInfo, day: int) -> None:
        self.payable[run.run_id] = {
            token
            for party_id, party in self.parties.items()
            for token in (party.payout_token(party_id), party.collection_token(party_id))
            if token is not None and party.status == "active"
        }
        parties = parties_frame(self.parties)
        self.effects.boundary()
        dispatch = Dispatch(
            self.database.url,
            day_of(day),
            self.processor,
            self.policy,
            _ZONE,
            run,
            clock=self.now,
            sleep=_no_sleep,
        )
        dispatch(parties)

    def _settle(self, run: RunInfo, day: int) -> None:
        report = asyncio.run(self._fetch(day_of(day)))
        taken = take_report_in(
            self.database.url, day_of(day), NAME, report.lines, report.balances, report.digest, POTS, run
        )
        self._store(SETTLEMENT_RECORDS.name, taken.records, WriteMode.INSERT_ONCE, day)

    async def _fetch(self, day: date) -> SettlementReport:
        async with self.processor:
            return await self.processor.report(day)

    def _reconcile(self, _run: RunInfo, day: int) -> None:
        rows = reconcile_day(self.database.url, day_of(day), NAME, self.policy)
        self._store(RECONCILIATION.name, rows, WriteMode.REPLACE_PARTITION, day)

    def _store(self, table: str, frame: pd.DataFrame, mode: WriteMode, day: int) -> None:
        with connect(self.database.url) as connection:
            write_rows(connection, _TABLES[table], frame, mode, day_of(day).isoformat())

    def _refund(self, run: RunInfo, number: int) -> None:
        """Ask for the n-th refund, on a day of its own."""
        if not self.delivered:
            return
        match = self.delivered[sorted(self.delivered)[number % len(self.delivered)]]
        players = match.players or PLAYERS
        asked = {
            "refund_id": f"refund-{number}",
            "match_id": match.match_id,
            "party_id": players[number // 3 % len(players)],
            "amount_minor": _ASKED[number % len(_ASKED)],
            "reason": "rained off",
            "source": "by hand",
        }
        requests = pd.DataFrame([asked]).astype({"amount_minor": "Int64"})
        self.effects.boundary()
        day = day_of(number % (self.days + 1))
        accepted = accept_refunds(self.database.url, day, requests, "somebody", run)
        self.faults[f"refund_{accepted.decisions['decision'].iloc[0]}"] += 1

    # Acts of people ------------------------------------------------------------------------------------------------

    def _approve(self, _run: RunInfo, number: int) -> None:
        for row in approvals.held(self.database.url)[number : number + 1]:
            self.faults["approved"] += 1
            approvals.approve(
                self.database.approver_url, str(row["instruction_id"]), row["digest"], "looked at", self.now().date()
            )

    def _refuse(self, _run: RunInfo, number: int) -> None:
        for row in approvals.held(self.database.url)[number : number + 1]:
            self.faults["refused"] += 1
            approvals.refuse(self.database.approver_url, str(row["instruction_id"]), "not now", self.now().date())

    def _resolve(self, run: RunInfo, number: int) -> None:
        """A person asks the processor's people, who know what became of it; another accepts."""
        given_up = sorted(key for key in self.model.instructed if self._is_for_a_person(key))
        for key in given_up[number : number + 1]:
            self.faults["resolved_by_a_person"] += 1
            carried_out = any(payment.key == key and not payment.rejected for payment in self.processor.payments)
            found = Resolution(key, "submitted" if carried_out else "failed", "a letter")
            identity = approvals.propose(self.database.url, found, "asked", "somebody")
            approvals.decide(self.database.approver_url, identity, "accepted", "seen")
            approvals.carry_out_accepted(self.database.url, self.now().date(), run)

    def _write_off(self, run: RunInfo, number: int) -> None:
        """A person gives up a debt, a part of it or more than it; another accepts at once, or it waits."""
        debts = sorted((account, -minor) for account, minor in self.model.open().items() if minor < 0)
        for (party_id, currency), owed in debts[number // 3 :][:1]:
            amount = (owed, max(1, owed // 2), owed + 1)[number % 3]
            identity = approvals.propose(
                self.database.url, WriteOff(party_id, currency, amount), "insolvent", "somebody"
            )
            self.faults["write_off_proposed"] += 1
            if number % 2 == 0:
                approvals.decide(self.database.approver_url, identity, "accepted", "seen")
                approvals.carry_out_accepted(self.database.url, self.now().date(), run)

    def _accept(self, _run: RunInfo, number: int) -> None:
        self._decide(number, "accepted")

    def _decline(self, _run: RunInfo, number: int) -> None:
        self._decide(number, "refused")

    def _decide(self, number: int, decision: str) -> None:
        for row in approvals.pending(self.database.url)[number:][:1]:
            self.faults[f"{row['kind']}_{decision}"] += 1
            approvals.decide(self.database.approver_url, str(row["proposal_id"]), decision, "looked at")

    def _seen(self, key: str, body: bytes) -> None:
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
        if self.now() >= not_after:
            raise RuleBroken(f"rule 12: key {key} was sent at {self.now()}, after its deadline {not_after}")
        if state == "submitting" and json.loads(body)["token"] not in self.payable[run_id]:
            raise RuleBroken(f"key {key} was sent to a token of a party that may not be paid: {json.loads(body)}")

    # What was committed ----------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Read what is stored, tell the model what is new, and hold every rule."""
        started, self.started = self.started, list(self.effects.under_way)
        for task in started:
            if task.error is not None:
                raise RuleBroken(f"{task.name} raised {type(task.error).__name__}: {task.error}") from task.error
        before, self.snapshot = self.snapshot, self.database.snapshot()
        left_before = self._left()
        self._tell_decisions(before)
        self._tell_postings(before)
        self._tell_refunds(before, left_before)
        self._tell_instructions(before)
        self._tell_events(before)
        self._tell_lines(before)
        self._hold_day_limits(before)
        found = list(breaches(before, self.snapshot, self.model))
        twice = self.processor.paid_twice()
        found += [f"key {key} was carried out twice" for key in twice]
        if found:
            raise RuleBroken("; ".join(found[:5]))

    def _hold_day_limits(self, before: Snapshot) -> None:
        sent: Counter[tuple[date, str]] = Counter()
        for row in self.snapshot["payout_attempts"]:
            if row["attempt_no"] == 1:
                instructed = self.model.instructed[str(row["instruction_id"])]
                day = datetime.fromisoformat(str(row["started_at"])).astimezone(_ZONE).date()
                sent[day, instructed.party[1]] += instructed.amount_minor
        if self._new(before, "payout_attempts", "instruction_id", "attempt_no"):
            for (day, currency), minor in sent.items():
                if minor > self.policy.of(currency).day_limit_minor:
                    raise RuleBroken(f"{minor} {currency} was sent on {day}, above the day's limit")

    def _new(self, before: Snapshot, table: str, *key: str) -> list[Row]:
        rows = self.snapshot[table]
        if goes_on(before.get(table, []), rows):
            return rows[len(before.get(table, [])) :]
        known = {tuple(row[name] for name in key) for row in before[table]}
        return [row for row in rows if tuple(row[name] for name in key) not in known]

    def _tell_decisions(self, before: Snapshot) -> None:
        proposals = {row["proposal_id"]: row["content"] for row in self.snapshot["proposals"]}
        for row in self._new(before, "journals", "journal_id"):
            if row["kind"] == "write_off":
                asked = proposals[row["proposal_id"]]
                account = asked["party_id"], asked["currency"]
                self.model.written_off[account] = self.model.written_off.get(account, 0) + asked["amount_minor"]
        for row in self._new(before, "proposal_decisions", "proposal_id"):
            change = proposals[row["proposal_id"]]
            if row["decision"] == "accepted" and "effect" in change:
                self.model.accepted |= {_rule_change(change)}
                self.accepted.append(self.model.accepted)

    def _tell_postings(self, before: Snapshot) -> None:
        new = self._new(before, "day_postings", "match_day", "seq")
        for row in new:
            if row["input_hashes"] != self.hashed.get(str(row["run_id"])):
                raise RuleBroken(
                    f"rule 4: {row['run_id']} posted {row['match_day']} from what is not its input any more"
                )
        runs = [self.inputs[str(row["run_id"])] for row in new]
        if not runs:
            return
        # Several days that were posted at once: some order of them explains what is stored. A run that stalled may
        # have asked what is accepted before something was.
        knew = [dict.fromkeys([self.model.accepted, *self.accepted[since:]]) for _, _, since in runs]
        tried = [
            self._posted([(day, landed, accepted) for (day, landed, _), accepted in order])
            for accepted in product(*knew)
            for order in permutations(zip(runs, accepted, strict=True))
        ]
        self.model = next(filter(self._explains, tried), tried[0]) if len(tried) > 1 else tried[0]

    def _posted(self, runs: list[tuple[int, tuple[Match, ...], frozenset[RuleChange]]]) -> Model:
        """Give the model after these postings, one after the other, each with what it found accepted."""
        now = self.model
        tried = replace(now, posted=dict(now.posted), postings=dict(now.postings), breaks=dict(now.breaks))
        for day, landed, accepted in runs:
            tried.accepted = accepted
            tried.post(day, landed)
        tried.accepted = now.accepted
        return tried

    def _explains(self, tried: Model) -> bool:
        revisions = {match_id: match.revision for match_id, match in tried.posted.items()}
        return revisions == self._stored_revisions() and tried.accrued() == {
            account: minor for account, minor in accrued_of(self.snapshot).items() if minor
        }

    def _left(self) -> dict[tuple[str, str], int]:
        """Give what the model says each fee still charges that something was ever refunded of."""
        pots = {(str(row["match_id"]), str(row["pot_party_id"])) for row in self.snapshot["refunds"]}
        return {pot: self.model.left(pot) for pot in pots}

    def _tell_refunds(self, before: Snapshot, left_before: dict[tuple[str, str], int]) -> None:
        """A refund accepted beside a posting was bounded by what the fee charged before it or after."""
        bound = {pot: max(left, left_before[pot]) for pot, left in self._left().items()}
        new = self._new(before, "refunds", "refund_id")
        for row in sorted(new, key=lambda row: str(row["pot_no"])):
            pot = str(row["match_id"]), str(row["pot_party_id"])
            amount = row["amount_minor"]
            assert isinstance(amount, int)
            bound[pot] -= amount
            if bound[pot] < 0:
                raise RuleBroken(f"refund {row['refund_id']} of {amount} is {-bound[pot]} above what its fee charged")
            self.model.refunds.setdefault(pot, []).append(amount)

    def _stored_revisions(self) -> dict[str, int]:
        newest = sorted(self.snapshot["match_postings"], key=lambda row: row["posting_no"])
        return {row["match_id"]: row["revision"] for row in newest}

    def _tell_instructions(self, before: Snapshot) -> None:
        for row in self._new(before, "payout_instructions", "instruction_id"):
            amount = row["amount_minor"]
            assert isinstance(amount, int)
            if 0 < amount < self.policy.of(str(row["currency"])).minimum_minor:
                raise RuleBroken(f"instruction {row['instruction_id']} of {amount} is below the minimum")
            self.model.instructed[str(row["instruction_id"])] = Instructed(
                (str(row["party_id"]), str(row["currency"])),
                amount,
                -1 if row["direction"] == "debit" else 1,
                fate="netted" if amount == 0 else "unsent",
            )

    def _tell_events(self, before: Snapshot) -> None:
        accepted = {payment.key for payment in self.processor.payments if not payment.rejected}
        rejected = {payment.key for payment in self.processor.payments if payment.rejected}
        for row in self._new(before, "instruction_events", "instruction_id", "seq"):
            instruction, state = str(row["instruction_id"]), row["to_state"]
            by_report = str(row["actor"]).startswith("report of")
            instructed = self.model.instructed[instruction]
            limit = self.policy.of(instructed.party[1]).instruction_limit_minor
            if state == "approved" and row["from_state"] == "created" and instructed.amount_minor > limit:
                raise RuleBroken(f"rule 13: instruction {instruction} is over its limit, and nobody approved it")
            if state == "submitting":
                self.model.instructed[instruction].fate = "sent"
            elif state == "cancelled":
                self.model.instructed[instruction].fate = "cancelled"
            elif state == "submitted" and instruction not in accepted:
                raise RuleBroken(f"instruction {instruction} is submitted, and the processor never took it")
            elif state == "failed" and not by_report:
                certain = self._is_past(instruction) or self._never_accepted(instruction)
                if instruction not in rejected and (instruction in accepted or not certain):
                    raise RuleBroken(f"rule 8: instruction {instruction} failed, and the processor never refused it")
                self.model.instructed[instruction].fate = "undone"

    def _tell_lines(self, before: Snapshot) -> None:
        known = {line["entry_reference"]: line for line in self.processor.lines}
        new = self._new(before, "report_lines", "entry_reference")
        rank = {"settled": 0, "failed": 1, "returned": 2}
        runs = [str(row["run_id"]) for row in self.snapshot["report_intakes"]]
        new.sort(
            key=lambda row: (runs.index(str(row["run_id"])), rank.get(str(row["kind"]), 3), row["entry_reference"])
        )
        for row in new:
            line = known[str(row["entry_reference"])]
            said = (row["kind"], row["amount_minor"], row["currency"], row["idempotency_key"])
            if said != (line["kind"], line["amount_minor"], line["currency"], line["idempotency_key"]):
                raise RuleBroken(f"report line {row} is not what the processor said: {line}")
            if row["instruction_id"] is not None:
                instruction = self.model.instructed[str(row["instruction_id"])]
                amount = line["amount_minor"] * -instruction.sign
                self.model.take_in(str(row["instruction_id"]), line["kind"], amount)

    # The end ---------------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """End every trouble, let the days run, and hold that everybody was paid what they are owed.

        Raises:
            RuleBroken: somebody was not, or not once.
        """
        self._end_troubles()
        for day in sorted({match.day for match in self.delivered.values()}):
            landed = self.landing.get(day, {})
            if self.model.breaks.get(day) != set() or any(self.model.posted.get(m) != landed[m] for m in landed):
                self._calm_act("post", day)
        self.observe()
        due = [match for matches in self.landing.values() for match in matches.values()]
        unposted = sorted(match.match_id for match in due if self.model.posted.get(match.match_id) != match)
        if unposted:
            raise RuleBroken(f"at the end: {unposted} can be posted and is not")
        swept = {row["sweep_day"] for row in self.snapshot["sweeps"]}
        for day in sorted({match.day for match in self.delivered.values()}):
            if day_of(day).isoformat() not in swept:
                self._calm_act("sweep", day)
        for number in range(_CALM_ROUNDS):
            day = self.days + _CALM_AFTER_DAYS + 3 * number
            self._calm_act("sweep", day)
            self._calm_act("dispatch", day)
            self.observe()
            while any(map(self._is_for_a_person, self.model.instructed)):
                self._calm_act("resolve", 0)
                self.observe()
            waiting = [payment for payment in self.processor.payments if not payment.over]
            last = max((date.fromisoformat(payment.request["execute_on"]) for payment in waiting), default=FIRST_DAY)
            for payment in waiting:
                self.processor.move(payment, last, "settled", payment.request["amount_minor"])
            self._take_in_all()
            self.observe()
            if self._is_quiet():
                break
            self.true_now += timedelta(hours=26)
            self.database.set_clock(self.now())
        self._reconcile_residues()
        self._hold_everybody_paid()

    def verify(self) -> None:
        """Take every report in once more, as a day that is run again does, and let `verify` look at everything.

        Raises:
            RuleBroken: `verify` finds a breach that the world's own troubles do not explain.
        """
        dates = sorted({line["report_date"] for line in self.processor.lines})
        for day in dates:
            self._calm_act("settle", (day - FIRST_DAY).days)
        self.observe()
        with connect(self.database.url) as connection:
            found = {name: rule(connection).breaches for name, rule in TABLE_RULES.items() if name not in _EXPLAINED}
        posted = sorted({date.fromisoformat(str(row["match_day"])) for row in self.snapshot["day_postings"]})
        found[CERTIFICATES] = breaches_of_certificates(self.database.url, self.storage, posted)
        broken = [f"{name}: {breaches[0]}" for name, breaches in found.items() if breaches]
        if broken:
            raise RuleBroken("verify: " + "; ".join(broken))

    def _end_troubles(self) -> None:
        self.processor.answers.clear()
        self.processor.down = False
        for task in list(self.effects.under_way):
            if task in self.effects.under_way:
                task.fate = Fate()
                self.effects.run(task)
        self.observe()
        self.skew = timedelta()
        # Who shares a fee that is paid out when it is collected waits for a payer whose net is below the minimum.
        self.policy = _policy(self.policy, ops.History(self.days, 10**12, 10**12, ()), minimum_minor=1, batch_size=100)
        self.parties = {party_id: Party(token=(party.token or 0) + 1_000) for party_id, party in self.parties.items()}
        for match in list(self.delivered.values()):
            posted = self.model.posted.get(match.match_id)
            if posted is not None:
                match = replace(match, rules=posted.rules)
                if shares(posted):
                    match = replace(match, day=posted.day)
                if match.revenue_minor is None and posted.revenue_minor is not None:
                    match = replace(match, revenue_minor=0)
            if self.landing.get(match.day, {}).get(match.match_id) != match or self.model.refusal(match):
                self._land(replace(match, revision=match.revision + 1, rejected=False))

    def _calm_act(self, kind: str, day: int) -> None:
        task = self._start(ops.Act(kind, day))
        self._finish(task)

    def _take_in_all(self) -> None:
        taken = {row["entry_reference"] for row in self.snapshot["report_lines"]}
        dates = sorted({line["report_date"] for line in self.processor.lines if line["entry_reference"] not in taken})
        for day in dates:
            self._calm_act("settle", (day - FIRST_DAY).days)

    def _is_quiet(self) -> bool:
        return not any(self._waits(key) for key in self.model.instructed) and not self._open_beyond_minimum()

    def _waits(self, instruction: str) -> bool:
        return self.model.instructed[instruction].fate in ("unsent", "sent")

    def _is_for_a_person(self, instruction: str) -> bool:
        """Say whether its deadline passed and the processor does not know its key: it is never sent again."""
        return states_of(self.snapshot).get(instruction) == "unknown" and self._is_past(instruction)

    def _never_accepted(self, instruction: str) -> bool:
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

    def _is_past(self, instruction: str) -> bool:
        """Say whether the deadline of an instruction that was sent has passed."""
        return any(
            self.now() > datetime.fromisoformat(row["not_after"])
            for row in self.snapshot["payout_attempts"]
            if row["instruction_id"] == instruction
        )

    def _open_beyond_minimum(self) -> dict[Account, int]:
        """Give what is open and has no right to be."""
        return {
            account: minor
            for account, minor in self.model.open().items()
            if abs(minor) >= self.policy.of(account[1]).minimum_minor
        }

    def _reconcile_residues(self) -> None:
        """Name what is left in transit as a break, on the last date that a report said something of it."""
        lines = [row for row in self.snapshot["report_lines"] if row["instruction_id"] is not None]
        odd = {
            key
            for key, instruction in self.model.instructed.items()
            if instruction.fate in ("settled", "undone") and instruction.moved_minor != instruction.amount_minor
        }
        last = {row["instruction_id"]: row["report_date"] for row in sorted(lines, key=lambda row: row["report_date"])}
        dates = {date.fromisoformat(on) for key, on in last.items() if key in odd}
        for day in sorted(dates):
            self._calm_act("reconcile", (day - FIRST_DAY).days)
        if dates:
            self.observe()
        short = {
            key
            for key in odd
            if self.model.instructed[key].takes_minor
            != self.model.instructed[key].sign * self.model.instructed[key].moved_minor
        }
        breaks = {row["subject_id"] for row in self.snapshot["reconciliation"] if row["status"] == "break"}
        if short - breaks:
            raise RuleBroken(f"at the end: no break names {sorted(short - breaks)}")

    def _hold_everybody_paid(self) -> None:
        """Hold what the processor moved against what is owed: the whole of it, once, to the last minor unit."""
        lost = Counter(self.model.owed())
        for payment in self.processor.payments:
            instruction = self.model.instructed[payment.key]
            lost[instruction.party] -= instruction.sign * payment.moved_minor
        for account, minor in self.model.open().items():
            lost[account] -= minor
        for instruction in self.model.instructed.values():
            left = instruction.takes_minor - instruction.sign * instruction.moved_minor
            if left and instruction.fate in ("settled", "undone"):
                lost[instruction.party] -= left  # in transit: a break, which reconciliation names
        self.lost_minor = sum(map(abs, lost.values()))
        waiting = [key for key in self.model.instructed if self._waits(key)]
        found = [
            f"{account} was owed {minor} that was neither paid nor is open" for account, minor in lost.items() if minor
        ]
        found += [f"{account} still has {minor} open" for account, minor in self._open_beyond_minimum().items()]
        found += [f"instruction {key} still is {states_of(self.snapshot)[key]}" for key in waiting]
        if found:
            raise RuleBroken("at the end: " + "; ".join(found[:5]))


def _rule_change(content: dict[str, Any]) -> RuleChange:
    """Read a change of rules as it was proposed; what it does to pots follows from what it does to parties."""
    matches = [(match_id, int(rules.removeprefix("rules ")), *rest) for match_id, rules, *rest in content["matches"]]
    effect = [
        (account.removeprefix("party:"), minor)
        for account, _, minor in content["effect"]
        if account.startswith("party:") and minor
    ]
    return RuleChange(frozenset(matches), frozenset(effect))


async def _no_sleep(_seconds: float) -> None:
    """Time is the simulation's."""


def _policy(policy: Policy, settings: ops.History, *, minimum_minor: int = 100, batch_size: int = 3) -> Policy:
    limits = CurrencyPolicy(
        minimum_minor=minimum_minor,
        instruction_limit_minor=settings.limit_minor,
        party_day_limit_minor=settings.day_limit_minor,
        day_limit_minor=settings.day_limit_minor,
    )
    dispatch = policy.dispatch.model_copy(update={"batch_size": batch_size, "retries": 1, "breaker_failures": 4})
    return policy.model_copy(update={"default": limits, "currencies": {}, "dispatch": dispatch})
