from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InputError
from threefold.text.packing import plan_batches, restore_order

LENGTHS = st.lists(st.integers(1, 30), max_size=60).map(lambda values: np.array(values, np.int64))


@given(lengths=LENGTHS, budget=st.integers(1, 100))
def test_every_text_once_within_the_budget_or_alone(lengths: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    placed = [int(i) for batch in batches for i in batch]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].sum() <= budget


@given(lengths=LENGTHS, budget=st.integers(1, 100))
def test_the_longest_texts_come_first_and_no_batch_could_take_the_next_text(lengths: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    order = [int(lengths[i]) for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)
    for batch, following in pairwise(batches):
        assert lengths[batch].sum() + lengths[following[0]] > budget


@given(lengths=LENGTHS, budget=st.integers(1, 100))
def test_order_is_restored(lengths: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    values = np.arange(len(lengths)) * 10
    concatenated = np.concatenate([np.zeros(0, np.int64), *(values[batch] for batch in batches)])
    assert concatenated[restore_order(batches)].tolist() == values.tolist()


def test_by_hand() -> None:
    # longest first: 5 | 4 + 3 = 7 | 3 + 1 = 4 (equal lengths in the caller's order)
    assert [batch.tolist() for batch in plan_batches(np.array([3, 5, 1, 4, 3]), 7)] == [[1], [3, 0], [4, 2]]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1; got 0"):
        plan_batches(np.array([1]), 0)
