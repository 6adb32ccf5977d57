"""The layers of a network as one call into `c/layer.c`, on x86 processors with AVX2 or more.

PyTorch runs a layer in some thirty operations, each of which writes its result to memory, and oneDNN's products read
the weights for a query at half of what memory gives. Here all layers are one call: rounding, bias, GELU and residual
run inside the products, attention inside the caches (docs/speed.md has what that is worth).

Builds, each for the instructions that its name says:
  avx512_bf16  states and weights in bfloat16, or int8 by VNNI
  avx512       states in float32, weights in bfloat16, or int8 by VNNI
  avx_vnni     the same with half as wide vectors
  avx2         the same with half as wide vectors and without VNNI

They are compiled when threefold is installed from source and a C compiler is there (`hatch_build.py`). Without them, or
on another processor, the products of `products.py` do the same; `status` says which it is and why. THREEFOLD_NATIVE=0
switches them off, the name of a build takes that one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from threefold.encoder.attention import Layout
from threefold.encoder.compiling import BUILDS, fingerprint, library_of
from threefold.encoder.network import NetworkConfig
from threefold.encoder.stored import Reader
from threefold.errors import ConfigError, ShapeError

FOLDER: Final = Path(__file__).parent / "c"
#: Scratch memory of more than this is given back as soon as a smaller batch comes.
KEPT_BYTES: Final = 64 << 20
#: Outputs of a matrix come in multiples of this, the widest panel of packed weights; and the dimensions of a head that
#: the kernel of attention knows.
PANEL: Final = 64
HEADS: Final = (32, 64)
#: What Linux calls a huge page of memory on x86.
HUGE_PAGE: Final = 2 << 20


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


def fits(build: str) -> bool:
    """Whether this processor has the instructions of a build."""
    has = torch.cpu
    if build in ("avx2", "avx_vnni"):
        return has._is_avx2_supported() and (build == "avx2" or _has_avx_vnni())
    wide = has._is_avx512_supported() and has._is_vnni_supported()
    return wide and (build == "avx512" or has._is_avx512_bf16_supported())


@cache
def choice() -> tuple[str, str]:
    """The build that runs and nothing, or nothing and why none does."""
    asked = os.environ.get("THREEFOLD_NATIVE", "1")
    if asked not in ("0", "1", *BUILDS):
        raise ConfigError(f"THREEFOLD_NATIVE must be 0, 1, {', '.join(BUILDS)}; got {asked!r}")
    if asked == "0":
        return "", "switched off by THREEFOLD_NATIVE=0"
    if asked == "1" and (why := _left_to_pytorch()):
        return "", why
    reasons = []
    for build in BUILDS:
        if asked not in ("1", build) or not fits(build):
            continue
        if not (why := _missing(build)):
            return build, ""
        reasons.append(why)
    return "", reasons[0] if reasons else f"the processor cannot run {asked}"


def _has_avx_vnni() -> bool:
    """By the word of Linux, the only system that has a build for it: not every PyTorch knows."""
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "avx_vnni" in processor.read_text().split()


def status() -> str:
    """Empty where the kernels run, else why they do not."""
    return choice()[1]


def _left_to_pytorch() -> str:
    """Empty, or what PyTorch's products do better on this processor."""
    if torch.cpu._is_amx_tile_supported():
        return "the processor has AMX, which oneDNN's products use"
    if not torch.cpu._is_avx2_supported():
        return "the processor has no AVX2"
    if torch.cpu._is_avx512_supported() and not torch.cpu._is_vnni_supported():
        return "the processor has AVX512 without VNNI, which oneDNN's products use"
    return ""


def _missing(build: str) -> str:
    """Empty, or why the library of a build cannot be used."""
    library = library_of(FOLDER, build)
    if not library.is_file():
        return "not compiled: no C compiler that knows these instructions was there when threefold was installed"
    try:
        made_of = _library(build).threefold_sources().decode()
    except (OSError, AttributeError) as error:  # not a library, of another system, or too old
        return f"cannot be loaded: {error}"
    if made_of != fingerprint(FOLDER):
        return "compiled from other sources than these: install threefold again (pip install -e .)"
    return ""


def runs(config: NetworkConfig) -> bool:
    """Whether these kernels can run a network of these sizes here."""
    whole = config.hidden % PANEL == 0 and config.ffn % PANEL == 0
    return whole and config.hidden // config.heads in HEADS and not status()


