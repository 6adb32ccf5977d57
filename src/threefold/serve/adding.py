"""Documents that stream into a collection: lines of the body -> blocks -> a thread that adds each -> lines of progress.

Only a block that is there takes a thread and the collection: a client that is slow, or sends nothing more, keeps
nobody from writing. Memory is bounded: one block is added, the next one is read, and the body no faster. What was
stored stays when the client goes away or the server stops; sending the same documents again skips what is unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from threefold.errors import ThreefoldError
from threefold.ingest import AddReport, Progress
from threefold.serve.draining import taken_back
from threefold.serve.errors import RequestError, clipped, problem_of
from threefold.serve.lines import Total
from threefold.serve.threads import Threads
from threefold.types import Document

#: Lines and bytes that are added in one go; a delete, or another upload, may come before the next block.
BLOCK_LINES, BLOCK_BYTES = 256, 1_000_000
#: Seconds without a part of the body after which what has come is added, though the block is not full.
PAUSE_S = 0.2
#: Seconds between two lines of progress, at least.
PROGRESS_S = 0.5

log = logging.getLogger(__name__)

Add = Callable[[Iterable[Document], Progress], AddReport]


class BodyLimits(NamedTuple):
    """What is taken of a body.

    line_bytes  of one line, at most
    silence_s   seconds without any part of it, at most
    """

    line_bytes: int
    silence_s: float


class _StoppedError(Exception):
    """The client is gone, or its body broke off: the thread is to end."""


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
        add: Add,
        request: Request,
        limits: BodyLimits,
        check: Callable[[], None],
        charge: Callable[[int], None],
        threads: Threads,
        stopping: Callable[[], bool] = bool,
    ) -> None:
        self._add = add  # to the collection, in a thread
        self._request = request
        self._limits = limits
        self._check = check  # before each block: raises where the client may not go on
        self._charge = charge  # told the tokens, on the event loop, as they are used
        self._charged = 0
        self._threads = threads
        self._stopping = stopping  # whether the server was told to stop
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._blocks: asyncio.Queue[list[bytes] | Exception | None] = asyncio.Queue()
        self._room = asyncio.Semaphore()  # for one block, beside the one that is gathered
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._total = Total()
        self._said = time.monotonic()
        self._stopped = False

    async def run(self) -> AsyncIterator[bytes]:
        """Lines of progress, then the report or the error."""
        self._loop = asyncio.get_running_loop()
        reader = asyncio.ensure_future(self._read_body())
        worker = asyncio.ensure_future(self._add_blocks())
        try:
            while True:
                try:
                    event = await self._events.get()
                except asyncio.CancelledError:
                    if not self._stopping():
                        raise
                    taken_back()
                    self._stop()  # its thread ends at the next step, and then there is a last line
                    continue
                yield orjson.dumps(event) + b"\n"
                if "progress" not in event:
                    return
        finally:  # also when the client is gone
            self._stop()
            reader.cancel()
            await asyncio.gather(reader, worker, return_exceptions=True)

    def _stop(self) -> None:
        """A thread that adds ends at its next step."""
        self._stopped = True
        self._blocks.put_nowait(_StoppedError())

    # ---- the body, on the loop -----------------------------------------------------------------------------

    async def _read_body(self) -> None:
        try:
            await self._gather()
            await self._hand_over()
            self._blocks.put_nowait(None)
            while (await self._request.receive())["type"] != "http.disconnect":
                continue
            self._stop()
        except RequestError as error:
            await self._hand_over()  # what came before it
            self._blocks.put_nowait(error)
        except ClientDisconnect:
            self._stop()

    async def _gather(self) -> None:
        begun = bytearray()  # a line of which more is to come; it is not looked at again with every part
        async for part in self._parts():
            *ends, rest = part.split(b"\n")
            for end in ends:
                await self._take(bytes(begun) + end)
                begun.clear()
            begun += rest
            if not part:
                await self._hand_over()
            if len(begun) > self._limits.line_bytes:
                raise RequestError(f"a line is longer than {self._limits.line_bytes:,} bytes")
        if begun:
            await self._take(bytes(begun))

    async def _parts(self) -> AsyncIterator[bytes]:
        """The body as it comes; an empty part where nothing has come for a moment."""
        pause = min(PAUSE_S, self._limits.silence_s)
        more = True
        while more:
            part, waited = asyncio.ensure_future(self._request.receive()), 0.0
            try:
                while not (await asyncio.wait({part}, timeout=pause))[0]:
                    waited += pause
                    if waited >= self._limits.silence_s:
                        reason = f"nothing more of the body has come for {waited:g} s; what was stored stays"
                        raise RequestError(reason, status=408)
                    yield b""
            finally:
                part.cancel()  # not at every pause: some servers lose the part that they are waiting for
            message = part.result()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def _take(self, line: bytes) -> None:
        self._gathered.append(line)
        self._gathered_bytes += len(line)
        if len(self._gathered) >= BLOCK_LINES or self._gathered_bytes >= BLOCK_BYTES:
            await self._hand_over()

    async def _hand_over(self) -> None:
        if self._gathered:
            await self._room.acquire()
            self._blocks.put_nowait(self._gathered)
            self._gathered, self._gathered_bytes = [], 0

    # ---- the blocks ----------------------------------------------------------------------------------------

    async def _add_blocks(self) -> None:
        try:
            while (block := await self._blocks.get()) is not None:
                if isinstance(block, Exception):
                    raise block
                self._check()
                await self._threads.run(partial(self._add_block, block))
                self._room.release()
            self._use(self._total.tokens)
            self._tell({"report": self._total.plain()})
        except _StoppedError:
            why, status = ("the server is shutting down", 503) if self._stopping() else ("the upload broke off", 499)
            self._tell({"error": {"message": f"{why}; what was stored stays", "status": status}})
        except Exception as error:  # the stream has begun: the error is its last line
            problem = problem_of(error)
            if problem.status >= 500:
                log.error("an upload failed: %r", error, exc_info=None if isinstance(error, ThreefoldError) else error)
            self._tell({"error": {"message": clipped(problem.message), "status": problem.status}})

    def _add_block(self, lines: list[bytes]) -> None:
        self._total.add(self._add(self._total.documents_of(lines), self._progress))

    def _progress(self, documents: int, chunks: int, tokens: int) -> None:
        total = self._total
        self._use(total.tokens + tokens)
        if self._stopped:
            raise _StoppedError
        if time.monotonic() - self._said >= PROGRESS_S:
            self._said = time.monotonic()
            done = {"documents": total.documents + documents, "chunks": total.chunks + chunks}
            self._tell({"progress": {**done, "tokens": total.tokens + tokens}})

    def _use(self, tokens: int) -> None:
        self._loop.call_soon_threadsafe(self._charge, tokens - self._charged)
        self._charged = tokens

    def _tell(self, event: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)
