"""Training on pairs: one update is

    rows of the plan -> questions -> gradients of the objective -> clip -> AdamW

The loop itself, with its checkpoints, is in `updates.py`; the objective in `objective.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.model import Model
from threefold.errors import ConfigError
from threefold.train.batches import PairTable
from threefold.train.gradients import backward
from threefold.train.masks import FalseNegatives
from threefold.train.objective import Objective, Targets, Teacher
from threefold.train.parts import check_lengths, freeze, parameter_groups, projection, trained_heads
from threefold.train.questions import Questions, ask
from threefold.train.reader import Reader
from threefold.train.scores import Side
from threefold.train.settings import TrainSettings, rate
from threefold.train.updates import Report, Updates, Watch
from threefold.train.world import World
from threefold.types import Floats, Ints

__all__ = ["Report", "Targets", "Teacher", "TrainSettings", "Trainer", "Watch", "rate"]


class Trainer(Updates):
    """An embedder that learns from pairs.

    table, plan  the pairs, and which of them each step takes: of all devices together
    folder       for checkpoints
    special      token ids without a sparse weight
    idf          (vocab,) where a new sparse head starts
    teacher      gives vectors for some texts; `teacher_dim`: their dimensions, if they are not the model's
    device       None: where the model is
    world        the processes that train together, each on its own device
    """

    settings: TrainSettings

    def __init__(
        self,
        model: Model,
        table: PairTable,
        plan: Sequence[Ints],
        settings: TrainSettings,
        folder: Path,
        *,
        special: tuple[int, ...],
        idf: Floats | None = None,
        teacher: Teacher | None = None,
        teacher_dim: int | None = None,
        device: str | torch.device | None = None,
        world: World | None = None,
    ) -> None:
        if device is not None:
            model.to(device)
        self.model, self.table, self.teacher = model, table, teacher
        check_lengths(model, table.query, table.positive, table.negative)
        self.masks = FalseNegatives(table)
        heads, world = trained_heads(model, settings), world or World()
        self.reader = Reader(model, special, heads, settings.precision, recompute=settings.recompute)
        self.projection = projection(model, teacher_dim, settings.seed)
        self.objective = Objective(
            settings,
            heads,
            model.config.matryoshka,
            self.reader.known,
            world,
            idf=None if idf is None else torch.as_tensor(idf, device=self.reader.device),
            projection=self.projection,
        )
        freeze(model, settings)
        groups = parameter_groups(model, settings, self.projection)
        modules = {"model": model} | ({} if self.projection is None else {"projection": self.projection})
        super().__init__(modules, groups, plan, table.sizes, settings, folder, world, self.reader.dtype)

    def questions(self, rows: Ints) -> Questions:
        """What this device reads and answers in this step. Whether sides are exchanged is the same on every device."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        swapped = bool(self.table.symmetric[rows].all()) and rng.random() < 0.5
        return ask(self.table, self.masks, rows, swapped=swapped, rank=self.world.rank, world=self.world.size)

    def loss(self, rows: Ints) -> tuple[Tensor, dict[str, float]]:
        """The whole objective on these pairs, with its graph down to the parameters: what `gradients` must equal."""
        if self.world.size > 1:
            raise ConfigError("Trainer.loss is for one device; several exchange gradients in Trainer.gradients")
        asked = self.questions(rows)
        total, log = self._objective(asked, self.reader(asked.queries), self.reader(asked.own))
        return total, {name: float(part.detach()) for name, part in log.items()}

    def gradients(self, rows: Ints) -> dict[str, float]:
        """Gradients of `loss`, in as much memory as the settings allow, over all devices."""
        asked = self.questions(rows)
        log: dict[str, Tensor] = {}

        def loss(q: Side, p: Side) -> Tensor:
            total, parts = self._objective(asked, q, p)
            log.update({"total": total} | parts)
            return self.scaler.scale(total)

        backward(asked, self.reader, self.world, loss, self.settings.sub_tokens)
        self.world.sum_gradients(self.trained())
        return self.world.numbers(log)

    def _objective(self, asked: Questions, q: Side, p: Side) -> tuple[Tensor, dict[str, Tensor]]:
        aims = None if self.teacher is None else self.teacher(asked.pairs)
        return self.objective(asked, q, p, self.step, aims)
