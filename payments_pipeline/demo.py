"""`demo`: a generated season's first days, end to end, on the embedded stack; twice in a row pays nothing twice.

Belongs here: the story and its order. Does not belong here: the data (`local.sample_data`), the pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta
from pathlib import Path

import aiohttp
import click

from payments_pipeline import status
from payments_pipeline.day_runs import DayFailedError, DayRuns, DaySummary, days
from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.exports import read_partition
from payments_pipeline.local.sample_data import SampleSeason, write_sample_season
from payments_pipeline.local.stack import Endpoints
from payments_pipeline.printing import rule_line, tables_text
from payments_pipeline.settings import Settings
from payments_pipeline.verify import verify

MATCH_DAYS = 7
#: Days after the last match day: what was sent is settled on the first, what comes back does so by the last.
SETTLING_DAYS = 4
#: Marks the landing folder as the demo's own, and keeps the season's first day: a second demo plays the same season.
MARKER = ".sample_season"

OpenRuns = Callable[[Settings], AbstractContextManager[tuple[DayRuns, Settings, Endpoints]]]


def run_demo(
    settings: Settings, *, seed: int, day_runs: OpenRuns, show: Callable[[DaySummary], None], say: Callable[[str], None]
) -> int:
    """Run the demo; gives the exit code.

    Args:
        settings: the landing zone and reference data must not be named: the demo brings its own.
        seed: of the generated season.
        day_runs: opens servers and runs.
        show: prints a day.
        say: prints a line for people.

    Raises:
        ConfigurationError: the landing zone or reference data is somebody else's; nothing was written.
    """
    yesterday = datetime.now(settings.zone).date() - timedelta(days=1)
    season = _prepare(settings, seed, yesterday - timedelta(days=MATCH_DAYS + SETTLING_DAYS - 1))
    click.echo(f"Sample season: {season.summary}", err=True)
    with day_runs(settings) as (runs, found, endpoints):
        last = season.days[-1] + timedelta(days=SETTLING_DAYS)
        summaries, failed = [], []
        for day in days(season.days[0], last):
            click.echo(f"running {day} …", err=True)
            try:
                summary = runs.run(day)
            except DayFailedError as error:
                failed.append(str(error))
                click.echo(f"  {error}", err=True)
                continue
            _fund(found, endpoints, day)
            summaries.append(summary)
            show(summary)
        say("\nHow long each step took, in seconds, the median day and the longest:\n")
        for line in _step_lines(summaries):
            say(line)
        say("\nWhat settled, what waits and why:\n")
        say(tables_text(status.overall(endpoints.postgres_url)))
        say("Match fees that files asked to have refunded, and what came of each request:\n")
        say(_refunds_text(endpoints, summaries))
        say("Verify recomputes the rules from what is stored, by code of its own:\n")
        results = list(verify(endpoints.postgres_url, found))
        for result in results:
            say(rule_line(result))
    broken = sum(not result.ok for result in results)
    say(
        f"\n{len(results) - broken} of {len(results)} rules hold. The Dagster UI shows these runs: start it with "
        f"`make up` and open http://127.0.0.1:{settings.ui_port}. Run the demo again: nothing is paid twice."
    )
    return 1 if broken or failed else 0


def _prepare(settings: Settings, seed: int, first_day: date) -> SampleSeason:
    """Write the season, so that its last settling day is yesterday and no day since was missed."""
    if settings.landing_url or settings.reference_url:
        raise ConfigurationError(
            "the demo brings its own data: unset PAYMENTS_LANDING_URL and PAYMENTS_REFERENCE_URL. Nothing was written."
        )
    landing, reference = Path(settings.landing), Path(settings.reference)
    marker = landing / MARKER
    if marker.exists():
        first_day = date.fromisoformat(marker.read_text("utf-8").strip())
    elif any(folder.exists() and any(folder.iterdir()) for folder in (landing, reference)):
        raise ConfigurationError(
            f"{landing} or {reference} holds data that the demo did not write. Nothing was written. Set PAYMENTS_HOME "
            "to a folder of the demo's own."
        )
    else:
        landing.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"{first_day}\n", "utf-8")
    return write_sample_season(landing, reference, first_day=first_day, match_days=MATCH_DAYS, seed=seed)


def _fund(settings: Settings, endpoints: Endpoints, day: date) -> None:
    """Wire the day's declared revenue to the sandbox on the day after, as organisers would; once, by its key."""
    table = read_partition("match_results", day, storage_url=settings.storage, database_url=endpoints.postgres_url)
    frame = table.to_pandas()
    revenue = frame.groupby(["competition_id", "currency"], observed=True)["revenue_minor"].sum()
    fundings = [
        {
            "currency": currency,
            "amount_minor": int(amount),
            "subject": f"pot:{competition_id}",
            "date": (day + timedelta(days=1)).isoformat(),
        }
        for (competition_id, currency), amount in revenue.items()
        if amount > 0
    ]
    asyncio.run(_wire(endpoints, day, fundings))


async def _wire(endpoints: Endpoints, day: date, fundings: list[dict[str, object]]) -> None:
    headers = {"Authorization": f"Bearer {endpoints.processor_key}"}
    async with aiohttp.ClientSession(endpoints.processor_url, headers=headers) as session:
        for funding in fundings:
            key = f"demo-funding-{day}-{funding['subject']}"
            async with session.post(
                "/v1/test_helpers/fundings", json=funding, headers={"Idempotency-Key": key}
            ) as response:
                response.raise_for_status()


def _refunds_text(endpoints: Endpoints, summaries: list[DaySummary]) -> str:
    asked = [summary for summary in summaries if summary.refunds or summary.refusals]
    accepted = [
        row
        for summary in asked
        for row in status.overall(endpoints.postgres_url, day=date.fromisoformat(summary.day))["refunds"]
    ]
    refused = [f"refused on {summary.day}: {words}\n" for summary in asked for words in summary.refusals]
    return tables_text({"accepted": accepted}) + "".join(refused)


def _step_lines(summaries: list[DaySummary]) -> Iterator[str]:
    names = list(dict.fromkeys(step for summary in summaries for step in summary.steps))
    for name in names:
        taken = sorted(summary.steps[name] for summary in summaries if name in summary.steps)
        yield f"  {name:<22} {taken[len(taken) // 2]:6.2f} {taken[-1]:6.2f}"
