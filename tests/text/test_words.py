from __future__ import annotations

import pytest

from threefold.errors import MissingExtraError
from threefold.text.words import STEMMERS, STOP_WORDS, analyse, describe


def test_words_by_hand() -> None:
    assert analyse(["The Fox, ﬁrst — 3.14!", ""]) == [["the", "fox", "first", "3", "14"], []]
    assert analyse(["The foxes were running"], "en") == [["fox", "run"]]
    assert analyse(["Die Häuser"], "de") == [["haus"]]


def test_marks_stay_in_their_words() -> None:
    assert analyse(["भारत की राजधानी"]) == [["भारत", "की", "राजधानी"]]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("搜索引擎", ["搜索", "索引", "引擎"]),
        ("猫", ["猫"]),
        ("BM25は検索です", ["bm25", "は検", "検索", "索で", "です"]),
        ("한국어 검색", ["한국", "국어", "검색"]),
        ("กรุง", ["กร", "รุ", "ุง"]),
    ],
)
def test_pairs_in_scripts_without_spaces(text: str, terms: list[str]) -> None:
    assert analyse([text], "zh") == [terms]


def test_every_stemmer_and_list_exists() -> None:
    for language in {*STEMMERS, *STOP_WORDS}:
        assert analyse(["some words"], language)
        assert describe(language)
    assert describe("en") == (
        "words in lower case, pairs of characters in scripts without spaces, bm25s's en stop words out, "
        "Snowball's english stems"
    )


def test_stems_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("threefold.text.words.importlib.import_module", gone)
    with pytest.raises(MissingExtraError, match=r'pip install "threefold\[evaluate\]"'):
        analyse(["x"], "fi")
    assert analyse(["x"], "yo") == [["x"]]
