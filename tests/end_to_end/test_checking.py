"""A day of the pipeline as it runs, checked from outside: by the commands of the docs, with psql and Python alone."""

import os
import re
import subprocess
from datetime import date
from pathlib import Path

from home import Home

from payments_pipeline.local.postgres import binaries
from payments_pipeline.local.sample_data import write_sample_season
from payments_pipeline.local.stack import locate
from payments_pipeline.settings import Settings

FIRST_DAY = date(2025, 8, 15)
ROOT = Path(__file__).resolve().parents[2]


def check(home: Home, data: Path, folder: Path) -> tuple[int, str]:
    """Run the commands that the docs show, for the first day; gives exit code and what they print."""
    page = (ROOT / "docs/operating/checking.md").read_text("utf-8")
    [commands] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    folder.mkdir(exist_ok=True)
    if not (folder / "checker").exists():
        (folder / "checker").symlink_to(ROOT / "checker")
    places = {"STORAGE": home.path / "storage", "LANDING": data / "landing", "REFERENCE": data / "reference"}
    done = subprocess.run(
        ["bash", "-e", "-c", commands.replace("2024-08-17", str(FIRST_DAY))],
        env=os.environ
        | {name: str(place) for name, place in places.items()}
        | {"DATABASE": locate(Settings(home=home.path)).postgres_url, "PATH": f"{binaries()}:{os.environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_day_is_checked_without_the_program_and_what_is_wrong_with_it_is_told(home: Home, tmp_path: Path) -> None:
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=3, seed=5)
    home.point_at(tmp_path)
    day = ("--date", str(FIRST_DAY))
    [summary] = home.rows("run", *day)
    code, told = check(home, tmp_path, tmp_path / "auditor")
    assert code == 0, told
    assert told.startswith(f"ok: 1 certificates of {FIRST_DAY}, ")
    assert summary["entries_posted"] > 0

    [certificate] = (home.path / "storage" / "certificates").glob("*/*.json")
    before = certificate.read_bytes()
    certificate.unlink()
    [missing] = [row for row in home.rows("verify", expect=1) if not row["ok"]]
    assert missing["breaches"] == [f"posting 1 of {FIRST_DAY} has no certificate: run the day, which writes it"]
    home.rows("run", *day)
    assert certificate.read_bytes() == before, "the same bytes, whoever writes them"
    assert all(row["ok"] for row in home.rows("verify"))

    landed = sorted((tmp_path / "landing" / "match_results" / f"date={FIRST_DAY}").iterdir())[0]
    landed.write_bytes(landed.read_bytes() + b"\n")
    code, told = check(home, tmp_path, tmp_path / "auditor")
    assert code == 1
    assert told.startswith("FAULT match_results below ")
