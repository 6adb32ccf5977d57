"""Packed texts -> the three representations, with gradients, on any device and in mixed precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from threefold.encoder.attention import Layout
from threefold.encoder.model import Model
from threefold.encoder.network import Batch, Network
from threefold.encoder.precision import choose_precision
from threefold.errors import ConfigError
from threefold.train.packed import Packed
from threefold.train.scores import Side
from threefold.train.words import word_vectors
from threefold.types import Ints, Representation

#: Arithmetic of the layers; parameters, heads and losses are float32. `auto` is bfloat16 where the device multiplies it
#: fast, else float16 on a GPU and float32 on a CPU.
TrainPrecision = Literal["auto", "float32", "bfloat16", "float16"]


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """The numbers that the matrix products of the layers use."""
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision float16 is for GPUs; use bfloat16 or float32 on a CPU")
    chosen = choose_precision(precision, device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]


class NetworkReader:
    """A network as training reads with it.

    recompute  keep only the input of every layer and run the layers again in the backward pass (Chen et al. 2016,
               arXiv 1604.06174): memory of one layer, for a third more work
    """

    def __init__(self, network: Network, precision: str = "auto", *, recompute: bool = False) -> None:
        self.network, self.recompute = network, recompute
        self.device = network.words.weight.device
        self.dtype = arithmetic(precision, self.device)

    def batch(self, ids: Ints, layout: Layout, seconds: Ints | None = None) -> Batch:
        """Texts (T,) end to end, on the device. `seconds` (n,): the place in each from which its type is 1."""
        return Batch.of(ids, layout, self.network.config.first_position, self.device, seconds)

    def states(self, batch: Batch) -> Tensor:
        """(T, d) hidden states of the last layer, in the arithmetic of the surrounding `mixed`."""
        network = self.network
        again = self.recompute and torch.is_grad_enabled()
        x = network.embed(batch, word_vectors(network.words.weight, batch.ids))
        for layer in network.layers:
            x = checkpoint(layer, x, batch.layout, use_reentrant=False) if again else layer(x, batch.layout)
        return x

    def mixed(self) -> AbstractContextManager[object]:
        """Matrix products inside are done in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Reader(NetworkReader):
    """A model as training reads with it.

    heads    those whose representations are made; of the others a `Side` has zeros, or no dimensions
    special  token ids without a sparse weight
    """

    def __init__(
        self,
        model: Model,
        special: Sequence[int],
        heads: Sequence[Representation],
        precision: str = "auto",
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__(model.network, precision, recompute=recompute)
        self.model, self.heads = model, tuple(heads)
        self.special = torch.tensor(tuple(special), device=self.device)

    def __call__(self, texts: Packed) -> Side:
        layout = texts.layout
        batch = self.batch(texts.ids, layout)
        with self.mixed():
            hidden = self.states(batch)
        return self.side(hidden if self.dtype == torch.float32 else hidden.float(), batch.ids, layout)

    def side(self, hidden: Tensor, ids: Tensor, layout: Layout) -> Side:
        """What the heads make of the states (T, d)."""
        heads = self.model.heads
        weights, multi = hidden.new_zeros(len(ids)), hidden.new_zeros(len(ids), 0)
        if "sparse" in self.heads:
            weights = heads.sparse_weights(hidden) * self.known(ids)
        if "multi" in self.heads:
            multi = heads.multi_vectors(hidden)
        return Side(heads.dense_vectors(hidden, layout), weights, multi, ids, layout)

    def known(self, ids: Tensor) -> Tensor:
        """(T,) bool: tokens that are not special."""
        return ~torch.isin(ids, self.special)


def joined(sides: Sequence[Side]) -> Side:
    """All texts of several sides, in order."""
    if len(sides) == 1:
        return sides[0]
    dense, weights, multi = (torch.cat(parts) for parts in zip(*(side.tensors for side in sides), strict=True))
    lengths = np.concatenate([np.diff(side.layout.offsets) for side in sides])
    return Side(dense, weights, multi, torch.cat([side.ids for side in sides]), Layout.of(lengths))
