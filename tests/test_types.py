"""Arrays of the three representations refuse what would be read as something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from threefold.errors import ShapeError
from threefold.types import Encoded, Ragged, Sparse

SPARSE = Sparse.of([{1: 1.0}, {}, {0: 2.0, 9: 3.0}], 10)
RAGGED = Ragged.of([np.full((length, 2), length, np.float32) for length in (1, 3, 2)])
THREE = Encoded(
    np.eye(3, dtype=np.float32), SPARSE, RAGGED, np.arange(3, dtype=np.int32), np.array([True, False, True])
)


@pytest.mark.parametrize("id", [-1, 10, 10**9])
def test_an_id_outside_the_vocabulary_would_read_other_memory(id: int) -> None:
    with pytest.raises(ShapeError, match="in a vocabulary of 10"):
        Sparse.of([{id: 1.0}], 10)


@pytest.mark.parametrize("row", [{"1": 1.0, 1: 2.0}, {1: float("nan")}, {1: float("inf")}])
def test_rows_that_mean_nothing_are_refused(row: Any) -> None:
    with pytest.raises(ShapeError, match="an id is there twice, or a weight is not finite"):
        Sparse.of([row], 10)


def test_numbers_and_masks_take_the_same_texts() -> None:
    for whole in (SPARSE, RAGGED, THREE):
        by_mask, by_number = whole.take(np.array([True, False, True])), whole.take([0, -1])
        assert len(by_mask) == len(by_number) == 2
    assert THREE.take(~THREE.truncated).tokens.tolist() == [1]
    assert RAGGED.take([2, 1]).rows[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert [SPARSE.take([2, 0]).row(i) for i in (0, 1)] == [SPARSE.row(2), SPARSE.row(0)]
    assert len(THREE.take([])) == 0


@pytest.mark.parametrize("order", [[0.0, 1.0], [True, False], [[0], [1]], ["0"]])
def test_what_is_neither_numbers_nor_a_mask_is_refused(order: Any) -> None:
    for whole in (SPARSE, RAGGED, THREE):
        with pytest.raises(ShapeError, match="expected the numbers of texts, or a mask of all 3"):
            whole.take(order)
