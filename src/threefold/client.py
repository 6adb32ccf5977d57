"""A client of `threefold serve`: the library's calls, answered by a server. Blocking, and `async`.

    with Client("http://127.0.0.1:8000") as client:
        client.embed(["What is BGE M3?"], outputs=("dense", "sparse", "multi"))

What is too large for one request is split; 429 and 503 are repeated when the server says so (`Retry-After`), and a
connection that cannot be made or breaks is tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from threefold import remote
from threefold.errors import MissingExtraError, ServeError, UnavailableError
from threefold.remote import Ask, InputType, Priority, Progress, Ranked, Served, Truncate
from threefold.types import Document, Encoded, Hit, Representation

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "client", "threefold.Client") from error

T = TypeVar("T")
Documents = Iterable[Document | Mapping[str, Any]]
AsyncDocuments = AsyncIterable[Document | Mapping[str, Any]]

#: Seconds before a broken connection is tried again: the first time (it doubles).
AGAIN_S = 0.5


BROKE_OFF = "the server ended before the documents were added; add them again"


class _Settings:
    """What both clients are told.

    retries     attempts after the first one
    max_wait_s  a server that asks for a longer wait than this is not waited for
    """

    def __init__(self, retries: int, max_wait_s: float) -> None:
        self.retries = retries
        self.max_wait_s = max_wait_s

    def wait_s(self, attempt: int, error: Exception) -> float | None:
        """Seconds before the next attempt; None when there is none."""
        if attempt >= self.retries:
            return None
        if isinstance(error, httpx.TransportError):
            return AGAIN_S * float(2**attempt)
        if isinstance(error, ServeError) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self.max_wait_s else None
        return None


def _headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _checked(response: httpx.Response, ask: Ask[T]) -> T:
    if response.status_code >= 300:
        raise remote.error_of(response.status_code, response.content, response.headers.get("retry-after"))
    return ask.read(response.json())


def _final(error: Exception) -> Exception:
    """What the caller sees: errors of the connection become ours."""
    return UnavailableError(f"the server cannot be reached: {error}") if isinstance(error, httpx.HTTPError) else error


class Client:
    """A server, through blocking calls. May be shared between threads; a context manager.

    base_url   such as "http://127.0.0.1:8000"
    model      one of the names of `GET /v1/models`; None: what the server gives those who name none
    timeout_s  seconds for one answer
    transport  how requests are sent, for tests
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 5,
        max_wait_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._model = model
        self._settings = _Settings(retries, max_wait_s)
        self._http = httpx.Client(base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport)
        self._served: Served | None = None
        self._sleep: Callable[[float], object] = time.sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, ask: Ask[T]) -> T:
        """One request, repeated as the server says."""
        attempt = 0
        while True:
            try:
                return _checked(self._http.request(ask.method, ask.path, json=ask.body), ask)
            except (httpx.HTTPError, ServeError) as error:
                wait = self._settings.wait_s(attempt, error)
                if wait is None:
                    raise _final(error) from error
            attempt += 1
            self._sleep(wait)

    def served(self) -> Served:
        """What the server serves; asked once."""
        if self._served is None:
            self._served = self.send(remote.card(self._model))
        return self._served

    def embed(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] = ("dense",),
        truncate: Truncate = "end",
        input_type: InputType | None = None,
        priority: Priority | None = None,
    ) -> Encoded:
        """The representations of every text, in the caller's order; `Encoded.truncated` says which were cut."""
        found = list(
            self.iter_embed(texts, outputs=outputs, truncate=truncate, input_type=input_type, priority=priority)
        )
        if found:
            return Encoded.concat(found)
        return remote.nothing(remote.embed_options(outputs, truncate, input_type, priority), self.served())

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        outputs: Sequence[Representation] = ("dense",),
        truncate: Truncate = "end",
        input_type: InputType | None = None,
        priority: Priority | None = None,
    ) -> Iterator[Encoded]:
        """A stream of texts in bounded memory: one part per request, in order."""
        options = remote.embed_options(outputs, truncate, input_type, priority)
        served = self.served()
        return (self.send(options.ask(part, served)) for part in remote.parts(texts, options, served))

    def rerank(self, query: str, texts: Sequence[str], *, k: int | None = None) -> list[Ranked]:
        """Texts by how well they answer the query, best first."""
        return self.send(remote.rerank(query, texts, k, self._model))

    def collections(self) -> list[str]:
        """The names of the collections that this key sees."""
        return self.send(remote.collections())

    def collection(self, name: str) -> RemoteCollection:
        """A collection of the server, there or not."""
        return RemoteCollection(self, name)

    def usage(self, first: str | None = None, last: str | None = None) -> dict[str, Any]:
        """What this key has used and has left, by default since the first of the month; days as `2026-01-31`."""
        return self.send(remote.usage(first, last))

    def stream_documents(self, name: str, documents: Documents, progress: Progress | None) -> dict[str, Any]:
        """Add documents in one request; what `RemoteCollection.add` does."""
        lines = (remote.document_line(document) for document in documents)
        path = remote.collection_path(name, "documents")
        try:
            with self._http.stream("POST", path, content=lines) as response:
                if response.status_code >= 300:
                    raise remote.error_of(response.status_code, response.read(), None)
                for line in response.iter_lines():
                    if (report := remote.event(line, progress)) is not None:
                        return report
        except httpx.HTTPError as error:
            raise _final(error) from error
        raise UnavailableError(BROKE_OFF)


