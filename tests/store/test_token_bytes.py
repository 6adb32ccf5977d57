"""Token vectors as bytes: sizes by hand, and what rounding costs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from tests.store.corpus import unit

from threefold.config import MultiStorage
from threefold.errors import StoreCorruptError
from threefold.store.token_bytes import from_bytes, row_bytes, to_bytes

STORAGES: list[MultiStorage] = [name for name in get_args(MultiStorage) if name != "none"]

#: |product with a unit vector - that of the vector itself|, times the root of the dimensions: 6 sigma.
TOLERANCE: dict[MultiStorage, float] = {"float16": 4e-3, "int8": 0.06, "int4": 1.2}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dim", [1, 2, 15, 16, 384, 1024])
def test_products_are_within_the_stated_tolerance(storage: MultiStorage, dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows, query = unit(rng.normal(size=(200, dim))), unit(rng.normal(size=(1, dim)))[0]
    data = to_bytes(rows, storage)
    assert len(data) == 200 * row_bytes(dim, storage)
    back = from_bytes(data, dim, storage)
    assert back.shape == rows.shape
    assert back.dtype == np.float32
    np.testing.assert_allclose(back @ query, rows @ query, atol=TOLERANCE[storage] / dim**0.5)


def test_rows_worked_by_hand() -> None:
    rows = np.array([[1.0, -0.4, 0.0], [0.0, 0.0, 0.0]], np.float32)
    assert [row_bytes(3, storage) for storage in STORAGES] == [6, 7, 6]
    large, none = np.float32(1 / 7).tobytes(), np.float32(1).tobytes()  # the scales; that of a row of zeros is 1
    # 7, -2.8 (rounded to -3) and 0, each plus 8, in halves of bytes, low first
    assert to_bytes(rows, "int4") == large + bytes([15 | 5 << 4, 8]) + none + bytes([8 | 8 << 4, 8])
    back = from_bytes(to_bytes(rows, "int4"), 3, "int4")
    assert back.ravel().tolist() == pytest.approx([1.0, -3 / 7, 0.0, 0.0, 0.0, 0.0])
    assert to_bytes(rows, "int8")[4:7] == np.array([127, -51, 0], np.int8).tobytes()  # -0.4 * 127 = -50.8


@pytest.mark.parametrize("storage", STORAGES)
def test_bytes_that_are_cut_are_refused(storage: MultiStorage) -> None:
    data = to_bytes(np.ones((2, 4), np.float32), storage)
    for damaged in (b"", data[:-1]):
        with pytest.raises(StoreCorruptError, match="are not rows of"):
            from_bytes(damaged, 4, storage)
