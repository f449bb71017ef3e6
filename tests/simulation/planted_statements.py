"""The statements of the product that are changed, and those of Postgres that would refuse what follows."""

from planting import Edit, PostgresEdit

from payments_pipeline.domain import ledger, participant_shares, payout_instructions, payout_submissions, pots, refunds
from payments_pipeline.domain import settlement_records as settling
from payments_pipeline.processors import dispatch
from payments_pipeline.storage import approvals, ledger_entries
from payments_pipeline.storage import dispatch_gate as gate
from payments_pipeline.storage import payout_instructions as sweeping
from payments_pipeline.storage import payout_submissions as submitting
from payments_pipeline.storage import reconciliation as reconciling
from payments_pipeline.storage import settlement_records as intake


def without(table: str, *triggers: str) -> tuple[str, ...]:
    """Take triggers away."""
    return tuple(f"ALTER TABLE payments.{table} DISABLE TRIGGER {trigger}" for trigger in triggers)


def undone(table: str, *constraints: str) -> tuple[str, ...]:
    """Take constraints away, and what refers to them."""
    return tuple(f"ALTER TABLE payments.{table} DROP CONSTRAINT {constraint} CASCADE" for constraint in constraints)


# Dividing -------------------------------------------------------------------------------------------------------------

#: Nothing is changed here; what calls the statement that is changed runs as it is written.
_UNCOMPILED = Edit(pots, "_fill", "row, pots, too_wide = 0, 0, 0", "row, pots, too_wide = 0, 0, 0")
_UNITS = (pots, "divide_pot", "if units > 0:")
ROUNDED = (
    _UNCOMPILED,
    Edit(
        *_UNITS,
        """for k in range(lines):
        for i in range(begin[k], begin[k + 1]):
            given[i] = round(given[i] + rest[k] / base[k])
    if False:""",
    ),
)
ROUNDED_BUT_THE_LAST = (
    _UNCOMPILED,
    Edit(
        *_UNITS,
        """for k in range(lines):
        for i in range(begin[k], begin[k + 1]):
            given[i] = round(given[i] + rest[k] / base[k])
    given[end - 1] = remaining - given[begin[0] : end - 1].sum()
    if False:""",
    ),
)
UNIT_LOST = (_UNCOMPILED, Edit(*_UNITS, "if units > 1:"))
UNIT_TWICE = (_UNCOMPILED, Edit(pots, "divide_pot", "entitled - handed", "entitled - handed + (entitled > handed)"))
UNCHECKED = Edit(participant_shares, "compute_shares", "_conserved(matches, found)", "pass")
POSTED_UNCHECKED = Edit(
    ledger_entries,
    "post_day",
    "(day_input.matches, day_input.shares)",
    "(day_input.matches.iloc[:0], day_input.shares.iloc[:0])",
)

# Posting --------------------------------------------------------------------------------------------------------------

VOID_KEPT = Edit(ledger, "_deltas", 'how="outer"', 'how="left"')
VOID_TWICE = Edit(ledger, "_deltas", "now - before", "now - before * (1 + (now == 0))")
FIRST_POSTING_ONLY = Edit(ledger_entries, "_POSTED_ENTRIES", "kind = 'accrual'", "kind = 'accrual' AND posting_no = 1")
ANY_DAY = Edit(ledger, "_break_reasons", 'is_open & state["posted_match_day"].ne(day)', "is_open & False")

_STALE = (ledger_entries, "post_day", "if now != dict(day_input.input_hashes):")
STALE_INPUT = Edit(*_STALE, "if False:")
NEVER_POSTED = Edit(*_STALE, "if True:")

# Refunds --------------------------------------------------------------------------------------------------------------

REFUND_UNDONE = Edit(
    ledger_entries,
    "_POSTED_ENTRIES",
    "count(*)\n    FROM ledger_entries\n    WHERE kind = 'accrual'",
    "count(*) FILTER (WHERE kind = 'accrual')\n    FROM ledger_entries\n    WHERE kind IN ('accrual', 'refund')",
)
REFUND_KEPT = Edit(
    ledger_entries,
    "_post",
    "refunds = recompute_refunds(cursor, day, posted_entries, plan.entries, plan.matches)",
    "refunds = None",
)
REFUND_UNBOUNDED = Edit(refunds, "decide_requests", "wanted[wanted > left[rows]] = 0", "pass")

