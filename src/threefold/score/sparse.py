"""Sparse score: the sum over shared terms of the products of their weights.

    s_l(q, p) = sum over t in q and p of w_q(t) * w_p(t)       M3-Embedding (arXiv 2402.03216), section 3.1

The reference computes it term by term (FlagEmbedding `compute_lexical_matching_score`); here it is one product
of compressed sparse rows, so that no row of vocabulary length is ever made per document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from threefold.errors import ShapeError
from threefold.types import Floats, Ints, Sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def sparse_scores(query: tuple[Ints, Floats], docs: Sparse) -> Floats:
    """One query against every document.

    query   (ids, weights) as `Sparse[i]` gives them; ids distinct
    return  (n,) float32; 0 where no term is shared
    """
    ids, weights = query
    if ids.shape != weights.shape or ids.ndim != 1:
        raise ShapeError(f"a sparse query is (ids, weights) of one length; got shapes {ids.shape}, {weights.shape}")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < docs.vocab:
        raise ShapeError(
            f"the query has term ids from {ids.min()} to {ids.max()}, the documents' vocabulary has {docs.vocab}. "
            "Encode both with the same model."
        )
    if len(np.unique(ids)) != len(ids):
        raise ShapeError("a sparse query names a term twice; merge its weights (the definition takes the maximum)")
    wanted = np.zeros(docs.vocab, dtype=np.float32)
    wanted[ids] = weights
    scores: Floats = docs.to_scipy() @ wanted
    return scores.astype(np.float32, copy=False)


def postings(docs: Sparse) -> csr_array:
    """(v, n) the documents of every term: make it once, and score blocks of queries with `sparse_matrix`."""
    return docs.to_scipy().T.tocsr()


def sparse_matrix(queries: Sparse, docs: Sparse | csr_array) -> Floats:
    """Every query against every document.

    docs    n documents, or their `postings`
    return  (m, n) float32; the caller bounds the memory by the number of queries it passes
    """
    terms = postings(docs) if isinstance(docs, Sparse) else docs
    check_vocab(queries.vocab, terms.shape[0])
    scores: Floats = (queries.to_scipy() @ terms).toarray()
    return scores.astype(np.float32, copy=False)


def check_vocab(queries: int, docs: int) -> None:
    """Refuse ids of two vocabularies."""
    if queries != docs:
        raise ShapeError(
            f"the queries have a vocabulary of {queries} terms, the documents of {docs}. "
            "Encode both with the same model."
        )
