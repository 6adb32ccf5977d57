"""The three scores of `threefold.score` between all queries and all passages of a batch, with gradients.

A test holds them equal to the numpy definitions. Letters: B queries, P passages, T tokens of one side, k dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.encoder.attention import Layout


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
        lengths = torch.as_tensor(self.layout.offsets).diff()
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


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


def multi_matrix(queries: Side, passages: Side, chunk: int = 4_000_000) -> Tensor:
    """(B, P) mean over query tokens of the best match; the first token of every text is left out.

    Blocks of passages of equal length are scored at once, so no pad row can win a maximum. `chunk` bounds the
    numbers of one block of similarities.
    """
    rows, owners = _inner(queries)  # (Tq, k), (Tq,)
    best = []
    for run, part in passages.layout.cut(passages.multi):
        per_step = max(1, chunk // max(1, len(rows) * run.length))
        inner = part.view(run.texts, run.length, -1)[:, 1:]
        for block in torch.split(inner, per_step):  # (n, t - 1, k)
            similar = rows @ block.flatten(0, 1).T  # (Tq, n * (t - 1))
            best.append(similar.view(len(rows), len(block), -1).amax(dim=2))  # (Tq, n)
    matches = torch.cat(best, dim=1)  # (Tq, P)
    n = len(queries.layout.offsets) - 1
    counts = torch.bincount(owners, minlength=n)[:, None]
    return matches.new_zeros(n, matches.shape[1]).index_add(0, owners, matches) / counts


def _inner(side: Side) -> tuple[Tensor, Tensor]:
    keep = torch.ones(len(side.ids), dtype=torch.bool)
    keep[torch.as_tensor(side.layout.offsets[:-1])] = False
    return side.multi[keep], side.owners[keep]
