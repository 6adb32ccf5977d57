"""The published definitions of the three scores and of their fusion, in numpy, one file each.

They do not know where vectors come from. `q` and `docs` are representations of `threefold.types`.
"""

from __future__ import annotations

from threefold.score.dense import dense_matrix, dense_scores
from threefold.score.fuse import PUBLISHED, RRF_K, TRAINING, Weights, dbsf, rrf, weighted_sum
from threefold.score.multi import maxsim, maxsim_matrix, maxsim_pairs
from threefold.score.pairs import pair_scores
from threefold.score.sparse import postings, sparse_matrix, sparse_scores
from threefold.score.top import tie_order, top_k

__all__ = [
    "PUBLISHED",
    "RRF_K",
    "TRAINING",
    "Weights",
    "dbsf",
    "dense_matrix",
    "dense_scores",
    "maxsim",
    "maxsim_matrix",
    "maxsim_pairs",
    "pair_scores",
    "postings",
    "rrf",
    "sparse_matrix",
    "sparse_scores",
    "tie_order",
    "top_k",
    "weighted_sum",
]
