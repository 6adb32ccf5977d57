from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.encoder.checkpoints import bge_m3, sentence_transformer

from threefold.encoder.encoder import Encoder


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny tensors are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BGE-M3 checkpoint; read only."""
    return bge_m3(tmp_path_factory.mktemp("models") / "tiny-m3")


@pytest.fixture(scope="session")
def st_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers checkpoint; read only."""
    return sentence_transformer(tmp_path_factory.mktemp("models") / "tiny-st")


@pytest.fixture(scope="session")
def m3(m3_folder: Path) -> Encoder:
    """The tiny BGE-M3 in float32 on the CPU."""
    return Encoder(m3_folder, device="cpu", precision="float32")
