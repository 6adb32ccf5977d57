"""Compiles `c/layer.c`, the kernels of `native.py`, once for each kind of processor.

Standard library alone: `hatch_build.py` runs this file by its path, where nothing of threefold is installed yet.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma")
#: The instructions of each build.
BUILDS = {
    "avx512_bf16": (*_AVX512, "avx512bf16"),
    "avx512": _AVX512,
    "avx_vnni": ("avx2", "fma", "avxvnni"),
    "avx2": ("avx2", "fma"),
}


def library_of(folder: Path, build: str) -> Path:
    """Where the library of a build lies."""
    return folder / f"layer-{build}.so"


def compile_kernels(folder: Path) -> str:
    """Empty where each build has its library in the folder now, or why some have none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        for build in BUILDS:
            library_of(folder, build).unlink(missing_ok=True)
        return f"they are for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    return "; ".join(why for build in BUILDS if (why := _compile_build(folder, build)))


def _compile_build(folder: Path, build: str) -> str:
    """Empty, or why there is no library of this build now."""
    library = library_of(folder, build)
    named = os.environ.get("CC")
    reasons = []
    for compiler in [named] if named else ["gcc", "clang", "cc"]:
        draft = library.with_suffix(f".{os.getpid()}.so")  # whoever runs now keeps the library that it has loaded
        if why := _compiled(compiler.split(), folder, BUILDS[build], draft):
            reasons.append(f"{build}: {why}")
            continue
        draft.replace(library)
        return ""
    library.unlink(missing_ok=True)  # what an earlier build left is of other sources
    return "; ".join(reasons)


def _compiled(compiler: list[str], folder: Path, features: tuple[str, ...], library: Path) -> str:
    """Empty, or what the compiler said."""
    options = ["-O3", "-std=gnu11", "-fPIC", "-shared", *(f"-m{feature}" for feature in features)]
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
    """Of the sources and what they are compiled for.

    It is compiled into the library, and `native.py` compares it with that of the sources that lie beside.
    """
    sources = sorted(file for file in folder.iterdir() if file.suffix in (".c", ".h"))
    said = [repr(BUILDS).encode(), *(file.name.encode() + file.read_bytes() for file in sources)]
    return sha256(b"".join(said)).hexdigest()[:16]
