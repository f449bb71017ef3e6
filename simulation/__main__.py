"""`make simulate SEEDS=n FROM=first_seed`: figures on standard output, each failure with its shortest history."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from simulation.database import server
from simulation.runner import Figures, run_seeds


def show(figures: Figures, seconds: float) -> None:
    """Print figures, one a line."""
    for name in ("seeds", "operations", "acts", "boundaries", "payments", "backfills", "double_payments"):
        click.echo(f"{name:34}{getattr(figures, name):>12,}")
    click.echo(f"{'cents_lost':34}{figures.lost_minor:>12,}")
    click.echo(f"{'places_crashed_at':34}{len(figures.crash_sites):>12,} of {len(figures.sites)}")
    for place in sorted(figures.sites.keys() - figures.crash_sites.keys()):
        click.echo(f"  not_crashed_at {place}")
    for fault, count in sorted(figures.faults.items()):
        if count:
            click.echo(f"  {fault:32}{count:>12,}")
    click.echo(f"{'failures':34}{len(figures.failures):>12,}")
    click.echo(f"{'seconds':34}{seconds:>12,.0f}")


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many worlds.")
@click.option("--from", "first", default=0, show_default=True, help="The first seed.")
@click.option("--workers", default=2, show_default=True, help="Processes at once.")
def main(seeds: int, first: int, workers: int) -> None:
    """Live through seeds; exit 1 where a rule is broken."""
    started = time.monotonic()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="payments-simulation-") as home, server(Path(home)) as running:
        for batch in run_seeds(running, range(first, first + seeds), workers):
            figures.add(batch)
            for failure in batch.failures:
                click.echo(f"FAILED {failure}\n")
            click.echo(f"{figures.seeds} of {seeds} seeds, {len(figures.failures)} failed", err=True)
    show(figures, time.monotonic() - started)
    sys.exit(1 if figures.failures else 0)


main()
