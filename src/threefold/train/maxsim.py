"""The best match of every query token in every passage, without keeping the similarities for the backward pass.

Letters: Tq tokens of all queries, Tp tokens of all passages, P passages, k dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from threefold.encoder.attention import Layout

#: Numbers of one block of similarities, and of gathered rows in the backward pass: 16 MB each in float32.
CHUNK = 4_000_000


def best_matches(rows: Tensor, passages: Tensor, layout: Layout, chunk: int = CHUNK) -> Tensor:
    """(Tq, P) the largest inner product of each query row with a row of each passage but its first.

    rows      (Tq, k) query tokens
    passages  (Tp, k) packed tokens of passages, each of two or more

    The forward pass works in blocks of at most `chunk` similarities and keeps only which row was the best: 4 bytes
    for each of Tq x P, where autograd would keep 4 for each of Tq x Tp (8.6 GB at 512 x 8,192 tokens, 8 queries and
    64 passages). The gradient of a maximum goes to the row that won, so the backward pass needs no similarities either.
    """
    best: Callable[[Tensor, Tensor, Layout, int], Tensor] = _BestMatches.apply
    return best(rows, passages, layout, chunk)


class _BestMatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, passages: Tensor, layout: Layout, chunk: int) -> Tensor:
        best, places = [], []
        for run, part in layout.cut(passages):
            inner = part.view(run.texts, run.length, -1)[:, 1:]
            per_step = max(1, chunk // max(1, len(rows) * run.length))
            for number, block in enumerate(torch.split(inner, per_step)):  # (n, t - 1, k)
                similar = (rows @ block.flatten(0, 1).T).view(len(rows), len(block), -1)  # (Tq, n, t - 1)
                values, winners = similar.max(dim=2)  # (Tq, n)
                first = run.start + run.length * (number * per_step + torch.arange(len(block), device=rows.device)) + 1
                best.append(values)
                places.append((winners + first).int())
        ctx.save_for_backward(rows, passages, torch.cat(places, dim=1))
        ctx.chunk = chunk
        return torch.cat(best, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient g (Tq, P) goes to both sides of every best match:

            d rows[i]      =  sum over j of                           g[i, j] passages[place[i, j]]
            d passages[r]  =  sum over all i, j with place[i, j] = r  g[i, j] rows[i]

        Both are products with a sparse (Tq, Tp) matrix of one number per query token and passage.
        """
        rows, passages, places = ctx.saved_tensors
        d_rows, d_passages = torch.zeros_like(rows), torch.zeros_like(passages)
        tokens = torch.arange(len(rows), device=rows.device)
        per_step = max(1, ctx.chunk // max(1, len(rows)))
        for part, g in zip(
            torch.split(places, per_step, dim=1), torch.split(gradients[0], per_step, dim=1), strict=True
        ):
            mine, theirs = tokens[:, None].expand(part.shape).flatten(), part.flatten().long()
            d_rows += _product(mine, theirs, g.flatten(), passages, len(rows))
            d_passages += _product(theirs, mine, g.flatten(), rows, len(passages))
        return d_rows, d_passages, None, None


def _product(to: Tensor, source: Tensor, factors: Tensor, rows: Tensor, n: int) -> Tensor:
    """(n, k) sums of factors[i] * rows[source[i]] by to[i]."""
    matrix = torch.sparse_coo_tensor(torch.stack([to, source]), factors, (n, len(rows)), check_invariants=False)
    summed: Tensor = torch.sparse.mm(matrix, rows)
    return summed
