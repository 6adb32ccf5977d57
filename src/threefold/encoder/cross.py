"""Pairs of query and text in, one score each out: the cross-encoder, which reads both together.

    tokens of pairs -> packed batches -> state of the first token -> logit -> the caller's order

The same network as `encoder.py`. A cross-encoder may be shared between threads; nothing of it changes after it was made
but its budget, which is lowered where a GPU has no memory for it (`fitting.py`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from threefold.encoder.attention import Layout
from threefold.encoder.cross_model import CrossModel, load_cross
from threefold.encoder.finite import Finite
from threefold.encoder.fitting import Portion, Room, fitted, portions
from threefold.encoder.forks import guard_children
from threefold.encoder.network import Batch
from threefold.encoder.precision import (
    Precision,
    cast,
    check_precision,
    choose_budget,
    choose_device,
    choose_precision,
)
from threefold.encoder.sources import find
from threefold.encoder.transfer import OnTheWay
from threefold.errors import CheckpointError, InputError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Bools, Floats, Ints

#: The cross-encoder of the BGE-M3 family, 568 million parameters.
DEFAULT_RERANKER = "BAAI/bge-reranker-v2-m3"

#: Called after each batch with (pairs, tokens) that it had.
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a cross-encoder says about n pairs.

    scores     (n,) float32 logits, or probabilities when normalised
    tokens     (n,) int32 tokens that were read of each pair, specials included
    truncated  (n,) whether the pair had more
    """

    scores: Floats
    tokens: Ints
    truncated: Bools


