"""Pairs: query i against text i, by every representation that both have (FlagEmbedding `compute_score`).

The reference scores every query of a batch against every text of it and keeps the diagonal; here only the pairs are.
"""

from __future__ import annotations

import numpy as np

from threefold.errors import ShapeError
from threefold.score.multi import maxsim
from threefold.score.sparse import check_vocab
from threefold.types import Encoded, Floats, Ragged, Representation


def pair_scores(queries: Encoded, texts: Encoded) -> dict[Representation, Floats]:
    """The raw scores of n pairs, ready for `weighted_sum`.

    queries, texts  n of each, from the same model
    return          (n,) float32 by representation
    """
    if len(queries) != len(texts):
        raise ShapeError(f"{len(queries)} queries but {len(texts)} texts; a pair has one of each")
    scores: dict[Representation, Floats] = {}
    if queries.dense is not None and texts.dense is not None:
        if queries.dense.shape != texts.dense.shape:
            raise ShapeError(
                f"dense queries have {queries.dense.shape[1]} dimensions, the texts have {texts.dense.shape[1]}. "
                "Encode both with the same model"
            )
        scores["dense"] = np.einsum("nd,nd->n", queries.dense, texts.dense, dtype=np.float32)
    if queries.sparse is not None and texts.sparse is not None:
        check_vocab(queries.sparse.vocab, texts.sparse.vocab)
        products = queries.sparse.to_scipy() * texts.sparse.to_scipy()
        scores["sparse"] = np.asarray(products.sum(axis=1), dtype=np.float32)
    if queries.multi is not None and texts.multi is not None:
        pairs = zip(queries.multi, texts.multi, strict=True)
        late = [maxsim(query, Ragged.of([text]))[0] for query, text in pairs]
        scores["multi"] = np.array(late, dtype=np.float32)
    return scores
