"""The program as a user runs it: its own command in its own process, on a home of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("payments-pipeline")
#: Real matches beside the checkout; tests of them are skipped where they are absent.
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass
class Home:
    """A home, and the data that its commands are pointed at."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def point_at(self, data: Path) -> None:
        self.environment |= {
            "PAYMENTS_LANDING_URL": str(data / "landing"),
            "PAYMENTS_REFERENCE_URL": str(data / "reference"),
        }

    def full_environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PAYMENTS_")}
        plain.pop("PYTHONDONTWRITEBYTECODE", None)
        return plain | {"PAYMENTS_HOME": str(self.path)} | self.environment

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=self.full_environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == expect, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def rows(self, *arguments: str, expect: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json", expect=expect).stdout.splitlines()]
