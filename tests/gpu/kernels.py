"""The kernels that only a GPU has, on the host, for `pretend.py`: what they find, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

aten = torch.ops.aten


def _varlen(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, of_keys: Tensor, longest: int, *rest: Any) -> Any:
    """What the kernel finds, as `scaled_dot_product_attention` finds it text by text, and what it asks for."""
    assert q.dtype in (torch.float16, torch.bfloat16), f"flash attention multiplies 16 bits, not {q.dtype}"
    assert borders.dtype == of_keys.dtype == torch.int32
    assert borders.is_contiguous()
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[-1] % 8 == 0
    lengths = borders.diff().tolist()
    assert borders[[0, -1]].tolist() == [0, len(q)]
    assert max(lengths) == longest
    parts = [torch.split(part.transpose(0, 1), lengths, dim=1) for part in (q, k, v)]
    out = torch.cat([scaled_dot_product_attention(*text) for text in zip(*parts, strict=True)], dim=1).transpose(0, 1)
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> Any:
    """Of softmax(q k' / sqrt(d)) v, written out, text by text."""
    lengths, root = rest[0].diff().tolist(), q.shape[-1] ** 0.5
    found = []
    for parts in zip(
        *(torch.split(each.transpose(0, 1).float(), lengths, dim=1) for each in (gradient, q, k, v)), strict=True
    ):
        g, mine, theirs, values = parts  # (heads, t, d) each
        p = (mine @ theirs.mT / root).softmax(-1)
        by_p = g @ values.mT
        scores = p * (by_p - (p * by_p).sum(-1, keepdim=True)) / root
        found.append((scores @ theirs, scores.mT @ mine, p.mT @ g))
    return tuple(torch.cat(each, 1).transpose(0, 1).to(q.dtype) for each in zip(*found, strict=True))


def _product(func: Any) -> Callable[..., Tensor]:
    """Sums of products of 16 bits have 32, as they have on a GPU. (And for float16 a CPU is a hundred times slower.)"""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        dtype = args[-1].dtype
        wide = [each.float() if isinstance(each, Tensor) else each for each in args]
        made: Tensor = func(*(args if dtype.itemsize > 2 else wide), **kwargs)
        return made.to(dtype)

    return run


KERNELS: dict[str, Callable[..., Any]] = {
    **{str(func): _product(func) for func in (aten.mm.default, aten.addmm.default, aten.bmm.default)},
    "torch_attn._varlen_attn.default": _varlen,
    "torch_attn._varlen_attn_backward.default": _varlen_backward,
}
