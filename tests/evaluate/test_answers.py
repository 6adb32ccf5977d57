from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from threefold.errors import EvaluationError
from threefold.evaluate.answers import contains, judge_task, tokens, without_tokens
from threefold.evaluate.task import Task


@pytest.mark.parametrize(
    ("answer", "passage", "found"),
    [
        ("New York", "He moved to new york in 1920.", True),
        ("York New", "He moved to new york", False),
        ("art", "a party", False),  # whole tokens only
        ("1,234", "sold 1,234 copies", True),
        ("1,234", "sold 1, 234 copies", True),  # signs are tokens, spaces are not
        ("Beyoncé", "BEYONCE\u0301 sang", True),  # NFD on both sides
        ("Beyonce", "Beyoncé sang", False),  # a mark belongs to its word
        ("it's", "it's late", True),
        ("it’s", "it's late", False),  # other apostrophe: the corpus is normalised, the answers are not
        ("北京", "首都是北京。", False),  # one run of letters
        ("北京", "首都，北京。", True),
        ("", "anything", False),
    ],
)
def test_contains(answer: str, passage: str, found: bool) -> None:
    assert contains(passage, ["nowhere", answer]) is found


def test_tokens_by_hand() -> None:
    assert tokens("Él's 2nd—try!\u200b x") == ["e\u0301l", "'", "s", "2nd", "—", "try", "!", "x"]


def test_equal_to_the_definition_of_dpr() -> None:
    """DPR writes the pattern for the package `regex`, which knows the classes by name."""
    regex: Any = pytest.importorskip("regex")
    theirs = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", regex.IGNORECASE + regex.UNICODE + regex.MULTILINE)
    texts = [
        "Ünïcödé — “quotes” … 3.14 × ½ ﬁ Ⅷ",
        "भारत की राजधानी नई दिल्ली है। กรุงเทพมหานคร 東京都は日本 서울특별시",
        "tabs\tand\nlines\r\n\u00a0spaces\u2028x\ufeffy \U0001f600 emoji",
    ]
    for text in texts:
        expected = [match.group().lower() for match in theirs.finditer(unicodedata.normalize("NFD", text))]
        assert tokens(text) == expected


def answered(**changes: Any) -> Task:
    settings: dict[str, Any] = {
        "documents": {"a": "the quick fox", "b": "a lazy dog", "c": "nothing"},
        "queries": {"p": "?", "q": "?"},
        "qrels": {"p": {}, "q": {}},
        "answers": {"p": ("fox",), "q": ("dog", "cat")},
    }
    return Task("qa", **(settings | changes))


def test_figures_worked_by_hand() -> None:
    run = {"p": {"c": 3.0, "b": 2.0, "a": 1.0}, "q": {"b": 1.0}}
    found = judge_task(answered(), run, ["answer@1", "answer@2", "answer@3"])
    assert found.means == {"answer@1": 1 / 2, "answer@2": 1 / 2, "answer@3": 1.0}
    assert judge_task(answered(), {"p": {"a": 1.0}}, ["answer@1"]).means == {"answer@1": 1 / 2}
    assert judge_task(answered(), {}, ["answer@20"]).means == {"answer@20": 0.0}


def test_measures_that_a_task_cannot_have() -> None:
    with pytest.raises(EvaluationError, match="qa is judged by answer strings: nDCG@10 cannot be measured; use answer"):
        judge_task(answered(), {}, ["answer@20", "nDCG@10"])
    with pytest.raises(EvaluationError, match="qa is judged by judgements: answer@20 cannot be measured; use nDCG@10"):
        judge_task(answered(answers=None, qrels={"p": {"a": 1}}), {}, ["answer@20"])


def test_answers_that_nobody_can_find_are_counted() -> None:
    assert without_tokens([("fox", " "), ("",)]) == 2
    with pytest.raises(EvaluationError, match="query 'q' has no answers"):
        answered(answers={"p": ("fox",)})


def test_the_fingerprint_knows_the_answers() -> None:
    assert answered().fingerprint() != answered(answers={"p": ("fox",), "q": ("dog",)}).fingerprint()
