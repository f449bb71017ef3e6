"""The sandbox's HTTP server.

Belongs here: routes, authentication, faults as they look on the wire, the one writer that commits requests together.
Does not belong here: what a request does (`payments`, `reports`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType

from aiohttp import web

from payments_pipeline.local.sandbox import misreports, reports
from payments_pipeline.local.sandbox.answers import LARGEST_BODY, Answer
from payments_pipeline.local.sandbox.database import Database
from payments_pipeline.local.sandbox.faults import OF_REPORTS, Fault, Faults, Route
from payments_pipeline.local.sandbox.payments import Desk
from payments_pipeline.local.sandbox.requests import Expiry, RefusedError, read_date, read_fields, read_key, read_model
from payments_pipeline.local.sandbox.traffic import Traffic

log = logging.getLogger(__name__)
#: Requests that share one durable commit, at most.
TOGETHER = 512
Work = Callable[[sqlite3.Connection], Answer]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CODE_OF_STATUS = {404: "unknown_route", 405: "method_not_allowed", 413: "body_too_large"}
_CODE_OF_FAULT = {408: "request_timeout", 429: "rate_limited", 503: "unavailable"}
_GATEWAY_PAGE = b"<html><head><title>Bad Gateway</title></head><body>Upstream failed</body></html>"
_MISADDRESSED = Answer.of(201, {"id": "pay_of_another", "status": "accepted", "idempotency_key": "another"})


class Server:
    """The application around one database file."""

    def __init__(self, path: Path, api_key: str, desk: Desk, page_entries: int = reports.PAGE_ENTRIES) -> None:
        """Open the file.

        Args:
            path: database file.
            api_key: what requests must bring.
            desk: where requests under a key are dealt with.
            page_entries: entries on a page of a report, at most.

        Raises:
            WrongFileError: it was written by something else.
        """
        self._desk = desk
        self._page_entries = page_entries
        self._authorization = f"Bearer {api_key}".encode()
        self._faults = Faults()
        self._cleared = asyncio.Event()  # ends the waiting of those that a fault delays
        self._traffic = Traffic()
        #: Keys whose request is answered as in progress, and what will end it.
        self._in_progress: dict[str, asyncio.Task[None]] = {}
        self._writing, self._reading = Database(path), Database(path)
        # One thread each: commits take turns, and a long report holds up no commit.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._queue: asyncio.Queue[tuple[Work, asyncio.Future[Answer]]] = asyncio.Queue()

    def application(self) -> web.Application:
        """Give the aiohttp application."""
        application = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._watch])
        application.add_routes(
            [
                web.get("/v1/health", self._health),
                web.post("/v1/payments", self._pay),
                web.get("/v1/payments", self._look_up),
                web.get("/v1/payments/{id}", self._payment),
                web.get("/v1/reports", self._list_reports),
                web.get("/v1/reports/{date}", self._report),
                web.get("/v1/books", self._books),
                web.post("/v1/test_helpers/fundings", self._fund),
                web.post("/v1/test_helpers/entries", self._write_line),
                web.get("/v1/test_helpers/faults", self._list_faults),
                web.post("/v1/test_helpers/faults", self._add_fault),
                web.delete("/v1/test_helpers/faults", self._clear_faults),
                web.post("/v1/test_helpers/expire_key", self._expire_key),
                web.get("/v1/test_helpers/traffic", self._count_traffic),
                web.delete("/v1/test_helpers/traffic", self._clear_traffic),
                web.post("/v1/test_helpers/today", self._set_today),
                web.delete("/v1/test_helpers/today", self._clear_today),
            ]
        )
        application.cleanup_ctx.append(self._run)
        return application

    async def _run(self, _application: web.Application) -> AsyncIterator[None]:
        writing = asyncio.create_task(self._write())
        yield
        tasks = [*self._in_progress.values(), writing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for executor, database in ((self._writer, self._writing), (self._reader, self._reading)):
            await asyncio.get_running_loop().run_in_executor(executor, database.close)
            executor.shutdown()

    # Work

    async def _write(self) -> None:
        """Commit whatever has arrived together, again and again; no answer leaves before its commit.

        The work is done here and the waiting for the disk in a thread, so that requests are taken in meanwhile;
        statements in a thread of their own would only pass the interpreter's lock to and fro.
        """
        connection = self._writing.connection
        while True:
            batch = [await self._queue.get()]
            while len(batch) < TOGETHER and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            results = await self._do_together([partial(work, connection) for work, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _do_together(self, works: list[Callable[[], Answer]]) -> list[Answer | Exception]:
        loop = asyncio.get_running_loop()
        try:
            results = self._writing.do(works)
            await loop.run_in_executor(self._writer, self._writing.commit)
        except Exception:
            log.exception("%d requests could not be committed together; each is committed alone", len(works))
            return await loop.run_in_executor(self._writer, self._writing.each_alone, works)
        return results

    async def _commit(self, work: Work) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((work, future))
        return await future

    async def _read(self, work: Work) -> Answer:
        def at_one_moment() -> Answer:
            return self._reading.at_one_moment(lambda: work(self._reading.connection))

        return await asyncio.get_running_loop().run_in_executor(self._reader, at_one_moment)

    # Every request

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate, turn every error into JSON, and log one line without keys or tokens."""
        started = time.perf_counter()
        try:
            if request.path != "/v1/health" and not self._is_authorized(request):
                response: web.StreamResponse = _response(Answer.error("unauthorized"))
            else:
                response = await handler(request)
        except RefusedError as refusal:
            response = _response(Answer.error(refusal.code, message=refusal.message))
        except web.HTTPException as error:
            code = _CODE_OF_STATUS.get(error.status, "invalid_request")
            response = _response(Answer.error(code, status=error.status))
        except Exception:
            log.exception("%s %s failed", request.method, _route_of(request))
            response = _response(Answer.error("internal_error"))
        milliseconds = (time.perf_counter() - started) * 1000
        log.info("%s %s %d %.1f ms", request.method, _route_of(request), response.status, milliseconds)
        return response

    def _is_authorized(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._authorization)

    async def _answer(
        self,
        request: web.Request,
        route: Route,
        work: Callable[[], Awaitable[Answer]],
        other_work: Mapping[str, Callable[[Fault], Awaitable[Answer]]] = MappingProxyType({}),
    ) -> web.StreamResponse:
        """Do the work and answer, or meet the fault that is waiting for this request; some are other work."""
        with self._traffic.request(route):
            fault = self._faults.next(route)
            if fault is None:
                return _response(await work())
            log.info("%s %s meets %s", request.method, _route_of(request), fault.kind)
            if fault.kind in ("status", "gateway"):
                return _failed(fault)
            if fault.kind == "drop_before":
                return _drop(request)
            if fault.kind == "delay_before":
                await self._wait(fault)
            answer = await (other_work[fault.kind](fault) if fault.kind in other_work else work())
            if fault.kind in ("status_after", "gateway_after"):
                return _failed(fault)
            if fault.kind == "drop_after":
                return _drop(request)
            if fault.kind == "delay_after":
                await self._wait(fault)
            return await _spoiled(request, answer, fault)

    async def _wait(self, fault: Fault) -> None:
        """Wait as long as the fault says, or until faults are cleared."""
        try:
            await asyncio.wait_for(self._cleared.wait(), fault.seconds)
        except TimeoutError:
            return

    # Routes

    async def _health(self, _request: web.Request) -> web.Response:
        lifetime_s = int(self._desk.key_lifetime.total_seconds())
        return _response(
            await self._read(
                lambda db: Answer.of(
                    200,
                    {"status": "ok", "today": self._desk.clock.today(db).isoformat(), "key_lifetime_s": lifetime_s},
                )
            )
        )

    async def _pay(self, request: web.Request) -> web.StreamResponse:
        key, body = read_key(request.headers.get("Idempotency-Key")), await request.read()

        async def pay() -> Answer:
            if key in self._in_progress:
                return Answer.error("request_in_progress")
            return await self._commit(lambda db: self._desk.pay(db, key, body))

        async def pay_twice(_fault: Fault) -> Answer:
            return await self._commit(lambda db: self._desk.pay_twice(db, key, body))

        async def pay_later(fault: Fault) -> Answer:
            if key not in self._in_progress:
                self._in_progress[key] = asyncio.create_task(self._pay_later(key, body, fault))
            return Answer.error("request_in_progress")

        other_work = {"pays_twice": pay_twice, "in_progress": pay_later}
        return await self._answer(request, Route.PAYMENTS, pay, other_work)

    async def _pay_later(self, key: str, body: bytes, fault: Fault) -> None:
        try:
            await self._wait(fault)
            await self._commit(lambda db: self._desk.pay(db, key, body))
        except Exception:
            log.exception("a request that was in progress failed")
        finally:
            del self._in_progress[key]

    async def _fund(self, request: web.Request) -> web.Response:
        key, body = read_key(request.headers.get("Idempotency-Key")), await request.read()
        return _response(await self._commit(lambda db: self._desk.fund(db, key, body)))

    async def _write_line(self, request: web.Request) -> web.Response:
        key, body = read_key(request.headers.get("Idempotency-Key")), await request.read()
        return _response(await self._commit(lambda db: self._desk.write_line(db, key, body)))

    async def _look_up(self, request: web.Request) -> web.StreamResponse:
        key = read_key(request.query.get("idempotency_key"))

        async def look_up() -> Answer:
            if key in self._in_progress:
                return Answer.error("request_in_progress")
            return await self._read(lambda db: self._desk.look_up(db, key))

        return await self._answer(request, Route.LOOK_UPS, look_up)

    async def _payment(self, request: web.Request) -> web.StreamResponse:
        payment_id = request.match_info["id"]

        def find(db: sqlite3.Connection) -> Answer:
            found = reports.payment(db, payment_id, self._desk.clock.today(db))
            return Answer.of(200, found) if found else Answer.error("no_such_payment")

        return await self._answer(request, Route.LOOK_UPS, lambda: self._read(find))

    async def _list_reports(self, request: web.Request) -> web.StreamResponse:
        first, last = read_date(request.query.get("from")), read_date(request.query.get("to"))
        after = read_date(request.query["after"]) + timedelta(days=1) if "after" in request.query else first
        return await self._answer(
            request,
            Route.REPORTS,
            lambda: self._read(
                lambda db: Answer.of(
                    200,
                    misreports.list_reports(
                        db, max(first, after), last, self._desk.clock.today(db), self._page_entries
                    ),
                )
            ),
        )

    async def _report(self, request: web.Request) -> web.StreamResponse:
        day, after = read_date(request.match_info["date"]), request.query.get("after", "")

        def page(db: sqlite3.Connection) -> Answer:
            return Answer.of(200, misreports.report(db, day, self._desk.clock.today(db), after, self._page_entries))

        return await self._answer(request, Route.REPORTS, lambda: self._read(page))

    async def _books(self, _request: web.Request) -> web.Response:
        return _response(await self._read(lambda db: Answer.of(200, reports.statement(db, self._desk.clock.today(db)))))

    # Test helpers

    async def _list_faults(self, _request: web.Request) -> web.Response:
        waiting = self._faults.waiting()
        return _response(await self._read(lambda db: Answer.of(200, {"faults": waiting + misreports.kept(db)})))

    async def _add_fault(self, request: web.Request) -> web.Response:
        fault = read_model(Fault, await request.read())
        if fault.kind not in OF_REPORTS:
            self._faults.add(fault)
            return await self._list_faults(request)
        if fault.date is not None:
            read_date(fault.date)
        kept = await self._commit(lambda db: misreports.keep(db, fault))
        return await self._list_faults(request) if kept.status == 200 else _response(kept)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()
        await self._commit(misreports.clear)
        return await self._list_faults(request)

    async def _expire_key(self, request: web.Request) -> web.Response:
        expiry = read_model(Expiry, await request.read())
        key = read_key(expiry.idempotency_key)
        day = read_date(expiry.on) if expiry.on is not None else None
        return _response(await self._commit(lambda db: self._desk.expire(db, key, expiry.after_s or 0, day)))

    async def _count_traffic(self, _request: web.Request) -> web.Response:
        return _response(Answer.of(200, self._traffic.counted()))

    async def _clear_traffic(self, request: web.Request) -> web.Response:
        self._traffic.clear()
        return await self._count_traffic(request)

    async def _set_today(self, request: web.Request) -> web.Response:
        day = read_date(read_fields(await request.read(), {"today": str})["today"])
        return await self._with_today(day)

    async def _clear_today(self, _request: web.Request) -> web.Response:
        return await self._with_today(None)

    async def _with_today(self, day: date | None) -> web.Response:
        def set_today(db: sqlite3.Connection) -> Answer:
            self._desk.clock.set_today(db, day)
            return Answer.of(200, {"today": self._desk.clock.today(db).isoformat()})

        return _response(await self._commit(set_today))


