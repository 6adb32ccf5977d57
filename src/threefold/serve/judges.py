"""Scores of pairs of texts, for rerank and score routes: by the encoder's own heads, or by a cross-encoder.

Both stand behind one protocol and behind their own queue. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import expit

from threefold.errors import InputError
from threefold.score.dense import dense_scores
from threefold.score.fuse import TRAINING, Weights, weighted_sum
from threefold.score.multi import maxsim
from threefold.score.sparse import sparse_scores
from threefold.serve.models import SAMPLE_TEXTS, SAMPLE_TOKENS, TOKENIZING, Embedder, Read, TooLongError, packed
from threefold.serve.queue import BatchReport, Engine, Limits, ends_within
from threefold.serve.schedule import Lane
from threefold.serve.threads import Threads
from threefold.text.tokenizer import Tokenizer, Tokens, Truncate
from threefold.types import Floats, Ints, Output, Ragged, Representation, Row, Sparse, offsets_of

Pair = tuple[str, str]
#: Texts that the heads read at a time, in tokens: 64 MB of token vectors of bge-m3.
BLOCK_TOKENS = 16_384
#: Told how many tokens are to be read, and for which outputs; raises where that is too much.
Check = Callable[[int, Sequence[Output]], None]


class Cutting(NamedTuple):
    """What is read of texts that are long.

    truncate         their beginning (end), their end (start), or nothing: they are an error (none)
    max_tokens       of a text, or of a pair that is read together, specials included; None: what the model reads
    max_text_tokens  of a text that is not a query, without specials
    """

    truncate: Truncate = "end"
    max_tokens: int | None = None
    max_text_tokens: int | None = None


#: As much as the model reads.
WHOLE = Cutting()


def _any_size(tokens: int, outputs: Sequence[Output]) -> None:
    """For callers inside the server, which ask for no more than they can hold."""


class Judgement(NamedTuple):
    """One score per pair.

    raw              as the model gives it: a logit, or the weighted sum of the heads' scores
    unit             from 0 to 1, in the same order
    truncated        whether the text was cut; of pairs that are read together, whether the pair was
    tokens           that were read for all pairs together
    query_truncated  whether a query that is read alone was cut
    """

    raw: list[float]
    unit: list[float]
    truncated: list[bool]
    tokens: int
    characters: int
    tokenize_s: float
    queue_s: float
    run_s: float
    query_truncated: bool = False


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
        cutting: Cutting = WHOLE,
        check: Check = _any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair. `check` is asked before anything waits for the model."""
        ...


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
        check: Check = _any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        texts = list(dict.fromkeys(text for _, text in pairs))
        with _named("query", queries, [query for query, _ in pairs]):
            asked = await self._read(queries, "query", cutting._replace(max_text_tokens=None))
        with _named("text", texts, [text for _, text in pairs]):
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
        names: tuple[list[str], list[str]],
        reads: tuple[Read, Read],
        lane: Lane | None,
        deadline_s: float | None,
    ) -> _Scored:
        """The queries are read with the first texts, and scored with each block of texts as it comes."""
        weights, vocab = self._used, self._embedder.card.vocab
        said, rows = names[0] + names[1], reads[0].rows + reads[1].rows
        blocks = list(_blocks([len(ids) for ids in rows], len(names[0])))
        if len(blocks) > 1:
            lane = lane or "bulk"
            self._embedder.engine.admit(reads[0].tokens + reads[1].tokens, lane, deadline_s or math.inf)
        queries: dict[str, Row] = {}
        scores: dict[Pair, float] = {}
        queue_s = run_s = 0.0
        for part in blocks:
            read = Read(rows[part], [], 0, 0.0)
            answer = await self._embedder.embed(read, weights.used, lane=lane, deadline_s=deadline_s)
            first = 0 if queries else len(names[0])
            queries = queries or dict(zip(names[0], answer.rows[:first], strict=True))
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


@contextmanager
def _named(side: str, distinct: Sequence[str], given: Sequence[str]) -> Iterator[None]:
    """A text that is too long is named by its place in the request; equal ones are read once."""
    try:
        yield
    except TooLongError as error:
        single = side == "query" and len(distinct) == 1
        raise error.of("the query" if single else f"{side} {given.index(distinct[error.index])}") from None


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
        cutting: Cutting = WHOLE,
        check: Check = _any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        self.engine.admit(0, "interactive", float("inf"))
        began = time.perf_counter()
        limit = min(cutting.max_tokens or self.max_tokens, self.max_tokens)
        tokens = await self._threads.run(partial(self._tokenize, pairs, limit, cutting.max_text_tokens))
        seconds = time.perf_counter() - began
        truncated = [bool(cut) for cut in tokens.truncated]
        if cutting.truncate != "end" and any(truncated):
            self._refuse_cut(tokens, truncated.index(True), limit, cutting.truncate)
        check(int(tokens.offsets[-1]), ())
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

    def _refuse_cut(self, tokens: Tokens, i: int, limit: int, truncate: Truncate) -> None:
        error = TooLongError(f"pair {i}", i, f"{int(tokens.available[i]):,}", limit)
        if truncate == "none":
            raise error
        raise InputError(f"{error}; {self.name} reads the beginning of a long text, its end cannot be kept instead")

    def _tokenize(self, pairs: Sequence[Pair], limit: int, max_text_tokens: int | None) -> Tokens:
        queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
        return self.tokenizer.encode_pairs(queries, texts, max_tokens=limit, max_text_tokens=max_text_tokens)
