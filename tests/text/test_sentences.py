from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.text.sentences import MOST, is_heading, sentence_spans
from threefold.text.tokenizer import Tokenizer


def sentences(text: str, tokenizer: Tokenizer, *, code: bool = False) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, tokenizer, code=code)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rains. We stay. ", ["It rains.", "We stay."]),
        ("今天天气很好。我们去公园散步吧！", ["今天天气很好。", "我们去公园散步吧！"]),
        ("मौसम अच्छा है। हम पार्क जा रहे हैं।", ["मौसम अच्छा है।", "हम पार्क जा रहे हैं।"]),
        ("Am 8. Februar kam er. Er blieb z. B. hier.", ["Am 8. Februar kam er.", "Er blieb z. B. hier."]),
        ("Он родился в 1878 г. В Перми. Потом уехал.", ["Он родился в 1878 г. В Перми.", "Потом уехал."]),
        (
            "Dr. Who met J. Doe in St. Ives (c. 1455). They talked.",
            ["Dr. Who met J. Doe in St. Ives (c. 1455).", "They talked."],
        ),
        ("# Title\n\nFirst.\n- one\n- two\n1. three", ["# Title", "First.", "- one", "- two", "1. three"]),
        ("|a|b|\n|-|-|\n|c|d|", ["|a|b|", "|c|d|"]),
        ("", []),
        (" ... \n\n --- ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str], tokenizer: Tokenizer) -> None:
    assert sentences(text, tokenizer) == expected


def test_a_text_without_ends_is_cut_between_words(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    parts = sentences(text, tokenizer)
    assert len(parts) > 1
    assert max(tokenizer.count(parts)) <= MOST
    assert " ".join(parts) == text.strip()


def test_signs_alone_are_no_sentence(tokenizer: Tokenizer) -> None:
    assert sentences("}\n)\n]\n", tokenizer, code=True) == []
    assert all(any(map(str.isalnum, part)) for part in sentences("x " + "- " * 300 + "y", tokenizer))


def test_code_is_cut_at_its_lines(tokenizer: Tokenizer) -> None:
    text = "".join(f"def add{i}(first, second):\n    return first + second\n\n\n" for i in range(8))
    parts = sentences(text, tokenizer, code=True)
    assert len(parts) > 1
    assert all(part.startswith("def add") for part in parts)


@given(text=st.text(st.sampled_from("aB9 .!?。\n-|#\t。é"), max_size=300))
def test_sentences_are_in_order_and_lose_no_words(text: str, tokenizer: Tokenizer) -> None:
    spans = sentence_spans(text, tokenizer)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    covered = {at for start, end in spans for at in range(start, end)}
    assert {at for at, character in enumerate(text) if character.isalnum()} <= covered


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Bees\n\nThey dance.", ["# Bees"]),
        ("Bees\n\nThey dance.", ["Bees"]),
        ("They dance.\n\nA life of six weeks\n\nIn summer.", ["A life of six weeks"]),
        ("They dance\n\n", []),  # nothing is below it
        ("They dance.\n\nIn summer", []),
        ("Bees\nThey dance.", []),
        ("They dance.\n \t\r\nBees \r\n\r\nIn summer.", ["Bees"]),
        ("They dance.\n" + " \n" * 50_000 + "Bees\n" + "\n" * 50_000 + "In summer.", ["Bees"]),
        ("They dance. In summer\n\nNot now.", []),  # the end of a paragraph
        ("word " * 20 + "\n\nThey dance.", []),
    ],
)
def test_headings(text: str, expected: list[str], tokenizer: Tokenizer) -> None:
    assert [
        text[span.start : span.end] for span in sentence_spans(text, tokenizer) if is_heading(text, span)
    ] == expected
