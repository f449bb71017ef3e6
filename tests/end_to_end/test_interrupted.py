"""A command that is stopped half-way, politely or not: the next one goes on from there and pays nothing twice."""

import signal
import subprocess
from datetime import date
from pathlib import Path

import pytest
from home import PROGRAM, Home

from payments_pipeline.local.sample_data import write_sample_season

FIRST_DAY = date(2025, 8, 15)
RANGE = ("--from", "2025-08-15", "--to", "2025-08-18")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_backfill_stopped_half_way_is_gone_on_with_and_pays_nothing_twice(
    home: Home, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=7, seed=11)
    home.point_at(tmp_path)
    # A shell without job control starts jobs deaf to Ctrl-C, and that is inherited.
    command = ["env", "--default-signal=INT", PROGRAM, "backfill", *RANGE, "--json"]
    with subprocess.Popen(command, env=home.full_environment(), stdout=subprocess.PIPE, text=True) as stopped:
        assert stopped.stdout is not None
        lines = [stopped.stdout.readline()]
        stopped.send_signal(how)
        lines += stopped.stdout.readlines()
    assert stopped.returncode == code
    assert len([line for line in lines if line.strip()]) < 4
    rest = home.rows("backfill", *RANGE)
    assert len(rest) == 4
    again = home.rows("backfill", *RANGE)
    assert [(row["entries_posted"], row["instructions_created"]) for row in again] == [(0, 0)] * 4
    assert all(row["ok"] for row in home.rows("verify"))
