"""Exact runs by brute force: every query against every document, block by block.

Documents are the outer blocks, so that vectors on disk are read once, and scores exist for one block of queries at a
time: memory stays bounded by a block, whatever the size of the corpus. What reranks (multi, hybrid) comes after, over
the best documents of dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from threefold.evaluate.task import Task
from threefold.retrieve.bm25 import BM25, model_terms, word_terms
from threefold.retrieve.encoded import Unique
from threefold.retrieve.modes import LEXICAL, RANK_FUSION, Mode, Protocol, cut_of
from threefold.score import (
    dbsf,
    dense_matrix,
    maxsim_matrix,
    maxsim_pairs,
    postings,
    rrf,
    sparse_matrix,
    sparse_scores,
    tie_order,
    top_k,
    weighted_sum,
)
from threefold.text.tokenizer import Tokenizer
from threefold.types import REPRESENTATIONS, Encoded, Floats, Ints, Representation

#: Scores that one array holds at a time (32 MiB in float32); about eight such arrays exist at once.
BLOCK_SCORES = 1 << 23
#: Documents of a block: 512 MB of dense vectors of bge-m3.
BLOCK_DOCUMENTS = 1 << 17
#: Up to this many times the depth of the rerank, scoring every document by wide products beats picking candidates.
WIDE = 4

#: {query id: {document id: score}}, best first.
Found = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Best:
    """The best documents of one query so far: positions in the corpus and their scores, best first."""

    places: Ints
    scores: Floats

    def cut(self, k: int) -> Best:
        return Best(self.places[:k], self.scores[:k])


_NONE = Best(np.zeros(0, np.int64), np.zeros(0, np.float32))


class Exact:
    """Runs of one task in every mode of a protocol."""

    def __init__(
        self,
        task: Task,
        protocol: Protocol,
        documents: Unique | None,
        queries: Unique | None,
    ) -> None:
        self.task, self.protocol, self.documents, self.queries = task, protocol, documents, queries
        self.ids, self.asked = list(task.documents), list(task.qrels)
        self.ties = tie_order(self.ids)
        own = {id: place for place, id in enumerate(self.ids)} if task.ignore_identical_ids else {}
        self.own = [own.get(query) for query in self.asked]
        fused = any(mode in RANK_FUSION for mode in protocol.modes)
        wanted = dict.fromkeys((*protocol.modes, *(REPRESENTATIONS if fused else ())))
        self.modes: list[Mode] = [mode for mode in wanted if mode not in RANK_FUSION]

    def runs(self, tokenizer: Tokenizer | None = None) -> dict[Mode, Found]:
        """{mode: run}. The tokenizer is for `bm25`."""
        reranked = [mode for mode in self.modes if self.protocol.reranks(mode)]
        scanned = [mode for mode in self.modes if mode not in reranked and mode not in LEXICAL]
        best = self.scan([*scanned, *(["dense"] if reranked and "dense" not in scanned else [])])
        best |= self.rerank(reranked, best.get("dense", []))
        for mode in self.modes:
            if mode in LEXICAL:
                best[mode] = self.lexical(mode, tokenizer)
        depth = self.protocol.depth
        runs = {mode: [self._named(one.cut(depth)) for one in best[mode]] for mode in self.modes}
        for mode in self.protocol.modes:
            if mode in RANK_FUSION:
                lists = zip(*(runs[name] for name in REPRESENTATIONS), strict=True)
                runs[mode] = [_fused(mode, one, depth) for one in lists]
        return {mode: dict(zip(self.asked, runs[mode], strict=True)) for mode in self.protocol.modes}

    # ---- over all documents ------------------------------------------------------------------------------

    def scan(self, modes: Sequence[Mode]) -> dict[Mode, list[Best]]:
        """The best documents by modes that score all of them."""
        best = {mode: [_NONE] * len(self.asked) for mode in modes}
        if not modes or self.documents is None or self.queries is None:
            return best
        needed = {name for mode in modes for name in (("dense",) if mode == "dense" else self.protocol.needs(mode))}
        for documents in _blocks(len(self.ids), BLOCK_DOCUMENTS):
            encoded, rows = self.documents.part(documents)
            terms = postings(encoded.sparse) if encoded.sparse is not None and "sparse" in needed else None
            for queries in _blocks(len(self.asked), max(BLOCK_SCORES // len(documents), 1)):
                parts = self._parts(queries, encoded, rows, terms, needed)
                for mode in modes:
                    scores = self._scores(mode, parts, queries, encoded, rows)
                    self._without_own(queries, documents, scores)
                    self._keep(best[mode], queries, documents, scores, self._kept(mode))
        return best

    def _parts(
        self, queries: range, encoded: Encoded, rows: Ints | None, terms: csr_array | None, needed: set[Representation]
    ) -> dict[Representation, Floats]:
        """Raw scores (queries, documents of the block) by representation."""
        asked = self._asked(queries)
        parts: dict[Representation, Floats] = {}
        if "dense" in needed and asked.dense is not None and encoded.dense is not None:
            parts["dense"] = _spread(dense_matrix(asked.dense, encoded.dense), rows)
        if terms is not None and asked.sparse is not None:
            parts["sparse"] = _spread(sparse_matrix(asked.sparse, terms), rows)
        if "multi" in needed and asked.multi is not None and encoded.multi is not None:
            parts["multi"] = _spread(maxsim_matrix(asked.multi, encoded.multi), rows)
        return parts

    def _scores(
        self,
        mode: Mode,
        parts: Mapping[Representation, Floats],
        queries: range,
        encoded: Encoded,
        rows: Ints | None,
    ) -> Floats:
        """A new array, which the caller may change."""
        if (dim := cut_of(mode)) is not None:
            asked = self._asked(queries)
            assert asked.dense is not None
            assert encoded.dense is not None
            return _spread(dense_matrix(cut(asked.dense, dim), cut(encoded.dense, dim)), rows)
        if mode == "sparse":
            return _only_matches(parts["sparse"])
        if mode == "dense" or mode == "multi":
            return parts["dense" if mode == "dense" else "multi"].copy()
        return weighted_sum(parts, self.protocol.weights_of(mode))

    def _kept(self, mode: Mode) -> int:
        first = mode == "dense" and any(map(self.protocol.reranks, self.modes))
        return max(self.protocol.depth, self.protocol.multi_depth or 0) if first else self.protocol.depth

    def _keep(self, best: list[Best], queries: range, documents: range, scores: Floats, k: int) -> None:
        ties = self.ties[documents.start : documents.stop]
        for i, query in enumerate(queries):
            found = top_k(scores[i], k, ties)
            new = Best(found + documents.start, scores[i][found])
            best[query] = new if not len(best[query].places) else self._merged(best[query], new, k)

    def _merged(self, a: Best, b: Best, k: int) -> Best:
        places, scores = np.concatenate([a.places, b.places]), np.concatenate([a.scores, b.scores])
        order = np.lexsort((self.ties[places], -scores))[:k]
        return Best(places[order], scores[order])

    # ---- over the best of dense --------------------------------------------------------------------------

    def rerank(self, modes: Sequence[Mode], dense: Sequence[Best]) -> dict[Mode, list[Best]]:
        """The modes with multi, over the candidates that dense found."""
        if not modes or self.documents is None:
            return {}
        best: dict[Mode, list[Best]] = {mode: [] for mode in modes}
        for query, parts, places in self.candidates(dense, any("sparse" in self.protocol.needs(m) for m in modes)):
            ties = self.ties[places]
            for mode in modes:
                scores = parts["multi"] if mode == "multi" else weighted_sum(parts, self.protocol.weights_of(mode))
                found = top_k(scores, max(len(places), 1), ties)
                assert len(best[mode]) == query
                best[mode].append(Best(places[found], scores[found]))
        return best

    def candidates(
        self, dense: Sequence[Best], sparse: bool
    ) -> Iterator[tuple[int, dict[Representation, Floats], Ints]]:
        """(query, raw scores of its candidates, their places): the best `multi_depth` of dense."""
        assert self.documents is not None
        assert self.protocol.multi_depth is not None
        docs, depth = self.documents.encoded, self.protocol.multi_depth
        assert docs.multi is not None
        wide = len(self.ids) <= WIDE * depth
        for queries in _blocks(len(self.asked), max(BLOCK_SCORES // (4 * depth), 1)):
            asked = self._asked(queries)
            assert asked.multi is not None
            everything = maxsim_matrix(asked.multi, docs.multi) if wide else None
            for i, query in enumerate(queries):
                first = dense[query].cut(depth)
                rows = self.documents.rows[first.places]
                parts: dict[Representation, Floats] = {"dense": first.scores}
                if sparse and asked.sparse is not None and docs.sparse is not None:
                    parts["sparse"] = sparse_scores(asked.sparse[i], docs.sparse.take(rows))
                parts["multi"] = (
                    maxsim_pairs(asked.multi[i], docs.multi, rows) if everything is None else everything[i, rows]
                )
                yield query, parts, first.places

    # ---- BM25 --------------------------------------------------------------------------------------------

    def lexical(self, mode: Mode, tokenizer: Tokenizer | None) -> list[Best]:
        """The best documents by BM25; its index is in memory."""
        texts, asked = list(self.task.documents.values()), [self.task.queries[id] for id in self.asked]
        if mode == "bm25":
            assert tokenizer is not None
            docs, queries = model_terms(tokenizer, texts), model_terms(tokenizer, asked)
        else:
            docs, queries = word_terms(texts, asked, self.task.language)
        engine = BM25(docs)
        best = [_NONE] * len(self.asked)
        everything = range(len(self.ids))
        for block in _blocks(len(self.asked), max(BLOCK_SCORES // len(self.ids), 1)):
            scores = _only_matches(engine.scores(queries[block.start : block.stop]))
            self._without_own(block, everything, scores)
            self._keep(best, block, everything, scores, self.protocol.depth)
        return best

    # ---- small parts -------------------------------------------------------------------------------------

    def _asked(self, queries: range) -> Encoded:
        assert self.queries is not None
        return self.queries.encoded.take(self.queries.rows[queries.start : queries.stop])

    def _without_own(self, queries: range, documents: range, scores: Floats) -> None:
        """In place: a query does not find the document of its own id, where the task says so."""
        for i, query in enumerate(queries):
            place = self.own[query]
            if place is not None and place in documents:
                scores[i, place - documents.start] = -np.inf

    def _named(self, best: Best) -> dict[str, float]:
        return {self.ids[i]: score for i, score in zip(best.places.tolist(), best.scores.tolist(), strict=True)}


def cut(rows: Floats, dim: int) -> Floats:
    """The first `dim` dimensions at unit length (Matryoshka, arXiv 2205.13147); zero rows stay zero."""
    short = rows[:, :dim].astype(np.float32)
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    unit: Floats = short / np.where(lengths > 0, lengths, np.float32(1))
    return unit


def _spread(scores: Floats, rows: Ints | None) -> Floats:
    """From (b, different texts) to (b, documents)."""
    return scores if rows is None else scores[:, rows]


def _only_matches(scores: Floats) -> Floats:
    """A document that shares no term with the query is not found, as in an inverted index."""
    matches: Floats = np.where(scores > 0, scores, np.float32(-np.inf))
    return matches


def _fused(mode: Mode, best: Sequence[Mapping[str, float]], depth: int) -> dict[str, float]:
    """The three rankings of one query as one."""
    fused = rrf([list(scores) for scores in best]) if mode == "rrf" else dbsf([list(one.items()) for one in best])
    return dict(fused[:depth])


def _blocks(n: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, n)) for first in range(0, n, size))
