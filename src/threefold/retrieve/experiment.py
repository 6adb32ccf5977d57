"""What a model retrieves when nothing stands between it and the figures: exact scores by brute force.

Texts are encoded once for all modes; scores exist for one block of queries at a time, so memory stays bounded by
the representations themselves. Runs are judged by `threefold.evaluate`, which never sees the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from scipy.sparse import csr_array

from threefold.config import Settings
from threefold.errors import ConfigError, InputError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.measures import DEFAULT_MEASURES, Judgement, Measure, Run
from threefold.evaluate.report import Row
from threefold.evaluate.task import Task
from threefold.retrieve.bm25 import BM25, K1, B, model_terms
from threefold.retrieve.encoded import Unique, encode_unique
from threefold.score import (
    RRF_K,
    TRAINING,
    Weights,
    dbsf,
    dense_matrix,
    maxsim_matrix,
    maxsim_pairs,
    postings,
    rrf,
    sparse_matrix,
    tie_order,
    top_k,
    weighted_sum,
)
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.types import REPRESENTATIONS, Floats, Ints, Ragged, Representation

#: How documents are found. `hybrid` is the paper's "All"; `rrf` and `dbsf` fuse the three rankings instead.
Mode = Literal["dense", "sparse", "multi", "dense+sparse", "hybrid", "bm25", "rrf", "dbsf"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
#: What is compared when nobody says otherwise.
DEFAULT_MODES: Final[tuple[Mode, ...]] = ("dense", "sparse", "multi", "dense+sparse", "hybrid", "bm25")
#: Modes that see the rankings of the three heads, not their scores side by side.
RANK_FUSION: Final[tuple[Mode, ...]] = ("rrf", "dbsf")

#: Scores that one array holds at a time (32 MiB in float32); about eight such arrays exist at once.
BLOCK_SCORES = 1 << 23
#: Up to this many times the depth of the rerank, scoring every document by wide products beats picking candidates.
WIDE = 4


@dataclass(frozen=True, slots=True)
class Protocol(Settings):
    """How an experiment is run. The defaults are those of the BGE-M3 paper.

    modes              what is compared
    measures           what is measured
    weights            of `hybrid`, and of `dense+sparse` unless it has its own
    dense_sparse       weights of `dense+sparse`; None: `weights` without multi
    multi_depth        `multi` and `hybrid` rerank so many best documents of dense; None: they score all documents
    depth              documents kept per query
    max_tokens         of a document; None: the longest that the model reads
    max_query_tokens   of a query; None: the longest that the model reads
    """

    modes: tuple[Mode, ...] = DEFAULT_MODES
    measures: tuple[str, ...] = DEFAULT_MEASURES
    weights: Weights = TRAINING
    dense_sparse: Weights | None = None
    multi_depth: int | None = 200
    depth: int = 1000
    max_tokens: int | None = None
    max_query_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.modes or len(set(self.modes)) != len(self.modes):
            raise ConfigError(f"modes must name one or more of {', '.join(MODES)}, each once; got {self.modes!r}")
        for name in ("multi_depth", "depth", "max_tokens", "max_query_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
        if self.dense_sparse is not None and self.dense_sparse.multi > 0:
            raise ConfigError(f"dense_sparse has the weight {self.dense_sparse.multi:g} for multi; it must be 0")
        deepest = max((Measure.parse(text).cutoff for text in self.measures), default=0)
        if deepest > self.depth:
            raise ConfigError(f"depth {self.depth} is less than the measures look at ({deepest}); raise depth")

    def weights_of(self, mode: Mode) -> Weights:
        """The weights of a fused mode."""
        if mode == "hybrid":
            return self.weights
        return self.dense_sparse or self.weights.only("dense", "sparse")

    def needs(self, mode: Mode) -> tuple[Representation, ...]:
        """The representations that a mode is made of."""
        if mode == "bm25":
            return ()
        used = self._used(mode)
        reranks = "multi" in used and self.multi_depth is not None
        return tuple(name for name in REPRESENTATIONS if name in used or (reranks and name == "dense"))

    def describe(self, mode: Mode) -> str:
        """How a mode was run, for reports."""
        if mode == "bm25":
            return f"Lucene's BM25 (k1 {K1}, b {B}) over the model's own tokens, whole texts"
        what = "exact scores"
        if mode in ("dense+sparse", "hybrid"):
            weights = self.weights_of(mode)
            what = "weighted sum of " + ", ".join(f"{name} {weights[name]:g}" for name in weights.used)
        elif mode == "rrf":
            what = f"reciprocal rank fusion (k {RRF_K}) of dense, sparse and multi, each to rank {self.depth:,}"
        elif mode == "dbsf":
            what = f"distribution based fusion of dense, sparse and multi, each to rank {self.depth:,}"
        if mode in RANK_FUSION and self.multi_depth is not None:
            return f"{what}; multi over the dense top {self.multi_depth}"
        if "multi" not in self._used(mode) or self.multi_depth is None:
            return f"{what}, over all documents"
        return f"{what}, over the dense top {self.multi_depth}"

    def _used(self, mode: Mode) -> tuple[Representation, ...]:
        if mode in ("dense+sparse", "hybrid"):
            return self.weights_of(mode).used
        return tuple(name for name in REPRESENTATIONS if name == mode or mode in RANK_FUSION)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out for one task: a row of figures, a run and a judgement per mode."""

    rows: tuple[Row, ...]
    runs: Mapping[Mode, Run]
    judgements: Mapping[Mode, Judgement]


