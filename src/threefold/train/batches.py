"""Pre-tokenised pairs -> batches of one source and of similar length, under a token budget; seeded, by number.

The plan is a pure function of (pairs, settings, seed), so a run can be resumed at any step and is the same for any
number of workers. Knows token ids, not models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threefold.text.tokenizer import Tokens
from threefold.types import Ints


@dataclass(frozen=True, slots=True, eq=False)
class PairTable:
    """n training pairs, tokenised.

    query, positive  token ids of each text
    source           (n,) which source a pair is from
    meaning          (n,) pairs with equal numbers must not be negatives of each other
    teacher          (n,) 1 where a teacher may judge the positive, else 0
    symmetric        (n,) whether query and positive may be exchanged
    """

    query: Tokens
    positive: Tokens
    source: Ints
    meaning: Ints
    teacher: Ints
    symmetric: Ints

    def __len__(self) -> int:
        return len(self.source)


def plan(table: PairTable, *, shares: dict[int, float], budget: int, window: int, seed: int) -> list[Ints]:
    """Batches of one pass: index arrays into the table, in the order in which they are trained on.

    shares  how often each pair of a source is taken: 0.5 takes a random half, 2.0 takes each twice
    budget  tokens of both sides of one batch
    window  pairs among which lengths are sorted; larger windows pad and skew more
    """
    rng = np.random.default_rng(seed)
    size = table.query.lengths + table.positive.lengths
    batches: list[Ints] = []
    for source in np.unique(table.source):
        rows = np.flatnonzero(table.source == source)
        taken = _take(rows, shares.get(int(source), 1.0), rng)
        for start in range(0, len(taken), window):
            part = taken[start : start + window]
            part = part[np.argsort(size[part], kind="stable")]
            batches += _cut(part, size[part], budget)
    return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i]) > 1]


def _take(rows: Ints, share: float, rng: np.random.Generator) -> Ints:
    whole, rest = divmod(share, 1.0)
    parts = [rng.permutation(rows) for _ in range(int(whole))]
    parts.append(rng.permutation(rows)[: round(rest * len(rows))])
    return np.concatenate(parts)


def _cut(rows: Ints, sizes: Ints, budget: int) -> list[Ints]:
    groups = np.cumsum(sizes) // budget
    return np.split(rows, np.flatnonzero(np.diff(groups)) + 1)