def _route_of(request: web.Request) -> str:
    """Give the path as declared: what was written into it is nobody's business in a log."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(unknown route)"


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, content_type="application/json")


async def _spoiled(request: web.Request, answer: Answer, fault: Fault) -> web.StreamResponse:
    """Give the answer to work that was done as the fault makes it look."""
    bodies = {
        "malformed": (b'{"id": "pay_', "application/json"),
        "html": (b"<html><body>Error</body></html>", "text/html"),
        "empty": (b"", "application/json"),
        "shapeless": (b'[{"result": "ok"}]', "application/json"),
    }
    if fault.kind in bodies:
        body, content_type = bodies[fault.kind]
        return web.Response(status=answer.status, body=body, content_type=content_type)
    if fault.kind == "drip":
        return await _drip(request, answer, fault.seconds or 0)
    if fault.kind == "cut":
        return await _cut(request, answer)
    if fault.kind == "misaddressed" and answer.status == 201:
        return _response(_MISADDRESSED)
    if fault.kind == "forgets" and "idempotency_key" in request.query:
        return _response(Answer.error("never_seen"))
    return _response(answer)


def _failed(fault: Fault) -> web.Response:
    status = fault.status or 500
    if fault.kind.startswith("gateway"):
        return web.Response(status=status, body=_GATEWAY_PAGE, content_type="text/html")
    response = _response(Answer.error(_CODE_OF_FAULT.get(status, "internal_error"), status=status))
    if fault.retry_after_s is not None:
        response.headers["Retry-After"] = str(fault.retry_after_s)
    return response


async def _drip(request: web.Request, answer: Answer, seconds: float) -> web.StreamResponse:
    """Send the head, then the body a byte at a time."""
    response = web.StreamResponse(status=answer.status)
    response.content_type = "application/json"
    response.content_length = len(answer.body)
    await response.prepare(request)
    for place in range(len(answer.body)):
        await asyncio.sleep(seconds)
        try:
            await response.write(answer.body[place : place + 1])
        except ConnectionError:  # whoever asked has gone; the work is done
            break
    return response


async def _cut(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send the head, half of the body, and close the connection."""
    response = web.StreamResponse(status=answer.status)
    response.content_type = "application/json"
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.close()  # what was written still leaves
    return response


def _drop(request: web.Request) -> web.Response:
    """Close the connection; the answer given here goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return _response(Answer.error("unavailable"))
