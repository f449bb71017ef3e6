"""The docs name everything there is: assets, checks, settings, tables, commands, accounts, states, reasons, rules."""

import re
from pathlib import Path

import click
import pytest

from payments_pipeline.cli import commands
from payments_pipeline.definitions import defs
from payments_pipeline.domain.ledger import BreakReason
from payments_pipeline.domain.lifecycle import State
from payments_pipeline.domain.payout_instructions import WaitReason
from payments_pipeline.domain.rejected_records import Reason
from payments_pipeline.settings import Settings
from payments_pipeline.verify.files import FILE_RULES
from payments_pipeline.verify.tables import TABLE_RULES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MIGRATIONS = ROOT / "payments_pipeline" / "storage" / "migrations" / "versions"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


CHECKS = [spec for assets in defs.assets or [] for spec in assets.check_specs]  # type: ignore[union-attr]  # ours are all definitions
ASSETS = sorted(key.to_user_string() for assets in defs.assets or [] for key in assets.keys)  # type: ignore[union-attr]  # as above
TABLES = [
    name
    for path in sorted(MIGRATIONS.glob("*.sql"))
    for name in re.findall(r"CREATE TABLE payments\.(\w+)", path.read_text("utf-8"))
]
DOCUMENTED = [
    *[("reference/assets.md", f"## `{name}`") for name in ASSETS],
    *[("reference/assets.md", f"| `{spec.name}` |") for spec in CHECKS],
    *[("reference/settings.md", f"`PAYMENTS_{name.upper()}`") for name in Settings.model_fields],
    *[("reference/tables.md", f"`{name}`") for name in TABLES],
    *[("reference/commands.md", f"`{name}") for name in commands.commands],
    *[("reference/input.md", f"`{reason}`") for reason in Reason],
    *[("reference/verify.md", rule) for rule in [*TABLE_RULES, *FILE_RULES]],
    *[("concepts/posting.md", f"`{reason}`") for reason in BreakReason],
    *[("concepts/sweeping.md", f"`{reason}`") for reason in WaitReason],
    *[("concepts/sweeping.md", f"`{state}`") for state in State],
    *[
        ("concepts/posting.md", f"`{account}")
        for account in ("cash:", "in_transit:", "pot:", "fees:", "loss", "party:", "suspense")
    ],
]


@pytest.mark.parametrize(("name", "words"), DOCUMENTED)
def test_everything_has_its_place_in_the_docs(name: str, words: str) -> None:
    assert words in page(name)


def test_each_table_says_in_the_database_what_it_holds() -> None:
    text = "".join(path.read_text("utf-8") for path in MIGRATIONS.glob("*.sql"))
    assert {name for name in TABLES if f"COMMENT ON TABLE payments.{name} IS" not in text} == set()


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.name)
def test_each_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).resolve().exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.name)
def test_each_command_shown_is_one_that_there_is(path: Path) -> None:
    for name, rest in re.findall(r"payments-pipeline ([a-z-]+)([^`\n]*)", path.read_text("utf-8")):
        command = commands.commands.get(name)
        assert command is not None, f"{path.name} shows payments-pipeline {name}"
        options = {
            word for parameter in command.params for word in parameter.opts if isinstance(parameter, click.Option)
        }
        assert {word for word in rest.split() if word.startswith("--")} <= options


def test_each_target_of_make_that_the_docs_show_is_one_that_there_is() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        assert set(re.findall(r"\bmake ([a-z]+)`", path.read_text("utf-8"))) <= targets, path


def test_each_rule_of_the_money_zone_is_shown_by_a_test_that_names_it() -> None:
    stated = re.findall(r"^- `([^`]+)`", page("reference/rules.md"), re.MULTILINE)
    shown = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for names in re.findall(r"pytest\.mark\.rule\(([^)]*)\)", path.read_text("utf-8"))
        for name in re.findall(r'"([^"]+)"', names)
    }
    assert sorted(stated) == sorted(shown)
