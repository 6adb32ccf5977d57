"""The encoder behind its queue: texts -> tokens (in threads) -> the engine -> one row per text.

Knows nothing of HTTP. Collections reach the same queue through `QueuedEncoder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from threefold.errors import InputError
from threefold.serve.queue import BatchReport, Engine, Limits, TextFailedError
from threefold.serve.schedule import Lane
from threefold.serve.threads import Threads
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Tokens, Truncate
from threefold.types import Ints, Output, Row, offsets_of

#: Characters that are tokenized in one go, so that a short text does not wait for the whole of a large request.
CHUNK_CHARACTERS = 10_000
#: Characters per token beyond which a text is not even tokenized (as in TEI): it is longer than the model reads.
CLIP_CHARACTERS = 250
#: Threads that tokenize and score.
TOKENIZING = 4
#: Texts and tokens of the batch that warms up and measures.
SAMPLE_TEXTS, SAMPLE_TOKENS = 8, 64


class TooLongError(InputError):
    """A text is longer than is read, and may not be cut. How it may be, each contract says in its own words.

    index  its place among the texts that were read
    """

    def __init__(self, what: str, index: int, has: str, limit: int) -> None:
        super().__init__(f"{what} has {has} tokens, the limit is {limit:,}")
        self.index = index
        self._size = (has, limit)

    def of(self, what: str) -> TooLongError:
        """The same of a text that the client knows by another name."""
        return TooLongError(what, self.index, *self._size)


@contextmanager
def named(name_of: Callable[[int], str], first: int = 0) -> Iterator[None]:
    """A text that is too long, or on which the model fails, has its place in the request, not among what was read.

    first  the place of the first one that is read
    """
    try:
        yield
    except (TooLongError, TextFailedError) as error:
        raise error.of(name_of(first + error.index)) from None


class RowEncoder(Protocol):
    """What the server needs of an encoder."""

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """What is put before a text, by name: `query`, `document`."""
        ...

    @property
    def pooling(self) -> str:
        """How the dense vector is read from the states: cls, mean or last."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        ...

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        """One row per text; each head only for the texts that ask for it. `between` is called before every layer."""
        ...


class EncoderRunner:
    """An encoder as the worker thread sees it."""

    def __init__(self, encoder: RowEncoder) -> None:
        self._encoder = encoder

    def run(
        self, rows: Sequence[Ints], wanted: Sequence[Sequence[Output]], between: Callable[[], None] | None = None
    ) -> list[Row]:
        """One row of outputs per row of ids."""
        return self._encoder.encode_tokens(packed(rows), wanted, between=between)

    def samples(self) -> tuple[Sequence[Ints], Sequence[Any]]:
        """Every head on a few texts of middle length."""
        length = min(SAMPLE_TOKENS, self._encoder.card.max_tokens)
        row = np.full(length, self._encoder.tokenizer.unk_id, np.int32)
        return [row] * SAMPLE_TEXTS, [self._encoder.card.representations] * SAMPLE_TEXTS


def packed(rows: Sequence[Ints]) -> Tokens:
    """Rows of ids as one `Tokens`; what was cut before is not known here."""
    lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
    return Tokens(np.concatenate(rows).astype(np.int32, copy=False), offsets_of(lengths), lengths)