def available_modes(card: ModelCard) -> tuple[Mode, ...]:
    """Those of the default modes that a model can run."""
    return tuple(mode for mode in DEFAULT_MODES if set(Protocol().needs(mode)) <= set(card.representations))


def run_task(
    task: Task, encoder: TextEncoder, protocol: Protocol | None = None, *, cache: Path | None = None
) -> Outcome:
    """Encode the task once, score it exactly in every mode, and judge the runs.

    cache  a folder that keeps the encoded texts between calls
    """
    protocol = protocol or Protocol()
    _check_modes(encoder.card, protocol)
    clock = time.perf_counter
    start = clock()
    documents, queries = _encode(task, encoder, protocol, cache)
    encoded = clock()
    runs = _runs(protocol, _Scorer(task, encoder, protocol, documents, queries))
    scored = clock()
    judgements = {mode: judge_task(task, runs[mode], protocol.measures) for mode in protocol.modes}
    seconds = {"encode": encoded - start, "score": scored - encoded, "judge": clock() - scored}
    rows = tuple(
        Row(
            task=task.name,
            mode=mode,
            values=judgements[mode].means,
            documents=len(task.documents),
            queries=len(task.qrels),
            protocol=protocol.describe(mode),
            warnings=dict(task.warnings) | ({} if mode == "bm25" else _truncations(documents, queries)),
            seconds=seconds,
        )
        for mode in protocol.modes
    )
    return Outcome(rows, runs, judgements)


def _check_modes(card: ModelCard, protocol: Protocol) -> None:
    for mode in protocol.modes:
        missing = sorted(set(protocol.needs(mode)) - set(card.representations))
        if missing:
            possible = ", ".join(available_modes(card))
            raise InputError(
                f"mode {mode!r} needs {' and '.join(missing)}, which the model {card.name} does not make. "
                f"It can be evaluated in the modes {possible}"
            )


def _encode(
    task: Task, encoder: TextEncoder, protocol: Protocol, cache: Path | None
) -> tuple[Unique | None, Unique | None]:
    wanted = {name for mode in protocol.modes for name in protocol.needs(mode)}
    outputs = [name for name in REPRESENTATIONS if name in wanted]
    if not outputs:
        return None, None
    texts, asked = list(task.documents.values()), [task.queries[id] for id in task.qrels]
    return (
        encode_unique(encoder, texts, "documents", outputs, max_tokens=protocol.max_tokens, cache=cache),
        encode_unique(encoder, asked, "queries", outputs, max_tokens=protocol.max_query_tokens, cache=cache),
    )


def _truncations(documents: Unique | None, queries: Unique | None) -> dict[str, int]:
    counts = {
        "documents truncated": documents.truncated if documents else 0,
        "queries truncated": queries.truncated if queries else 0,
    }
    return {what: count for what, count in counts.items() if count}


