"""Pre-tokenised pairs -> batches of one source and of similar length, under a token budget; seeded, by number.

The plan is a pure function of (pairs, settings, seed), so a run can be resumed at any step and is the same for any
number of workers. Knows token ids, not models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from threefold.errors import ConfigError, ShapeError
from threefold.text.tokenizer import Tokens
from threefold.types import Bools, Floats, Ints, offsets_of


def _no_texts() -> Tokens:
    return Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64))


def _unset() -> Any:
    """Stands for an array that `PairTable.__post_init__` makes: its length is that of the table."""
    return None


@dataclass(frozen=True, slots=True, eq=False)
class PairTable:
    """n training pairs, tokenised, and their hard negatives.

    query, positive  token ids of each text; a prompt is part of the query
    source           (n,) which source a pair is from
    meaning          (n,) pairs with equal numbers must not be negatives of each other
    teacher          (n,) 1 where a teacher may judge the positive, else 0
    symmetric        (n,) whether query and positive may be exchanged
    negative         token ids of all m hard negatives, pair after pair
    negatives        (n + 1,) offsets: those of pair i are rows negatives[i]:negatives[i + 1] of `negative`
    positive_score   (n,) a teacher's score of each positive for its query; NaN: unknown
    negative_score   (m,) the same of each hard negative
    alone            (n,) bool: only its own hard negatives are negatives of the pair
    """

    query: Tokens
    positive: Tokens
    source: Ints
    meaning: Ints
    teacher: Ints
    symmetric: Ints | Bools
    negative: Tokens = field(default_factory=_no_texts)
    negatives: Ints = field(default_factory=_unset)
    positive_score: Floats = field(default_factory=_unset)
    negative_score: Floats = field(default_factory=_unset)
    alone: Bools = field(default_factory=_unset)

    def __post_init__(self) -> None:
        n, m = len(self.source), len(self.negative)
        usual = {
            "negatives": np.zeros(n + 1, np.int64),
            "positive_score": np.full(n, np.nan, np.float32),
            "negative_score": np.full(m, np.nan, np.float32),
            "alone": np.zeros(n, bool),
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        lengths = dict.fromkeys(("query", "positive", "meaning", "teacher", "symmetric", "positive_score", "alone"), n)
        for name, length in (lengths | {"negatives": n + 1, "negative_score": m}).items():
            if len(getattr(self, name)) != length:
                raise ShapeError(f"PairTable: {name} has {len(getattr(self, name))} entries, expected {length}")
        if self.negatives[0] != 0 or self.negatives[-1] != m or np.any(np.diff(self.negatives) < 0):
            raise ShapeError(f"PairTable: negatives must rise from 0 to {m}; got {self.negatives!r}")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sizes(self) -> Ints:
        """(n,) tokens of each pair with its hard negatives."""
        edges = self.negative.offsets[self.negatives]
        sizes: Ints = self.query.lengths + self.positive.lengths + np.diff(edges)
        return sizes

    def negatives_of(self, rows: Ints) -> Ints:
        """Rows of `negative` that are the hard negatives of these pairs, pair after pair."""
        first, lengths = self.negatives[rows], self.negatives_in(rows)
        before = np.cumsum(lengths) - lengths
        places: Ints = np.arange(int(lengths.sum())) + np.repeat(first - before, lengths)
        return places

    def negatives_in(self, rows: Ints) -> Ints:
        """How many hard negatives each of these pairs has."""
        counts: Ints = self.negatives[rows + 1] - self.negatives[rows]
        return counts


#: Numbers per query and passage that the losses keep for the backward pass: the three score matrices and their sum,
#: each as scores, logits, softmax and teacher, and one more of each for the shorter dimensions.
MATRICES = 20


def score_bytes(pairs: Ints, passages: Ints, query_tokens: Ints) -> Ints:
    """Memory of the scores of a batch in float32, kept for its backward pass: an estimate.

        4 * (20 B P  +  2 Tq P  +  (B + P) Tq)

    B pairs, P passages, Tq query tokens: the score matrices; the best match of every query token in every passage with
    its place; sparse weights by text and query term.
    """
    numbers: Ints = MATRICES * pairs * passages + 2 * query_tokens * passages + (pairs + passages) * query_tokens
    return 4 * numbers


def plan(
    table: PairTable,
    *,
    shares: Mapping[int, float],
    budget: int,
    window: int,
    seed: int,
    memory: int | None = None,
    least: int = 2,
) -> list[Ints]:
    """Batches of one pass: index arrays into the table, in the order in which they are trained on.

    shares  how often each pair of a source is taken: 0.5 takes a random half, 2.0 takes each twice
    budget  tokens of one batch, both sides and hard negatives, over all devices together
    window  pairs among which lengths are sorted; larger windows skew the order more
    memory  bytes that the scores of one batch may take (`score_bytes`); None: only tokens count
    least   pairs of the smallest batch, whatever the budgets say: one pair has no negatives, and `part` needs one pair
            for every device

    A batch holds one source and never has a pair twice. A source of which fewer pairs are taken gives no batch.
    """
    if min(budget, window) < 1:
        raise ConfigError(f"budget and window must be at least 1; got {budget} and {window}")
    if least < 2 or (memory is not None and memory < 1):
        raise ConfigError(f"least must be at least 2 and memory positive; got {least} and {memory}")
    rng = np.random.default_rng(seed)
    costs = _Costs.of(table, budget, memory)
    batches: list[Ints] = []
    for source in np.unique(table.source):
        rows = np.flatnonzero(table.source == source)
        for taken in _takes(rows, shares.get(int(source), 1.0), rng):
            parts = max(1, min(-(-len(taken) // window), len(taken) // least))
            for part in np.array_split(taken, parts):
                part = part[np.argsort(costs.tokens[part], kind="stable")]
                batches += _cut(part, costs, least)
    return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i]) >= least]


def seed_of_pass(seed: int, epoch: int) -> int:
    """What orders one pass over the data: no other pass, of a run with another seed either, has the same."""
    return seed * 1_000_003 + epoch


def without_batch(table: PairTable, batches: Sequence[Ints]) -> dict[int, int]:
    """{source: pairs} of the sources that no batch of a plan has: they are too small, or their share is 0."""
    used = np.unique(table.source[np.concatenate([np.zeros(0, np.int64), *batches])])
    sources, pairs = np.unique(table.source, return_counts=True)
    return {int(source): int(count) for source, count in zip(sources, pairs, strict=True) if source not in used}


def part(batches: Sequence[Ints], rank: int, world: int) -> list[Ints]:
    """The share of one of `world` devices in every batch of a plan: every `world`-th pair, so lengths are alike.

    The shares of all ranks together are the batch; they differ by one pair at most.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank must be from 0 to world - 1; got rank {rank} of {world}")
    smallest = min((len(rows) for rows in batches), default=world)
    if smallest < world:
        raise ConfigError(f"a batch has {smallest} pairs for {world} devices; plan with least={world} or more")
    return [rows[rank::world] for rows in batches]


