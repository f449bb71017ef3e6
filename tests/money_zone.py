"""The money zone driven by hand: days posted, swept, sent and settled without Dagster, files or a processor."""

import datetime as dt
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg

from payments_pipeline.domain.policy import CurrencyPolicy, Policy
from payments_pipeline.processors.base import (
    Acknowledgement,
    Capabilities,
    LookUp,
    LookUpStatus,
    PayoutRequest,
)
from payments_pipeline.processors.dispatch import Dispatch, Dispatched, utc_now
from payments_pipeline.settings import Settings, load_policy
from payments_pipeline.storage.ledger_entries import DayInput, Posted, post_day
from payments_pipeline.storage.payout_instructions import Swept, sweep_day_items
from payments_pipeline.storage.postgres import RunInfo
from payments_pipeline.storage.settlement_records import TakenIn, take_report_in

DAY = dt.date(2024, 8, 17)
NEXT = DAY + dt.timedelta(days=1)
RUN = RunInfo("run", "1", "scheduler")
SANDBOX = "sandbox"
POLICY = load_policy(Settings(home=Path("unused"), config=None))
HASHES = {"landing": "1"}
_references = itertools.count(1)


def policy(**limits: Any) -> Policy:
    """The shipped policy with other limits of the default; `dispatch` and `sweep` take mappings."""
    groups = {name: limits.pop(name, {}) for name in ("dispatch", "sweep")}
    content = POLICY.model_dump()
    for name, values in groups.items():
        content[name] |= values
    content["default"] = CurrencyPolicy.model_validate(content["default"] | limits).model_dump()
    content["currencies"] = {}
    return Policy.model_validate(content)


def match(match_id: str, revision: int = 1, day: dt.date = DAY, **other: Any) -> dict[str, Any]:
    """A row of `match_results`."""
    return {
        "match_id": match_id,
        "competition_id": "c1",
        "match_day": day,
        "kicked_off_at": pd.Timestamp(day, tz="UTC"),
        "home_club_id": "club:a",
        "away_club_id": "club:b",
        "status": "completed",
        "home_score": 1,
        "away_score": 0,
        "winner_club_id": None,
        "revenue_minor": 1000,
        "revision": revision,
        "currency": "GBP",
        "schedule_version": "v1",
        "payout_policy": "immediate",
        "content_hash": f"content {revision}",
        "rules_hash": "rules",
        "source": "s",
        "line_number": 1,
    } | other


def share(match_id: str, party_id: str, amount_minor: int, line_no: int = 1, **other: Any) -> dict[str, Any]:
    """A row of `participant_shares`: part of the match's revenue."""
    return {
        "match_id": match_id,
        "competition_id": "c1",
        "pot": "revenue",
        "pot_party_id": "",
        "schedule_version": "v1",
        "line_no": line_no,
        "recipient": "x",
        "party_id": party_id,
        "amount_minor": amount_minor,
        "currency": "GBP",
    } | other


def fee(match_id: str, payer: str, recipients: Mapping[str, int], **other: Any) -> list[dict[str, Any]]:
    """Rows of `participant_shares`: a match fee that `payer` owes to the recipients."""
    pot = {"pot": "match_fee", "pot_party_id": payer} | other
    return [
        share(match_id, payer, -sum(recipients.values()), 1, recipient="payer", **pot),
        *(share(match_id, party, amount, 2, recipient="club", **pot) for party, amount in recipients.items()),
    ]


def participant(match_id: str, party_id: str) -> dict[str, Any]:
    """A row of `match_participants`, as far as posting reads it."""
    return {"match_id": match_id, "party_id": party_id, "club_id": "club:a", "role": "player"}


def frame(rows: Sequence[dict[str, Any]], like: dict[str, Any]) -> pd.DataFrame:
    """Rows as a frame that has `like`'s columns even without rows."""
    return pd.DataFrame([*rows, like]).iloc[: len(rows)]


def matches_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return frame(rows, match("none"))


def shares_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return frame(rows, share("none", "none", 1))


