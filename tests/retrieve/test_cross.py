from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from threefold.errors import ConfigError, NumericalError, ShapeError
from threefold.evaluate.task import Task
from threefold.retrieve.cross import rerank_run, reranked
from threefold.types import Floats

TASK = Task(
    "pets",
    {"a": "fox", "b": "dog dog", "c": "dog", "d": "cat"},
    {"q": "dog", "p": "cat"},
    {"q": {"b": 1}, "p": {"d": 1}},
)
RUN = {"q": {"a": 3.0, "c": 2.0, "b": 1.0, "d": 0.5}, "p": {}}


def count(query: str, texts: Sequence[str]) -> Floats:
    """How often the query's word is in each text."""
    return np.array([text.split().count(query) for text in texts], dtype=np.float32)


def test_the_best_are_reordered_and_the_rest_dropped() -> None:
    assert rerank_run(TASK, RUN, count, 3) == {"q": {"b": 2.0, "c": 1.0, "a": 0.0}, "p": {}}
    assert list(rerank_run(TASK, RUN, count, 2)["q"]) == ["c", "a"]
    assert list(rerank_run(TASK, RUN, lambda _, texts: np.zeros(len(texts)), 4)["q"]) == ["a", "b", "c", "d"]


def test_rows_by_hand() -> None:
    rows, runs, judgements = reranked(TASK, {"dense": RUN}, count, ["MRR@10"], name="counter", modes=["dense"], depth=3)
    assert [row.mode for row in rows] == ["dense + cross"]
    assert rows[0].values == {"MRR@10": (1 + 0) / 2}
    assert rows[0].protocol == "dense, its top 3 reordered by counter"
    assert list(runs["dense + cross"]["q"]) == ["b", "c", "a"]
    assert judgements["dense + cross"].values["MRR@10"] == {"q": 1.0, "p": 0.0}


def test_what_cannot_be_reranked() -> None:
    with pytest.raises(ConfigError, match="mode 'multi' was not run and cannot be reranked; there are dense"):
        reranked(TASK, {"dense": RUN}, count, ["MRR@10"], name="counter", modes=["multi"])
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        rerank_run(TASK, RUN, count, 0)
    with pytest.raises(NumericalError, match="NaN or infinity for query 'q'"):
        rerank_run(TASK, RUN, lambda _, texts: np.full(len(texts), np.nan))
    with pytest.raises(ShapeError, match=r"scores of shape \(1,\) for 4 texts"):
        rerank_run(TASK, RUN, lambda *_: np.zeros(1))
