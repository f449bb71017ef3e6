"""How `verify` finds a world, and how its stored files are changed behind its back."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from verify_world import World

from payments_pipeline.verify import RuleResult, verify
from payments_pipeline.verify.files import FILE_RULES
from payments_pipeline.verify.rules_certificates import CERTIFICATES
from payments_pipeline.verify.tables import TABLE_RULES

#: Rules that find whatever was changed behind the triggers.
TELL_OF_ANY_CHANGE = frozenset({"every row is as the audit trail recorded it, and no other is there", CERTIFICATES})
assert {*TABLE_RULES, *FILE_RULES} >= TELL_OF_ANY_CHANGE


def results(world: World) -> dict[str, RuleResult]:
    return {result.rule: result for result in verify(world.url, world.settings)}


def broken(world: World) -> dict[str, tuple[str, ...]]:
    return {rule: result.breaches for rule, result in results(world).items() if not result.ok}


def broken_but_for_the_trail(world: World) -> dict[str, tuple[str, ...]]:
    """Leave out what tells of any change by hand: for tests whose states are made so, and may keep every other rule."""
    return {rule: breaches for rule, breaches in broken(world).items() if rule not in TELL_OF_ANY_CHANGE}


def rewrite(world: World, asset: str, change: Callable[[pa.Table], pa.Table], day: str = "2024-08-17") -> None:
    """Put a changed partition in the place of a stored one, its metadata as they were."""
    path = Path(world.settings.storage) / asset / f"date={day}" / "part-0.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
