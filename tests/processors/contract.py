"""The contract that every processor's adapter must pass, whatever the processor.

A test module subclasses `ProcessorContract` and gives a `bench` fixture: the processor itself (a real server over real
HTTP), and the means to disturb it. Laws are of `payments_pipeline.processors.base`.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any, Protocol, TypeVar

import pandas as pd
import pytest
from sandbox_process import until

from payments_pipeline.domain.errors import (
    PayoutOutcomeUnknownError,
    PayoutRejectedError,
    ProcessorUnavailableError,
)
from payments_pipeline.domain.money import is_currency
from payments_pipeline.domain.schemas import SETTLEMENT_REPORTS
from payments_pipeline.processors.base import (
    Acknowledgement,
    LookUpStatus,
    PayoutKeyConflictError,
    PayoutProcessor,
    PayoutRequest,
)
from payments_pipeline.storage.frames import conform, to_frame

T = TypeVar("T")
DAY = date(2024, 3, 2)


class Bench(Protocol):
    """A processor on the bench."""

    def processor(self, *, timeout_s: float = 10) -> PayoutProcessor:
        """Give its adapter, unopened."""

    def processor_with_wrong_key(self) -> PayoutProcessor:
        """Give its adapter with an API key that is refused."""

    def request(self, key: str, outcome: str, execute_on: date, amount_minor: int, direction: str) -> PayoutRequest:
        """Give a request with an outcome: settles, declined, fails, returned (a day later), twice, double or fee."""

    def disturb(self, how: str) -> None:
        """Disturb the next request.

        How: lose_request; lose_, stall_, garble_ or cut_answer; answer_another; fail_after; time_out; gateway,
        gateway_after (a proxy fails before or after it passed the request on); in_progress; busy; down.
        """

    def settle_down(self) -> None:
        """End every disturbance; what is in progress is carried out."""

    def pay_twice(self) -> None:
        """Have the next submission carried out twice under its one key."""

    def carried_out(self, key: str) -> int:
        """Say how many payments it carried out under a key, by its own books."""

    def expire(self, key: str) -> None:
        """Let a key die."""

    def stop(self) -> None:
        """Stop it: nobody listens."""


_serial = itertools.count(1)


def new_key() -> str:
    return f"contract-{next(_serial)}"


class ProcessorContract:
    """One test per law."""

    def use(self, bench: Bench, work: Callable[[PayoutProcessor], Awaitable[T]], *, timeout_s: float = 10) -> T:
        async def run() -> T:
            async with bench.processor(timeout_s=timeout_s) as processor:
                return await work(processor)

        return asyncio.run(run())

    def submit(self, bench: Bench, request: PayoutRequest, *, timeout_s: float = 10) -> Acknowledgement:
        return self.use(
            bench,
            lambda processor: processor.submit(processor.encode(request), request.idempotency_key),
            timeout_s=timeout_s,
        )

    def request(
        self, bench: Bench, outcome: str = "settles", *, key: str = "", day: date = DAY, **fields: Any
    ) -> PayoutRequest:
        content = {"amount_minor": 12_345, "direction": "credit", **fields}
        return bench.request(key or new_key(), outcome, day, **content)

    # Sending

    def test_the_same_request_has_the_same_bytes_and_another_has_others(self, bench: Bench) -> None:
        processor = bench.processor()
        request = self.request(bench, key="one")
        assert processor.encode(request) == processor.encode(self.request(bench, key="one"))
        assert processor.encode(request) != processor.encode(self.request(bench, key="one", amount_minor=12_346))
        assert processor.encode(request) != processor.encode(self.request(bench, key="one", direction="debit"))

    def test_what_is_accepted_is_acknowledged_with_a_reference_and_carried_out_once(self, bench: Bench) -> None:
        request = self.request(bench)
        assert self.submit(bench, request).processor_reference
        assert bench.carried_out(request.idempotency_key) == 1

    def test_a_resend_of_the_same_bytes_gets_the_same_answer_and_pays_nothing_more(self, bench: Bench) -> None:
        request = self.request(bench)
        assert self.submit(bench, request) == self.submit(bench, request)
        assert bench.carried_out(request.idempotency_key) == 1

    def test_many_sends_at_once_under_one_key_pay_once(self, bench: Bench) -> None:
        request = self.request(bench)

        async def send(processor: PayoutProcessor) -> list[Acknowledgement]:
            body = processor.encode(request)
            return await asyncio.gather(*(processor.submit(body, request.idempotency_key) for _ in range(50)))

        assert len(set(self.use(bench, send))) == 1
        assert bench.carried_out(request.idempotency_key) == 1

    def test_more_calls_than_connections_are_all_answered(self, bench: Bench) -> None:
        async def send(processor: PayoutProcessor) -> list[Acknowledgement]:
            requests = [self.request(bench) for _ in range(3 * processor.capabilities.max_concurrency)]
            return await asyncio.gather(*(processor.submit(processor.encode(r), r.idempotency_key) for r in requests))

        answers = self.use(bench, send)
        assert len({answer.processor_reference for answer in answers}) == len(answers)

    def test_the_same_key_with_other_content_is_no_rejection_and_says_so(self, bench: Bench) -> None:
        request = self.request(bench)
        self.submit(bench, request)
        other = self.request(bench, key=request.idempotency_key, amount_minor=99)
        with pytest.raises(PayoutKeyConflictError, match="money may have moved"):
            self.submit(bench, other)
        assert bench.carried_out(request.idempotency_key) == 1

    def test_a_refusal_is_final_with_the_processors_code_and_is_remembered(self, bench: Bench) -> None:
        request = self.request(bench, "declined")
        codes = set()
        for _ in range(2):
            with pytest.raises(PayoutRejectedError, match="No money moved") as refusal:
                self.submit(bench, request)
            codes.add(refusal.value.code)
        assert len(codes) == 1
        assert codes != {""}
        assert bench.carried_out(request.idempotency_key) == 0

    @pytest.mark.parametrize("how", ["busy", "down"])
    def test_what_was_definitely_not_accepted_may_be_sent_again(self, bench: Bench, how: str) -> None:
        request = self.request(bench)
        bench.disturb(how)
        with pytest.raises(ProcessorUnavailableError):
            self.submit(bench, request)
        assert bench.carried_out(request.idempotency_key) == 0
        self.submit(bench, request)
        assert bench.carried_out(request.idempotency_key) == 1

    @pytest.mark.parametrize(
        "how",
        [
            "lose_request",
            "lose_answer",
            "stall_answer",
            "garble_answer",
            "cut_answer",
            "answer_another",
            "fail_after",
            "time_out",
            "gateway",
            "gateway_after",
        ],
    )
    def test_every_doubt_is_an_unknown_outcome_and_the_look_up_knows(self, bench: Bench, how: str) -> None:
        request = self.request(bench)
        bench.disturb(how)
        with pytest.raises(PayoutOutcomeUnknownError, match="may have been carried out"):
            self.submit(bench, request, timeout_s=0.5)
        answer = self.use(bench, lambda processor: processor.look_up(request.idempotency_key))
        expected = LookUpStatus.NEVER_SEEN if how in ("lose_request", "gateway") else LookUpStatus.ACCEPTED
        assert answer.status is expected
        assert bench.carried_out(request.idempotency_key) == (expected is LookUpStatus.ACCEPTED)

    def test_what_is_in_progress_under_our_key_is_a_doubt_until_it_is_over_and_is_never_rejected(
        self, bench: Bench
    ) -> None:
        request = self.request(bench)
        bench.disturb("in_progress")
        for _ in range(2):
            with pytest.raises(PayoutOutcomeUnknownError, match="may have been carried out") as doubt:
                self.submit(bench, request)
            assert not isinstance(doubt.value, PayoutKeyConflictError)
            with pytest.raises(ProcessorUnavailableError):
                self.use(bench, lambda processor: processor.look_up(request.idempotency_key))
        bench.settle_down()
        until(lambda: bench.carried_out(request.idempotency_key) == 1)
        assert self.submit(bench, request).processor_reference
        assert bench.carried_out(request.idempotency_key) == 1

    def test_two_payments_under_one_key_are_never_an_acknowledgement_and_the_look_up_says_so(
        self, bench: Bench
    ) -> None:
        request = self.request(bench)
        bench.pay_twice()
        self.submit(bench, request)
        assert bench.carried_out(request.idempotency_key) == 2
        with pytest.raises(PayoutOutcomeUnknownError, match=r"2 payments stand under key .*a person must ask"):
            self.use(bench, lambda processor: processor.look_up(request.idempotency_key))

    def test_one_call_is_one_attempt(self, bench: Bench) -> None:
        request = self.request(bench)
        bench.disturb("lose_request")
        with pytest.raises(PayoutOutcomeUnknownError):
            self.submit(bench, request)
        assert bench.carried_out(request.idempotency_key) == 0

    def test_a_refused_connection_is_unavailable(self, bench: Bench) -> None:
        bench.stop()
        request = self.request(bench)
        with pytest.raises(ProcessorUnavailableError, match="Nothing was sent"):
            self.submit(bench, request)
        with pytest.raises(ProcessorUnavailableError):
            self.use(bench, lambda processor: processor.look_up(request.idempotency_key))
        with pytest.raises(ProcessorUnavailableError):
            self.use(bench, lambda processor: processor.report(DAY))

    def test_a_refused_api_key_loses_no_instruction_and_is_not_shown(self, bench: Bench) -> None:
        request = self.request(bench)

        async def submit() -> None:
            async with bench.processor_with_wrong_key() as processor:
                await processor.submit(processor.encode(request), request.idempotency_key)

        with pytest.raises(ProcessorUnavailableError) as refusal:
            asyncio.run(submit())
        assert "wrong-key" not in str(refusal.value)
        assert bench.carried_out(request.idempotency_key) == 0

    # Looking up

    def test_a_look_up_tells_accepted_from_rejected_from_never_seen(self, bench: Bench) -> None:
        accepted, declined = self.request(bench), self.request(bench, "declined")
        reference = self.submit(bench, accepted).processor_reference
        with pytest.raises(PayoutRejectedError) as refusal:
            self.submit(bench, declined)
        answers = [
            self.use(bench, lambda processor, key=key: processor.look_up(key))
            for key in (accepted.idempotency_key, declined.idempotency_key, new_key())
        ]
        assert [answer.status for answer in answers] == list(LookUpStatus)
        assert answers[0].processor_reference == reference
        assert answers[1].code == refusal.value.code

    def test_a_look_up_says_which_bytes_it_is_about(self, bench: Bench) -> None:
        request = self.request(bench)
        self.submit(bench, request)
        answer = self.use(bench, lambda processor: processor.look_up(request.idempotency_key))
        if answer.request_sha256 is not None:
            assert answer.request_sha256 == hashlib.sha256(bench.processor().encode(request)).hexdigest()

    @pytest.mark.parametrize(
        "how",
        ["lose_request", "garble_answer", "cut_answer", "down", "busy", "fail_after", "time_out", "gateway"],
    )
    def test_a_look_up_without_an_answer_never_says_never_seen(self, bench: Bench, how: str) -> None:
        request = self.request(bench)
        self.submit(bench, request)
        # A client may ask once more where a kept connection breaks: asking changes nothing.
        bench.disturb(how)
        bench.disturb(how)
        with pytest.raises(ProcessorUnavailableError):
            self.use(bench, lambda processor: processor.look_up(request.idempotency_key))

    def test_a_dead_key_is_forgotten_while_its_payment_stands(self, bench: Bench) -> None:
        request = self.request(bench)
        self.submit(bench, request)
        bench.expire(request.idempotency_key)
        answer = self.use(bench, lambda processor: processor.look_up(request.idempotency_key))
        assert answer.status is LookUpStatus.NEVER_SEEN
        assert bench.carried_out(request.idempotency_key) == 1

    # Reports

    def test_a_report_is_exactly_the_declared_frame(self, bench: Bench) -> None:
        for outcome in ("settles", "fails", "returned", "fee"):
            for direction in ("credit", "debit"):
                self.submit(bench, self.request(bench, outcome, direction=direction))
        for day in (DAY, DAY + timedelta(days=1), date(1999, 1, 1)):
            report = self.use(bench, lambda processor, day=day: processor.report(day))
            declared = to_frame(conform(report.lines, SETTLEMENT_REPORTS))
            ordered = report.lines.sort_values(list(SETTLEMENT_REPORTS.sort_by), ignore_index=True)
            pd.testing.assert_frame_equal(ordered, declared)
            assert list(report.balances.columns) == ["currency", "opening_minor", "closing_minor"]
            assert list(report.balances.dtypes.astype(str)) == ["object", "int64", "int64"]
            assert set(report.lines["processor"]) <= {bench.processor().name}
            assert all(is_currency(currency) for currency in report.balances["currency"])

    def test_each_outcome_is_reported_on_its_day_with_its_cash(self, bench: Bench) -> None:
        next_day = DAY + timedelta(days=1)
        for direction, sign in (("credit", -1), ("debit", 1)):
            expected = {
                "settles": [(DAY, "settled", sign * 700)],
                "fails": [(DAY, "failed", 0)],
                "returned": [(DAY, "settled", sign * 700), (next_day, "returned", -sign * 700)],
                "twice": [(DAY, "settled", sign * 700)],
                "double": [(DAY, "settled", sign * 700), (DAY, "settled", sign * 700)],
            }
            for outcome, lines in expected.items():
                request = self.request(bench, outcome, amount_minor=700, direction=direction)
                self.submit(bench, request)
                assert self.lines_about(bench, request.idempotency_key, DAY, next_day) == lines, outcome

    def lines_about(self, bench: Bench, key: str, *days: date) -> list[tuple[date, str, int]]:
        found = []
        for day in days:
            lines = self.use(bench, lambda processor, day=day: processor.report(day)).lines
            about = lines[lines["idempotency_key"].eq(key)].drop_duplicates()
            assert about["entry_reference"].is_unique
            found += list(about[["report_date", "kind", "amount_minor"]].itertuples(index=False, name=None))
        return found

    def test_a_line_reported_twice_keeps_its_reference_and_its_cash_counts_once(self, bench: Bench) -> None:
        day = date(2024, 5, 1)
        request = self.request(bench, "twice", day=day)
        self.submit(bench, request)
        report = self.use(bench, lambda processor: processor.report(day))
        lines = report.lines[report.lines["idempotency_key"].eq(request.idempotency_key)]
        assert len(lines) == 2
        assert len(lines.drop_duplicates()) == 1
        moved = report.balances["closing_minor"] - report.balances["opening_minor"]
        assert moved.tolist() == [-request.amount_minor]

    def test_the_list_gives_each_reports_own_digest_and_leaves_empty_dates_out(self, bench: Bench) -> None:
        first = date(2024, 6, 1)
        for offset in (0, 2):
            self.submit(bench, self.request(bench, day=first + timedelta(days=offset)))

        async def read(processor: PayoutProcessor) -> tuple[list[Any], list[Any]]:
            listed = await processor.report_digests(first, first + timedelta(days=2))
            return listed, [await processor.report(digest.report_date) for digest in listed]

        listed, reports = self.use(bench, read)
        assert [digest.report_date for digest in listed] == [first, first + timedelta(days=2)]
        assert [digest.digest for digest in listed] == [report.digest for report in reports]
        assert [digest.entry_count for digest in listed] == [len(report.lines) for report in reports]

    def test_a_report_that_grows_keeps_its_lines_and_changes_its_digest(self, bench: Bench) -> None:
        day = date(2024, 7, 1)
        self.submit(bench, self.request(bench, day=day))
        before = self.use(bench, lambda processor: processor.report(day))
        self.submit(bench, self.request(bench, "fee", day=day))
        after = self.use(bench, lambda processor: processor.report(day))
        assert before.digest != after.digest
        assert set(before.lines["entry_reference"]) < set(after.lines["entry_reference"])
        again = self.use(bench, lambda processor: processor.report(day))
        assert again.digest == after.digest

    def test_balances_go_on_from_day_to_day_and_move_by_their_lines(self, bench: Bench) -> None:
        first = date(2024, 8, 1)
        outcomes = ("settles", "fails", "returned", "twice", "double", "fee")
        for number, outcome in enumerate(outcomes):
            for direction in ("credit", "debit"):
                self.submit(
                    bench,
                    self.request(
                        bench,
                        outcome,
                        day=first + timedelta(days=number % 3),
                        amount_minor=1_000 + number,
                        direction=direction,
                    ),
                )
        closing: dict[str, int] = {}
        for offset in range(6):
            day = first + timedelta(days=offset)
            report = self.use(bench, lambda processor, day=day: processor.report(day))
            cash = report.lines.drop_duplicates().groupby("currency", observed=True)["amount_minor"].sum()
            balances = report.balances.set_index("currency")
            moved = balances["closing_minor"] - balances["opening_minor"]
            assert moved[moved != 0].to_dict() == cash[cash != 0].to_dict()
            if closing:
                assert balances["opening_minor"].to_dict() == closing
            closing = balances["closing_minor"].to_dict()

    def test_a_date_on_which_nothing_happened_has_an_empty_report(self, bench: Bench) -> None:
        report = self.use(bench, lambda processor: processor.report(date(1999, 12, 31)))
        assert report.lines.empty
        assert list(report.lines.columns) == SETTLEMENT_REPORTS.names
