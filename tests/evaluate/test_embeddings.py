from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from threefold.errors import EvaluationError
from threefold.evaluate.embeddings import (
    accuracy,
    clustering,
    kmeans,
    logistic,
    similarity,
    train_and_test,
    v_measure,
)
from threefold.types import Floats


def blobs(per_label: int = 20, labels: int = 3, spread: float = 0.3, seed: int = 0) -> tuple[Floats, list[str]]:
    rng = np.random.default_rng(seed)
    rows = np.eye(labels, 6).repeat(per_label, axis=0) + spread * rng.standard_normal((labels * per_label, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), [
        f"l{i}" for i in range(labels) for _ in range(per_label)
    ]


def test_similarity_by_hand() -> None:
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    between = np.array([0.6, 0.8])
    first, second = np.array([east, east, east]), np.array([east, between, north])  # cosines 1, 0.6, 0
    assert similarity(first, second, [5, 3, 1]) == pytest.approx(1)
    assert similarity(first, second, [1, 3, 5]) == pytest.approx(-1)
    assert similarity(first, second, [5, 1, 3]) == pytest.approx(1 - 6 * 2 / (3 * 8))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert similarity(first, first, [1, 2, 3]) == 0
    with pytest.raises(EvaluationError, match="different scores"):
        similarity(first, second, [1, 1, 1])


@pytest.mark.parametrize(
    ("labels", "clusters", "expected"),
    [
        ("aabb", "0011", 1.0),
        ("aabb", "1100", 1.0),
        ("aabb", "0000", 0.0),
        ("aabb", "0101", 0.0),
        ("aaaa", "0000", 1.0),
        ("aabb", "0012", 2 / (1 + 1.5)),  # homogeneity 1; completeness 1 - (log 2)/2 / (3/2 log 2) = 2/3
    ],
)
def test_v_measure_by_hand(labels: str, clusters: str, expected: float) -> None:
    assert v_measure(list(labels), list(clusters)) == pytest.approx(expected)


def test_clusters_that_are_apart_are_found() -> None:
    vectors, labels = blobs(spread=0.05)
    assert clustering(vectors, labels) == pytest.approx(1)
    assert kmeans(vectors, 3).tolist() == kmeans(vectors, 3).tolist()
    assert len(set(kmeans(np.ones((4, 2)), 3).tolist())) == 1  # nothing to tell apart
    with pytest.raises(EvaluationError, match="more texts than labels"):
        clustering(vectors[:3], ["a", "b", "c"])


def test_accuracy() -> None:
    vectors, labels = blobs(spread=0.05)
    training = train_and_test([str(i) for i in range(60)], labels)
    assert training.sum() == 30
    assert accuracy(vectors, labels, training) == 1
    unseen = [*labels[:-1], "new"]
    training[-1] = False
    assert accuracy(vectors, unseen, training) == pytest.approx(1 - 1 / (~training).sum())
    with pytest.raises(EvaluationError, match="at least two labels"):
        accuracy(vectors, ["a"] * 60, training)


def test_copies_of_a_text_are_on_one_side() -> None:
    texts = [f"text {i}" for i in range(30)] * 2
    training = train_and_test(texts, ["a", "b"] * 30)
    assert training[:30].tolist() == training[30:].tolist()
    assert 12 <= training[:30].sum() <= 18
    assert train_and_test(["x", "y", "x"], ["a", "a", "b"]).tolist() in ([True, False, True], [True, True, True])


def test_equal_to_scikit_learn() -> None:
    linear: Any = pytest.importorskip("sklearn.linear_model")
    metrics: Any = pytest.importorskip("sklearn.metrics")
    cluster: Any = pytest.importorskip("sklearn.cluster")
    vectors, labels = blobs(spread=0.6, seed=1)
    numbers = np.array([int(label[1:]) for label in labels])
    weights, offsets = logistic(vectors, numbers, 3)
    theirs = linear.LogisticRegression(max_iter=1_000, tol=1e-8).fit(vectors, numbers)
    np.testing.assert_allclose(weights.T, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(offsets - offsets.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)
    found = kmeans(vectors, 3)
    assert v_measure(labels, found.tolist()) == pytest.approx(metrics.v_measure_score(labels, found))
    best = cluster.KMeans(3, n_init=20, random_state=0).fit(vectors)
    ours = sum(((vectors[found == i] - vectors[found == i].mean(0)) ** 2).sum() for i in range(3))
    assert ours <= best.inertia_ * 1.02
