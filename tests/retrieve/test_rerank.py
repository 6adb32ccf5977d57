"""Collections that rerank by a model which reads query and text together."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes import FakeEncoder, FakeReranker

from threefold.collection import Collection
from threefold.errors import ConfigError, InputError
from threefold.opening import manifest_for
from threefold.retrieve.stages import Candidates, Fuse, Rerank, Retriever
from threefold.score import TRAINING
from threefold.store.memory import MemoryStore
from threefold.types import Document

TEXTS = {
    "fox": "The quick brown fox jumps over the lazy dog.",
    "dog": "A dog is lazy and a fox is quick",
    "head": "How is the sparse head trained?",
}
BY_CROSS = Retriever((Candidates("dense"),), Fuse(weights=TRAINING.only("dense")), Rerank("cross", depth=10))


@pytest.fixture
def reranker() -> FakeReranker:
    return FakeReranker()


@pytest.fixture
def collection(encoder: FakeEncoder, reranker: FakeReranker) -> Collection:
    filled = Collection.over(MemoryStore(manifest_for(encoder, None, None)), encoder, reranker=reranker)
    filled.add([Document(id, text) for id, text in TEXTS.items()])
    return filled


def test_hits_come_in_the_order_of_the_reranker(collection: Collection, reranker: FakeReranker) -> None:
    hits = collection.search("a lazy fox and dog", rerank=Rerank("cross"))
    # of the five words a, lazy, fox, and, dog: dog has all; fox has lazy, fox ("dog." is no word); head has none
    assert [hit.chunk.document_id for hit in hits] == ["dog", "fox", "head"]
    assert [hit.score for hit in hits] == pytest.approx([5 / 5, 2 / 5, 0 / 5])
    assert [set(hit.scores) for hit in hits] == [{"dense", "sparse", "multi", "cross"}] * 3
    (call,) = reranker.calls
    assert call[0] == "a lazy fox and dog"
    assert sorted(call[1]) == sorted(TEXTS.values())


def test_only_the_best_are_read(collection: Collection, reranker: FakeReranker) -> None:
    assert len(collection.search("fox", rerank=Rerank("cross", depth=2))) == 2
    assert len(reranker.calls[0][1]) == 2
    collection.search("fox")
    assert len(reranker.calls) == 1  # a search without the stage reads nothing


def test_the_explanation_names_the_score(collection: Collection) -> None:
    hit = collection.search("lazy dog", rerank=Rerank("cross"), k=1, why=True)[0]
    assert hit.why is not None
    assert hit.why.scores["cross"] == hit.score
    assert hit.why.contributions == {"cross": hit.score}
    assert list(hit.why.scores) == ["dense", "sparse", "multi", "cross"]


def test_a_saved_retriever_names_no_model(home: Path, encoder: FakeEncoder, reranker: FakeReranker) -> None:
    with Collection("mine", encoder) as plain:
        plain.add([Document(id, text) for id, text in TEXTS.items()])
        plain.save_retriever("careful", BY_CROSS)
        with pytest.raises(InputError, match=r"collection 'mine' was opened without a cross-encoder.*--rerank MODEL"):
            plain.search("fox", retriever="careful")
    with Collection("mine", encoder, reranker=reranker) as again:
        assert again.load_retriever("careful") == BY_CROSS
        assert again.search("a dog", retriever="careful", k=1)[0].chunk.document_id == "dog"
    assert len(reranker.calls) == 1


def test_settings_of_the_stage_are_checked() -> None:
    with pytest.raises(ConfigError, match="'colbert' is not one of 'dense', 'sparse', 'multi', 'cross'"):
        Rerank.from_dict({"by": "colbert"})
