"""The measurement of precisions: what it compares, by hand, and one small run in processes of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from threefold.encoder import bench as subject
from threefold.encoder.bench import Measured, bench, fidelity, passages, usual_precisions
from threefold.errors import InputError
from threefold.types import Encoded, Ragged, Sparse


def encoded(dense: list[list[float]], weights: list[float], multi: list[list[float]]) -> Encoded:
    """Two texts: one with two terms and two token vectors, one with none of either."""
    one = np.array
    sparse = Sparse(one([3, 7], dtype=np.int32), one(weights, dtype=np.float32), one([0, 2, 2]), 10)
    rows = Ragged(one(multi, dtype=np.float32), one([0, 2, 2]))
    return Encoded(one(dense, dtype=np.float32), sparse, rows, one([4, 2], dtype=np.int32), one([False, False]))


def test_cosines_by_hand() -> None:
    a = encoded([[1, 0], [0, 2]], [3, 4], [[1, 0], [0, 1]])
    b = encoded([[0, 1], [0, 1]], [4, 3], [[1, 0], [1, 0]])
    mean, lowest = fidelity(a, b)
    assert mean == pytest.approx({"dense": 1 / 2, "sparse": 24 / 25, "multi": 1 / 2})
    assert lowest == pytest.approx({"dense": 0.0, "sparse": 24 / 25, "multi": 1 / 2})


def test_cost_by_hand() -> None:
    measured = Measured("int8", 10, 1000.0, 0.0, 0.0, 0.0, 0, 0, {}, {})
    assert measured.cost_per_million_tokens(0.36) == pytest.approx(0.1)  # 1000 s of 0.0001 each


def test_passages_are_the_same_for_a_seed_and_of_mixed_lengths() -> None:
    texts = passages(64)
    assert texts == passages(64)
    assert texts != passages(64, seed=1)
    lengths = [len(text) for text in texts]
    assert len(texts) == 64
    assert min(lengths) < 250 < 600 < max(lengths) <= 2000


@pytest.mark.parametrize(
    ("fast", "why_not_native", "expected"),
    [
        (True, "no AVX2", ("float32", "bfloat16")),
        (False, "", ("float32", "bfloat16")),
        (False, "no AVX2", ("float32",)),
    ],
)
def test_what_would_be_emulated_is_not_measured(
    fast: bool, why_not_native: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(subject, "status", lambda: why_not_native)
    monkeypatch.setattr(subject, "has_int8", lambda: False)
    assert usual_precisions(torch.device("cpu")) == expected


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="got 0 texts and 3 rounds"):
        list(bench(texts=[]))


def test_a_run(m3_folder: Path) -> None:
    """float32 is measured for comparison also where nobody asked for its figures."""
    seen: list[str] = []
    texts = [*passages(4), "w " * 20_000]
    found = list(bench(str(m3_folder), texts, precisions=["int8"], rounds=1, threads=1, progress=seen.append))
    assert seen == ["float32", "int8"]
    (measured,) = found
    assert measured.precision == "int8"
    assert measured.tokens_per_second > 0
    assert 0 < measured.p50 <= measured.p95
    assert measured.weight_bytes > 0
    assert measured.cosines.keys() == measured.lowest.keys() == {"dense", "sparse", "multi"}
    assert min(measured.cosines.values()) >= 0.99
    assert measured.truncated == 1
