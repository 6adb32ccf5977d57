from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEncoder

from threefold import ingest
from threefold.collection import Collection
from threefold.config import Chunking, Filter, Manifest
from threefold.errors import (
    ConfigError,
    InputError,
    ModelMismatchError,
    NumericalError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    UnknownChunkError,
)
from threefold.ingest import AddReport
from threefold.opening import collection_folder
from threefold.retrieve.saved import SavedRetrievers
from threefold.retrieve.stages import Candidates, Diversify, Fuse, Group, Rerank, Retriever
from threefold.score import Weights
from threefold.score.pool import pooled
from threefold.store.memory import MemoryStore
from threefold.text.tokenizer import Tokenizer
from threefold.types import Chunk, Document, Encoded

FOX = "The quick brown fox jumps over the lazy dog."
HEAD = "How is the sparse head trained?"
ZH = "今天天气很好。我们去公园散步吧！"
LONG = " ".join(f"Sentence number {i} about the fox." for i in range(60))


def manifest(encoder: FakeEncoder, max_tokens: int = 32) -> Manifest:
    card = encoder.card
    return Manifest(
        card.name,
        card.hash,
        card.tokenizer_hash,
        card.dense_dim,
        card.multi_dim,
        card.vocab,
        multi_storage="float16" if card.multi_dim else "none",
        chunking=Chunking(max_tokens),
    )


@pytest.fixture
def store(encoder: FakeEncoder) -> MemoryStore:
    return MemoryStore(manifest(encoder))


@pytest.fixture
def collection(store: MemoryStore, encoder: FakeEncoder) -> Collection:
    return Collection.over(store, encoder)


def counts(report: AddReport) -> tuple[int, int, int, int, int]:
    return report.added, report.replaced, report.unchanged, report.deleted, len(report.skipped)


def text_of(collection: Collection, id: str) -> str:
    chunks = sorted(collection._store.scroll(Filter("eq", "document_id", id)), key=lambda chunk: chunk.number)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    return " ".join(chunk.text for chunk in chunks)


# ---- adding ---------------------------------------------------------------------------------------------


def test_documents_and_texts_are_added_and_found(collection: Collection) -> None:
    report = collection.add([Document("fox", FOX, title="Fox", language="en"), HEAD, ZH])
    assert counts(report) == (3, 0, 0, 0, 0)
    assert report.chunks == collection.count() == 3
    assert report.tokens > 0
    assert report.truncated == 0
    (hit,) = collection.search("lazy dog", k=1)
    assert (hit.id, hit.text, hit.chunk.title) == ("fox#0", FOX, "Fox")
    assert [info.title for info in collection.documents()] == ["Fox", "", ""]


def test_one_text_is_one_document_and_the_same_text_the_same_one(collection: Collection) -> None:
    assert counts(collection.add(FOX)) == (1, 0, 0, 0, 0)
    assert counts(collection.add([FOX])) == (0, 0, 1, 0, 0)
    assert counts(collection.add(Document("a", FOX))) == (1, 0, 0, 0, 0)


def test_unchanged_is_not_encoded_again_and_changed_is_replaced(collection: Collection, encoder: FakeEncoder) -> None:
    collection.add([Document("a", LONG), Document("b", FOX)])
    encoder.calls.clear()
    report = collection.add([Document("a", FOX), Document("b", FOX)])
    assert counts(report) == (0, 1, 1, 0, 0)
    assert encoder.calls == [[FOX]]
    assert text_of(collection, "a") == FOX
    assert counts(collection.add([Document("b", FOX, metadata={"year": 2020})])) == (0, 1, 0, 0, 0)
    assert collection.count({"year": 2020}) == 1


def test_long_documents_are_cut_by_the_chunking_of_the_collection(collection: Collection, encoder: FakeEncoder) -> None:
    report = collection.add(Document("a", LONG))
    assert report.chunks == collection.count() > 10
    assert max(encoder.tokenizer.count([text for call in encoder.calls for text in call])) <= 32
    assert text_of(collection, "a") == LONG


