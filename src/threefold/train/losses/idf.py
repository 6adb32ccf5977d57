"""A start for the sparse head: the inverse document frequency of every token."""

from __future__ import annotations

from torch import Tensor


def idf_distance(weights: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of sparse weights (T,) to the wanted ones (T,)."""
    return ((weights - wanted) ** 2).mean()
