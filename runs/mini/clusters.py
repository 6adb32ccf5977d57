"""Batches of passages about the same thing: the other passages of the batch are then hard negatives for free.

As in TAS-Balanced (Hofstätter et al. 2021, arXiv 2104.06967), but with no trained model and no k-means: passages are
bags of their pieces' word vectors weighted by IDF, split in halves along their main direction until a half is a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from threefold.text.tokenizer import Tokens
from threefold.types import Floats, Ints


def clustered(
    tokens: Tokens, rows: Ints, sizes: Ints, budget: int, words: Floats, rng: np.random.Generator
) -> list[Ints]:
    """Batches of at most about `budget` tokens; `sizes` are the tokens of both sides of each pair of the table."""
    vectors = bags(tokens, rows, words)
    batches: list[Ints] = []
    pending = [np.arange(len(rows))]
    while pending:
        part = pending.pop()
        if sizes[rows[part]].sum() <= budget or len(part) < 4:
            batches.append(rows[part])
            continue
        order = part[np.argsort(vectors[part] @ main_direction(vectors[part], rng), kind="stable")]
        middle = len(order) // 2
        pending += [order[:middle], order[middle:]]
    return batches


def bags(tokens: Tokens, rows: Ints, words: Floats) -> Floats:
    """(n, d) sums of the distinct pieces' vectors (`words`, already times IDF), of unit length."""
    lengths = tokens.lengths[rows]
    ids = np.concatenate([tokens[int(row)] for row in rows])
    owner = np.repeat(np.arange(len(rows)), lengths)
    matrix = csr_array((np.ones(len(ids), np.float32), (owner, ids)), shape=(len(rows), len(words)))
    matrix.data[:] = 1.0  # csr_array has summed repeated pieces
    vectors: Floats = np.asarray(matrix @ words, dtype=np.float32)
    vectors -= vectors.mean(axis=0)
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-9)


def main_direction(vectors: Floats, rng: np.random.Generator, rounds: int = 6) -> Floats:
    """(d,) about the first principal direction, by power iteration from a random start."""
    centred = vectors - vectors.mean(axis=0)
    direction = rng.standard_normal(vectors.shape[1]).astype(np.float32)
    for _ in range(rounds):
        direction = centred.T @ (centred @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-9)
    return direction
