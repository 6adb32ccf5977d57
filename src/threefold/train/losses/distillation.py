"""Learning the scores of a teacher: of the fused score of the same model, or of another model."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy(
    scores: Tensor, teacher: Tensor, forbidden: Tensor, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """Mean of -sum softmax(teacher / t') log softmax(s / t); the teacher carries no gradient. t' is t if not given.

    Hinton et al. 2015 (arXiv 1503.02531), equation 1. Its gradient is that of the Kullback-Leibler divergence, which
    is smaller by the entropy of the teacher.
    """
    warm = temperature if teacher_temperature is None else teacher_temperature
    goal = torch.softmax((teacher.detach() / warm).masked_fill(forbidden, -torch.inf), dim=-1)
    logits = (scores / temperature).masked_fill(forbidden, -torch.inf)
    logs = torch.log_softmax(logits, dim=-1).masked_fill(forbidden, 0.0)
    return -(goal * logs).sum(dim=-1).mean()


def teacher_scores(scores: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence from softmax(teacher / t') to softmax(s / t) over each query's own candidates.

    teacher  (B, P) scores of another model, NaN where it gave none; every query has two or more

    FlagEmbedding 1.4 `abc/finetune/embedder/AbsModeling.py`, `distill_loss`, which has t' = 1 and keeps the constant
    entropy of the teacher; without it a student that agrees has a loss of 0.
    """
    unknown = teacher.isnan()
    known = teacher.detach().masked_fill(unknown, -torch.inf) / teacher_temperature
    logs = torch.log_softmax(known, dim=-1).masked_fill(unknown, 0.0)
    entropy = -(logs.exp() * logs).masked_fill(unknown, 0.0).sum(dim=-1).mean()
    filled = teacher.masked_fill(unknown, 0.0)
    return soft_cross_entropy(scores, filled, unknown, temperature, teacher_temperature) - entropy
