"""Vectors as engines return them, back into arrays. Qdrant's engines, embedded and server, return the same shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from threefold.types import Encoded, Ragged, Representation, Sparse


def unpack(
    keep: Sequence[Representation],
    vocab: int,
    named: Sequence[Mapping[str, Any]],
    payloads: Sequence[Mapping[str, Any]],
) -> Encoded:
    """These of {"dense": [..], "sparse": indices and values, "multi": [[..]]}, with the payload of each chunk."""
    dense = np.array([one["dense"] for one in named], dtype=np.float32) if "dense" in keep else None
    multi = Ragged.of([np.array(one["multi"], dtype=np.float32) for one in named]) if "multi" in keep else None
    sparse = Sparse.of([_row(one.get("sparse")) for one in named], vocab) if "sparse" in keep else None
    return Encoded(
        dense,
        sparse,
        multi,
        np.array([payload["tokens"] for payload in payloads], dtype=np.int32),
        np.array([bool(payload["truncated"]) for payload in payloads]),
    )


def _row(vector: Any) -> dict[int, float]:
    return {} if vector is None else dict(zip(vector.indices, vector.values, strict=True))
