"""Rules over refunds: accepted within what their pot charged, taken from its lines as they stand, asked for by no approver.

Belongs here: refunds, their journals and lines, recomputed in fractions. Does not belong here: the code that accepts and
divides them; where the two differ, one of them is wrong.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from fractions import Fraction
from typing import Any

import psycopg

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.table_rule import TableCheck, TableRule

_NAMESPACE = uuid.UUID("6f1d7c1e-6f5b-5c57-9d0a-5b8f2b0c8e11")
Pot = tuple[str, str, str]
#: Line and account of a key within its pot.
Line = tuple[int, str]
_REFUNDS = """
    SELECT r.match_id, r.pot_party_id, r.currency::text, r.refund_id, r.pot_no, r.amount_minor,
           (SELECT min(j.posting_no) FROM journals j WHERE j.kind = 'refund' AND j.refund_id = r.refund_id)
    FROM refunds r ORDER BY r.match_id, r.pot_party_id, r.pot_no, r.refund_id
"""
#: What each posting of a match accrued to the fees that something was refunded of.
_ACCRUED = """
    SELECT e.match_id, e.pot_party_id, e.currency::text, j.posting_no, e.line_no, e.account, e.credit_minor - e.debit_minor
    FROM ledger_entries e JOIN journals j USING (journal_id)
    WHERE e.kind = 'accrual' AND e.pot = 'match_fee'
      AND (e.match_id, e.pot_party_id) IN (SELECT match_id::text, pot_party_id::text FROM refunds)
"""
_TAKEN = """
    SELECT match_id, pot_party_id, currency::text, refund_id, line_no, account, sum(credit_minor - debit_minor)::bigint
    FROM ledger_entries WHERE kind = 'refund' GROUP BY 1, 2, 3, 4, 5, 6
"""


def _pots(connection: psycopg.Connection) -> tuple[dict[Pot, list[Any]], dict[Pot, list[Any]]]:
    """Give the refunds of each pot in order, and what was accrued to it, posting by posting."""
    refunds: dict[Pot, list[Any]] = defaultdict(list)
    accrued: dict[Pot, list[Any]] = defaultdict(list)
    for found, query in ((refunds, _REFUNDS), (accrued, _ACCRUED)):
        for match_id, party, currency, *rest in connection.execute(query.encode()).fetchall():
            found[match_id, party, currency].append(rest)
    return refunds, accrued


def _lines(accrued: list[Any], upto: int | None = None) -> dict[Line, int]:
    sums: dict[Line, int] = defaultdict(int)
    for posting_no, line_no, account, minor in accrued:
        if upto is None or posting_no <= upto:
            sums[line_no, account] += minor
    return sums


def refunds_are_accepted_within_their_pot(connection: psycopg.Connection) -> Found:
    """A refund's amount is at most what its pot charged when it was accepted, less the refunds accepted before it."""
    refunds, accrued = _pots(connection)
    found = Found()
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for pot, of_pot in refunds.items():
        before: list[int] = []
        for refund_id, pot_no, amount, posting_no in of_pot:
            found.checked += 1
            numbers[pot[:2]].append(pot_no)
            if posting_no is None:
                found.breaches.append(
                    f"refund {refund_id} was accepted and no journal is of it; find out who inserted it"
                )
                continue
            left = -sum(minor for minor in _lines(accrued[pot], posting_no).values() if minor < 0)
            for earlier in before:
                left -= min(earlier, left)
            if amount > left:
                found.breaches.append(
                    f"refund {refund_id} of {amount} {pot[2]}: the fee of {pot[1]} in match {pot[0]} still charged {left} "
                    f"when it was accepted (posting {posting_no}); one of them was changed"
                )
            before.append(amount)
    found.breaches += [
        f"refunds of the fee of {party} in match {match_id} are numbered {sorted(given)}, and not from 1 without gap"
        for (match_id, party), given in numbers.items()
        if sorted(given) != list(range(1, len(given) + 1))
    ]
    return found


