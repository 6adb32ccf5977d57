"""Token vectors as bytes, for engines that have no place for them: each row by itself, little-endian.

    float16  2 bytes per dimension
    int8     a float32 scale, then 1 byte per dimension; value = scale * byte
    int4     a float32 scale, then 1 byte per 2 dimensions, the first in the low half; value = scale * (half - 8)

The scale of a row is its largest magnitude by 127 or 7. Of unit rows, a product with a unit vector is off by about
0.001 (int8) and 0.02 (int4) at 16 dimensions, less by the root of their number at more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from threefold.config import MultiStorage
from threefold.errors import StoreCorruptError
from threefold.types import Floats

_SCALE_BYTES = 4


def row_bytes(dim: int, storage: MultiStorage) -> int:
    """What one token takes."""
    return {"float16": 2 * dim, "int8": _SCALE_BYTES + dim, "int4": _SCALE_BYTES + (dim + 1) // 2, "none": 0}[storage]


def to_bytes(rows: Floats, storage: MultiStorage) -> bytes:
    """(t, d) float rows as t * `row_bytes` bytes."""
    if storage == "float16":
        return rows.astype("<f2").tobytes()
    most = 127 if storage == "int8" else 7
    scales = np.abs(rows).max(axis=1, keepdims=True).astype("<f4") / np.float32(most)  # (t, 1)
    scales[scales == 0] = 1
    whole = np.rint(rows / scales).astype(np.int8)  # (t, d)
    body = whole.view(np.uint8) if storage == "int8" else _halves(whole)
    return np.hstack([scales.view(np.uint8), body]).tobytes()


def from_bytes(data: bytes, dim: int, storage: MultiStorage) -> Floats:
    """(t, d) float32: what `to_bytes` was given, but for the rounding."""
    width = row_bytes(dim, storage)
    if not data or len(data) % width:
        raise StoreCorruptError(
            f"token vectors of {len(data)} bytes are not rows of {width}: part of them is missing or damaged. "
            "Delete the document and add it again"
        )
    if storage == "float16":
        return np.frombuffer(data, "<f2").reshape(-1, dim).astype(np.float32)
    table = np.frombuffer(data, np.uint8).reshape(-1, width)
    scales = table[:, :_SCALE_BYTES].copy().view("<f4")  # (t, 1)
    body = table[:, _SCALE_BYTES:]
    whole = body.view(np.int8) if storage == "int8" else _wholes(body)[:, :dim]
    rows: Floats = np.multiply(whole, scales, dtype=np.float32)
    return rows


def _halves(whole: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(t, d) from -7 to 7 as (t, ceil(d / 2)) bytes."""
    shifted = np.zeros((len(whole), whole.shape[1] + whole.shape[1] % 2), np.uint8)
    shifted[:, : whole.shape[1]] = whole + 8
    packed: NDArray[np.uint8] = shifted[:, 0::2] | shifted[:, 1::2] << 4
    return packed


def _wholes(body: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The inverse of `_halves`, with an odd dimension filled up."""
    whole = np.empty((len(body), 2 * body.shape[1]), np.int8)
    whole[:, 0::2] = (body & 15).astype(np.int8) - 8
    whole[:, 1::2] = (body >> 4).astype(np.int8) - 8
    return whole
