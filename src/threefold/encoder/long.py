"""Texts that are longer than the model reads, or longer than one vector can hold.

windows  the text is read in pieces of about equal size, and the pieces become one text again: dense is their mean
         weighted by length, sparse the largest weight of each term (its definition, over all pieces), multi the
         token vectors of all pieces. Nothing is truncated.
MCLS     "multiple CLS": <s> is inserted every 256 tokens and the dense vector is the mean of the final states of
         all <s>. Chen et al. 2024 (arXiv 2402.03216, appendix): MLDR nDCG@10 of a dense model that was not trained
         on long texts rises from 41.2 to 45.0. One forward pass; at most as many tokens as the model reads.

Works with one device (`Encoder`) and with many (`EncoderPool`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from threefold.characters import listed
from threefold.encoder.attention import Layout
from threefold.encoder.front import Progress, prompted
from threefold.encoder.heads import gather_sparse
from threefold.encoder.model import ModelConfig
from threefold.errors import InputError
from threefold.text.packing import plan_batches, restore_order
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.text.tokenizer import Tokenizer, Tokens, Truncate
from threefold.types import Encoded, Floats, Ints, Output, Ragged, Representation, Row, Sparse, offsets_of

#: Tokens between two <s> in the paper.
MCLS_EVERY = 256


class TokenEncoder(TextEncoder, Protocol):
    """An encoder that reads tokens: `Encoder` or `EncoderPool`."""

    @property
    def budget(self) -> int: ...

    @property
    def config(self) -> ModelConfig: ...

    def encode_ids(
        self,
        tokens: Tokens,
        *,
        outputs: Sequence[Representation] | None = None,
        dim: int | None = None,
        progress: Progress | None = None,
    ) -> Encoded: ...

    def encode_tokens(self, tokens: Tokens, outputs: Sequence[Sequence[Output]]) -> list[Row]: ...


# ---- windows ---------------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    """The windows of n texts, end to end.

    tokens  m windows with their special tokens
    owners  (m,) text of each window
    own     (m,) tokens that are the window's own: neither prompt, context nor special
    skip    (m,) tokens between <s> and the first one whose vector is kept
    last    (m,) whether it is the last window of its text
    """

    tokens: Tokens
    owners: Ints
    own: Ints
    skip: Ints
    last: Ints


def encode_windows(
    encoder: TokenEncoder,
    texts: Sequence[str],
    *,
    window: int | None = None,
    overlap: int = 0,
    outputs: Sequence[Representation] | None = None,
    prompt: str = "",
    dim: int | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """The representations of every text, however long; one that fits into a window is encoded as always.

    window    longest window in tokens, specials included; None: the longest that the model reads
    overlap   tokens before a window that it also reads, as context; their own vectors stay those of the window before
    prompt    put before every window
    progress  called after each batch with the windows and tokens that it had

    `multi` has one row per token of the text and one for its end, as if it had been read at once; `tokens` counts
    the text once, and nothing is `truncated`.
    """
    config, texts = encoder.config, listed(texts)
    limit = config.max_tokens if window is None else window
    if limit > config.network.max_tokens:
        raise InputError(f"windows of {limit} tokens, but the model reads at most {config.network.max_tokens}")
    whole = encoder.tokenizer.encode(prompted(prompt, texts), max_tokens=sys.maxsize)
    windows = _cut(encoder.tokenizer, whole, texts, prompt, limit, overlap)
    found = encoder.encode_ids(windows.tokens, outputs=outputs, dim=dim, progress=progress)
    if len(windows.owners) == len(whole):
        return found
    n = len(whole)
    return Encoded(
        None if found.dense is None else _mean(found.dense, windows, n, config.heads.normalize),
        None if found.sparse is None else _largest(found.sparse, windows.owners, n),
        None if found.multi is None else _joined(found.multi, windows, n),
        whole.lengths.astype(np.int32),
        np.zeros(n, np.bool_),
    )


def _cut(tokenizer: Tokenizer, whole: Tokens, texts: Sequence[str], prompt: str, limit: int, overlap: int) -> _Windows:
    """Windows of about equal size for each text that does not fit."""
    head = [tokenizer.cls_id, *(tokenizer.encode([prompt], max_tokens=sys.maxsize)[0][1:-1] if prompt else [])]
    room = limit - len(head) - 1 - overlap  # own tokens of a window that has context
    if overlap < 0 or room < 1:
        raise InputError(
            f"windows of {limit} tokens leave no room for a text: {len(head) + 1} are special or prompt, "
            f"{overlap} overlap"
        )
    rows: list[Ints] = []
    facts: list[tuple[int, int, int, bool]] = []  # owner, own, skip, last
    for i, length in enumerate(whole.lengths.tolist()):
        if length <= limit:
            rows.append(whole[i])
            facts.append((i, length - 2, 0, True))
            continue
        inner = tokenizer.encode([texts[i]], max_tokens=sys.maxsize)[0][1:-1] if prompt else whole[i][1:-1]
        pieces = -(-len(inner) // room)
        for start, end in pairwise([k * len(inner) // pieces for k in range(pieces + 1)]):
            context = min(start, overlap)
            rows.append(np.array([*head, *inner[start - context : end], tokenizer.sep_id], np.int32))
            facts.append((i, end - start, context + len(head) - 1 if start else 0, end == len(inner)))
    lengths = np.array([len(row) for row in rows], np.int64)
    tokens = Tokens(np.concatenate([np.zeros(0, np.int32), *rows]), offsets_of(lengths), lengths)
    owners, own, skip, last = np.array(facts, np.int64).reshape(-1, 4).T
    return _Windows(tokens, owners, own, skip, last)


def _mean(dense: Floats, windows: _Windows, n: int, normalize: bool) -> Floats:
    """(n, d) the mean of the windows of each text, weighted by their own tokens."""
    weights = np.maximum(windows.own, 1).astype(np.float32)
    first = offsets_of(np.bincount(windows.owners, minlength=n))[:-1]
    totals = np.add.reduceat(weights, first)
    means: Floats = np.add.reduceat(dense * weights[:, None], first, axis=0) / totals[:, None]
    return _unit(means) if normalize else means


def _largest(sparse: Sparse, owners: Ints, n: int) -> Sparse:
    """The largest weight of each term over the windows of each text."""
    counts = np.bincount(owners, np.diff(sparse.offsets), n).astype(np.int64)
    return gather_sparse(sparse.values, sparse.indices, Layout.of(counts), sparse.vocab, ())


def _joined(multi: Ragged, windows: _Windows, n: int) -> Ragged:
    """The rows of the windows' own tokens, and the end of the last window of each text."""
    keep = np.ones(len(multi.rows), dtype=bool)
    for i in np.flatnonzero((windows.skip > 0) | (windows.last == 0)):
        start, end = multi.offsets[i], multi.offsets[i + 1]
        keep[start : start + windows.skip[i]] = False
        keep[end - 1] = bool(windows.last[i])
    kept = np.add.reduceat(keep.astype(np.int64), multi.offsets[:-1])
    return Ragged(multi.rows[keep], offsets_of(np.bincount(windows.owners, kept, n).astype(np.int64)))