def refunds_are_taken_as_their_pot_stands(connection: psycopg.Connection) -> Found:
    """What applies of each refund is divided over its pot's lines by what each still holds, largest remainder."""
    refunds, accrued = _pots(connection)
    expected: dict[tuple[Any, ...], int] = {}
    for pot, of_pot in refunds.items():
        lines = _lines(accrued[pot])
        sides = [
            {line: abs(minor) for line, minor in lines.items() if minor and (minor < 0) == pays}
            for pays in (True, False)
        ]
        for refund_id, _, amount, _ in of_pot:
            applied = min(amount, sum(sides[0].values()))
            for holds, sign in zip(sides, (1, -1), strict=True):
                for line, minor in _by_what_they_hold(applied, holds).items():
                    holds[line] -= minor
                    if minor:
                        expected[(*pot, refund_id, *line)] = sign * minor
    taken = {tuple(key): minor for *key, minor in connection.execute(_TAKEN.encode()).fetchall() if minor}
    return Found(
        len(expected.keys() | taken.keys()),
        [
            f"refund {key[3]} of the fee of {key[1]} in match {key[0]}, line {key[4]}, {key[5]}: posted {taken.get(key, 0)}, "
            f"and {expected.get(key, 0)} {key[2]} is right; run the match's day again"
            for key in sorted(expected.keys() | taken.keys())
            if expected.get(key) != taken.get(key)
        ],
    )


def _by_what_they_hold(amount: int, holds: dict[Line, int]) -> dict[Line, int]:
    total = sum(holds.values())
    if not total:
        return {}
    entitled = {line: Fraction(amount * held, total) for line, held in holds.items()}
    given = {line: int(part) for line, part in entitled.items()}
    order = sorted(holds, key=lambda line: (given[line] - entitled[line], line[0], line[1].encode()))
    for line in order[: amount - sum(given.values())]:
        given[line] += 1
    return given


def refund_journals_have_their_id_and_day(connection: psycopg.Connection) -> Found:
    """Ids are over refund and posting of the match, of lines over refund, key and number; the day is the later of both."""
    journals = connection.execute(
        """SELECT j.journal_id, j.refund_id, j.posting_no, j.day, j.match_id, greatest(r.accepted_day, m.match_day), r.match_id
           FROM journals j LEFT JOIN refunds r USING (refund_id)
           LEFT JOIN match_postings m ON (m.match_id, m.posting_no) = (j.match_id, j.posting_no)
           WHERE j.kind = 'refund' ORDER BY 2, 3"""
    ).fetchall()
    entries = connection.execute(
        """SELECT e.entry_id, e.refund_id, e.match_id, e.pot, e.pot_party_id, e.line_no, e.account, e.currency::text,
                  e.posting_no, j.refund_id
           FROM ledger_entries e LEFT JOIN journals j USING (journal_id) WHERE e.kind = 'refund' ORDER BY 2, 1"""
    ).fetchall()
    breaches = [
        f"journal {journal_id} of refund {refund_id}, posting {posting_no} of match {match_id}, day {day}: {_id('refund', refund_id, posting_no)} "
        f"of {due} is right, and the refund is of match {of_match}"
        for journal_id, refund_id, posting_no, day, match_id, due, of_match in journals
        if journal_id != _id("refund", refund_id, posting_no) or day != due or match_id != of_match
    ]
    breaches += [
        f"entry {entry_id} of {' '.join(map(str, key))}: {_id('refund_entry', *key)} is right, and its journal is of {of_journal}"
        for entry_id, *key, of_journal in entries
        if entry_id != _id("refund_entry", *key) or of_journal != key[0]
    ]
    return Found(len(journals) + len(entries), breaches)


def _id(*parts: object) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, "\x1f".join(map(str, parts)))


RULES: dict[str, TableCheck] = {
    "refunds are accepted within what their pot charged, in order": refunds_are_accepted_within_their_pot,
    "what applies of refunds is taken from each line by what it holds": refunds_are_taken_as_their_pot_stands,
    "refunds' journals and lines have their id and day": refund_journals_have_their_id_and_day,
    "nobody approves what pays a refund that they asked for": TableRule(
        """SELECT DISTINCT format('instruction %s pays refund %s, which %s (login %s) asked for, and was approved by %s', e.instruction_id,
                                  r.refund_id, r.requester, r.login, e.actor)
           FROM instruction_events e JOIN instruction_claims c USING (instruction_id)
           JOIN ledger_entries l ON l.entry_id = c.item_id JOIN refunds r ON r.refund_id = l.refund_id
           WHERE e.from_state = 'held' AND e.to_state = 'approved' AND (e.actor IN (r.requester, r.login) OR e.login IN (r.requester, r.login))""",
        """SELECT count(*) FROM instruction_events e JOIN instruction_claims c USING (instruction_id)
           JOIN ledger_entries l ON l.entry_id = c.item_id AND l.kind = 'refund'
           WHERE e.from_state = 'held' AND e.to_state = 'approved'""",
    ),
}
