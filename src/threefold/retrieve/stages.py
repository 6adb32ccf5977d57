"""The stages of a search, as settings, and their execution: candidates, fuse, rerank, diversify, group.

A `Retriever` is data: the same JSON is accepted by the library, the command line and HTTP. `run` is a function of
a store, one encoded query and a retriever; it knows nothing of models. A stage that reads texts (rerank by "cross")
names no model either: whoever opens the collection brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from threefold.config import Filter, Settings
from threefold.errors import ConfigError, InputError, NumericalError, ShapeError
from threefold.score.fuse import RRF_K, TRAINING, Weights, dbsf, rrf, weighted_sum
from threefold.store.protocol import Scored, Store
from threefold.types import REPRESENTATIONS, Encoded, Floats, Representation

Mode = Literal["hybrid", "dense", "sparse", "multi"]
Fusion = Literal["weighted", "rrf", "dbsf"]
Scorer = Literal["dense", "sparse", "multi", "cross"]
Scores = Mapping[Representation, Floats]

#: Scores (n,) of n texts for the query of a search, by a model that reads both together.
Judge = Callable[[Sequence[str]], Floats]

MODES: tuple[Mode, ...] = get_args(Mode)

#: Most hits and candidates that can be asked for: engines count them in 32 bits.
MOST = 2**31 - 1

#: Candidates that each representation brings into a search, if nothing else is said.
DEPTH = 100


@dataclass(frozen=True, slots=True)
class Candidates(Settings):
    """The k best chunks by one representation. `where` holds beside the filter of the whole retriever."""

    representation: Representation
    k: int = DEPTH
    where: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _positive("k", self.k)
        Filter.parse(self.where)


@dataclass(frozen=True, slots=True)
class Fuse(Settings):
    """From candidate lists to one list.

    weighted  the weighted sum of raw scores; a score that a list lacks is computed
    rrf       by ranks alone; `rrf_k` is the constant of reciprocal rank fusion
    dbsf      by scores scaled to the spread of each list
    """

    method: Fusion = "weighted"
    weights: Weights = TRAINING
    rrf_k: float = RRF_K


@dataclass(frozen=True, slots=True)
class Rerank(Settings):
    """The best `depth` chunks in the order of one exact score; the others are dropped.

    by  a representation, or "cross": the collection's reranker reads the query and the text of each chunk together
    """

    by: Scorer = "multi"
    depth: int = DEPTH

    def __post_init__(self) -> None:
        _positive("depth", self.depth)


@dataclass(frozen=True, slots=True)
class Diversify(Settings):
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) on dense vectors, over the best `depth`.

    relevance  1 keeps the order, 0 looks only at how different a chunk is from those above it
    """

    relevance: float = 0.7
    depth: int = 50

    def __post_init__(self) -> None:
        _positive("depth", self.depth)
        if not 0.0 <= self.relevance <= 1.0:
            raise ConfigError(f"relevance must be from 0 to 1; got {self.relevance}")


@dataclass(frozen=True, slots=True)
class Group(Settings):
    """At most `per_document` chunks of one document: its best ones."""

    per_document: int = 1

    def __post_init__(self) -> None:
        _positive("per_document", self.per_document)


@dataclass(frozen=True, slots=True)
class Retriever(Settings):
    """What happens in a search, from candidates to the k hits. `where` holds for every candidate list."""

    candidates: tuple[Candidates, ...]
    fuse: Fuse = field(default_factory=Fuse)
    rerank: Rerank | None = None
    diversify: Diversify | None = None
    group: Group | None = None
    where: Mapping[str, Any] | None = None
    k: int = 10

    def __post_init__(self) -> None:
        _positive("k", self.k)
        Filter.parse(self.where)
        names = [stage.representation for stage in self.candidates]
        if not names:
            raise ConfigError(f"candidates: at least one of {', '.join(REPRESENTATIONS)} must bring candidates")
        if len(set(names)) < len(names):
            raise ConfigError(f"candidates: one list per representation; got {', '.join(names)}")

    def needs(self) -> tuple[Representation, ...]:
        """The representations of the query that the stages look at, in their usual order."""
        used: set[Representation] = {stage.representation for stage in self.candidates}
        if self.fuse.method == "weighted":
            used.update(self.fuse.weights.used)
        if self.rerank and self.rerank.by != "cross":
            used.add(self.rerank.by)
        return tuple(name for name in REPRESENTATIONS if name in used)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A chunk that a retriever found.

    scores         raw scores that were needed on the way
    contributions  what each representation added to the fused score; they sum to it
    ranks          rank (from 1) in each candidate list that has the chunk
    """

    id: str
    score: float
    scores: Mapping[Scorer, float]
    contributions: Mapping[Scorer, float]
    ranks: Mapping[Representation, int]


def preset(
    mode: Mode, kept: Sequence[Representation], *, k: int = 10, depth: int = DEPTH, weights: Weights = TRAINING
) -> Retriever:
    """The retriever of a mode, for a collection that keeps these representations.

    hybrid  dense and sparse candidates, the weighted sum of every kept score by `weights`
    multi   the same candidates, ordered by the multi score alone
    dense, sparse  one list as it is
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
    if mode != "hybrid" and mode not in kept:
        raise InputError(f"the collection keeps {', '.join(kept)}, not {mode}. Search it with another mode, or hybrid")
    lists: tuple[Representation, ...] = (mode,) if mode in ("dense", "sparse") else _first_stage(kept)
    used = weights.only(*kept) if mode == "hybrid" else Weights(1.0, 1.0, 1.0).only(mode)
    return Retriever(tuple(Candidates(name, max(k, depth)) for name in lists), Fuse(weights=used), k=k)


