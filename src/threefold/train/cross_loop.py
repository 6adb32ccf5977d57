"""Training of cross-encoders: pairs of query and candidate, packed. The loop itself is in `updates.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, get_args

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.cross_model import CrossModel
from threefold.encoder.precision import choose_device
from threefold.errors import ConfigError
from threefold.train.cross_groups import Frame, Groups, pair_tokens
from threefold.train.cross_losses import CrossLoss, as_matrix, cross_loss
from threefold.train.reader import NetworkReader, TrainPrecision
from threefold.train.settings import LoopSettings
from threefold.train.updates import Updates
from threefold.train.world import World
from threefold.types import Ints

#: Decay rates of AdamW's two means: those that PyTorch has where none are named.
BETAS: Final = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class CrossSettings(LoopSettings):
    """How to train a cross-encoder.

    precision  of the products in the network, as of an embedder. Weights and updates are float32
    """

    body_lr: float = 3e-5
    head_lr: float = 3e-4
    warmup: float = 0.1
    loss: CrossLoss = field(default_factory=CrossLoss)
    precision: str = "auto"

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)  # `super()` does not know the class that `slots` makes anew
        if self.precision not in get_args(TrainPrecision):
            raise ConfigError(
                f"precision must be auto, float32 or bfloat16, or float16 on a GPU; got {self.precision!r}"
            )


class CrossTrainer(Updates):
    """A cross-encoder that learns from the candidates of queries.

    groups, plan  the candidates, and which queries each step takes
    folder        for checkpoints
    frame         what stands around a pair
    origin        whatever else the run was made from, by name: a checkpoint with another one is of another run
    """

    settings: CrossSettings
    items: ClassVar[str] = "queries"

    def __init__(
        self,
        model: CrossModel,
        groups: Groups,
        plan: Sequence[Ints],
        settings: CrossSettings,
        folder: Path,
        frame: Frame,
        *,
        device: str | torch.device = "auto",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.groups, self.frame = model.to(choose_device(str(device))), groups, frame
        self.reader = NetworkReader(model.network, settings.precision)
        shared = {"weight_decay": settings.weight_decay, "betas": BETAS}
        rates = ((model.network, settings.body_lr), (model.head, settings.head_lr))
        trained = [{"params": list(part.parameters()), "lr": lr, "peak": lr, **shared} for part, lr in rates]
        modules, dtype = {"model": model}, self.reader.dtype
        super().__init__(modules, trained, plan, groups.sizes, settings, folder, World(), dtype, origin=origin)

    def logits(self, rows: Ints) -> Tensor:
        """(m,) of all candidates of these rows, row after row."""
        pairs = pair_tokens(self.groups, rows, self.frame)
        order = np.argsort(pairs.lengths, kind="stable")  # neighbours of equal length share a block of attention
        packed = pairs.take(order)
        layout = Layout.of(packed.lengths)
        batch = self.reader.batch(packed.ids, layout, packed.seconds if self.model.config.token_types else None)
        with self.reader.mixed():
            hidden = self.reader.states(batch)
        first = hidden[layout.borders(self.device)[:-1]].float()  # (m, d)
        logits: Tensor = self.model.head(first)
        return logits[torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)]

    def loss(self, rows: Ints) -> tuple[Tensor, dict[str, float]]:
        """The objective on these rows; `first` is the share of them whose positive has the best logit."""
        groups = self.groups
        counts = np.diff(groups.offsets)[rows]
        places = np.concatenate([np.arange(groups.offsets[row], groups.offsets[row + 1]) for row in rows])
        sizes = torch.from_numpy(counts).to(self.device)
        logits = as_matrix(self.logits(rows), sizes, -torch.inf)
        teacher = as_matrix(torch.from_numpy(groups.teacher[places]).to(self.device), sizes, torch.nan)
        total, log = cross_loss(logits, teacher, self.settings.loss)
        return total, log | {"first": float((logits.argmax(dim=1) == 0).float().mean())}

    def gradients(self, rows: Ints) -> dict[str, float]:
        total, log = self.loss(rows)
        torch.autograd.backward(self.scaler.scale(total))
        return log | {"total": float(total.detach())}
