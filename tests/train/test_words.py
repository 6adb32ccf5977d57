"""The gradient of the word table: that of autograd, in memory that stays."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
from torch.nn.functional import embedding

from threefold.train import words
from threefold.train.words import clear_gradients, word_vectors


def table() -> torch.Tensor:
    return torch.arange(12, dtype=torch.float32).view(4, 3).requires_grad_()


def test_the_gradient_is_that_of_autograd() -> None:
    ids, factors = torch.tensor([2, 0, 2, 2]), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    ours, theirs = table(), table()
    assert torch.equal(word_vectors(ours, ids), embedding(ids, theirs))
    torch.autograd.backward([(word_vectors(ours, ids) * factors).sum(), (embedding(ids, theirs) * factors).sum()])
    assert ours.grad is not None
    assert theirs.grad is not None
    np.testing.assert_array_equal(ours.grad, [[2] * 3, [0] * 3, [8] * 3, [0] * 3])  # row 2: 1 + 3 + 4
    assert torch.equal(ours.grad, theirs.grad)


def test_a_second_reading_is_added_beside_what_autograd_adds() -> None:
    """As in RetroMAE, where the table is also the last layer."""
    weight = table()
    read = word_vectors(weight, torch.tensor([1])).sum() + word_vectors(weight, torch.tensor([1, 3])).sum()
    torch.autograd.backward([read, (weight * 10).sum()])
    assert weight.grad is not None
    np.testing.assert_array_equal(weight.grad[:, 0], [10, 12, 10, 11])


def test_a_frozen_table_gets_no_gradient() -> None:
    weight = table().requires_grad_(False)
    assert not word_vectors(weight, torch.tensor([1])).requires_grad
    with torch.no_grad():
        assert not word_vectors(table(), torch.tensor([1])).requires_grad


def test_large_gradients_are_cleared_and_kept_small_ones_given_back() -> None:
    large, small = table(), torch.ones(2, requires_grad=True)
    torch.autograd.backward([large.sum(), small.sum()])
    kept = large.grad
    with patch.object(words, "KEPT_BYTES", 48):  # 12 numbers of 4 bytes
        clear_gradients([large, small])
    assert large.grad is kept
    assert kept is not None
    assert not kept.any()
    assert small.grad is None
