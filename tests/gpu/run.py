"""`python tests/gpu/run.py [pytest options]`: the tests of this folder, with a GPU pretended.

They need a process of their own: PyTorch must meet the device before anything else, and never forgets it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    if not load_guard():
        sys.stderr.write("tests/gpu skipped: there is no C++ compiler (CXX names one)\n")
        return 0
    os.environ["THREEFOLD_PRETENDED_GPU"] = "1"
    os.chdir(HERE.parents[1])

    import pytest

    return pytest.main([str(HERE), *sys.argv[1:]])


def load_guard() -> bool:
    """Compile and load it; False where there is no compiler. Nobody may have imported PyTorch yet."""
    assert "torch" not in sys.modules
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(str(_compiled(compiler, Path(folder))), ctypes.RTLD_GLOBAL)
    return True


def _compiled(compiler: str, folder: Path) -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    root, library = Path(found.origin).parent, folder / "guard.so"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", str(HERE / "guard.cpp"), "-o", str(library)]
    command += [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    subprocess.run(command, check=True)
    return library


if __name__ == "__main__":
    sys.exit(main())
