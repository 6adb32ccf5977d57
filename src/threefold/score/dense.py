"""Dense score: the inner product of two vectors, which is the cosine since the encoder makes unit rows.

s_d(q, p) = <e_q, e_p>          M3-Embedding (arXiv 2402.03216), section 3.1
"""

from __future__ import annotations

import numpy as np

from threefold.errors import ShapeError
from threefold.types import Floats

#: Rows of documents that are turned into float32 at a time when they are stored in less.
BLOCK_ROWS = 65_536


def dense_scores(query: Floats, docs: Floats) -> Floats:
    """One query against every document.

    query   (d,)
    docs    (n, d) float32, or float16, which is widened block by block
    return  (n,) float32
    """
    if query.ndim != 1:
        raise ShapeError(f"a dense query must be (dim,); got shape {query.shape}. Use dense_matrix for many queries")
    scores: Floats = dense_matrix(query[np.newaxis], docs)[0]
    return scores


def dense_matrix(queries: Floats, docs: Floats) -> Floats:
    """Every query against every document.

    queries  (m, d)
    docs     (n, d) float32 or float16
    return   (m, n) float32; the caller bounds the memory by the number of queries it passes
    """
    for name, rows in (("queries", queries), ("docs", docs)):
        if rows.ndim != 2:
            raise ShapeError(f"dense {name} must be (rows, dim); got shape {rows.shape}")
    if queries.shape[1] != docs.shape[1]:
        raise ShapeError(
            f"dense query has {queries.shape[1]} dimensions, the documents have {docs.shape[1]}. "
            "Encode both with the same model, or rebuild the index with the current one."
        )
    left = queries.astype(np.float32, copy=False)
    if docs.dtype == np.float32:
        scores: Floats = left @ docs.T
        return scores
    out = np.empty((len(queries), len(docs)), dtype=np.float32)
    for start in range(0, len(docs), BLOCK_ROWS):
        out[:, start : start + BLOCK_ROWS] = left @ docs[start : start + BLOCK_ROWS].astype(np.float32).T
    return out
