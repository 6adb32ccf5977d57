"""Weights of a fusion, chosen on development queries and never on those that are reported.

A grid over the simplex (0, step, ..., 1; the weights add up to 1) is judged on the candidates that the mode sees: the
dense top `multi_depth` for `hybrid`, the union of both top `depth` for `dense+sparse`. Raw scores are added, as in the
paper. The file of tuned weights names the model and the queries, so that `threefold evaluate --weights @FILE` can
refuse another model and leave those queries out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from threefold.config import Settings
from threefold.errors import ConfigError, EvaluationError, InputError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.measures import Measure
from threefold.evaluate.task import Task
from threefold.retrieve.exact import Exact
from threefold.retrieve.experiment import encode_task
from threefold.retrieve.modes import Mode, Protocol
from threefold.score import PUBLISHED, TRAINING, Weights, sparse_scores, tie_order, top_k
from threefold.text.protocol import TextEncoder
from threefold.types import REPRESENTATIONS, Floats, Ints, Representation

TUNABLE: Final[tuple[Mode, ...]] = ("hybrid", "dense+sparse")


@dataclass(frozen=True, slots=True)
class Tuned(Settings):
    """Chosen weights and how they were chosen.

    value     mean of the measure over the development sets
    compared  the same by published weights, by their names
    queries   {fingerprint of a set: ids of the queries that were used}
    """

    mode: str
    weights: Weights
    measure: str
    value: float
    model: str
    model_hash: str
    step: float
    sets: tuple[str, ...]
    queries: Mapping[str, tuple[str, ...]]
    compared: Mapping[str, float]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tuned:
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read tuned weights from {path}: {error}") from error
        return cls.from_dict(data, str(path))

    def applied(self, model_hash: str) -> dict[str, Weights]:
        """The settings of a protocol that these weights are."""
        if model_hash != self.model_hash:
            raise ConfigError(
                f"the weights were tuned for {self.model} ({self.model_hash}), not for this model ({model_hash}); "
                "tune them again"
            )
        return {"weights": self.weights} if self.mode == "hybrid" else {"dense_sparse": self.weights}

    def unseen(self, task: Task) -> Task:
        """The task without the queries that the weights were tuned on; how many those were is counted."""
        seen = set(self.queries.get(task.fingerprint(), ())) & set(task.qrels)
        left = [query for query in task.qrels if query not in seen]
        if not left:
            raise EvaluationError(
                f"task {task.name}: the weights were tuned on all of its {len(seen):,} queries, so none is left to "
                "judge them by. Tune on a share (threefold tune --share), or on other sets"
            )
        return task.only(left, "queries used for tuning, not run")


def development(task: Task, share: float) -> Task:
    """The share of a task's queries whose ids hash lowest: the same ones on every machine."""
    if not 0 < share <= 1:
        raise ConfigError(f"share must be more than 0 and at most 1; got {share}")
    if share == 1:
        return task
    order = sorted(task.qrels, key=lambda id: hashlib.sha256(id.encode()).digest())
    chosen = set(order[: max(round(share * len(order)), 1)])
    return task.only([query for query in task.qrels if query in chosen])


def tune(
    tasks: Iterable[Task],
    encoder: TextEncoder,
    *,
    mode: Mode = "hybrid",
    measure: str = "nDCG@10",
    step: float = 0.1,
    share: float = 1.0,
    protocol: Protocol | None = None,
    cache: Path | None = None,
) -> Tuned:
    """The weights with the best mean over the sets; of equals, those nearest to the weights of the training."""
    protocol = _protocol(protocol or Protocol(), mode, measure)
    grid = list(simplex(2 if mode == "dense+sparse" else 3, step))
    known = [(name, one) for name, one in PUBLISHED.items() if (one.multi > 0) == (mode == "hybrid")]
    tried = [*grid, *(weights for _, weights in known)]
    values: list[list[float]] = []
    queries: dict[str, tuple[str, ...]] = {}
    sets: list[str] = []
    for task in tasks:
        part = development(task, share)
        values.append(_values(part, encoder, protocol, mode, measure, tried, cache))
        queries[task.fingerprint()] = tuple(part.qrels)
        sets.append(task.name)
    if not values:
        raise EvaluationError("no set to tune on")
    means = np.array(values).mean(axis=0).tolist()
    near = TRAINING if mode == "hybrid" else TRAINING.only("dense", "sparse")
    best = min(range(len(grid)), key=lambda i: (-means[i], _distance(grid[i], near), i))
    return Tuned(
        mode=mode,
        weights=grid[best],
        measure=str(Measure.parse(measure)),
        value=means[best],
        model=encoder.card.name,
        model_hash=encoder.card.hash,
        step=step,
        sets=tuple(sets),
        queries=queries,
        compared={name: means[len(grid) + i] for i, (name, _) in enumerate(known)},
    )


