from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from threefold.errors import ShapeError
from threefold.score import dense_matrix, maxsim, pair_scores, sparse_matrix
from threefold.types import Encoded, Floats, Ragged, Sparse


def encoded(
    dense: Sequence[Sequence[float]], sparse: Sequence[Mapping[int, float]], multi: Sequence[Floats], vocab: int = 10
) -> Encoded:
    rows = np.array(dense, np.float32)
    return Encoded(rows, Sparse.of(sparse, vocab), Ragged.of(multi), np.ones(len(rows), np.int32), rows[:, 0] > 9)


EAST, NORTH = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)


def test_values_worked_by_hand() -> None:
    both = np.concatenate([EAST, NORTH])
    queries = encoded([[1, 0], [0, 1]], [{1: 0.5, 2: 2.0}, {3: 1.0}], [both, NORTH])
    texts = encoded([[0.6, 0.8], [0.6, 0.8]], [{2: 0.25, 4: 1.0}, {}], [EAST, both])
    scores = pair_scores(queries, texts)
    assert list(scores) == ["dense", "sparse", "multi"]
    assert scores["dense"] == pytest.approx([0.6, 0.8])
    assert scores["sparse"] == pytest.approx([0.5, 0.0])  # 2.0 * 0.25; nothing shared
    assert scores["multi"] == pytest.approx([0.5, 1.0])  # (1 + 0) / 2; 1
    assert {values.dtype for values in scores.values()} == {np.dtype(np.float32)}


def test_it_is_the_diagonal_of_all_against_all() -> None:
    rng = np.random.default_rng(0)

    def some(seed: int) -> Encoded:
        own = np.random.default_rng(seed)
        sparse = [{int(i): float(own.random()) for i in own.choice(10, 4, replace=False)} for _ in range(6)]
        multi = [own.normal(size=(int(n), 2)).astype(np.float32) for n in rng.integers(1, 9, 6)]
        return encoded(own.normal(size=(6, 2)).tolist(), sparse, multi)

    queries, texts = some(1), some(2)
    scores = pair_scores(queries, texts)
    assert queries.dense is not None
    assert texts.dense is not None
    assert queries.sparse is not None
    assert texts.sparse is not None
    assert queries.multi is not None
    assert texts.multi is not None
    assert scores["dense"] == pytest.approx(np.diag(dense_matrix(queries.dense, texts.dense)), abs=1e-6)
    assert scores["sparse"] == pytest.approx(np.diag(sparse_matrix(queries.sparse, texts.sparse)), abs=1e-6)
    for i, query in enumerate(queries.multi):
        assert scores["multi"][i] == maxsim(query, texts.multi)[i]


def test_what_one_side_lacks_is_not_scored_and_nothing_is_no_error() -> None:
    queries = encoded([[1, 0]], [{1: 0.5}], [EAST])
    assert list(pair_scores(queries, queries.only("dense", "multi"))) == ["dense", "multi"]
    none = queries.take([])
    assert {name: len(values) for name, values in pair_scores(none, none).items()} == {
        "dense": 0, "sparse": 0, "multi": 0,
    }  # fmt: skip


def test_what_does_not_belong_together_is_refused() -> None:
    queries = encoded([[1, 0]], [{1: 0.5}], [EAST])
    with pytest.raises(ShapeError, match="1 queries but 0 texts"):
        pair_scores(queries, queries.take([]))
    with pytest.raises(ShapeError, match="dense queries have 2 dimensions, the texts have 3"):
        pair_scores(queries, encoded([[1, 0, 0]], [{1: 0.5}], [EAST]))
    with pytest.raises(ShapeError, match="vocabulary of 10 terms, the documents of 11"):
        pair_scores(queries, encoded([[1, 0]], [{1: 0.5}], [EAST], vocab=11))
    with pytest.raises(ShapeError, match="query has 2 dimensions, the documents have 3"):
        pair_scores(queries, encoded([[1, 0]], [{1: 0.5}], [np.zeros((1, 3), np.float32)]))
