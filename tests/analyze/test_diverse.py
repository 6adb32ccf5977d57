from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from tests.analyze.corpora import blobs, corpus, random_corpus

from threefold.analyze import diverse, pick, vendi
from threefold.analyze.corpus import centred
from threefold.errors import InputError
from threefold.types import Floats


def test_the_vendi_score_counts_what_differs() -> None:
    assert vendi(np.tile(np.eye(5, dtype=np.float32)[0], (7, 1))) == pytest.approx(1.0)
    assert vendi(np.eye(5, dtype=np.float32)) == pytest.approx(5.0)
    assert vendi(np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]) == pytest.approx(2.0)
    with pytest.raises(InputError, match="no items have no diversity"):
        vendi(np.zeros((0, 3), np.float32))


@pytest.mark.parametrize("n", [5, 30])
def test_the_smaller_matrix_gives_the_same(n: int) -> None:
    """Against the definition: the von Neumann entropy of the n x n kernel, by another function of scipy."""
    rows = random_corpus(n, dim=12).dense.astype(np.float64)
    kernel = rows @ rows.T / n
    root = np.real(sqrtm(kernel))
    values = np.linalg.svd(root, compute_uv=False) ** 2
    values = values[values > 1e-12]
    assert vendi(rows.astype(np.float32)) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-4)


def covered(similar: Floats, picked: list[int]) -> float:
    return float(similar[picked].max(axis=0).sum())


@given(st.integers(0, 10_000), st.integers(1, 25))
def test_the_lazy_choice_is_the_greedy_one(seed: int, n: int) -> None:
    given_ = random_corpus(n, seed=seed)
    rows = centred(given_.dense)
    similar = np.maximum(rows @ rows.T, 0)
    picked = pick(given_, n)
    assert sorted(picked) == list(range(n))
    for step in range(n):
        others = [i for i in range(n) if i not in picked[:step]]
        best = max(covered(similar, [*picked[:step], i]) for i in others)
        assert covered(similar, picked[: step + 1]) == pytest.approx(best, abs=1e-4)


def test_each_group_has_one_that_stands_for_it() -> None:
    assert {int(i >= 9) + int(i >= 19) for i in pick(blobs([9, 10, 11]), 3)} == {0, 1, 2}


def test_of_very_many_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diverse, "MOST", 10)
    given = random_corpus(50)
    picked = pick(given, 10, seed=1)
    assert len(set(picked)) == 10
    assert picked == pick(given, 10, seed=1) != pick(given, 10, seed=2)
    with pytest.raises(InputError, match="11 of 50 items: give a number from 1 to 10"):
        pick(given, 11)


def test_what_cannot_be_picked_is_refused() -> None:
    for count in (0, 6):
        with pytest.raises(InputError, match=f"{count} of 5 items: give a number from 1 to 5"):
            pick(corpus(random_corpus(5).dense), count)
