"""Runs reordered by a cross-encoder, which reads query and text together: what a second stage adds to a first one.

Nothing here knows which cross-encoder: it is a function of a query and texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from threefold.errors import ConfigError, NumericalError, ShapeError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.measures import Judgement, Run, ranking
from threefold.evaluate.report import Row
from threefold.evaluate.task import Task
from threefold.types import Floats

#: (query, texts) -> one score per text, higher is better.
Cross = Callable[[str, Sequence[str]], Floats]

#: What FlagEmbedding's evaluation reranks (`rerank_top_k`).
DEPTH: Final = 100


def rerank_run(task: Task, run: Run, cross: Cross, depth: int = DEPTH) -> dict[str, dict[str, float]]:
    """The best `depth` documents of every query in the order of the cross-encoder; the rest are dropped."""
    if depth < 1:
        raise ConfigError(f"the depth of a rerank must be at least 1; got {depth}")
    reordered: dict[str, dict[str, float]] = {}
    for query in task.qrels:
        ids = ranking(run.get(query, {}), depth, query)
        scores = cross(task.queries[query], [task.documents[id] for id in ids]) if ids else np.zeros(0, np.float32)
        if scores.shape != (len(ids),):
            raise ShapeError(f"the cross-encoder gave scores of shape {scores.shape} for {len(ids)} texts")
        if not np.isfinite(scores).all():
            raise NumericalError(f"the cross-encoder gave NaN or infinity for query {query!r}")
        found = dict(zip(ids, scores.tolist(), strict=True))
        reordered[query] = {id: found[id] for id in ranking(found, depth, query)}
    return reordered


def reranked(
    task: Task,
    runs: Mapping[str, Run],
    cross: Cross,
    measures: Sequence[str],
    *,
    name: str,
    modes: Sequence[str],
    depth: int = DEPTH,
) -> tuple[list[Row], dict[str, Run], dict[str, Judgement]]:
    """Rows, runs and judgements of `MODE + cross` for these modes. `name` is the cross-encoder's, for the report."""
    rows, found, judgements = [], dict[str, Run](), dict[str, Judgement]()
    for mode in modes:
        if mode not in runs:
            raise ConfigError(f"mode {mode!r} was not run and cannot be reranked; there are {', '.join(runs)}")
        start = time.perf_counter()
        label = f"{mode} + cross"
        found[label] = rerank_run(task, runs[mode], cross, depth)
        judgements[label] = judge_task(task, found[label], measures)
        rows.append(
            Row(
                task=task.name,
                mode=label,
                values=judgements[label].means,
                documents=len(task.documents),
                queries=len(task.qrels),
                protocol=f"{mode}, its top {depth} reordered by {name}",
                warnings=dict(task.warnings),
                seconds={"rerank": time.perf_counter() - start},
            )
        )
    return rows, found, judgements
