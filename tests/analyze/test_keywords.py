from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.analyze.keywords import ctfidf, keywords, words
from threefold.errors import ShapeError
from threefold.text.tokenizer import Piece, Tokenizer
from threefold.types import Sparse

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10), max_size=6)


@given(st.lists(WEIGHTS, min_size=1, max_size=5))
def test_the_formula_is_that_of_the_paper(groups: list[dict[str, float]]) -> None:
    """W = tf * log(1 + A / f), on a dense table of groups and words."""
    names = sorted({word for group in groups for word in group})
    table = np.array([[group.get(word, 0.0) for word in names] for group in groups])
    everywhere, mean = table.sum(axis=0), table.sum() / len(groups)
    want = table * np.log(1 + mean / everywhere) if names else table
    for i, scores in enumerate(ctfidf(groups)):
        assert set(scores) == set(groups[i])
        for word, score in scores.items():
            assert score == pytest.approx(want[i, names.index(word)])


def pieces(text: str, *parts: str) -> list[Piece]:
    """Pieces with ids 0, 1, ... where the parts stand in the text, one after the other."""
    found, place = [], 0
    for id, part in enumerate(parts):
        place = text.index(part, place)
        found.append(Piece(id, part, place, place + len(part)))
        place += len(part)
    return found


def test_pieces_that_touch_are_a_word() -> None:
    text = "unbeliev-able re-read"
    got = words(pieces(text, "un", "believ", "-", "able", " re", "-", "read"), text, {0: 0.2, 1: 0.5, 3: 0.3, 4: 0.1})
    assert got == {"unbeliev": 0.5, "able": 0.3, "re": 0.1}  # "read" has no weight


def test_signs_and_spaces_around_a_piece_are_not_of_it() -> None:
    text = "(fox), a 7"
    assert words(pieces(text, "(fox)", ",", " a", " 7"), text, dict.fromkeys(range(4), 1.0)) == {"fox": 1.0}


def test_scripts_without_spaces_keep_their_pieces() -> None:
    text = "今天天气好 good"
    got = words(pieces(text, "今天", "天气", "好", " go", "od"), text, {0: 0.1, 1: 0.9, 2: 0.2, 3: 0.3, 4: 0.1})
    assert got == {"今天": 0.1, "天气": 0.9, "好": 0.2, "good": 0.3}


def test_korean_words_are_whole() -> None:
    text = "한국어 문서"
    assert words(pieces(text, "한국", "어", " 문서"), text, {0: 0.5, 2: 0.4}) == {"한국어": 0.5, "문서": 0.4}


def test_case_and_form_do_not_part_a_word_and_the_usual_spelling_is_shown(tokenizer: Tokenizer) -> None:
    texts = [["Fox fox", "the fox"], ["the dog"]]
    rows = [
        Sparse.of([{piece.id: 0.5 for piece in tokenizer.pieces(text)} for text in group], tokenizer.vocab)
        for group in texts
    ]
    found = keywords(tokenizer, texts, rows)
    assert found[0][0] == "fox"
    assert "Fox" not in found[0]
    assert found[1][0] == "dog"
    with pytest.raises(ShapeError, match="as many rows of weights"):
        keywords(tokenizer, texts, rows[:1])


def test_a_word_without_end_takes_no_time() -> None:
    """A file without spaces is one word of as many pieces as it has, and none to show."""
    text = "ab" * 100_000
    endless = [Piece(i, "ab", 2 * i, 2 * i + 2) for i in range(len(text) // 2)]
    began = time.process_time()
    assert words(endless, text, {7: 0.5}) == {}
    assert time.process_time() - began < 5


def test_of_a_book_the_beginning_is_read(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the fox. the dog."
    rows = [Sparse.of([{piece.id: 0.5 for piece in tokenizer.pieces(text)}], tokenizer.vocab)]
    assert set(keywords(tokenizer, [[text]], rows)[0]) == {"the", "fox", "dog"}
    monkeypatch.setattr("threefold.analyze.keywords.LONGEST", 8)
    assert set(keywords(tokenizer, [[text]], rows)[0]) == {"the", "fox"}
