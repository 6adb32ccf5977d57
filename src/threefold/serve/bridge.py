"""The queue as the encoder and the reranker of collections: their threads wait for the event loop's results.

So searching and adding share batches, lanes and limits with every other request: queries are interactive, documents
bulk. Adding waits while the queue is full; searching is refused, like any other query.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from threefold.errors import OverloadedError
from threefold.serve.cross import CrossJudge
from threefold.serve.ledger import Work
from threefold.serve.models import Embedder
from threefold.serve.schedule import Lane
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import Encoded, Floats, Ragged, Representation, Row, Sparse

#: A batch of documents may wait as long as it takes; the caller ends the wait by ending the request.
PATIENT_S = 7 * 24 * 3600.0
#: Seconds between two attempts at a full queue.
AGAIN_S = 5.0


class Use(NamedTuple):
    """Tokens that a model has read."""

    model: str
    kind: Work
    tokens: int


_uses: ContextVar[list[Use] | None] = ContextVar("threefold_uses", default=None)


@contextmanager
def metered() -> Iterator[list[Use]]:
    """What collections have the models read inside the block, also in threads that were started with its context."""
    uses: list[Use] = []
    token = _uses.set(uses)
    try:
        yield uses
    finally:
        _uses.reset(token)


_ends_at: ContextVar[float | None] = ContextVar("threefold_ends_at", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Searches inside the block, also in threads that were started with its context, end after so long."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


def _left_s() -> float | None:
    """Seconds that the search still has; None: what the limits say."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(ends_at - time.monotonic(), 0.0)


def _note(model: str, kind: Work, tokens: int) -> None:
    uses = _uses.get()
    if uses is not None:
        uses.append(Use(model, kind, tokens))


class QueuedEncoder:
    """A `TextEncoder` for threads other than that of the event loop."""

    def __init__(self, embedder: Embedder, loop: asyncio.AbstractEventLoop) -> None:
        self._embedder = embedder
        self._loop = loop

    @property
    def card(self) -> ModelCard:
        """What the model is, with the longest text that this server reads."""
        return replace(self._embedder.card, max_tokens=self._embedder.max_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._embedder.tokenizer

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """As they are; in the lane of their size."""
        return self._wait(texts, outputs, max_tokens, truncate, "", None)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Before all bulk work."""
        return self._wait(texts, outputs, max_tokens, truncate, "query", "interactive")

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """After all queries; waits for room in the queue."""
        while True:
            try:
                return self._wait(texts, outputs, max_tokens, truncate, "document", "bulk")
            except OverloadedError:
                threading.Event().wait(AGAIN_S)

    def _wait(
        self,
        texts: Sequence[str],
        outputs: Sequence[Representation] | None,
        max_tokens: int | None,
        truncate: Truncate,
        prompt: str,
        lane: Lane | None,
    ) -> Encoded:
        wanted = self._embedder.card.representations if outputs is None else tuple(outputs)
        patience = PATIENT_S if lane == "bulk" else _left_s()
        work = self._encode(texts, wanted, max_tokens, truncate, prompt, lane, patience)
        found = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        _note(self._embedder.name, "embed", int(found.tokens.sum()))
        return found

    async def _encode(
        self,
        texts: Sequence[str],
        wanted: tuple[Representation, ...],
        max_tokens: int | None,
        truncate: Truncate,
        prompt: str,
        lane: Lane | None,
        patience: float | None,
    ) -> Encoded:
        said = self._embedder.prompts.get(prompt, "")
        read = await self._embedder.read(texts, truncate=truncate, prompt=said, max_tokens=max_tokens)
        answer = await self._embedder.embed(read, wanted, lane=lane, deadline_s=patience)
        return encoded(answer.rows, wanted, [len(ids) for ids in read.rows], read.truncated, self._embedder.card)


def encoded(
    rows: Sequence[Row],
    wanted: Sequence[Representation],
    tokens: Sequence[int],
    truncated: Sequence[bool],
    card: ModelCard,
) -> Encoded:
    """Rows as one `Encoded`."""
    dense = [row.dense for row in rows if row.dense is not None]
    terms = [dict(zip(row.sparse[0].tolist(), row.sparse[1].tolist(), strict=True)) for row in rows if row.sparse]
    multi = [row.multi for row in rows if row.multi is not None]
    return Encoded(
        np.stack(dense) if dense else np.zeros((0, card.dense_dim), np.float32) if "dense" in wanted else None,
        Sparse.of(terms, card.vocab) if "sparse" in wanted else None,
        Ragged.of(multi, card.multi_dim) if "multi" in wanted else None,
        np.array(tokens, np.int32),
        np.array(truncated, np.bool_),
    )


class QueuedReranker:
    """The cross-encoder's queue as the reranker of a collection."""

    def __init__(self, cross: CrossJudge, loop: asyncio.AbstractEventLoop) -> None:
        self._cross = cross
        self._loop = loop

    def score(self, query: str, texts: Sequence[str]) -> Floats:
        """(n,) logits."""
        pairs = [(query, text) for text in texts]
        work = self._cross.judge(pairs, lane="interactive", deadline_s=_left_s())
        judgement = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        _note(self._cross.name, "rerank", judgement.tokens)
        return np.array(judgement.raw, np.float32)
