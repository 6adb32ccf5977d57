"""Vectors as engines return them, back into arrays. Qdrant's engines, embedded and server, return the same shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from threefold.config import Manifest
from threefold.store.check import stored
from threefold.types import Encoded, Ragged, Sparse


def unpack(manifest: Manifest, named: Sequence[Mapping[str, Any]], payloads: Sequence[Mapping[str, Any]]) -> Encoded:
    """From {"dense": [..], "sparse": indices and values, "multi": [[..]]} and the payload of each chunk."""
    keep = stored(manifest)
    dense = np.array([one["dense"] for one in named], dtype=np.float32) if "dense" in keep else None
    multi = Ragged.of([np.array(one["multi"], dtype=np.float32) for one in named]) if "multi" in keep else None
    sparse = Sparse.of([_row(one.get("sparse")) for one in named], manifest.vocab) if "sparse" in keep else None
    return Encoded(
        dense,
        sparse,
        multi,
        np.array([payload["tokens"] for payload in payloads], dtype=np.int32),
        np.array([bool(payload["truncated"]) for payload in payloads]),
    )


def _row(vector: Any) -> dict[int, float]:
    return {} if vector is None else dict(zip(vector.indices, vector.values, strict=True))
