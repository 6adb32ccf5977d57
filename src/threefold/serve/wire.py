"""Arrays on the wire: JSON lists, base64, and the compact forms of sparse and multi vectors.

All binary is little endian, without a header, in the standard base64 alphabet with padding.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson
from starlette.responses import Response

from threefold.text.tokenizer import Tokenizer
from threefold.types import Floats, Ints

SparseFormat = Literal["arrays", "pairs", "map"]
MultiDtype = Literal["float32", "float16", "int8", "binary"]

#: int8 rows of unit vectors: a component of 1 is 127.
INT8_SCALE = 127.0
#: Numbers that are written in one go: some milliseconds.
PIECE = 65_536


class Base64:
    """Token vectors (t, d) as base64 of what `packed` makes of them, written when it is sent."""

    def __init__(self, rows: Floats, packed: Callable[[Floats], bytes]) -> None:
        self._rows = rows
        self._packed = packed

    def pieces(self) -> Iterator[bytes]:
        """As many rows at a time as have whole groups of three bytes, so that the pieces are one text."""
        step = max(PIECE // (self._rows.shape[1] or 1) // 3, 1) * 3
        for i in range(0, len(self._rows), step):
            yield base64.b64encode(self._packed(self._rows[i : i + step]))


def json_response(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """JSON of a body that may hold numpy arrays."""
    return Response(dumps(body), status, headers, media_type="application/json")


def dumps(body: Any) -> bytes:
    """JSON of a body that may hold numpy arrays; float32 in the fewest digits that give it back exactly."""
    return orjson.dumps(body, _whole, orjson.OPT_SERIALIZE_NUMPY)


def _whole(value: Any) -> str:
    assert isinstance(value, Base64)
    return b"".join(value.pieces()).decode()


def floats(array: Floats, *, as_base64: bool) -> Any:
    """A dense vector (d,) or token vectors (t, d) as JSON numbers or as base64 of float32."""
    plain = np.ascontiguousarray(array, dtype="<f4")
    return base64.b64encode(plain.tobytes()).decode() if as_base64 else plain


def sparse(row: tuple[Ints, Floats], how: SparseFormat, tokenizer: Tokenizer | None = None) -> Any:
    """Ids and weights, ascending by id. With a tokenizer, the spelling of each id as well (arrays only)."""
    ids, weights = row[0].tolist(), np.ascontiguousarray(row[1], dtype=np.float32)
    if how == "pairs":
        return [[id, weight] for id, weight in zip(ids, weights, strict=True)]
    if how == "map":
        return {str(id): weight for id, weight in zip(ids, weights, strict=True)}
    found = {"indices": ids, "values": weights}
    return found if tokenizer is None else {**found, "tokens": [tokenizer.token(id) for id in ids]}


def multi(rows: Floats, dtype: MultiDtype) -> dict[str, Any]:
    """Token vectors (t, d) as base64.

    float32, float16  the numbers
    int8              round(127 * x), from -127 to 127
    binary            1 bit per dimension: x > 0; the first dimension is the highest bit of the first byte
    """
    return {"shape": list(rows.shape), "dtype": dtype, "data": Base64(rows, partial(_packed, dtype=dtype))}


def _packed(rows: Floats, dtype: MultiDtype) -> bytes:
    if dtype == "binary":
        return bytes(np.packbits(rows > 0, axis=1))
    if dtype == "int8":
        return bytes(np.clip(np.rint(rows * INT8_SCALE), -INT8_SCALE, INT8_SCALE).astype(np.int8))
    return bytes(rows.astype("<f4" if dtype == "float32" else "<f2"))
