"""A small model and a toy task that it can learn: find the text that has the words of the query."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from threefold.encoder.checkpoint import Model, ModelConfig
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable, plan
from threefold.train.loop import Targets, Trainer, TrainSettings
from threefold.train.world import World
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


def hard_table(n: int = 12) -> PairTable:
    """Pairs with 0 to 3 hard negatives, of which some have teacher scores; one meaning twice, one pair alone."""
    pairs, rng = table(n, symmetric=False, sources=1), np.random.default_rng(1)
    counts = rng.integers(0, 4, size=n)
    rows = [[0, *rng.integers(4, VOCAB, int(rng.integers(2, 9))).tolist(), 2] for _ in range(int(counts.sum()))]
    scores = rng.normal(size=len(rows)).astype(np.float32)
    scores[::5] = np.nan
    positive = np.where(np.arange(n) % 3 > 0, 2.0, np.nan).astype(np.float32)
    meaning = np.arange(n)
    meaning[1] = meaning[0]
    return replace(
        pairs, meaning=meaning, negative=tokens(rows), negatives=offsets_of(counts),
        positive_score=positive, negative_score=scores, alone=np.arange(n) == 2,
    )  # fmt: skip


def hard_trainer(
    folder: Path, changes: dict[str, Any] | None = None, world: World | None = None, device: str = "cpu"
) -> Trainer:
    """Every part of the objective at once: teacher scores, teacher vectors of other dimensions, shorter dimensions."""
    wanted = TrainSettings(log_every=1, idf_steps=10, precision="float32", multi_dims=(4,), **(changes or {}))
    idf, pairs = np.linspace(0, 5, VOCAB, dtype=np.float32), hard_table()
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(2, len(pairs), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)

    def teacher(rows: Ints) -> tuple[Targets, Targets]:
        known = [np.flatnonzero(rows % 3 == 0), np.flatnonzero(rows % 4 < 2)]
        first, second = (Targets(places, side[rows[places]]) for places, side in zip(known, vectors, strict=True))
        return first, second

    plan = [np.arange(12), np.arange(12)[::-1], np.arange(7)]
    return Trainer(
        model().double(), pairs, plan, wanted, folder,
        special=SPECIAL, idf=idf, teacher=teacher, teacher_dim=6, world=world, device=device,
    )  # fmt: skip


def gradients_of(run: Trainer) -> dict[str, Tensor]:
    """All of them, by name; of the projection too."""
    assert run.projection is not None
    named = [*run.model.named_parameters(), *run.projection.named_parameters("projection")]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}
