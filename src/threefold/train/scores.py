"""The three scores of `threefold.score` between all queries and all passages of a batch, with gradients.

A test holds them equal to the numpy definitions. Letters: B queries, P passages, T tokens of one side, k dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.train.maxsim import CHUNK, best_matches


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """What the model says about one side of a batch, as tensors that carry gradients.

    dense    (n, d) unit rows
    weights  (T,) sparse weight of every token, special tokens at 0
    multi    (T, k) unit rows of every token
    ids      (T,) int64; layout says where each text is
    """

    dense: Tensor
    weights: Tensor
    multi: Tensor
    ids: Tensor
    layout: Layout

    @property
    def owners(self) -> Tensor:
        """(T,) which text each token belongs to."""
        lengths = self.layout.borders(self.ids.device).diff()
        texts = torch.arange(len(lengths), device=self.ids.device)
        return torch.repeat_interleave(texts, lengths, output_size=len(self.ids))  # a GPU need not be asked how many

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What carries gradients."""
        return self.dense, self.weights, self.multi

    def holding(self, dense: Tensor, weights: Tensor, multi: Tensor) -> Side:
        """The same texts with other tensors."""
        return Side(dense, weights, multi, self.ids, self.layout)


def dense_matrix(queries: Side, passages: Side) -> Tensor:
    """(B, P) inner products."""
    return queries.dense @ passages.dense.T


def sparse_matrix(queries: Side, passages: Side) -> Tensor:
    """(B, P) sums over shared ids of the products of the largest weights.

    Only ids that occur in some query can contribute, so both sides are gathered to those columns: memory is
    (B + P) x (distinct query ids), never x vocabulary (the reference builds batch x length x 250,002).
    """
    columns = torch.unique(queries.ids)
    return _by_column(queries, columns) @ _by_column(passages, columns).T


def _by_column(side: Side, columns: Tensor) -> Tensor:
    """(n, c) largest weight of each text for each id in `columns` (ascending), 0 where it is absent."""
    place = torch.searchsorted(columns, side.ids).clamp_max(len(columns) - 1)
    here = columns[place] == side.ids
    flat = side.owners[here] * len(columns) + place[here]
    n = len(side.layout.offsets) - 1
    empty = side.weights.new_zeros(n * len(columns))
    return empty.scatter_reduce(0, flat, side.weights[here], "amax", include_self=True).view(n, len(columns))


def multi_matrix(queries: Side, passages: Side, chunk: int = CHUNK) -> Tensor:
    """(B, P) mean over query tokens of the best match; the first token of every text is left out.

    Blocks of passages of equal length are scored at once, so no pad row can win a maximum. `chunk` bounds the
    numbers of one block of similarities.
    """
    rows, owners = _inner(queries)  # (Tq, k), (Tq,)
    matches = best_matches(rows, passages.multi, passages.layout, chunk)  # (Tq, P)
    n = len(queries.layout.offsets) - 1
    counts = torch.bincount(owners, minlength=n)[:, None]
    return matches.new_zeros(n, matches.shape[1]).index_add(0, owners, matches) / counts


def _inner(side: Side) -> tuple[Tensor, Tensor]:
    keep = torch.ones(len(side.ids), dtype=torch.bool, device=side.ids.device)
    keep[side.layout.borders(side.ids.device)[:-1]] = False
    return side.multi[keep], side.owners[keep]