def _first_stage(kept: Sequence[Representation]) -> tuple[Representation, ...]:
    """Dense and sparse bring candidates; multi only where there is nothing else."""
    return tuple(name for name in kept if name != "multi") or ("multi",)


def run(store: Store, query: Encoded, retriever: Retriever, judge: Judge | None = None) -> list[Ranked]:
    """The best `retriever.k` chunks for the one text in `query`, best first; ties by id, ascending.

    judge  scores texts for this query where the retriever reranks by "cross"
    """
    lists = candidates(store, query, retriever)
    return arrange(store, query, _fuse(store, query, lists, retriever.fuse), retriever, judge)


def arrange(
    store: Store, query: Encoded, found: list[Ranked], retriever: Retriever, judge: Judge | None = None
) -> list[Ranked]:
    """What the stages after fusion make of chunks that are found and in order."""
    if retriever.rerank:
        best, by = found[: retriever.rerank.depth], retriever.rerank.by
        found = _rerank_cross(store, best, judge) if by == "cross" else _rerank(store, query, best, by)
    if retriever.diversify:
        depth = retriever.diversify.depth
        found = _diversify(store, found[:depth], retriever.diversify.relevance) + found[depth:]
    if retriever.group:
        found = _group(found, retriever.group.per_document)
    return found[: retriever.k]


def candidates(store: Store, query: Encoded, retriever: Retriever) -> dict[Representation, list[Scored]]:
    """The lists of the first stage."""
    everywhere = Filter.parse(retriever.where)
    return {
        stage.representation: store.search(
            stage.representation, query, stage.k, _both(everywhere, Filter.parse(stage.where))
        )
        for stage in retriever.candidates
    }


def _both(first: Filter | None, second: Filter | None) -> Filter | None:
    return Filter("and", parts=(first, second)) if first and second else first or second


def ranks_in(lists: Mapping[Representation, list[Scored]]) -> dict[str, dict[Representation, int]]:
    """Of every chunk its rank, from 1, in each list that has it."""
    ranks: dict[str, dict[Representation, int]] = {}
    for name, found in lists.items():
        for rank, one in enumerate(found, start=1):
            ranks.setdefault(one.id, {})[name] = rank
    return ranks


def _fuse(store: Store, query: Encoded, lists: Mapping[Representation, list[Scored]], fuse: Fuse) -> list[Ranked]:
    ranks = ranks_in(lists)
    if not ranks:
        return []
    if fuse.method == "weighted":
        return _weighted(store, query, lists, fuse.weights, ranks)
    parts = {name: dict(_by_list([found], fuse)) for name, found in lists.items()}
    raw = {name: dict(found) for name, found in lists.items()}
    return [
        Ranked(
            id,
            score,
            {name: raw[name][id] for name in ranks[id]},
            {name: parts[name][id] for name in ranks[id]},
            ranks[id],
        )
        for id, score in _by_list(list(lists.values()), fuse)
    ]


def _by_list(lists: Sequence[list[Scored]], fuse: Fuse) -> list[tuple[str, float]]:
    """Fusion that looks at the lists alone."""
    if fuse.method == "dbsf":
        return dbsf(lists)
    return rrf([[one.id for one in found] for found in lists], k=fuse.rrf_k)


