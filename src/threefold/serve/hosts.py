"""Who asks a server that is for this machine only: web pages from elsewhere must not be able to read it.

A browser lets a page read answers of the server that the page came from. Whoever owns the name of that server can make
it mean 127.0.0.1 a moment later (DNS rebinding); what the browser sends as Host is still that name.
"""

from __future__ import annotations

from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ThisMachine:
    """ASGI around the application: requests by another name than `localhost` or a number are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_ours(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        refused = "this server is for its own machine: call it localhost or 127.0.0.1"
        await PlainTextResponse(refused, status_code=421)(scope, receive, send)


def _is_ours(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    name = name.removeprefix("[").removesuffix("]")
    try:
        ip_address(name)  # nobody can make a number mean another machine
    except ValueError:
        return name.lower() == "localhost"
    return True
