"""Dispatch: 100,000 approved instructions to the sandbox over HTTP, every trigger on, `verify` after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.big_day import checkpoint, home
from benchmarks.figures import note, say
from benchmarks.made_day import DAY, write_day
from benchmarks.steps import SUBMISSIONS, TO_INSTRUCTIONS, run_steps

INSTRUCTIONS, A_SECOND = 100_000, 5_000.0


def run(instructions: int = INSTRUCTIONS) -> bool:
    """Measure; say whether the target is met."""
    with tempfile.TemporaryDirectory(prefix="payments-bench-") as name:
        folder = Path(name)
        # Each player in one match or so: as many parties are paid.
        write_day(folder / "day", instructions // 20, 25, instructions)
        with home(folder / "home", folder / "day") as of:
            made = run_steps(of.environment, DAY, TO_INSTRUCTIONS)
            note(f"dispatch: instructions made in {made['seconds']:.1f} s")
            checkpoint(of)
            sent = run_steps(of.environment, DAY, SUBMISSIONS)
            with of.connect() as connection:
                found = connection.execute(
                    "SELECT count(*) FROM payments.instruction_states WHERE state = 'submitted'"
                ).fetchone()
            assert found is not None
            of.verify()
        return say(
            "dispatch",
            found[0] / sent["seconds"],
            "instructions/s",
            target=A_SECOND,
            against=f"{found[0]} instructions, the whole step, {sent['seconds']:.1f} s",
            at_least=True,
        )