def test_what_cannot_be_taken_is_skipped_with_a_reason(collection: Collection) -> None:
    report = collection.add(
        [
            Document("empty", " \n"),
            Document("a", FOX),
            Document("a", HEAD),
            Document("bad", FOX, metadata={"when": object()}),
            Document("huge", FOX, metadata={"n": 10**400}),
            Document("", FOX),
            Document("b", HEAD),
        ]
    )
    assert counts(report) == (2, 0, 0, 0, 5)
    reasons = {one.path: one.reason for one in report.skipped}
    assert "no text" in reasons["empty"]
    assert "occurred before" in reasons["a"]
    assert "not JSON" in reasons["bad"]
    assert "not a finite 64-bit number" in reasons["huge"]
    assert "no id" in reasons[FOX[:40]]


def test_something_else_than_documents_is_an_error(collection: Collection) -> None:
    with pytest.raises(InputError, match="document 1 must be a Document or a text; got int"):
        collection.add([FOX, 3])  # type: ignore[list-item]


def test_nul_and_lone_surrogates_are_replaced_one_for_one(collection: Collection) -> None:
    text = "fox \0 dog \ud800 jumps"
    collection.add(Document("a\udfff", text, metadata={"k": "\0"}))
    (hit,) = collection.search("fox \ud800", k=1)
    assert hit.text == "fox \ufffd dog \ufffd jumps"
    assert len(hit.text) == len(text)
    assert (hit.chunk.document_id, hit.chunk.metadata) == ("a\ufffd", {"k": "\ufffd"})


def test_what_was_replaced_is_found_and_deleted_by_what_was_given(collection: Collection) -> None:
    given = [Document(id, FOX, metadata={"k": "\ud800"}) for id in ("a\0b", "a\udfff", "c", "d\0")]
    assert collection.add(given).added == 4
    assert collection.count({"k": "\ud800"}) == 4
    assert [one.id for one in collection.documents({"document_id": {"in": ["a\0b"]}})] == ["a\ufffdb"]
    assert collection.search("fox", where={"document_id": "c", "k": "\ud800"}, k=9)[0].id == "c#0"
    assert collection.delete("a\0b") == 1
    assert collection.delete(["a\udfff", "nobody"]) == 1
    assert collection.delete(where={"document_id": "d\0"}) == 1
    assert [one.id for one in collection.documents()] == ["c"]


