"""The network of `network.py` for inference on a CPU: same function, weights packed for the processor.

Built straight from the tensors of a checkpoint: the word table (half of bge-m3) stays in the mapped file, where all
processes share its pages, and only the rows of a batch are read; each matrix of the layers is packed as it comes.
Embeddings and norms stay in float. Where the kernels of `native.py` run, all layers are one call of theirs, and states
stay float32 on the way.

Letters: T tokens of all texts in the batch, d hidden size, f feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from threefold.encoder import native
from threefold.encoder.attention import Layout, attend
from threefold.encoder.native import NativeLayers
from threefold.encoder.network import Batch, Network, NetworkConfig
from threefold.encoder.products import FloatProduct, Int8Product, Product, fast_bfloat16
from threefold.encoder.stored import Reader, Stored

#: The feed-forward part runs over so many bytes of inner states at a time: they stay in the caches, a document of
#: 8,192 tokens needs no more memory than a short one, and the allocator reuses the pages. A buffer of more than a
#: few MB is given back to the system after each use, and its pages are cleared anew each time (docs/log.md).
INNER_BYTES = 8 << 20


def activations(precision: str, native: bool = False) -> torch.dtype:
    """In which numbers states travel between PyTorch's products. Where bfloat16 would be emulated, those beside int8
    products or our own kernels are float32."""
    if precision == "float32" or (not fast_bfloat16() and (native or precision == "int8")):
        return torch.float32
    return torch.bfloat16


class PackedNetwork(Network):
    """Ids in, hidden states out: a `Network` with other tables and layers. It cannot be trained."""

    def __init__(self, config: NetworkConfig, read: Reader, precision: str) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.native = precision != "float32" and native.runs(config)
        self.dtype = activations(precision, self.native)
        self.tables = nn.ModuleDict({name: _Table(read(f"{name}.weight")) for name in ("words", "positions", "types")})
        self.first_norm = _Norm(read, "norm", config.norm_eps)
        if self.native:
            self.at_once = NativeLayers(config, read, precision == "int8")
            return
        product = Int8Product if precision == "int8" else FloatProduct
        self.layers = nn.ModuleList(
            _PackedLayer(config, read, f"layers.{i}", product, self.dtype) for i in range(config.layers)
        )

    @classmethod
    def of(cls, network: Network, precision: str) -> PackedNetwork:
        """The same from a network in memory."""
        state = network.state_dict()
        return cls(network.config, lambda name: Stored(state[name]), precision)

    def forward(self, batch: Batch, between: Callable[[], None] | None = None) -> Tensor:
        """(T, d) hidden states of the last layer, in the numbers of the heads. `between` as in `Network`."""
        if self.native:
            return self.at_once(self.embed(batch), batch.layout, between).to(self.dtype)  # type: ignore[no-any-return]
        return super().forward(batch, between)

    def embed(self, batch: Batch, words: Tensor | None = None) -> Tensor:
        """(T, d) what the first layer reads: word, place and type of every token. A tensor of its own."""
        words = self.tables["words"](batch.ids) if words is None else words
        types = torch.zeros_like(batch.ids) if batch.types is None else batch.types
        x = words + self.tables["positions"](batch.positions) + self.tables["types"](types)
        return self.first_norm(x).to(torch.float32 if self.native else self.dtype)  # type: ignore[no-any-return]


class _PackedLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm. Overwrites its input."""

    def __init__(
        self,
        config: NetworkConfig,
        read: Reader,
        name: str,
        product: type[FloatProduct | Int8Product],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.heads = config.heads
        self.rows = max(1, INNER_BYTES // (config.ffn * dtype.itemsize))

        def packed(part: str) -> Product:
            return product(read(f"{name}.{part}.weight"), read(f"{name}.{part}.bias").float(), dtype)

        self.qkv, self.attended, self.up, self.down = map(packed, ("qkv", "attended", "up", "down"))
        self.attended_norm = _Norm(read, f"{name}.attended_norm", config.norm_eps)
        self.down_norm = _Norm(read, f"{name}.down_norm", config.norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        a = attend(self.qkv(x), self.heads, layout)  # (T, d)
        for part, attended in zip(torch.split(x, self.rows), torch.split(a, self.rows), strict=True):
            y = self.attended_norm(self.attended(attended, plus=part))  # (t, d)
            part.copy_(self.down_norm(self.down(self.up(y, gelu=True), plus=y)))  # (t, f) -> (t, d)
        return x


class _Table(nn.Module):
    """Rows by number, in float32, from a table that stays as it is stored."""

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.weight = nn.Parameter(stored.tensor, requires_grad=False)
        self.scale = None if stored.scale is None else nn.Parameter(stored.scale, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return Stored(self.weight, self.scale).rows(ids)


class _Norm(nn.Module):
    """LayerNorm whose weights are float32, for states of any type."""

    def __init__(self, read: Reader, name: str, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(read(f"{name}.weight").float(), requires_grad=False)
        self.bias = nn.Parameter(read(f"{name}.bias").float(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
