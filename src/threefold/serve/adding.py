"""Documents that stream into a collection: lines of the body -> a thread that adds them -> lines of progress.

Memory is bounded: the thread takes a few lines at a time, and the body is read no faster. What was stored stays when
the client goes away or the server stops; sending the same documents again skips what is unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threefold.collection import Collection
from threefold.ingest import AddReport
from threefold.serve.errors import problem_of
from threefold.serve.threads import Threads
from threefold.types import Document

#: Lines that wait between the body and the thread.
WAITING_LINES = 64
#: Seconds between two lines of progress, at least.
PROGRESS_S = 0.5
#: Seconds between two looks at whether the client is still there.
LOOK_S = 0.2
#: Reasons for what was not taken that the report names one by one.
NAMED = 1_000

_FIELDS = {"id": str, "text": str, "title": str, "source": str, "language": str, "metadata": dict}
_END = None


class _StoppedError(Exception):
    """The client is gone, or its body broke off: the thread is to end."""


class _BodyError(Exception):
    """The body cannot be read on."""


class LineStream(Response):
    """A streamed answer that leaves the request alone: its body is still being read while the answer begins."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Adding:
    """One request that adds documents. Use once."""

    def __init__(
        self,
        collection: Collection,
        request: Request,
        longest_line: int,
        charge: Callable[[int], None],
        threads: Threads,
    ) -> None:
        self._threads = threads
        self._collection = collection
        self._request = request
        self._longest = longest_line
        self._charge = charge  # told the tokens, on the event loop, as they are used
        self._charged = 0
        self._lines: queue.Queue[bytes | Exception | None] = queue.Queue(WAITING_LINES)
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._skipped: list[dict[str, Any]] = []
        self._bad = 0
        self._stopped = False

    async def run(self) -> AsyncIterator[bytes]:
        """Lines of progress, then the report or the error."""
        self._loop = asyncio.get_running_loop()
        reader = asyncio.ensure_future(self._read_body())
        worker = asyncio.ensure_future(self._threads.run(self._work))
        try:
            while True:
                event = await self._events.get()
                yield orjson.dumps(event) + b"\n"
                if "progress" not in event:
                    return
        finally:  # also when the client is gone
            self._stopped = True
            reader.cancel()
            await asyncio.gather(reader, worker, return_exceptions=True)

    # ---- the body, on the loop -----------------------------------------------------------------------------

    async def _read_body(self) -> None:
        rest = b""
        try:
            async for part in self._request.stream():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    await self._put(line)
                if len(rest) > self._longest:
                    await self._put(_BodyError(f"a line is longer than {self._longest:,} bytes"))
                    return
            await self._put(rest)
            await self._put(_END)
            while (await self._request.receive())["type"] != "http.disconnect":
                continue
            self._stopped = True  # at its next step, the thread ends
        except ClientDisconnect:
            await self._put(_StoppedError())

    async def _put(self, line: bytes | Exception | None) -> None:
        while not self._stopped:
            try:
                return self._lines.put_nowait(line)
            except queue.Full:
                await asyncio.sleep(0.01)

    # ---- the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            report = self._collection.add(self._documents(), progress=self._progress())
            self._use(report.tokens)
            self._tell({"report": self._plain(report)})
        except _StoppedError:
            self._tell({"error": {"message": "the upload broke off; what was stored stays", "status": 499}})
        except _BodyError as error:
            self._tell({"error": {"message": str(error), "status": 400}})
        except Exception as error:  # the stream has begun: the error is its last line
            problem = problem_of(error)
            self._tell({"error": {"message": problem.message, "status": problem.status}})

    def _documents(self) -> Iterator[Document]:
        number = 0
        while (line := self._next_line()) is not _END:
            if isinstance(line, Exception):
                raise line
            number += 1
            if not line.strip():
                continue
            try:
                yield _document(line)
            except ValueError as error:
                self._bad += 1
                if len(self._skipped) < NAMED:
                    self._skipped.append({"line": number, "reason": str(error)})

    def _next_line(self) -> bytes | Exception | None:
        while not self._stopped:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=LOOK_S)
        raise _StoppedError

    def _progress(self) -> Any:
        said = time.monotonic()

        def tell(documents: int, chunks: int, tokens: int) -> None:
            nonlocal said
            self._use(tokens)
            if self._stopped:
                raise _StoppedError
            if time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                self._tell({"progress": {"documents": documents, "chunks": chunks, "tokens": tokens}})

        return tell

    def _use(self, tokens: int) -> None:
        self._loop.call_soon_threadsafe(self._charge, tokens - self._charged)
        self._charged = tokens

    def _plain(self, report: AddReport) -> dict[str, Any]:
        skipped = [{"id": one.path, "reason": one.reason} for one in report.skipped]
        return {
            "added": report.added,
            "replaced": report.replaced,
            "unchanged": report.unchanged,
            "skipped": len(skipped) + self._bad,
            "reasons": (self._skipped + skipped)[:NAMED],
            "chunks": report.chunks,
            "tokens": report.tokens,
            "truncated": report.truncated,
            "seconds": round(report.seconds, 3),
        }

    def _tell(self, event: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _document(line: bytes) -> Document:
    """One line, or a ValueError that says what is wrong with it."""
    try:
        given = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    unknown = sorted(set(given) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}. Others belong into metadata")
    for name, kind in _FIELDS.items():
        if name in given and not isinstance(given[name], kind):
            raise ValueError(f"{name} must be {'an object' if kind is dict else 'text'}")
    missing = [name for name in ("id", "text") if not given.get(name)]
    if missing:
        raise ValueError(f"{missing[0]} is missing or empty")
    return Document(**given)
