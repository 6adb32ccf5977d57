from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.cluster import AgglomerativeClustering

from threefold.errors import InputError
from threefold.score.multi import maxsim
from threefold.score.pool import MOST_IN_TREE, pooled
from threefold.types import Floats, Ragged


def units(n: int, dim: int = 8, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    made: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def test_those_that_are_alike_become_the_direction_of_their_mean() -> None:
    a, b, c, d = [1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, -0.6]
    (found,) = pooled(Ragged.of([np.array([a, c, b, d], np.float32)]), 2)
    mean = np.array([0.9, 0.3]) / np.hypot(0.9, 0.3)
    np.testing.assert_allclose(sorted(found.tolist()), sorted([mean.tolist(), (-mean).tolist()]), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_the_groups_are_those_of_wards_tree(factor: int) -> None:
    rows = units(31)
    (found,) = pooled(Ragged.of([rows]), factor)
    labels = AgglomerativeClustering(-(-31 // factor), linkage="ward").fit_predict(rows)
    sums = np.stack([rows[labels == one].sum(axis=0) for one in np.unique(labels)])
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-6)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    factor=st.integers(1, 16),
    values=arrays.arrays(np.float32, (45, 3), elements=st.sampled_from([-1.0, 0.0, 0.25, 1.0])),
)
def test_how_many_are_left(lengths: list[int], factor: int, values: Floats) -> None:
    given_rows = values[: sum(lengths)]
    multi = Ragged(given_rows, np.cumsum([0, *lengths]))
    found = pooled(multi, factor)
    most = [-(-length // factor) for length in lengths]  # fewer where vectors are equal
    assert all(min(n, 1) <= k <= m for n, k, m in zip(lengths, found.lengths, most, strict=True))
    for one, length, count in zip(found, lengths, most, strict=True):
        norms = np.linalg.norm(one, axis=1)
        assert count == length or np.all(np.isclose(norms, 1, atol=1e-3) | (norms == 0))


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    one, other = units(20), units(33, seed=1)
    together = pooled(Ragged.of([other, one]), 3)
    np.testing.assert_array_equal(together[1], pooled(Ragged.of([one]), 3)[0])


def test_a_long_text_is_pooled_in_parts() -> None:
    rows = units(MOST_IN_TREE + 10)
    (found,) = pooled(Ragged.of([rows]), 2)
    (first,) = pooled(Ragged.of([rows[:MOST_IN_TREE]]), 2)
    np.testing.assert_array_equal(found[: len(first)], first)
    assert len(found) == (MOST_IN_TREE + 10) // 2


def test_types_and_what_needs_no_pooling() -> None:
    multi = Ragged.of([units(6).astype(np.float16)])
    assert pooled(multi, 2).rows.dtype == np.float16
    assert pooled(multi, 1) is multi
    assert len(pooled(Ragged.of([], 4), 2)) == 0
    for factor in (0, 2.5):
        with pytest.raises(InputError, match=f"at least 1; got {factor}"):
            pooled(multi, factor)  # type: ignore[arg-type]


def test_what_has_no_direction() -> None:
    a, b = [1.0, 0.0], [-1.0, 0.0]
    (found,) = pooled(Ragged.of([np.array([a, b], np.float32)]), 2)
    assert found.tolist() == [a]
    broken = np.array([a, b, [np.nan, 1.0]], np.float32)  # refused by the store, by the name of its chunk
    np.testing.assert_array_equal(pooled(Ragged.of([broken]), 2)[0], broken)


def test_scores_stay_near() -> None:
    """Ten directions, six tokens of each with a little noise: one vector for each says the same."""
    rng = np.random.default_rng(0)
    rows = np.repeat(units(10, 32), 6, axis=0) + 0.02 * rng.standard_normal((60, 32)).astype(np.float32)
    multi = Ragged.of([rows / np.linalg.norm(rows, axis=1, keepdims=True)])
    query = units(10, 32)
    assert maxsim(query, pooled(multi, 6))[0] == pytest.approx(float(maxsim(query, multi)[0]), abs=0.03)
