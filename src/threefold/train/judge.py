"""Scores of chosen pairs of query and text, and examples with such scores: what a teacher says about training data.

A teacher is a cross-encoder, or the score of a retrieval mode of an encoder. Knows neither; both are functions here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import numpy as np

from threefold.errors import ConfigError, NumericalError, ShapeError
from threefold.retrieve.encoded import Unique, encode_unique
from threefold.retrieve.exact import cut
from threefold.retrieve.modes import LEXICAL, RANK_FUSION, WEIGHTED, Mode, Protocol, check_weights, cut_of
from threefold.score import Weights, dense_scores, maxsim, sparse_scores, weighted_sum
from threefold.text.protocol import TextEncoder
from threefold.train.examples import Example
from threefold.types import REPRESENTATIONS, Floats, Ints, Representation

#: Pairs (query, text) in, one score each out, higher is better.
Judge = Callable[[Sequence[tuple[str, str]]], Floats]

#: Examples whose pairs are judged at a time.
BLOCK: Final = 256


class PairScores:
    """The scores of a mode for chosen pairs: those of `retrieve.exact`, without scoring all documents."""

    def __init__(self, mode: Mode, protocol: Protocol, queries: Unique, documents: Unique) -> None:
        check_scored(mode)
        self.mode, self.queries, self.documents = mode, queries, documents
        self.dim = cut_of(mode)
        if mode in WEIGHTED:
            self.weights = protocol.weights_of(mode)
        else:
            only: Representation = "dense" if self.dim else next(name for name in REPRESENTATIONS if name == mode)
            self.weights = Weights(1.0, 1.0, 1.0).only(only)

    def __call__(self, query: int, places: Sequence[int] | Ints) -> Floats:
        """(len(places),) scores of one query with these documents."""
        asked = self.queries.encoded.take([self.queries.rows[query]])
        said = self.documents.encoded.take(self.documents.rows[np.asarray(places, np.int64)])
        parts: dict[Representation, Floats] = {}
        if asked.dense is not None and said.dense is not None:
            first, second = asked.dense, said.dense
            if self.dim is not None:
                first, second = cut(first, self.dim), cut(second, self.dim)
            parts["dense"] = dense_scores(first[0], second)
        if asked.sparse is not None and said.sparse is not None:
            parts["sparse"] = sparse_scores(asked.sparse[0], said.sparse)
        if asked.multi is not None and said.multi is not None:
            parts["multi"] = maxsim(asked.multi[0], said.multi)
        return weighted_sum(parts, self.weights)


def check_scored(mode: Mode) -> None:
    """Whether a mode gives one pair a score of its own that a model makes."""
    if mode in (*LEXICAL, *RANK_FUSION):
        raise ConfigError(
            f"mode {mode!r} does not score a query with one text by a model. Use dense, sparse, multi, dense+sparse or "
            "hybrid, or a cross-encoder as the teacher"
        )


class ModeJudge:
    """An encoder as a teacher: the score of one of its modes."""

    def __init__(self, encoder: TextEncoder, mode: Mode = "hybrid", weights: Weights | None = None) -> None:
        check_scored(mode)
        check_weights(mode, weights)
        self.encoder, self.mode = encoder, mode
        self.protocol = Protocol(modes=(mode,), measures=(), weights=weights or Weights(*encoder.card.fusion))

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        outputs = self.protocol.needs(self.mode)
        asked, said = zip(*pairs, strict=True)
        different = {query: place for place, query in enumerate(dict.fromkeys(asked))}
        scores = PairScores(
            self.mode,
            self.protocol,
            encode_unique(self.encoder, list(different), "queries", outputs),
            encode_unique(self.encoder, said, "documents", outputs),
        )
        numbers = np.array([different[query] for query in asked])
        judged = np.empty(len(pairs), np.float32)
        for number in range(len(different)):
            places = np.flatnonzero(numbers == number)
            judged[places] = scores(number, places)
        return judged


def judged(judge: Judge, pairs: Sequence[tuple[str, str]]) -> Floats:
    """One finite score per pair, or an error."""
    scores = np.asarray(judge(pairs)) if pairs else np.zeros(0, np.float32)
    if scores.shape != (len(pairs),):
        raise ShapeError(f"the teacher gave scores of shape {scores.shape} for {len(pairs)} pairs")
    if not np.isfinite(scores).all():
        place = int(np.argmin(np.isfinite(scores)))
        raise NumericalError(f"the teacher gave {scores[place]} for the query {pairs[place][0][:80]!r}")
    return scores


def distil(
    examples: Iterable[Example],
    judge: Judge,
    *,
    prompted: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Example]:
    """The examples with the teacher's scores of all their positives and negatives, instead of any that they had.

    prompted  the teacher reads the prompt of an example in front of its texts: right for an embedding model that was
              trained so, wrong for a cross-encoder
    progress  called after each block with the examples so far
    """
    stream, done = iter(examples), 0
    while block := list(islice(stream, BLOCK)):
        scores = judged(judge, [pair for example in block for pair in _pairs(example, prompted)]).tolist()
        for example in block:
            end = len(example.positives) + len(example.negatives)
            yield with_scores(example, scores[:end])
            del scores[:end]
        done += len(block)
        if progress is not None:
            progress(done)


def with_scores(example: Example, scores: Sequence[float]) -> Example:
    """The example with scores of its positives and then of its negatives, to six decimals, so that files stay small."""
    short = tuple(round(score, 6) for score in scores)
    middle = len(example.positives)
    return replace(example, positive_scores=short[:middle], negative_scores=short[middle:])


def _pairs(example: Example, prompted: bool) -> list[tuple[str, str]]:
    texts = [*example.positives, *example.negatives]
    return [(example.asked, example.said(text)) if prompted else (example.query, text) for text in texts]
