"""Rules over ids and digests: the same work has the same id, whoever did it.

Belongs here: the encoding of names and what goes into each id, written a second time. Does not belong here: the code
that gives ids; where the two differ, one of them is wrong.
"""

from __future__ import annotations

import hashlib
import json
import uuid

import psycopg

from payments_pipeline.verify.found import Found

_NAMESPACE = uuid.UUID("6f1d7c1e-6f5b-5c57-9d0a-5b8f2b0c8e11")
_SEPARATOR = "\x1f"
#: What tells apart the lines of one journal on one account; one about no instruction has none.
_LEGS = {
    "submission": ("",),
    "failure": ("", "cash", "submission", "excess"),
    "settlement": ("cash", "submission", "excess"),
    "return": ("cash", "submission", "excess"),
    "fee": ("",),
    "funding": ("",),
    "unmatched": ("",),
}
_OF_REPORT_LINES = ("settlement", "return", "fee", "funding", "unmatched")


def _id(*parts: object) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, _SEPARATOR.join(map(str, parts)))


def journals_have_the_id_of_their_event(connection: psycopg.Connection) -> Found:
    """Ids are UUIDv5 over business content: match and posting, instruction, or the processor's entry reference."""
    rows = connection.execute(
        """SELECT journal_id, kind, match_id, posting_no, instruction_id, processor, entry_reference FROM journals
           WHERE kind = 'accrual' OR kind = ANY(%s) ORDER BY day, journal_id""",
        (list(_LEGS),),
    ).fetchall()
    breaches = []
    for journal_id, kind, match_id, posting_no, instruction_id, processor, reference in rows:
        if kind == "accrual":
            content: tuple[object, ...] = ("accrual", match_id, posting_no)
        elif kind in _OF_REPORT_LINES or reference is not None:
            content = ("report_line", processor, reference)
        else:
            content = (kind, instruction_id)
        if _id(*content) != journal_id:
            breaches.append(f"journal {journal_id} of {' '.join(map(str, content))} should be {_id(*content)}")
    return Found(len(rows), breaches)


def accruals_have_the_id_of_their_key(connection: psycopg.Connection) -> Found:
    """A share's posting n has the id of its key and n: match, pot, pot party, line, account, currency."""
    rows = connection.execute(
        """SELECT entry_id, match_id, pot, pot_party_id, line_no, account, currency::text, posting_no
           FROM ledger_entries WHERE kind = 'accrual' ORDER BY day, entry_id"""
    ).fetchall()
    return Found(
        len(rows),
        [
            f"entry {entry_id} of {' '.join(map(str, key))} should be {_id('accrual_entry', *key)}"
            for entry_id, *key in rows
            if _id("accrual_entry", *key) != entry_id
        ],
    )


def movements_have_the_id_of_their_journal(connection: psycopg.Connection) -> Found:
    """A line that moves money has the id of its journal, account and part in it."""
    rows = connection.execute(
        "SELECT entry_id, kind, journal_id, account FROM ledger_entries WHERE kind = ANY(%s) ORDER BY day, entry_id",
        (list(_LEGS),),
    ).fetchall()
    return Found(
        len(rows),
        [
            f"entry {entry_id} on {account} has not the id of its journal {journal_id}"
            for entry_id, kind, journal_id, account in rows
            if all(_id("movement", journal_id, account, leg) != entry_id for leg in _LEGS[kind])
        ],
    )


def instructions_have_the_id_of_their_claims(connection: psycopg.Connection) -> Found:
    """An instruction's id is over sweep day, party, currency and claims; its digest over party, token, amount and claims."""
    rows = connection.execute(
        """SELECT i.instruction_id, i.sweep_day::text, i.party_id, i.currency::text, i.token, i.direction, i.amount_minor,
                  i.digest, c.claims
           FROM payout_instructions i
           JOIN (SELECT instruction_id,
                        string_agg(item_id || ':' || claim_no, E'\\n' ORDER BY item_id::text COLLATE "C") AS claims
                 FROM instruction_claims GROUP BY 1) c USING (instruction_id)
           ORDER BY i.sweep_day, i.instruction_id"""
    ).fetchall()
    breaches = []
    for instruction_id, day, party, currency, token, direction, amount, digest, claims in rows:
        expected = _id("instruction", day, party, currency, hashlib.sha256(claims.encode()).hexdigest())
        if expected != instruction_id:
            breaches.append(f"instruction {instruction_id} of {party}, swept {day}: its claims give {expected}")
        content = json.dumps([party, token, currency, direction, amount, claims], separators=(",", ":"))
        if hashlib.sha256(content.encode()).hexdigest() != digest:
            breaches.append(
                f"instruction {instruction_id} of {party}: {direction} of {amount} {currency} is not what its digest "
                "covers; refuse it"
            )
    return Found(len(rows), breaches)


def attempts_have_their_instructions_key(connection: psycopg.Connection) -> Found:
    """An instruction is sent under its own id as the key."""
    rows = connection.execute(
        "SELECT instruction_id::text, attempt_no, idempotency_key FROM payout_attempts"
    ).fetchall()
    return Found(
        len(rows),
        [
            f"attempt {number} of instruction {instruction_id} has the key {key}; ask the processor what it has under both"
            for instruction_id, number, key in rows
            if key != instruction_id
        ],
    )


RULES = {
    "journals have the id of their event": journals_have_the_id_of_their_event,
    "accruals have the id of their key": accruals_have_the_id_of_their_key,
    "movements have the id of their journal": movements_have_the_id_of_their_journal,
    "instructions have the id and digest of their claims": instructions_have_the_id_of_their_claims,
    "attempts have their instruction's key": attempts_have_their_instructions_key,
}
