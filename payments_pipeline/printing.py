"""How results look on a terminal.

Belongs here: lines, tables and progress for people. Does not belong here: what is printed with `--json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from payments_pipeline.domain.money import format_minor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from payments_pipeline.day_runs import DaySummary
    from payments_pipeline.verify import RuleResult


#: Columns of a table that is written to a file or a pipe.
_WIDTH_OF_A_FILE = 180


def amounts_text(amounts: Mapping[str, Mapping[str, int]]) -> str:
    """Say what is paid and collected, in each currency's own decimals."""
    words = []
    for currency, sides in amounts.items():
        if sides["credit_minor"]:
            words.append(f"pay {format_minor(sides['credit_minor'], currency)} {currency}")
        if sides["debit_minor"]:
            words.append(f"collect {format_minor(sides['debit_minor'], currency)} {currency}")
    return ", ".join(words) or "nothing to pay"


def day_line(summary: DaySummary) -> str:
    """Say what a day came to, on one line."""
    rejected = f", {summary.rejected} rows rejected" if summary.rejected else ""
    count = len(summary.refusals)
    refused = f", {count} refund request{'s' if count > 1 else ''} refused" if count else ""
    return (
        f"{summary.day}  {summary.matches} matches{rejected}, {summary.shares} shares, "
        f"{summary.entries_posted} entries posted, {summary.instructions_created} instructions: "
        f"{amounts_text(summary.amounts)}; {summary.settled} settlement records, {summary.open_items} items open"
        f"{refused}  "
        f"({summary.seconds:.1f} s)"
    )


def refund_line(row: Mapping[str, Any]) -> str:
    """Say what became of a request for a refund that was not refused."""
    if row["amount_minor"] is None:
        return f"refund {row['refund_id']} was accepted before: nothing to do"
    amount = format_minor(row["amount_minor"], row["currency"])
    words = f"refunded: {amount} {row['currency']} under {row['refund_id']}"
    return f"{words}; the sweep of {row['day']} or a later one takes it"


def rule_line(result: RuleResult) -> str:
    """Say how a rule fared, with its first breaches below, and what it left out."""
    mark = "ok    " if result.ok else "BROKEN"
    head = f"{mark} {result.rule} ({result.checked} checked)"
    breaches = (f"       {words}" for words in result.breaches)
    return "\n".join([head, *breaches, *(f"       left out: {words}" for words in result.left_out)])


def tables_text(parts: Mapping[str, list[dict[str, Any]]]) -> str:
    """Lay named lists of rows out as tables, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    with console.capture() as capture:
        _print_tables(console, Table, parts)
    return capture.get()


def _print_tables(console: Console, new_table: type[Table], parts: Mapping[str, list[dict[str, Any]]]) -> None:
    for part, rows in parts.items():
        if not rows:
            console.print(f"{part.replace('_', ' ')}: none\n")
            continue
        table = new_table(title=part.replace("_", " "), title_justify="left")
        for column in rows[0]:
            is_number = column.endswith(("_minor", "items", "instructions"))
            # Amounts are shown in their currency's own decimals.
            name = column.removesuffix("_minor") if "currency" in rows[0] else column
            table.add_column(name.replace("_", " "), justify="right" if is_number else "left")
        for row in rows:
            table.add_row(*("" if value is None else _cell(column, value, row) for column, value in row.items()))
        console.print(table)


def _cell(column: str, value: object, row: Mapping[str, Any]) -> str:
    from rich.markup import escape

    if column.endswith("_minor") and isinstance(value, int) and row.get("currency"):
        return format_minor(value, row["currency"])
    return escape(str(value))


@contextmanager
def progress(console: Console, total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Show a bar on a terminal; gives what moves it on, and what says something below it: elsewhere on a line."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    if not console.is_terminal:
        yield lambda: None, partial(click.echo, err=True)
        return
    bar = Progress(TextColumn("days"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("days", total=total)
    words = Text(no_wrap=True, overflow="ellipsis")

    def advance() -> None:
        bar.advance(task)
        words.plain = ""

    def say(said: str) -> None:
        words.plain = said

    with Live(Group(bar, words), console=console, transient=True):
        yield advance, say
