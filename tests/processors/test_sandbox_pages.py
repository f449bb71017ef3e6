"""A report in many pages is read whole or not at all, through the adapter, from the sandbox's own process."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sandbox_process import API_KEY, SandboxProcess, running_sandbox

from payments_pipeline.domain.errors import ProcessorUnavailableError
from payments_pipeline.processors.base import ReportDigest, SettlementReport
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor

DAY = date(2024, 3, 2)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    """Pages of three; ten payments, one of them listed twice: eleven entries on four pages."""
    with running_sandbox(tmp_path, "--page-entries", "3") as sandbox:
        for number in range(10):
            token = "tok_test_twice" if number == 4 else "tok_club"
            assert sandbox.pay(f"paged-{number}", amount_minor=100 + number, token=token)[0] == 201
        yield sandbox


class Meddling(SandboxProcessor):
    """Hands each page to `meddle`, with its number, before it is read."""

    def __init__(self, url: str, meddle: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(url, API_KEY, 5)
        self.meddle, self.pages = meddle, 0

    async def _get_report(self, path: str, query: dict[str, str], what: str) -> dict[str, Any]:
        answer = await super()._get_report(path, query, what)
        self.pages += 1
        return self.meddle(self.pages, answer)


def read(processor: SandboxProcessor) -> SettlementReport:
    async def run() -> SettlementReport:
        async with processor:
            return await processor.report(DAY)

    return asyncio.run(run())


def test_a_report_of_many_pages_is_the_report_of_one(sandbox: SandboxProcess) -> None:
    paged = Meddling(sandbox.url, lambda _number, page: page)
    report = read(paged)
    assert paged.pages == 4
    assert len(report.lines) == 11
    assert report.lines["entry_reference"].nunique() == 10
    assert report.balances["closing_minor"].tolist() == [-sum(range(100, 110))]
    sandbox.stop()
    sandbox.options = ()
    sandbox.start()
    whole = Meddling(sandbox.url, lambda _number, page: page)
    assert read(whole).lines.equals(report.lines)
    assert whole.pages == 1


def test_a_report_that_grows_between_two_pages_is_read_again_whole(sandbox: SandboxProcess) -> None:
    def grow_once(number: int, page: dict[str, Any]) -> dict[str, Any]:
        if number == 2:
            sandbox.pay("late", amount_minor=7)
        return page

    report = read(Meddling(sandbox.url, grow_once))
    assert len(report.lines) == 12
    assert "late" in set(report.lines["idempotency_key"])
    assert report.balances["closing_minor"].tolist() == [-sum(range(100, 110)) - 7]


def test_a_report_that_grows_whenever_it_is_read_is_not_taken_in(sandbox: SandboxProcess) -> None:
    def grow(number: int, page: dict[str, Any]) -> dict[str, Any]:
        sandbox.pay(f"late-{number}")
        return page

    growing = Meddling(sandbox.url, grow)
    with pytest.raises(ProcessorUnavailableError, match=r"changed each of the 3 times.*Nothing was taken in"):
        read(growing)
    assert growing.pages == 6


def test_an_earlier_day_that_changes_between_two_pages_leaves_no_balance_of_before(sandbox: SandboxProcess) -> None:
    def fund(number: int, page: dict[str, Any]) -> dict[str, Any]:
        if number == 1:
            sandbox.fund("wire", 5000, "2024-03-01")
        return page

    assert read(Meddling(sandbox.url, fund)).balances["opening_minor"].tolist() == [5000]


def test_a_page_that_fails_half_way_leaves_nothing_of_the_report(sandbox: SandboxProcess) -> None:
    for kind, fields in (
        ("status", {"status": 503}),
        ("malformed", {}),
        ("cut", {}),
        ("status_after", {"status": 500}),
    ):
        sandbox.behave()
        sandbox.fault("delay_before", seconds=0.01, on="reports")
        # A client may ask once more where a kept connection breaks.
        sandbox.fault(kind, on="reports", count=2, **fields)
        with pytest.raises(ProcessorUnavailableError):
            read(SandboxProcessor(sandbox.url, API_KEY, 5))
    sandbox.behave()
    assert len(read(SandboxProcessor(sandbox.url, API_KEY, 5)).lines) == 11


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (lambda page: {"next": page["entries"][0]["entry_reference"]}, "more entries than|leads back"),
        (lambda _page: {"next": None}, "counts 11 entries and holds"),
        (lambda page: {"entries": page["entries"][1:]}, "counts 11 entries and holds 10"),
        (lambda page: {"entries": page["entries"] + page["entries"]}, "more entries than|counts 11"),
        (lambda _page: {"entries": []}, "leads on without entries"),
        (
            lambda page: {"entries": [{**page["entries"][0], "amount_minor": -1}, *page["entries"][1:]]},
            "GBP balance opens at 0",
        ),
        (
            lambda page: {"entries": [{**page["entries"][0], "idempotency_key": "other"}, *page["entries"][1:]]},
            "is not that of its entries",
        ),
    ],
)
def test_pages_that_do_not_agree_never_make_a_shorter_report(
    sandbox: SandboxProcess, fields: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    def spoil(number: int, page: dict[str, Any]) -> dict[str, Any]:
        return page | fields(page) if number == 2 else page

    with pytest.raises(ProcessorUnavailableError, match=words):
        read(Meddling(sandbox.url, spoil))


def test_a_list_of_reports_on_many_pages_is_the_list_of_one(sandbox: SandboxProcess) -> None:
    first = DAY - timedelta(days=4)
    for day in range(4):
        sandbox.pay(f"listed-{day}", execute_on=(first + timedelta(days=day)).isoformat())

    async def read_list(processor: SandboxProcessor) -> list[ReportDigest]:
        async with processor:
            return await processor.report_digests(first, DAY)

    paged = Meddling(sandbox.url, lambda _number, page: page)
    listed = asyncio.run(read_list(paged))
    assert paged.pages == 2
    assert [one.report_date for one in listed] == [first + timedelta(days=day) for day in range(5)]

    def fail(number: int, page: dict[str, Any]) -> dict[str, Any]:
        return {} if number == 2 else page

    with pytest.raises(ProcessorUnavailableError, match="cannot be read"):
        asyncio.run(read_list(Meddling(sandbox.url, fail)))


def test_a_cursor_that_repeats_ends(sandbox: SandboxProcess) -> None:
    cursors: list[str] = []

    def repeat(_number: int, page: dict[str, Any]) -> dict[str, Any]:
        cursors.append(page["next"])
        return page | {"next": cursors[0], "entry_count": 1000}

    repeating = Meddling(sandbox.url, repeat)
    with pytest.raises(ProcessorUnavailableError, match="leads back"):
        read(repeating)
    assert repeating.pages == 2
