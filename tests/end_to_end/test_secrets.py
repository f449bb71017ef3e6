"""No secret and no token of an account stands in logs, output, stored files or what the UI shows."""

import csv
import re
from datetime import date
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from home import Home
from psycopg import sql

from payments_pipeline.local import stack
from payments_pipeline.local.sample_data import write_sample_season
from payments_pipeline.settings import Settings

DAYS = ("2025-08-15", "2025-08-16")


@pytest.mark.rule("always/no-secret")
def test_no_secret_and_no_token_stands_in_logs_output_stored_files_or_what_the_ui_shows(
    home: Home, tmp_path: Path
) -> None:
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=date(2025, 8, 15), match_days=3, seed=5)
    home.point_at(tmp_path)
    said = [home.run("run", "--date", day, "--json") for day in DAYS]
    said += [home.run(*command) for command in (("status",), ("verify",), ("status", "--party", "club:copa-2025:2"))]
    hidden = _secrets(home) | _tokens(tmp_path / "reference" / "parties.csv")
    assert len(hidden) > 50

    places = {f"output {number}": (done.stdout + done.stderr).encode() for number, done in enumerate(said)}
    places |= {
        str(path.relative_to(home.path)): _content(path)
        for path in home.path.rglob("*")
        if path.is_file() and _is_shown(path.relative_to(home.path))
    }
    places |= _dagster_tables(home)
    assert any(place.startswith("storage/") for place in places)
    assert any(place.endswith(".log") for place in places)
    assert b"participant_shares" in places["dagster event_logs"]
    found = {(place, secret) for place, content in places.items() for secret in hidden if secret.encode() in content}
    assert found == set()


def _secrets(home: Home) -> set[str]:
    files = [path for path in (home.path / "secrets").iterdir() if path.is_file()]
    return {path.read_text("utf-8").strip() for path in files}


def _tokens(parties: Path) -> set[str]:
    with parties.open(newline="", encoding="utf-8-sig") as file:
        return {row[name] for row in csv.DictReader(file) for name in ("payout_token", "collection_token")} - {""}


def _content(path: Path) -> bytes:
    """What a file says; a compressed one says it in clear once it is read."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    return f"{table.schema.metadata}\n{table.to_pylist()}".encode()


def _is_shown(path: Path) -> bool:
    """All but the servers' own data, which hold what they are there to hold, and the secrets themselves."""
    return path.suffix == ".log" or path.parts[0] in ("storage", "dagster")


def _dagster_tables(home: Home) -> dict[str, bytes]:
    endpoints = stack.locate(Settings(home=home.path, config=None))
    url = re.sub(r"^postgresql\+\w+", "postgresql", endpoints.dagster_postgres_url)
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            f"dagster {name}": "\n".join(
                row[0] for row in connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name)))
            ).encode()
            for (name,) in names
        }
