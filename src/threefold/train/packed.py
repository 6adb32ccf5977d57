"""Texts of a batch, packed by length: token ids end to end, and which text each was. Knows token ids, not models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from threefold.encoder.attention import Layout
from threefold.text.tokenizer import Tokens
from threefold.types import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """n texts end to end.

    ids      (T,) token ids
    lengths  (n,) tokens of each text
    """

    ids: Ints
    lengths: Ints

    @classmethod
    def of(cls, texts: Sequence[Ints]) -> Packed:
        """Texts as id arrays."""
        ids = np.concatenate(texts) if texts else np.zeros(0, np.int32)
        return cls(ids, np.array([len(text) for text in texts], np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Packed]) -> Packed:
        """All texts of several."""
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def layout(self) -> Layout:
        return Layout.of(self.lengths)

    def split(self, budget: int) -> Iterator[Packed]:
        """Neighbouring texts of at most `budget` tokens together; a longer text is alone. 0: all at once."""
        ends = np.cumsum(self.lengths)
        start = 0
        while start < len(self):
            before = int(ends[start] - self.lengths[start])
            end = int(np.searchsorted(ends, before + budget, side="right")) if budget else len(self)
            end = max(end, start + 1)
            yield Packed(self.ids[before : int(ends[end - 1])], self.lengths[start:end])
            start = end


def texts_of(tokens: Tokens, rows: Ints) -> list[Ints]:
    """The token ids of these texts."""
    return [tokens[int(row)] for row in rows]
