"""The whole network: BERT / XLM-RoBERTa (post-LayerNorm encoder) on packed batches, from ids to hidden states.

Devlin et al. 2018 (arXiv 1810.04805); Conneau et al. 2019 (arXiv 1911.02116). One class serves both families:
they differ in where positions start. Knows nothing of texts, heads, files or devices. Read from top to bottom.

Letters: T tokens of all texts in the batch, d hidden size, f feed-forward size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from threefold.config import Settings
from threefold.encoder.attention import Layout, attend, best_path
from threefold.encoder.transfer import to_device
from threefold.errors import ConfigError
from threefold.types import Ints


@dataclass(frozen=True, slots=True)
class NetworkConfig(Settings):
    """Sizes of the network. The defaults are those of bge-m3.

    first_position  row of the position table that the first token takes: 0 in BERT, padding id + 1 in XLM-R
    types           rows of the token type table; the first is added to every token
    """

    vocab: int = 250_002
    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    ffn: int = 4096
    positions: int = 8194
    first_position: int = 2
    types: int = 1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab", "hidden", "layers", "heads", "ffn", "positions", "types"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.first_position <= self.positions - 3:
            raise ConfigError(f"first_position {self.first_position} leaves no room in {self.positions} positions")
        if self.hidden % self.heads:
            raise ConfigError(f"hidden size {self.hidden} is not a multiple of {self.heads} heads")

    @property
    def max_tokens(self) -> int:
        """Longest text: 8194 - 2 = 8192 for bge-m3."""
        return self.positions - self.first_position

    @property
    def flops_per_token(self) -> int:
        """Multiply-adds of the matrix products times two, without attention scores (which grow with length)."""
        per_layer = 4 * self.hidden * self.hidden + 2 * self.hidden * self.ffn
        return 2 * self.layers * per_layer


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A packed batch on its device.

    ids        (T,) int64
    positions  (T,) int64 rows of the position table
    layout     where each text is
    types      (T,) int64 rows of the token type table; None: the first row for every token
    """

    ids: Tensor
    positions: Tensor
    layout: Layout
    types: Tensor | None = None

    @classmethod
    def of(
        cls, ids: Ints, layout: Layout, first_position: int, device: torch.device, seconds: Ints | None = None
    ) -> Batch:
        """From the ids (T,) of texts end to end. `seconds` (n,): the place in each text from which its type is 1."""
        lengths = np.diff(layout.offsets)
        places = np.arange(len(ids), dtype=np.int64) - np.repeat(layout.offsets[:-1], lengths)
        types = None
        if seconds is not None:
            types = to_device((places >= np.repeat(seconds, lengths)).astype(np.int64), device)
        return cls(
            to_device(ids.astype(np.int64), device),
            to_device(places + first_position, device),
            layout,
            types,
        )


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, f = config.hidden, config.ffn
        self.heads = config.heads
        self.qkv = nn.Linear(d, 3 * d)
        self.attended = nn.Linear(d, d)
        self.attended_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.up = nn.Linear(d, f)
        self.down = nn.Linear(f, d)
        self.down_norm = nn.LayerNorm(d, eps=config.norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.attended_norm(x + self._attended(x, layout))  # (T, d)
        h = self.down(gelu(self.up(x)))  # (T, f) -> (T, d); the exact (erf) GELU
        states: Tensor = self.down_norm(x + h)
        return states

    def _attended(self, x: Tensor, layout: Layout) -> Tensor:
        """(T, d). Queries, keys and values end here: kept, they would be a third of a layer's memory."""
        qkv = self.qkv(x)  # (T, 3 * d)
        path = best_path(qkv.device, qkv.dtype, x.shape[1] // self.heads)
        attended: Tensor = self.attended(attend(qkv, self.heads, layout, path))
        return attended


class Network(nn.Module):
    """Ids in, hidden states out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.types = nn.Embedding(config.types, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, batch: Batch, between: Callable[[], None] | None = None) -> Tensor:
        """(T, d) hidden states of the last layer. `between` is called before every layer; a server runs queries there.

        It may call this network again: nothing is kept between two calls.
        """
        x = self.embed(batch)  # (T, d)
        for layer in self.layers:
            if between is not None:
                between()
            x = layer(x, batch.layout)
        return x

    def embed(self, batch: Batch, words: Tensor | None = None) -> Tensor:
        """(T, d) what the first layer reads: word, place and type of every token.

        words  (T, d) vectors of the ids, where the caller has read them already
        """
        words = self.words(batch.ids) if words is None else words
        types = self.types.weight[0] if batch.types is None else self.types(batch.types)  # (d,) or (T, d)
        x: Tensor = self.norm(words + self.positions(batch.positions) + types)
        return x


@torch.no_grad()
def initialise(module: nn.Module, std: float = 0.02, seed: int = 0) -> None:
    """Random weights as BERT's (normal, 0.02), for training from scratch and for test checkpoints. Never on load."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0.0, std, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()
