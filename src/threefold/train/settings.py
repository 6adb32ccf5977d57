"""How to train: what every loop is told, and what that of an embedder is told beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from threefold.config import Settings
from threefold.errors import ConfigError
from threefold.train.checks import check_numbers
from threefold.train.losses import LossWeights
from threefold.train.reader import TrainPrecision
from threefold.types import Representation

#: Parts of a model that may be kept as they are: the word table, the heads, and everything else.
Part = Literal["words", "heads", "body"]

#: Settings that may change when a run is resumed: they say how long, how often and in how much memory, not what is
#: learnt.
CLOCKS: Final = frozenset({"minutes", "checkpoint_every", "log_every", "sub_tokens", "recompute"})


@dataclass(frozen=True, slots=True)
class LoopSettings(Settings):
    """What the loop itself is told. Learning rates are peaks; all rise over `warmup` and fall linearly to a twentieth.

    minutes            end of the schedule by the clock; 0: by the number of batches
    warmup             part of the schedule
    clip               longest gradient of a step; infinity: any
    checkpoint_every, log_every  steps
    """

    minutes: float = 0.0
    body_lr: float = 1e-4
    head_lr: float = 1e-3
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.01
    checkpoint_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be from 0 to below 1; got {self.warmup}")
        if min(self.checkpoint_every, self.log_every) < 1:
            raise ConfigError("checkpoint_every and log_every must be at least 1")
        if not self.clip > 0:  # infinity is fine: no clipping
            raise ConfigError(f"clip must be positive; got {self.clip}")
        check_numbers(self, not_negative=("minutes", "body_lr", "head_lr", "weight_decay"))


@dataclass(frozen=True, slots=True)
class TrainSettings(LoopSettings):
    """How to train an embedder.

    word_lr       of the word table, which sees each row rarely
    loss          weights and temperatures of the objective
    teacher       weight of the distance to teacher vectors
    idf_steps     steps over which the sparse head is also pulled to `idf_scale` x IDF, fading to 0: without a
                  start, ReLU heads die or stay flat for thousands of steps
    matryoshka    weight of the losses at the shorter dimensions of the dense vector (those that the model declares)
                  and of the token vectors (`multi_dims`)
    heads         which representations are trained; empty: all that the model has
    freeze        parts that keep their weights
    precision     arithmetic of the layers: auto (bfloat16 where the device multiplies it fast, else float16 on a GPU
                  and float32 on a CPU), float32, ...
    sub_tokens    tokens that are in the network at a time; the batch is read twice, first for the loss, then for the
                  gradients (GradCache), so that its size is not bounded by memory. 0: all at once
    recompute     run the layers again in the backward pass instead of keeping what they made
    """

    word_lr: float = 1e-3
    loss: LossWeights = field(default_factory=LossWeights)
    teacher: float = 4.0
    idf_scale: float = 0.03
    idf_steps: int = 300
    matryoshka: float = 0.2
    multi_dims: tuple[int, ...] = ()
    heads: tuple[Representation, ...] = ()
    freeze: tuple[Part, ...] = ()
    precision: TrainPrecision = "auto"
    sub_tokens: int = 0
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)  # `super()` does not know the class that `slots` makes anew
        weights = ("teacher", "idf_scale", "idf_steps", "matryoshka")
        check_numbers(self, not_negative=("word_lr", *weights, "sub_tokens", "seed"))
        if min(self.multi_dims, default=1) < 1:
            raise ConfigError(f"multi_dims must be at least 1; got {min(self.multi_dims)}")
        if set(self.freeze) == set(get_args(Part)):
            raise ConfigError("freeze names every part of the model; nothing is left to train")


def rate(progress: float, warmup: float) -> float:
    """Factor on the learning rates at `progress` in [0, 1]."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 1.0 - 0.95 * min((progress - warmup) / (1.0 - warmup), 1.0)
