"""Large answers: JSON that is written while it is sent, a piece at a time.

A vector for each of 65,536 tokens is 700 MB of JSON and takes seconds to write. Written at once, all of it would be in
memory, and nobody else would be answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import numpy as np
from starlette.responses import Response, StreamingResponse

from threefold.serve.wire import PIECE, Base64, dumps, json_response
from threefold.types import Row

#: Bytes that are sent at once, at least.
SEND_BYTES = 65_536


def rows_response(body: Any, rows: Iterable[Row], headers: dict[str, str] | None = None) -> Response:
    """A body that says these rows."""
    arrays = [array for row in rows for array in (row.dense, row.multi, row.hidden) if array is not None]
    if sum(array.size for array in arrays) <= PIECE:
        return json_response(body, headers)
    return StreamingResponse(_slowly(body), headers=headers, media_type="application/json")


async def _slowly(body: Any) -> AsyncIterator[bytes]:
    """Pieces of some size; others are answered between two of them."""
    held = bytearray()
    for piece in pieces(body):
        held += piece
        if len(held) >= SEND_BYTES:
            yield bytes(held)
            held.clear()
            await asyncio.sleep(0)
    yield bytes(held)


def pieces(value: Any) -> Iterator[bytes]:
    """What `dumps` says, in pieces of at most `PIECE` numbers."""
    if isinstance(value, dict):
        yield from _between(b"{", ((dumps(key) + b":", item) for key, item in value.items()), b"}")
    elif isinstance(value, list) and value and isinstance(value[0], dict | list | np.ndarray | Base64):
        yield from _between(b"[", ((b"", item) for item in value), b"]")
    elif isinstance(value, np.ndarray) and value.size > PIECE:
        step = max(PIECE * len(value) // value.size, 1)
        for i in range(0, len(value), step):
            yield (b"," if i else b"[") + dumps(value[i : i + step])[1:-1]
        yield b"]"
    elif isinstance(value, Base64):
        yield b'"'
        yield from value.pieces()
        yield b'"'
    else:
        yield dumps(value)


def _between(first: bytes, items: Iterable[tuple[bytes, Any]], last: bytes) -> Iterator[bytes]:
    before = first
    for name, item in items:
        yield before + name
        yield from pieces(item)
        before = b","
    yield last if before == b"," else first + last
