"""The objectives of a cross-encoder, each one formula.

Letters: g queries, c candidates of each. Logits are (g, c): the first column is the passage that answers, -inf stands
where a query has fewer candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from threefold.config import Settings
from threefold.errors import ConfigError
from threefold.train.checks import check_numbers
from threefold.train.losses import teacher_scores

Contrast = Literal["listwise", "pointwise", "none"]
Distil = Literal["kl", "margin", "none"]


@dataclass(frozen=True, slots=True)
class CrossLoss(Settings):
    """What is learnt.

    contrast       from the labels: listwise compares the candidates of a query, pointwise judges each alone, none
                   leaves it to the teacher
    distil         from a teacher's scores, where the data have them: kl (its distribution over the candidates) or
                   margin (its differences to the positive); none ignores them
    distil_weight  of that part against the contrastive one
    temperature    divides the teacher's scores and the logits in kl
    """

    contrast: Contrast = "listwise"
    distil: Distil = "kl"
    distil_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, positive=("temperature",), not_negative=("distil_weight",))
        if self.contrast == "none" and (self.distil == "none" or not self.distil_weight):
            raise ConfigError("contrast and distil are both none: there is nothing to learn")


def as_matrix(values: Tensor, counts: Tensor, fill: float) -> Tensor:
    """(m,) values of all candidates, query after query, -> (g, c); `counts` (g,) candidates of each."""
    places = torch.arange(int(counts.max()), device=values.device) < counts[:, None]
    matrix = values.new_full(places.shape, fill)
    return matrix.masked_scatter(places, values)


def listwise(logits: Tensor) -> Tensor:
    """Mean of -log softmax(s)[0]: the positive against the other candidates of its query.

    Gao et al. 2021 (arXiv 2101.08751), equation 3, "localized contrastive estimation"; the loss of FlagEmbedding's
    rerankers.
    """
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def pointwise(logits: Tensor) -> Tensor:
    """Mean over all pairs of the binary cross-entropy: 1 for the positive, 0 for the others.

    Nogueira and Cho 2019 (arXiv 1901.04085), equation 1.
    """
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1.0
    there = logits != -torch.inf  # a logit that is not a number stays, and stops the run
    return binary_cross_entropy_with_logits(logits[there], labels[there])


def margin_mse(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ((s+ - s-) - (t+ - t-))^2 over the negatives with a teacher's score (NaN: none).

    Hofstätter et al. 2020 (arXiv 2010.02666), equation 4. The teacher must have scored every positive.
    """
    known = ~teacher.isnan()
    known[:, 0] = False
    ours, theirs = logits[:, :1] - logits, teacher[:, :1] - teacher
    return ((ours - theirs)[known] ** 2).mean()


def cross_loss(logits: Tensor, teacher: Tensor, w: CrossLoss) -> tuple[Tensor, dict[str, float]]:
    """The whole objective and its parts.

    teacher  (g, c) scores of another model; NaN: unknown, or no candidate
    """
    parts: dict[str, Tensor] = {}
    if w.contrast != "none":
        parts[w.contrast] = listwise(logits) if w.contrast == "listwise" else pointwise(logits)
    known = ~teacher.isnan()
    taught = known[:, 0] & (known.sum(dim=1) > 1)
    total = parts[w.contrast] if w.contrast in parts else logits[:0].sum()  # 0, and there is something to differentiate
    if w.distil != "none" and bool(taught.any()):
        own, goal = logits[taught], teacher[taught]
        if w.distil == "kl":
            parts["kl"] = teacher_scores(own, goal, w.temperature, w.temperature)
        else:
            parts["margin"] = margin_mse(own, goal)
        total = total + w.distil_weight * parts[w.distil]
    return total, {name: float(value.detach()) for name, value in parts.items()}
