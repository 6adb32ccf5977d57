"""Scores of pairs of texts, for rerank and score routes: by the encoder's own heads, or by a cross-encoder.

Both stand behind one protocol and behind their own queue. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import expit

from threefold.errors import InputError
from threefold.score.dense import dense_scores
from threefold.score.fuse import TRAINING, Weights, weighted_sum
from threefold.score.multi import maxsim
from threefold.score.sparse import sparse_scores
from threefold.serve.models import SAMPLE_TEXTS, SAMPLE_TOKENS, TOKENIZING, Embedder, packed
from threefold.serve.queue import BatchReport, Engine, Limits
from threefold.serve.schedule import Lane
from threefold.serve.threads import Threads
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Floats, Ints, Ragged, Representation, Row, Sparse, offsets_of

Pair = tuple[str, str]


class Judgement(NamedTuple):
    """One score per pair.

    raw    as the model gives it: a logit, or the weighted sum of the heads' scores
    unit   from 0 to 1, in the same order
    tokens that were read for all pairs together
    """

    raw: list[float]
    unit: list[float]
    truncated: list[bool]
    tokens: int
    characters: int
    tokenize_s: float
    queue_s: float
    run_s: float


class Judge(Protocol):
    """Scores pairs (query, text)."""

    @property
    def name(self) -> str:
        """The model."""
        ...

    @property
    def is_cross_encoder(self) -> bool:
        """Whether query and text are read together."""
        ...

    async def judge(
        self,
        pairs: Sequence[Pair],
        *,
        truncate: bool = True,
        max_text_tokens: int | None = None,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair.

        truncate         False: a text that is too long is an error
        max_text_tokens  texts (not queries) are cut to so many
        """
        ...


class HeadsJudge:
    """The weighted sum of the heads that the encoder has, from one forward pass per distinct text.

    The published weights of BGE-M3 (dense 1, sparse 0.3, multi 1), as in a hybrid search.
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
        truncate: bool = True,
        max_text_tokens: int | None = None,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        texts = list(dict.fromkeys(text for _, text in pairs))
        prompts = self._embedder.prompts
        asked = await self._embedder.read(queries, truncate="none", prompt=prompts.get("query", ""))
        said = await self._embedder.read(
            texts,
            truncate="end" if truncate else "none",
            prompt=prompts.get("document", ""),
            max_tokens=max_text_tokens,
        )
        both = asked._replace(rows=asked.rows + said.rows, truncated=asked.truncated + said.truncated)
        weights = self._weights.only(*self._embedder.card.representations)
        answer = await self._embedder.embed(both, weights.used, lane=lane, deadline_s=deadline_s)
        by_query = dict(zip(queries, answer.rows[: len(queries)], strict=True))
        by_text = dict(zip(texts, answer.rows[len(queries) :], strict=True))
        cut = dict(zip(texts, said.truncated, strict=True))
        work = partial(_score_pairs, pairs, by_query, by_text, weights, self._embedder.card.vocab)
        raw = await self._embedder.threads.run(work)
        return Judgement(
            raw,
            [min(max(score, 0.0), 1.0) for score in raw],
            [cut[text] for _, text in pairs],
            both.tokens,
            asked.characters + said.characters,
            asked.seconds + said.seconds,
            answer.queue_s,
            answer.run_s,
        )


def _score_pairs(
    pairs: Sequence[Pair], queries: dict[str, Row], texts: dict[str, Row], weights: Weights, vocab: int
) -> list[float]:
    scores = np.zeros(len(pairs), np.float32)
    for query, row in queries.items():
        places = [i for i, (asked, _) in enumerate(pairs) if asked == query]
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


class PairEncoder(Protocol):
    """What the server needs of a cross-encoder."""

    @property
    def name(self) -> str:
        """The model."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest pair, specials included."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        ...

    def score_tokens(self, tokens: Tokens, *, between: Callable[[], None] | None = None) -> Floats:
        """(n,) logits of pairs that were tokenized already. `between` is called before every layer."""
        ...


class PairRunner:
    """A cross-encoder as the worker thread sees it. `wanted` of a row: where its second text begins."""

    def __init__(self, cross: PairEncoder) -> None:
        self._cross = cross

    def run(
        self, rows: Sequence[Ints], wanted: Sequence[int], between: Callable[[], None] | None = None
    ) -> list[float]:
        """One logit per row."""
        tokens = packed(rows)
        seconds = np.array(wanted, dtype=np.int64)
        scores: list[float] = self._cross.score_tokens(
            Tokens(tokens.ids, tokens.offsets, tokens.available, seconds), between=between
        ).tolist()
        return scores

    def samples(self) -> tuple[Sequence[Ints], Sequence[Any]]:
        """A few pairs of middle length."""
        length = min(2 * SAMPLE_TOKENS, self._cross.max_tokens)
        row = np.full(length, self._cross.tokenizer.unk_id, np.int32)
        return [row] * SAMPLE_TEXTS, [length // 2] * SAMPLE_TEXTS


class CrossJudge:
    """A cross-encoder behind its own queue."""

    is_cross_encoder: bool = True
    name: str
    max_tokens: int
    tokenizer: Tokenizer
    weight_bytes: int = 0

    def __init__(
        self,
        load: Callable[[], PairEncoder],
        limits: Limits | None = None,
        *,
        name: str = "",
        observer: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._load = load
        self._name = name
        self._threads = Threads("pairs", TOKENIZING)
        self.engine: Engine[float] = Engine(self._make, limits, observer=observer)

    def _make(self) -> PairRunner:
        cross = self._load()
        self.name, self.max_tokens, self.tokenizer = self._name or cross.name, cross.max_tokens, cross.tokenizer
        self.weight_bytes = cross.weight_bytes
        return PairRunner(cross)

    def close(self) -> None:
        """Tokenize nothing more."""
        self._threads.close()

    async def judge(
        self,
        pairs: Sequence[Pair],
        *,
        truncate: bool = True,
        max_text_tokens: int | None = None,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        self.engine.admit(0, "interactive", float("inf"))
        began = time.perf_counter()
        tokens = await self._threads.run(partial(self._tokenize, pairs, max_text_tokens))
        seconds = time.perf_counter() - began
        truncated = [bool(cut) for cut in tokens.truncated]
        if not truncate and any(truncated):
            i = truncated.index(True)
            raise InputError(
                f"pair {i} has {int(tokens.available[i]):,} tokens, the limit is {self.max_tokens:,}. "
                "Shorten the text, or let it be cut"
            )
        rows = [tokens[i] for i in range(len(tokens))]
        starts = tokens.seconds.tolist() if tokens.seconds is not None else [0] * len(rows)
        done = await self.engine.run(rows, starts, lane=lane, deadline_s=deadline_s)
        unit: list[float] = expit(np.array(done.results)).tolist()
        return Judgement(
            done.results,
            unit,
            truncated,
            int(tokens.offsets[-1]),
            sum(len(query) + len(text) for query, text in pairs),
            seconds,
            done.queue_s,
            done.run_s,
        )

    def _tokenize(self, pairs: Sequence[Pair], max_text_tokens: int | None) -> Tokens:
        queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
        limit = self.max_tokens
        if max_text_tokens is not None:
            limit = min(limit, int(self.tokenizer.count(queries).max()) + 2 + max_text_tokens)
        return self.tokenizer.encode_pairs(queries, texts, max_tokens=limit)
