"""The best k, the same every time: by score descending, ties by id ascending."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from threefold.errors import InputError, NumericalError, ShapeError
from threefold.types import Floats, Ints


def tie_order(ids: Sequence[str]) -> Ints:
    """(n,) the place of every id among the sorted ids: what breaks ties in `top_k`."""
    places = np.empty(len(ids), dtype=np.int64)
    places[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return places


def top_k(scores: Floats, k: int, ties: Ints | None = None) -> Ints:
    """Positions of the k best, best first; -inf ("cannot match") is never among them.

    scores  (n,)
    ties    (n,) from `tie_order`: of two equal scores the smaller place wins, also at the border of the k; None: the
            earlier one
    return  (at most k,) int64
    """
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    if ties is None:
        ties = np.arange(len(scores))
    if scores.shape != ties.shape:
        raise ShapeError(f"{scores.shape} scores but {ties.shape} places to break ties")
    if np.isnan(scores).any():
        raise NumericalError(f"score {int(np.isnan(scores).argmax())} is not a number")
    chosen = np.flatnonzero(scores > -np.inf)
    if len(chosen) > k:
        border = np.partition(scores[chosen], len(chosen) - k)[len(chosen) - k]
        chosen = chosen[scores[chosen] >= border]  # everything tied at the border stays in until the sort
    order = np.lexsort((ties[chosen], -scores[chosen]))[:k]
    best: Ints = chosen[order]
    return best


def ranked(scores: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """(id, score) pairs, best first, ties by id ascending."""
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))
