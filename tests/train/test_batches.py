from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.small import tokens

from threefold.errors import ConfigError, ShapeError
from threefold.train.batches import PairTable, part, plan, score_bytes, seed_of_pass, without_batch
from threefold.types import offsets_of


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


def test_no_two_passes_of_any_runs_have_one_order() -> None:
    assert len({seed_of_pass(seed, epoch) for seed in range(10) for epoch in range(100)}) == 1_000
    assert [seed_of_pass(0, epoch) for epoch in range(3)] == [0, 1, 2]


def test_texts_of_a_batch_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(4, 100, size=400)
    batches = plan(pairs(lengths.tolist(), [0] * 400), shares={}, budget=300, window=400, seed=0)
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in batches]
    assert np.mean(spread) < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "got 0 and 5"),
        ({"window": 0}, "got 9 and 0"),
        ({"shares": {0: -1.0}}, "must not be negative"),
        ({"least": 1}, "got 1 and None"),
        ({"memory": 0}, "got 2 and 0"),
    ],
)
def test_plans_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(pairs([4, 5], [0, 0]), **({"shares": {}, "budget": 9, "window": 5, "seed": 0} | options))  # type: ignore[arg-type]


# ---- hard negatives --------------------------------------------------------------------------------------


def with_negatives(counts: list[int], length: int = 7) -> PairTable:
    """Pairs of 2 + 3 tokens, each with so many hard negatives of `length` tokens."""
    n = len(counts)
    flags = np.zeros(n, np.int8)
    return PairTable(
        tokens([[0, 2]] * n), tokens([[0, 5, 2]] * n), flags, np.arange(n), flags, flags.astype(bool),
        negative=tokens([[0] * length] * sum(counts)), negatives=offsets_of(counts),
    )  # fmt: skip


def test_a_pair_costs_its_hard_negatives_too() -> None:
    table = with_negatives([0, 2, 1])
    assert table.sizes.tolist() == [5, 5 + 14, 5 + 7]
    assert table.negatives_of(np.array([2, 0, 1])).tolist() == [2, 0, 1]
    assert table.negatives_in(np.array([2, 0, 1])).tolist() == [1, 0, 2]
    assert table.negatives_of(np.array([0])).tolist() == []
    batches = plan(with_negatives([2] * 30), shares={}, budget=4 * 19, window=30, seed=0)
    assert sorted(len(batch) for batch in batches) == [2, *[4] * 7]


def test_what_is_not_given_is_unknown() -> None:
    table = pairs([4, 5], [0, 0])
    assert table.negatives.tolist() == [0, 0, 0]
    assert np.isnan(table.positive_score).all()
    assert len(table.negative_score) == 0
    assert not table.alone.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meaning": np.arange(3)}, "meaning has 3 entries, expected 2"),
        ({"negative_score": np.zeros(1)}, "negative_score has 1 entries, expected 0"),
        ({"negatives": np.array([0, 1, 2])}, "negatives must rise from 0 to 0"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change: dict[str, object], message: str) -> None:
    table = pairs([4, 5], [0, 0])
    given = {name: getattr(table, name) for name in ("query", "positive", "source", "meaning", "teacher", "symmetric")}
    with pytest.raises(ShapeError, match=message):
        PairTable(**(given | change))


# ---- memory ----------------------------------------------------------------------------------------------


def test_the_memory_of_scores_by_hand() -> None:
    # 3 pairs, 12 passages, 20 query tokens: 20 * 3 * 12 + 2 * 20 * 12 + (3 + 12) * 20 = 720 + 480 + 300 numbers
    assert int(score_bytes(np.array(3), np.array(12), np.array(20))) == 4 * 1500


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=2, max_size=50),
    memory=st.integers(1, 20_000),
    budget=st.integers(1, 300),
    least=st.integers(2, 5),
)
def test_both_budgets_hold_and_no_batch_is_too_small(counts: list[int], memory: int, budget: int, least: int) -> None:
    table = with_negatives(counts)
    batches = plan(table, shares={}, budget=budget, window=50, seed=3, memory=memory, least=least)
    found = sorted(int(i) for batch in batches for i in batch)
    assert found == (list(range(len(counts))) if len(counts) >= least else [])
    for batch in batches:
        assert len(batch) >= least
        if len(batch) >= 2 * least:  # smaller ones may be what is left, or the least
            passages = len(batch) + len(table.negatives_of(batch))
            assert int(table.sizes[batch].sum()) <= budget
            assert int(score_bytes(np.array(len(batch)), np.array(passages), np.array(2 * len(batch)))) <= memory


def test_less_memory_makes_smaller_batches() -> None:
    table = with_negatives([1] * 200)
    sizes = [
        max(map(len, plan(table, shares={}, budget=10_000, window=200, seed=0, memory=memory)))
        for memory in (None, 200_000, 20_000)
    ]
    assert sizes[0] == 200
    assert 200 > sizes[1] > 2 * sizes[2]
    used = [int(score_bytes(np.array(n), np.array(2 * n), np.array(2 * n))) for n in (sizes[1], sizes[1] + 1)]
    assert used[0] <= 200_000 < used[1]  # as large as fits


def test_sources_that_are_too_small_are_named() -> None:
    table = pairs([10] * 9, [0] * 5 + [1, 2, 2, 3])
    assert without_batch(table, plan(table, shares={}, budget=50, window=9, seed=0)) == {1: 1, 3: 1}
    assert without_batch(table, plan(table, shares={0: 0.0}, budget=50, window=9, seed=0, least=3)) == {
        0: 5, 1: 1, 2: 2, 3: 1,
    }  # fmt: skip
    assert without_batch(table, []) == {0: 5, 1: 1, 2: 2, 3: 1}


# ---- many devices ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(8, 90), world=st.integers(1, 8), seed=st.integers(0, 3))
def test_the_shares_of_all_ranks_are_the_plan(n: int, world: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(4, 30, size=n)
    batches = plan(pairs(lengths.tolist(), [0] * n), shares={}, budget=100, window=n, seed=seed, least=8)
    parts = [part(batches, rank, world) for rank in range(world)]
    for number, batch in enumerate(batches):
        shares = [parts[rank][number] for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert min(map(len, shares)) >= 1


def test_more_devices_than_pairs_are_refused() -> None:
    batches = [np.arange(5), np.arange(3)]
    assert [rows.tolist() for rows in part(batches, 1, 3)] == [[1, 4], [1]]
    with pytest.raises(ConfigError, match="a batch has 3 pairs for 4 devices; plan with least=4"):
        part(batches, 0, 4)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        part(batches, 2, 2)
    assert part([], 0, 2) == []
