"""A client of `threefold serve`: the library's calls, answered by a server. Blocking, and `async`.

    with Client("http://127.0.0.1:8000") as client:
        client.embed(["What is BGE M3?"], outputs=("dense", "sparse", "multi"))

What is too large to be embedded in one request is split; 429 and 503 are repeated when the server says so
(`Retry-After`), and a connection that cannot be made or breaks is tried again. Nothing is repeated that the server may
still be working at: an answer that does not come within `timeout_s` is an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from threefold import remote
from threefold.errors import InputError, MissingExtraError, ServeError, UnavailableError
from threefold.remote import Ask, InputType, Priority, Progress, Ranked, Served, Truncate
from threefold.types import Document, Encoded, Hit, Representation

try:
    import httpx

    from threefold.attempts import Attempts, address, can_be_repeated, headers
except ImportError as error:
    raise MissingExtraError("httpx", "client", "threefold.Client") from error

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport", httpx.BaseTransport, httpx.AsyncBaseTransport)
Documents = Iterable[Document | Mapping[str, Any]]
AsyncDocuments = AsyncIterable[Document | Mapping[str, Any]]

JSON = {"content-type": "application/json"}
BROKE_OFF = "the server ended before the documents were added; add them again"


def _checked(response: httpx.Response, ask: Ask[T]) -> T:
    if response.status_code >= 300:
        raise _refused(response)
    return ask.answer(response.content)


def _refused(response: httpx.Response) -> ServeError | InputError:
    return remote.error_of(response.status_code, response.content, response.headers.get("retry-after"))


class _Told(Generic[Http, Transport]):
    """What both clients are told, and have been told by the server."""

    _connect: Callable[..., Http]

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 5,
        max_wait_s: float = 120.0,
        transport: Transport | None = None,
    ) -> None:
        self._model = model
        self._attempts = Attempts(timeout_s, retries, max_wait_s)
        self._http: Http = self._connect(
            base_url=address(base_url), headers=headers(api_key), timeout=timeout_s, transport=transport
        )
        self._served: Served | None = None

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        if self._http.is_closed:
            raise InputError("this client is closed. Make another")
        with self._attempts.our_errors():
            yield


class Client(_Told[httpx.Client, httpx.BaseTransport]):
    """A server, through blocking calls. May be shared between threads; a context manager.

    base_url   such as "http://127.0.0.1:8000"
    model      one of the names of `GET /v1/models`; None: what the server gives those who name none
    timeout_s  seconds without a sign of the server after which an answer is given up
    transport  how requests are sent, for tests
    """

    _connect = httpx.Client
    _sleep: Callable[[float], object] = staticmethod(time.sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, ask: Ask[T]) -> T:
        """One request, repeated as the server says."""

        def once() -> T:
            with self._our_errors():
                return _checked(self._http.request(ask.method, ask.path, content=ask.content, headers=JSON), ask)

        return self._repeated(once)

    def _repeated(self, once: Callable[[], T]) -> T:
        attempt = 0
        while True:
            try:
                return once()
            except ServeError as error:
                wait = self._attempts.wait_s(attempt, error)
                if wait is None:
                    raise
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
        options = remote.embed_options(outputs, truncate, input_type, priority)
        parts = remote.Parts(texts, options, self.served())
        return remote.joined(list(self._answers(parts)), options, self.served())

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
        return self._answers(remote.Parts(texts, options, self.served()))

    def _answers(self, parts: remote.Parts) -> Iterator[Encoded]:
        for ask in parts:
            with parts.halving():
                yield self.send(ask)

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

        def once() -> dict[str, Any]:
            return self._stream(remote.collection_path(name, "documents"), documents, progress)

        return self._repeated(once) if can_be_repeated(documents) else once()

    def _stream(self, path: str, documents: Documents, progress: Progress | None) -> dict[str, Any]:
        lines = (remote.document_line(document) for document in documents)
        with self._our_errors(), self._http.stream("POST", path, content=lines) as response:
            if response.status_code >= 300:
                response.read()
                raise _refused(response)
            for line in response.iter_lines():
                if (report := remote.event(line, progress)) is not None:
                    return report
        raise UnavailableError(BROKE_OFF)


class RemoteCollection:
    """A collection of a server."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def create(self, **settings: Any) -> dict[str, Any]:
        """Make it; `chunking` (a dictionary), `multi_storage` and `multi_pool` are optional."""
        return self._client.send(remote.create(self.name, settings))

    def info(self) -> dict[str, Any]:
        """What it is."""
        return self._client.send(remote.info(self.name))

    def drop(self) -> None:
        """Delete it with all that is in it."""
        self._client.send(remote.drop(self.name))

    def add(self, documents: Documents, *, progress: Progress | None = None) -> dict[str, Any]:
        """Add any number of documents in one request; returns the report. A generator is read as it is sent.

        Repeated as the server says if the documents are still there (a list); a generator could not be read again.
        """
        return self._client.stream_documents(self.name, documents, progress)

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id or by a filter; returns how many chunks went."""
        return self._client.send(remote.delete(self.name, ids, where))

    def search(self, query: str, **options: Any) -> list[Hit]:
        """The best chunks; the options of `Collection.search`."""
        return self._client.send(remote.search(self.name, query, options))

    def recommend(self, like: Sequence[str], unlike: Sequence[str] = (), **options: Any) -> list[Hit]:
        """More like these ids; the options of `Collection.recommend`."""
        return self._client.send(remote.recommend(self.name, like, unlike, options))


class AsyncClient(_Told[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A server, through calls to await. An async context manager; see `Client`."""

    _connect = httpx.AsyncClient
    _sleep: Callable[[float], Awaitable[object]] = staticmethod(asyncio.sleep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, ask: Ask[T]) -> T:
        """One request, repeated as the server says."""

        async def once() -> T:
            with self._our_errors():
                return _checked(await self._http.request(ask.method, ask.path, content=ask.content, headers=JSON), ask)

        return await self._repeated(once)

    async def _repeated(self, once: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                return await once()
            except ServeError as error:
                wait = self._attempts.wait_s(attempt, error)
                if wait is None:
                    raise
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
        return remote.joined(found, options, await self.served())

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
        parts = remote.Parts(texts, options, await self.served())
        for ask in parts:
            with parts.halving():
                yield await self.send(ask)

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

        async def once() -> dict[str, Any]:
            return await self._stream(remote.collection_path(name, "documents"), documents, progress)

        return await (self._repeated(once) if can_be_repeated(documents) else once())

    async def _stream(
        self, path: str, documents: Documents | AsyncDocuments, progress: Progress | None
    ) -> dict[str, Any]:
        with self._our_errors():
            async with self._http.stream("POST", path, content=_lines(documents)) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise _refused(response)
                async for line in response.aiter_lines():
                    if (report := remote.event(line, progress)) is not None:
                        return report
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
        """Make it; `chunking` (a dictionary), `multi_storage` and `multi_pool` are optional."""
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

    async def recommend(self, like: Sequence[str], unlike: Sequence[str] = (), **options: Any) -> list[Hit]:
        """More like these ids; the options of `Collection.recommend`."""
        return await self._client.send(remote.recommend(self.name, like, unlike, options))
