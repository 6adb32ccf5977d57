"""What is analysed: items and their vectors, from a collection (nothing is encoded again) or from texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np

from threefold.analyze.neighbours import Progress
from threefold.collection import Collection
from threefold.errors import InputError, NumericalError, ShapeError
from threefold.retrieve.asked import condition_of
from threefold.retrieve.documents import largest, means, units
from threefold.text.protocol import TextEncoder
from threefold.types import Chunk, Encoded, Floats, Ints, Representation, Sparse, offsets_of

By = Literal["chunk", "document"]
#: Chunks that are read from the store at a time.
BATCH = 1_000
#: What is shorter than this after centring is rounding: it has no direction.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Item:
    """A text that is analysed: a chunk, a document, or one that was given.

    truncated  it was given, is longer than the model reads, and only its beginning was read
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    language: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """n items, in a fixed order.

    dense   (n, d) float32 unit rows
    sparse  term weights, where they were asked for
    """

    items: tuple[Item, ...]
    dense: Floats
    sparse: Sparse | None = None

    def __post_init__(self) -> None:
        if self.dense.ndim != 2 or len(self.dense) != len(self.items):
            raise ShapeError(f"{len(self.items)} items but dense vectors of shape {self.dense.shape}")
        if self.sparse is not None and len(self.sparse) != len(self.items):
            raise ShapeError(f"{len(self.items)} items but sparse vectors of {len(self.sparse)}")
        if not np.isfinite(self.dense).all():
            first = int(np.flatnonzero(~np.isfinite(self.dense).all(axis=1))[0])
            raise NumericalError(
                f"the dense vector of item {first}, {self.items[first].id!r}, is not of finite numbers"
            )

    def __len__(self) -> int:
        return len(self.items)

    def take(self, order: Sequence[int] | Ints) -> Corpus:
        """The items `order`, in that order."""
        numbers = [int(i) for i in order]
        sparse = None if self.sparse is None else self.sparse.take(numbers)
        return Corpus(tuple(self.items[i] for i in numbers), self.dense[numbers], sparse)


def gather(
    collection: Collection,
    *,
    where: Mapping[str, Any] | None = None,
    by: By = "document",
    sparse: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """The chunks or documents of a collection, ordered by id and number, with the vectors that it keeps.

    where     only chunks that match
    by        chunk, or document: its vector is the mean of its chunks', made a unit again, and its weight of a term
              the largest that they have
    sparse    term weights as well
    """
    if by not in ("chunk", "document"):
        raise InputError(f"by={by!r}: expected chunk or document")
    names: list[Representation] = ["dense", "sparse"] if sparse else ["dense"]
    for name in names:
        if name not in collection.representations:
            raise InputError(f"collection {collection.name!r} keeps no {name} vectors, and this needs them")
    chunks = sorted(collection.store.scroll(condition_of(where)), key=lambda one: (one.document_id, one.number))
    if not chunks:
        raise InputError(
            f"collection {collection.name!r} has nothing{' that matches' if where else ''}; add texts first"
        )
    corpus = _of_chunks(collection, chunks, names, progress)
    return _by_document(chunks, corpus.dense, corpus.sparse) if by == "document" else corpus


def of_texts(
    encoder: TextEncoder, texts: Sequence[str], ids: Sequence[str] | None = None, *, sparse: bool = False
) -> Corpus:
    """Texts of your own; their ids are their numbers unless some are given."""
    if ids is not None and len(ids) != len(texts):
        raise InputError(f"{len(texts)} texts but {len(ids)} ids")
    names: list[Representation] = ["dense", "sparse"] if sparse else ["dense"]
    vectors = encoder.encode_documents(texts, outputs=names)
    if vectors.dense is None:
        raise ShapeError("the encoder gave no dense vectors")
    named = [str(i) for i in range(len(texts))] if ids is None else ids
    items = tuple(
        Item(id, text, truncated=bool(cut)) for id, text, cut in zip(named, texts, vectors.truncated, strict=True)
    )
    return Corpus(items, vectors.dense, vectors.sparse)


def centred(rows: Floats) -> Floats:
    """(n, d) unit rows about their common mean: what all texts share tells none of them apart.

    Vectors of one model lie in a narrow cone (Mu and Viswanath, "All-but-the-Top", ICLR 2018). An item that is the mean
    has no direction and becomes 0, as all do where all are equal.
    """
    rest = rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
    rest[np.linalg.norm(rest, axis=1) < ROUNDING] = 0
    return units(rest)


def _of_chunks(
    collection: Collection, chunks: Sequence[Chunk], names: Sequence[Representation], progress: Progress | None
) -> Corpus:
    vectors = Encoded.concat(list(_read(collection, chunks, names, progress)))
    if vectors.dense is None:
        raise ShapeError("the store gave no dense vectors")
    dense = units(vectors.dense)  # stores that keep them in fewer bits give back rows of other lengths
    return Corpus(tuple(_item(chunk, chunk.id, chunk.text) for chunk in chunks), dense, vectors.sparse)


def _read(
    collection: Collection, chunks: Sequence[Chunk], names: Sequence[Representation], progress: Progress | None
) -> Iterator[Encoded]:
    for start in range(0, len(chunks), BATCH):
        part = chunks[start : start + BATCH]
        yield collection.store.vectors([chunk.id for chunk in part], names)
        if progress is not None:
            progress(start + len(part), len(chunks))


def _item(chunk: Chunk, id: str, text: str) -> Item:
    return Item(id, text, chunk.title, chunk.source, chunk.language, chunk.metadata)


def _by_document(chunks: Sequence[Chunk], dense: Floats, sparse: Sparse | None) -> Corpus:
    """Chunks of one document are neighbours."""
    groups = [list(group) for _, group in groupby(chunks, key=lambda chunk: chunk.document_id)]
    items = tuple(_item(group[0], group[0].document_id, "\n".join(chunk.text for chunk in group)) for group in groups)
    offsets = offsets_of([len(group) for group in groups])
    return Corpus(items, means(dense, offsets), None if sparse is None else largest(sparse, offsets))
