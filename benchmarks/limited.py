"""As if the processor had fewer instructions: libraries that can be told to are, before they look at it.

Clock, caches and memory stay those of the machine. ONNX Runtime and llama.cpp cannot be told.
"""

from __future__ import annotations

import os

import torch

#: Of oneDNN (inside PyTorch), PyTorch's own loops, MKL, OpenVINO, and ours.
LIMITS = {
    "avx2": ("AVX2", "avx2", "AVX2", "AVX2", "avx2"),
    "avx512": ("AVX512_CORE_VNNI", "avx512", "AVX512", "AVX512_CORE_VNNI", "avx512"),
}
SETTINGS = (
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "OV_CPU_MAX_ISA",
    "THREEFOLD_NATIVE",
)
#: What `torch.cpu` is asked, which reads the processor whatever the settings.
BEYOND = {
    "avx2": ("avx512", "vnni", "avx512_bf16", "amx_tile"),
    "avx512": ("avx512_bf16", "amx_tile"),
}
#: Packages whose contenders would run on all that the processor has.
UNLIMITED = ("onnxruntime", "llama_cpp", "optimum")


def limit(name: str) -> None:
    """Limit this process, and those that it starts by the settings; empty: no limit."""
    if not name:
        return
    os.environ |= dict(zip(SETTINGS, LIMITS[name], strict=True))
    for feature in BEYOND[name]:
        setattr(torch.cpu, f"_is_{feature}_supported", lambda: False)
    if name == "avx2" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("PyTorch has looked at the processor before it was limited")
