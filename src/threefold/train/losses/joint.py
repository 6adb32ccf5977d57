"""The objective of M3: contrastive on each head and on their sum, and the sum as teacher of each.

Chen et al. 2024 (arXiv 2402.03216), section 3.3, with the weights of the released code (FlagEmbedding 1.4
`finetune/embedder/encoder_only/m3/modeling.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.config import Settings
from threefold.train.checks import check_numbers
from threefold.train.losses.contrastive import info_nce
from threefold.train.losses.distillation import soft_cross_entropy
from threefold.types import Representation

#: Name of a head, or of the fused score -> its scores (B, P).
Scores = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LossWeights(Settings):
    """How much each part counts.

    temperature  divides every score, 0.02 in the paper
    dense, sparse, multi   weights in the ensemble score, 1 / 0.3 / 1 in the released code
    sparse_loss  weight of the sparse losses, 0.1 in the released code; those of the other heads have 1
    distil       weight of self-distillation against the contrastive part, 1.0 in the released code
    teacher_scores       weight of the distance to the scores of another model, where the data have such scores
    teacher_temperature  divides those scores; 1.0 in the released code, which is right for logits of a cross-encoder
    """

    temperature: float = 0.02
    dense: float = 1.0
    sparse: float = 0.3
    multi: float = 1.0
    sparse_loss: float = 0.1
    distil: float = 1.0
    teacher_scores: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        weights = ("dense", "sparse", "multi", "sparse_loss", "distil", "teacher_scores")
        check_numbers(self, positive=("temperature", "teacher_temperature"), not_negative=weights)

    def of_loss(self, name: str) -> float:
        """Weight of the losses of one head, or of the ensemble."""
        return self.sparse_loss if name == "sparse" else 1.0


def with_ensemble(heads: Mapping[Representation, Tensor], w: LossWeights) -> Scores:
    """The scores of the heads and, where there are several, s_e = w_d s_d + w_s s_s + w_m s_m."""
    named: dict[str, Tensor] = dict(heads.items())
    if len(named) > 1:
        named["ensemble"] = torch.stack([getattr(w, name) * scores for name, scores in heads.items()]).sum(0)
    return named


def joint_loss(scores: Scores, targets: Tensor, forbidden: Tensor, w: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the scores that `with_ensemble` gives, and its parts.

    L   = (L_d + c L_s + L_m + L_e) / 4       InfoNCE, c = `sparse_loss`
    L'  = (L'_d + c L'_s + L'_m) / 3          soft cross-entropy against softmax(s_e), detached
    """
    t = w.temperature
    parts = {name: info_nce(one, targets, forbidden, t) for name, one in scores.items()}
    total = weighted_mean(parts, w)
    if "ensemble" in scores and w.distil:
        soft = {
            name: soft_cross_entropy(one, scores["ensemble"], forbidden, t)
            for name, one in scores.items()
            if name != "ensemble"
        }
        parts["distil"] = weighted_mean(soft, w)
        total = (total + w.distil * parts["distil"]) / (1 + w.distil)
    return total, parts


def weighted_mean(losses: Mapping[str, Tensor], w: LossWeights) -> Tensor:
    """Sum of the weighted losses divided by their number, as in the released code."""
    return torch.stack([w.of_loss(name) * loss for name, loss in losses.items()]).sum() / len(losses)
