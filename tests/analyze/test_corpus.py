from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from tests.analyze.corpora import unit
from tests.fakes import FakeEncoder

from threefold.analyze import Corpus, Item, gather, of_texts
from threefold.analyze.corpus import By, centred
from threefold.collection import Collection
from threefold.config import Chunking
from threefold.errors import InputError, NumericalError, ShapeError, UnknownChunkError
from threefold.opening import manifest_for
from threefold.retrieve.documents import named, units
from threefold.store.memory import MemoryStore
from threefold.types import Document, Encoded, Representation, Sparse

LONG = " ".join(f"Sentence number {i} about the fox." for i in range(30))


@pytest.fixture
def papers(encoder: FakeEncoder) -> Collection:
    """Three documents, one of several chunks."""
    store = MemoryStore(manifest_for(encoder, Chunking(max_tokens=32, overlap=4), None))
    made = Collection.over(store, encoder)
    made.add([
        Document("b", "The lazy dog.", language="en"),
        Document("a", LONG, title="Foxes", metadata={"year": 2020}),
        Document("c", "今天天气很好。", language="zh"),
    ])  # fmt: skip
    return made


def test_chunks_come_by_document_and_number(papers: Collection) -> None:
    corpus = gather(papers, by="chunk", sparse=True)
    ids = [item.id for item in corpus.items]
    count = papers.count({"document_id": "a"})
    assert count > 2
    assert ids == [*(f"a#{i}" for i in range(count)), "b#0", "c#0"]
    vectors: Any = papers.store.vectors(ids)
    np.testing.assert_allclose(corpus.dense, vectors.dense, atol=1e-6)
    assert corpus.sparse is not None
    assert [corpus.sparse.row(i) for i in range(len(ids))] == [vectors.sparse.row(i) for i in range(len(ids))]
    assert (corpus.items[0].title, corpus.items[0].metadata) == ("Foxes", {"year": 2020})


def test_a_document_is_the_mean_of_its_chunks_and_has_their_largest_weights(papers: Collection) -> None:
    corpus, chunks = gather(papers, sparse=True), gather(papers, by="chunk", sparse=True)
    assert [item.id for item in corpus.items] == ["a", "b", "c"]
    own = [i for i, item in enumerate(chunks.items) if item.id.startswith("a#")]
    mean = chunks.dense[own].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(corpus.dense[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert chunks.sparse is not None
    assert corpus.sparse is not None
    largest: dict[int, float] = {}
    for i in own:
        for id, weight in chunks.sparse.row(i).items():
            largest[id] = max(weight, largest.get(id, 0.0))
    assert corpus.sparse.row(0) == largest
    assert corpus.sparse.row(2) == chunks.sparse.row(len(chunks) - 1)
    assert corpus.items[0].text == "\n".join(chunks.items[i].text for i in own)


def test_only_what_matches_is_gathered(papers: Collection) -> None:
    assert [item.id for item in gather(papers, where={"language": "zh"}).items] == ["c"]
    with pytest.raises(InputError, match="has nothing that matches; add texts first"):
        gather(papers, where={"language": "xx"})
    with pytest.raises(InputError, match="by='page': expected chunk or document"):
        gather(papers, by="page")  # type: ignore[arg-type]


def test_progress_counts_the_chunks(papers: Collection) -> None:
    said: list[tuple[int, int]] = []
    gather(papers, progress=lambda done, total: said.append((done, total)))
    assert said == [(papers.count(), papers.count())]


def test_a_collection_without_the_vectors_is_refused(encoder: FakeEncoder) -> None:
    lean = FakeEncoder(encoder.tokenizer, heads=("dense",))
    made = Collection.over(MemoryStore(manifest_for(lean, None, None)), lean)
    made.add("The fox.")
    assert len(gather(made)) == 1
    with pytest.raises(InputError, match="keeps no sparse vectors, and this needs them"):
        gather(made, sparse=True)


def test_documents_and_chunks_are_named_by_id(papers: Collection) -> None:
    documents, chunks = gather(papers, sparse=True), gather(papers, by="chunk", sparse=True)
    found = named(papers.store, ["c", "a#1", "a", "c"])
    assert found.documents == {"a", "c"}
    np.testing.assert_allclose(
        found.dense, [documents.dense[2], chunks.dense[1], documents.dense[0], documents.dense[2]], atol=1e-6
    )
    assert documents.sparse is not None
    assert chunks.sparse is not None
    assert found.sparse is not None
    assert found.sparse.row(1) == chunks.sparse.row(1)
    assert found.sparse.row(2) == documents.sparse.row(0)
    with pytest.raises(UnknownChunkError, match="no document and no chunk has the id 'nothing'"):
        named(papers.store, ["a", "nothing"])


def test_rows_are_units_whatever_the_store_gives(papers: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that are kept in few bits come back longer or shorter."""
    plain = papers.store.vectors

    def shorter(ids: Sequence[str], names: Sequence[Representation]) -> Encoded:
        found = plain(ids, names)
        assert found.dense is not None
        return replace(found, dense=found.dense * np.float32(0.99))

    monkeypatch.setattr(papers.store, "vectors", shorter)
    for by in get_args(By):
        np.testing.assert_allclose(np.linalg.norm(gather(papers, by=by).dense, axis=1), 1, atol=1e-6)


def test_texts_of_ones_own(encoder: FakeEncoder) -> None:
    corpus = of_texts(encoder, ["The fox.", "A dog."], sparse=True)
    assert [(item.id, item.text) for item in corpus.items] == [("0", "The fox."), ("1", "A dog.")]
    assert corpus.sparse is not None
    assert corpus.take([1]).items == corpus.items[1:]
    short = of_texts(FakeEncoder(encoder.tokenizer, max_tokens=16), ["The fox.", LONG])
    assert [item.truncated for item in short.items] == [False, True]
    with pytest.raises(InputError, match="2 texts but 1 ids"):
        of_texts(encoder, ["The fox.", "A dog."], ["one"])


def test_what_does_not_belong_together_is_refused() -> None:
    items = (Item("a", "a"),)
    with pytest.raises(ShapeError, match="1 items but dense vectors of shape"):
        Corpus(items, np.zeros((2, 3), np.float32))
    with pytest.raises(ShapeError, match="1 items but sparse vectors of 2"):
        Corpus(items, np.zeros((1, 3), np.float32), Sparse.of([{}, {}], 5))
    with pytest.raises(NumericalError, match="item 0, 'a', is not of finite numbers"):
        Corpus(items, np.array([[0.0, np.nan]], np.float32))


def test_units_and_centres() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(units(rows), [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)
    np.testing.assert_allclose(centred(np.array([[1.0, 0.0], [0.0, 1.0]])), np.array([[1, -1], [-1, 1]]) / 2**0.5)
    assert not centred(np.ones((3, 2))).any()  # all equal: no direction at all
    odd = np.tile(unit(np.random.default_rng(0).standard_normal((1, 64))), (11, 1))
    assert odd.dtype == np.float32
    assert (odd - odd.mean(axis=0)).any()  # rounding
    assert not centred(odd).any()
