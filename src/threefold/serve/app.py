"""The routes, as one list, and the application around them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from threefold.serve import (
    about,
    cohere,
    collections,
    ollama,
    openai,
    openapi,
    page,
    pooling,
    rerank,
    tei,
    tokens,
    usage,
    vertex,
    wire,
)
from threefold.serve.draining import CutOff
from threefold.serve.errors import Dialect
from threefold.serve.hosts import ThisMachine
from threefold.serve.http import Call, Handler, endpoint, no_route
from threefold.serve.keys import SELF
from threefold.serve.server import Server


class Contract(NamedTuple):
    """One route.

    scope   what an API key must allow; None: public
    bodies  what it reads, for the OpenAPI document; so with
    query   optional parameters of the address
    """

    method: str
    path: str
    handler: Handler
    dialect: Dialect
    scope: str | None
    bodies: tuple[type[BaseModel], ...] = ()
    query: tuple[str, ...] = ()


async def openapi_json(call: Call) -> Response:
    """`GET /openapi.json`: this list."""
    return wire.json_response(openapi.document(CONTRACTS))


CONTRACTS: tuple[Contract, ...] = (
    # OpenAI
    Contract("POST", "/v1/embeddings", openai.embeddings, "openai", "embed", (openai.EmbeddingsBody,)),
    Contract("POST", "/embeddings", openai.embeddings, "openai", "embed", (openai.EmbeddingsBody,)),
    Contract("GET", "/v1/models", openai.models, "openai", "embed"),
    Contract("GET", "/models", openai.models, "openai", "embed"),
    Contract("GET", "/v1/models/{id:path}", openai.model, "openai", "embed"),
    Contract("GET", "/v1/usage", usage.usage, "openai", SELF, query=("from", "to", "key")),
    # text-embeddings-inference
    Contract("POST", "/embed", tei.embed, "tei", "embed", (tei.EmbedBody,)),
    Contract("POST", "/", tei.embed, "tei", "embed", (tei.EmbedBody,)),
    Contract("POST", "/invocations", tei.embed, "tei", "embed", (tei.EmbedBody,)),
    Contract("POST", "/vertex", vertex.vertex, "tei", "embed", (vertex.VertexBody,)),
    Contract("POST", "/embed_sparse", tei.embed_sparse, "tei", "embed", (tei.InputsBody,)),
    Contract("POST", "/embed_all", tei.embed_all, "tei", "embed", (tei.InputsBody,)),
    Contract("POST", "/similarity", tei.similarity, "tei", "embed", (tei.SimilarityBody,)),
    Contract("POST", "/predict", tei.predict, "tei", "embed", (tei.PredictBody,)),
    Contract("POST", "/tokenize", tokens.tokenize, "tei", "embed", (tokens.TokenizeBody, tokens.VllmTokenizeBody)),
    Contract("POST", "/decode", tokens.decode, "tei", "embed", (tokens.DecodeBody,)),
    Contract("GET", "/info", about.info, "tei", "embed"),
    Contract("GET", "/health", about.health, "tei", None),
    Contract("GET", "/", about.health, "tei", None),
    Contract("GET", "/ping", about.health, "tei", None),
    Contract("GET", "/health/live", about.alive, "tei", None),
    Contract("GET", "/ui", page.page, "openai", None),
    Contract("GET", "/openapi.json", openapi_json, "openai", None),
    Contract("GET", "/card", about.card, "openai", "embed", query=("model",)),
    Contract("GET", "/metrics", about.metrics, "tei", "metrics"),
    # rerank: TEI, vLLM, Cohere, Jina
    Contract("POST", "/rerank", rerank.tei_or_vllm, "tei", "embed", (rerank.TeiRerankBody, rerank.RerankBody)),
    Contract("POST", "/v1/rerank", rerank.v1, "cohere", "embed", (rerank.RerankBody,)),
    Contract("POST", "/v2/rerank", rerank.v2, "cohere", "embed", (rerank.RerankBody,)),
    # Cohere
    Contract("POST", "/v1/embed", cohere.v1, "cohere", "embed", (cohere.EmbedTextsBody,)),
    Contract("POST", "/v2/embed", cohere.v2, "cohere", "embed", (cohere.EmbedTextsBody,)),
    # vLLM
    Contract("POST", "/pooling", pooling.pooling, "vllm", "embed", (pooling.PoolingBody, pooling.PluginBody)),
    Contract("POST", "/score", pooling.score, "vllm", "embed", (pooling.ScoreBody,)),
    Contract("POST", "/v1/score", pooling.score, "vllm", "embed", (pooling.ScoreBody,)),
    # Ollama
    Contract("POST", "/api/embed", ollama.embed, "ollama", "embed", (ollama.OllamaEmbedBody,)),
    Contract("POST", "/api/embeddings", ollama.embeddings, "ollama", "embed", (ollama.OllamaPromptBody,)),
    Contract("GET", "/api/tags", ollama.tags, "ollama", "embed"),
    Contract("GET", "/api/ps", ollama.ps, "ollama", "embed"),
    Contract("POST", "/api/show", ollama.show, "ollama", "embed", (ollama.OllamaNameBody,)),
    Contract("POST", "/api/pull", ollama.pull, "ollama", "embed", (ollama.OllamaNameBody,)),
    Contract("GET", "/api/version", ollama.version, "ollama", "embed"),
    # collections
    Contract("GET", "/collections", collections.names, "openai", "search"),
    Contract("PUT", "/collections/{name}", collections.create, "openai", "write", (collections.CreateBody,)),
    Contract("GET", "/collections/{name}", collections.about, "openai", "search"),
    Contract("DELETE", "/collections/{name}", collections.drop, "openai", "write"),
    Contract("POST", "/collections/{name}/documents", collections.add, "openai", "write"),
    Contract("GET", "/collections/{name}/documents", collections.documents, "openai", "search"),
    Contract(
        "POST", "/collections/{name}/documents/delete", collections.delete, "openai", "write", (collections.DeleteBody,)
    ),
    Contract("DELETE", "/collections/{name}/documents/{id:path}", collections.delete_one, "openai", "write"),
    Contract("POST", "/collections/{name}/search", collections.search, "openai", "search", (collections.SearchBody,)),
    Contract(
        "POST", "/collections/{name}/recommend", collections.recommend, "openai", "search", (collections.RecommendBody,)
    ),
    Contract("GET", "/collections/{name}/retrievers", collections.retrievers, "openai", "search"),
    Contract("PUT", "/collections/{name}/retrievers/{id}", collections.save_retriever, "openai", "write"),
)


def build(server: Server, contracts: Sequence[Contract] = CONTRACTS, *, private: bool = False) -> Starlette:
    """The ASGI application. Models are loaded when it starts and drained when it ends.

    private  refuse web pages of other names: for a server of one person, on the machine of that person
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    return Starlette(
        routes=[_route(one, server) for one in contracts],
        middleware=[
            Middleware(CutOff, server=server),
            *([Middleware(ThisMachine)] if private else []),
            *_cors(server.config.cors_origins),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: no_route(server, _whose)},
    )


def _route(one: Contract, server: Server) -> Route:
    route = Route(one.path, endpoint(one.handler, server, one.path, one.dialect, one.scope), methods=[one.method])
    # By default no id has a line break, and one at the end is left out: DELETE of "a\n" would delete "a".
    route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)
    return route


def _whose(path: str) -> tuple[Dialect, str]:
    """Who asks for a path that is not there: clients of Ollama, which has more of these, or any; most speak OpenAI."""
    return ("ollama", f": {ollama.ELSEWHERE}") if path.startswith("/api/") else ("openai", "")


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Which web pages may call. Without origins, none: browsers refuse."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]