# ---- MCLS ------------------------------------------------------------------------------------------------


def encode_mcls(
    encoder: TokenEncoder,
    texts: Sequence[str],
    *,
    every: int = MCLS_EVERY,
    max_tokens: int | None = None,
    truncate: Truncate = "end",
    prompt: str = "",
    dim: int | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Dense vectors (n, d) of texts with <s> before every `every` tokens: the mean of the final states of all <s>.

    For models whose dense vector is the state of <s> (`cls` pooling). A text of at most `every` tokens is encoded as
    always. Specials and the inserted <s> count in `max_tokens` and in `tokens`; the other arguments are those of
    `Encoder.encode`.
    """
    config, tokenizer = encoder.config, encoder.tokenizer
    if config.heads.pooling != "cls":
        raise InputError(f"MCLS averages the states of <s>, but this model pools by {config.heads.pooling!r}")
    if every < 1:
        raise InputError(f"every must be at least 1; got {every}")
    limit = config.max_tokens if max_tokens is None else max_tokens
    if not 3 <= limit <= config.network.max_tokens:
        raise InputError(f"max_tokens must be from 3 to {config.network.max_tokens}; got {limit}")
    plain = tokenizer.encode(prompted(prompt, texts), max_tokens=_room(limit, every) + 2, truncate=truncate)
    tokens = _marked(plain, tokenizer.cls_id, every)
    none = encoder.encode_ids(tokens.take(np.zeros(0, np.int64)), outputs=["dense"], dim=dim).dense  # checks `dim`
    assert none is not None
    width = none.shape[1]
    dense = [none]
    batches = plan_batches(tokens.lengths, encoder.budget)
    for rows in batches:
        part = tokens.take(rows)
        states = encoder.encode_tokens(part, [("hidden",)] * len(rows))
        dense.append(np.stack([_marks(row, part[i], tokenizer.cls_id)[:width] for i, row in enumerate(states)]))
        if progress is not None:
            progress(len(rows), int(part.lengths.sum()))
    vectors = np.concatenate(dense)[restore_order(batches)]
    return Encoded(
        _unit(vectors) if config.heads.normalize or dim is not None else vectors,
        None,
        None,
        tokens.lengths.astype(np.int32),
        plain.truncated,
    )


class MclsEncoder:
    """An encoder whose documents get their dense vectors by MCLS; queries, sparse and multi are as always.

    For evaluation and collections, which know encoders by `text.protocol.TextEncoder`. Where sparse or multi are asked
    for as well, a document is read twice: the inserted <s> would be in them.
    """

    def __init__(self, encoder: TokenEncoder, every: int = MCLS_EVERY) -> None:
        encode_mcls(encoder, [], every=every)  # refuses a model or a step that cannot work, before any text is read
        self.encoder, self.every = encoder, every

    @property
    def card(self) -> ModelCard:
        """The model's, with another name and fingerprint: vectors of the two do not mix."""
        card = self.encoder.card
        return replace(card, name=f"{card.name} (MCLS {self.every})", hash=f"{card.hash}-mcls{self.every}")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.encoder.tokenizer

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """As the model does it, without MCLS: what has no role is a query or a short text."""
        return self.encoder.encode(texts, outputs=outputs, max_tokens=max_tokens, truncate=truncate)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """As the model does it."""
        return self.encoder.encode_queries(texts, outputs=outputs, max_tokens=max_tokens, truncate=truncate)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Dense by MCLS. `tokens` counts what the dense vector was made of, the inserted <s> included."""
        texts = listed(texts)  # they are read twice
        wanted = self.card.representations if outputs is None else tuple(outputs)
        rest = [name for name in wanted if name != "dense"]
        if len(rest) == len(wanted):
            return self.encoder.encode_documents(texts, outputs=rest, max_tokens=max_tokens, truncate=truncate)
        prompt = self.encoder.config.document_prompt
        dense = encode_mcls(
            self.encoder, texts, every=self.every, prompt=prompt, max_tokens=max_tokens, truncate=truncate
        )
        if not rest:
            return dense
        plain = self.encoder.encode_documents(texts, outputs=rest, max_tokens=max_tokens, truncate=truncate)
        return replace(dense, sparse=plain.sparse, multi=plain.multi)


def _room(limit: int, every: int) -> int:
    """Most inner tokens t with t + ceil(t / every) + 1 <= limit: every run needs its <s>, the text one </s>."""
    runs, left = divmod(limit - 1, every + 1)
    return runs * every + max(left - 1, 0)


def _marked(plain: Tokens, cls_id: int, every: int) -> Tokens:
    """<s> 1 2 3 4 5 </s> with `every` 2 -> <s> 1 2 <s> 3 4 <s> 5 </s>."""
    rows = []
    for i in range(len(plain)):
        inner = plain[i][1:-1]
        rows.append(
            np.concatenate([plain[i][:1], np.insert(inner, np.arange(every, len(inner), every), cls_id), plain[i][-1:]])
        )
    lengths = np.array([len(row) for row in rows], np.int64)
    return Tokens(np.concatenate([np.zeros(0, np.int32), *rows]), offsets_of(lengths), lengths)


def _marks(row: Row, ids: Ints, cls_id: int) -> Floats:
    """(d,) the mean state of all <s>. Text never has the id: "<s>" in a text is cut into other tokens."""
    assert row.hidden is not None
    mean: Floats = row.hidden[ids == cls_id].mean(axis=0)
    return mean


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
