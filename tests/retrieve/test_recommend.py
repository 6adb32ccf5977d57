from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import FakeEncoder

from threefold.analyze import gather
from threefold.collection import Collection
from threefold.errors import InputError, UnknownChunkError
from threefold.opening import manifest_for
from threefold.retrieve import documents as subject
from threefold.retrieve.recommend import AGAINST
from threefold.retrieve.stages import Diversify
from threefold.store.memory import MemoryStore
from threefold.types import Document

TEXTS = {
    "fox1": "The quick brown fox jumps over the lazy dog.",
    "fox2": "A quick fox and a lazy dog.",
    "fox3": "The brown fox jumps.",
    "head1": "How is the sparse head trained?",
    "head2": "Dense, sparse and multi-vector scores from one forward pass of the head.",
    "zh": "今天天气很好。我们去公园散步吧！",
}


@pytest.fixture
def papers(encoder: FakeEncoder) -> Collection:
    made = Collection.over(MemoryStore(manifest_for(encoder, None, None)), encoder)
    made.add([Document(id, text, language="zh" if id == "zh" else "en") for id, text in TEXTS.items()])
    return made


def ids(papers: Collection, *like: str, **options: object) -> list[str]:
    return [hit.chunk.document_id for hit in papers.recommend(list(like), **options)]  # type: ignore[arg-type]


def test_what_is_like_comes_first_and_what_was_named_comes_not(papers: Collection) -> None:
    assert set(ids(papers, "fox1", k=2)) == {"fox2", "fox3"}
    assert set(ids(papers, "fox1#0", k=2)) == {"fox2", "fox3"}
    assert ids(papers, "fox1", "fox2", k=1) == ["fox3"]
    assert not {"fox1", "zh"} & set(ids(papers, "fox1", "zh", k=10))
    assert len(ids(papers, "fox1", k=10)) == len(TEXTS) - 1


def test_the_profile_is_rocchios(papers: Collection) -> None:
    """Worked again on dense tables of all vectors."""
    corpus = gather(papers, sparse=True)
    names = [item.id for item in corpus.items]
    assert corpus.sparse is not None
    terms = corpus.sparse.to_scipy().toarray()
    shares = np.zeros(len(names))
    shares[[names.index("fox1"), names.index("head1")]] = 0.5
    shares[names.index("zh")] = -AGAINST
    dense, sparse = shares @ corpus.dense, np.maximum(shares @ terms, 0)
    by_meaning = corpus.dense @ dense / np.linalg.norm(dense)
    by_words = terms @ sparse / np.linalg.norm(sparse) / np.linalg.norm(terms, axis=1)
    want = {f"{name}#0": (by_meaning[i] + 0.5 * by_words[i]) / 1.5 for i, name in enumerate(names) if not shares[i]}
    got = {hit.id: hit.score for hit in papers.recommend(["fox1", "head1"], ["zh"])}
    assert list(got) == sorted(want, key=lambda id: -want[id])
    assert got == pytest.approx(want, abs=1e-6)


def test_the_last_counts_most_in_a_history(papers: Collection) -> None:
    assert ids(papers, "head1", "fox1", half_life=0.1, k=1) == ids(papers, "fox1", k=1)
    assert ids(papers, "head1", "fox1", half_life=1e-320, k=1) == ids(papers, "fox1", k=1)  # a share of 0, no warning
    assert ids(papers, "fox1", "head1", half_life=0.1, k=9) == [id for id in ids(papers, "head1", k=9) if id != "fox1"]


def test_what_is_not_liked_pushes_away(papers: Collection) -> None:
    plain = papers.recommend(["fox1"], k=10)
    against = papers.recommend(["fox1"], ["fox2"], k=10)
    assert "fox2" not in [hit.chunk.document_id for hit in against]
    score = {hit.chunk.document_id: hit.scores["dense"] for hit in plain}
    assert all(hit.scores["dense"] != score[hit.chunk.document_id] for hit in against)


def test_filters_and_stages_hold(papers: Collection) -> None:
    assert ids(papers, "fox1", where={"language": "zh"}) == ["zh"]
    assert set(ids(papers, "fox1", diversify=Diversify(0.3), k=10)) == set(TEXTS) - {"fox1"}


def test_dense_alone_is_enough(encoder: FakeEncoder) -> None:
    lean = FakeEncoder(encoder.tokenizer, heads=("dense",))
    made = Collection.over(MemoryStore(manifest_for(lean, None, None)), lean)
    made.add([Document(id, text) for id, text in TEXTS.items()])
    assert set(ids(made, "fox1", k=2)) == {"fox2", "fox3"}


def test_what_nobody_meant_is_refused(papers: Collection) -> None:
    with pytest.raises(InputError, match="give at least one id"):
        papers.recommend([])
    with pytest.raises(InputError, match="lists of ids; got a text"):
        papers.recommend("fox1")
    with pytest.raises(InputError, match="an id is a text; got 1"):
        papers.recommend([1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="'fox1' is both liked and not; name it once"):
        papers.recommend(["fox1", "fox2"], ["fox1"])
    with pytest.raises(InputError, match="half_life must be above 0; got 0"):
        papers.recommend(["fox1"], half_life=0)
    with pytest.raises(InputError, match="k must be a whole number of at least 1; got 0"):
        papers.recommend(["fox1"], k=0)
    with pytest.raises(InputError, match="unknown operator"):
        papers.recommend(["fox1"], where={"language": {"like": "x"}})


def test_an_unknown_id_may_be_meant_as_a_documents(papers: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    papers.add([Document(id, TEXTS["head1"]) for id in ("docs/guide.md", "long" * 100)])
    said = r"^no document and no chunk has the id '{}'\. {}Take ids from the hits of a search"
    for given, hint in {
        "xyz": "",
        "long" * 99: "",  # not compared
        "foxes": r"Did you mean 'fox[123]'\? ",
        "guide.md": r"Did you mean 'docs/guide\.md'\? ",
    }.items():
        with pytest.raises(UnknownChunkError, match=said.format(given, hint)) as caught:
            papers.recommend(["fox1", given])
        assert caught.value.id == given
    monkeypatch.setattr(subject, "NEAR_IN", 3)
    with pytest.raises(UnknownChunkError, match=said.format("foxes", "")):
        papers.recommend(["foxes"])
