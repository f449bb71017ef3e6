"""How `verify` finds a world, and how its stored files are changed behind its back."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from verify_world import World

from payments_pipeline.verify import RuleResult, verify


def results(world: World) -> dict[str, RuleResult]:
    return {result.rule: result for result in verify(world.url, world.settings)}


def broken(world: World) -> dict[str, tuple[str, ...]]:
    return {rule: result.breaches for rule, result in results(world).items() if not result.ok}


def rewrite(world: World, asset: str, change: Callable[[pa.Table], pa.Table], day: str = "2024-08-17") -> None:
    """Put a changed partition in the place of a stored one, its metadata as they were."""
    path = Path(world.settings.storage) / asset / f"date={day}" / "part-0.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
