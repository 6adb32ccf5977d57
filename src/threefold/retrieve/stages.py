"""The stages of a search, as settings, and their execution: candidates, fuse, rerank, diversify, group.

A `Retriever` is data: the same JSON is accepted by the library, the command line and HTTP. `run` is a function of
a store, one encoded query and a retriever; it knows nothing of models and texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from threefold.config import Filter, Settings
from threefold.errors import ConfigError, InputError
from threefold.score.fuse import RRF_K, TRAINING, Weights, dbsf, rrf, weighted_sum
from threefold.store.protocol import Scored, Store
from threefold.types import REPRESENTATIONS, Encoded, Floats, Representation

Mode = Literal["hybrid", "dense", "sparse", "multi"]
Fusion = Literal["weighted", "rrf", "dbsf"]
Scores = Mapping[Representation, Floats]

MODES: tuple[Mode, ...] = get_args(Mode)

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
    """The best `depth` chunks in the order of one exact score; the others are dropped."""

    by: Representation = "multi"
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
        if self.rerank:
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
    scores: Mapping[Representation, float]
    contributions: Mapping[Representation, float]
    ranks: Mapping[Representation, int]


def preset(mode: Mode, kept: Sequence[Representation], *, k: int = 10, depth: int = DEPTH) -> Retriever:
    """The retriever of a mode, for a collection that keeps these representations.

    hybrid  dense and sparse candidates, the weighted sum of every kept score (weights of `score.fuse.TRAINING`)
    multi   the same candidates, ordered by the multi score alone
    dense, sparse  one list as it is
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
    if mode != "hybrid" and mode not in kept:
        raise InputError(f"the collection keeps {', '.join(kept)}, not {mode}. Search it with another mode, or hybrid")
    lists: tuple[Representation, ...] = (mode,) if mode in ("dense", "sparse") else _first_stage(kept)
    weights = TRAINING.only(*kept) if mode == "hybrid" else Weights(0.0, 0.0, 0.0 if mode != "multi" else 1.0)
    return Retriever(tuple(Candidates(name, max(k, depth)) for name in lists), Fuse(weights=weights), k=k)


def _first_stage(kept: Sequence[Representation]) -> tuple[Representation, ...]:
    """Dense and sparse bring candidates; multi only where there is nothing else."""
    return tuple(name for name in kept if name != "multi") or ("multi",)


def run(store: Store, query: Encoded, retriever: Retriever) -> list[Ranked]:
    """The best `retriever.k` chunks for the one text in `query`, best first; ties by id, ascending."""
    lists = _candidates(store, query, retriever)
    found = _fuse(store, query, lists, retriever.fuse)
    if retriever.rerank:
        found = _rerank(store, query, found[: retriever.rerank.depth], retriever.rerank.by)
    if retriever.diversify:
        found = _diversify(store, found[: retriever.diversify.depth], retriever.diversify.relevance, retriever)
    if retriever.group:
        found = _group(found, retriever.group.per_document)
    return found[: retriever.k]


def _candidates(store: Store, query: Encoded, retriever: Retriever) -> dict[Representation, list[Scored]]:
    everywhere = Filter.parse(retriever.where)
    return {
        stage.representation: store.search(
            stage.representation, query, stage.k, _both(everywhere, Filter.parse(stage.where))
        )
        for stage in retriever.candidates
    }


def _both(first: Filter | None, second: Filter | None) -> Filter | None:
    return Filter("and", parts=(first, second)) if first and second else first or second


def _fuse(store: Store, query: Encoded, lists: Mapping[Representation, list[Scored]], fuse: Fuse) -> list[Ranked]:
    ranks: dict[str, dict[Representation, int]] = {}
    for name, found in lists.items():
        for rank, one in enumerate(found, start=1):
            ranks.setdefault(one.id, {})[name] = rank
    if not ranks:
        return []
    if fuse.method == "weighted":
        return _weighted(store, query, lists, fuse.weights, ranks)
    raw = {name: dict(found) for name, found in lists.items()}
    parts = {name: dict(_by_list(found, fuse)) for name, found in lists.items()}
    fused = _sum_of_lists(lists, fuse)
    return [
        Ranked(
            id,
            score,
            {name: raw[name][id] for name in ranks[id]},
            {name: parts[name][id] for name in ranks[id]},
            ranks[id],
        )
        for id, score in fused
    ]
