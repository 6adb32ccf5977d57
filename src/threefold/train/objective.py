"""The whole objective of a step, on the representations of a batch. Knows no network: what it is given may be leaves.

Every part is a mean over the items of all devices; a device contributes the part of that mean that its own items are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from threefold.errors import ShapeError
from threefold.train.losses import embedding_distillation, idf_distance, info_nce, joint_loss, teacher_scores
from threefold.train.losses.joint import Scores, weighted_mean, with_ensemble
from threefold.train.questions import Questions
from threefold.train.scores import Side, dense_matrix, multi_matrix, sparse_matrix
from threefold.train.settings import TrainSettings
from threefold.train.world import World
from threefold.types import Floats, Ints, Representation

#: Weight of the squared distance to IDF at the first step: weights are near 0.1, their squares near 0.01.
IDF_PULL = 10.0

_MATRIX: dict[Representation, Callable[[Side, Side], Tensor]] = {
    "dense": dense_matrix,
    "sparse": sparse_matrix,
    "multi": multi_matrix,
}


class Targets(NamedTuple):
    """Teacher vectors for some texts of a side: which pairs (m,), and unit vectors (m, d)."""

    rows: Ints
    vectors: Floats


#: Rows of the pair table -> teacher targets for the queries and for the positives, by place in these rows.
Teacher = Callable[[Ints], tuple[Targets, Targets]]


class Objective:
    """What is made small.

    heads       the representations that are trained
    dims        shorter dimensions of the dense vector
    idf         (vocab,) where the sparse head starts; None: no pull
    known       (T,) ids -> bool, the tokens that are not special
    projection  student's vectors -> the teacher's space, where the dimensions differ
    """

    def __init__(
        self,
        settings: TrainSettings,
        heads: tuple[Representation, ...],
        dims: tuple[int, ...],
        known: Callable[[Tensor], Tensor],
        world: World,
        *,
        idf: Tensor | None = None,
        projection: nn.Linear | None = None,
    ) -> None:
        self.settings, self.heads, self.dims, self.known, self.world = settings, heads, dims, known, world
        self.idf, self.projection = idf, projection

    def __call__(
        self, asked: Questions, q: Side, p: Side, step: int, aims: tuple[Targets, Targets] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this device and its parts.

        q  this device's queries; p  the passages of all devices, end to end
        """
        device, t = q.dense.device, self.settings.loss.temperature
        targets = torch.from_numpy(asked.targets).to(device)
        forbidden = torch.from_numpy(asked.forbidden).to(device)
        share = self.world.share(len(asked.pairs))
        scores = with_ensemble({head: _MATRIX[head](q, p) for head in self.heads}, self.settings.loss)
        joint, parts = joint_loss(scores, targets, forbidden, self.settings.loss)
        total = share * joint
        log = {name: share * part for name, part in parts.items()}
        shorter = self._shorter(q, p) if self.settings.matryoshka else []
        if cut := [info_nce(one, targets, forbidden, t) for one in shorter]:
            log["matryoshka"] = share * torch.stack(cut).mean()
            total = total + self.settings.matryoshka * log["matryoshka"]
        if asked.scores is not None and self.settings.loss.teacher_scores:
            log["teacher_scores"] = self._teacher_scores(scores, torch.from_numpy(asked.scores).to(q.dense))
            total = total + self.settings.loss.teacher_scores * log["teacher_scores"]
        own = _own(asked, p)
        if aims is not None and (pull := self._pull(asked, q, own, aims)) is not None:
            log["teacher"] = pull
            total = total + self.settings.teacher * pull
        if self.idf is not None and step < self.settings.idf_steps and "sparse" in self.heads:
            fade = 1.0 - step / self.settings.idf_steps
            total = total + fade * IDF_PULL * self._idf(own)
        return total, log

    def _shorter(self, q: Side, p: Side) -> list[Tensor]:
        """(B, P) scores of vectors that are cut to fewer dimensions (Kusupati et al. 2022, arXiv 2205.13147)."""
        found = []
        if "dense" in self.heads:
            shorter = [dim for dim in self.dims if dim < q.dense.shape[1]]
            found += [normalize(q.dense[:, :d], dim=-1) @ normalize(p.dense[:, :d], dim=-1).T for d in shorter]
        if "multi" in self.heads:
            found += [multi_matrix(_cut_multi(q, d), _cut_multi(p, d)) for d in self.settings.multi_dims]
        return found

    def _teacher_scores(self, scores: Scores, teacher: Tensor) -> Tensor:
        weights = self.settings.loss
        judged = ~teacher.isnan().all(dim=1)
        share = self.world.share(int(judged.sum()))
        if not share:
            return teacher.new_zeros(())
        losses = {
            name: teacher_scores(one[judged], teacher[judged], weights.temperature, weights.teacher_temperature)
            for name, one in scores.items()
        }
        return share * weighted_mean(losses, weights)

    def _pull(self, asked: Questions, q: Side, own: Side, aims: tuple[Targets, Targets]) -> Tensor | None:
        """Mean distance of all judged texts to the teacher's vectors; None if it judges none on any device."""
        first, second = aims[::-1] if asked.swapped else aims
        places = [torch.from_numpy(at[aim.rows]) for at, aim in ((asked.query_at, first), (asked.passage_at, second))]
        ours = torch.cat([side.dense[place.to(q.dense.device)] for side, place in zip((q, own), places, strict=True)])
        total = self.world.total(len(ours))
        if not total:
            return None
        if not len(ours):
            return ours.new_zeros(())
        theirs = torch.from_numpy(np.concatenate([aim.vectors for aim in (first, second) if len(aim.rows)])).to(ours)
        if self.projection is not None:
            ours = normalize(self.projection(ours), dim=-1)
        if ours.shape[1] != theirs.shape[1]:
            raise ShapeError(
                f"the teacher's vectors have {theirs.shape[1]} dimensions, the student's {ours.shape[1]}; "
                "say teacher_dim, and a projection is learnt"
            )
        return len(ours) / total * embedding_distillation(ours, theirs)

    def _idf(self, own: Side) -> Tensor:
        assert self.idf is not None
        known = self.known(own.ids)
        share = self.world.share(int(known.sum()))
        if not share:
            return own.weights.new_zeros(())
        wanted = self.idf[own.ids] * self.settings.idf_scale
        return share * idf_distance(own.weights[known], wanted[known].to(own.weights.dtype))


def _own(asked: Questions, p: Side) -> Side:
    """The part of the passages that belongs to this device."""
    if len(asked.passages) == 1:
        return p
    before = asked.passages[: asked.rank]
    texts = slice(first := sum(map(len, before)), first + len(asked.own))
    tokens = slice(start := sum(len(one.ids) for one in before), start + len(asked.own.ids))
    return Side(p.dense[texts], p.weights[tokens], p.multi[tokens], p.ids[tokens], asked.own.layout)


def _cut_multi(side: Side, dim: int) -> Side:
    return side.holding(side.dense, side.weights, normalize(side.multi[:, :dim], dim=-1))
