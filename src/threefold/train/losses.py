"""The objectives of M3, each one formula.

Chen et al. 2024 (arXiv 2402.03216), section 3.3, with the weights of the released code (FlagEmbedding 1.4
`finetune/embedder/encoder_only/m3/modeling.py`). Letters: B queries, P passages; scores are (B, P) before the
temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from threefold.config import Settings
from threefold.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LossWeights(Settings):
    """How much each part counts.

    temperature  divides every score, 0.02 in the paper
    dense, sparse, multi   weights in the ensemble score, 1 / 0.3 / 1 in the released code
    sparse_loss  weight of the sparse losses, 0.1 in the released code; those of the other heads have 1
    distil       weight of self-distillation against the contrastive part, 1.0 in the released code
    """

    temperature: float = 0.02
    dense: float = 1.0
    sparse: float = 0.3
    multi: float = 1.0
    sparse_loss: float = 0.1
    distil: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be positive; got {self.temperature}")


def info_nce(scores: Tensor, targets: Tensor, forbidden: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax(s / t)[target]; `forbidden` (B, P) marks false negatives, which are left out.

    van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    logits = (scores / temperature).masked_fill(forbidden, -torch.inf)
    return cross_entropy(logits, targets)


def soft_cross_entropy(scores: Tensor, teacher: Tensor, forbidden: Tensor, temperature: float) -> Tensor:
    """Mean of -sum softmax(teacher / t) log softmax(s / t); the teacher carries no gradient."""
    goal = torch.softmax((teacher.detach() / temperature).masked_fill(forbidden, -torch.inf), dim=-1)
    logits = (scores / temperature).masked_fill(forbidden, -torch.inf)
    logs = torch.log_softmax(logits, dim=-1).masked_fill(forbidden, 0.0)
    return -(goal * logs).sum(dim=-1).mean()


def joint_loss(
    dense: Tensor, sparse: Tensor, multi: Tensor, targets: Tensor, forbidden: Tensor, w: LossWeights
) -> tuple[Tensor, dict[str, float]]:
    """(L + L') / 2 of the paper: contrastive on each head and on their sum, and the sum as teacher of each.

    s_e = w_d s_d + w_s s_s + w_m s_m
    L   = (L_d + c L_s + L_m + L_e) / 4       InfoNCE, c = `sparse_loss`
    L'  = (L'_d + c L'_s + L'_m) / 3          soft cross-entropy against softmax(s_e), detached
    """
    t = w.temperature
    ensemble = w.dense * dense + w.sparse * sparse + w.multi * multi
    parts = {
        "dense": info_nce(dense, targets, forbidden, t),
        "sparse": info_nce(sparse, targets, forbidden, t),
        "multi": info_nce(multi, targets, forbidden, t),
        "ensemble": info_nce(ensemble, targets, forbidden, t),
    }
    hard = (parts["dense"] + w.sparse_loss * parts["sparse"] + parts["multi"] + parts["ensemble"]) / 4
    soft = [soft_cross_entropy(s, ensemble, forbidden, t) for s in (dense, sparse, multi)]
    distil = (soft[0] + w.sparse_loss * soft[1] + soft[2]) / 3
    total = (hard + w.distil * distil) / (1 + w.distil)
    return total, {name: float(value.detach()) for name, value in (parts | {"distil": distil}).items()}


def embedding_distillation(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos between the student's vectors (n, d) and the teacher's (n, d), both of unit length.

    Reimers and Gurevych 2020 (arXiv 2004.09813) use the squared distance, which is twice this for unit vectors.
    """
    return (1.0 - (vectors * teacher).sum(dim=-1)).mean()
