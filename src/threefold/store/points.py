"""What Qdrant's two engines and Milvus have in common: chunks are points, and a store asks for these in a few ways.

`PointStore` checks, translates, orders and divides; it says nothing to an engine. `edge`, `qdrant` and `milvus` do, in
words of their own. What they return has the same attributes in all: `id`, `payload`, and `score` or `vector`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import numpy as np

from threefold.config import Filter, Manifest
from threefold.errors import ConfigError, InputError, StoreCorruptError, StoreError
from threefold.store.check import batches, check_batch, check_query, check_search, sizes_bytes, stored, unknown_chunk
from threefold.store.filters import Dialect, translate
from threefold.store.folder import FORMAT_VERSION
from threefold.store.managed import Managed
from threefold.store.payload import from_payload, point_id, to_payload
from threefold.store.protocol import Scored
from threefold.store.ties import best
from threefold.store.unpack import unpack
from threefold.types import REPRESENTATIONS, Chunk, Encoded, Floats, Representation

C = TypeVar("C")

#: What an engine calls a place in a collection, from one page to the next; None: the beginning, and the end.
Offset = Any


class PointStore(Managed, Generic[C]):
    """A collection of points; `C` is a condition in the words of the engine."""

    _words: Dialect[C]
    #: One vector of text i as the engine takes it.
    _vector: Callable[[Representation, Encoded, int], Any]

    # ---- what a store can do; see `protocol.Store` ---------------------------------------------------------

    def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
        """Add or replace; durable when it returns. Large calls are written in parts.

        When a part fails, the parts before it are stored and the error says how many chunks they had.
        """
        check_batch(self._manifest, chunks, vectors)
        payloads = [
            to_payload(chunk, int(vectors.tokens[i]), bool(vectors.truncated[i])) for i, chunk in enumerate(chunks)
        ]
        self._check(payloads)
        sizes = sizes_bytes(self._manifest, chunks, vectors)
        with self._changing():
            for part in batches(sizes, self._part_bytes()):
                try:
                    self._write(part, payloads, vectors, sum(sizes[part]))
                except StoreError as error:
                    if part.start == 0:
                        raise
                    done = f"{part.start} of {len(chunks)} chunks of this call are stored"
                    raise type(error)(f"{error} ({done})") from error

    def search(
        self, representation: Representation, query: Encoded, k: int, where: Filter | None = None
    ) -> list[Scored]:
        check_search(self._manifest, query, representation, k)
        condition = self._condition(where)
        if _is_empty(representation, query):
            return []
        vector, tokens = self._vector(representation, query, 0), _divisor(representation, query)

        def nearest(limit: int) -> list[Scored]:
            found = self._nearest(representation, vector, limit, condition)
            return [Scored(point.payload["id"], point.score / tokens) for point in found]

        return best(nearest, k)

    def score(self, query: Encoded, ids: Sequence[str]) -> Mapping[Representation, Floats]:
        both = check_query(self._manifest, query)
        points = [point_id(name) for name in ids]
        asked = {name: self._vector(name, query, 0) for name in both if points and not _is_empty(name, query)}
        scores = {name: np.zeros(len(points), np.float32) for name in both}
        for name, answer in zip(asked, self._scored(asked, ids, points), strict=True):
            # A chunk that the engine does not return shares no term.
            found = {str(point.id): point.score / _divisor(name, query) for point in answer}
            scores[name] = np.array([found.get(point, 0.0) for point in points], dtype=np.float32)
        return scores

    def fetch(self, ids: Sequence[str]) -> list[Chunk]:
        return [from_payload(record.payload) for record in self._records(ids, [])]

    def vectors(self, ids: Sequence[str], names: Sequence[Representation] = REPRESENTATIONS) -> Encoded:
        if not ids:
            raise InputError("vectors of no chunks were asked for. Pass at least one id")
        kept = [name for name in stored(self._manifest) if name in names]
        records = self._records(ids, kept)
        vectors = [record.vector or {} for record in records]
        return unpack(kept, self._manifest.vocab, vectors, [record.payload for record in records])

    def scroll(self, where: Filter | None = None, batch: int = 1000) -> Iterator[Chunk]:
        if batch < 1:
            raise InputError(f"batch must be at least 1; got {batch}")
        return self._chunks(self._condition(where), batch)

    def count(self, where: Filter | None = None) -> int:
        return self._count(self._condition(where))

    def _condition(self, where: Filter | None) -> C | None:
        return None if where is None else translate(where, self._words)

    def _records(self, ids: Sequence[str], names: list[Representation]) -> list[Any]:
        """Points in the order of `ids`, with these vectors; an unknown id is an error that names it."""
        points = [point_id(name) for name in ids]
        records = {str(record.id): record for record in self._retrieve(points, names)}
        refuse_unknown(ids, points, records.keys())
        return [records[point] for point in points]

    def _chunks(self, condition: C | None, batch: int) -> Iterator[Chunk]:
        offset: Offset = None
        while True:
            records, offset = self._page(condition, batch, offset)
            yield from (from_payload(record.payload) for record in records)
            if offset is None:
                return

    def _scored(
        self, asked: Mapping[Representation, Any], ids: Sequence[str], points: list[str]
    ) -> Sequence[Sequence[Any]]:
        """`_exact`, of chunks that are all there."""
        refuse_unknown(ids, points, self._known(points))
        return self._exact(asked, points) if asked else []

    # ---- what is said to the engine ------------------------------------------------------------------------

    def _check(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what this engine cannot hold, before anything is written."""
        return

    def _changing(self) -> AbstractContextManager[object]:
        """Around all parts of a change."""
        return nullcontext()

    @abstractmethod
    def _part_bytes(self) -> int:
        """The most raw bytes that are written at once."""

    @abstractmethod
    def _write(self, part: slice, payloads: list[dict[str, Any]], vectors: Encoded, size_bytes: int) -> None:
        """Store the points of a part, durably."""

    @abstractmethod
    def _nearest(self, representation: Representation, vector: Any, limit: int, condition: C | None) -> Sequence[Any]:
        """The best points, with their ids in the payload."""

    @abstractmethod
    def _exact(self, asked: Mapping[Representation, Any], points: list[str]) -> Sequence[Sequence[Any]]:
        """For each vector that is asked with, these points with their exact scores."""

    @abstractmethod
    def _known(self, points: list[str]) -> Set[str]:
        """Those of the points that are stored."""

    @abstractmethod
    def _retrieve(self, points: list[str], names: list[Representation]) -> Sequence[Any]:
        """Those of the points that are stored, with payload and these vectors, in any order."""

    @abstractmethod
    def _page(self, condition: C | None, limit: int, offset: Offset) -> tuple[Sequence[Any], Offset]:
        """Points with their payload, and where the next page begins."""

    @abstractmethod
    def _count(self, condition: C | None) -> int: ...


