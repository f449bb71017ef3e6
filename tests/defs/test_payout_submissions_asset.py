"""The asset `payout_submissions`: what the log of a real run says while it sends."""

import datetime as dt
import logging
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from checked_days import OWED, CheckedDays, Processor

from payments_pipeline.defs import resources
from payments_pipeline.processors import dispatch

PROGRESS = f"{len(OWED)} of {len(OWED)} instructions, "


def said_while_sending(
    database: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, told_every: dt.timedelta
) -> list[str]:
    """Run a day whose dispatch tells this often how far it has come; give what its step logged."""
    processor = Processor()
    monkeypatch.setattr(resources, "open_processor", lambda *_: processor)
    monkeypatch.setattr(dispatch, "_TOLD_EVERY", told_every)
    with dg.DagsterInstance.ephemeral() as instance:
        days = CheckedDays(folder, database.url, database.superuser_url, instance, processor)
        result = days.run("payout_submissions").result
        assert days.sent() == OWED
        return [each.user_message for each in instance.all_logs(result.run_id) if each.step_key == "payout_submissions"]


@pytest.mark.rule("dispatch/progress")
def test_the_log_of_a_run_and_whoever_listens_in_its_process_are_told_how_far_a_long_dispatch_has_come(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "payments_pipeline.progress"):
        logged = said_while_sending(database, tmp_path, monkeypatch, dt.timedelta(0))
    words = [each for each in logged if each.startswith(PROGRESS)]
    assert len(words) == 1
    assert [each.getMessage() for each in caplog.records if each.name == "payments_pipeline.progress"] == words


def test_of_a_short_dispatch_the_log_of_a_run_says_nothing(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = said_while_sending(database, tmp_path, monkeypatch, dt.timedelta(hours=1))
    assert not any("instructions, " in each for each in logged)
