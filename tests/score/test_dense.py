from __future__ import annotations

import numpy as np
import pytest

from threefold.errors import ShapeError
from threefold.score import dense, dense_matrix, dense_scores


def test_value_worked_by_hand() -> None:
    query = np.array([0.6, 0.8], np.float32)
    docs = np.array([[1, 0], [0, 1], [0.6, 0.8], [-0.8, 0.6]], np.float32)
    # 0.6 * 1; 0.8 * 1; 0.36 + 0.64; -0.48 + 0.48
    assert dense_scores(query, docs) == pytest.approx([0.6, 0.8, 1.0, 0.0])


def test_the_matrix_is_the_rows() -> None:
    rng = np.random.default_rng(0)
    queries, docs = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)
    matrix = dense_matrix(queries, docs)
    assert matrix.dtype == np.float32
    for row, query in zip(matrix, queries, strict=True):
        assert row == pytest.approx(dense_scores(query, docs), abs=1e-6)


def test_float16_is_widened_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_ROWS", 2)
    docs = np.arange(10, dtype=np.float16).reshape(5, 2)
    assert dense_scores(np.array([1, 10], np.float32), docs) == pytest.approx([10, 32, 54, 76, 98])


def test_no_documents() -> None:
    assert dense_scores(np.ones(4, np.float32), np.zeros((0, 4), np.float32)).shape == (0,)


def test_a_query_from_another_model_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="query has 3 dimensions, the documents have 2"):
        dense_scores(np.ones(3, np.float32), np.ones((1, 2), np.float32))


def test_a_matrix_as_query_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"must be \(dim,\); got shape \(1, 2\)"):
        dense_scores(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    with pytest.raises(ShapeError, match="docs must be"):
        dense_matrix(np.ones((1, 2), np.float32), np.ones(2, np.float32))
