"""The layers of a network as one call each into `c/layer.c`, on processors with AVX512-VNNI and AVX512-BF16.

PyTorch runs a layer in some thirty operations, each of which writes its result to memory, and oneDNN's products read
the weights for a query at half of what memory gives. Here a layer is one call: rounding, bias, GELU and residual run
inside the products, attention inside the first cache (docs/speed.md has what that is worth).

The library is compiled when threefold is installed from source and a C compiler is there (`hatch_build.py`). Without
it, or on another processor, the products of `products.py` do the same; `status` says which it is and why.
THREEFOLD_NATIVE=0 switches it off.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from threefold.encoder.attention import Layout
from threefold.encoder.network import NetworkConfig
from threefold.encoder.stored import Reader
from threefold.errors import ShapeError

LIBRARY: Final = Path(__file__).parent / "c" / "layer.so"
#: Scratch memory of more than this is given back as soon as a smaller batch comes.
KEPT_BYTES: Final = 64 << 20
#: Outputs in a panel of packed weights, and dimensions of a head that the kernel of attention knows.
PANEL: Final = 64
HEADS: Final = (32, 64)


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int),
        ("inputs", ctypes.c_int),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "attended", "up", "down")),
        *((name, _Norm) for name in ("attended_norm", "down_norm")),
        *((name, ctypes.c_int) for name in ("hidden", "ffn", "heads", "int8")),
        ("eps", ctypes.c_float),
    ]


@cache
def status() -> str:
    """Empty where the kernels run, else why they do not."""
    if os.environ.get("THREEFOLD_NATIVE", "1") == "0":
        return "switched off by THREEFOLD_NATIVE=0"
    if not (torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()):
        return "the processor has no AVX512-BF16 and AVX512-VNNI"
    if torch.cpu._is_amx_tile_supported():
        return "the processor has AMX, which oneDNN's products use"
    if not LIBRARY.is_file():
        return "not compiled: no C compiler that knows these instructions was there when threefold was installed"
    try:
        _library()
    except OSError as error:
        return f"cannot be loaded: {error}"
    return ""


def runs(config: NetworkConfig) -> bool:
    """Whether these kernels can run a network of these sizes here."""
    whole = config.hidden % PANEL == 0 and config.ffn % PANEL == 0
    return whole and config.hidden // config.heads in HEADS and not status()


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.threefold_scratch.restype = ctypes.c_size_t
    library.threefold_layer.restype = library.threefold_pack.restype = None
    return library


class NativeLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm. Overwrites its input (T, d) in float32."""

    def __init__(self, config: NetworkConfig, read: Reader, name: str, int8: bool) -> None:
        super().__init__()
        self._layer = _Layer(
            hidden=config.hidden, ffn=config.ffn, heads=config.heads, int8=int(int8), eps=config.norm_eps
        )
        for part in ("qkv", "attended", "up", "down"):
            setattr(self._layer, part, self._packed(read, f"{name}.{part}", int8))
        for part in ("attended_norm", "down_norm"):
            weight, bias = (self._kept(read(f"{name}.{part}.{what}").float()) for what in ("weight", "bias"))
            setattr(self._layer, part, _Norm(weight, bias))

    def _packed(self, read: Reader, name: str, int8: bool) -> _Matrix:
        stored = read(f"{name}.weight")
        scale = 0
        if int8:
            rows, scales = stored.int8()
            scale = self._kept(scales.float())
        else:
            rows = stored.to(torch.bfloat16)
        rows = rows.contiguous()
        packed = torch.empty_like(rows)
        outputs, inputs = rows.shape
        _library().threefold_pack(
            ctypes.c_void_p(rows.data_ptr()), outputs, inputs, int(int8), ctypes.c_void_p(packed.data_ptr())
        )
        return _Matrix(self._kept(packed), scale, self._kept(read(f"{name}.bias").float()), outputs, inputs)

    def _kept(self, tensor: Tensor) -> int:
        """The address of a tensor that lives as long as this layer."""
        parameter = nn.Parameter(tensor.contiguous(), requires_grad=False)
        self.register_parameter(f"p{len(self._parameters)}", parameter)
        return parameter.data_ptr()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        hidden, tokens = self._layer.hidden, int(layout.offsets[-1])
        if x.dtype != torch.float32 or x.shape != (tokens, hidden) or not x.is_contiguous():
            # C would write behind it
            raise ShapeError(f"states must be ({tokens}, {hidden}) float32, contiguous; got {tuple(x.shape)} {x.dtype}")
        library, texts = _library(), len(layout.offsets) - 1
        offsets = layout.offsets.ctypes.data_as(ctypes.c_void_p)
        size = library.threefold_scratch(ctypes.byref(self._layer), offsets, texts)
        library.threefold_layer(
            ctypes.byref(self._layer),
            ctypes.c_void_p(x.data_ptr()),
            offsets,
            texts,
            ctypes.c_void_p(_scratch.of(size)),
            torch.get_num_threads(),
        )
        return x


class _Scratch(threading.local):
    """Memory between two steps of a layer, of this thread; all layers of a batch take the same."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> int:
        """The address of so many bytes, at a multiple of 64."""
        have = len(self.memory)
        if size > have or have > max(KEPT_BYTES, 2 * size):
            self.memory = torch.empty(0, dtype=torch.uint8)  # the old before the new
            self.memory = torch.empty(size, dtype=torch.uint8)
        return self.memory.data_ptr()


_scratch = _Scratch()
