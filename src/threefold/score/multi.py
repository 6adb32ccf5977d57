"""Multi-vector score ("MaxSim", late interaction): the mean over query tokens of the best match.

    s_c(q, p) = 1/t * sum over i of max over j of <q_i, p_j>     M3-Embedding (arXiv 2402.03216), section 3.1

Rows carry no padding, so a pad vector can never win the maximum: up to rounding, a document scores the same
alone and in any batch (the reference multiplies by a mask first, which lifts negative similarities to 0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from threefold.errors import ShapeError
from threefold.types import Floats, Ints, Ragged

#: Similarities that exist at a time: 4 Mi of 4 bytes. A document longer than a block is a block of its own.
BLOCK_SIMILARITIES = 1 << 22
#: Query tokens that are compared at a time.
BLOCK_QUERY_TOKENS = 4_096


def maxsim(query: Floats, docs: Ragged) -> Floats:
    """One query against every document.

    query   (t, d) unit rows, t >= 1
    docs    n documents, unit rows, float32 or float16
    return  (n,) float32 in [-1, 1]; -inf for a document without tokens

    Memory beyond the inputs: blocks of `BLOCK_SIMILARITIES`, or min(t, 4,096) * longest document where that is more.
    """
    if query.ndim != 2 or len(query) == 0:
        raise ShapeError(f"a multi-vector query must be (tokens, dim) with at least one token; got {query.shape}")
    _check_dim(query.shape[1], docs.dim)
    rows = query.astype(np.float32, copy=False)
    total = np.zeros(len(docs), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_QUERY_TOKENS):
        _add_best(rows[start : start + BLOCK_QUERY_TOKENS], docs, total)
    scores: Floats = total / np.float32(len(rows))
    return scores


def maxsim_matrix(queries: Ragged, docs: Ragged) -> Floats:
    """Every query against every document: the same figures as `maxsim`, by wide products.

    return  (m, n) float32; -inf for a document without tokens; the caller bounds m
    """
    _check_dim(queries.dim, docs.dim)
    if np.any(queries.lengths == 0):
        empty = int(np.argmin(queries.lengths))
        raise ShapeError(f"query {empty} has no tokens; the mean over its tokens is not defined")
    scores = np.empty((len(queries), len(docs)), dtype=np.float32)
    for first, last in blocks(queries.offsets, BLOCK_QUERY_TOKENS):
        starts = queries.offsets[first : last + 1] - queries.offsets[first]
        rows = queries.rows[queries.offsets[first] : queries.offsets[last]]
        columns = np.ascontiguousarray(rows.astype(np.float32, copy=False).T)  # (d, tq)
        for j, doc in enumerate(docs):
            if len(doc) == 0:
                scores[first:last, j] = -np.inf
                continue
            best = (doc.astype(np.float32, copy=False) @ columns).max(axis=0)  # (tq,)
            scores[first:last, j] = np.add.reduceat(best, starts[:-1])
    return scores / queries.lengths.astype(np.float32)[:, np.newaxis]


def maxsim_pairs(query: Floats, docs: Ragged, candidates: Ints) -> Floats:
    """One query against the documents `candidates`, without scoring the rest.

    return  (len(candidates),) float32, in their order
    """
    return maxsim(query, docs.take(candidates))


def blocks(offsets: Ints, most: int) -> Iterator[tuple[int, int]]:
    """Cut runs into consecutive groups [first, last) of at most `most` rows, or of one run that is longer."""
    first, n = 0, len(offsets) - 1
    while first < n:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _add_best(query: Floats, docs: Ragged, total: Floats) -> None:
    """Add to `total` (n,) the sum over these query tokens of the best match."""
    filled = np.flatnonzero(docs.lengths)
    total[docs.lengths == 0] = -np.inf
    starts = docs.offsets[:-1][filled]
    ends = np.append(starts, docs.offsets[-1])  # documents without tokens take no rows: the rest are adjacent
    for first, last in blocks(ends, max(BLOCK_SIMILARITIES // len(query), 1)):
        rows = docs.rows[ends[first] : ends[last]].astype(np.float32, copy=False)
        similarity = query @ rows.T  # (t, rows)
        best = np.maximum.reduceat(similarity, starts[first:last] - ends[first], axis=1)  # (t, documents)
        total[filled[first:last]] += best.sum(axis=0)


def _check_dim(query: int, docs: int) -> None:
    if query != docs:
        raise ShapeError(
            f"query has {query} dimensions, the documents have {docs}. "
            "Encode both with the same model, or rebuild the index with the current one."
        )