def plain_vector(
    representation: Representation, vectors: Encoded, i: int, sparse: Callable[[list[int], list[float]], Any]
) -> Any:
    """One vector of text i in plain lists, which engines convert faster than arrays; `sparse` makes theirs of two."""
    if representation == "dense" and vectors.dense is not None:
        return vectors.dense[i].tolist()
    if representation == "sparse" and vectors.sparse is not None:
        ids, weights = vectors.sparse[i]
        return sparse(ids.tolist(), weights.tolist())
    return None if vectors.multi is None else vectors.multi[i].tolist()


def named_manifest(manifest: Manifest, engine: str, where: object) -> Manifest:
    """The manifest of a new collection of this engine; one that keeps nothing is refused."""
    if not stored(manifest):
        raise StoreError(f"{where}: the manifest keeps no vectors (all dimensions are 0). Give it at least one")
    return dataclasses.replace(manifest, engine=engine, format_version=FORMAT_VERSION)


def manifest_of(name: str, data: Mapping[str, Any]) -> Manifest:
    """The manifest that a server keeps for a collection, from its dictionary."""
    try:
        manifest = Manifest.from_dict(data)
    except ConfigError as error:
        raise StoreCorruptError(
            f"collection {name!r}: damaged manifest ({error}). Build the collection again"
        ) from None
    if manifest.format_version > FORMAT_VERSION:
        raise StoreError(
            f"collection {name!r}: written by a newer threefold (format {manifest.format_version}, this one reads up "
            f"to {FORMAT_VERSION}). Upgrade with: pip install --upgrade threefold"
        )
    return manifest


def refuse_unknown(ids: Sequence[str], points: Sequence[str], known: Set[str]) -> None:
    """An error that names the first of the ids whose point is not stored."""
    missing = next((name for name, point in zip(ids, points, strict=True) if point not in known), None)
    if missing is not None:
        raise unknown_chunk(missing)


def _is_empty(representation: Representation, query: Encoded) -> bool:
    return representation == "sparse" and query.sparse is not None and len(query.sparse.indices) == 0


def _divisor(representation: Representation, query: Encoded) -> int:
    """The engines' MaxSim is a sum over query tokens, ours is the mean."""
    return len(query.multi[0]) if representation == "multi" and query.multi is not None else 1
