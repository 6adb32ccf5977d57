"""Pairs scored by a cross-encoder, which reads both texts together, behind its own queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import expit

from threefold.errors import InputError
from threefold.serve.judges import WHOLE, Check, Cutting, Judgement, Pair, any_size
from threefold.serve.models import (
    CHUNK_CHARACTERS,
    CLIP_CHARACTERS,
    SAMPLE_TEXTS,
    SAMPLE_TOKENS,
    TOKENIZING,
    TooLongError,
    named,
    packed,
)
from threefold.serve.queue import BatchReport, Engine, Limits
from threefold.serve.schedule import Lane
from threefold.serve.threads import Threads
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Floats, Ints


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
        check: Check = any_size,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Judgement:
        """One score per pair; see `Judge`."""
        self.engine.admit(0, "interactive", float("inf"))
        began = time.perf_counter()
        read = await self._read(pairs, cutting, check)
        seconds = time.perf_counter() - began
        with named(lambda i: f"pair {i}"):
            done = await self.engine.run(read.rows, read.seconds, lane=lane, deadline_s=deadline_s)
        unit: list[float] = expit(np.array(done.results)).tolist()
        return Judgement(
            done.results,
            unit,
            read.truncated,
            sum(map(len, read.rows)),
            sum(len(query) + len(text) for query, text in pairs),
            seconds,
            done.queue_s,
            done.run_s,
        )

    async def _read(self, pairs: Sequence[Pair], cutting: Cutting, check: Check) -> _Read:
        """Tokenize in threads, in pieces, so that others come in between and too many are refused early."""
        limit = min(cutting.max_tokens or self.max_tokens, self.max_tokens)
        found = _Read([], [], [])
        for part in _parts(pairs):
            work = partial(self._tokenize, pairs[part], limit, cutting.max_text_tokens)
            tokens, cut = await self._threads.run(work)
            if cutting.truncate != "end" and any(cut):
                self._refuse_cut(int(tokens.available[cut.index(True)]), part.start + cut.index(True), limit, cutting)
            check(int(tokens.offsets[-1]), ())
            found.rows.extend(tokens[i] for i in range(len(tokens)))
            found.seconds.extend([0] * len(tokens) if tokens.seconds is None else tokens.seconds.tolist())
            found.truncated.extend(cut)
        return found

    def _refuse_cut(self, count: int, i: int, limit: int, cutting: Cutting) -> None:
        has = f"{count:,}" if count > limit else f"more than {limit:,}"
        error = TooLongError(f"pair {i}", i, has, limit)
        if cutting.truncate == "none":
            raise error
        raise InputError(f"{error}; {self.name} reads the beginning of a long text, its end cannot be kept instead")

    def _tokenize(self, pairs: Sequence[Pair], limit: int, max_text_tokens: int | None) -> tuple[Tokens, list[bool]]:
        most = limit * CLIP_CHARACTERS
        queries, texts = [query[:most] for query, _ in pairs], [text[:most] for _, text in pairs]
        tokens = self.tokenizer.encode_pairs(queries, texts, max_tokens=limit, max_text_tokens=max_text_tokens)
        long = (len(query) > most or len(text) > most for query, text in pairs)
        return tokens, [bool(short) or clipped for short, clipped in zip(tokens.truncated, long, strict=True)]


class _Read(NamedTuple):
    """Pairs as tokens, where the second text of each begins, and whether it was cut."""

    rows: list[Ints]
    seconds: list[int]
    truncated: list[bool]


def _parts(pairs: Sequence[Pair]) -> Iterator[slice]:
    """Neighbours that are tokenized in one go. A query is cut into tokens once in each, so texts are at least half."""
    most = max(CHUNK_CHARACTERS, 2 * max((len(query) for query, _ in pairs), default=0))
    start = used = 0
    for i, (query, text) in enumerate(pairs):
        again = i > start and query == pairs[i - 1][0]
        if i > start and used + len(text) + (0 if again else len(query)) > most:
            yield slice(start, i)
            start, used, again = i, 0, False
        used += len(text) + (0 if again else len(query))
    if start < len(pairs):
        yield slice(start, len(pairs))
