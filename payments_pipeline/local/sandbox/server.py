"""The sandbox's HTTP server.

Belongs here: routes, authentication, the one writer that commits requests together. Does not belong here: what a
request does (`books`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import orjson
from aiohttp import web

from payments_pipeline.local.sandbox.books import Answer, Books
from payments_pipeline.local.sandbox.faults import KINDS, Fault, Faults

log = logging.getLogger("sandbox")
#: Requests that share one durable commit, at most.
_TOGETHER = 500
_LARGEST_BODY = 64 * 1024
Work = Callable[[], Answer]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The application around the books."""

    def __init__(self, books: Books, api_key: str) -> None:
        self._books = books
        self._authorization = f"Bearer {api_key}".encode()
        self._faults = Faults()
        # The books are used from this one thread alone: readers and the writer take turns.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="books")
        self._queue: asyncio.Queue[tuple[Work, asyncio.Future[Answer]]] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """Give the aiohttp application."""
        application = web.Application(client_max_size=_LARGEST_BODY, middlewares=[self._watch])
        application.add_routes(
            [
                web.get("/v1/health", self._health),
                web.post("/v1/payments", self._pay),
                web.get("/v1/payments", self._look_up),
                web.get("/v1/payments/{id}", self._payment),
                web.get("/v1/reports", self._digests),
                web.get("/v1/reports/{date}", self._report),
                web.get("/v1/books", self._statement),
                web.post("/v1/test_helpers/fundings", self._fund),
                web.post("/v1/test_helpers/faults", self._add_fault),
                web.delete("/v1/test_helpers/faults", self._clear_faults),
                web.post("/v1/test_helpers/expire_key", self._expire),
                web.post("/v1/test_helpers/today", self._set_today),
            ]
        )
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._stop)
        return application

    async def _start(self, _application: web.Application) -> None:
        self._writer = asyncio.create_task(self._write())

    async def _stop(self, _application: web.Application) -> None:
        if self._writer is not None:
            self._writer.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._books.close)
        self._thread.shutdown()

    async def _write(self) -> None:
        """Commit whatever has arrived together, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _TOGETHER and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                works = [work for work, _ in batch]
                answers = await loop.run_in_executor(self._thread, self._books.in_one_commit, works)
            except Exception as error:
                log.exception("a commit failed: nothing of it was done")
                for _, future in batch:
                    if not future.cancelled():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.cancelled():
                        future.set_result(answer)

    async def _committed(self, work: Work) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self._queue.put((work, future))
        # A client that goes away does not undo what it asked for.
        return await asyncio.shield(future)

    async def _read(self, work: Work) -> web.Response:
        return _response(await asyncio.get_running_loop().run_in_executor(self._thread, work))

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate, turn every error into JSON, and log one line without keys or tokens."""
        started = time.perf_counter()
        try:
            if request.path != "/v1/health" and not self._authorized(request):
                response: web.StreamResponse = _response(
                    Answer.error(401, "unauthorized", "the API key is missing or wrong")
                )
            else:
                response = await handler(request)
        except web.HTTPException as error:
            response = _response(Answer.error(error.status, "http_error", error.reason))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = _response(Answer.error(500, "internal_error", "the sandbox failed; its log says how"))
        log.info(
            "%s %s %s %.1f ms", request.method, request.path, response.status, (time.perf_counter() - started) * 1000
        )
        return response

    def _authorized(self, request: web.Request) -> bool:
        return hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._authorization)

    async def _health(self, _request: web.Request) -> web.Response:
        return _response(Answer.of(200, {"status": "ok"}))

    async def _pay(self, request: web.Request) -> web.StreamResponse:
        return await self._with_key(request, self._books.pay)

    async def _fund(self, request: web.Request) -> web.StreamResponse:
        return await self._with_key(request, self._books.fund, faulty=False)

    async def _with_key(
        self, request: web.Request, book: Callable[[str, bytes], Answer], *, faulty: bool = True
    ) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key", "")
        if not 0 < len(key) <= 255:
            return _response(
                Answer.error(400, "idempotency_key_missing", "send an Idempotency-Key of 1 to 255 characters")
            )
        body = await request.read()
        return await self._misbehave(request, lambda: book(key, body), self._faults.next() if faulty else None)

    async def _misbehave(self, request: web.Request, work: Work, fault: Fault | None) -> web.StreamResponse:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            return _response(Answer.error(fault.status, "told_to_fail", "the sandbox was told to answer so"))
        if kind == "drop_before":
            return _drop(request)
        if fault and kind == "delay":
            await asyncio.sleep(fault.seconds)
        answer = await self._committed(work)
        if kind == "drop_after":
            return _drop(request)
        if fault and kind == "hang_after":
            await asyncio.sleep(fault.seconds)
        if kind == "malformed":
            return web.Response(status=answer.status, body=b"<html>", content_type="application/json")
        return _response(answer)

    async def _look_up(self, request: web.Request) -> web.StreamResponse:
        key = request.query.get("idempotency_key", "")
        fault = self._faults.next()
        if fault and fault.kind == "status":
            return _response(Answer.error(fault.status, "told_to_fail", "the sandbox was told to answer so"))
        if fault and fault.kind.startswith("drop"):
            return _drop(request)
        return await self._read(lambda: self._books.look_up(key))

    async def _payment(self, request: web.Request) -> web.Response:
        return await self._read(lambda: self._books.payment(request.match_info["id"]))

    async def _digests(self, request: web.Request) -> web.Response:
        first, last = _day(request.query.get("from")), _day(request.query.get("to"))
        return await self._read(lambda: self._books.digests(first, last))

    async def _report(self, request: web.Request) -> web.Response:
        day = _day(request.match_info["date"])
        return await self._read(lambda: self._books.report(day))

    async def _statement(self, _request: web.Request) -> web.Response:
        return await self._read(self._books.books)

    async def _add_fault(self, request: web.Request) -> web.Response:
        content = await _json(request)
        try:
            fault = Fault(**content)
        except TypeError as error:
            raise web.HTTPBadRequest(reason="a fault has kind, count, status and seconds") from error
        if fault.kind not in KINDS:
            raise web.HTTPBadRequest(reason=f"the kinds are {', '.join(KINDS)}")
        self._faults.add(fault)
        return _response(Answer.of(200, {"kind": fault.kind, "count": fault.count}))

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self._faults.clear()
        return _response(Answer.of(200, {}))

    async def _expire(self, request: web.Request) -> web.Response:
        key = str((await _json(request)).get("idempotency_key"))
        return _response(await self._committed(lambda: self._books.expire(key)))

    async def _set_today(self, request: web.Request) -> web.Response:
        text = (await _json(request)).get("today")
        day = None if text is None else _day(str(text))
        return _response(await self._committed(lambda: self._books.set_today(day)))


async def _json(request: web.Request) -> dict[str, object]:
    try:
        content = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise web.HTTPBadRequest(reason="the body is no JSON") from error
    if not isinstance(content, dict):
        raise web.HTTPBadRequest(reason="the body is no JSON object")
    return content


def _day(text: str | None) -> date:
    try:
        return date.fromisoformat(text or "")
    except ValueError as error:
        raise web.HTTPBadRequest(reason="a date is written YYYY-MM-DD") from error


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, content_type="application/json")


def _drop(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)
