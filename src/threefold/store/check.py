"""What every engine checks before it stores or searches. Engines accept NaN in silence; this layer does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from threefold.config import Manifest
from threefold.errors import InputError, NumericalError, ShapeError, StoreError, UnknownChunkError
from threefold.types import REPRESENTATIONS, Bools, Chunk, Encoded, Floats, Ints, Ragged, Representation, Sparse


def stored(manifest: Manifest) -> tuple[Representation, ...]:
    """The representations that a collection keeps."""
    multi = manifest.multi_dim if manifest.multi_storage != "none" else 0
    sizes = dict(zip(REPRESENTATIONS, (manifest.dense_dim, manifest.vocab, multi), strict=True))
    return tuple(name for name in REPRESENTATIONS if sizes[name])


def check_batch(manifest: Manifest, chunks: Sequence[Chunk], vectors: Encoded) -> None:
    """Refuse a batch as a whole, before anything is written, naming the first chunk at fault.

    A chunk id twice in one call is an error: one of the two texts would be lost without a word.
    Representations that the collection does not keep are ignored.
    """
    if len(chunks) != len(vectors):
        raise ShapeError(f"{len(chunks)} chunks but vectors of {len(vectors)} texts")
    counts = Counter(chunk.id for chunk in chunks)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"chunk {twice!r} is in this call {counts[twice]} times. Give each chunk once")
    names = [f"chunk {chunk.id!r}" for chunk in chunks]
    for representation in stored(manifest):
        if getattr(vectors, representation) is None:
            raise ShapeError(
                f"the collection keeps {representation} vectors, but none were given. "
                f"Encode with outputs that include {representation!r}"
            )
        _check(manifest, representation, vectors, names)


def check_query(manifest: Manifest, query: Encoded) -> tuple[Representation, ...]:
    """The representations that the collection and this one query both have, checked."""
    if len(query) != 1:
        raise ShapeError(f"a query is one text; got {len(query)}. Search for each one by itself")
    both = tuple(name for name in stored(manifest) if getattr(query, name) is not None)
    for representation in both:
        _check(manifest, representation, query, ["the query"])
    return both


def check_search(manifest: Manifest, query: Encoded, representation: Representation, k: int) -> None:
    """Refuse a search that cannot be answered."""
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    if representation not in stored(manifest):
        kept = ", ".join(stored(manifest)) or "no vectors"
        raise StoreError(f"the collection keeps {kept}, not {representation}. Build it with {representation} vectors")
    if representation not in check_query(manifest, query):
        raise ShapeError(f"the query has no {representation} vector. Encode it with outputs={representation!r}")


def _check(manifest: Manifest, representation: Representation, vectors: Encoded, names: Sequence[str]) -> None:
    if representation == "dense" and vectors.dense is not None:
        _check_width(vectors.dense, manifest.dense_dim, "dense")
        _check_rows(_finite_rows(vectors.dense), names, "dense")
    elif representation == "sparse" and vectors.sparse is not None:
        _check_sparse(manifest, vectors.sparse, names)
    elif vectors.multi is not None:
        _check_multi(manifest, vectors.multi, names)


def _check_width(rows: Floats, expected: int, what: str) -> None:
    if rows.ndim != 2 or rows.shape[1] != expected:
        raise ShapeError(
            f"{what} vectors have shape {rows.shape}, the collection keeps {expected} dimensions. "
            "Encode with the model of the collection, or build a new collection"
        )


def _check_rows(good: Bools, names: Sequence[str], what: str) -> None:
    if not good.all():
        raise NumericalError(
            f"{names[int(np.argmin(good))]}: NaN or infinity in its {what} vector. Nothing of this call was stored; "
            'encode again, with precision="float32" if the model ran in half precision'
        )


def _check_multi(manifest: Manifest, multi: Ragged, names: Sequence[str]) -> None:
    _check_width(multi.rows, manifest.multi_dim, "multi")
    empty = multi.lengths == 0
    if empty.any():
        raise ShapeError(f"{names[int(np.argmax(empty))]}: no token vectors. Leave out texts without tokens")
    _check_rows(_every_in_run(_finite_rows(multi.rows), multi.offsets), names, "multi")


def _check_sparse(manifest: Manifest, sparse: Sparse, names: Sequence[str]) -> None:
    if sparse.vocab != manifest.vocab:
        raise ShapeError(
            f"sparse weights are over {sparse.vocab} terms, the collection keeps {manifest.vocab}. "
            "Encode with the model of the collection, or build a new collection"
        )
    _check_rows(_every_in_run(np.isfinite(sparse.values), sparse.offsets), names, "sparse")
    good = (sparse.values > 0) & (sparse.indices >= 0) & (sparse.indices < sparse.vocab)
    starts = sparse.offsets[:-1][np.diff(sparse.offsets) > 0]
    rising = np.diff(sparse.indices, prepend=-1) > 0
    rising[starts] = True
    fine = _every_in_run(good & rising, sparse.offsets)
    if not fine.all():
        raise ShapeError(
            f"{names[int(np.argmin(fine))]}: sparse ids must rise within [0, {sparse.vocab}) and weights be positive. "
            "Build the rows with Sparse.of"
        )


def _finite_rows(rows: Floats) -> Bools:
    finite: Bools = np.logical_and.reduce(np.isfinite(rows), axis=1)
    return finite


def _every_in_run(good: Bools, offsets: Ints) -> Bools:
    """(n,) whether all of each run are good; empty runs are."""
    bad = np.zeros(len(good) + 1, dtype=np.int64)
    np.cumsum(~good, out=bad[1:])
    fine: Bools = np.asarray(bad[offsets[1:]] == bad[offsets[:-1]])
    return fine


def batches(sizes: Sequence[int], limit_bytes: int) -> Iterator[slice]:
    """Consecutive runs whose sizes add up to at most `limit_bytes`, and at least one item each."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit_bytes:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def sizes_bytes(manifest: Manifest, chunks: Sequence[Chunk], vectors: Encoded) -> list[int]:
    """About how many bytes each chunk takes in a write: raw float32 vectors, text and a little of the rest."""
    sizes = np.array([4 * len(chunk.text) + 1024 for chunk in chunks], dtype=np.int64)
    for name in stored(manifest):
        if name == "dense":
            sizes += 4 * manifest.dense_dim
        elif name == "sparse" and vectors.sparse is not None:
            sizes += 8 * np.diff(vectors.sparse.offsets)
        elif vectors.multi is not None:
            sizes += 4 * manifest.multi_dim * vectors.multi.lengths
    return [int(size) for size in sizes]


def unknown_chunk(name: str) -> UnknownChunkError:
    """The error for an id that is not stored."""
    return UnknownChunkError(f"no chunk {name!r} in this collection. Take ids from a search or from scroll()", name)
