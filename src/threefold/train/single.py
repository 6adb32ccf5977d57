"""Pairs from single texts, for contrastive training without questions: spans of one text belong together.

Knows token ids. A text is `first, inner tokens, last`; every span gets the same first and last token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable
from threefold.types import Ints, offsets_of

#: Texts with fewer inner tokens make no pair.
SHORTEST: Final = 16
#: Part of the inner tokens that a crop takes, from and to: Izacard et al. 2021 (arXiv 2112.09118), section 3.1, take
#: 5 to 50 %; the low end is higher here, so that a crop of a short text says something.
CROP: Final = (0.1, 0.5)
#: How often an inverse cloze question stays in its passage: Lee et al. 2019 (arXiv 1906.00300), section 4.
STAYS: Final = 0.1

#: (inner tokens, random numbers) -> query and passage.
_Cut = Callable[[Ints, np.random.Generator], tuple[Ints, Ints]]


def crop_pairs(texts: Tokens, seed: int) -> PairTable:
    """Two independent crops of each text, which may overlap."""
    return _pairs(texts, seed, lambda inner, rng: (_span(inner, rng), _span(inner, rng)), symmetric=True)


def cloze_pairs(texts: Tokens, seed: int) -> PairTable:
    """Inverse cloze task: a span as the question, the rest of the text as the passage."""
    return _pairs(texts, seed, _cloze, symmetric=False)


def _pairs(texts: Tokens, seed: int, cut: _Cut, *, symmetric: bool) -> PairTable:
    queries: list[Ints] = []
    passages: list[Ints] = []
    for i in np.flatnonzero(texts.lengths - 2 >= SHORTEST):
        text = texts[int(i)]
        query, passage = cut(text[1:-1], np.random.default_rng((seed, int(i))))
        queries.append(np.concatenate([text[:1], query, text[-1:]]))
        passages.append(np.concatenate([text[:1], passage, text[-1:]]))
    n = len(queries)
    same = np.zeros(n, np.int64)
    return PairTable(
        _tokens(queries), _tokens(passages), same, np.arange(n), same.astype(np.int8), np.full(n, symmetric)
    )


def _span(inner: Ints, rng: np.random.Generator) -> Ints:
    start, end = _borders(len(inner), rng)
    return inner[start:end]


def _borders(total: int, rng: np.random.Generator) -> tuple[int, int]:
    length = max(2, round(total * rng.uniform(*CROP)))
    start = int(rng.integers(0, total - length + 1))
    return start, start + length


def _cloze(inner: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    start, end = _borders(len(inner), rng)
    rest = inner if rng.random() < STAYS else np.concatenate([inner[:start], inner[end:]])
    return inner[start:end], rest


def _tokens(rows: list[Ints]) -> Tokens:
    offsets = offsets_of([len(row) for row in rows])
    ids = np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32)
    return Tokens(ids, offsets, np.diff(offsets))
