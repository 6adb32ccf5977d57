"""A small model and a toy task that it can learn: find the text that has the words of the query."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from threefold.encoder.checkpoint import Model, ModelConfig
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable, plan
from threefold.train.loop import Trainer, TrainSettings
from threefold.types import Ints, offsets_of

VOCAB, SPECIAL = 64, (0, 1, 2, 3)


def tokens(rows: list[list[int]]) -> Tokens:
    offsets = offsets_of([len(row) for row in rows])
    ids = np.array([id for row in rows for id in row], np.int32)
    return Tokens(ids, offsets, np.diff(offsets))


def model(seed: int = 0) -> Model:
    network = NetworkConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=32, positions=40)
    small = Model(ModelConfig(network, HeadsConfig(multi_dim=8), 38, matryoshka=(8,)))
    initialise(small, std=0.3, seed=seed)
    return small


def table(n: int = 60, *, symmetric: bool = True, sources: int = 2) -> PairTable:
    """Each pair shares a few words; `meaning` is its number."""
    rng = np.random.default_rng(0)
    queries, positives = [], []
    for _ in range(n):
        words = rng.choice(np.arange(4, VOCAB), size=4, replace=False).tolist()
        queries.append([0, *words[: int(rng.integers(1, 4))], 2])
        positives.append([0, *rng.permutation(words).tolist(), *rng.choice(words, int(rng.integers(0, 5))), 2])
    return PairTable(
        tokens(queries), tokens(positives), np.arange(n) % sources, np.arange(n),
        np.zeros(n, np.int8), np.full(n, symmetric),
    )  # fmt: skip


@cache
def batches(epochs: int = 2) -> list[Ints]:
    return [rows for seed in range(epochs) for rows in plan(table(), shares={}, budget=120, window=40, seed=seed)]


def trainer(folder: Path, *, settings: TrainSettings | None = None, epochs: int = 2) -> Trainer:
    idf = np.linspace(0, 5, VOCAB, dtype=np.float32)
    settings = settings or TrainSettings(checkpoint_every=3, log_every=1, idf_steps=10)
    return Trainer(model(), table(), batches(epochs), settings, folder, special=SPECIAL, idf=idf)
