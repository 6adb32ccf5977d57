from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from tests.analyze.corpora import blobs, corpus, random_corpus, unit

from threefold.analyze import duplicates, neighbours, outliers
from threefold.analyze.corpus import centred
from threefold.analyze.neighbours import nearest
from threefold.analyze.outliers import NEIGHBOURS
from threefold.errors import InputError


@pytest.mark.parametrize("block", [1, 90, 10_000])
def test_the_nearest_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rows = random_corpus(40).dense
    distances, numbers = NearestNeighbors(n_neighbors=6, metric="cosine").fit(rows).kneighbors()
    said: list[tuple[int, int]] = []
    cosines, found = nearest(rows, 6, lambda done, total: said.append((done, total)))
    np.testing.assert_array_equal(found, numbers)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)
    assert said[-1] == (40, 40)


def test_outliers_by_the_distance_to_neighbours() -> None:
    given = random_corpus(50)
    rows = centred(given.dense)
    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(rows).kneighbors()
    want = distances.mean(axis=1)
    found = outliers(given, 50)
    assert [one.number for one in found] == np.argsort(-want, kind="stable").tolist()
    np.testing.assert_allclose([one.score for one in found], np.sort(want)[::-1], atol=1e-6)
    alike = 1 - pairwise_distances(rows, metric="cosine") - 2 * np.eye(50)
    assert [one.nearest for one in found] == [int(alike[one.number].argmax()) for one in found]


def test_a_stranger_is_found() -> None:
    (first,) = outliers(blobs([20, 20, 1]), 1)
    assert first.number == 40


def test_what_has_no_outliers_is_refused() -> None:
    with pytest.raises(InputError, match="2 items have no outliers"):
        outliers(random_corpus(2))
    with pytest.raises(InputError, match="at least 1; got 0 and 5"):
        outliers(random_corpus(5), 0)
    assert len(outliers(random_corpus(3), 10)) == 3


@given(
    st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.3, 0.7, 0.95, 1.0]), st.sampled_from([1, 50, 9999])
)
def test_what_remains_is_apart_and_what_went_is_near_to_it(seed: int, n: int, threshold: float, block: int) -> None:
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((n, 3)))[rng.integers(0, n, n)]  # some are there twice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        found = duplicates(corpus(rows), threshold)
    gone = {one.number for one in found}
    stays = [i for i in range(n) if i not in gone]
    alike = rows[stays] @ rows[stays].T - 2 * np.eye(len(stays))
    assert (alike < threshold).all()
    for one in found:
        assert one.kept in stays
        assert one.kept < one.number
        assert one.similarity == pytest.approx(float(rows[one.number] @ rows[one.kept]), abs=1e-5)
        assert one.similarity >= threshold - 2e-6


def test_equal_texts_are_duplicates_even_at_one() -> None:
    rows = unit(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    (one,) = duplicates(corpus(rows), 1.0)
    assert (one.number, one.kept) == (1, 0)
    for threshold in (0.0, 1.5):
        with pytest.raises(InputError, match=f"a cosine above 0 and at most 1.*got {threshold}"):
            duplicates(corpus(rows), threshold)


def test_rows_that_are_not_quite_units_are_compared_with_others_alone() -> None:
    """An item need not be like itself to be like another."""
    given = corpus(np.outer([1.0004, 0.9997], unit(np.ones((1, 8)))).astype(np.float32))
    assert [(one.number, one.kept) for one in duplicates(given, 1.0)] == [(1, 0)]


def test_where_all_are_equal_none_is_an_outlier() -> None:
    given = corpus(np.tile(unit(np.random.default_rng(0).standard_normal((1, 64))), (11, 1)))
    assert [(one.number, one.score) for one in outliers(given, 2)] == [(0, 0.0), (1, 0.0)]
