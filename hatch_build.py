"""Compiles the kernels of `src/threefold/encoder/c` while threefold is built, also for an editable installation.

Only where they can run (Linux on x86-64) and where a C compiler is that knows the instructions (gcc 10, clang 9, or
what CC names). Anything else is no error: threefold then runs on PyTorch's products alone, and `threefold info` says
why. For a release, whose wheels must have them, THREEFOLD_REQUIRE_KERNELS=1 makes it one.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENCODER = Path("src/threefold/encoder")
SOURCES = ENCODER / "c"

compile_kernels = runpy.run_path(str(Path(__file__).parent / ENCODER / "compiling.py"))["compile_kernels"]


class KernelsHook(BuildHookInterface):
    """Puts `layer-*.so` beside its sources and into the wheel, which is then one for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / SOURCES
        if why := compile_kernels(folder):
            if os.environ.get("THREEFOLD_REQUIRE_KERNELS") == "1":
                raise RuntimeError(f"kernels are not compiled: {why}")
            self.app.display_warning(f"kernels are not compiled: {why}")
        made = sorted(file.name for file in folder.glob("layer-*.so"))
        if not made:
            return
        build_data["artifacts"] += [str(SOURCES / name) for name in made]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
