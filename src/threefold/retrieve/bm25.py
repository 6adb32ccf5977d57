"""BM25 by bm25s, over token ids: the lexical baseline that every learned score has to beat.

Which tokens matters more than the formula. With the model's own pieces (the default in experiments) BM25 works in
every language that the vocabulary covers, as in the BGE-M3 paper. The other published way is a language's own
analyser (Lucene's, with stemming and stop words): `word_terms`. Splitting at spaces alone finds
nothing in Chinese, Japanese or Thai (mteb's BM25 baseline: 0.1 nDCG@10 on Chinese MIRACL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import bm25s
import numpy as np
from scipy.sparse import csc_array, csr_array

from threefold.errors import InputError
from threefold.text.tokenizer import Tokenizer
from threefold.text.words import analyse
from threefold.types import Floats, Ints, offsets_of

#: Parameters of the formula (Lucene's variant): the defaults of bm25s.
K1: Final = 1.5
B: Final = 0.75

#: Longer than any text: BM25 reads all of it.
_NO_LIMIT = 1 << 40


class BM25:
    """An index over documents given as token ids. Immutable; scores are exact."""

    def __init__(self, docs: Sequence[Ints], *, k1: float = K1, b: float = B) -> None:
        if not docs:
            raise InputError("BM25 needs at least one document")
        self._terms, flat = np.unique(np.concatenate(docs), return_inverse=True)  # the ids that occur, ascending
        self._weights: csr_array = csr_array((len(self._terms), len(docs)), dtype=np.float32)
        if len(flat):
            rows = [part.tolist() for part in np.split(flat, offsets_of([len(doc) for doc in docs])[1:-1])]
            self._weights = _index(rows, len(self._terms), k1, b)

    def __len__(self) -> int:
        return int(self._weights.shape[1])

    def scores(self, queries: Sequence[Ints]) -> Floats:
        """(m, n) float32: every query against every document. A term counts as often as the query repeats it.

        0 means that no term is shared; the formula gives every shared term a positive weight.
        """
        flat = np.concatenate([np.zeros(0, np.int64), *queries])
        rows = np.repeat(np.arange(len(queries)), [len(query) for query in queries])
        places = np.searchsorted(self._terms, flat)
        known = places < len(self._terms)
        known[known] = self._terms[places[known]] == flat[known]
        counts = csr_array(
            (np.ones(int(known.sum()), np.float32), (rows[known], places[known])),
            shape=(len(queries), len(self._terms)),
        )
        found: Floats = (counts @ self._weights).toarray()
        return found.astype(np.float32, copy=False)


def model_terms(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ints]:
    """The token ids of every text, whole, without the ids that carry no term."""
    tokens = tokenizer.encode(texts, max_tokens=_NO_LIMIT)
    skip = np.array(tokenizer.special_ids)
    return [row[~np.isin(row, skip)] for row in (tokens[i] for i in range(len(tokens)))]


def _index(rows: list[list[int]], terms: int, k1: float, b: float) -> csr_array:
    """(terms, documents) the weight of every term in every document, computed by bm25s."""
    engine = bm25s.BM25(method="lucene", k1=k1, b=b)
    engine.index((rows, {str(i): i for i in range(terms)}), create_empty_token=False, show_progress=False)
    made = engine.scores
    by_document = csc_array((made["data"], made["indices"], made["indptr"]), shape=(len(rows), terms))
    return by_document.T.tocsr()


def word_terms(docs: Sequence[str], queries: Sequence[str], language: str) -> tuple[list[Ints], list[Ints]]:
    """Term ids of documents and queries by the words of a language (`threefold.text.words`)."""
    numbers: dict[str, int] = {}

    def ids(texts: Sequence[str]) -> list[Ints]:
        rows = analyse(texts, language)
        return [np.array([numbers.setdefault(term, len(numbers)) for term in row], dtype=np.int64) for row in rows]

    return ids(docs), ids(queries)
