"""HTTP connections that must get to the point: whoever opens one and sends no request, or sends it byte by byte, or
goes on sending a body that was refused, is cut off. Uvicorn alone waits for a head, and reads a refused body, as long
as the client likes, so that a few thousand such clients would use up the file descriptors of the process.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """One connection of a client.

    head_s    seconds from the first byte of a request (of the connection, for the first one) to the end of its head
    linger_s  seconds in which a client may notice that it was answered before it had sent its whole body
    """

    head_s: float = 60.0
    linger_s: float = 5.0
    _late: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, head_s: float) -> type[Connection]:
        """The protocol with this limit."""
        return type("Connection", (cls,), {"head_s": head_s})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():  # nobody wants the rest
            self._late = self.loop.call_later(self.linger_s, self.transport.close)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The timer runs while a head is awaited, from its first byte on; in between, keep-alive has its own."""
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            return
        awaits_head = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not awaits_head or (self.cycle is not None and not self.conn.trailing_data[0]):
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def http_options(body_s: float) -> dict[str, Any]:
    """How uvicorn is to speak HTTP; for `uvicorn.Config`."""
    return {"http": Connection.within(body_s), "access_log": False, "server_header": False}
