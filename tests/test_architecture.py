"""The shape of the house: which way imports point, and that importing opens nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import payments_pipeline

PACKAGE = Path(payments_pipeline.__file__).parent

#: What each part may import of the package. A part not named here may import anything.
MAY_IMPORT = {
    "domain": {"domain"},
    "storage": {"domain", "storage"},
    "processors": {"domain", "storage", "processors"},
    "verify": {"domain", "storage", "settings", "verify"},
}
#: The pure core: no Dagster, no I/O, no clock, no environment.
NOT_IN_DOMAIN = {"dagster", "os", "boto3", "psycopg", "sqlalchemy", "aiohttp", "time", "random", "requests", "pathlib"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_towards_the_domain(path: Path) -> None:
    allowed = MAY_IMPORT.get(part_of(path))
    if allowed is None:
        return
    own = {name.split(".")[1] for name in imports(path) if name.startswith("payments_pipeline.")}
    assert own <= allowed


@pytest.mark.parametrize("path", sorted((PACKAGE / "domain").rglob("*.py")), ids=lambda path: path.name)
def test_the_domain_knows_no_dagster_io_clock_or_environment(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & NOT_IN_DOMAIN
    called = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not called & {"now", "today", "utcnow", "environ", "getenv"}


def test_verify_shares_no_money_logic_with_what_it_verifies() -> None:
    logic = {
        f"payments_pipeline.domain.{name}"
        for name in (
            "allocation",
            "pots",
            "participant_shares",
            "ledger",
            "payout_instructions",
            "payout_submissions",
            "settlement_records",
            "reconciliation",
            "checks",
            "ids",
        )
    }
    for path in (PACKAGE / "verify").rglob("*.py"):
        assert not imports(path) & logic, path


def test_only_settings_reads_the_environment() -> None:
    """The stack writes the environment of its children; nobody but settings reads a variable by name."""
    for path in MODULES:
        tree = ast.parse(path.read_text("utf-8"))
        reads = [
            node
            for node in ast.walk(tree)
            if (isinstance(node, ast.Attribute) and node.attr == "getenv")
            or (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "environ"
                and isinstance(node.ctx, ast.Load)
            )
        ]
        assert not reads, f"{path} reads the environment at line {reads[0].lineno}"


def test_only_the_pinned_modules_import_the_inside_of_dagster() -> None:
    inside = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.startswith("dagster._") for name in imports(path))
    }
    assert inside <= {"dagster_storage.py", "dagster_liveness.py"}


def test_importing_the_definitions_opens_no_connection() -> None:
    program = """
import socket
class Refused(socket.socket):
    def connect(self, address):
        raise AssertionError(f"a connection to {address}")
    connect_ex = connect
socket.socket = Refused
import payments_pipeline.definitions
assert payments_pipeline.definitions.defs
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