# Sweeping -------------------------------------------------------------------------------------------------------------

CLAIMED_TOO = Edit(
    sweeping,
    "_ITEMS",
    "        FROM open_items o\n        WHERE o.day <= {day}",
    """    FROM (SELECT entry_id AS item_id, 1 AS next_claim_no, party_id, currency, day, kind, match_id, pot,
                 pot_party_id, credit_minor - debit_minor AS amount_minor, recipient, NULL::date AS available_after
          FROM ledger_entries WHERE is_item) o
    WHERE o.day <= {day}""",
)
DEFERRED_DROPPED = Edit(sweeping, "_ITEMS", "WHERE o.day <= {day}", "WHERE o.day = {day}")
NOT_TOLD = Edit(sweeping, "_write", 'copy_frame(cursor, "sweep_deferrals", ', "(")
FAILURES_FORGOTTEN = Edit(
    sweeping,
    "sweep_day_items",
    "plan_sweep(day, items, parties, failing,",
    "plan_sweep(day, items, parties, failing.iloc[:0],",
)
SWEPT_AT_ONCE = Edit(sweeping, "sweep_day_items", "transaction_lock(cursor, Lock.INSTRUCTIONS)", "pass")
POSTED_AT_ONCE = Edit(
    ledger_entries,
    "post_day",
    "session_lock(connection, Lock.DAY, day_key(day))",
    "__import__('contextlib').nullcontext()",
)
SENT_AT_ONCE = Edit(
    dispatch, "Dispatch.__call__", "session_lock(connection, Lock.DISPATCH)", "__import__('contextlib').nullcontext()"
)
WRONG_SIGN = Edit(payout_instructions, "_nets", "net = np.add.reduceat(", "net = -np.add.reduceat(")
CURRENCIES_MERGED = Edit(payout_instructions, "_nets", " | (currency[1:] != currency[:-1])", "")
NO_APPROVER = Edit(payout_instructions, "_instructions", "over = amount_minor >", "over = amount_minor < 0 *")
NO_MINIMUM = Edit(payout_instructions, "_nets", "(np.abs(net) < minimum)", "(np.abs(net) < 0)")
BROKEN_TOO = (
    Edit(sweeping, "_ITEMS", "THEN 'posting_break'", "THEN NULL"),
    Edit(gate, "_FAULTS", "WHEN c.is_broken", "WHEN false"),
)
STOPPED_TOO = Edit(sweeping, "_ITEMS", "WHERE match_day <> {day}", "WHERE match_day <> {day} AND NOT was_swept")
APART_FROM_STOPPED = Edit(
    payout_instructions, "_with_their_party", "holds_up[0, of_row[is_unswept]] = True", "holds_up[0] = False"
)
MADE_UP_APART = Edit(sweeping, "_ITEMS", "OR o.match_id IS NULL AND EXISTS (", "OR false AND EXISTS (")
APART = Edit(sweeping, "_ITEMS", "THEN 'correction_under_way'", "THEN NULL")
NOT_COLLECTED_TOO = Edit(sweeping, "_ITEMS", "THEN 'not_collected'", "THEN NULL")
OPEN_OR_NOT = (
    PostgresEdit("check_instruction_claims", "m.is_new AND m.is_open", "m.is_new"),
    PostgresEdit("check_instruction_claims", "IF claimed <> expected", "IF false"),
)
ANY_CURRENCY = PostgresEdit(
    "check_instruction_claims", "(o.party_id, o.currency) = (i.party_id, i.currency)", "o.party_id = i.party_id"
)
ANY_NET = PostgresEdit("check_instruction_claims", "AND m.net = CASE", "AND m.is_new OR m.net = CASE")

# Sending --------------------------------------------------------------------------------------------------------------