class CrossEncoder:
    """A model that scores pairs of query and text.

    model      a folder, or a name on the hub
    device     "auto", "cpu", "cuda", "cuda:1", "mps"
    precision  "auto" (what this processor does fast), "float32", "bfloat16", "float16", "int8"
    revision   commit on the hub; None takes the one that threefold was written against, or the newest
    budget     tokens in one forward pass; None chooses by device. It is lowered, with a warning, where they do not fit

    >>> cross = CrossEncoder()
    >>> cross.score("what is panda?", ["hi", "The giant panda is a bear species endemic to China."])
    array([-8.19,  5.26], dtype=float32)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_RERANKER,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        revision: str | None = None,
        budget: int | None = None,
    ) -> None:
        guard_children()
        self.device = choose_device(device)
        check_precision(precision, self.device)
        self._source = find(model, revision)
        loaded = load_cross(self._source.folder)
        self.hash = loaded.hash
        self.tokenizer = Tokenizer.load(self._source.folder)
        self._config = loaded.model.config
        self.precision = choose_precision(precision, self.device, self._config.network)
        self._room = Room(self.name, self.device, choose_budget(self._config.network, self.device, budget))
        if self.tokenizer.vocab > self._config.network.vocab:
            raise CheckpointError(
                f"{self.tokenizer.name} has {self.tokenizer.vocab:,} tokens, "
                f"the word table of the network {self._config.network.vocab:,} rows: they belong to different models"
            )
        self._model = _ready(loaded.model, self.precision, self.device)
        folder, place = self._source.folder, self.device  # not `self` below, see `Encoder`
        self._finite = Finite(
            self.name, self._model, self.precision, lambda: _ready(load_cross(folder).model, "float32", place)
        )

    @property
    def budget(self) -> int:
        """Tokens in one forward pass."""
        return self._room.budget

    @property
    def name(self) -> str:
        """The model as it was named."""
        return self._source.name

    @property
    def max_tokens(self) -> int:
        """Longest pair that is read, specials included."""
        return self._config.max_tokens

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, as they are held now."""
        return self._finite.weight_bytes

    def __repr__(self) -> str:
        return f"CrossEncoder({self.name!r}, device={str(self.device)!r}, precision={self.precision!r})"

    # ---- scoring -------------------------------------------------------------------------------------

    def score(
        self,
        query: str | Sequence[tuple[str, str]],
        texts: Sequence[str] | None = None,
        *,
        normalize: bool = False,
        max_tokens: int | None = None,
        max_query_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """(n,) float32: one score per text for one query, or one per pair (query, text), in the caller's order.

        normalize         the sigmoid of the logit: a number from 0 to 1
        max_tokens        longest pair, specials included; None: the longest that the model reads
        max_query_tokens  the query is cut to so many (None: 3/4 of `max_tokens`), then only the text is cut
        progress          called after each batch with the pairs and tokens that it had

        Pairs that were cut are counted in a warning of the log; `judge` says which.
        """
        judged = self.judge(
            query,
            texts,
            normalize=normalize,
            max_tokens=max_tokens,
            max_query_tokens=max_query_tokens,
            progress=progress,
        )
        if cut := int(judged.truncated.sum()):
            log.warning("%s: %d of %d pairs were longer than is read and were cut", self.name, cut, len(judged.scores))
        return judged.scores

    def judge(
        self,
        query: str | Sequence[tuple[str, str]],
        texts: Sequence[str] | None = None,
        *,
        normalize: bool = False,
        max_tokens: int | None = None,
        max_query_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Judged:
        """`score`, and what was read of each pair."""
        limit = self.max_tokens if max_tokens is None else max_tokens
        if limit > self._config.network.max_tokens:
            most = self._config.network.max_tokens
            raise InputError(f"{self.name} reads at most {most} tokens; got max_tokens={limit}")
        queries, said = _columns(query, texts)
        tokens = self.tokenizer.encode_pairs(queries, said, max_tokens=limit, max_query_tokens=max_query_tokens)
        logits = self.score_tokens(tokens, progress=progress)
        scores: Floats = expit(logits) if normalize else logits
        return Judged(scores, tokens.lengths.astype(np.int32), tokens.truncated)

    def score_tokens(
        self, tokens: Tokens, *, progress: Progress | None = None, between: Callable[[], None] | None = None
    ) -> Floats:
        """(n,) float32 logits of pairs that `Tokenizer.encode_pairs` made, in their order.

        between  called before every layer, in this thread; it may score something more urgent
        """
        logits = np.zeros(len(tokens), np.float32)
        done = fitted(
            portions(tokens, self.budget),
            lambda batch: self._run(self._model, batch, between),
            self._finish,
            self._room,
        )
        for batch, found in done:
            logits[batch.rows] = found
            if progress is not None:
                progress(len(batch.rows), batch.count)
        return logits

    # ---- inside --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self, model: CrossModel, some: Portion, between: Callable[[], None] | None = None) -> OnTheWay:
        part = some.tokens.take(some.rows)
        layout, seconds = Layout.of(part.lengths), part.seconds if self._config.token_types else None
        batch = Batch.of(part.ids, layout, self._config.network.first_position, self.device, seconds)
        hidden = model.network(batch, between)
        first = hidden[layout.borders(self.device)[:-1]]  # (n, d)
        return OnTheWay({"logits": model.head(first.float())})

    def _finish(self, some: Portion, found: OnTheWay) -> Floats:
        checked = self._finite.checked(found, lambda model: self._run(model, some))
        return checked["logits"]


def _ready(model: CrossModel, precision: str, device: torch.device) -> CrossModel:
    model.network = cast(model.network, precision, device)
    model.head = cast(model.head, "float32", device)
    return model.eval()


def _columns(query: str | Sequence[tuple[str, str]], texts: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Queries and texts of the pairs."""
    if isinstance(query, str):
        if texts is None or isinstance(texts, str):
            raise InputError("a query needs a list of texts to score; got " + ("none" if texts is None else "one text"))
        texts = list(texts)
        return [query] * len(texts), texts
    if texts is not None:
        raise InputError("give one query and texts, or pairs (query, text) alone; got a list of queries and texts")
    pairs = list(query)  # it may be read only once: zip(queries, texts)
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"pair {i} must be (query, text); got {pair!r:.80}")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