class Read(NamedTuple):
    """Texts as tokens, ready for the queue."""

    rows: list[Ints]
    truncated: list[bool]
    characters: int
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.rows)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said about the texts of a request, and where the time went."""

    rows: list[Row]
    read: Read
    queue_s: float
    run_s: float


class Embedder:
    """One encoder, loaded in its worker thread, and again when that dies.

    load        builds the encoder
    name        what it is called; empty: as its card says
    max_tokens  longest text; None: the longest that the model reads
    """

    card: ModelCard
    tokenizer: Tokenizer
    prompts: Mapping[str, str]
    pooling: str
    weight_bytes: int = 0

    def __init__(
        self,
        load: Callable[[], RowEncoder],
        limits: Limits | None = None,
        *,
        name: str = "",
        max_tokens: int | None = None,
        observer: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._load = load
        self._name = name
        self._wanted_max = max_tokens
        self.threads = Threads("tokenizer", TOKENIZING)  # for work that waits for nothing
        self.engine: Engine[Row] = Engine(self._make, limits, observer=observer)

    def _make(self) -> EncoderRunner:
        encoder = self._load()
        self.card, self.tokenizer, self.prompts = encoder.card, encoder.tokenizer, dict(encoder.prompts)
        self.pooling, self.weight_bytes = encoder.pooling, encoder.weight_bytes
        return EncoderRunner(encoder)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._name or self.card.name

    def close(self) -> None:
        """Tokenize nothing more."""
        self.threads.close()

    @property
    def max_tokens(self) -> int:
        """Longest text, specials included."""
        return min(self._wanted_max or self.card.max_tokens, self.card.max_tokens)

    # ---- texts -> tokens ---------------------------------------------------------------------------------

    async def read(
        self, texts: Sequence[str], *, truncate: Truncate = "none", prompt: str = "", max_tokens: int | None = None
    ) -> Read:
        """Tokenize in threads, in pieces; refused before that where the queue takes nothing at all."""
        self.engine.admit(0, "interactive", float("inf"))
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        began = time.perf_counter()
        rows: list[Ints] = []
        truncated: list[bool] = []
        for part in _parts(texts):
            work = partial(self._tokenize, part, limit, truncate, prompt)
            tokens, cut = await self.threads.run(work)
            _refuse_cut(tokens, cut, truncate, limit, len(rows))
            rows += [tokens[i] for i in range(len(tokens))]
            truncated += cut
        return Read(rows, truncated, sum(map(len, texts)), time.perf_counter() - began)

    def _tokenize(self, texts: Sequence[str], limit: int, truncate: Truncate, prompt: str) -> tuple[Tokens, list[bool]]:
        most = limit * CLIP_CHARACTERS
        keep: Truncate = "start" if truncate == "start" else "end"
        clipped = [text if len(text) <= most else text[-most:] if keep == "start" else text[:most] for text in texts]
        tokens = self.tokenizer.encode([prompt + text for text in clipped], max_tokens=limit, truncate=keep)
        cut = [bool(short) or len(text) > most for short, text in zip(tokens.truncated, texts, strict=True)]
        return tokens, cut

    def take(self, rows: Sequence[Sequence[int]], first: int = 0) -> Read:
        """Token ids that the caller made with this model's own tokenizer, special tokens included.

        first  the place of the first row in the request, for messages
        """
        for i, ids in enumerate(rows, first):
            if not 1 <= len(ids) <= self.max_tokens:
                raise InputError(f"input {i} has {len(ids):,} token ids; from 1 to {self.max_tokens:,} are taken")
            if min(ids) < 0 or max(ids) >= self.tokenizer.vocab:
                raise InputError(f"input {i} has ids outside the vocabulary of {self.tokenizer.vocab:,} tokens")
        return Read([np.array(ids, np.int32) for ids in rows], [False] * len(rows), 0, 0.0)

    # ---- tokens -> rows ----------------------------------------------------------------------------------

    async def embed(
        self,
        read: Read,
        outputs: Sequence[Output],
        *,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Answer:
        """The same outputs of every text."""
        done = await self.engine.run(read.rows, [tuple(outputs)] * len(read.rows), lane=lane, deadline_s=deadline_s)
        return Answer(done.results, read, done.queue_s, done.run_s)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = used = 0
    for i, text in enumerate(texts):
        if i > start and used + len(text) > CHUNK_CHARACTERS:
            yield texts[start:i]
            start, used = i, 0
        used += len(text)
    if start < len(texts):
        yield texts[start:]


def _refuse_cut(tokens: Tokens, cut: Sequence[bool], truncate: Truncate, limit: int, before: int) -> None:
    if truncate != "none" or not any(cut):
        return
    i = list(cut).index(True)
    count = int(tokens.available[i])
    has = f"{count:,}" if count > limit else f"more than {limit:,}"
    raise TooLongError(f"input {before + i}", before + i, has, limit)
