"""Compiles the kernels of `src/threefold/encoder/c` while threefold is built, also for an editable installation.

Only where they can run (Linux on x86-64) and where a C compiler is that knows the instructions (gcc 10, clang 9, or
what CC names). Anything else is no error: threefold then runs on PyTorch's products alone, and `threefold info` says
why. For a release, whose wheels must have them, THREEFOLD_REQUIRE_KERNELS=1 makes it one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from hashlib import sha256
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
        if why := compile_kernels(Path(self.root) / SOURCES):
            if os.environ.get("THREEFOLD_REQUIRE_KERNELS") == "1":
                raise RuntimeError(f"kernels are not compiled: {why}")
            self.app.display_warning(f"kernels are not compiled: {why}")
            return
        build_data["artifacts"].append(str(SOURCES / "layer.so"))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_kernels(folder: Path) -> str:
    """Empty, or why there is no `layer.so` in the folder now."""
    library = folder / "layer.so"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        library.unlink(missing_ok=True)
        return f"they are for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    named = os.environ.get("CC")
    reasons = []
    for compiler in [named] if named else ["gcc", "clang", "cc"]:
        draft = library.with_suffix(f".{os.getpid()}.so")  # whoever runs now keeps the library that it has loaded
        if why := compiled(compiler.split(), folder, draft):
            reasons.append(why)
            continue
        draft.replace(library)
        return ""
    library.unlink(missing_ok=True)  # what an earlier build left is of other sources
    return "; ".join(reasons)


def compiled(compiler: list[str], folder: Path, library: Path) -> str:
    """Empty, or what the compiler said."""
    options = ["-O3", "-std=gnu11", "-fPIC", "-shared", *(f"-m{feature}" for feature in FEATURES)]
    # Symbols of OpenMP stay open: they are those of the library that PyTorch has loaded.
    made_of = f'-DSOURCES="{fingerprint(folder)}"'
    command = [*compiler, *options, made_of, str(folder / "layer.c"), "-o", str(library), "-lm"]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"{compiler[0]} cannot be run: {error.strerror}"
    if run.returncode:
        library.unlink(missing_ok=True)
        return f"{compiler[0]} failed: {run.stderr.strip()[-500:]}"
    return ""


def fingerprint(folder: Path) -> str:
    """Of the sources; `threefold/encoder/native.py` compares it with those that it finds beside the library."""
    sources = sorted(file for file in folder.iterdir() if file.suffix in (".c", ".h"))
    return sha256(b"".join(file.name.encode() + file.read_bytes() for file in sources)).hexdigest()[:16]
