"""`verify`: recomputes the rules from what is stored, with SQL and code of its own.

Belongs here: running rules and saying how they fared. Does not belong here: any code that wrote what is checked; a test
holds that none of it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from payments_pipeline.settings import Settings
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify.files import check_files
from payments_pipeline.verify.found import Found
from payments_pipeline.verify.rules_certificates import certificate_keys
from payments_pipeline.verify.tables import TABLE_RULES

#: Breaches named; the rest are counted.
SHOWN = 20


@dataclass(frozen=True)
class RuleResult:
    """How a rule fared.

    Attributes:
        rule: in words.
        ok: nothing breaks it.
        checked: records looked at.
        breaches: each names the record, the amounts and what to do; at most SHOWN, then how many more.
        left_out: what could not be compared, how much of it and why; no breach, and not in `checked`. At most SHOWN.
    """

    rule: str
    ok: bool
    checked: int
    breaches: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def verify(database_url: str, settings: Settings) -> Iterator[RuleResult]:
    """Check every rule, one after the other.

    Args:
        database_url: business database.
        settings: where assets and reference data are stored.

    Raises:
        ConfigurationError: database, storage or reference data cannot be read; what was yielded before holds.
        BadFileError: a stored file is no whole Parquet file; materialise its day again.
    """
    # Before the moment that the tables are seen at: each is then of a posting that can be seen.
    certificates = certificate_keys(open_store(settings.storage))
    with connect(database_url) as connection, connection.transaction():
        # One moment of all tables: a run that writes meanwhile is no breach.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for rule, check_tables in TABLE_RULES.items():
            yield _result(rule, check_tables(connection))
        for rule, found in check_files(connection, settings, certificates):
            yield _result(rule, found)


def _result(rule: str, found: Found) -> RuleResult:
    return RuleResult(rule, not found.breaches, found.checked, _shown(found.breaches), _shown(found.left_out))


def _shown(texts: list[str]) -> tuple[str, ...]:
    shown = tuple(texts[:SHOWN])
    return (*shown, f"… and {len(texts) - SHOWN} more") if len(texts) > SHOWN else shown