#: 500,000 triples of weights: nobody tells finer ones apart.
LEAST_STEP: Final = 0.001


def simplex(parts: int, step: float) -> Iterator[Weights]:
    """All weights of 2 (dense, sparse) or 3 parts in steps that add up to 1."""
    n = round(1 / step) if step >= LEAST_STEP else 0
    if n < 1 or abs(n * step - 1) > 1e-9:
        raise ConfigError(f"step must divide 1 and be at least {LEAST_STEP:g}, such as 0.1 or 0.05; got {step}")
    for dense in range(n + 1):
        for sparse in range(n - dense + 1):
            multi = n - dense - sparse
            if parts == 3 or multi == 0:
                yield Weights(dense / n, sparse / n, multi / n)


def _protocol(protocol: Protocol, mode: Mode, measure: str) -> Protocol:
    if mode not in TUNABLE:
        raise ConfigError(f"mode {mode!r} has no weights; tune {' or '.join(TUNABLE)}")
    if mode == "hybrid" and protocol.multi_depth is None:
        raise ConfigError("hybrid is tuned on the candidates of dense: give multi_depth")
    return Protocol(
        modes=(mode,),
        measures=(measure,),
        weights=Weights(1, 1, 1),
        dense_sparse=Weights(1, 1, 0),
        multi_depth=protocol.multi_depth,
        depth=protocol.depth,
        max_tokens=protocol.max_tokens,
        max_query_tokens=protocol.max_query_tokens,
    )


def _values(
    task: Task,
    encoder: TextEncoder,
    protocol: Protocol,
    mode: Mode,
    measure: str,
    tried: Sequence[Weights],
    cache: Path | None,
) -> list[float]:
    """The value of the measure on one task for each of the weights."""
    documents, queries = encode_task(task, encoder, protocol, cache=cache)
    exact = Exact(task, protocol, documents, queries)
    if mode == "hybrid":
        found = [(parts, places) for _, parts, places in exact.candidates(exact.scan(["dense"])["dense"], True)]
    else:
        found = list(_union(exact))
    ids, ties, cutoff = list(task.documents), tie_order(list(task.documents)), Measure.parse(measure).cutoff
    values = []
    for weights in tried:
        run = {}
        for query, (parts, places) in zip(task.qrels, found, strict=True):
            scores = _weighted(parts, weights)
            best = top_k(scores, cutoff, ties[places])
            run[query] = {ids[places[i]]: float(scores[i]) for i in best.tolist()}
        values.append(next(iter(judge_task(task, run, [measure]).means.values())))
    return values


def _union(exact: Exact) -> Iterator[tuple[dict[Representation, Floats], Ints]]:
    """Both scores of the union of both rankings, query by query."""
    best = exact.scan(["dense", "sparse"])
    assert exact.documents is not None
    assert exact.queries is not None
    docs, asked = exact.documents.encoded, exact.queries.encoded.take(exact.queries.rows)
    assert docs.dense is not None
    assert docs.sparse is not None
    assert asked.dense is not None
    assert asked.sparse is not None
    for query, (dense, sparse) in enumerate(zip(best["dense"], best["sparse"], strict=True)):
        places = np.union1d(dense.places, sparse.places)
        rows = exact.documents.rows[places]
        yield (
            {
                "dense": docs.dense[rows] @ asked.dense[query],
                "sparse": sparse_scores(asked.sparse[query], docs.sparse.take(rows)),
            },
            places,
        )


def _weighted(parts: Mapping[Representation, Floats], weights: Weights) -> Floats:
    total: Floats = np.zeros_like(parts["dense"], dtype=np.float32)
    for name in weights.used:
        total += np.float32(weights[name] / weights.total) * parts[name]
    return total


def _distance(weights: Weights, near: Weights) -> float:
    """How far two sets of weights are apart, as shares of their sums."""
    return sum(abs(weights[name] / weights.total - near[name] / near.total) for name in REPRESENTATIONS)
