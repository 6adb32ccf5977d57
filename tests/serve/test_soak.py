"""What keeps memory flat; the soak itself is `benchmarks/serve.py --soak SECONDS`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from threefold.serve.memory import CAPACITY, CAPACITY_VARIABLE, TRIM_S, Trimmer, bound_caches

#: Fills the heap with 4,000 blocks and frees every other one, so that nothing lies free at its end.
FRAGMENT = """
import sys
from threefold.serve.memory import Trimmer

def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

now = [0.0]
trimmer = Trimmer(lambda: now[0])
blocks = [bytearray(64 * 1024) for _ in range(4_000)]
del blocks[::2]
before = resident()
now[0] = 10.0
trimmer.after_batch()
print(before - resident())
"""


def test_memory_is_given_back_once_in_a_while() -> None:
    now, calls = [0.0], []

    def trim(keep: int) -> int:
        calls.append((now[0], keep))
        return 1

    trimmer = Trimmer(lambda: now[0], trim)
    for second in range(25):
        now[0] = float(second)
        trimmer.after_batch()
    assert TRIM_S == 10.0
    assert calls == [(10.0, 0), (20.0, 0)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim belongs to glibc")
def test_what_lies_free_between_used_blocks_is_given_back() -> None:
    """2,000 free blocks of 64 KiB are 125 MiB; a process of its own, so that nothing else fills them."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    run = subprocess.run([sys.executable, "-c", FRAGMENT], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) > 80 * 2**20


def test_the_cache_of_compiled_products_is_bounded_unless_the_user_says_otherwise() -> None:
    environment: dict[str, str] = {}
    bound_caches(environment)
    assert environment == {CAPACITY_VARIABLE: str(CAPACITY)}
    environment[CAPACITY_VARIABLE] = "7"
    bound_caches(environment)
    assert environment == {CAPACITY_VARIABLE: "7"}
