from __future__ import annotations

import math

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InputError
from threefold.retrieve.bm25 import BM25, K1, B, model_terms
from threefold.text.tokenizer import Tokenizer
from threefold.types import Ints

DOCS = st.lists(st.lists(st.integers(4, 20), max_size=12), min_size=1, max_size=6)


def ids(*rows: list[int]) -> list[Ints]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_value_worked_by_hand() -> None:
    index = BM25(ids([7, 7, 8, 9], [8, 10], [10, 11]))
    # term 7: in 1 of 3 documents, idf = ln(1 + (3 - 1 + 0.5) / (1 + 0.5)); twice in a document of 4 terms, mean 8 / 3
    idf = math.log(1 + 2.5 / 1.5)
    expected = idf * 2 / (2 + K1 * (1 - B + B * 4 / (8 / 3)))
    scores = index.scores(ids([7], [7, 7], [99], []))
    assert scores == pytest.approx(np.array([[expected, 0, 0], [2 * expected, 0, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores.dtype == np.float32


@given(DOCS, st.lists(st.lists(st.integers(0, 25), max_size=8), min_size=1, max_size=4))
def test_equals_bm25s_over_words(docs: list[list[int]], queries: list[list[int]]) -> None:
    """The library fed with words instead of ids, one query at a time."""
    if not any(docs):
        return
    engine = bm25s.BM25(method="lucene", k1=K1, b=B)
    engine.index([[f"w{term}" for term in doc] for doc in docs], show_progress=False)
    scores = BM25(ids(*docs)).scores(ids(*queries))
    for row, query in zip(scores, queries, strict=True):
        known = [f"w{term}" for term in query if any(term in doc for doc in docs)]
        expected = engine.get_scores(known) if known else np.zeros(len(docs))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_documents_without_terms() -> None:
    assert BM25(ids([], [5])).scores(ids([5]))[0, 0] == 0
    empty = BM25(ids([], []))
    assert len(empty) == 2
    assert empty.scores(ids([5], [])).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match="at least one document"):
        BM25([])


def test_terms_of_the_model(tokenizer: Tokenizer) -> None:
    long = "the quick brown fox " * 600
    short, whole, nothing = model_terms(tokenizer, ["the fox", long, ""])
    assert set(short.tolist()) <= set(whole.tolist())
    assert not set(whole.tolist()) & set(tokenizer.special_ids)
    assert len(whole) > 2_000  # not cut to what the model reads
    assert len(nothing) == 0


def test_languages_without_spaces_are_found(tokenizer: Tokenizer) -> None:
    texts = ["今天天气很好", "我们去公园散步吧"]
    index = BM25(model_terms(tokenizer, texts))
    scores = index.scores(model_terms(tokenizer, ["公园"]))[0]
    assert scores[1] > scores[0]
