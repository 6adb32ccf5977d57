"""Exact search in memory by the plain definitions: for tests, as an oracle, and for small throwaway collections."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from threefold.config import Filter, Manifest
from threefold.errors import InputError, StoreError
from threefold.score.dense import dense_scores
from threefold.score.multi import maxsim
from threefold.score.sparse import sparse_scores
from threefold.store.check import check_batch, check_query, check_search, stored, unknown_chunk
from threefold.store.filters import matches
from threefold.store.managed import Managed
from threefold.store.payload import to_payload
from threefold.store.protocol import Scored
from threefold.types import REPRESENTATIONS, Chunk, Encoded, Floats, Representation


class MemoryStore(Managed):
    """Everything in RAM, uncompressed; gone when the process ends. Each search looks at every chunk."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._chunks: dict[str, Chunk] = {}
        self._vectors: dict[str, Encoded] = {}
        self._lock = threading.RLock()
        self._closed = False

    def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
        with self._opened():
            check_batch(self._manifest, chunks, vectors)
            for i, chunk in enumerate(chunks):  # what no engine can store is refused here too
                to_payload(chunk, int(vectors.tokens[i]), bool(vectors.truncated[i]))
            for i, chunk in enumerate(chunks):
                self._chunks[chunk.id] = chunk
                self._vectors[chunk.id] = self._kept(vectors.take([i]))

    def delete(self, where: Filter) -> int:
        with self._opened():
            ids = self._matching(where)
            for name in ids:
                del self._chunks[name], self._vectors[name]
            return len(ids)

    def search(
        self, representation: Representation, query: Encoded, k: int, where: Filter | None = None
    ) -> list[Scored]:
        with self._opened():
            check_search(self._manifest, query, representation, k)
            ids = self._matching(where)
            scores = self._scores(representation, query, ids)
        found = [Scored(name, float(score)) for name, score in zip(ids, scores, strict=True)]
        if representation == "sparse":  # weights are positive: a score of 0 is no shared term
            found = [one for one in found if one.score > 0]
        return sorted(found, key=lambda one: (-one.score, one.id))[:k]

    def score(self, query: Encoded, ids: Sequence[str]) -> Mapping[Representation, Floats]:
        with self._opened():
            both = check_query(self._manifest, query)
            self._refuse_unknown(ids)
            return {name: self._scores(name, query, ids) for name in both}

    def fetch(self, ids: Sequence[str]) -> list[Chunk]:
        with self._opened():
            self._refuse_unknown(ids)
            return [self._chunks[name] for name in ids]

    def vectors(self, ids: Sequence[str], names: Sequence[Representation] = REPRESENTATIONS) -> Encoded:
        with self._opened():
            self._refuse_unknown(ids)
            if not ids:
                raise InputError("vectors of no chunks were asked for. Pass at least one id")
            return Encoded.concat([self._vectors[name] for name in ids]).only(*names)

    def scroll(self, where: Filter | None = None, batch: int = 1000) -> Iterator[Chunk]:
        with self._opened():
            return iter([self._chunks[name] for name in self._matching(where)])

    def count(self, where: Filter | None = None) -> int:
        with self._opened():
            return len(self._matching(where))

    def optimize(self) -> None:
        with self._opened():
            return  # exact search has no index

    def snapshot(self, target: Path) -> None:
        """Write the collection to a folder, as one of the embedded engine."""
        from threefold.store.export import export  # late: the engine is needed for nothing else here

        with self._opened():
            export(self, target)

    def close(self) -> None:
        self._closed = True

    def _opened(self) -> threading.RLock:
        if self._closed:
            raise StoreError("this collection is closed. Open it again")
        return self._lock

    def _matching(self, where: Filter | None) -> list[str]:
        return [name for name, chunk in self._chunks.items() if where is None or matches(where, chunk)]

    def _refuse_unknown(self, ids: Sequence[str]) -> None:
        for name in ids:
            if name not in self._chunks:
                raise unknown_chunk(name)

    def _kept(self, vectors: Encoded) -> Encoded:
        keep = stored(self._manifest)
        return Encoded(
            vectors.dense if "dense" in keep else None,
            vectors.sparse if "sparse" in keep else None,
            vectors.multi if "multi" in keep else None,
            vectors.tokens,
            vectors.truncated,
        )

    def _scores(self, representation: Representation, query: Encoded, ids: Sequence[str]) -> Floats:
        if not ids:
            return np.zeros(0, np.float32)
        docs = Encoded.concat([self._vectors[name] for name in ids])
        if representation == "dense" and query.dense is not None and docs.dense is not None:
            return dense_scores(query.dense[0], docs.dense)
        if representation == "sparse" and query.sparse is not None and docs.sparse is not None:
            return sparse_scores(query.sparse[0], docs.sparse)
        if query.multi is None or docs.multi is None:
            raise StoreError(f"no {representation} vectors to compare")
        return maxsim(query.multi[0], docs.multi)
