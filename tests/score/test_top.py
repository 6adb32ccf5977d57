from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InputError, NumericalError, ShapeError
from threefold.score import tie_order, top_k


def test_ties_go_to_the_smaller_id_also_at_the_border() -> None:
    ids = ["d", "b", "c", "a"]
    scores = np.array([1.0, 1.0, 2.0, 1.0])
    ties = tie_order(ids)
    assert ties.tolist() == [3, 1, 2, 0]
    assert [ids[i] for i in top_k(scores, 2, ties)] == ["c", "a"]
    assert [ids[i] for i in top_k(scores, 9, ties)] == ["c", "a", "b", "d"]


def test_without_places_the_earlier_one_wins() -> None:
    assert top_k(np.array([1.0, 1.0, 2.0, 1.0]), 3).tolist() == [2, 0, 1]


def test_what_cannot_match_is_not_found() -> None:
    assert top_k(np.array([-np.inf, 0.5, -np.inf]), 3, np.arange(3)).tolist() == [1]
    assert top_k(np.array([]), 3, np.arange(0)).tolist() == []


@given(st.lists(st.integers(-2, 2), max_size=30), st.integers(1, 31))
def test_equals_a_full_sort(values: list[int], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    ties = np.random.default_rng(0).permutation(len(values))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], ties[i]))[:k]
    assert top_k(scores, k, ties).tolist() == expected


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="k must be at least 1; got 0"):
        top_k(np.ones(2), 0, np.arange(2))
    with pytest.raises(NumericalError, match="score 1 is not a number"):
        top_k(np.array([1.0, np.nan]), 1, np.arange(2))
    with pytest.raises(ShapeError, match=r"\(2,\) scores but \(3,\) places"):
        top_k(np.ones(2), 1, np.arange(3))
