"""Vectors of whole documents, from those of their chunks: the mean of the dense ones, the largest term weights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from threefold.characters import clean
from threefold.config import Filter
from threefold.errors import InputError, UnknownChunkError
from threefold.store.check import stored
from threefold.store.protocol import Store
from threefold.types import Chunk, Floats, Ints, Representation, Sparse, offsets_of

#: Chunks of a collection in which an id is looked for that is nearly the one that was given, since all are read for it;
#: and characters of such an id, since comparing long ones takes minutes.
NEAR_IN, NEAR_LENGTH = 1_000, 200


class Named(NamedTuple):
    """What ids stand for.

    dense      (n, d) float32 unit rows, one for each id
    sparse     term weights, where the store keeps them
    documents  the documents that they are, or that their chunks are of
    """

    dense: Floats
    sparse: Sparse | None
    documents: frozenset[str]


def units(rows: Floats) -> Floats:
    """(n, d) rows of length 1; those of length 0 stay what they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Floats = (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return scaled


def means(rows: Floats, offsets: Ints) -> Floats:
    """(m, d) unit rows: the mean of each run of rows, none of them empty."""
    return units(np.add.reduceat(rows, offsets[:-1], axis=0))


def largest(sparse: Sparse, offsets: Ints) -> Sparse:
    """Of each run of texts, every term with its largest weight."""
    rows = np.repeat(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), np.diff(sparse.offsets))
    keys = rows.astype(np.int64) * sparse.vocab + sparse.indices
    distinct, places = np.unique(keys, return_inverse=True)
    values = np.zeros(len(distinct), np.float32)
    np.maximum.at(values, places, sparse.values)
    counts = np.bincount(distinct // sparse.vocab, minlength=len(offsets) - 1)
    return Sparse((distinct % sparse.vocab).astype(np.int32), values, offsets_of(counts), sparse.vocab)


def row_lengths(sparse: Sparse) -> Floats:
    """(n,) Euclidean lengths of rows of term weights; 1 for a row without any, which shares none."""
    rows = np.repeat(np.arange(len(sparse)), np.diff(sparse.offsets))
    lengths = np.sqrt(np.bincount(rows, sparse.values.astype(np.float64) ** 2, len(sparse)))
    return np.where(lengths > 0, lengths, 1.0)


def named(store: Store, ids: Sequence[str]) -> Named:
    """Documents or chunks by id, in this order. An id is that of a document, or else of a chunk, or an error."""
    ids = [clean(id) for id in ids]  # as they are stored
    names: list[Representation] = [name for name in stored(store.manifest) if name != "multi"]
    if "dense" not in names:
        raise InputError("the collection keeps no dense vectors, and this needs them")
    chunks: dict[str, list[str]] = {}
    for chunk in store.scroll(Filter("in", "document_id", tuple(ids))):
        chunks.setdefault(chunk.document_id, []).append(chunk.id)
    alone = _alone(store, [id for id in ids if id not in chunks])
    runs = [sorted(chunks.get(id, [id])) for id in ids]
    vectors = store.vectors([id for run in runs for id in run], names)
    if vectors.dense is None:
        raise InputError("the store gave no dense vectors")
    offsets = offsets_of([len(run) for run in runs])
    return Named(
        means(vectors.dense, offsets),
        None if vectors.sparse is None else largest(vectors.sparse, offsets),
        frozenset(chunks) | {chunk.document_id for chunk in alone},
    )


def _alone(store: Store, ids: Sequence[str]) -> list[Chunk]:
    """The chunks of ids that are those of no documents."""
    try:
        return store.fetch(ids)
    except UnknownChunkError as error:
        raise UnknownChunkError(
            f"no document and no chunk has the id {error.id!r}. {_near(store, error.id)}"
            "Take ids from the hits of a search (`threefold search --json`) or from documents()",
            error.id,
        ) from error


def _near(store: Store, id: str) -> str:
    """Which document may have been meant, in a small collection."""
    if len(id) > NEAR_LENGTH or store.count() > NEAR_IN:
        return ""
    known = {chunk.document_id for chunk in store.scroll()}
    inside = sorted(other for other in known if other.endswith(f"/{id}"))  # a file's name without its folders
    near = [*inside, *difflib.get_close_matches(id, sorted(known), 1)]
    return f"Did you mean {near[0]!r}? " if near else ""
