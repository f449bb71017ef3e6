"""The outbox of alerts, its deliveries, and what the money zone says about instructions in trouble.

Belongs here: tables alerts and alert_deliveries; the read-only questions that alerts answer. Does not belong here: the
words of an alert (`domain.alerts`), when one is raised (`defs.automation`).

A channel is anything that `deliver` can call with an alert and that raises where the alert did not arrive. Delivery is
at least once: an alert is called, then recorded; what dies in between is called again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import psycopg

from payments_pipeline.domain.alerts import (
    NAMED,
    Alert,
    AlertKind,
    InstructedAmount,
    InstructionGroup,
    NamedInstruction,
)
from payments_pipeline.domain.lifecycle import UNSENT, State
from payments_pipeline.storage.postgres import connect

LOG_CHANNEL = "log"
#: Alerts delivered in one go.
_BATCH = 500
_log = logging.getLogger("payments_pipeline.alerts")


def raise_alert(url: str, alert: Alert) -> bool:
    """Put an alert into the outbox; gives whether the incident is new.

    Raises:
        DatabaseUnavailableError: the database does not answer; the alert is not stored and must be raised again.
    """
    return raise_alerts(url, [alert]) == 1


def raise_alerts(url: str, alerts: Sequence[Alert]) -> int:
    """Put alerts into the outbox in one transaction; gives how many incidents are new.

    An incident that was raised before stays as it was first told.

    Raises:
        DatabaseUnavailableError: the database does not answer; none is stored and all must be raised again.
    """
    if not alerts:
        return 0
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO alerts (alert_id, kind, day, title, body, run_id) VALUES (%s, %s, %s, %s, %s, %s)
               ON CONFLICT (alert_id) DO NOTHING""",
            [(a.alert_id, a.kind.value, a.day, a.title, a.body, a.run_id) for a in alerts],
        )
        return cursor.rowcount


def undelivered(url: str, channel: str, limit: int = _BATCH) -> list[Alert]:
    """Give the alerts that a channel has not been given, oldest first.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    with connect(url) as connection:
        return _undelivered(connection, channel, limit)


def _undelivered(connection: psycopg.Connection[Any], channel: str, limit: int) -> list[Alert]:
    rows = connection.execute(
        """SELECT alert_id, kind, day, title, body, run_id FROM alerts a
           WHERE NOT EXISTS (SELECT FROM alert_deliveries d WHERE d.alert_id = a.alert_id AND d.channel = %s)
           ORDER BY raised_at, alert_id LIMIT %s""",
        (channel, limit),
    ).fetchall()
    return [Alert(row[0], AlertKind(row[1]), *row[2:]) for row in rows]


def deliver(url: str, channel: str, send: Callable[[Alert], None]) -> int:
    """Give a channel the alerts it has not been given; gives how many.

    Args:
        url: business database.
        channel: the name that deliveries are recorded under.
        send: hands one alert over; returns when it has arrived, raises where it has not.

    Raises:
        DatabaseUnavailableError: the database does not answer; what was sent and not recorded is sent again.
        Exception: what `send` raised; that alert and later ones stay undelivered.
    """
    with connect(url) as connection:
        alerts = _undelivered(connection, channel, _BATCH)
        for alert in alerts:
            send(alert)
            connection.execute(
                "INSERT INTO alert_deliveries (alert_id, channel) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (alert.alert_id, channel),
            )
    return len(alerts)


def write_to_log(alert: Alert) -> None:
    """Write an alert to the program's log, one record each."""
    _log.warning("ALERT %s: %s\n%s", alert.kind.value, alert.title, alert.body)


def deliver_to_log(url: str) -> int:
    """Write the alerts that the log has not seen to it; gives how many."""
    return deliver(url, LOG_CHANNEL, write_to_log)


# What alerts speak of ------------------------------------------------------------------------------------------------

_UNSENT = [state.value for state in (*UNSENT, State.CANCELLED, State.NETTED)]
_AMOUNTS_OF_DAY = """
    SELECT i.sweep_day, i.currency, count(*), count(*) FILTER (WHERE NOT s.state = ANY(%(unsent)s)),
           coalesce(sum(i.amount_minor) FILTER (WHERE i.direction = 'credit'), 0)::bigint,
           coalesce(sum(i.amount_minor) FILTER (WHERE i.direction = 'debit'), 0)::bigint
    FROM payout_instructions i JOIN instruction_states s USING (instruction_id)
    WHERE i.sweep_day = ANY(%(days)s) AND i.direction <> 'none' AND s.state <> 'cancelled'
    GROUP BY i.sweep_day, i.currency ORDER BY i.sweep_day, i.currency
"""


def amounts_of_days(url: str, days: Sequence[date]) -> dict[date, list[InstructedAmount]]:
    """Give what the instructions of each sweep day come to, per currency; days without any are left out.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    if not days:
        return {}
    with connect(url) as connection:
        rows = connection.execute(_AMOUNTS_OF_DAY, {"days": list(days), "unsent": _UNSENT}).fetchall()
    amounts: dict[date, list[InstructedAmount]] = {}
    for day, *amount in rows:
        amounts.setdefault(day, []).append(InstructedAmount(*amount))
    return amounts


# Each question gives (kind, day, mark, instruction). The mark is taken over all that ever came into the state on that
# day, so that it moves when one joins and stays when one leaves.
_UNSENT_HOURS = 36  # the daily run after the next ought to have sent it
_QUIET_S = 60  # a dispatch or sweep that is still writing is told of when it has done
_LIVE = """
    WITH live AS (
        SELECT s.instruction_id, s.state, s.since_on AS day
        FROM instruction_states s WHERE s.state IN ('held', 'unknown')
    ), groups AS (
        SELECT g.state, g.day, max(e.recorded_at) AS newest
        FROM (SELECT DISTINCT state, day FROM live) g
        JOIN instruction_events e ON e.occurred_on = g.day AND e.to_state = g.state
        GROUP BY g.state, g.day
    )
    SELECT 'instructions_' || l.state AS kind, l.day, g.newest::text AS mark, l.instruction_id
    FROM live l JOIN groups g USING (state, day)
    WHERE g.newest < clock_timestamp() - make_interval(secs => %(quiet_s)s)
