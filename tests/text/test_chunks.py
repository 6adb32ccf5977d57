from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.config import Chunking
from threefold.errors import ConfigError
from threefold.text.chunks import chunk_document, chunk_spans
from threefold.text.tokenizer import Tokenizer
from threefold.types import Chunk, Document

#: Anything that texts are made of: words, scripts, mark-up, code, trouble.
WORDS = "word Fuchs fox. dog! 今天天气很好 。 ！ मौसम । ؟ # ## --- ``` a\u0301 ﬃ \ufdfa \0 e.g. J. ( ) ' ”"
SPACES = [" ", " ", " ", "\n", "\n\n", "\t", "\r\n", "\n\n\n", "\u3000", "\u200b"]
PARTS = st.sampled_from([*WORDS.split(), *SPACES, "\n# Head\n", "x" * 40, "。" * 9, "    indented"])
TEXTS = st.one_of(st.lists(PARTS, max_size=80).map("".join), st.text(max_size=200))


def chunks_of(text: str, tokenizer: Tokenizer, max_tokens: int, overlap: int = 0, source: str = "") -> list[Chunk]:
    return chunk_document(Document("d", text, source), tokenizer, Chunking(max_tokens, overlap))


def texts_of(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


# ---- what must always hold ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, max_tokens=st.sampled_from([8, 12, 30, 100]), source=st.sampled_from(["", "x.py"]))
@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_chunks_cover_the_text_once_within_the_budget(
    kind: str, tokenizer: Tokenizer, wordpiece: Tokenizer, text: str, max_tokens: int, source: str
) -> None:
    used = tokenizer if kind == "unigram" else wordpiece
    chunks = chunks_of(text, used, max_tokens, source=source)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert "".join("".join(texts_of(chunks)).split()) == "".join(text.split())
    assert all(before.end <= after.start for before, after in pairwise(chunks))
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert int(used.count([chunk.text])[0]) <= max_tokens or len(chunk.text) == 1


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, overlap=st.integers(1, 11))
def test_overlapping_chunks_still_cover_and_advance(tokenizer: Tokenizer, text: str, overlap: int) -> None:
    chunks = chunks_of(text, tokenizer, 12, overlap)
    covered = {i for chunk in chunks for i in range(chunk.start, chunk.end)}
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(chunks))
    assert all(int(n) <= 12 for n, c in zip(tokenizer.count(texts_of(chunks)), chunks, strict=True) if len(c.text) > 1)


# ---- where cuts are made --------------------------------------------------------------------------------


def test_a_short_text_is_one_chunk_without_outer_space(tokenizer: Tokenizer) -> None:
    (chunk,) = chunks_of("  The fox.\n\nThe dog. \n", tokenizer, 100)
    assert (chunk.start, chunk.end, chunk.text) == (2, 20, "The fox.\n\nThe dog.")


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_no_text_no_chunks(tokenizer: Tokenizer, text: str) -> None:
    assert chunks_of(text, tokenizer, 100) == []


def test_a_heading_begins_a_chunk(tokenizer: Tokenizer) -> None:
    text = "intro\n\n# Part\n\n## Chapter\ntext\n\n```\n# no heading\n```\n\nTitle\n=====\nmore"
    assert texts_of(chunks_of(text, tokenizer, 400)) == [
        "intro",
        "# Part\n\n## Chapter\ntext\n\n```\n# no heading\n```",
        "Title\n=====\nmore",
    ]


