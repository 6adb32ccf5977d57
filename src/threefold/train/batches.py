"""Pre-tokenised pairs -> batches of one source and of similar length, under a token budget; seeded, by number.

The plan is a pure function of (pairs, settings, seed), so a run can be resumed at any step and is the same for any
number of workers. Knows token ids, not models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threefold.errors import ConfigError
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
    budget  tokens of both sides of one batch; two pairs may have more, a single pair would have no negatives
    window  pairs among which lengths are sorted; larger windows skew the order more

    A batch never has a pair twice. A source of which a single pair is taken gives no batch.
    """
    if min(budget, window) < 1:
        raise ConfigError(f"budget and window must be at least 1; got {budget} and {window}")
    rng = np.random.default_rng(seed)
    size = table.query.lengths + table.positive.lengths
    batches: list[Ints] = []
    for source in np.unique(table.source):
        rows = np.flatnonzero(table.source == source)
        for taken in _takes(rows, shares.get(int(source), 1.0), rng):
            parts = max(1, min(-(-len(taken) // window), len(taken) // 2))
            for part in np.array_split(taken, parts):
                part = part[np.argsort(size[part], kind="stable")]
                batches += _cut(part, size[part], budget)
    return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i]) > 1]


def _takes(rows: Ints, share: float, rng: np.random.Generator) -> list[Ints]:
    """Each whole take in random order, then the random part that is left."""
    if share < 0:
        raise ConfigError(f"the share of a source must not be negative; got {share}")
    whole, rest = divmod(share, 1.0)
    takes = [rng.permutation(rows) for _ in range(int(whole))]
    return [*takes, rng.permutation(rows)[: round(rest * len(rows))]]


def _cut(rows: Ints, sizes: Ints, budget: int) -> list[Ints]:
    """Consecutive batches of at most `budget` tokens and at least two pairs, if there are two."""
    ends = np.cumsum(sizes)
    batches: list[Ints] = []
    start = 0
    while start < len(rows):
        used = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, used + budget, side="right")), start + 2)
        if end == len(rows) - 1:  # one pair would be left alone: it takes a neighbour, or joins
            end += 1 if end - start == 2 else -1
        batches.append(rows[start:end])
        start = end
    return batches
