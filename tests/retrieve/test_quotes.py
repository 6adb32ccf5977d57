from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.fakes import FakeEncoder

from threefold.collection import Collection
from threefold.config import Manifest, MultiStorage
from threefold.retrieve.quotes import quoted
from threefold.retrieve.stages import Retriever, preset
from threefold.store.memory import MemoryStore
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document, Hit, Quote

TEXT = "# Animals\n\nThe lazy dog sleeps.  The quick brown fox jumps! Today is a good day."


def collection(encoder: FakeEncoder, multi: MultiStorage = "float16") -> Collection:
    card = encoder.card
    sizes = (card.dense_dim, card.multi_dim, card.vocab)
    storage = multi if card.multi_dim else "none"
    manifest = Manifest(card.name, card.hash, card.tokenizer_hash, *sizes, multi_storage=storage)
    filled = Collection.over(MemoryStore(manifest), encoder)
    filled.add([Document("animals", TEXT), Document("other", "今天天气很好"), Document("signs", "?!")])
    return filled


def best(encoder: FakeEncoder, query: str, multi: MultiStorage = "float16") -> Quote:
    quote = collection(encoder, multi).search(query, k=1, quote=True, where={"document_id": "animals"})[0].quote
    assert quote is not None
    return quote


@pytest.mark.parametrize("multi", ["float16", "int8", "none"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("quick fox", "The quick brown fox jumps!"),
        ("lazy dog", "The lazy dog sleeps."),
        ("day", "Today is a good day."),
    ],
)
def test_the_sentence_with_the_words_of_the_query(
    encoder: FakeEncoder, multi: MultiStorage, query: str, expected: str
) -> None:
    quote = best(encoder, query, multi)
    assert quote.text == expected
    assert TEXT[quote.start : quote.end] == expected


def test_the_score_by_hand(encoder: FakeEncoder) -> None:
    """The mean over the tokens of the query of the best token of the sentence, end tokens apart."""
    query, sentence = "fox cat", "The quick brown fox jumps!"
    asked, said = encoder.encode([query]).multi, encoder.encode([sentence]).multi
    assert asked is not None
    assert said is not None
    expected = np.mean([max(float(q @ p) for p in said[0][:-1]) for q in asked[0][:-1]])
    assert best(encoder, query, "none").score == pytest.approx(float(expected), abs=1e-5)
    assert best(encoder, query).score == pytest.approx(float(expected), abs=1e-3)  # kept in 16 bits


def test_a_model_with_dense_alone_reads_each_sentence_by_itself(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, heads=["dense"])
    quote = best(encoder, "quick fox")
    assert quote.text == "The quick brown fox jumps!"
    asked, said = encoder.encode(["quick fox"]).dense, encoder.encode([quote.text]).dense
    assert asked is not None
    assert said is not None
    assert quote.score == pytest.approx(float(asked[0] @ said[0]), abs=1e-5)


def test_prompts_move_no_quote(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, prompt="query documents are cut into ")
    assert best(encoder, "quick fox").text == "The quick brown fox jumps!"
    assert best(encoder, "quick fox", "none").text == "The quick brown fox jumps!"


def test_a_heading_is_quoted_only_where_there_is_nothing_else(encoder: FakeEncoder) -> None:
    assert best(encoder, "Animals fox").text == "The quick brown fox jumps!"
    papers = collection(encoder)
    papers.add(Document("heading", "# Animals"))
    quote = papers.search("Animals", quote=True, where={"document_id": "heading"})[0].quote
    assert quote is not None
    assert quote.text == "# Animals"


def test_what_was_not_read_is_not_quoted(tokenizer: Tokenizer) -> None:
    read = len(tokenizer.pieces("# Animals\n\nThe lazy dog sleeps."))
    encoder = FakeEncoder(tokenizer, max_tokens=read + tokenizer.overhead)
    assert best(encoder, "quick fox jumps", "none").text == "The lazy dog sleeps."


def test_where_nothing_was_read_there_is_no_quote(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, max_tokens=len(tokenizer.pieces("# Animals")) + tokenizer.overhead)
    assert collection(encoder, "none").search("fox", k=1, quote=True, where={"document_id": "animals"})[0].quote is None


def test_a_query_without_tokens_quotes_nothing(wordpiece: Tokenizer) -> None:
    encoder = FakeEncoder(wordpiece)
    assert not wordpiece.pieces("\u0301")
    hits = collection(encoder).search("\u0301", quote=True, mode="dense")
    assert [hit.quote for hit in hits] == [None] * 3


def test_every_hit_has_one_but_those_without_words(encoder: FakeEncoder) -> None:
    hits = collection(encoder).search("fox", quote=True)
    assert {hit.chunk.document_id: hit.quote is not None for hit in hits} == {
        "animals": True,
        "other": True,
        "signs": False,
    }


def test_what_is_quoted_depends_on_no_other_hit(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    papers = collection(encoder)
    hits, query = papers.search("quick fox"), encoder.encode_queries(["quick fox"])
    monkeypatch.setattr("threefold.retrieve.quotes.BATCH", 2)
    together = quoted(papers.store, encoder, "quick fox", query, hits)
    alone = [quoted(papers.store, encoder, "quick fox", query, [hit])[0] for hit in hits]
    assert together == alone
    assert [replace(hit, quote=None) for hit in together] == hits
    assert quoted(papers.store, encoder, "quick fox", query, []) == []


def test_beside_every_way_to_search(encoder: FakeEncoder) -> None:
    papers = collection(encoder, "none")
    wanted = "The quick brown fox jumps!"

    def first(hits: list[Hit]) -> str:
        assert hits[0].quote is not None
        return hits[0].quote.text

    assert first(papers.search("quick fox", quote=True, mode="sparse")) == wanted
    stages: Retriever = preset("dense", papers.representations)
    assert first(papers.search("quick fox", quote=True, retriever=stages, where={"document_id": "animals"})) == wanted
    explained = papers.search("quick fox", quote=True, why=True)[0]
    assert explained.why is not None
    assert explained.to_dict()["quote"] == {
        "text": wanted,
        "start": TEXT.index(wanted),
        "end": TEXT.index(wanted) + len(wanted),
        "score": pytest.approx(1.0, abs=1e-3),
    }
    assert "quote" not in papers.search("quick fox")[0].to_dict()