"""
#: Approved, and not sent for long: over a limit that never lets them pass, or nobody dispatches.
_UNSENT_FOR_LONG = """
    WITH stuck AS (
        SELECT s.instruction_id, s.since_on AS day, e.recorded_at
        FROM instruction_states s JOIN instruction_events e ON e.instruction_id = s.instruction_id AND e.seq = s.seq
        WHERE s.state = 'approved' AND e.recorded_at < clock_timestamp() - make_interval(hours => %(unsent_hours)s)
    ), groups AS (
        SELECT day, max(recorded_at) AS newest FROM stuck GROUP BY day
    )
    SELECT 'instructions_unsent' AS kind, k.day, g.newest::text AS mark, k.instruction_id
    FROM stuck k JOIN groups g USING (day)
"""
_OVERDUE = """
    WITH late AS (
        SELECT a.instruction_id, a.dispatched_on AS day
        FROM instruction_states s JOIN payout_attempts a ON a.instruction_id = s.instruction_id AND a.attempt_no = 1
        WHERE s.state IN ('submitting', 'submitted', 'unknown') AND a.execute_on <= %(overdue_on)s
    ), groups AS (
        SELECT g.day, max(a.started_at) AS newest
        FROM (SELECT DISTINCT day FROM late) g
        JOIN payout_attempts a ON a.dispatched_on = g.day AND a.attempt_no = 1 GROUP BY g.day
    )
    SELECT 'instructions_overdue' AS kind, l.day, g.newest::text AS mark, l.instruction_id
    FROM late l JOIN groups g USING (day)
"""
_ENDED = """
    WITH ended AS (
        SELECT e.instruction_id, e.to_state, e.occurred_on AS day, e.recorded_at
        FROM instruction_events e WHERE e.occurred_on = ANY(%(days)s) AND e.to_state IN ('failed', 'returned')
    ), groups AS (
        SELECT to_state, day, max(recorded_at) AS newest FROM ended GROUP BY to_state, day
    )
    SELECT 'instructions_' || to_state AS kind, day, g.newest::text AS mark, e.instruction_id
    FROM ended e JOIN groups g USING (to_state, day)
"""
_GROUPED = """
    WITH members AS ({question}), numbered AS (
        SELECT m.kind, m.day, m.mark, i.*, s.state,
               row_number() OVER (PARTITION BY m.kind, m.day ORDER BY i.amount_minor DESC, i.instruction_id) AS place
        FROM members m
        JOIN payout_instructions i USING (instruction_id) JOIN instruction_states s USING (instruction_id)
    )
    SELECT kind, day, mark, currency, count(*), count(*) FILTER (WHERE NOT state = ANY(%(unsent)s)),
           coalesce(sum(amount_minor) FILTER (WHERE direction = 'credit'), 0)::bigint,
           coalesce(sum(amount_minor) FILTER (WHERE direction = 'debit'), 0)::bigint,
           coalesce(jsonb_agg(jsonb_build_array(place, instruction_id, party_id, direction, amount_minor, currency)
                              ORDER BY place) FILTER (WHERE place <= %(named)s), '[]'::jsonb)
    FROM numbered GROUP BY kind, day, mark, currency ORDER BY kind, day, currency
"""


def instructions_waiting(url: str, overdue_on: date, quiet_s: float = _QUIET_S) -> list[InstructionGroup]:
    """Give the instructions that are held, unknown, overdue or approved for long now, grouped by kind and day.

    Args:
        url: business database.
        overdue_on: instructions asked for on this day or before, without an outcome, are overdue.
        quiet_s: seconds for which nothing must have joined a group of held or unknown ones.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    parameters = {
        "overdue_on": overdue_on,
        "quiet_s": quiet_s,
        "unsent_hours": _UNSENT_HOURS,
        "unsent": _UNSENT,
        "named": NAMED,
    }
    return _groups(url, f"({_LIVE}) UNION ALL ({_OVERDUE}) UNION ALL ({_UNSENT_FOR_LONG})", parameters)


def instructions_ended(url: str, days: Sequence[date]) -> list[InstructionGroup]:
    """Give the instructions that failed or were returned on some days, grouped by outcome and day.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    if not days:
        return []
    return _groups(url, _ENDED, {"days": list(days), "unsent": _UNSENT, "named": NAMED})


def _groups(url: str, question: str, parameters: dict[str, Any]) -> list[InstructionGroup]:
    with connect(url) as connection:
        rows = connection.execute(_GROUPED.format(question=question).encode(), parameters).fetchall()
    groups: dict[tuple[str, date, str], tuple[list[InstructedAmount], list[list[Any]]]] = {}
    for kind, day, mark, currency, count, sent, credit, debit, named in rows:
        amounts, first = groups.setdefault((kind, day, mark), ([], []))
        amounts.append(InstructedAmount(currency, count, sent, credit, debit))
        first.extend(named)
    return [
        InstructionGroup(
            AlertKind(kind), day, mark, tuple(amounts), tuple(NamedInstruction(*each[1:]) for each in sorted(first))
        )
        for (kind, day, mark), (amounts, first) in groups.items()
    ]
