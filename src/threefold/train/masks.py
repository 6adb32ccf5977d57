"""Which passages of a batch must not count as negatives of a query, because they may answer it.

Everything is compared by token ids: texts that are equal for the model are equal. Knows tables, not models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable
from threefold.types import Bools, Ints

Numbers = NDArray[np.uint64]

#: Tokens that are hashed at a time: 32 MiB of products.
_BLOCK = 1 << 22


def text_numbers(tokens: Tokens) -> Numbers:
    """(n,) one number per text, equal for equal token ids, and for others with probability 2^-64.

    Multiply-add hashing with a random odd factor per position (Thorup, arXiv 1504.06804, section 3.1), then the mixer
    of splitmix64 (Steele et al., OOPSLA 2014), so that sums of such numbers do not collide by structure.
    """
    longest = int(tokens.lengths.max(initial=0))
    factors = np.random.default_rng(0x3F01D).integers(0, 1 << 64, size=longest + 1, dtype=np.uint64) | np.uint64(1)
    numbers = np.empty(len(tokens), np.uint64)
    start = 0
    while start < len(tokens):
        end = int(np.searchsorted(tokens.offsets, tokens.offsets[start] + _BLOCK, side="right")) - 1
        end = max(end, start + 1)
        numbers[start:end] = _sums(tokens, start, end, factors)
        start = end
    return _mixed(numbers)


def _sums(tokens: Tokens, start: int, end: int, factors: Numbers) -> Numbers:
    """Sums over the tokens of each text [start, end) of factor times id, and of the length."""
    offsets = tokens.offsets[start : end + 1] - tokens.offsets[start]
    ids = np.asarray(tokens.ids[tokens.offsets[start] : tokens.offsets[end]]).astype(np.uint64)
    lengths = np.diff(offsets)
    places = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum((ids + np.uint64(1)) * factors[places + 1])])
    sums: Numbers = running[offsets[1:]] - running[offsets[:-1]] + lengths.astype(np.uint64) * factors[0]
    return sums


def _mixed(numbers: Numbers) -> Numbers:
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def repeated_pairs(query: Tokens, positive: Tokens) -> int:
    """How many pairs have the query and the positive of a pair before them."""
    sums = text_numbers(query) + text_numbers(positive) * np.uint64(3)
    return len(sums) - len(np.unique(sums))


class Answers:
    """Which texts of a table answer which of its queries; equal texts count as one.

    query, positive, negative  (n,), (n,), (m,) the numbers of the texts
    """

    def __init__(self, table: PairTable) -> None:
        self.query, self.positive, self.negative = map(text_numbers, (table.query, table.positive, table.negative))
        self._sums = np.unique(self.query + self.positive)  # the sum of two, so that either may be the query

    def known(self, queries: Numbers, texts: Numbers) -> Bools:
        """Where query and text are a pair of the table, in either order; the two are broadcast against each other."""
        sums = queries + texts
        places = np.minimum(np.searchsorted(self._sums, sums), len(self._sums) - 1)
        known: Bools = self._sums[places] == sums
        return known


class FalseNegatives:
    """The masks of the batches of one table.

    A passage of a batch is no negative of a query when it
      - is a positive of that query, in this batch or anywhere in the table (equal texts count as one),
      - is the positive of a pair with the same `meaning`,
      - is one of the query's own hard negatives, and a teacher scores it above the positive's score less `margin`,
      - is not its own, and the pair is `alone`.
    The positive of the query's own pair is never marked.
    """

    def __init__(self, table: PairTable, *, margin: float = 0.0) -> None:
        self.table, self.margin = table, margin
        self.answers = Answers(table)

    def __call__(self, rows: Ints, *, swapped: bool = False) -> Bools:
        """(B, B + M) True where a passage must be left out.

        rows     (B,) the pairs of the batch
        swapped  the positives are the queries, and the queries the passages
        columns  the passages of the pairs in the order of `rows`, then their M hard negatives (`negatives_of(rows)`)
        """
        table = self.table
        hard = table.negatives_of(rows)
        owner = np.repeat(np.arange(len(rows)), table.negatives_in(rows))  # (M,) the place in `rows`
        answers = self.answers
        first, second = (answers.positive, answers.query) if swapped else (answers.query, answers.positive)
        passages = np.concatenate([second[rows], answers.negative[hard]])
        masks = answers.known(first[rows][:, None], passages[None, :])
        meaning = table.meaning[rows]
        masks[:, : len(rows)] |= meaning[:, None] == meaning[None, :]
        if not swapped:
            masks[owner, len(rows) + np.arange(len(hard))] |= self._too_good(rows[owner], hard)
        columns = np.concatenate([np.arange(len(rows)), owner])
        masks |= table.alone[rows][:, None] & (columns[None, :] != np.arange(len(rows))[:, None])
        masks[np.arange(len(rows)), np.arange(len(rows))] = False
        return masks

    def _too_good(self, pairs: Ints, hard: Ints) -> Bools:
        """(M,) hard negatives that the teacher finds about as good as the positive; unknown scores are not."""
        good: Bools = self.table.negative_score[hard] > self.table.positive_score[pairs] - self.margin
        return good  # a comparison with NaN is false
