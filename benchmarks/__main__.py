"""`make bench`: every benchmark, or those that are named; one JSON object a line on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from benchmarks import big_day, dispatch, division, many_days

_ALL: dict[str, Callable[[], bool]] = {
    "division": division.run,
    "big_day": big_day.run,
    "dispatch": dispatch.run,
    "many_days": many_days.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(_ALL)))
def main(names: tuple[str, ...]) -> None:
    """Run benchmarks, all where none is named; exit 1 where a target is missed."""
    # Without compiled bytecode it is the compiler that is measured.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    met = [_ALL[name]() for name in names or _ALL]
    sys.exit(0 if all(met) else 1)


main()
