from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import FakeEncoder, unigram_tokenizer, wordpiece_tokenizer

from threefold.text.tokenizer import Tokenizer

# The tests say what a CPU does. On a machine with a GPU `Encoder()` would take that; CUDA_VISIBLE_DEVICES=0 lets it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small Unigram tokenizer in the manner of XLM-R."""
    return unigram_tokenizer()


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    """A small WordPiece tokenizer in the manner of BERT."""
    return wordpiece_tokenizer()


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> FakeEncoder:
    """An encoder with three heads and no network."""
    return FakeEncoder(tokenizer)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty THREEFOLD_HOME."""
    monkeypatch.setenv("THREEFOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A server logs to the standard error of its test, which is closed when the next one runs in this process."""
    loggers = [logging.getLogger(name) for name in ("threefold", "uvicorn.error")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