def _weighted(
    store: Store,
    query: Encoded,
    lists: Mapping[Representation, list[Scored]],
    weights: Weights,
    ranks: Mapping[str, Mapping[Representation, int]],
) -> list[Ranked]:
    ids = list(ranks)
    scores = _listed(lists, ids) if tuple(lists) == weights.used else {}
    if not scores:
        scores = dict(store.score(query.only(*weights.used), ids))
    return summed(scores, weights, ranks)


def summed(
    scores: Mapping[Representation, Floats], weights: Weights, ranks: Mapping[str, Mapping[Representation, int]]
) -> list[Ranked]:
    """The weighted sum of the scores of the chunks of `ranks`, in its order; best first."""
    fused = weighted_sum(scores, weights)
    found = []
    for i, id in enumerate(ranks):
        raw: dict[Scorer, float] = {name: float(scores[name][i]) for name in weights.used}
        parts: dict[Scorer, float] = {name: weights[name] * raw[name] / weights.total for name in weights.used}
        found.append(Ranked(id, float(fused[i]), raw, parts, ranks[id]))
    return _sorted(found)


def _listed(lists: Mapping[Representation, list[Scored]], ids: Sequence[str]) -> dict[Representation, Floats]:
    """The scores of the lists themselves, if every list has every chunk; else nothing: they must be computed."""
    if any(len(found) < len(ids) for found in lists.values()):
        return {}
    by_id = {name: dict(found) for name, found in lists.items()}
    return {name: np.array([scores[id] for id in ids], dtype=np.float32) for name, scores in by_id.items()}


def _sorted(found: list[Ranked]) -> list[Ranked]:
    return sorted(found, key=lambda one: (-one.score, one.id))


def _rerank(store: Store, query: Encoded, found: list[Ranked], by: Representation) -> list[Ranked]:
    if not found:
        return []
    scores = store.score(query.only(by), [one.id for one in found])
    if by not in scores:
        raise InputError(f"rerank: the collection keeps no {by} vectors. Leave the stage out, or name another score")
    return _rescored(found, by, scores[by])


def _rerank_cross(store: Store, found: list[Ranked], judge: Judge | None) -> list[Ranked]:
    if judge is None:
        raise InputError('rerank by "cross" needs a cross-encoder: open the collection with reranker=CrossEncoder(...)')
    if not found:
        return []
    scores = np.asarray(judge([chunk.text for chunk in store.fetch([one.id for one in found])]))
    if scores.shape != (len(found),):
        raise ShapeError(f"the reranker gave scores of shape {scores.shape} for {len(found)} texts")
    if not np.isfinite(scores).all():
        raise NumericalError("the reranker gave NaN or infinity as a score")
    return _rescored(found, "cross", scores)


def _rescored(found: list[Ranked], by: Scorer, values: Floats) -> list[Ranked]:
    again = []
    for one, value in zip(found, values.tolist(), strict=True):
        scores: dict[Scorer, float] = {**one.scores, by: value}
        again.append(replace(one, score=value, scores=scores, contributions={by: value}))
    return _sorted(again)


def _diversify(store: Store, found: list[Ranked], relevance: float) -> list[Ranked]:
    """A new order; scores stay what they were. Relevance is scaled to [0, 1] over the candidates."""
    if not found:
        return []
    rows = store.vectors([one.id for one in found], ["dense"]).dense
    if rows is None:
        raise InputError("diversify: the collection keeps no dense vectors. Leave the stage out")
    values = np.array([one.score for one in found])
    spread = values.max() - values.min()
    scaled = (values - values.min()) / spread if spread > 0 else np.ones(len(values))
    similarity = rows @ rows.T
    nearest = np.zeros(len(found))  # to any chunk that is chosen already
    left = list(range(len(found)))
    order: list[int] = []
    while left:
        gain = relevance * scaled[left] - (1.0 - relevance) * nearest[left]
        best = left.pop(int(gain.argmax()))  # the first of equals: the better one
        nearest = np.maximum(nearest, similarity[best]) if order else similarity[best].astype(np.float64)
        order.append(best)
    return [found[i] for i in order]


def _group(found: list[Ranked], per_document: int) -> list[Ranked]:
    taken: dict[str, int] = {}
    kept = []
    for one in found:
        document = one.id.rpartition("#")[0]
        taken[document] = taken.get(document, 0) + 1
        if taken[document] <= per_document:
            kept.append(one)
    return kept


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1; got {value}")
    if value > MOST:
        raise ConfigError(f"{name} must be at most {MOST:,}; got {value}")
