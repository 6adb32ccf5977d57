"""Reading a collection of Milvus: rows by condition or by id, their pieces, and exact scores, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from pymilvus import MilvusClient

from threefold.config import Manifest
from threefold.errors import StoreCorruptError
from threefold.score.dense import dense_scores
from threefold.score.multi import maxsim
from threefold.score.sparse import sparse_scores
from threefold.store import milvus_words as words
from threefold.store.check import batches
from threefold.store.protocol import Scored
from threefold.types import Floats, Ragged, Representation, Sparse

#: Rows and pieces per answer: some 30 MB at most, where a server sends 100 MB.
READ_ROWS, READ_PIECES = 250, 256

#: Looks at a chunk that others replace meanwhile, and the pause before the second; before each more, one more of them.
TRIES, PAUSE_S = 10, 0.02

TIMEOUT_S = 60.0


class Found(NamedTuple):
    """A point, with what was asked for."""

    id: str
    payload: Mapping[str, Any]
    score: float = 0.0
    vector: Mapping[Representation, Any] = {}


class Reader:
    """Looks into the two collections; `calling(action)` gives the client, and maps its errors."""

    def __init__(
        self, manifest: Manifest, name: str, calling: Callable[[str], AbstractContextManager[MilvusClient]]
    ) -> None:
        self._manifest = manifest
        self._name = name
        self._parts = words.parts_name(name)
        self._calling = calling

    def scan(
        self, representation: Representation, vector: Any, k: int, condition: words.Condition | None
    ) -> list[Scored]:
        """The k best of the whole collection, which is read a page at a time."""
        best: list[Scored] = []
        for rows in self.pages(condition, READ_ROWS, fields_of([representation], payload=False)):
            for some in self.whole(rows, [representation], payload=False):
                scores = self.scores(representation, vector, some).tolist()
                found = [Scored(one.payload["id"], score) for one, score in zip(some, scores, strict=True)]
                if representation == "sparse":
                    found = [one for one in found if one.score > 0]
                best = sorted(best + found, key=lambda one: (-one.score, one.id))[:k]
        return best

    def pages(
        self, condition: words.Condition | None, limit: int, fields: Sequence[str], collection: str = ""
    ) -> Iterator[list[dict[str, Any]]]:
        """The rows that match, with these fields, as they were when this began."""
        with self._calling("read") as client:
            pages = client.query_iterator(
                collection or self._name,
                batch_size=limit,
                filter=said(condition),
                output_fields=[*fields],
                timeout=TIMEOUT_S,
            )
        try:
            while True:
                with self._calling("read"):
                    rows = pages.next()
                if not rows:
                    return
                yield [*rows]
        finally:
            pages.close()

    def rows(self, points: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Those of the rows that there are."""
        return self._by_key(self._name, points, fields, READ_ROWS)

    def _pieces(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the pieces that there are.

        What a name stands for never changes, so an answer that is not the newest is as good, and comes without the wait
        for it; only what it lacks is asked for again.
        """
        found: dict[str, str] = {}
        for level in ("Eventually", "Strong"):
            left = [name for name in names if name not in found]
            some = self._by_key(self._parts, left, ["part", "data"], READ_PIECES, consistency_level=level)
            found |= {one["part"]: one["data"] for one in some}
        return found

    def _by_key(
        self, collection: str, keys: Sequence[str], fields: Sequence[str], batch: int, **how: str
    ) -> list[dict[str, Any]]:
        once = list(dict.fromkeys(keys))
        found: list[dict[str, Any]] = []
        for start in range(0, len(once), batch):
            with self._calling("read") as client:
                some = once[start : start + batch]
                found += client.query(collection, ids=some, output_fields=[*fields], timeout=TIMEOUT_S, **how)
        return found

    def whole(
        self, rows: Sequence[dict[str, Any]], names: Sequence[Representation], *, payload: bool
    ) -> Iterator[list[Found]]:
        """Rows with their pieces, as far as these are asked for, in order and bounded memory.

        A chunk that was deleted meanwhile is left out.
        """
        kinds = ("x" if payload else "") + ("t" if "multi" in names else "")
        for part in batches([len(words.piece_names(row, kinds)) for row in rows], READ_PIECES):
            yield self._joined(list(rows[part]), names, kinds, fields_of(names, payload=payload))

    def _joined(
        self, rows: list[dict[str, Any]], names: Sequence[Representation], kinds: str, fields: Sequence[str]
    ) -> list[Found]:
        for turn in range(TRIES):
            time.sleep(turn * PAUSE_S)
            pieces = self._pieces([name for row in rows for name in words.piece_names(row, kinds)])
            lost = [row["point"] for row in rows if any(name not in pieces for name in words.piece_names(row, kinds))]
            if not lost:
                return [self._found(row, names, pieces) for row in rows]
            again = {row["point"]: row for row in self.rows(lost, fields)}  # replaced or deleted, between two looks
            rows = [again.get(row["point"], row) for row in rows if row["point"] not in lost or row["point"] in again]
        missing = next((row["id"] for row in rows if row["point"] in lost), "")
        raise StoreCorruptError(
            f"collection {self._name!r}: {self._parts!r} lacks pieces of chunk {missing!r}, or others replace it all "
            "the time. Repeat the call; if that does not help, delete its document and add it again"
        )

    def _found(self, row: dict[str, Any], names: Sequence[Representation], pieces: Mapping[str, str]) -> Found:
        vector = {name: words.stored_vector(self._manifest, name, row, pieces) for name in names}
        return Found(row["point"], words.to_payload_of(row, pieces), 0.0, vector)

    def scores(self, representation: Representation, vector: Any, some: Sequence[Found]) -> Floats:
        """(len(some),) by the definition."""
        if not some:
            return np.zeros(0, np.float32)
        kept = [one.vector[representation] for one in some]
        if representation == "dense":
            return dense_scores(vector, np.array(kept, np.float32))
        if representation == "multi":
            return maxsim(vector, Ragged.of(kept))
        rows = Sparse.of([dict(zip(*one, strict=True)) for one in kept], self._manifest.vocab)
        return sparse_scores((np.array([*vector], np.int64), np.array([*vector.values()], np.float32)), rows)


def fields_of(names: Sequence[Representation], *, payload: bool) -> list[str]:
    """The fields of a row that these vectors, and the payload, are made of."""
    vectors = [name for name in names if name != "multi"]
    return [*words.PLACE_FIELDS, *(words.PAYLOAD_FIELDS if payload else ["id"]), *vectors]


def said(condition: words.Condition | None) -> str:
    """The expression of a condition; none is the empty one."""
    return condition.yes if condition else ""
