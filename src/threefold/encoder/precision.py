"""Where and in which numbers the network runs. `auto` takes what the processor multiplies fastest, and says so.

float32   exact reference
bfloat16  weights and activations in 16 bits, norms and softmax inside in 32; needs AVX512-BF16, AMX or a GPU
float16   GPUs only: on CPUs it is emulated
"""

from __future__ import annotations

import logging
from typing import Literal, TypeVar

import torch
from torch import nn

from threefold.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

M = TypeVar("M", bound=nn.Module)

log = logging.getLogger(__name__)


def choose_device(device: str) -> torch.device:
    """`auto`: a CUDA GPU, else Apple's, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:0 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but PyTorch sees no CUDA GPU; use device='auto'")
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision to run in; `auto` is bfloat16 where the processor has instructions for it."""
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(device) else "float32"
        log.info("precision auto: %s on %s", precision, device)
    if precision not in _TYPES:
        raise InputError(f"unknown precision {precision!r}; use auto, {', '.join(_TYPES)}")
    if precision == "float16" and device.type == "cpu":
        raise InputError("float16 on a CPU is emulated and slow; use bfloat16 or float32")
    return precision


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def cast(model: M, precision: str, device: torch.device) -> M:
    """The model in this precision on this device, ready to run and without gradients."""
    model = model.to(device=device, dtype=_TYPES[precision])
    return model.eval().requires_grad_(False)
