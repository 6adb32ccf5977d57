from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import ShapeError
from threefold.score import postings, sparse_matrix, sparse_scores
from threefold.types import Sparse

VOCAB = 12
WEIGHTS = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(0.015625, 2, width=32), max_size=8)


def of(*rows: dict[int, float]) -> Sparse:
    return Sparse.of(rows, VOCAB)


def by_definition(query: dict[int, float], doc: dict[int, float]) -> float:
    """FlagEmbedding `compute_lexical_matching_score`, one pair."""
    return sum(weight * doc[term] for term, weight in query.items() if term in doc)


def test_value_worked_by_hand() -> None:
    query = of({4: 0.5, 7: 0.25, 9: 1.0})
    docs = of({4: 0.5, 7: 1.0, 8: 3.0}, {9: 0.125}, {5: 1.0}, {})
    # 0.5 * 0.5 + 0.25 * 1.0; 1.0 * 0.125; nothing shared; nothing there
    assert sparse_scores(query[0], docs) == pytest.approx([0.5, 0.125, 0.0, 0.0])


@given(st.lists(WEIGHTS, min_size=1, max_size=4), st.lists(WEIGHTS, max_size=5))
def test_equals_the_definition_term_by_term(queries: list[dict[int, float]], docs: list[dict[int, float]]) -> None:
    expected = np.array([[by_definition(q, d) for d in docs] for q in queries]).reshape(len(queries), len(docs))
    scores = sparse_matrix(of(*queries), of(*docs))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(sparse_scores(of(*queries)[0], of(*docs)), expected[0], rtol=1e-5)


def test_postings_are_made_once_and_give_the_same() -> None:
    queries, docs = of({1: 1.0}, {2: 2.0}), of({1: 3.0, 2: 1.0}, {2: 5.0})
    assert sparse_matrix(queries, postings(docs)) == pytest.approx(np.array([[3, 0], [2, 10]]))


def test_no_documents_and_no_terms() -> None:
    assert sparse_scores(of({})[0], of({1: 1.0})).tolist() == [0.0]
    assert sparse_scores(of({1: 1.0})[0], of()).shape == (0,)
    assert sparse_matrix(of(), of({1: 1.0})).shape == (0, 1)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ShapeError, match="term ids from 1 to 12, the documents' vocabulary has 12"):
        sparse_scores((np.array([1, 12]), np.ones(2, np.float32)), of({1: 1.0}))
    with pytest.raises(ShapeError, match="vocabulary of 12 terms, the documents of 99"):
        sparse_matrix(of({1: 1.0}), Sparse.of([{1: 1.0}], 99))


def test_a_repeated_or_lopsided_query_is_refused() -> None:
    with pytest.raises(ShapeError, match="names a term twice"):
        sparse_scores((np.array([1, 1]), np.ones(2, np.float32)), of({1: 1.0}))
    with pytest.raises(ShapeError, match=r"one length; got shapes \(2,\), \(1,\)"):
        sparse_scores((np.array([1, 2]), np.ones(1, np.float32)), of({1: 1.0}))
