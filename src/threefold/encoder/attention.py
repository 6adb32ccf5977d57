"""Attention over a packed batch: one function, two paths that a test holds equal.

`blocks` runs each run of neighbouring texts of equal length as one dense block, through views of the packed
tensor: nothing is padded, nothing is copied in. `varlen` is PyTorch's variable-length kernel on CUDA GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from threefold.encoder.transfer import to_device
from threefold.types import Ints, offsets_of

Path = Literal["blocks", "varlen"]


class Run(NamedTuple):
    """`texts` neighbouring texts of `length` tokens each, from token `start` of the batch."""

    start: int
    texts: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.texts * self.length


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the texts of a packed batch are.

    offsets  (n + 1,) int64, from 0 to T
    runs     the same, with neighbours of equal length joined
    """

    offsets: Ints
    runs: tuple[Run, ...]
    _borders: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, lengths: Ints) -> Layout:
        """From the lengths (n,) of the texts, in the order in which they are packed."""
        lengths = np.asarray(lengths, dtype=np.int64)
        offsets = offsets_of(lengths)
        borders = np.flatnonzero(np.diff(lengths)) + 1
        first = np.concatenate([[0], borders]).astype(np.int64)
        last = np.concatenate([borders, [len(lengths)]]).astype(np.int64)
        runs = [
            Run(int(offsets[a]), int(b - a), int(lengths[a]))
            for a, b in zip(first, last, strict=True)
            if b > a and lengths[a] > 0
        ]
        return cls(offsets, tuple(runs))

    def cut(self, packed: Tensor) -> Iterator[tuple[Run, Tensor]]:
        """Each run with its part (n * t, ...) of a packed tensor (T, ...), as views.

        One `split` for all: the backward pass of a slice fills the whole tensor with zeros, once for every slice.
        """
        parts = torch.split(packed, [run.texts * run.length for run in self.runs])
        return zip(self.runs, parts, strict=True)

    def borders(self, device: torch.device) -> Tensor:
        """(n + 1,) int32 `offsets` on a device: copied once, not by every layer."""
        if device not in self._borders:
            self._borders[device] = to_device(self.offsets.astype(np.int32), device)
        return self._borders[device]

    @property
    def longest(self) -> int:
        return max((run.length for run in self.runs), default=0)


def attend(qkv: Tensor, heads: int, layout: Layout, path: Path = "blocks") -> Tensor:
    """softmax(q k' / sqrt(d_head)) v within each text (Vaswani et al. 2017, equation 1).

    qkv     (T, 3 * d) queries, keys and values side by side
    return  (T, d)
    """
    total, width = qkv.shape
    split = qkv.view(total, 3, heads, width // (3 * heads))  # (T, 3, heads, d_head)
    attended = _varlen(split, layout) if path == "varlen" else _blocks(split, layout)
    return attended.reshape(total, width // 3)


def _blocks(split: Tensor, layout: Layout) -> Tensor:
    outputs = []
    for run, part in layout.cut(split):
        block = part.view(run.texts, run.length, *split.shape[1:])  # (n, t, 3, heads, d_head)
        q, k, v = block.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, t, d_head)
        kernel = _in_float32 if split.requires_grad and split.device.type == "cpu" else scaled_dot_product_attention
        outputs.append(kernel(q, k, v).transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel for training on a CPU. In bfloat16 its backward pass is five times slower, and oneDNN would compile a
    matrix product for every new length (docs/log.md)."""
    with torch.autocast(q.device.type, enabled=False):
        return scaled_dot_product_attention(q.float(), k.float(), v.float()).to(v.dtype)


def _varlen(split: Tensor, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = split.unbind(1)
    borders = layout.borders(split.device)
    return cast(Tensor, varlen_attn(q, k, v, borders, borders, layout.longest, layout.longest))


def best_path(device: torch.device, dtype: torch.dtype, head_dim: int) -> Path:
    """The variable-length kernel (flash attention 2) needs an Ampere or newer GPU, 16-bit numbers and whole
    multiples of 8 dimensions per head, at most 256."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or head_dim % 8 or head_dim > 256:
        return "blocks"
    return "varlen" if _has_varlen() and torch.cuda.get_device_capability(device) >= (8, 0) else "blocks"


@cache
def _has_varlen() -> bool:
    """PyTorch has the function since 2.10, and the kernel where it was built with flash attention."""
    flash = torch.backends.cuda.is_flash_attention_available()
    return bool(flash) and find_spec("torch.nn.attention.varlen") is not None
