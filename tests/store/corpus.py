"""Small chunks and vectors for the tests of the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from threefold.config import Manifest, MultiStorage
from threefold.types import Chunk, Encoded, Floats, Ragged, Sparse

DIM = 16
VOCAB = 50


def manifest(multi_storage: MultiStorage = "float16", **changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "model": "tiny",
        "model_hash": "m1",
        "tokenizer_hash": "t1",
        "dense_dim": DIM,
        "multi_dim": DIM,
        "vocab": VOCAB,
    }
    return Manifest(**{**settings, "multi_storage": multi_storage, **changes})


def unit(rows: Floats) -> Floats:
    scaled: Floats = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def encoded(n: int, seed: int = 0, tokens: int = 6) -> Encoded:
    """n texts of 1 to `tokens` tokens and 1 to 8 terms."""
    rng = np.random.default_rng(seed)
    rows = [
        {int(term): float(rng.uniform(0.1, 1)) for term in rng.choice(VOCAB, rng.integers(1, 9), replace=False)}
        for _ in range(n)
    ]
    lengths = rng.integers(1, tokens + 1, n)
    return Encoded(
        unit(rng.normal(size=(n, DIM))),
        Sparse.of(rows, VOCAB),
        Ragged.of([unit(rng.normal(size=(length, DIM))) for length in lengths], DIM),
        lengths.astype(np.int32) + 1,
        np.arange(n) % 2 == 1,
    )


def chunk(document: str, number: int = 0, metadata: Mapping[str, Any] | None = None, **fields: Any) -> Chunk:
    text = fields.pop("text", f"text {number} of {document}")
    return Chunk(document, number, 0, len(text), text, metadata=metadata or {}, **fields)


def chunks(n: int, prefix: str = "d") -> list[Chunk]:
    """Chunks in two languages, three sources and with a year and tags."""
    return [
        chunk(
            f"{prefix}{i // 4}",
            i % 4,
            {"year": 2000 + i, "tags": ["even" if i % 2 == 0 else "odd", f"t{i % 3}"], "author": {"name": f"a{i % 5}"}},
            language="de" if i % 2 else "en",
            source=f"s{i % 3}",
            title=f"title {i}",
            content_hash=f"h{i}",
        )
        for i in range(n)
    ]


def with_dense(one: Encoded, dense: Floats) -> Encoded:
    return Encoded(dense, one.sparse, one.multi, one.tokens, one.truncated)


def ids_of(found: Sequence[Any]) -> list[str]:
    return [one.id for one in found]
