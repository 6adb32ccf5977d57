from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from threefold.encoder.memory import peak_bytes


def test_the_peak_is_remembered() -> None:
    before = peak_bytes()
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert peak_bytes() > 0
    assert peak_bytes() >= before


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells the two apart")
def test_a_child_does_not_report_its_parents_memory() -> None:
    held = bytearray(512 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    code = "from threefold.encoder.memory import peak_bytes; print(peak_bytes())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False)
    assert int(said.stdout) < len(held) // 2
