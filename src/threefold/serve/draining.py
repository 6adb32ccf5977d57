"""A server that is told to stop: requests get `drain_s` seconds, and those that last longer end in order.

Uvicorn cancels them. An ordinary request is answered with 503 then (`http.endpoint`), an upload gets a last line
(`adding`), and an answer that a client reads too slowly breaks off; none of that is an error in the program.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from threefold.serve.server import Server

log = logging.getLogger(__name__)


class Listener(uvicorn.Server):
    """Uvicorn, which tells the server when it begins to stop."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.draining = True
        await super().shutdown(sockets)
        if self.force_exit:  # by a second Ctrl-C: answers are broken off, but what is open is closed all the same
            await self.lifespan.shutdown()


class CutOff:
    """ASGI around the application: what is cancelled while the server stops is a line in the log, not a traceback."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._server.draining:
                raise
            log.warning("an answer was broken off: it was not read within drain_s=%s", self._server.config.drain_s)


def taken_back() -> None:
    """The cancellation that was just caught counts no longer: what ends the request may wait for something."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
