"""The contrastive loss: a query's own passage against all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(scores: Tensor, targets: Tensor, forbidden: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax(s / t)[target]; `forbidden` (B, P) marks false negatives, which are left out.

    van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    logits = (scores / temperature).masked_fill(forbidden, -torch.inf)
    return cross_entropy(logits, targets)