class RemoteCollection:
    """A collection of a server."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def create(self, **settings: Any) -> dict[str, Any]:
        """Make it; `chunking` (a dictionary) and `multi_storage` are optional."""
        return self._client.send(remote.create(self.name, settings))

    def info(self) -> dict[str, Any]:
        """What it is."""
        return self._client.send(remote.info(self.name))

    def drop(self) -> None:
        """Delete it with all that is in it."""
        self._client.send(remote.drop(self.name))

    def add(self, documents: Documents, *, progress: Progress | None = None) -> dict[str, Any]:
        """Add any number of documents in one request; returns the report. A generator is read as it is sent."""
        return self._client.stream_documents(self.name, documents, progress)

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id or by a filter; returns how many chunks went."""
        return self._client.send(remote.delete(self.name, ids, where))

    def search(self, query: str, **options: Any) -> list[Hit]:
        """The best chunks; the options of `Collection.search`."""
        return self._client.send(remote.search(self.name, query, options))


class AsyncClient:
    """A server, through calls to await. An async context manager; see `Client`."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 5,
        max_wait_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._settings = _Settings(retries, max_wait_s)
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )
        self._served: Served | None = None
        self._sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, ask: Ask[T]) -> T:
        """One request, repeated as the server says."""
        attempt = 0
        while True:
            try:
                return _checked(await self._http.request(ask.method, ask.path, json=ask.body), ask)
            except (httpx.HTTPError, ServeError) as error:
                wait = self._settings.wait_s(attempt, error)
                if wait is None:
                    raise _final(error) from error
            attempt += 1
            await self._sleep(wait)

    async def served(self) -> Served:
        """What the server serves; asked once."""
        if self._served is None:
            self._served = await self.send(remote.card(self._model))
        return self._served

    async def embed(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] = ("dense",),
        truncate: Truncate = "end",
        input_type: InputType | None = None,
        priority: Priority | None = None,
    ) -> Encoded:
        """The representations of every text, in the caller's order."""
        options = remote.embed_options(outputs, truncate, input_type, priority)
        found = [part async for part in self._parts(texts, options)]
        return Encoded.concat(found) if found else remote.nothing(options, await self.served())

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        outputs: Sequence[Representation] = ("dense",),
        truncate: Truncate = "end",
        input_type: InputType | None = None,
        priority: Priority | None = None,
    ) -> AsyncIterator[Encoded]:
        """A stream of texts in bounded memory: one part per request, in order."""
        return self._parts(texts, remote.embed_options(outputs, truncate, input_type, priority))

    async def _parts(self, texts: Iterable[str], options: remote.EmbedOptions) -> AsyncIterator[Encoded]:
        served = await self.served()
        for part in remote.parts(texts, options, served):
            yield await self.send(options.ask(part, served))

    async def rerank(self, query: str, texts: Sequence[str], *, k: int | None = None) -> list[Ranked]:
        """Texts by how well they answer the query, best first."""
        return await self.send(remote.rerank(query, texts, k, self._model))

    async def search(self, collection: str, query: str, **options: Any) -> list[Hit]:
        """The best chunks of a collection; the options of `Collection.search`."""
        return await self.send(remote.search(collection, query, options))

    async def collections(self) -> list[str]:
        """The names of the collections that this key sees."""
        return await self.send(remote.collections())

    def collection(self, name: str) -> AsyncRemoteCollection:
        """A collection of the server, there or not."""
        return AsyncRemoteCollection(self, name)

    async def usage(self, first: str | None = None, last: str | None = None) -> dict[str, Any]:
        """What this key has used and has left, by default since the first of the month; days as `2026-01-31`."""
        return await self.send(remote.usage(first, last))

    async def stream_documents(
        self, name: str, documents: Documents | AsyncDocuments, progress: Progress | None
    ) -> dict[str, Any]:
        """Add documents in one request; what `AsyncRemoteCollection.add` does."""
        path = remote.collection_path(name, "documents")
        try:
            async with self._http.stream("POST", path, content=_lines(documents)) as response:
                if response.status_code >= 300:
                    raise remote.error_of(response.status_code, await response.aread(), None)
                async for line in response.aiter_lines():
                    if (report := remote.event(line, progress)) is not None:
                        return report
        except httpx.HTTPError as error:
            raise _final(error) from error
        raise UnavailableError(BROKE_OFF)


async def _lines(documents: Documents | AsyncDocuments) -> AsyncIterator[bytes]:
    if isinstance(documents, AsyncIterable):
        async for document in documents:
            yield remote.document_line(document)
    else:
        for document in documents:
            yield remote.document_line(document)


class AsyncRemoteCollection:
    """A collection of a server, through calls to await; see `RemoteCollection`."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self.name = name

    async def create(self, **settings: Any) -> dict[str, Any]:
        """Make it; `chunking` (a dictionary) and `multi_storage` are optional."""
        return await self._client.send(remote.create(self.name, settings))

    async def info(self) -> dict[str, Any]:
        """What it is."""
        return await self._client.send(remote.info(self.name))

    async def drop(self) -> None:
        """Delete it with all that is in it."""
        await self._client.send(remote.drop(self.name))

    async def add(self, documents: Documents | AsyncDocuments, *, progress: Progress | None = None) -> dict[str, Any]:
        """Add any number of documents in one request; returns the report. Generators are read as they are sent."""
        return await self._client.stream_documents(self.name, documents, progress)

    async def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id or by a filter; returns how many chunks went."""
        return await self._client.send(remote.delete(self.name, ids, where))

    async def search(self, query: str, **options: Any) -> list[Hit]:
        """The best chunks; the options of `Collection.search`."""
        return await self._client.send(remote.search(self.name, query, options))
