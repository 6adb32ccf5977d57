"""Results of batches, written to their places in the caller's order as they come.

Token vectors are nearly all of what an encoder makes, 4 KB for every token of bge-m3: each is copied once, and no batch
is kept, so that the whole is in memory once.
"""

from __future__ import annotations

import numpy as np

from threefold.text.packing import restore_order
from threefold.text.tokenizer import Tokens
from threefold.types import Encoded, Floats, Ints, Ragged, Sparse, offsets_of


class Gathering:
    """What is found about these texts."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._offsets = offsets_of(tokens.lengths - 1)  # of token vectors: all tokens but the first of each text
        self._dense: Floats | None = None
        self._multi: Floats | None = None
        self._sparse: list[tuple[Ints, Sparse]] = []

    def add(
        self,
        texts: Ints,
        *,
        dense: Floats | None = None,
        sparse: Sparse | None = None,
        multi: tuple[Floats, Ints] | None = None,
    ) -> None:
        """What was found about the texts of one batch.

        multi  rows (T, k) of token vectors, and where in them those of each text begin
        """
        if dense is not None:
            if self._dense is None:
                self._dense = np.empty((len(self._tokens), dense.shape[1]), dense.dtype)
            self._dense[texts] = dense
        if sparse is not None:
            self._sparse.append((texts, sparse))
        if multi is not None:
            self._place(texts, *multi)

    def result(self) -> Encoded:
        """All texts, once each of them was added."""
        multi = None if self._multi is None else Ragged(self._multi, self._offsets)
        read = self._tokens.lengths.astype(np.int32)
        return Encoded(self._dense, self._all_sparse(), multi, read, self._tokens.truncated.copy())

    def _place(self, texts: Ints, rows: Floats, starts: Ints) -> None:
        if self._multi is None:
            self._multi = np.empty((self._offsets[-1], rows.shape[1]), rows.dtype)
        ends = self._offsets[texts + 1].tolist()
        for first, start, end in zip(starts.tolist(), self._offsets[texts].tolist(), ends, strict=True):
            self._multi[start:end] = rows[first : first + end - start]  # a block of memory: faster than by row numbers

    def _all_sparse(self) -> Sparse | None:
        if not self._sparse:
            return None
        texts, parts = zip(*self._sparse, strict=True)
        return Sparse.concat(parts).take(restore_order(list(texts)))
