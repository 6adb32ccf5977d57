"""A collection for agents: tools of the Model Context Protocol that search, read, list and recommend (extra `mcp`).

The collection is opened for each call and closed after it, which takes a tenth of a second: so several agents can use
one, and files can be indexed meanwhile. Nothing is ever written. What goes wrong is said to the agent, which can mend
its arguments by it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from typing_extensions import TypedDict  # that of `typing` is refused by pydantic before Python 3.12

from threefold import __version__
from threefold.collection import Collection
from threefold.errors import InputError, MissingExtraError, StoreLockedError, ThreefoldError
from threefold.retrieve.asked import condition_of
from threefold.types import Chunk, Hit

#: Opens the collection.
Opened = Callable[[], Collection]

#: Seconds to wait for another process that has the collection open, and between two tries.
PATIENCE_S: Final = 5.0
PAUSE_S: Final = 0.1
#: Most hits or documents of an answer, and characters that `read` gives at once: agents pay for every one.
MOST: Final = 100
CHARACTERS: Final = 8_000


class Passage(TypedDict):
    """A hit as an agent reads it; `start` and `end` are characters of the document."""

    document: str
    title: str
    source: str
    start: int
    end: int
    score: float
    text: str


class Listed(TypedDict):
    """A document without its text."""

    document: str
    title: str
    source: str
    language: str


class Text(TypedDict):
    """A piece of a document, and how long the document is."""

    document: str
    title: str
    start: int
    end: int
    length: int
    text: str


def server(opened: Opened, name: str) -> Any:
    """A server of the package `mcp` with the tools of one collection; `run("stdio")` serves it."""
    library, annotations, error_of = _library(f"threefold mcp --in {name}")

    class Server(library.MCPServer):  # type: ignore[name-defined, misc]
        async def call_tool(self, tool: str, *rest: Any, **more: Any) -> Any:
            try:
                return await super().call_tool(tool, *rest, **more)
            except error_of as error:
                if wrong := _wrong_arguments(error.__cause__):
                    raise error_of(f"{tool}: {wrong}") from None
                raise

    made = Server(
        "threefold",
        instructions=f"Passages of the collection {name!r}: `search` finds them, `read` shows what stands around them.",
        version=__version__,
        log_level="ERROR",
    )
    for tool in _tools(opened, name):
        made.tool(annotations=annotations(read_only_hint=True, open_world_hint=False))(_told(tool, error_of))
    return made


def _wrong_arguments(cause: Any) -> str:
    """What is wrong with the arguments, if anything is, in a few words: pydantic's have several lines, and a link."""
    found = cause.errors() if type(cause).__name__ == "ValidationError" else ()
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in found)


def _library(purpose: str) -> tuple[Any, Any, type[Exception]]:
    try:
        from mcp.server import mcpserver
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ToolAnnotations
    except ImportError as error:
        raise MissingExtraError("mcp", "mcp", purpose) from error
    return mcpserver, ToolAnnotations, ToolError


def _tools(opened: Opened, name: str) -> Iterator[Callable[..., Any]]:
    """The functions; their names, parameters and docstrings are what the agent sees."""

    def search(query: str, k: int = 5, where: dict[str, Any] | None = None, short: bool = False) -> list[Passage]:
        """Find the passages that answer a query, by meaning and by words, best first.

        query: a question or key words, in any language
        k: how many passages, at most 100
        where: a filter, such as {"language": "de", "year": {"gte": 2020}}
        short: of each passage only the sentence that answers best; `read` shows what stands around it
        """
        with _open(opened) as collection:
            return [_passage(hit) for hit in collection.search(query, k=_most("k", k), where=where, quote=short)]

    def recommend(like: list[str], unlike: list[str] | None = None, k: int = 5) -> list[Passage]:
        """Find passages of other documents that are like some that are known, best first.

        like: ids of documents, as `search` and `documents` give them
        unlike: ids of documents that the result should not be like
        k: how many passages, at most 100
        """
        with _open(opened) as collection:
            return [_passage(hit) for hit in collection.recommend(like, unlike or (), k=_most("k", k))]

    def read(document: str, start: int = 0) -> Text:
        """Read a document, at most 8,000 characters from `start`; `length` says how many it has.

        document: its id, as `search` and `documents` give it
        """
        with _open(opened) as collection:
            chunks = list(collection.store.scroll(condition_of({"document_id": document})))
        if not chunks:
            raise InputError(f"there is no document {document!r} in {name!r}. Take an id from search or documents")
        text = whole(chunks)
        if not 0 <= start <= len(text):
            raise InputError(f"start {start}: the document has {len(text):,} characters")
        piece, title = text[start : start + CHARACTERS], chunks[0].title
        end, length = start + len(piece), len(text)
        return Text(document=document, title=title, start=start, end=end, length=length, text=piece)

    def documents(where: dict[str, Any] | None = None, skip: int = 0) -> list[Listed]:
        """List the documents by id, at most 100 at a time.

        where: a filter, such as {"language": "de"}
        skip: how many to pass over
        """
        with _open(opened) as collection:
            found = collection.documents(where)[max(skip, 0) :][:MOST]
        return [Listed(document=one.id, title=one.title, source=one.source, language=one.language) for one in found]

    yield from (search, recommend, read, documents)


def whole(chunks: list[Chunk]) -> str:
    """The text of a document from its chunks, each character where it was.

    What no chunk has is white space between two of them: a space, or the end of a paragraph.
    """
    text = ""
    for chunk in sorted(chunks, key=lambda chunk: chunk.start):
        gap = max(chunk.start - len(text), 0)
        text += (" " if gap == 1 else "\n" * gap) + chunk.text[max(len(text) - chunk.start, 0) :]
    return text


def _told(tool: Callable[..., Any], error_of: type[Exception]) -> Callable[..., Any]:
    """The tool, with our errors as those whose words an agent gets to see."""

    @functools.wraps(tool)
    def telling(*args: Any, **arguments: Any) -> Any:
        try:
            return tool(*args, **arguments)
        except ThreefoldError as error:
            raise error_of(str(error)) from error

    return telling


def _open(opened: Opened) -> Collection:
    """The collection, when whoever else has it open is done."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return opened()
        except StoreLockedError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)


def _most(name: str, value: int) -> int:
    if value > MOST:
        raise InputError(f"{name} must be at most {MOST}; got {value}")
    return value


def _passage(hit: Hit) -> Passage:
    chunk, said = hit.chunk, hit.quote or hit.chunk
    return Passage(
        document=chunk.document_id,
        title=chunk.title,
        source=chunk.source,
        start=said.start,
        end=said.end,
        score=round(hit.score, 4),
        text=said.text,
    )