def participants_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return frame(rows, participant("none", "none"))


def parties_frame(**status: str | dict[str, Any]) -> pd.DataFrame:
    """Reference parties: `a="on_hold"`, or `a={"payout_token": None}`; each is active with tokens otherwise."""
    rows = []
    for party_id, given in status.items():
        other = {"status": given} if isinstance(given, str) else given
        tokens = {"payout_token": f"pay_{party_id}", "collection_token": f"collect_{party_id}"}
        rows.append({"party_id": party_id, "status": "active", "token_changed_by": None} | tokens | other)
    columns = ["party_id", "status", "payout_token", "collection_token", "token_changed_by"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _revenue(match_id: str, shares: Sequence[dict[str, Any]]) -> dict[str, int]:
    shared = [row["amount_minor"] for row in shares if (row["match_id"], row["pot"]) == (match_id, "revenue")]
    return {"revenue_minor": sum(shared)} if shared else {}


@dataclass
class FakeProcessor:
    """A processor in memory: keeps what it took, and answers as `answer` says.

    `answer` is called before a key is kept: what it raises is the answer. `lose` is called after.
    """

    name: str = SANDBOX
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(dt.timedelta(hours=24), 8, 100_000, 1.0))
    answer: Callable[[str], None] = lambda _key: None
    lose: Callable[[str], None] = lambda _key: None
    look: Callable[[str], LookUp | None] = lambda _key: None
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    taken: dict[str, bytes] = field(default_factory=dict)
    looked_up: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_args: object) -> None:
        return None

    def encode(self, request: PayoutRequest) -> bytes:
        return repr(request).encode()

    async def submit(self, body: bytes, idempotency_key: str) -> Acknowledgement:
        self.requests.append((idempotency_key, body))
        self.answer(idempotency_key)
        assert self.taken.setdefault(idempotency_key, body) == body, "one key, two requests"
        self.lose(idempotency_key)
        return Acknowledgement(f"ref {idempotency_key}")

    async def look_up(self, idempotency_key: str) -> LookUp:
        self.looked_up.append(idempotency_key)
        told = self.look(idempotency_key)
        if told is not None:
            return told
        if idempotency_key in self.taken:
            sha256 = hashlib.sha256(self.taken[idempotency_key]).hexdigest()
            return LookUp(LookUpStatus.ACCEPTED, f"ref {idempotency_key}", request_sha256=sha256)
        return LookUp(LookUpStatus.NEVER_SEEN)


async def no_sleep(_seconds: float) -> None:
    return None


