"""What a run came to, as the money zone has it: for summaries and for finding reports that have grown.

Belongs here: reading. Does not belong here: rules, writing.
"""

from __future__ import annotations

from datetime import date

from payments_pipeline.storage.postgres import connect


def amounts_of_run(url: str, run_id: str) -> dict[str, dict[str, int]]:
    """Give what a run's instructions pay and collect, per currency, minor units."""
    with connect(url) as connection:
        rows = connection.execute(
            """SELECT currency, coalesce(sum(amount_minor) FILTER (WHERE direction = 'credit'), 0)::bigint,
                      coalesce(sum(amount_minor) FILTER (WHERE direction = 'debit'), 0)::bigint
               FROM payout_instructions WHERE run_id = %s AND direction <> 'none'
               GROUP BY currency ORDER BY currency""",
            (run_id,),
        ).fetchall()
    return {currency: {"credit_minor": credit, "debit_minor": debit} for currency, credit, debit in rows}


def taken_in_digests(url: str, processor: str) -> dict[date, str]:
    """Give the digest under which each report was last taken in, by date."""
    with connect(url) as connection:
        rows = connection.execute(
            """SELECT DISTINCT ON (report_date) report_date, digest FROM report_intakes
               WHERE processor = %s ORDER BY report_date, seq DESC""",
            (processor,),
        ).fetchall()
    return dict(rows)
