"""Every check is of one match day, so that no day's result hides another's."""

import dagster as dg

from payments_pipeline.definitions import build_defs
from payments_pipeline.settings import Settings


def test_every_check_is_of_one_match_day() -> None:
    assets = [each for each in build_defs(Settings()).assets or () if isinstance(each, dg.AssetsDefinition)]
    specs = [(asset.partitions_def, spec) for asset in assets for spec in asset.check_specs]
    assert len(specs) >= 27
    assert all(spec.partitions_def == partitions is not None for partitions, spec in specs)
