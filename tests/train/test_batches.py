from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.small import tokens

from threefold.errors import ConfigError
from threefold.train.batches import PairTable, plan


def pairs(lengths: list[int], sources: list[int]) -> PairTable:
    """Queries of 2 tokens, positives so that a pair has these lengths."""
    n = len(lengths)
    rows = [[0, 2] for _ in lengths]
    positives = [[5] * (length - 2) for length in lengths]
    flags = np.zeros(n, np.int8)
    return PairTable(tokens(rows), tokens(positives), np.array(sources), np.arange(n), flags, flags.astype(bool))


@settings(deadline=None)
@given(
    drawn=st.lists(st.tuples(st.integers(4, 30), st.integers(0, 2)), min_size=1, max_size=60),
    budget=st.integers(1, 150),
    window=st.integers(1, 30),
    share=st.sampled_from([1.0, 2.0, 3.0]),
)
def test_every_pair_as_often_as_its_share_says(
    drawn: list[tuple[int, int]], budget: int, window: int, share: float
) -> None:
    lengths, sources = [length for length, _ in drawn], [source for _, source in drawn]
    batches = plan(pairs(lengths, sources), shares={0: share}, budget=budget, window=window, seed=1)
    count = Counter(int(i) for batch in batches for i in batch)
    for i, source in enumerate(sources):
        alone = sources.count(source) == 1  # a single pair has no negatives
        assert count[i] == (0 if alone else share if source == 0 else 1)
    for batch in batches:
        assert len({sources[i] for i in batch}) == 1
        assert len(set(batch.tolist())) == len(batch) >= 2
        assert len(batch) <= 3 or sum(lengths[i] for i in batch) <= budget


def test_the_budget_holds_where_two_pairs_fit() -> None:
    lengths = np.random.default_rng(0).integers(4, 40, size=500)
    batches = plan(pairs(lengths.tolist(), [0] * 500), shares={}, budget=200, window=100, seed=0)
    sizes = [int(lengths[batch].sum()) for batch in batches]
    assert max(sizes) <= 200
    assert np.mean(sizes) > 150


def test_a_share_below_one_takes_a_random_part() -> None:
    table = pairs([10] * 100, [0] * 100)
    first, second = (plan(table, shares={0: 0.3}, budget=100, window=50, seed=seed) for seed in (0, 1))
    taken = [{int(i) for batch in batches for i in batch} for batches in (first, second)]
    assert [len(part) for part in taken] == [30, 30]
    assert taken[0] != taken[1]
    assert plan(table, shares={0: 0.0}, budget=100, window=50, seed=0) == []
    counts = Counter(int(i) for batch in plan(table, shares={0: 2.5}, budget=100, window=50, seed=0) for i in batch)
    assert sorted(set(counts.values())) == [2, 3]
    assert sum(counts.values()) == 250


def test_the_plan_is_a_function_of_the_seed() -> None:
    table = pairs(list(range(4, 64)), [0, 1] * 30)
    plans = [plan(table, shares={}, budget=90, window=20, seed=seed) for seed in (7, 7, 8)]
    as_lists = [[batch.tolist() for batch in batches] for batches in plans]
    assert as_lists[0] == as_lists[1]
    assert as_lists[0] != as_lists[2]


def test_texts_of_a_batch_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(4, 100, size=400)
    batches = plan(pairs(lengths.tolist(), [0] * 400), shares={}, budget=300, window=400, seed=0)
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in batches]
    assert np.mean(spread) < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget": 0}, "got 0 and 5"), ({"window": 0}, "got 9 and 0"), ({"shares": {0: -1.0}}, "must not be negative")],
)
def test_plans_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(pairs([4, 5], [0, 0]), **({"shares": {}, "budget": 9, "window": 5, "seed": 0} | options))  # type: ignore[arg-type]