@dataclass(frozen=True, slots=True, eq=False)
class _Costs:
    """What every pair of a table adds to a batch, and what a batch may cost.

    tokens, passages, query  (n,) tokens of all texts, number of passages, tokens of the query
    """

    tokens: Ints
    passages: Ints
    query: Ints
    budget: int
    memory: int | None

    @classmethod
    def of(cls, table: PairTable, budget: int, memory: int | None) -> _Costs:
        return cls(table.sizes, 1 + np.diff(table.negatives), table.query.lengths, budget, memory)

    def ends(self, rows: Ints) -> _Ends:
        """The same for growing batches of these pairs."""
        tokens, passages, query = (offsets_of(what[rows]) for what in (self.tokens, self.passages, self.query))
        return _Ends(tokens, passages, query, self.budget, self.memory)


@dataclass(frozen=True, slots=True, eq=False)
class _Ends:
    """Running sums (m + 1,) over m pairs in a row."""

    tokens: Ints
    passages: Ints
    query: Ints
    budget: int
    memory: int | None

    def furthest(self, start: int) -> int:
        """The end of the largest batch from `start` that fits both budgets; `start` if not even one pair does."""
        end = int(np.searchsorted(self.tokens, self.tokens[start] + self.budget, side="right")) - 1
        if self.memory is None or end <= start:
            return end
        sizes = np.arange(1, end - start + 1)
        after = slice(start + 1, end + 1)
        used = score_bytes(sizes, self.passages[after] - self.passages[start], self.query[after] - self.query[start])
        return start + int(np.searchsorted(used, self.memory, side="right"))


def _takes(rows: Ints, share: float, rng: np.random.Generator) -> list[Ints]:
    """Each whole take in random order, then the random part that is left."""
    if share < 0:
        raise ConfigError(f"the share of a source must not be negative; got {share}")
    whole, rest = divmod(share, 1.0)
    takes = [rng.permutation(rows) for _ in range(int(whole))]
    return [*takes, rng.permutation(rows)[: round(rest * len(rows))]]


def _cut(rows: Ints, costs: _Costs, least: int) -> list[Ints]:
    """Consecutive batches within the budgets and of at least `least` pairs, if there are so many."""
    ends = costs.ends(rows)
    batches: list[Ints] = []
    start = 0
    while start < len(rows):
        end = min(max(ends.furthest(start), start + least), len(rows))
        left = len(rows) - end
        if 0 < left < least:  # too few would be left alone: they take neighbours, or join
            end = len(rows) - least if end - start + left >= 2 * least else len(rows)
        batches.append(rows[start:end])
        start = end
    return batches
