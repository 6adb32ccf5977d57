"""The routes, as one list, and the application around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from threefold.serve import openai
from threefold.serve.errors import Dialect
from threefold.serve.http import Handler, endpoint, on_http_exception
from threefold.serve.server import Server


class Contract(NamedTuple):
    """One route. `scope` is what an API key must allow; None: public."""

    method: str
    path: str
    handler: Handler
    dialect: Dialect
    scope: str | None


CONTRACTS: tuple[Contract, ...] = (
    Contract("POST", "/v1/embeddings", openai.embeddings, "openai", "embed"),
    Contract("POST", "/embeddings", openai.embeddings, "openai", "embed"),
    Contract("GET", "/v1/models", openai.models, "openai", "embed"),
    Contract("GET", "/v1/models/{id:path}", openai.model, "openai", "embed"),
)


def build(server: Server) -> Starlette:
    """The ASGI application. Models are loaded when it starts and drained when it ends."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    routes = [
        Route(one.path, endpoint(one.handler, server, one.dialect, one.scope), methods=[one.method])
        for one in CONTRACTS
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: on_http_exception})
