"""Small corpora for the tests of `threefold.analyze`."""

from __future__ import annotations

import numpy as np

from threefold.analyze import Corpus, Item
from threefold.types import Floats


def unit(rows: Floats) -> Floats:
    scaled: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def corpus(rows: Floats) -> Corpus:
    """Items named by their numbers."""
    return Corpus(tuple(Item(f"i{i}", f"text {i}") for i in range(len(rows))), rows)


def random_corpus(n: int, dim: int = 8, seed: int = 0) -> Corpus:
    return corpus(unit(np.random.default_rng(seed).standard_normal((n, dim))))


def blobs(sizes: list[int], dim: int = 16, spread: float = 0.05, seed: int = 0) -> Corpus:
    """Groups of items around orthogonal directions, in order."""
    rng = np.random.default_rng(seed)
    rows = [np.eye(dim)[i] + spread * rng.standard_normal((size, dim)) for i, size in enumerate(sizes)]
    return corpus(unit(np.concatenate(rows)))