SENT_FIRST = Edit(
    dispatch,
    "_Course.begin",
    "attempts, refused = store.begin(",
    "attempts, refused = "
    "(lambda *_: ([Attempt(k, 1, k, r, not_after) for k, r in zip(batch.instruction_id, requests)], 0))(",
)
_NO_ANSWER = 'except PayoutOutcomeUnknownError as error:\n        return Outcome(attempt, "unknown"'
UNKNOWN_FAILED = Edit(dispatch, "_Course.submit", _NO_ANSWER, _NO_ANSWER.replace('"unknown"', '"rejected"'))
UNKNOWN_AGAIN = Edit(dispatch, "_Course.submit", _NO_ANSWER, _NO_ANSWER.replace('"unknown"', '"unavailable"'))
SENT_TWICE = Edit(
    dispatch,
    "_Course.submit",
    "acknowledgement = await self.processor.submit(attempt.request, key)",
    "await self.processor.submit(attempt.request, key)\n"
    "        acknowledgement = await self.processor.submit(attempt.request, key)",
)
NEW_KEY = Edit(
    submitting, "begin_again", "attempt_no + 1, idempotency_key,", "attempt_no + 1, idempotency_key || '.2',"
)
OTHER_BYTES = Edit(
    submitting,
    "begin_again",
    "request,\n                      request_sha256,",
    "request || ' ', encode(sha256(request || ' '), 'hex'),",
)
OTHER_BYTES_SENT = Edit(
    submitting,
    "begin_again",
    "return [Attempt(*row) for row in cursor.fetchall()]",
    "return [Attempt(*row[:3], row[3] + b' ', row[4]) for row in cursor.fetchall()]",
)
OWN_CLOCK = Edit(submitting, "begin", "least(%s, clock_timestamp() + %s)", "coalesce(%s, clock_timestamp() + %s)")
TRUSTED_TOO_LONG = Edit(payout_submissions, "sendable_for", "return max(", "return 10 * max(")
DEAD_IS_FAILED = Edit(submitting, "abandon_unanswered", "str(State.UNKNOWN)", "str(State.FAILED)")
HOLD_IGNORED = Edit(gate, "_FAULTS", "WHEN p.known ->> 'status' <> 'active'", "WHEN false")
TOKEN_IGNORED = Edit(gate, "_FAULTS", "WHEN i.token IS DISTINCT FROM", "WHEN false AND i.token IS DISTINCT FROM")
GATE_LEFT_OPEN = Edit(
    submitting, "may_leave_again", "found = faults(cursor, instruction_ids, parties)", "found: list[Fault] = []"
)
NO_DAY_LIMIT = Edit(
    payout_submissions,
    "within_limits",
    "if approved.empty:\n        return pd.Series([], index=approved.index, dtype=bool)",
    "if len(approved):\n        return pd.Series(data=True, index=approved.index)",
)
CANCELLED_TOO = (
    Edit(submitting, "_APPROVED", "s.state = 'approved'", "s.state IN ('approved', 'cancelled')"),
    Edit(submitting, "begin", "WHERE state = 'approved' AND", "WHERE state IN ('approved', 'cancelled') AND"),
    Edit(gate, "refuse", "found = faults(cursor, instruction_ids, parties)", "found: list[Fault] = []"),
)
COLLECTION_PAYS = Edit(dispatch, "_Course.encoded", 'Direction(row["direction"])', "Direction.CREDIT")
_FREEING = 'release(cursor, failed["instruction_id"].tolist(), day=day, by_sweep=False, run=run)'
FREED_TWICE = Edit(submitting, "_move", _FREEING, f"for _ in range(2):\n            {_FREEING}")
NEVER_FREED = Edit(submitting, "_move", _FREEING, "pass")
ANY_STATE_BEFORE = PostgresEdit(
    "check_instruction_events",
    "p.to_state IS NOT DISTINCT FROM n.from_state",
    "true",
)
ANY_TRANSITION = PostgresEdit(
    "check_instruction_events",
    "(SELECT count(*) = 0 FROM (SELECT DISTINCT from_state, to_state FROM new_rows)",
    "(SELECT count(*) >= 0 FROM (SELECT DISTINCT from_state, to_state FROM new_rows)",
)

# Settling -------------------------------------------------------------------------------------------------------------