@cache
def _library(build: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_of(FOLDER, build)))
    number, address = ctypes.c_int, ctypes.c_void_p
    for name, result, arguments in (
        ("sources", ctypes.c_char_p, []),
        ("pack", None, [address, number, number, number, address]),
        ("scratch", ctypes.c_size_t, [address, address, number]),
        ("layers", None, [address, number, address, address, number, address, number]),
    ):
        function = getattr(library, f"threefold_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class NativeLayers(nn.Module):
    """All layers. They overwrite their input, states (T, d) in float32.

    build  by which they run; empty: the one that is best here
    """

    def __init__(self, config: NetworkConfig, read: Reader, int8: bool, build: str = "") -> None:
        super().__init__()
        self.config = config
        self.build = build or choice()[0]
        self._room = _Room(config.layers * _bytes_of_layer(config, int8))
        self._layers = (_Layer * config.layers)(*(self._layer(read, f"layers.{i}", int8) for i in range(config.layers)))

    def _layer(self, read: Reader, name: str, int8: bool) -> _Layer:
        config = self.config
        layer = _Layer(hidden=config.hidden, ffn=config.ffn, heads=config.heads, int8=int(int8), eps=config.norm_eps)
        for part in ("qkv", "attended", "up", "down"):
            setattr(layer, part, self._packed(read, f"{name}.{part}", int8))
        for part in ("attended_norm", "down_norm"):
            weight, bias = (self._numbers(read, f"{name}.{part}.{what}") for what in ("weight", "bias"))
            setattr(layer, part, _Norm(weight, bias))
        return layer

    def _packed(self, read: Reader, name: str, int8: bool) -> _Matrix:
        stored = read(f"{name}.weight")
        rows, scales = stored.int8() if int8 else (stored.to(torch.bfloat16), None)
        rows = rows.contiguous()
        packed = self._room.take(rows.nbytes).data_ptr()
        outputs, inputs = rows.shape
        _library(self.build).threefold_pack(rows.data_ptr(), outputs, inputs, int(int8), packed)
        scale = 0 if scales is None else self._kept(scales)
        return _Matrix(packed, scale, self._numbers(read, f"{name}.bias"), outputs, inputs)

    def _numbers(self, read: Reader, name: str) -> int:
        return self._kept(read(name).float())

    def _kept(self, numbers: Tensor) -> int:
        """The address of a copy in float32: what is read may be the parameter of a module, which others may change."""
        copy = self._room.take(4 * numbers.numel()).view(torch.float32)
        return copy.copy_(numbers).data_ptr()

    @property
    def held_bytes(self) -> int:
        """Memory of the weights."""
        return self._room.memory.nbytes

    def forward(self, x: Tensor, layout: Layout, between: Callable[[], None] | None = None) -> Tensor:
        """`between` is called before every layer; it may call this again."""
        tokens, hidden = int(layout.offsets[-1]), self.config.hidden
        right = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
        if not right or x.shape != (tokens, hidden):  # C would write behind it
            raise ShapeError(
                f"states must be ({tokens}, {hidden}) float32 on the CPU, contiguous; "
                f"got {tuple(x.shape)} {x.dtype} on {x.device}, strides {x.stride()}"
            )
        if between is None:
            self._run(x, layout, 0, self.config.layers)
            return x
        for i in range(self.config.layers):
            between()
            self._run(x, layout, i, 1)
        return x

    def _run(self, x: Tensor, layout: Layout, first: int, count: int) -> None:
        library, texts = _library(self.build), len(layout.offsets) - 1
        layers = ctypes.byref(self._layers, first * ctypes.sizeof(_Layer))
        offsets = layout.offsets.ctypes.data
        scratch = _scratch.of(library.threefold_scratch(layers, offsets, texts))
        library.threefold_layers(
            layers,
            count,
            x.data_ptr(),
            offsets,
            texts,
            scratch,
            torch.get_num_threads(),
        )


def _bytes_of_layer(config: NetworkConfig, int8: bool) -> int:
    """Of its weights, and of its biases, norms and scales in float32."""
    hidden, ffn = config.hidden, config.ffn
    outputs = 5 * hidden + ffn
    return (4 * hidden + 2 * ffn) * hidden * (1 if int8 else 2) + 4 * (outputs * (2 if int8 else 1) + 4 * hidden)


class _Room:
    """Memory of huge pages, where the system has them, that is given away in the order in which it lies.

    A query reads all weights, and in pages of 4 kB a tenth to a third of its time went into finding them. The small
    arrays lie between the matrices: elsewhere they would take the places of what comes and goes while a model opens,
    and the allocator would keep half a gigabyte of holes.

    No parameters of a module: what that does with them (`to`, `load_state_dict(assign=True)`) would leave C with the
    address of memory that is somebody else's.
    """

    def __init__(self, size: int) -> None:
        pages = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system without them
            pages.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(pages, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE_PAGE
        self.memory = self._left = whole[start : start + size]

    def take(self, size: int) -> Tensor:
        """So many bytes, at a multiple of 64 where all that was taken before is one."""
        taken, self._left = self._left[:size], self._left[size:]
        if len(taken) < size:  # C would write behind it
            raise ShapeError(f"layers need {size - len(taken)} bytes more than networks of these sizes have")
        return taken


class _Scratch(threading.local):
    """Memory for what is between the steps of a layer, of this thread; all layers of a batch take the same."""

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
