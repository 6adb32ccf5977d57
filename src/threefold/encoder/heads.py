"""Hidden states -> dense, sparse, multi. The published definitions of BGE-M3 on a packed batch.

Chen et al. 2024, "M3-Embedding" (arXiv 2402.03216), section 3.2; details as in FlagEmbedding 1.4
`finetune/embedder/encoder_only/m3/modeling.py`. Knows nothing of texts or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from threefold.config import Settings
from threefold.encoder.attention import Layout
from threefold.types import Floats, Ints, Ragged, Sparse, offsets_of

Pooling = Literal["cls", "mean", "last"]


@dataclass(frozen=True, slots=True)
class HeadsConfig(Settings):
    """Which heads a checkpoint has.

    pooling    how the dense vector is read: the first token, the mean of all tokens, or the last token
    normalize  whether the dense vector gets unit length
    sparse     whether there is a sparse head
    multi_dim  dimensions of a token vector; 0 when there is no multi head
    """

    pooling: Pooling = "cls"
    normalize: bool = True
    sparse: bool = True
    multi_dim: int = 1024


class Heads(nn.Module):
    """The two learned heads; the dense head has no weights."""

    def __init__(self, config: HeadsConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.sparse = nn.Linear(hidden, 1) if config.sparse else None
        self.multi = nn.Linear(hidden, config.multi_dim) if config.multi_dim else None

    def dense_vectors(self, hidden: Tensor, layout: Layout) -> Tensor:
        """(n, d) from the states (T, d) of the last layer."""
        pooled = pool(hidden, layout, self.config.pooling).float()
        return normalize(pooled, dim=-1) if self.config.normalize else pooled

    def sparse_weights(self, hidden: Tensor) -> Tensor:
        """(T,) weight of every token: ReLU(W h + b). No logarithm, no IDF."""
        assert self.sparse is not None
        return relu(self.sparse(hidden)).squeeze(-1).float()

    def multi_vectors(self, hidden: Tensor) -> Tensor:
        """(T, k) unit vectors of every token; the caller drops the first of each text."""
        assert self.multi is not None
        return normalize(self.multi(hidden).float(), dim=-1)


def pool(hidden: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """(n, d) one state per text."""
    offsets = layout.borders(hidden.device)
    if pooling == "cls":
        return hidden[offsets[:-1]]
    if pooling == "last":
        return hidden[offsets[1:] - 1]
    means = [part.view(run.texts, run.length, -1).float().mean(dim=1) for run, part in layout.cut(hidden)]
    return torch.cat(means) if len(means) > 1 else means[0]


def inner_rows(layout: Layout) -> tuple[Ints, Ints]:
    """Rows of all tokens but the first of each text (`<s>` is dropped, `</s>` is kept), and their offsets."""
    keep = np.ones(int(layout.offsets[-1]), dtype=bool)
    keep[layout.offsets[:-1]] = False
    return np.flatnonzero(keep), offsets_of(np.diff(layout.offsets) - 1)


def gather_multi(vectors: Floats, layout: Layout) -> Ragged:
    """(T, k) vectors of all tokens -> one ragged row set per text, without the first token."""
    rows, offsets = inner_rows(layout)
    return Ragged(vectors[rows], offsets)


def gather_sparse(weights: Floats, ids: Ints, layout: Layout, vocab: int, special: tuple[int, ...]) -> Sparse:
    """Max weight per distinct id of each text, special ids and zeros dropped, ids ascending. No loop.

    weights  (T,) float32; ids (T,)
    """
    texts = np.repeat(np.arange(len(layout.offsets) - 1, dtype=np.int64), np.diff(layout.offsets))
    keep = (weights > 0) & ~np.isin(ids, special)
    keys = texts[keep] * vocab + ids[keep]
    order = np.argsort(keys, kind="stable")
    keys, kept = keys[order], weights[keep][order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))  # where a new (text, id) begins
    best = np.maximum.reduceat(kept, first) if len(first) else kept
    owners, distinct = np.divmod(keys[first], vocab)
    counts = np.bincount(owners, minlength=len(layout.offsets) - 1)
    return Sparse(distinct.astype(np.int32), best.astype(np.float32), offsets_of(counts), vocab)
