"""These tests have a process of their own, that of `run.py`, which `make test` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.encoder.checkpoints import bge_m3
from tests.gpu.pretend import Gpu, pretended
from tests.train.test_run import place as place

if "THREEFOLD_PRETENDED_GPU" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def capability() -> tuple[int, int]:
    """Of an H100 or H200; a test may say another."""
    return 9, 0


@pytest.fixture
def gpu(capability: tuple[int, int]) -> Iterator[Gpu]:
    with pretended(capability) as device:
        yield device


@pytest.fixture(scope="session")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bge_m3(tmp_path_factory.mktemp("models") / "tiny-m3")
