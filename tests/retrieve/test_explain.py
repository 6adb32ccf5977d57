from __future__ import annotations

import pytest
from tests.fakes import FakeEncoder

from threefold.collection import Collection
from threefold.config import Manifest
from threefold.retrieve.explain import best_token_pairs
from threefold.store.memory import MemoryStore
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document, Hit

TEXT = "The lazy dog sleeps.\n  The quick brown fox jumps!"


def collection(encoder: FakeEncoder) -> Collection:
    card = encoder.card
    manifest = Manifest(
        card.name,
        card.hash,
        card.tokenizer_hash,
        card.dense_dim,
        card.multi_dim,
        card.vocab,
        multi_storage="float16" if card.multi_dim else "none",
    )
    filled = Collection.over(MemoryStore(manifest), encoder)
    filled.add([Document("fox", TEXT), Document("other", "今天天气很好")])
    return filled


def hit(encoder: FakeEncoder, query: str) -> Hit:
    return collection(encoder).search(query, k=1, why=True)[0]


def test_scores_contributions_and_ranks(encoder: FakeEncoder) -> None:
    found = hit(encoder, "quick fox")
    why = found.why
    assert why is not None
    assert list(why.scores) == list(why.contributions) == ["dense", "sparse", "multi"]
    assert sum(why.contributions.values()) == pytest.approx(found.score, abs=1e-6)
    # dense 1, sparse 0.3, multi 1
    assert why.contributions["sparse"] == pytest.approx(0.3 * why.scores["sparse"] / 2.3)
    assert why.ranks == {"dense": 1, "sparse": 1}


def test_scores_of_weight_zero_are_named_too(encoder: FakeEncoder) -> None:
    why = collection(encoder).search("quick fox", mode="sparse", k=1, why=True)[0].why
    assert why is not None
    assert set(why.scores) == {"dense", "sparse", "multi"}
    assert set(why.contributions) == {"sparse"}


def test_terms_are_the_shared_ones_and_their_products_the_sparse_score(encoder: FakeEncoder) -> None:
    why = hit(encoder, "quick fox cat").why
    assert why is not None
    spelled = {piece.text for piece in encoder.tokenizer.pieces("quick fox cat")}
    assert {term.term for term in why.terms} <= spelled
    assert sum(term.product for term in why.terms) == pytest.approx(why.scores["sparse"], rel=1e-5)
    assert [term.product for term in why.terms] == sorted((term.product for term in why.terms), reverse=True)


def test_token_pairs_point_into_query_and_text(encoder: FakeEncoder) -> None:
    query = "  fox jumps"
    why = hit(encoder, query).why
    assert why is not None
    assert why.tokens
    for match in why.tokens:
        assert match.similarity == pytest.approx(1.0, abs=1e-5)  # every token of this query is in the text
        assert query[slice(*match.query_span)] == match.query_token.removeprefix("▁")
        assert TEXT[slice(*match.text_span)] == match.text_token.removeprefix("▁")
        assert match.query_token == match.text_token


def test_a_prompt_does_not_shift_the_pairs(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, prompt="query documents are cut into ")
    (pairs,) = best_token_pairs(encoder, "fox", [TEXT], 10)
    assert all(TEXT[slice(*match.text_span)] == match.text_token.removeprefix("▁") for match in pairs)
    assert "".join("fox"[slice(*match.query_span)] for match in sorted(pairs, key=lambda m: m.query_span)) == "fox"


def test_a_text_that_was_not_read_to_its_end(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, max_tokens=6)
    (pairs,) = best_token_pairs(encoder, "fox jumps over the lazy dog", [TEXT], 50)
    read = tokenizer.pieces(TEXT)[3].end
    assert len(pairs) == 4
    assert all(match.text_span[1] <= read or match.text_span == (len(TEXT), len(TEXT)) for match in pairs)


def test_a_prompt_before_a_text_that_was_not_read_to_its_end(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, prompt="a cat ", max_tokens=len(tokenizer.pieces("a cat")) + 2 + 4)
    (pairs,) = best_token_pairs(encoder, "lazy dog sleeps jumps", [TEXT], 50)
    assert len(pairs) == 4
    exact = [match for match in pairs if match.similarity == pytest.approx(1.0, abs=1e-5)]
    assert exact
    assert all(TEXT[slice(*match.text_span)] == match.text_token.removeprefix("▁") for match in exact)
    assert all(match.query_token == match.text_token for match in exact)


def test_the_end_token_of_the_text_has_an_empty_span(tokenizer: Tokenizer) -> None:
    (pairs,) = best_token_pairs(FakeEncoder(tokenizer), "fox", [""], 10)
    assert {(match.text_token, match.text_span) for match in pairs} == {("</s>", (0, 0))}


def test_a_model_with_dense_alone_explains_dense(tokenizer: Tokenizer) -> None:
    why = hit(FakeEncoder(tokenizer, heads=["dense"]), "quick fox").why
    assert why is not None
    assert (set(why.scores), why.terms, why.tokens) == ({"dense"}, (), ())
