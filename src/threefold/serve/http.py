"""What every route has in common: who calls, the body, a client that goes away, errors in the route's dialect.

A handler is a function of a `Call`; it returns a response or raises. Nothing here knows a contract.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from threefold.errors import ThreefoldError, UnavailableError
from threefold.serve import bodies, draining
from threefold.serve.bridge import Use
from threefold.serve.errors import ClientGone, Dialect, Problem, RequestError, problem_of, respond

if TYPE_CHECKING:
    from threefold.serve.catalog import Model
    from threefold.serve.keys import Key
    from threefold.serve.ledger import Work
    from threefold.serve.server import Server
    from threefold.serve.traces import RequestSpan

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[["Call"], Awaitable[Response]]

#: Status of a request whose client went away, for the log (as nginx).
CLIENT_GONE = 499
#: What a request is told that lasts longer than `drain_s` when the server stops.
STOPPING = "the server is shutting down"
#: The route of a request that has none, for metrics and the log.
UNKNOWN = "unknown"

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)

log = logging.getLogger("threefold.serve")


@dataclass(slots=True, eq=False)
class Call:
    """One request.

    route    the path as it is declared, for metrics and the log
    id       shown to the client and in the log
    dialect  of errors; a handler that answers several may change it
    uses     what it has used: tokens by model and kind
    notes    for the log: model, tokens, texts, ...
    held     models that may not be unloaded before it ends
    span     its trace, where there are traces
    size     tokens that it has had read so far, and multi_size those of them with a vector each
    """

    request: Request
    server: Server
    route: str
    id: str
    dialect: Dialect
    key: Key | None = None
    began: float = field(default_factory=time.perf_counter)
    uses: list[Use] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    held: list[Model] = field(default_factory=list)
    span: RequestSpan | None = None
    size: int = 0
    multi_size: int = 0

    def use(self, model: str, kind: Work, tokens: int, *, texts: int = 0) -> None:
        """Note what was used; it is counted when the request is answered, and only then."""
        self.uses.append(Use(model, kind, tokens))
        self.notes.update(model=model, tokens=self.notes.get("tokens", 0) + tokens)
        if texts:
            self.notes["texts"] = self.notes.get("texts", 0) + texts

    def used(self) -> Mapping[tuple[str, Work], int]:
        """Its tokens by model and kind of work: a request counts once, however many parts it has."""
        totals: Counter[tuple[str, Work]] = Counter()
        for model, kind, tokens in self.uses:
            totals[model, kind] += tokens
        return totals

    def trace(self, tokenize_s: float, queue_s: float, run_s: float) -> None:
        """Note where the time of a model's answer, which is just there, has gone."""
        if self.span is not None:
            self.span.stages(tokenize=tokenize_s, queue=queue_s, batch=run_s)

    async def raw(self) -> bytes:
        """The whole body, refused as soon as it is too long."""
        most = self.server.config.max_body_bytes
        declared = self.request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise _too_long(int(declared), most)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.server.config.body_s):
                async for part in self.request.stream():
                    size += len(part)
                    if size > most:
                        raise _too_long(size, most)
                    parts.append(part)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise RequestError("the body did not arrive in time", status=408) from None
        return b"".join(parts)

    async def read(self, schema: type[Body], most: int | None = None) -> Body:
        """The body as the schema says, or an error that names the field. `most`: values, if fewer than usual."""
        return await self.parse(schema, await self.raw(), most)

    async def parse(self, schema: type[Body], raw: bytes, most: int | None = None) -> Body:
        """The same of a body that was read before."""
        return await self._parsed(raw, partial(bodies.parse, schema, raw), most)

    async def read_any(self, most: int | None = None) -> dict[str, Any]:
        """The body as a JSON object."""
        raw = await self.raw()
        return await self._parsed(raw, partial(bodies.parse_any, raw), most)

    async def read_by(self, choose: Callable[[dict[str, Any]], type[Body]]) -> Body:
        """The body as the schema that its keys choose, where a route has more than one."""
        raw = await self.raw()
        return await self._parsed(raw, lambda: bodies.parse(choose(bodies.parse_any(raw)), raw), None)

    async def _parsed(self, raw: bytes, read: Callable[[], T], most: int | None) -> T:
        """Large bodies take a tenth of a second: one after the other, and between two of them others are answered."""

        def checked() -> T:
            bodies.check_values(raw, most or self.server.config.max_values)
            return read()

        return checked() if len(raw) <= bodies.SMALL else await self.server.parsing.run(checked)

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the client goes away."""
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(_disconnected(self.request))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            for one in (task, watch):
                one.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)


def request_id(request: Request) -> str:
    """The id that the client gave, if it is a plain word, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _too_long(size: int, most: int) -> RequestError:
    return RequestError(f"the body has {size:,} bytes or more, the limit is {most:,}. Send fewer texts", status=413)


def endpoint(
    handler: Handler, server: Server, route: str, dialect: Dialect, scope: str | None
) -> Callable[[Request], Awaitable[Response]]:
    """A Starlette endpoint. `scope` is what an API key must allow; None: the route is public."""

    async def answer(request: Request) -> Response:
        call = Call(request, server, route, request_id(request), dialect)
        server.begun(call)
        try:
            if scope is not None:
                server.authorize(call, scope)
            response = await handler(call)
        except asyncio.CancelledError:
            if not server.draining:
                server.finished(call, CLIENT_GONE)
                raise
            draining.taken_back()
            response = respond(problem_of(UnavailableError(STOPPING)), call.dialect, call.id)
        except ClientGone:
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:  # whatever it is, the client gets a body in its dialect
            problem = problem_of(error)
            if problem.status >= 500:
                unexpected = None if isinstance(error, ThreefoldError) else error
                log.error("request %s failed: %r", call.id, error, exc_info=unexpected)
            response = respond(problem, call.dialect, call.id)
        finally:
            server.released(call)
        response.headers["x-request-id"] = call.id
        server.finished(call, response.status_code)
        response.headers.update(server.rate_headers(call))
        return response

    return answer


def no_route(
    server: Server, whose: Callable[[str], tuple[Dialect, str]]
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Unknown paths and methods. The log does not have the path, which may be anything.

    whose  path -> the dialect of those who ask for it, and what they are told besides that it is not there
    """

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        dialect, advice = whose(request.url.path)
        call = Call(request, server, UNKNOWN, request_id(request), dialect)
        server.begun(call)
        message = {404: f"there is no route {request.url.path}{advice}", 405: f"{request.method} is not allowed here"}
        problem = Problem(error.status_code, message.get(error.status_code, error.detail), "Validation")
        response = respond(problem, call.dialect, call.id)
        response.headers.update({**(error.headers or {}), "x-request-id": call.id})
        server.finished(call, response.status_code)
        return response

    return answer
