"""Pairs scored by the encoder's own three heads: each text is read once, alone, and the scores are summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from threefold.score.dense import dense_scores
from threefold.score.fuse import TRAINING, Weights, weighted_sum
from threefold.score.multi import maxsim
from threefold.score.sparse import sparse_scores
from threefold.serve.judges import WHOLE, Check, Cutting, Judgement, Pair, any_size
from threefold.serve.models import Embedder, Read, named
from threefold.serve.queue import ends_within
from threefold.serve.schedule import Lane
from threefold.types import Floats, Ragged, Representation, Row, Sparse, offsets_of

#: Texts that the heads read at a time, in tokens: 64 MB of token vectors of bge-m3.
BLOCK_TOKENS = 16_384
#: Queries and texts, each once.
Distinct = tuple[list[str], list[str]]


class HeadsJudge:
    """The weighted sum of the heads that the encoder has, from one forward pass per distinct text.

    The published weights of BGE-M3 (dense 1, sparse 0.3, multi 1), whatever a model's own for a search are.
    """

    is_cross_encoder: bool = False

    def __init__(self, embedder: Embedder, weights: Weights = TRAINING) -> None:
        self._embedder = embedder
        self._weights = weights

    @property
    def name(self) -> str:
        """The encoder."""
        return self._embedder.name

    async def judge(
        self,
        pairs: Sequence[Pair],
        *,
        cutting: Cutting = WHOLE,
        check: Check = any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        texts = list(dict.fromkeys(text for _, text in pairs))
        names = _names((queries, texts), pairs)
        with named(names):
            asked = await self._read(queries, "query", cutting._replace(max_text_tokens=None))
        with named(names, len(queries)):
            said = await self._read(texts, "document", cutting)
        check(asked.tokens, self._used.used)
        check(said.tokens, ())  # their token vectors are never all there at once
        async with ends_within(deadline_s):  # of all blocks together
            found = await self._scored(pairs, (queries, texts), (asked, said), lane, deadline_s)
        raw = [found.scores[pair] for pair in pairs]
        cut = dict(zip(texts, said.truncated, strict=True))
        return Judgement(
            raw,
            [min(max(score, 0.0), 1.0) for score in raw],
            [cut[text] for _, text in pairs],
            asked.tokens + said.tokens,
            asked.characters + said.characters,
            asked.seconds + said.seconds,
            found.queue_s,
            found.run_s,
            any(asked.truncated),
        )

    async def _scored(
        self,
        pairs: Sequence[Pair],
        distinct: Distinct,
        reads: tuple[Read, Read],
        lane: Lane | None,
        deadline_s: float | None,
    ) -> _Scored:
        """The queries are read with the first texts, and scored with each block of texts as it comes."""
        weights, vocab = self._used, self._embedder.card.vocab
        names, said, rows = _names(distinct, pairs), distinct[0] + distinct[1], reads[0].rows + reads[1].rows
        blocks = list(_blocks([len(ids) for ids in rows], len(distinct[0])))
        if len(blocks) > 1:
            lane = lane or "bulk"
            self._embedder.engine.admit(reads[0].tokens + reads[1].tokens, lane, deadline_s or math.inf)
        queries: dict[str, Row] = {}
        scores: dict[Pair, float] = {}
        queue_s = run_s = 0.0
        for part in blocks:
            read = Read(rows[part], [], 0, 0.0)
            with named(names, part.start):
                answer = await self._embedder.embed(read, weights.used, lane=lane, deadline_s=deadline_s)
            first = 0 if queries else len(distinct[0])
            queries = queries or dict(zip(distinct[0], answer.rows[:first], strict=True))
            texts = dict(zip(said[part][first:], answer.rows[first:], strict=True))
            here = [pair for pair in dict.fromkeys(pairs) if pair[1] in texts]
            work = partial(_score_pairs, here, queries, texts, weights, vocab)
            scores |= zip(here, await self._embedder.threads.run(work), strict=True)
            queue_s, run_s = queue_s + answer.queue_s, run_s + answer.run_s
        return _Scored(scores, queue_s, run_s)

    @property
    def _used(self) -> Weights:
        """Of the heads that the model has; it is loaded after the judge was made."""
        return self._weights.only(*self._embedder.card.representations)

    async def _read(self, texts: Sequence[str], prompt: str, cutting: Cutting) -> Read:
        embedder, most = self._embedder, cutting.max_tokens
        if cutting.max_text_tokens is not None:
            longest = cutting.max_text_tokens + embedder.tokenizer.overhead
            most = longest if most is None else min(most, longest)
        said = embedder.prompts.get(prompt, "")
        return await embedder.read(texts, truncate=cutting.truncate, prompt=said, max_tokens=most)


class _Scored(NamedTuple):
    """Scores of distinct pairs, and where the time went."""

    scores: dict[Pair, float]
    queue_s: float
    run_s: float


def _blocks(lengths: Sequence[int], first: int) -> Iterator[slice]:
    """Neighbouring texts of at most `BLOCK_TOKENS` together; the `first` ones share a block with the next."""
    start = used = 0
    for i, length in enumerate(lengths):
        if i > first and used + length > BLOCK_TOKENS:
            yield slice(start, i)
            start, used = i, 0
        used += length
    yield slice(start, len(lengths))


def _names(distinct: Distinct, pairs: Sequence[Pair]) -> Callable[[int], str]:
    """What the client calls a row of what is read: the distinct queries, then the distinct texts; equal ones once."""
    queries, texts = distinct

    def name(row: int) -> str:
        if row >= len(queries):
            return f"text {[text for _, text in pairs].index(texts[row - len(queries)])}"
        return "the query" if len(queries) == 1 else f"query {[query for query, _ in pairs].index(queries[row])}"

    return name


def _score_pairs(
    pairs: Sequence[Pair], queries: dict[str, Row], texts: dict[str, Row], weights: Weights, vocab: int
) -> list[float]:
    scores = np.zeros(len(pairs), np.float32)
    for query, row in queries.items():
        places = [i for i, (asked, _) in enumerate(pairs) if asked == query]
        if not places:
            continue
        rows = [texts[pairs[i][1]] for i in places]
        scores[places] = weighted_sum({name: _score(name, row, rows, vocab) for name in weights.used}, weights)
    found: list[float] = scores.tolist()
    return found


def _score(name: Representation, query: Row, texts: Sequence[Row], vocab: int) -> Floats:
    if name == "dense":
        assert query.dense is not None
        return dense_scores(query.dense, np.stack([row.dense for row in texts if row.dense is not None]))
    if name == "multi":
        assert query.multi is not None
        return maxsim(query.multi, Ragged.of([row.multi for row in texts if row.multi is not None]))
    assert query.sparse is not None
    parts = [row.sparse for row in texts if row.sparse is not None]
    offsets = offsets_of([len(ids) for ids, _ in parts])
    stacked = Sparse(np.concatenate([i for i, _ in parts]), np.concatenate([w for _, w in parts]), offsets, vocab)
    return sparse_scores(query.sparse, stacked)