class _Scorer:
    """Scores of a block of queries against all documents, by mode. -inf: not found."""

    def __init__(
        self,
        task: Task,
        encoder: TextEncoder,
        protocol: Protocol,
        documents: Unique | None,
        queries: Unique | None,
    ) -> None:
        self.protocol, self.documents, self.queries = protocol, documents, queries
        fused = any(mode in RANK_FUSION for mode in protocol.modes)
        wanted = {*protocol.modes, *(REPRESENTATIONS if fused else ())} - set(RANK_FUSION)
        self.modes: list[Mode] = [mode for mode in MODES if mode in wanted]
        self.ids, self.asked = list(task.documents), list(task.qrels)
        self.ties = tie_order(self.ids)
        self.own = {id: place for place, id in enumerate(self.ids)} if task.ignore_identical_ids else {}
        self.terms: csr_array | None = None
        if documents is not None and documents.encoded.sparse is not None:
            self.terms = postings(documents.encoded.sparse)
        self.bm25: BM25 | None = None
        if "bm25" in protocol.modes:
            self.bm25 = BM25(model_terms(encoder.tokenizer, list(task.documents.values())))
            self.bm25_queries = model_terms(encoder.tokenizer, [task.queries[id] for id in self.asked])

    def blocks(self) -> Iterator[tuple[range, dict[Mode, Floats]]]:
        """(queries, {mode: (b, n) scores}), block after block."""
        size = max(BLOCK_SCORES // len(self.ids), 1)
        for first in range(0, len(self.asked), size):
            block = range(first, min(first + size, len(self.asked)))
            yield block, self._block(block)

    def _block(self, block: range) -> dict[Mode, Floats]:
        parts = self._parts(block)
        found: dict[Mode, Floats] = {}
        for mode in self.modes:
            if mode == "bm25":
                assert self.bm25 is not None
                scores = _only_matches(self.bm25.scores([self.bm25_queries[i] for i in block]))
            elif mode == "sparse":
                scores = _only_matches(parts["sparse"])
            elif mode == "dense" or mode == "multi":
                scores = parts[mode]  # in place below: the fused modes drop the same places anyway
            else:
                scores = weighted_sum(parts, self.protocol.weights_of(mode))
            found[mode] = self._without_own(block, scores)
        return found

    def _parts(self, block: range) -> dict[Representation, Floats]:
        """Raw scores (b, n) by representation; multi is -inf outside the documents that it reranks."""
        parts: dict[Representation, Floats] = {}
        if self.queries is None or self.documents is None:
            return parts
        asked, docs = self.queries.encoded.take(self.queries.rows[block.start : block.stop]), self.documents.encoded
        if asked.dense is not None and docs.dense is not None:
            parts["dense"] = self._all(dense_matrix(asked.dense, docs.dense))
        if asked.sparse is not None and self.terms is not None:
            parts["sparse"] = self._all(sparse_matrix(asked.sparse, self.terms))
        if asked.multi is not None and docs.multi is not None:
            parts["multi"] = self._multi(block, asked.multi, docs.multi, parts.get("dense"))
        return parts

    def _multi(self, block: range, asked: Ragged, docs: Ragged, dense: Floats | None) -> Floats:
        depth, n = self.protocol.multi_depth, len(self.ids)
        if depth is None or dense is None or depth >= n:
            return self._all(maxsim_matrix(asked, docs))
        assert self.documents is not None
        first = self._without_own(block, dense.copy())
        everything = self._all(maxsim_matrix(asked, docs)) if n <= WIDE * depth else None
        scores = np.full((len(block), n), -np.inf, dtype=np.float32)
        for i, query in enumerate(asked):
            candidates = top_k(first[i], depth, self.ties)
            scores[i, candidates] = (
                maxsim_pairs(query, docs, self.documents.rows[candidates])
                if everything is None
                else everything[i, candidates]
            )
        return scores

    def _all(self, scores: Floats) -> Floats:
        """From (b, different texts) to (b, documents)."""
        assert self.documents is not None
        return scores if self.documents.distinct else scores[:, self.documents.rows]

    def _without_own(self, block: range, scores: Floats) -> Floats:
        """In place: a query does not find the document of its own id, where the task says so."""
        if self.own:
            for i, query in enumerate(block):
                if (place := self.own.get(self.asked[query])) is not None:
                    scores[i, place] = -np.inf
        return scores


def _only_matches(scores: Floats) -> Floats:
    """A document that shares no term with the query is not found, as in an inverted index."""
    matches: Floats = np.where(scores > 0, scores, np.float32(-np.inf))
    return matches


def _runs(protocol: Protocol, scorer: _Scorer) -> dict[Mode, dict[str, dict[str, float]]]:
    runs: dict[Mode, dict[str, dict[str, float]]] = {mode: {} for mode in protocol.modes}
    for block, found in scorer.blocks():
        for i, query in enumerate(block):
            best = {
                mode: _named(scorer.ids, top_k(scores[i], protocol.depth, scorer.ties), scores[i])
                for mode, scores in found.items()
            }
            for mode in protocol.modes:
                runs[mode][scorer.asked[query]] = best[mode] if mode in best else _fused(mode, best, protocol.depth)
    return runs


def _fused(mode: Mode, best: Mapping[Mode, Mapping[str, float]], depth: int) -> dict[str, float]:
    """The three rankings of one query as one."""
    lists = [best[name] for name in REPRESENTATIONS]
    fused = rrf([list(scores) for scores in lists]) if mode == "rrf" else dbsf([list(one.items()) for one in lists])
    return dict(fused[:depth])


def _named(ids: Sequence[str], best: Ints, scores: Floats) -> dict[str, float]:
    return {ids[place]: score for place, score in zip(best.tolist(), scores[best].tolist(), strict=True)}
