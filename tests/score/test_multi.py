from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import ShapeError
from threefold.score import maxsim, maxsim_matrix, maxsim_pairs, multi
from threefold.types import Floats, Ragged

EAST = np.array([[1, 0]], dtype=np.float32)


def ragged(*docs: Sequence[Sequence[float]]) -> Ragged:
    return Ragged.of([np.array(doc, dtype=np.float32).reshape(-1, 2) for doc in docs], dim=2)


def random_ragged(seed: int, lengths: Sequence[int], dim: int = 4) -> Ragged:
    rng = np.random.default_rng(seed)
    return Ragged.of([rng.normal(size=(n, dim)).astype(np.float32) for n in lengths], dim=dim)


def by_definition(query: Floats, doc: Floats) -> float:
    """FlagEmbedding `colbert_score`, one pair."""
    return float((query @ doc.T).max(axis=1).sum() / len(query)) if len(doc) else -np.inf


def test_value_worked_by_hand() -> None:
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    docs = ragged([[0.6, 0.8], [1, 0]], [[0, -1]])
    # first document: max(0.6, 1.0) = 1.0 and max(0.8, 0.0) = 0.8, mean 0.9; second: 0 and -1, mean -0.5
    assert maxsim(query, docs) == pytest.approx([0.9, -0.5])
    assert maxsim_matrix(Ragged.of([query, query[:1]]), docs) == pytest.approx(np.array([[0.9, -0.5], [1.0, 0.0]]))


@pytest.mark.parametrize("neighbour", [[], [[1.0, 0.0]], [[0.0, 1.0]] * 50], ids=["empty", "short", "long"])
def test_a_score_does_not_depend_on_the_batch(neighbour: list[list[float]]) -> None:
    """Every similarity is negative here, so one zero pad row would raise the score to 0."""
    opposite = [[-0.6, 0.8], [-0.8, 0.6]]
    assert maxsim(EAST, ragged(opposite))[0] == pytest.approx(-0.6)
    assert maxsim(EAST, ragged(opposite, neighbour))[0] == pytest.approx(-0.6)
    assert maxsim(EAST, ragged(neighbour, opposite))[1] == pytest.approx(-0.6)


def test_a_document_without_tokens_cannot_match() -> None:
    docs = ragged([], [[1, 0]], [], [])
    assert maxsim(EAST, docs).tolist() == [-np.inf, 1.0, -np.inf, -np.inf]
    assert maxsim_matrix(Ragged.of([EAST]), docs).tolist() == [[-np.inf, 1.0, -np.inf, -np.inf]]
    assert maxsim(EAST, ragged([])).tolist() == [-np.inf]
    assert maxsim(EAST, ragged()).shape == (0,)


@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_blocks_of_any_size_give_the_definition(lengths: list[int], queries: list[int], block: int, seed: int) -> None:
    docs, asked = random_ragged(seed, lengths), random_ragged(seed + 1, queries)
    expected = np.array([[by_definition(q, d) for d in docs] for q in asked]).reshape(len(queries), len(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi, "BLOCK_SIMILARITIES", block)
        patch.setattr(multi, "BLOCK_QUERY_TOKENS", 2)
        np.testing.assert_allclose(maxsim_matrix(asked, docs), expected, rtol=1e-5, atol=1e-6)
        for query, row in zip(asked, expected, strict=True):
            np.testing.assert_allclose(maxsim(query, docs), row, rtol=1e-5, atol=1e-6)


@given(st.permutations(range(5)), st.integers(0, 99))
def test_order_of_documents_and_of_tokens_does_not_matter(order: list[int], seed: int) -> None:
    docs, (query,) = random_ragged(seed, [3, 1, 4, 2, 5]), random_ragged(seed + 1, [5])
    expected = maxsim(query, docs)
    np.testing.assert_allclose(maxsim(query, docs.take(order)), expected[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maxsim(query[order], docs), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 99))
def test_more_tokens_in_a_document_never_lower_its_score(seed: int) -> None:
    (query, doc, more) = random_ragged(seed, [3, 4, 2])
    short, long = maxsim(query, Ragged.of([doc, np.concatenate([doc, more])]))
    assert long >= short - 1e-6


def test_pairs_score_only_the_candidates_in_their_order() -> None:
    docs, (query,) = random_ragged(3, [2, 3, 4, 5]), random_ragged(4, [3])
    everything = maxsim(query, docs)
    assert maxsim_pairs(query, docs, np.array([3, 0])) == pytest.approx(everything[[3, 0]])


def test_float16_vectors_are_scored_in_float32() -> None:
    docs = Ragged(np.array([[0.5, 0.25]], np.float16), np.array([0, 1]))
    assert maxsim(EAST, docs).dtype == np.float32
    assert maxsim_matrix(Ragged.of([EAST]), docs).tolist() == [[0.5]]


def test_a_query_from_another_model_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="query has 3 dimensions, the documents have 2"):
        maxsim(np.ones((1, 3), dtype=np.float32), ragged([[1, 0]]))


def test_a_query_without_tokens_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one token"):
        maxsim(np.zeros((0, 2), np.float32), ragged([[1, 0]]))
    with pytest.raises(ShapeError, match="query 1 has no tokens"):
        maxsim_matrix(ragged([[1, 0]], []), ragged([[1, 0]]))