_PARTY_LEG = 'Leg("party:" + party_id, party_id, debit_minor'
SENDING_IS_ITEM = Edit(payout_submissions, "submission_entries", _PARTY_LEG, f"{_PARTY_LEG}, is_item=True")
_UNDONE_LEG = "Leg(party_account, party, undone, "
FAILING_IS_ITEM = Edit(settling, "_instruction_entries", _UNDONE_LEG, f"{_UNDONE_LEG}is_item=True, ")
EXCESS_LEFT = Edit(settling, "_instruction_entries", "is_item=True", "is_item=False")
_CASH = 'cash = steps["amount_minor"].to_numpy("int64")'
CASH_TWICE = Edit(settling, "_instruction_entries", _CASH, _CASH.replace("= ", "= 2 * "))
CASH_AS_INSTRUCTED = Edit(
    settling,
    "_instruction_entries",
    _CASH,
    'cash = np.where(steps["direction"].eq("credit"), -1, 1) * steps["instructed_minor"].to_numpy("int64")',
)
RECORDED_AS_SETTLED = Edit(intake, "_RECORDS", "coalesce(nullif(j.kind, 'failure'), 'unmatched')", "'settled'")
BREAKS_UNSEEN = Edit(
    reconciling,
    "_INSTRUCTIONS",
    "coalesce(l.cash_minor, 0) * CASE i.direction WHEN 'credit' THEN -1 ELSE 1 END,",
    "i.amount_minor,",
)
TAKEN_IN_AGAIN = Edit(intake, "_new_references", "WHERE NOT EXISTS (", "WHERE true OR NOT EXISTS (")
FAILED_AFTER_SETTLED = Edit(
    settling,
    "_stepped",
    '(kind[rows] == "failed") & sent,',
    '(kind[rows] == "failed") & (sent | (was == State.SETTLED)),',
)
RETURN_IGNORED = Edit(settling, "_stepped", "(sent | (was == State.SETTLED))", "sent")
ANYBODYS_KEY = Edit(
    settling,
    "plan_settlement",
    "frame, rank = lines.iloc[ordered]",
    """frame, rank = lines.assign(idempotency_key=lines["idempotency_key"].where(
        lines["idempotency_key"].isin(known["idempotency_key"]), known["idempotency_key"].iloc[0])).iloc[ordered]""",
)

# What people decide, and what makes up for what -----------------------------------------------------------------------

POLICY_UNASKED = Edit(ledger, "_break_reasons", "& (differs | _other_policy(state))", "& differs")
NETTED_APART = Edit(payout_instructions, "_with_their_party", "held = waiting + later", "held = waiting")
GIFT_WITHOUT_ITS_DEBT = Edit(payout_instructions, "_with_their_party", "held = waiting + later", "held = later")
LATE_SETTLEMENT_UNSEEN = Edit(
    gate,
    "_FAULTS",
    "JOIN late_settlements l ON l.item_id = i.entry_id",
    "JOIN late_settlements l ON l.item_id = i.entry_id AND false",
)
ALL_THAT_IS_LEFT_IS_ONE = Edit(
    refunds, "decide_requests", "np.where(asked[rows] == 0, left[rows], asked[rows])", "np.maximum(asked[rows], 1)"
)
THE_WHOLE_IS_TOO_MUCH = Edit(
    refunds, "decide_requests", "wanted[wanted > left[rows]] = 0", "wanted[wanted >= left[rows]] = 0"
)
WRITTEN_OFF_BEYOND_THE_DEBT = Edit(
    approvals, "_fault", "if not 0 < proposal.amount_minor <= owed:", "if not 0 < proposal.amount_minor:"
)
ANY_GIFT = PostgresEdit("check_write_offs", "<= -sum(o.amount_minor)", "> 0")
NOBODY_WAS_ASKED = Edit(
    approvals,
    "_fault",
    'if proposal.to_state == State.FAILED and answer in (None, "accepted"):',
    'if proposal.to_state == State.FAILED and answer == "accepted":',
)
ANY_RESOLUTION = PostgresEdit(
    "check_resolutions",
    "AND (r.is_accepted IS NULL OR coalesce(l.answer, 'accepted') = 'accepted' OR l.asked_at <= a.not_after)",
    "AND r.is_accepted IS NULL",
)
OWN_REFUND = PostgresEdit("check_refund_makers", "session_user IN (r.requester, r.login)", "false")
OWN_TOKEN = PostgresEdit("check_approvals", "OR n.actor = i.token_changed_by", "")
OWN_PROPOSAL = PostgresEdit("check_proposal_decisions", "session_user IN (p.maker, p.login)", "false")
