"""A write that replaces chunks, kept in a file beside the shard until it is done, and repeated should it be killed.

The embedded engine repeats a write itself, but not well where token vectors take the place of others: of the new places
that the killed process gave them, it believes some and gives them to others as well (qdrant/qdrant#9501; its compact
formats have it still). So what is replaced is deleted first, and this file sees to it that the rest follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from threefold.errors import StoreCorruptError
from threefold.types import Encoded, Ragged, Sparse


def save(file: BinaryIO, payloads: Sequence[Mapping[str, Any]], vectors: Encoded) -> None:
    """Write these points."""
    text = json.dumps(payloads, ensure_ascii=False).encode("utf-8")
    arrays: dict[str, Any] = {"payloads": np.frombuffer(text, np.uint8)}
    arrays |= {"tokens": vectors.tokens, "truncated": vectors.truncated}
    if vectors.dense is not None:
        arrays["dense"] = vectors.dense
    if vectors.sparse is not None:
        sparse = vectors.sparse
        arrays |= {"terms": sparse.indices, "weights": sparse.values, "ends": sparse.offsets, "vocab": sparse.vocab}
    if vectors.multi is not None:
        arrays |= {"rows": vectors.multi.rows, "offsets": vectors.multi.offsets}
    np.savez(file, **arrays)


def load(path: Path) -> tuple[list[dict[str, Any]], Encoded]:
    """What `save` wrote."""
    try:
        with np.load(path) as file:
            return _read(dict(file))
    except (ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise StoreCorruptError(
            f"{path}: damaged ({error!r}). Restore the folder from a snapshot, or delete this file and add the "
            "documents again that were being added last"
        ) from error


def _read(arrays: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Encoded]:
    sparse = multi = None
    if "vocab" in arrays:
        sparse = Sparse(arrays["terms"], arrays["weights"], arrays["ends"], int(arrays["vocab"]))
    if "rows" in arrays:
        multi = Ragged(arrays["rows"], arrays["offsets"])
    vectors = Encoded(arrays.get("dense"), sparse, multi, arrays["tokens"], arrays["truncated"])
    return json.loads(arrays["payloads"].tobytes()), vectors
