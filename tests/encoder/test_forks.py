"""A forked child may encode: without the guard it waits for threads that only its parent has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import multiprocessing, torch
from threefold import Encoder
torch.set_num_threads(2)
encoder = Encoder(precision="float32", device="cpu")
texts = ["a text of some length, so that two threads share the work"] * 64

def dense():
    return encoder.encode(texts, outputs=["dense"]).dense

parent = dense()
with multiprocessing.get_context("fork").Pool(1) as pool:
    child = pool.apply_async(dense).get(timeout=60)
print(abs(parent - child).max() < 1e-5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_encodes() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "True", done.stderr
