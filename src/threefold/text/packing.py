"""Which texts share a forward pass: packed batches without padding, under a token budget.

Knows lengths only. Every text is in exactly one batch; `order` undoes the sorting.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from threefold.errors import InputError
from threefold.types import Ints


def plan_batches(lengths: Ints, budget: int) -> list[Ints]:
    """Group texts so that each batch has at most `budget` tokens; a longer text is a batch of its own.

    lengths  (n,) tokens per text
    return   index arrays, texts of similar length together, longest first, so that the batch that needs the most
             memory runs first and fails early; equal lengths are neighbours (attention runs them as one block)
    """
    if budget < 1:
        raise InputError(f"the token budget must be at least 1; got {budget}")
    order = np.argsort(-lengths, kind="stable")
    return [order[start:end] for start, end in _cuts(lengths[order], budget)]


def _cuts(sorted_lengths: Ints, budget: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each batch. One step per batch, not per text."""
    ends = np.cumsum(sorted_lengths)
    start, used = 0, 0
    while start < len(sorted_lengths):
        end = int(np.searchsorted(ends, used + budget, side="right"))
        end = max(end, start + 1)
        yield start, end
        start, used = end, int(ends[end - 1])


def restore_order(batches: list[Ints]) -> Ints:
    """Index array that puts the concatenated results of the batches back into the caller's order."""
    if not batches:
        return np.zeros(0, dtype=np.int64)
    placed = np.concatenate(batches)
    inverse = np.empty(len(placed), dtype=np.int64)
    inverse[placed] = np.arange(len(placed))
    return inverse