@dataclass(frozen=True)
class MoneyZone:
    """One business database, and the acts that change it."""

    url: str

    def post(
        self,
        matches: Sequence[dict[str, Any]],
        shares: Sequence[dict[str, Any]],
        day: dt.date = DAY,
        participants: Sequence[dict[str, Any]] = (),
    ) -> Posted:
        """Post matches; the revenue of one that is shared is what its shares come to."""
        rejected = pd.DataFrame({"dataset": [], "outcome": [], "match_id": [], "reason": []}, dtype=object)
        read = DayInput(
            matches_frame([row | {"match_day": day} | _revenue(row["match_id"], shares) for row in matches]),
            participants_frame(participants),
            shares_frame(shares),
            rejected,
            HASHES,
        )
        return post_day(self.url, day, read, lambda: HASHES, RUN)

    def owe(self, day: dt.date = DAY, match_id: str = "", revision: int = 1, **amounts: int) -> Posted:
        """Post one match whose revenue is shared as `amounts` say; below zero is a match fee, paid into suspense."""
        match_id = match_id or f"m-{day}"
        shares = [share(match_id, party, amount) for party, amount in amounts.items() if amount > 0]
        fees = [fee(match_id, party, {"suspense": -amount}) for party, amount in amounts.items() if amount < 0]
        for charged in fees:
            charged[1] |= {"line_no": 0, "recipient": "suspense"}
        return self.post([match(match_id, revision)], shares + list(itertools.chain.from_iterable(fees)), day)

    def sweep(self, parties: pd.DataFrame, day: dt.date = DAY, policy: Policy = POLICY) -> Swept:
        return sweep_day_items(self.url, day, parties, SANDBOX, policy, RUN)

    def dispatch(
        self, parties: pd.DataFrame, processor: FakeProcessor, day: dt.date = DAY, policy: Policy = POLICY, **other: Any
    ) -> Dispatched:
        return Dispatch(
            self.url,
            day,
            processor,  # type: ignore[arg-type]  # it reports nothing: no dispatch asks it to
            policy,
            ZoneInfo("Europe/London"),
            RUN,
            **({"clock": utc_now, "sleep": no_sleep} | other),
        )(parties)

    def take_in(self, lines: Sequence[dict[str, Any]], day: dt.date = NEXT, closing_minor: int = 0) -> TakenIn:
        balances = pd.DataFrame({"currency": ["GBP"], "opening_minor": [0], "closing_minor": [closing_minor]})
        report = frame([row | {"report_date": day} for row in lines], line("none", 0))
        return take_report_in(self.url, day, SANDBOX, report, balances, "d", frozenset(["pot:c1"]), RUN)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True, options="-c search_path=payments") as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def value(self, query: str, *parameters: object) -> Any:
        [[value]] = self.rows(query, *parameters)
        return value

    def states(self) -> dict[str, str]:
        """State of each instruction by `party day`."""
        return dict(
            self.rows(
                """SELECT i.party_id || ' ' || i.sweep_day, s.state
                   FROM payout_instructions i JOIN instruction_states s USING (instruction_id)"""
            )
        )

    def instruction(self, party_id: str, day: dt.date = DAY) -> str:
        """Id of the party's instruction of that sweep day."""
        found: str = self.value(
            "SELECT instruction_id::text FROM payout_instructions WHERE party_id = %s AND sweep_day = %s", party_id, day
        )
        return found

    def open_items(self) -> dict[str, int]:
        """Net of each party's open items."""
        return dict(self.rows("SELECT party_id, sum(amount_minor)::bigint FROM open_items GROUP BY 1"))

    def balances(self) -> dict[str, int]:
        """Each account's balance, debits less credits; those at zero are left out."""
        return dict(
            self.rows(
                """SELECT account, (sum(debit_minor) - sum(credit_minor))::bigint FROM ledger_entries GROUP BY 1
                   HAVING sum(debit_minor) <> sum(credit_minor)"""
            )
        )

    def party_balances_disagree(self) -> list[tuple[Any, ...]]:
        """Parties whose balance is not their open items and those claimed by instructions not yet sent."""
        return self.rows(
            """SELECT party_id, currency, sum(minor) FROM (
                   SELECT party_id, currency, credit_minor - debit_minor AS minor FROM ledger_entries
                   WHERE party_id IS NOT NULL
                   UNION ALL SELECT party_id, currency, -amount_minor FROM open_items
                   UNION ALL SELECT i.party_id, i.currency, -(e.credit_minor - e.debit_minor)
                   FROM instruction_claims c JOIN payout_instructions i USING (instruction_id)
                   JOIN instruction_states s USING (instruction_id) JOIN ledger_entries e ON e.entry_id = c.item_id
                   WHERE s.state IN ('created', 'held', 'approved')
               ) sides GROUP BY 1, 2 HAVING sum(minor) <> 0"""
        )


def line(key: str | None, amount_minor: int, kind: str = "settled", **other: Any) -> dict[str, Any]:
    """A line of a settlement report, with a reference of its own."""
    return {
        "processor": SANDBOX,
        "entry_reference": f"e{next(_references)}",
        "report_date": NEXT,
        "kind": kind,
        "idempotency_key": key,
        "processor_reference": None,
        "subject": None,
        "amount_minor": amount_minor,
        "currency": "GBP",
        "reason": None,
        "occurred_at": pd.Timestamp("2024-08-18T10:00Z"),
    } | other
