"""Rows of the money zone as a hand would insert them, one table at a time, to see what Postgres refuses."""

import itertools
import uuid

import psycopg
from money_zone import DAY


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, options="-c search_path=payments")


def journal_of(connection, day=DAY, kind="fee", processor="p", instruction=None) -> uuid.UUID:
    journal = uuid.uuid4()
    connection.execute(
        """INSERT INTO journals
               (journal_id, kind, day, processor, entry_reference, instruction_id, run_id, code_version)
           VALUES (%s, %s, %s, %s, %s, %s, 'r', '1')""",
        (journal, kind, day, processor, str(journal), instruction),
    )
    return journal


def entries(connection, journal, *amounts, currency="GBP", kind="fee", day=DAY, is_item=False):
    """Insert `(account, debit)` lines of a journal in one statement; a debit below zero is a credit."""
    rows = [
        (
            uuid.uuid4(),
            journal,
            kind,
            day,
            account,
            party,
            currency,
            max(debit, 0),
            max(-debit, 0),
            is_item and party is not None,
        )
        for account, debit in amounts
        for party in [account.removeprefix("party:") if account.startswith("party:") else None]
    ]
    values = ", ".join(["(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"] * len(rows))
    connection.execute(
        f"""INSERT INTO ledger_entries (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor,
            credit_minor, is_item) VALUES {values}""",
        list(itertools.chain.from_iterable(rows)),
    )


def instruct(connection, party="c", amount=300, direction="credit", day=DAY) -> uuid.UUID:
    """Insert an instruction of a sweep of its own; without its first event it does not outlive the transaction."""
    instruction = uuid.uuid4()
    connection.execute(
        """WITH s AS (INSERT INTO sweeps (sweep_day, seq, instructions, run_id, code_version, posting_seq)
                      SELECT %(d)s, coalesce(max(seq), 0) + 1, 1, 'r', '1', 0
                      FROM sweeps WHERE sweep_day = %(d)s RETURNING seq)
           INSERT INTO payout_instructions (instruction_id, sweep_day, sweep_seq, party_id, currency, direction,
               amount_minor, processor, token, digest, policy_version, maker, run_id, code_version)
           SELECT %(i)s, %(d)s, seq, %(p)s, 'GBP', %(w)s, %(a)s, 'sandbox', 't', 'd', '1', 'm', 'r', '1' FROM s""",
        {"i": instruction, "d": day, "p": party, "w": direction, "a": amount},
    )
    return instruction


def claim(connection, instruction, party, claim_no=1):
    """Claim the party's items for an instruction, and say that it is made."""
    connection.execute(
        """INSERT INTO instruction_claims
           SELECT entry_id, %s, %s FROM ledger_entries WHERE party_id = %s AND is_item""",
        (claim_no, instruction, party),
    )
    event(connection, instruction, 1, None, "created")


def event(connection, instruction, seq, before, after):
    connection.execute(
        """INSERT INTO instruction_events
               (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id, evidence)
           SELECT %s, %s, %s, %s, %s, session_user, 'x', 'x', jsonb_build_object('digest', (
               SELECT digest FROM payout_instructions WHERE instruction_id = %s))""",
        (instruction, seq, before, after, DAY, instruction),
    )


def release(connection, instruction, on=DAY):
    connection.execute(
        """INSERT INTO claim_releases (item_id, claim_no, released_on, by_sweep, run_id)
           SELECT item_id, claim_no, %s, false, 'r' FROM instruction_claims WHERE instruction_id = %s""",
        (on, instruction),
    )


def attempt(connection, instruction, attempt_no=1, key=None, request=b"pay", deadline="9999-01-01"):
    connection.execute(
        """INSERT INTO payout_attempts (instruction_id, attempt_no, idempotency_key, request, request_sha256,
               execute_on, not_after, dispatched_on, run_id)
           VALUES (%(i)s, %(n)s, %(k)s, %(r)s, encode(sha256(%(r)s), 'hex'), %(d)s, %(t)s, %(d)s, 'r')""",
        {"i": instruction, "n": attempt_no, "k": key or instruction, "r": request, "d": DAY, "t": deadline},
    )


def answer(connection, instruction, outcome, attempt_no=1):
    connection.execute(
        "INSERT INTO payout_attempt_outcomes (instruction_id, attempt_no, outcome) VALUES (%s, %s, %s)",
        (instruction, attempt_no, outcome),
    )


def look_up(connection, instruction, said, request_sha256=None):
    connection.execute(
        """INSERT INTO payout_look_ups (instruction_id, look_up_no, answer, request_sha256, run_id)
           SELECT %(i)s, 1 + count(*), %(a)s, %(s)s, 'r' FROM payout_look_ups WHERE instruction_id = %(i)s""",
        {"i": instruction, "a": said, "s": request_sha256},
    )


def posting(
    connection,
    day,
    no,
    revision=1,
    currency="GBP",
    is_open=True,
    match_id="m-2024-08-17",
    revenue=1000,
    content=None,
    participants="[]",
    payout_policy="immediate",
):
    """Insert a row of `match_postings` such as posting writes it, under a posting of the day of its own."""
    seq = connection.execute(
        """INSERT INTO day_postings
               (match_day, seq, input_hashes, matches, shares, entries_posted, run_id, code_version)
           SELECT %s, coalesce(max(seq), 0) + 1, '{}', 0, 0, 0, 'r', '1' FROM day_postings WHERE match_day = %s
           RETURNING seq""",
        (day, day),
    ).fetchone()[0]
    connection.execute(
        """INSERT INTO match_postings (match_id, posting_no, match_day, day_seq, competition_id, revision, content_hash,
               rules_hash, schedule_version, currency, payout_policy, participants, is_open, revenue_minor)
           VALUES (%s, %s, %s, %s, 'c1', %s, %s, 'rules', 'v', %s, %s, %s, %s, %s)""",
        (
            *(match_id, no, day, seq, revision, content or f"content {revision}"),
            *(currency, payout_policy, participants, is_open, revenue),
        ),
    )


def submit(connection, instruction, seq=3, party="a", amount=600, processor="sandbox"):
    """Let an approved instruction into `submitting`, with the posting that belongs to it."""
    event(connection, instruction, seq, "approved", "submitting")
    journal = journal_of(connection, kind="submission", processor=processor, instruction=instruction)
    lines = (f"party:{party}", amount), (f"in_transit:{processor}", -amount)
    entries(connection, journal, *lines, kind="submission")
