"""Collections over HTTP: the same objects as in the library, in the namespace of the caller's key.

Errors have the body of OpenAI's. Documents stream in, one JSON object per line; progress streams out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.collection import Collection
from threefold.config import MOST_POOLED, Chunking
from threefold.described import CollectionInfo
from threefold.errors import StoreError
from threefold.ingest import AddReport, Progress
from threefold.paths import expanded
from threefold.retrieve.stages import Diversify, Group, Rerank, Retriever
from threefold.serve import wire
from threefold.serve.adding import Adding, BodyLimits, LineStream
from threefold.serve.bodies import check_values
from threefold.serve.bridge import metered, within
from threefold.serve.encoding import by_deadline
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.library import OPEN, Library, plain
from threefold.serve.threads import Threads
from threefold.types import Document

T = TypeVar("T")

#: Values that a filter may have, and a search with it: stores take seconds for a hundred thousand.
FILTER_VALUES = 10_000

#: Stages that a body may have.
STAGES: Mapping[str, Any] = {"rerank": Rerank, "diversify": Diversify, "group": Group}

log = logging.getLogger(__name__)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CreateBody(_Body):
    """How a new collection cuts and keeps; all optional."""

    chunking: dict[str, Any] | None = None
    multi_storage: Any = None
    multi_pool: Annotated[int, Field(ge=1, le=MOST_POOLED)] | None = None


class DeleteBody(_Body):
    """Which documents: ids, or a filter."""

    ids: list[str] | None = None
    where: dict[str, Any] | None = None


class SearchBody(_Body):
    """The arguments of `Collection.search`."""

    query: str
    k: Annotated[int, Field(ge=1, le=10_000)] = 10
    mode: Any = "hybrid"
    where: dict[str, Any] | None = None
    weights: dict[str, float] | None = None
    fusion: Any = "weighted"
    depth: Annotated[int, Field(ge=1, le=100_000)] | None = None
    rerank: dict[str, Any] | None = None
    diversify: dict[str, Any] | None = None
    group: dict[str, Any] | None = None
    why: bool = False
    quote: bool = False
    retriever: dict[str, Any] | str | None = None


class RecommendBody(_Body):
    """The arguments of `Collection.recommend`."""

    like: Annotated[list[str], Field(min_length=1, max_length=1_000)]
    unlike: Annotated[list[str], Field(max_length=1_000)] = []
    k: Annotated[int, Field(ge=1, le=10_000)] = 10
    where: dict[str, Any] | None = None
    half_life: Annotated[float, Field(gt=0)] | None = None
    diversify: dict[str, Any] | None = None
    group: dict[str, Any] | None = None


def library_of(call: Call) -> tuple[Library, str]:
    """The collections, and the namespace of the caller."""
    library = call.server.library
    if library is None:
        raise RequestError(
            "this server keeps no collections; start it with --collections FOLDER", status=404, code="not_found"
        )
    return library, call.key.namespace if call.key else OPEN


async def _inside(call: Call, work: Callable[[Library, str, str], T], threads: Threads | None = None) -> T:
    """The result of `work`, in a thread: of those that search, if no others are given."""
    library, namespace = library_of(call)
    name = call.request.path_params.get("name", "")

    def inside() -> T:
        with _without_paths(call, namespace):
            return work(library, namespace, name)

    return await (threads or call.server.searching).run(inside)


async def _with(call: Call, work: Callable[[Collection], T], threads: Threads | None = None) -> T:
    def opened(library: Library, namespace: str, name: str) -> T:
        collection = library.get(namespace, name)
        with _unless_dropped(call, namespace, name, collection):
            return work(collection)

    return await _inside(call, opened, threads)


@contextmanager
def _without_paths(call: Call, namespace: str) -> Iterator[None]:
    """What a store reports names its folder. Clients know the collection by its name; the log has the rest."""
    try:
        yield
    except StoreError as error:
        folder = expanded(call.server.config.collections) / namespace
        said = str(error).replace(f"{folder}/", "")
        if said != str(error):
            log.warning("request %s: %s", call.id, error)
        raise type(error)(said) from error


@contextmanager
def _unless_dropped(call: Call, namespace: str, name: str, collection: Collection) -> Iterator[None]:
    """A collection that was dropped while it was used is closed, perhaps in the middle of a call."""
    try:
        yield
    except StoreError as error:
        if not _is_there(call, namespace, name, collection):
            message = f"the collection {name!r} was deleted meanwhile"
            raise RequestError(message, status=409, param="name", code="conflict") from error
        raise


def _is_there(call: Call, namespace: str, name: str, collection: Collection) -> bool:
    library = call.server.library  # None: the server stops, and has closed it
    try:
        return library is None or library.get(namespace, name) is collection
    except RequestError:
        return False


# ---- collections -------------------------------------------------------------------------------------------


async def names(call: Call) -> Response:
    """`GET /collections`."""
    found = await _inside(call, lambda library, namespace, _: library.names(namespace))
    return wire.json_response({"collections": [{"name": name} for name in found]})


async def create(call: Call) -> Response:
    """`PUT /collections/{name}`."""
    raw = await call.raw()
    body = await call.parse(CreateBody, raw) if raw else CreateBody()
    chunking = Chunking.from_dict(body.chunking, "chunking") if body.chunking is not None else None
    if body.multi_storage not in (None, "float16", "int8", "int4", "none"):
        raise RequestError("multi_storage must be float16, int8, int4 or none", param="multi_storage")

    def made(library: Library, namespace: str, name: str) -> CollectionInfo:
        return library.create(namespace, name, chunking, body.multi_storage, body.multi_pool)

    info = await _inside(call, made, call.server.changing)
    return wire.json_response(plain(info), status=201)


async def about(call: Call) -> Response:
    """`GET /collections/{name}`."""
    return wire.json_response(plain(await _with(call, Collection.info)))


async def drop(call: Call) -> Response:
    """`DELETE /collections/{name}`."""
    await _inside(call, lambda library, namespace, name: library.delete(namespace, name), call.server.changing)
    return wire.json_response({"deleted": True})


# ---- documents ---------------------------------------------------------------------------------------------


async def add(call: Call) -> Response:
    """`POST /collections/{name}/documents`: NDJSON in, NDJSON out; the last line is the report."""
    _, namespace = library_of(call)
    name = call.request.path_params["name"]
    collection = await _with(call, lambda collection: collection)
    config, requests = call.server.config, iter((1,))

    def store(documents: Iterable[Document], progress: Progress) -> AddReport:
        with _without_paths(call, namespace), _unless_dropped(call, namespace, name, collection):
            return collection.add(documents, progress=progress)

    def charge(tokens: int) -> None:
        call.server.charge(call, call.server.embedder.name, tokens, requests=next(requests, 0))

    limits = BodyLimits(config.max_body_bytes, config.body_s)
    check = partial(call.server.authorize_again, call, "write")
    adding = Adding(
        store, call.request, limits, check, charge, call.server.adding, stopping=lambda: call.server.draining
    )
    call.notes["collection"] = name
    return LineStream(adding.run())


async def documents(call: Call) -> Response:
    """`GET /collections/{name}/documents`."""

    def listed(collection: Collection) -> Response:  # written in the thread: of many it takes seconds
        return wire.json_response({"documents": [one.to_dict() for one in collection.documents()]})

    return await _with(call, listed)


async def delete(call: Call) -> Response:
    """`POST /collections/{name}/documents/delete`: by ids or by a filter."""
    body = await call.read(DeleteBody)
    where = body.where
    if where:
        check_values(wire.dumps(where), FILTER_VALUES, "where")
    chunks = await _with(call, lambda collection: collection.delete(body.ids, where=where), call.server.changing)
    return wire.json_response({"deleted_chunks": chunks})


async def delete_one(call: Call) -> Response:
    """`DELETE /collections/{name}/documents/{id}`."""
    id = call.request.path_params["id"]
    chunks = await _with(call, lambda collection: collection.delete(id), call.server.changing)
    if not chunks:
        raise RequestError(f"there is no document {id!r}", status=404, param="id", code="document_not_found")
    return wire.json_response({"deleted_chunks": chunks})


# ---- search ------------------------------------------------------------------------------------------------


async def search(call: Call) -> Response:
    """`POST /collections/{name}/search`."""
    body = await call.read(SearchBody, FILTER_VALUES)
    options = _options(body)

    def found(collection: Collection) -> tuple[int, Response]:  # written in the thread: of many it takes a while
        hits = collection.search(body.query, **options)
        return len(hits), wire.json_response({"hits": [hit.to_dict() for hit in hits]})

    with metered() as uses:
        async with by_deadline(call) as seconds:
            with within(seconds):
                count, response = await call.wait_for(_with(call, found))
    for one in uses:
        call.use(one.model, one.kind, one.tokens)
    call.notes.update(collection=call.request.path_params["name"], hits=count)
    return response


async def recommend(call: Call) -> Response:
    """`POST /collections/{name}/recommend`: nothing is encoded."""
    body = await call.read(RecommendBody, FILTER_VALUES)

    def found(collection: Collection) -> tuple[int, Response]:
        hits = collection.recommend(
            body.like, body.unlike, k=body.k, where=body.where, half_life=body.half_life, **_stages(body)
        )
        return len(hits), wire.json_response({"hits": [hit.to_dict() for hit in hits]})

    async with by_deadline(call):
        count, response = await call.wait_for(_with(call, found))
    call.notes.update(collection=call.request.path_params["name"], hits=count)
    return response


def _options(body: SearchBody) -> dict[str, Any]:
    """The arguments of `Collection.search`."""
    given = body.model_fields_set
    options = {name: getattr(body, name) for name in given - {"query", "retriever", *STAGES}} | _stages(body)
    if isinstance(body.retriever, dict):
        options["retriever"] = Retriever.from_dict(body.retriever, "retriever")
        if "k" not in given:
            options["k"] = options["retriever"].k
    elif body.retriever is not None:
        options["retriever"] = body.retriever
    return {name: value for name, value in options.items() if value is not None}


def _stages(body: SearchBody | RecommendBody) -> dict[str, Any]:
    """The stages that a body has; built here, so that a wrong one names its path."""
    given = {name: value for name in STAGES if (value := getattr(body, name, None)) is not None}
    return {name: STAGES[name].from_dict(value, name) for name, value in given.items()}


# ---- retrievers --------------------------------------------------------------------------------------------


async def retrievers(call: Call) -> Response:
    """`GET /collections/{name}/retrievers`."""

    def read(collection: Collection) -> dict[str, Any]:
        return {name: collection.load_retriever(name).to_dict() for name in collection.retrievers()}

    return wire.json_response({"retrievers": await _with(call, read)})


async def save_retriever(call: Call) -> Response:
    """`PUT /collections/{name}/retrievers/{id}`: the body is the retriever's JSON."""
    given = await call.read_any(FILTER_VALUES)
    retriever = Retriever.from_dict(given, "retriever")
    id = call.request.path_params["id"]
    await _with(call, lambda collection: collection.save_retriever(id, retriever))
    return wire.json_response(retriever.to_dict(), status=201)