def test_progress_tells_documents_chunks_tokens(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH_CHUNKS", 4)
    steps: list[tuple[int, int, int]] = []
    report = collection.add([Document("a", LONG), " ", FOX], progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1] == (3, report.chunks, report.tokens)
    assert len(steps) > report.chunks // 4


def test_a_generator_is_read_in_bounded_memory(
    collection: Collection, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(ingest, "BATCH_CHUNKS", 8)
    given = 0

    def documents() -> Iterator[Document]:
        nonlocal given
        for given in range(1, 101):
            written = sum(map(len, encoder.calls))
            assert given - written <= 4 + 8
            yield Document(f"d{given:03}", f"{FOX} {given}")

    assert collection.add(documents()).added == 100
    assert max(map(len, encoder.calls)) == 8


def test_truncation_by_a_prompt_is_reported(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, max_tokens=32, prompt="the quick brown fox jumps over ")
    collection = Collection.over(MemoryStore(manifest(encoder)), encoder)
    report = collection.add(Document("a", LONG))
    assert report.truncated > 0


# ---- interruption ---------------------------------------------------------------------------------------


class StopsAfter(MemoryStore):
    """Refuses to go on after so many calls that change it, as a killed process would."""

    def __init__(self, manifest: Manifest, calls: int) -> None:
        super().__init__(manifest)
        self.left = calls

    def _step(self) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1

    def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
        self._step()
        super().upsert(chunks, vectors)

    def delete(self, where: Filter) -> int:
        self._step()
        return super().delete(where)


@pytest.mark.parametrize("calls", range(12))
def test_stopped_anywhere_the_next_call_ends_in_the_same_state(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Old or new version of each document is whole or visibly unfinished after every step; then all is new."""
    monkeypatch.setattr(ingest, "BATCH_CHUNKS", 3)
    before = [Document("a", LONG), Document("b", FOX), Document("c", HEAD)]
    after = [Document("a", LONG[:500].strip()), Document("b", LONG[:300].strip()), Document("d", LONG[:200].strip())]
    store = StopsAfter(manifest(encoder), 1000)
    collection = Collection.over(store, encoder)
    collection.add(before)
    store.left = calls
    with pytest.raises(KeyboardInterrupt):
        collection.add(after)
    for document in before[:2]:  # nothing is lost: some version of every document is there
        assert collection.count({"document_id": document.id}) > 0
    store.left = 1000
    report = collection.add(after)
    assert report.added + report.replaced + report.unchanged == 3
    for document in [*after, before[2]]:
        assert text_of(collection, document.id) == document.text
    assert counts(collection.add(after)) == (0, 0, 3, 0, 0)


@pytest.mark.parametrize("calls", range(1, 9))
def test_stopped_while_replacing_and_then_taken_back(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Chunks of the new version have overwritten some of the old one, whose chunk 0 is still there."""
    monkeypatch.setattr(ingest, "BATCH_CHUNKS", 3)
    store = StopsAfter(manifest(encoder), 1000)
    collection = Collection.over(store, encoder)
    old, new = Document("a", LONG), Document("a", LONG.replace("fox", "dog"))
    collection.add(old)
    for document in (new, old):
        store.left = calls
        with pytest.raises(KeyboardInterrupt):
            collection.add(document)
    store.left = 1000
    collection.add(old)
    assert text_of(collection, "a") == LONG


def test_old_chunks_are_deleted_only_after_the_new_ones_are_stored(encoder: FakeEncoder) -> None:
    log: list[str] = []

    class Logged(MemoryStore):
        def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
            log.append("upsert")
            super().upsert(chunks, vectors)

        def delete(self, where: Filter) -> int:
            log.append("delete")
            return super().delete(where)

    collection = Collection.over(Logged(manifest(encoder)), encoder)
    collection.add(Document("a", LONG))
    collection.add(Document("a", FOX))
    assert log == ["upsert", "upsert", "delete"]


def test_an_encoder_that_fails_loses_only_its_batch(
    collection: Collection, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BATCH_CHUNKS", 2)
    real = encoder.encode_documents

    def fail(texts: Sequence[str], **options: Any) -> Encoded:
        if "poison" in " ".join(texts):
            raise NumericalError("not a number")
        return real(texts, **options)

    monkeypatch.setattr(encoder, "encode_documents", fail)
    with pytest.raises(NumericalError):
        collection.add(["fox", "dog", "poison", "box"])
    assert collection.count() == 2


# ---- files ----------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "fox.txt").write_text(FOX)
    (folder / "sub/head.md").write_text(f"# Head\n\n{HEAD}")
    (folder / "rows.jsonl").write_text('{"text": "first row"}\n{"text": "second row"}\n')
    return folder


def test_files_are_added_incrementally(collection: Collection, docs: Path) -> None:
    assert counts(collection.add_files(docs)) == (4, 0, 0, 0, 0)
    assert counts(collection.add_files(docs)) == (0, 0, 4, 0, 0)
    (docs / "fox.txt").write_text(FOX + " Again.")
    (docs / "new.txt").write_text(ZH)
    (docs / "sub/head.md").unlink()
    assert counts(collection.add_files(docs)) == (1, 1, 2, 0, 0)
    assert counts(collection.add_files(docs, delete_missing=True)) == (0, 0, 4, 1, 0)
    assert [info.id for info in collection.documents()] == ["fox.txt", "new.txt", "rows.jsonl:1", "rows.jsonl:2"]
    (hit,) = collection.search("fox", k=1)
    assert hit.source == str(docs / "fox.txt")


def test_a_row_that_is_gone_is_deleted(collection: Collection, docs: Path) -> None:
    collection.add_files(docs)
    (docs / "rows.jsonl").write_text('{"text": "first row"}\n')
    assert counts(collection.add_files(docs / "rows.jsonl", delete_missing=True)) == (0, 0, 1, 1, 0)
    assert collection.count() == 3


def test_what_cannot_be_read_today_is_kept(collection: Collection, docs: Path) -> None:
    collection.add_files(docs)
    (docs / "fox.txt").write_bytes(b"\xff broken")
    (docs / "sub/head.md").write_text(" ")  # read well, and empty: its text is gone
    report = collection.add_files(docs, delete_missing=True)
    assert counts(report) == (0, 0, 2, 1, 2)
    assert text_of(collection, "fox.txt") == FOX


def test_only_what_was_below_the_folder_is_deleted(collection: Collection, docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "docs2"
    other.mkdir()
    (other / "zh.txt").write_text(ZH)
    collection.add_files(other)
    collection.add(Document("mine", FOX))
    collection.add_files(docs)
    for path in sorted(docs.rglob("*.*")):
        path.unlink()
    report = collection.add_files(docs, delete_missing=True)
    assert counts(report) == (0, 0, 0, 4, 1)
    assert [info.id for info in collection.documents()] == ["mine", "zh.txt"]


def test_an_empty_folder_is_reported(collection: Collection, tmp_path: Path) -> None:
    report = collection.add_files(tmp_path)
    assert [one.reason for one in report.skipped] == ["the folder has no files"]


def test_a_table_whose_rows_are_all_gone(collection: Collection, docs: Path) -> None:
    (docs / "table.csv").write_text("text\none\n")
    collection.add_files(docs)
    (docs / "table.csv").write_text("text\n")
    report = collection.add_files(docs, delete_missing=True)
    assert counts(report) == (0, 0, 4, 1, 1)
    assert report.skipped[0].reason == "there are no rows in it"


def test_a_file_that_is_there_keeps_its_documents(collection: Collection, docs: Path) -> None:
    (docs / ".hidden.md").write_text(ZH)
    collection.add_files([docs, docs / ".hidden.md"])
    assert counts(collection.add_files(docs, delete_missing=True)) == (0, 0, 4, 0, 0)  # it did not look at .hidden.md
    assert counts(collection.add_files(docs, prefix="b", delete_missing=True)) == (4, 0, 0, 0, 0)
    assert counts(collection.add_files(docs / "sub", delete_missing=True)) == (1, 0, 0, 0, 0)  # now sub/head.md twice
    (docs / "rows.jsonl").write_text('{"text": "first row"}\n')
    assert counts(collection.add_files(docs, prefix="b", delete_missing=True)) == (0, 0, 3, 1, 0)
    assert "rows.jsonl:2" in {info.id for info in collection.documents()}
    for path in sorted(docs.rglob("*.*")):
        path.unlink()
    collection.add_files(docs, delete_missing=True)
    assert collection.count() == 0


def test_two_folders_with_a_file_of_the_same_name(collection: Collection, docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "fox.txt").write_text(ZH)
    collection.add_files(docs)
    report = collection.add_files(other)
    assert counts(report) == (0, 0, 0, 0, 1)
    assert str(docs / "fox.txt") in report.skipped[0].reason
    assert counts(collection.add_files(other, prefix="other")) == (1, 0, 0, 0, 0)
    assert text_of(collection, "other/fox.txt") == ZH
    assert text_of(collection, "fox.txt") == FOX


def test_a_folder_that_moved(collection: Collection, docs: Path, tmp_path: Path) -> None:
    collection.add_files(docs)
    docs.rename(tmp_path / "moved")
    assert counts(collection.add_files(tmp_path / "moved")) == (0, 4, 0, 0, 0)
    assert collection.documents()[0].source == str(tmp_path / "moved/fox.txt")


# ---- deleting -------------------------------------------------------------------------------------------


def test_delete(collection: Collection) -> None:
    collection.add([Document("a", LONG), Document("b", FOX, language="en"), Document("c", ZH)])
    chunks = collection.count()
    assert collection.delete("a") == chunks - 2
    assert collection.delete(where={"language": "en"}) == 1
    assert collection.delete(["nothing"]) == 0
    assert [info.id for info in collection.documents()] == ["c"]


@pytest.mark.parametrize("numbers", [{"gte": 3}, {"lt": 1}, {"in": [1]}])
def test_a_document_that_lost_chunks_is_added_again(collection: Collection, numbers: Any) -> None:
    collection.add(Document("a", LONG + "\n "))
    whole = collection.count()
    assert collection.delete(where={"document_id": "a", "number": numbers}) < whole
    collection.add(Document("a", LONG + "\n "))
    assert collection.count() == whole
    assert counts(collection.add(Document("a", LONG + "\n "))) == (0, 0, 1, 0, 0)


@pytest.mark.parametrize("given", [{}, {"ids": ["a"], "where": {"language": "en"}}, {"where": {}}])
def test_delete_needs_to_know_what(collection: Collection, given: Any) -> None:
    with pytest.raises(InputError, match="either ids of documents or a filter"):
        collection.delete(**given)


# ---- searching ------------------------------------------------------------------------------------------


@pytest.fixture
def filled(collection: Collection) -> Collection:
    collection.add(
        [
            Document("fox", FOX, language="en", metadata={"year": 2020}),
            Document("head", HEAD, language="en", metadata={"year": 2024}),
            Document("zh", ZH, language="zh"),
            Document("long", LONG, language="en"),
        ]
    )
    return collection


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "multi"])
def test_every_mode_finds_the_text_itself(filled: Collection, mode: Any) -> None:
    hits = filled.search(HEAD, mode=mode, k=3)
    assert hits[0].chunk.document_id == "head"
    assert len(hits) <= 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert set(hits[0].scores) == ({"dense", "sparse", "multi"} if mode == "hybrid" else {mode})
    assert hits[0].why is None


@pytest.mark.parametrize("fusion", ["weighted", "rrf", "dbsf"])
def test_every_fusion(filled: Collection, fusion: Any) -> None:
    assert filled.search(HEAD, fusion=fusion)[0].chunk.document_id == "head"


def test_filters(filled: Collection) -> None:
    assert {hit.chunk.document_id for hit in filled.search("fox", where={"language": "zh"})} == {"zh"}
    assert {hit.chunk.document_id for hit in filled.search("fox", where={"year": {"gte": 2021}})} == {"head"}
    assert filled.search("fox", where={"language": "xx"}) == []
    assert filled.count({"language": "zh"}) == 1


def test_weights(filled: Collection) -> None:
    hit = filled.search("fox", k=1, weights={"dense": 0.0, "sparse": 1.0, "multi": 0.0})[0]
    assert hit.score == pytest.approx(hit.scores["sparse"])
    assert filled.search("fox", weights=Weights(1.0, 0.3, 1.0)) == filled.search("fox", weights={"dense": 1.0})


def test_stages_of_a_search(filled: Collection) -> None:
    hits = filled.search("the fox", rerank=Rerank("sparse"), diversify=Diversify(), group=Group(), k=10)
    documents = [hit.chunk.document_id for hit in hits]
    assert len(set(documents)) == len(documents)


@pytest.mark.parametrize("times", [1, 100])
def test_a_chunk_that_somebody_deletes_during_the_search(
    filled: Collection, store: MemoryStore, monkeypatch: Any, times: int
) -> None:
    real, gone = store.search, list[str]()

    def search(*arguments: Any) -> Any:
        found = real(*arguments)
        if len(gone) < times:
            gone.append(found[0].id)
            filled.delete(found[0].id.rpartition("#")[0])
            filled.add([Document(f"new {len(gone)}", FOX)])
        return found

    monkeypatch.setattr(store, "search", search)
    if times > 1:
        with pytest.raises(UnknownChunkError):  # it does not go on for ever
            filled.search("the fox")
    else:
        assert filled.search("the fox")[0].id not in gone
        assert len(gone) == 1


def test_an_empty_collection_has_no_hits(collection: Collection) -> None:
    assert collection.search("fox", why=True) == []


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("", {}, "the query is empty"),
        (" \n", {}, "the query is empty"),
        (3, {}, "a query is one text; got int"),
        (["fox"], {}, "a query is one text; got list"),
        ("fox", {"k": 0}, "k must be a whole number of at least 1; got 0"),
        ("fox", {"k": -1}, "got -1"),
        ("fox", {"k": 2.5}, "got 2.5"),
        ("fox", {"depth": 0}, "depth must be"),
        ("fox", {"mode": "best"}, "unknown mode 'best'; known are hybrid"),
        ("fox", {"fusion": "max"}, "'max' is not one of 'weighted', 'rrf', 'dbsf'"),
        ("fox", {"weights": {"colbert": 1.0}}, "unknown setting 'colbert'; known are dense, multi, sparse"),
        ("fox", {"weights": {"dense": -1.0}}, "must be a finite number >= 0"),
        ("fox", {"weights": {"dense": 1.0}, "mode": "dense"}, "weights belong to mode='hybrid'"),
        ("fox", {"weights": {"dense": 1.0}, "fusion": "rrf"}, "with fusion='weighted'"),
        ("fox", {"where": {"year": {"near": 3}}}, "unknown operator 'near'"),
        ("fox", {"retriever": "mine"}, "no retriever 'mine'; saved are: none"),
        ("fox " * 600, {}, "the query has more than the 512 tokens that the model reads"),
    ],
)
def test_bad_searches_say_what_to_do(filled: Collection, query: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filled.search(query, **options)


def test_a_dense_model_searches_dense(tokenizer: Tokenizer) -> None:
    encoder = FakeEncoder(tokenizer, heads=["dense"])
    collection = Collection.over(MemoryStore(manifest(encoder)), encoder)
    collection.add([FOX, HEAD])
    assert collection.search(HEAD)[0].scores.keys() == {"dense"}
    assert collection.search(HEAD, weights={"dense": 2.0})[0].text == HEAD
    with pytest.raises(InputError, match="keeps dense, not sparse"):
        collection.search(HEAD, mode="sparse")
    with pytest.raises(InputError, match="needs sparse scores, but collection 'memory' keeps dense"):
        collection.search(HEAD, weights={"sparse": 1.0})


def test_only_what_is_needed_is_encoded(filled: Collection, encoder: FakeEncoder, monkeypatch: Any) -> None:
    asked: list[Any] = []
    real = encoder.encode_queries

    def ask(texts: Sequence[str], **options: Any) -> Encoded:
        asked.append(options["outputs"])
        return real(texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", ask)
    filled.search("fox", mode="dense")
    filled.search("fox", fusion="rrf")
    assert asked == [("dense",), ("dense", "sparse")]


# ---- saved retrievers -----------------------------------------------------------------------------------

SPARSE = Retriever((Candidates("sparse"),), Fuse(weights=Weights(0.0, 1.0, 0.0)), where={"language": "en"}, k=2)


def test_a_saved_retriever_is_used_by_name(filled: Collection) -> None:
    filled.save_retriever("mine", SPARSE)
    assert filled.retrievers() == ["mine"]
    assert filled.search_with(SPARSE, "the fox") == filled.search("the fox", retriever="mine", k=2)
    assert len(filled.search_with(SPARSE, "the fox")) == len(filled.search("the fox", retriever="mine")) == 2
    assert [hit.id for hit in filled.search("fox", retriever=SPARSE, where={"year": 2020})] == ["fox#0"]
    with pytest.raises(InputError, match="brings its own stages"):
        filled.search("fox", retriever="mine", mode="dense")


@pytest.mark.parametrize("folder", [True, False])
def test_names_of_retrievers_are_files_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    saved = SavedRetrievers(tmp_path if folder else None)
    longest = "a" * 64
    saved.save(longest, SPARSE)
    for name in (longest + "a", "a" * 300, "", ".mine", "a/b"):
        with pytest.raises(InputError, match="is not a name for a retriever: use 1 to 64"):
            saved.save(name, SPARSE)
    (tmp_path / "retrievers").mkdir(exist_ok=True)
    (tmp_path / "retrievers/.123.mine.json").write_text("{")  # a draft, of a process that was killed
    assert saved.names() == [longest]
    assert saved.load(longest) == SPARSE


# ---- folders --------------------------------------------------------------------------------------------


def test_where_a_collection_lives(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert collection_folder("papers") == home / "collections/papers"
    assert collection_folder("./papers") == Path("papers")
    assert collection_folder(Path("papers")) == Path("papers")
    assert collection_folder("~/papers") == Path.home() / "papers"
    monkeypatch.delenv("THREEFOLD_HOME")
    assert collection_folder("papers") == Path.home() / ".threefold/collections/papers"
    with pytest.raises(InputError, match="is not a name"):
        collection_folder("..")


def test_a_collection_on_disk(home: Path, encoder: FakeEncoder) -> None:
    with Collection("papers", encoder, chunking=Chunking(32)) as papers:
        papers.add([Document("fox", FOX, metadata={"year": 2020}), Document("long", LONG), ZH])
        papers.add(Document("long", HEAD))
        papers.save_retriever("mine", SPARSE)
        first = papers.search("lazy dog", why=True)
        assert (first[0].id, first[0].chunk.metadata) == ("fox#0", {"year": 2020})
        with pytest.raises(StoreLockedError):
            Collection("papers", encoder)
    with Collection("papers", encoder, create=False) as papers:
        assert [hit.id for hit in papers.search("lazy dog")] == [hit.id for hit in first]
        assert counts(papers.add(Document("long", HEAD))) == (0, 0, 1, 0, 0)
        assert papers.load_retriever("mine") == SPARSE
        info = papers.info()
        assert (info.name, info.documents, info.chunks) == ("papers", 3, 3)
        assert info.representations == ("dense", "sparse", "multi")
        assert info.size_bytes > 0
        assert info.manifest.chunking == Chunking(32)
        (home / "collections/papers/retrievers/mine.json").write_text("{")
        with pytest.raises(StoreCorruptError, match=r"mine.json is not JSON"):
            papers.load_retriever("mine")
        with pytest.raises(InputError, match="is not a name for a retriever"):
            papers.save_retriever("../mine", SPARSE)
    with pytest.raises(StoreError, match="closed"):
        papers.count()


def test_a_missing_collection_is_not_created_when_told_so(home: Path, encoder: FakeEncoder) -> None:
    with pytest.raises(StoreError, match="no collection here"):
        Collection("papers", encoder, create=False)
    assert not (home / "collections/papers").exists()


def test_another_model_is_refused_by_name_and_the_folder_released(
    home: Path, encoder: FakeEncoder, tokenizer: Tokenizer
) -> None:
    Collection("papers", encoder).close()
    with pytest.raises(ModelMismatchError, match="built with 'fake', not with 'other'"):
        Collection("papers", FakeEncoder(tokenizer, name="other"))
    Collection("papers", encoder).close()


def test_settings_that_it_was_not_built_with_are_refused(home: Path, encoder: FakeEncoder) -> None:
    Collection("papers", encoder, multi_storage="none").close()
    with pytest.raises(ConfigError, match=r"chunking Chunking\(max_tokens=256, overlap=0\), not"):
        Collection("papers", encoder, chunking=Chunking(64))
    with pytest.raises(ConfigError, match="multi_storage 'none', not 'int8'"):
        Collection("papers", encoder, multi_storage="int8")
    with Collection("papers", encoder) as papers:
        assert papers.representations == ("dense", "sparse")
        papers.add(FOX)
        assert papers.search("fox", why=True)[0].why is not None


def test_pooled_token_vectors(home: Path, encoder: FakeEncoder) -> None:
    whole = encoder.encode_documents([FOX]).multi
    assert whole is not None
    with Collection("papers", encoder, multi_storage="float16", multi_pool=3) as papers:
        papers.add([Document("fox", FOX), Document("zh", ZH)])
        kept = papers.store.vectors(["fox#0"], ["multi"]).multi
        assert kept is not None
        assert len(kept[0]) == -(-len(whole[0]) // 3)
        np.testing.assert_allclose(kept[0], pooled(whole, 3)[0], atol=1e-3)
        hit = papers.search("the lazy dog", k=1, mode="multi", quote=True)[0]
        assert (hit.chunk.document_id, papers.info().manifest.multi_pool) == ("fox", 3)
        assert hit.quote is not None
        assert hit.quote.text == FOX
        assert papers.add(Document("fox", FOX)).unchanged == 1
    with Collection("papers", encoder) as papers:  # it remembers
        assert papers.manifest.multi_pool == 3
    with pytest.raises(ConfigError, match="built with multi_pool 3, not 2"):
        Collection("papers", encoder, multi_pool=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_pool": 0}, "multi_pool must be a whole number from 1 to 16; got 0"),
        ({"multi_pool": 17}, "multi_pool must be a whole number from 1 to 16; got 17"),
        ({"multi_pool": 2.5}, "got 2.5"),
        ({"multi_pool": True}, "got True"),
        ({"multi_pool": 2, "multi_storage": "none"}, "multi_pool 2: the collection keeps no token vectors"),
    ],
)
def test_pooling_that_cannot_be(home: Path, encoder: FakeEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Collection("papers", encoder, **options)
    assert not collection_folder("papers").exists()


def test_a_manifest_from_before_there_was_pooling(home: Path, encoder: FakeEncoder) -> None:
    Collection("papers", encoder).close()
    path = collection_folder("papers") / "manifest.json"
    settings = json.loads(path.read_text())
    del settings["multi_pool"]
    path.write_text(json.dumps(settings))
    with Collection("papers", encoder) as papers:
        assert papers.manifest.multi_pool == 1


def test_chunks_longer_than_the_model_reads(home: Path, tokenizer: Tokenizer) -> None:
    short = FakeEncoder(tokenizer, max_tokens=64)
    with pytest.raises(ConfigError, match="chunks of 128 tokens, but 'fake' reads at most 64"):
        Collection("papers", short, chunking=Chunking(128))
    with Collection("papers", short) as papers:
        assert papers.manifest.chunking.max_tokens == 64


def test_a_folder_that_cannot_be_written(encoder: FakeEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot create the collection"):
        Collection(tmp_path / "file/papers", encoder)


def test_a_creation_that_was_killed_is_taken_over(home: Path, encoder: FakeEncoder) -> None:
    folder = home / "collections/papers"
    (folder / "shard.first").mkdir(parents=True)
    for name in ("shard.first/part", "lock", "manifest.tmp"):
        (folder / name).write_text("of a process that is no more")
    with Collection("papers", encoder) as papers:
        papers.add("fox")
        assert papers.count() == 1


def test_a_folder_of_documents_is_not_made_a_collection(encoder: FakeEncoder, docs: Path) -> None:
    with pytest.raises(InputError, match=r"not empty \(it has fox.txt\). Choose a new or an empty folder"):
        Collection(docs, encoder)
    assert sorted(path.name for path in docs.iterdir()) == ["fox.txt", "rows.jsonl", "sub"]


def test_a_collection_among_the_documents_does_not_read_itself(encoder: FakeEncoder, docs: Path) -> None:
    with Collection(docs / "index", encoder) as inside:
        assert counts(inside.add_files(docs)) == (4, 0, 0, 0, 0)


def test_a_corrupt_manifest_is_named(home: Path, encoder: FakeEncoder) -> None:
    Collection("papers", encoder).close()
    (home / "collections/papers/manifest.json").write_text("{")
    with pytest.raises(StoreCorruptError, match=r"manifest.json: not a manifest"):
        Collection("papers", encoder)


def test_a_snapshot_is_a_collection(home: Path, encoder: FakeEncoder, tmp_path: Path) -> None:
    with Collection("papers", encoder) as papers:
        papers.add([FOX, ZH])
        papers.optimize()
        papers.snapshot(tmp_path / "copy")
    with Collection(tmp_path / "copy", encoder, create=False) as copy:
        assert copy.search("lazy dog", k=1)[0].text == FOX


def test_a_manifest_of_a_newer_precision_is_the_same_model(store: MemoryStore, encoder: FakeEncoder) -> None:
    encoder.card = replace(encoder.card, precision="bfloat16", name="the same elsewhere")
    Collection.over(store, encoder).close()
