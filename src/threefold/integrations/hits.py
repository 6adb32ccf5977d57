"""Hits for other people's frameworks: how a collection is searched for them, and what their documents say of a hit.

Knows no framework.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from threefold.errors import InputError
from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Truncate
from threefold.types import Encoded, Hit

#: The key of a framework's metadata that has everything of a hit but its text and the metadata of the document.
KEY: Final = "threefold"
#: What of it stands beside the metadata of the document as well, because frameworks and their prompts look there.
USUAL: Final = ("source", "title", "language")


class Searchable(Protocol):
    """A `Collection`, or the collection of a server by `Client` or `AsyncClient`."""

    def search(self, query: str, *args: Any, **options: Any) -> list[Hit] | Awaitable[list[Hit]]:
        """The best chunks for a query, best first."""
        ...


def found(collection: Any, query: str, options: Mapping[str, Any]) -> list[Hit]:
    """The hits of a blocking search."""
    if inspect.iscoroutinefunction(collection.search):
        raise InputError(
            "a collection of AsyncClient can only be awaited: call the async method of the retriever, or make it from "
            "a collection of Client"
        )
    hits: list[Hit] = collection.search(query, **options)
    return hits


async def found_async(collection: Any, query: str, options: Mapping[str, Any]) -> list[Hit]:
    """The hits of a search, in a thread where it would block."""
    hits: list[Hit]
    if inspect.iscoroutinefunction(collection.search):
        hits = await collection.search(query, **options)
    else:
        hits = await asyncio.to_thread(collection.search, query, **options)
    return hits


def metadata_of(hit: Hit) -> dict[str, Any]:
    """The metadata of the document as it is, what is usual beside it, and everything of the hit below `threefold`.

    A key of the document's own is never replaced: `source`, `title` and `language` give way to it (below `threefold`
    they are there in any case), and one named `threefold` is found as `own` below ours. Plain JSON, and a copy.
    """
    ours: dict[str, Any] = json.loads(json.dumps(hit.to_dict()))
    own: dict[str, Any] = ours.pop("metadata")
    del ours["text"]
    if KEY in own:
        ours["own"] = own.pop(KEY)
    usual = {name: ours[name] for name in USUAL if ours[name]}
    return {**usual, **own, KEY: ours}


def dense_rows(encode: Callable[..., Encoded], texts: Sequence[str], truncate: Truncate = "end") -> list[list[float]]:
    """One dense vector for each text, as frameworks want them."""
    dense = encode(list(texts), outputs=("dense",), truncate=truncate).dense
    rows: list[list[float]] = [] if dense is None else dense.tolist()
    return rows


def check_dense(encoder: TextEncoder) -> None:
    """Refuse a model without dense vectors, the only ones that frameworks know."""
    if not encoder.card.dense_dim:
        raise InputError(f"{encoder.card.name} makes no dense vectors, which embeddings of a framework are")
