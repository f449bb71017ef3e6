"""Who started a run is who made what it writes: the schedule, who ran a command, a sensor, or somebody in the UI."""

import dagster as dg
import pytest

from payments_pipeline.defs.resources import MAKER_TAG, run_info


@pytest.mark.rule("people/maker-is-no-approver")
@pytest.mark.parametrize(
    ("tags", "maker"),
    [
        ({"dagster/schedule_name": "daily_at_three"}, "scheduler"),
        ({MAKER_TAG: "joe"}, "joe"),
        ({MAKER_TAG: "missed_days"}, "missed_days"),
        ({"dagster/schedule_name": "daily_at_three", MAKER_TAG: "joe"}, "scheduler"),
        ({}, "ui"),
        ({"dagster/schedule_name": "daily_at_three", "dagster/parent_run_id": "a"}, "ui"),
        ({MAKER_TAG: "joe", "dagster/parent_run_id": "a", "dagster/root_run_id": "a"}, "ui"),
        ({MAKER_TAG: "joe", "dagster/parent_run_id": "a", "dagster/retry_number": "1"}, "joe"),
    ],
)
def test_what_a_run_writes_names_who_started_it(tags: dict[str, str], maker: str) -> None:
    found = []

    @dg.asset
    def written(context: dg.AssetExecutionContext) -> None:
        found.append(run_info(context))

    result = dg.materialize([written], tags=tags)
    [info] = found
    assert info.maker == maker
    assert info.run_id == result.run_id