def test_a_heading_stays_with_its_long_paragraph(tokenizer: Tokenizer) -> None:
    text = "# Head\n\n" + "the quick brown fox jumps over the lazy dog " * 30
    chunks = chunks_of(text, tokenizer, 40)
    assert len(chunks[0].text) > 30


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The fox jumps.", "The dog is lazy."),
        ('He said: "Go!"', "Then he went."),
        ("Mr. J. Doe wrote it e.g. here.", "She read it."),
        ("今天天气很好。", "我们去公园散步吧！"),
        ("“今天很好。”", "我们去。"),
        ("मौसम अच्छा है।", "हम पार्क जा रहे हैं।"),
        ("هل هذا جيد؟", "نعم هذا جيد."),
        ("First paragraph.\n\n", "second paragraph"),
    ],
)
def test_sentences_are_not_cut(tokenizer: Tokenizer, first: str, second: str) -> None:
    text = f"{first} {second}" if first[-1] in '.!"؟।' else first + second
    longest = max(int(n) for n in tokenizer.count([first, second]))
    assert texts_of(chunks_of(text, tokenizer, max(longest, 8))) == [first.strip(), second]


def test_paragraphs_before_sentences(tokenizer: Tokenizer) -> None:
    paragraph = "The fox jumps. The dog sleeps."
    budget = int(tokenizer.count([paragraph + " The fox jumps."])[0])
    assert texts_of(chunks_of(f"{paragraph}\n\n{paragraph}", tokenizer, budget)) == [paragraph, paragraph]


def test_words_before_tokens(tokenizer: Tokenizer) -> None:
    chunks = chunks_of("the quick brown fox jumps over the lazy dog " * 20, tokenizer, 20)
    words = {word for chunk in chunks for word in chunk.text.split()}
    assert words == {"the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"}


def test_chunks_are_filled(tokenizer: Tokenizer) -> None:
    chunks = chunks_of("The quick fox jumps over the dog. " * 100, tokenizer, 100)
    counts = tokenizer.count(texts_of(chunks))
    assert counts[:-1].min() > 75


def test_code_is_cut_at_definitions(tokenizer: Tokenizer) -> None:
    function = "def add(first, second):\n    # comment\n\n    return first + second"
    budget = int(tokenizer.count([function])[0]) + 5
    assert texts_of(chunks_of(f"{function}\n\n\n{function}\n", tokenizer, budget, source="x.py")) == [function] * 2


def test_overlap_repeats_whole_sentences(tokenizer: Tokenizer) -> None:
    sentences = [f"The fox jumps over dog {n}." for n in range(12)]
    one = int(tokenizer.count(sentences[:1])[0]) - 2
    chunks = texts_of(chunks_of(" ".join(sentences), tokenizer, 4 * one + 4, overlap=one + 2))
    assert len(chunks) > 2
    for before, after in pairwise(chunks):
        assert before.rsplit(". ", 1)[1].rstrip(".") == after.split(". ", 1)[0].rstrip(".")


def test_a_budget_below_the_special_tokens_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        chunk_spans("text", tokenizer, Chunking(max_tokens=2))


def test_chunks_carry_what_the_document_says(tokenizer: Tokenizer) -> None:
    document = Document("d", "text " * 50, "x.md", "Title", "de", {"year": 2020}, "hash")
    chunks = chunk_document(document, tokenizer, Chunking(max_tokens=16))
    assert len(chunks) > 1
    for chunk in chunks:
        assert (chunk.document_id, chunk.source, chunk.title, chunk.language) == ("d", "x.md", "Title", "de")
        assert (chunk.metadata, chunk.content_hash) == ({"year": 2020}, "hash")


# ---- size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog. " * 22_000,
        "今天天气很好。" * 143_000,
        "a" * 1_000_000,
        "。" * 1_000_000,
        "x" + "\n" * 1_000_000,
        "." + " " * 1_000_000 + "x",
        "```\n" * 250_000,
        "---\n" * 250_000,
    ],
    ids=["prose", "chinese", "one run", "marks", "line ends", "spaces", "fences", "rules"],
)
def test_a_million_characters_take_seconds(tokenizer: Tokenizer, text: str) -> None:
    began = time.perf_counter()
    chunks = chunks_of(text, tokenizer, 256)
    assert time.perf_counter() - began < 30  # about 2 s on an idle core; anything quadratic takes hours
    assert sum(len("".join(chunk.text.split())) for chunk in chunks) == len("".join(text.split()))
