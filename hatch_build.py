"""Compiles the kernels of `src/threefold/encoder/c` while threefold is built, also for an editable installation.

Only where they can run (Linux on x86-64) and where a C compiler is that knows the instructions (gcc 10, clang 9, or
what CC names). Anything else is no error: threefold then runs on PyTorch's products alone, and `threefold info` says
why.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/threefold/encoder/c")
FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512bf16", "fma")


class KernelsHook(BuildHookInterface):
    """Puts `layer.so` beside its sources and into the wheel, which is then one for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / SOURCES
        if why := compile_kernels(folder / "layer.c", folder / "layer.so"):
            self.app.display_warning(f"kernels are not compiled: {why}")
            return
        build_data["artifacts"].append(str(SOURCES / "layer.so"))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_kernels(source: Path, library: Path) -> str:
    """Empty, or why there is no library. What an earlier build left goes in any case."""
    library.unlink(missing_ok=True)
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        return "no C compiler"
    # Symbols of OpenMP stay open: they are those of the library that PyTorch has loaded.
    options = ["-O3", "-std=gnu11", "-fPIC", "-shared", *(f"-m{feature}" for feature in FEATURES)]
    run = subprocess.run(
        [*compiler.split(), *options, str(source), "-o", str(library), "-lm"], capture_output=True, text=True
    )
    return "" if run.returncode == 0 else f"{compiler} failed: {run.stderr.strip()[-500:]}"
