"""The same figures from other people's code: FlagEmbedding for the scores, ranx for fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from threefold.score import maxsim, rrf, sparse_scores, weighted_sum
from threefold.score.fuse import MLDR_ALL
from threefold.types import REPRESENTATIONS, Ragged, Sparse

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # their imports warn
]


def reference() -> Any:
    """BGEM3FlagModel without its weights: the two scoring methods use none."""
    from FlagEmbedding import BGEM3FlagModel

    return BGEM3FlagModel.__new__(BGEM3FlagModel)


def test_sparse_equals_flagembedding() -> None:
    rng = np.random.default_rng(0)
    rows = [{int(i): float(rng.random()) for i in rng.choice(40, size=12, replace=False)} for _ in range(9)]
    query, docs = Sparse.of(rows[:1], 40), Sparse.of(rows[1:], 40)
    expected = [reference().compute_lexical_matching_score(query.row(0), docs.row(i)) for i in range(8)]
    assert sparse_scores(query[0], docs) == pytest.approx(expected, rel=1e-5)


def test_multi_equals_flagembedding() -> None:
    rng = np.random.default_rng(1)
    query, *docs = (rng.normal(size=(n, 16)).astype(np.float32) for n in (5, 3, 1, 30))
    expected = [float(reference().colbert_score(query, doc)) for doc in docs]
    assert maxsim(query, Ragged.of(docs)) == pytest.approx(expected, rel=1e-5)


def runs(seed: int) -> list[dict[str, dict[str, float]]]:
    """Three runs of two queries over the same ten documents, without ties."""
    rng = np.random.default_rng(seed)
    return [{q: {f"d{i}": float(s) for i, s in enumerate(rng.random(10))} for q in ("q1", "q2")} for _ in range(3)]


def test_rrf_equals_ranx() -> None:
    from ranx import Run, fuse

    ours = runs(2)
    theirs = fuse([Run(run) for run in ours], norm=None, method="rrf", params={"k": 60}).to_dict()
    for query in ("q1", "q2"):
        lists = [sorted(run[query], key=lambda id, run=run, q=query: -run[q][id]) for run in ours]  # type: ignore[misc]
        assert dict(rrf(lists)) == pytest.approx(theirs[query], abs=1e-9)


def test_weighted_sum_equals_ranx() -> None:
    from ranx import Run, fuse

    ours = runs(3)
    weights = tuple(MLDR_ALL[name] for name in REPRESENTATIONS)  # they add up to 1, ranx does not divide
    theirs = fuse([Run(run) for run in ours], norm=None, method="wsum", params={"weights": weights}).to_dict()
    for query in ("q1", "q2"):
        arrays = {name: np.array(list(run[query].values())) for name, run in zip(REPRESENTATIONS, ours, strict=True)}
        assert weighted_sum(arrays, MLDR_ALL) == pytest.approx([theirs[query][f"d{i}"] for i in range(10)], abs=1e-6)
