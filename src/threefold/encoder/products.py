"""Matrix products of the layers on a CPU, with the weights in the order in which oneDNN's kernels read them.

A plain `nn.Linear` brings its weights into that order in every call: for a query of 12 tokens that is half of the time
in bfloat16, and a third in float32. GELU and the residual sum run inside the product where the kernel has them
(docs/speed.md).

bfloat16  weights and activations in 16 bits, sums in 32
int8      weights in int8 with a scale per row, activations in uint8 with a scale per token, sums in int32
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from threefold.encoder.stored import Stored

#: Middle of uint8. Kernels for VNNI multiply unsigned by signed; for a signed source PyTorch's product falls back
#: to a reference loop a thousand times slower wherever the processor has no AMX.
_MIDDLE = 128
#: The largest of a token becomes 126 and not 127: its factor is rounded to bfloat16 and may grow by 1/256.
_LEVELS = 126
#: Without VNNI two products are added in 16 bits, and two of 127 * 255 do not fit. Two of 127 * 128 do, so the inputs
#: go from 0 to 128.
_MIDDLE_PLAIN, _LEVELS_PLAIN = 64, 64


@cache
def has_onednn() -> bool:
    """Whether PyTorch was built with the products that this module calls (it is on x86)."""
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(built) and all(hasattr(torch.ops.mkldnn, name) for name in names)


@cache
def has_int8() -> bool:
    """Whether PyTorch was built with oneDNN's int8 products."""
    return has_onednn() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@cache
def has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor (AVX512 and newer)."""
    return has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def fast_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX512-BF16, AMX)."""
    return has_bfloat16() and bool(torch.cpu._is_avx512_bf16_supported())


@cache
def fast_int8() -> bool:
    """Whether the processor has instructions for int8 (AVX512-VNNI, AMX)."""
    return bool(torch.cpu._is_vnni_supported())


class Product(nn.Module):
    """x -> x W' + b, then GELU or a residual sum if asked for. Inference only."""

    def forward(self, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        """From (t, c) to (t, r); `plus` (t, r) is added at the end."""
        raise NotImplementedError


class FloatProduct(Product):
    """In bfloat16 or float32, all in one kernel."""

    def __init__(self, weight: Stored, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        run = torch.ops.mkldnn._linear_pointwise
        if plus is not None:
            return run.binary(x, plus, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        return run(x, self.weight, self.bias, "gelu" if gelu else "none", [], "none")  # type: ignore[no-any-return]


class Int8Product(Product):
    """In int8: y[t, r] = (sum over c of q[t, c] * w[r, c]) * scale[r] / steps[t] + b[r]."""

    def __init__(self, weight: Stored, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        rows, scale = weight.int8()
        packed = torch.ops.onednn.qlinear_prepack(rows.contiguous(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.zeros = nn.Parameter(torch.zeros(len(scale), dtype=torch.int64), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self._middle, self._levels = (_MIDDLE, _LEVELS) if fast_int8() else (_MIDDLE_PLAIN, _LEVELS_PLAIN)

    def forward(self, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        steps = (self._levels / _largest(x).float().clamp_min_(1e-12)).to(x.dtype)  # (t, 1)
        q = torch.mul(x, steps).round_().to(torch.int8)  # (t, c)
        q = q.view(torch.uint8).add_(self._middle)  # modulo 256, so -126 becomes 2
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, self._middle, self.weight, self.scale, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )  # (t, r)
        torch.addcmul(self.bias, y, steps.reciprocal(), out=y)
        if gelu:
            torch.ops.aten.gelu_(y)
        return y if plus is None else y.add_(plus)


def _largest(x: Tensor) -> Tensor:
    """(t, 1) largest magnitude of each row, NaN where one is.

    Magnitudes of bfloat16 are ordered as the integers with the same bits, and those are compared twice as fast.
    """
    if x.dtype != torch.bfloat16:
        return x.abs().amax(dim=-1, keepdim=True)
    bits: Tensor = (x.view(torch.int16) & 0x7FFF).amax(dim=-1, keepdim=True)
    return bits.view(torch.bfloat16)
