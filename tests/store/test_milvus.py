"""What is peculiar to Milvus: addresses, errors, pieces, limits, kills. With Milvus Lite; no server was at hand."""

from __future__ import annotations

import importlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import CORPUS, FakeEncoder
from tests.store.conftest import make_milvus
from tests.store.corpus import chunk, chunks, encoded, ids_of, manifest

from threefold.collection import Collection
from threefold.config import Filter
from threefold.errors import InputError, MissingExtraError, StoreCorruptError, StoreError, StoreLockedError
from threefold.store.memory import MemoryStore
from threefold.store.protocol import Store
from threefold.types import REPRESENTATIONS, Encoded, Ragged, Representation

ROOT = Path(__file__).parents[2]

MODULES = ["milvus", "milvus_words", "milvus_connection", "milvus_reader"]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"threefold.store.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=r'pymilvus.*pip install "threefold\[milvus\]"'):
        importlib.import_module("threefold.store.milvus")


def milvus() -> Any:
    pytest.importorskip("milvus_lite", reason="extra `peers` is not installed")
    return importlib.import_module("threefold.store.milvus")


def connection_module() -> Any:
    pytest.importorskip("milvus_lite", reason="extra `peers` is not installed")
    return importlib.import_module("threefold.store.milvus_connection")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    filled = make_milvus(manifest(), tmp_path)
    filled.upsert(chunks(8), encoded(8))
    yield filled
    filled.close()


def file_of(tmp_path: Path) -> str:
    return f"milvus:{tmp_path / 'papers.db'}"


# ---- addresses and errors ----------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("milvus://host:19530", "http://host:19530"),
        ("milvus://host", "http://host"),
        ("milvus://[::1]:19530/papers", "http://[::1]:19530/papers"),
        ("milvus+http://host:19530", "http://host:19530"),
        ("milvus+https://in01-x.zillizcloud.com", "https://in01-x.zillizcloud.com"),
        ("MILVUS+HTTPS://host:443", "https://host:443"),
    ],
)
def test_addresses(url: str, uri: str) -> None:
    assert connection_module().address_of(url) == (uri, False)


@pytest.mark.peers
def test_addresses_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address_of = connection_module().address_of
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("milvus:a.db", "milvus:./a.db", f"milvus:{tmp_path}/a.db", "milvus:~/a.db"):
        assert address_of(url) == (str(tmp_path / "a.db"), True)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("milvus:", "is not one of a Milvus. Write it as milvus://host:19530"),
        ("milvus://", "is not one of a Milvus"),
        ("milvus:///a.db", "is not one of a Milvus"),
        ("milvus+tcp://host", "is not one of a Milvus"),
        ("milvus://host:port", "Port could not be cast"),
        ("milvus://root:secret@host:19530", "url of host: .* Give them as the api key, in the form user:password"),
        ("milvus:papers", r"ends with \.db"),
        ("milvus:no/such/folder/a.db", "there is no folder no/such/folder. Make it first"),
    ],
)
def test_what_is_no_address_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        milvus().connect(url)
    assert "secret" not in str(caught.value)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["my-papers", "9papers", "", "päper", "a" * 201])
def test_names_that_milvus_does_not_take_are_refused(tmp_path: Path, name: str) -> None:
    with (
        closing(milvus().connect(file_of(tmp_path))) as connection,
        pytest.raises(InputError, match="Milvus takes names of up to 200"),
    ):
        milvus().MilvusStore.create(connection, name, manifest())


@pytest.mark.peers
def test_an_unreachable_server_is_named(encoder: FakeEncoder) -> None:
    with pytest.raises(StoreError, match=r"could not connect to milvus://127\.0\.0\.1:1: .*Check the url, the api key"):
        Collection("papers", encoder, url="milvus://127.0.0.1:1")


@pytest.mark.peers
def test_a_wrong_key_is_told(monkeypatch: pytest.MonkeyPatch, encoder: FakeEncoder) -> None:
    """By a server that refuses every call, as Milvus does; it shows that the key was sent."""
    grpc: Any = pytest.importorskip("grpc")
    seen: list[Any] = []

    class Refuses(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            seen.append(dict(details.invocation_metadata).get("authorization"))

            def refuse(_request: bytes, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

            return grpc.unary_unary_rpc_method_handler(refuse)

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((Refuses(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            monkeypatch.setenv("THREEFOLD_URL_KEY", "root:bad")
            with pytest.raises(StoreError, match=r"auth check failure .UNAUTHENTICATED.. Check the url, the api key"):
                Collection("papers", encoder, url=f"milvus://127.0.0.1:{port}")
        finally:
            server.stop(None).wait()
    assert seen[0] == "cm9vdDpiYWQ="  # base64 of root:bad


@pytest.mark.peers
def test_a_collection_dropped_under_us_is_told(store: Any, tmp_path: Path) -> None:
    with closing(milvus().connect(file_of(tmp_path))) as other:
        other.client.drop_collection("papers")
    for call in (store.count, lambda: store.search("dense", encoded(1), 3), lambda: store.fetch(["d0#0"])):
        with pytest.raises(StoreError, match=r"papers.*It was dropped or renamed: correct the name, or build"):
            call()
    with pytest.raises(StoreError, match="dropped or renamed"):
        store.upsert(chunks(2), encoded(2))


@pytest.mark.peers
def test_collections_of_others_are_refused(tmp_path: Path) -> None:
    with closing(milvus().connect(file_of(tmp_path))) as connection:
        for name in ("theirs", "papers__parts"):
            connection.client.create_collection(name, dimension=4)
        store = milvus().MilvusStore
        with pytest.raises(StoreError, match="'theirs' has no manifest: another program made it"):
            store.open(connection, "theirs")
        with pytest.raises(StoreError, match="'theirs' exists on this server"):
            store.create(connection, "theirs", manifest())
        with pytest.raises(StoreError, match="'papers__parts' exists and is not ours"):
            store.create(connection, "papers", manifest())
        with pytest.raises(StoreError, match="no collection 'papers' on this server"):
            store.open(connection, "papers")


@pytest.mark.peers
def test_what_is_no_file_of_milvus_lite_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "papers.db").write_text("not a folder")
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreError, match=r"could not open it: .*File exists"):
        milvus().connect(file_of(tmp_path))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.peers
def test_nothing_is_printed(store: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """The client logs each error with its traceback, the server that it has no clock; errors are raised, and enough."""
    assert len(list(store.scroll())) == 8
    store._require_open().client.drop_collection("papers")
    with pytest.raises(StoreError):
        store.count()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.peers
def test_two_stores_of_one_process_share_a_file(store: Any, tmp_path: Path) -> None:
    with milvus().MilvusStore.open(milvus().connect(file_of(tmp_path)), "papers") as other:
        other.upsert([chunk("new")], encoded(1))
    assert store.count() == 9


# ---- pieces and limits -------------------------------------------------------------------------------------


def long_chunks() -> list[Any]:
    """Texts and metadata of more bytes than Milvus takes in a field, and one that just fits."""
    return [
        chunk("text", text="ü\x00𝄞" * 40_000),
        chunk("metadata", 0, {"notes": "é" * 100_000, "year": 7}),
        chunk("fits", text="x" * 65_535),
        chunk("short"),
    ]


@pytest.mark.peers
def test_long_texts_come_back(store: Any) -> None:
    store.upsert(long_chunks(), encoded(4, seed=3))
    assert store.fetch(ids_of(long_chunks())) == long_chunks()
    assert [one for one in store.scroll(Filter.parse({"year": 7}))] == long_chunks()[1:2]
    assert {one.id: one for one in store.scroll()} == {one.id: one for one in [*chunks(8), *long_chunks()]}
    assert store.delete(Filter("not", parts=(Filter("eq", "document_id", "d0"),))) == 8
    assert len(pieces(store)) == 4  # of the token vectors of d0


@pytest.mark.peers
@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_long_token_vectors_come_back(tmp_path: Path, storage: Any) -> None:
    """2,000 tokens of 256 dimensions: up to 21 pieces."""
    rows = np.random.default_rng(0).normal(size=(2_000, 256)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = Encoded(None, None, Ragged.of([rows, rows[:1]]), np.array([2_001, 2], np.int32), np.array([False] * 2))
    with make_milvus(manifest(storage, dense_dim=0, vocab=0, multi_dim=256), tmp_path) as store:
        store.upsert([chunk("long"), chunk("short")], vectors)
        back: Any = store.vectors(["short#0", "long#0"]).multi
        assert back.lengths.tolist() == [1, 2_000]
        np.testing.assert_allclose(back[1], rows, atol={"float16": 2e-4, "int8": 2e-3, "int4": 4e-2}[storage])
        query = vectors.take([1])
        assert ids_of(store.search("multi", query, 2)) == ["long#0", "short#0"]  # equal scores, by id


@pytest.mark.peers
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (chunk("x", source="s" * 65_536), "source has more than the 65,535 bytes"),
        (chunk("ü" * 40_000), "chunk 'ü+.*document_id has more|chunk .*: its id has more"),
        (chunk("x", 0, {"tags": [f"t{i}" for i in range(4_097)]}), r"'x#0': its metadata has 4,10\d values"),
        (chunk("x", 0, {f"n{i}": i for i in range(1_500)}), "1,500 fields of numbers"),
    ],
    ids=["source", "id", "tags", "numbers"],
)
def test_what_has_no_room_is_refused_and_nothing_is_stored(store: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.upsert([chunk("good"), given], encoded(2))
    assert store.count() == 8


@pytest.mark.peers
@pytest.mark.parametrize("where", [None, {"language": "de"}], ids=["all", "de"])
def test_more_results_than_one_search_gives_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(milvus(), "MOST_FOUND", 4_100)
    exact = MemoryStore(manifest())
    with make_milvus(manifest(), tmp_path) as store:
        for one in (exact, store):
            one.upsert(chunks(600), encoded(600))
        for representation in REPRESENTATIONS:
            for k in (5, 400, 1_000):
                compare(store, exact, representation, k, Filter.parse(where))
        assert store.count() == 600
        assert len(list(store.scroll(batch=10_000))) == 600
        german = Filter("eq", "language", "de")
        assert (store.delete(german), store.count(), len(pieces(store))) == (300, 300, 300)


def compare(store: Store, exact: Store, representation: Representation, k: int, where: Filter | None) -> None:
    found = store.search(representation, encoded(1, seed=9), k, where)
    expected = exact.search(representation, encoded(1, seed=9), k, where)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=5e-4)
    by_id = dict(expected)
    assert all(one.score == pytest.approx(by_id[one.id], abs=5e-4) for one in found)


@pytest.mark.peers
def test_many_chunks_are_scored_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("threefold.store.milvus_reader"), "READ_PIECES", 7)
    exact, ids = MemoryStore(manifest()), ids_of(chunks(300))
    with make_milvus(manifest(), tmp_path) as store:
        for one in (exact, store):
            one.upsert(chunks(300), encoded(300))
        scores, expected = store.score(encoded(1, seed=4), ids[::-1]), exact.score(encoded(1, seed=4), ids[::-1])
        for name in REPRESENTATIONS:
            np.testing.assert_allclose(scores[name], expected[name], atol=5e-4)


# ---- kills and others --------------------------------------------------------------------------------------


def start(tmp_path: Path, job: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.milvus_writer", str(tmp_path / "papers.db"), job]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def reopened(tmp_path: Path) -> Any:
    return milvus().MilvusStore.open(milvus().connect(file_of(tmp_path)), "papers")


@pytest.mark.peers
def test_a_second_process_is_refused(store: Any, tmp_path: Path) -> None:
    store.close()
    process = start(tmp_path, "hold")
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(StoreLockedError, match=r"papers\.db is open in another process. Close it there first"):
        milvus().connect(file_of(tmp_path))
    process.kill()
    process.communicate()
    with reopened(tmp_path) as again:
        assert again.count() == 8


@pytest.mark.peers
@pytest.mark.parametrize("acknowledged", [1, 5, 9])
def test_a_kill_while_adding_loses_nothing_acknowledged(store: Any, tmp_path: Path, acknowledged: int) -> None:
    store.close()
    process = start(tmp_path, "add")
    assert process.stdout is not None
    for _ in range(acknowledged):
        process.stdout.readline()
    process.kill()
    rest, _ = process.communicate()
    done = acknowledged + sum(line.endswith("\n") for line in rest.splitlines(keepends=True))
    assert process.returncode == -signal.SIGKILL
    with reopened(tmp_path) as again:
        assert len(again.fetch([f"w{i}#{part}" for i in range(done) for part in range(3)])) == 3 * done
        last = encoded(3, seed=done - 1).take([0])
        assert all(again.search(name, last, 1)[0].id == f"w{done - 1}#0" for name in ("dense", "multi"))


@pytest.mark.peers
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_creation_that_was_interrupted_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Before the collection of pieces, that of rows, and its index."""
    left, module = [calls], milvus()

    def ends(method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return method(*given, **named)

        return call

    small = manifest("none")
    with closing(module.connect(file_of(tmp_path))) as connection:
        with monkeypatch.context() as broken:
            for name in ("create_collection", "create_index"):
                broken.setattr(connection.client, name, ends(getattr(connection.client, name)))
            with pytest.raises(KeyboardInterrupt):
                module.MilvusStore.create(connection, "papers", small)
        there = module.exists(connection, "papers")
        assert there == (calls > 2)
        store = module.MilvusStore.open(connection, "papers") if there else None
        store = store or module.MilvusStore.create(connection, "papers", small)
        store.upsert(chunks(8), encoded(8))
        assert len(store.search("dense", encoded(1), 3)) == len(store.search("sparse", encoded(1), 3)) == 3


@pytest.mark.peers
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_kill_while_replacing_leaves_the_old_or_the_new(store: Any, tmp_path: Path, call: int) -> None:
    """Before the new pieces are written, before the rows, and before both are flushed."""
    store.close()
    process = start(tmp_path, f"replace:{call}")
    process.communicate()
    assert process.returncode == 9
    new = call > 2
    want: Any = encoded(8, seed=2 if new else 0)
    with reopened(tmp_path) as again:
        back: Any = again.vectors(ids_of(chunks(8)))
        np.testing.assert_allclose(back.multi.rows, want.multi.rows, atol=1e-3)
        np.testing.assert_allclose(back.dense, want.dense, atol=1e-3)
        assert {one.text == "new" for one in again.fetch(ids_of(chunks(8)))} == {new}
        assert len(pieces(again)) == (16 if call > 1 else 8)
        again.optimize()
        assert len(pieces(again)) == (16 if call > 1 else 8)  # a write that may be under way is left alone


def pieces(store: Any) -> list[str]:
    return [one["part"] for page in store._reader.pages(None, 250, ["part"], "papers__parts") for one in page]


@pytest.mark.peers
def test_optimize_deletes_what_interrupted_writes_left(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = milvus()
    before = pieces(store)
    with monkeypatch.context() as broken:
        right = module.words.to_row
        wrong = {"number": "none"}  # Milvus takes the pieces, and then refuses the row
        broken.setattr(
            module.words, "to_row", lambda *given: right(*given)._replace(row={**right(*given).row, **wrong})
        )
        with pytest.raises(StoreError, match="could not write"):
            store.upsert(chunks(4, "lost"), encoded(4))
    assert len(pieces(store)) == 12
    monkeypatch.setattr(module, "SWEEP_AFTER_S", -1)
    store.optimize()
    assert pieces(store) == before
    assert len(store.search("multi", encoded(1), 20)) == 8


@pytest.mark.peers
def test_pieces_that_are_gone_are_told(store: Any) -> None:
    gone = next(iter(pieces(store)))
    store._require_open().client.delete("papers__parts", ids=[gone])
    with pytest.raises(StoreCorruptError, match=r"lacks pieces of chunk 'd.#.', or others replace it"):
        store.score(encoded(1), ids_of(chunks(8)))
    assert len(store.search("dense", encoded(1), 8)) == 8


@pytest.mark.peers
def test_readers_and_writers_do_not_meet_in_the_middle(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are replaced for as long as others read them: what is read is one version or another, never a mix."""
    versions = [encoded(8, seed=seed) for seed in range(4)]

    def write() -> None:
        for turn in range(40):
            store.upsert(chunks(8), versions[turn % 4])

    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(write)
        looks = 0
        while not job.done() or looks < 5:
            back: Any = store.vectors(ids_of(chunks(8)))
            for i in range(8):
                assert any(is_of(back, version, i) for version in versions), i
            looks += 1
        job.result()
    assert len(pieces(store)) > 8  # the old ones are kept for a while
    monkeypatch.setattr(milvus(), "GRACE_S", 0.0)
    store.upsert(chunks(8), versions[0])
    assert len(pieces(store)) == 8


@pytest.mark.peers
def test_closing_deletes_what_was_replaced(store: Any, tmp_path: Path) -> None:
    store.upsert(chunks(8), encoded(8, seed=1))
    assert len(pieces(store)) == 16
    store.close()
    with reopened(tmp_path) as again:
        assert len(pieces(again)) == 8


def is_of(back: Any, version: Any, i: int) -> bool:
    same = back.multi[i].shape == version.multi[i].shape and np.allclose(back.multi[i], version.multi[i], atol=1e-3)
    return bool(same and np.allclose(back.dense[i], version.dense[i], atol=1e-3))


# ---- collections -------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.usefixtures("home")
def test_a_collection_finds_what_the_embedded_one_finds(tmp_path: Path, encoder: FakeEncoder) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for i, text in enumerate(CORPUS * 3):
        (documents / f"{i:02}.txt").write_text(f"{text} This is number {i}.", encoding="utf-8")
    url = file_of(tmp_path)
    with Collection("papers", encoder) as usual, Collection("papers", encoder, url=url) as papers:
        for one in (usual, papers):
            assert one.add_files(documents).added == len(CORPUS) * 3
            (documents / "00.txt").write_text("Another text about dense and sparse vectors.", encoding="utf-8")
            assert (one.add_files(documents).replaced, one.add_files(documents).unchanged) == (1, len(CORPUS) * 3)
            (documents / "00.txt").write_text(f"{CORPUS[0]} This is number 0.", encoding="utf-8")
        for mode in ("hybrid", "dense", "sparse", "multi"):
            for query in ("How is the sparse head trained?", "Fuchs", "天气", "number 7"):
                same_hits(usual.search(query, mode=mode, why=True), papers.search(query, mode=mode, why=True))
        assert papers.documents() == usual.documents()
        assert usual.manifest.engine != papers.manifest.engine == "milvus, token vectors as bytes"
        assert papers.delete("00.txt") == usual.delete("00.txt") == 1
    with Collection("papers", encoder, url=url, create=False) as again:
        assert again.count() == len(CORPUS) * 3 - 1
        again.snapshot(tmp_path / "copy")
    with Collection(tmp_path / "copy", encoder, create=False) as copy:
        assert copy.count() == len(CORPUS) * 3 - 1
    with pytest.raises(StoreError, match="no collection 'nothing' on this server"):
        Collection("nothing", encoder, url=url, create=False)


def same_hits(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right) > 0
    assert [one.score for one in left] == pytest.approx([one.score for one in right], abs=5e-3)  # int8 of two kinds
    by_id = {one.id: one for one in right}
    for one in left[: len(left) // 2]:
        assert by_id[one.id].chunk == one.chunk
        assert by_id[one.id].scores == pytest.approx(one.scores, abs=5e-3)
        assert by_id[one.id].why.terms == one.why.terms


@pytest.mark.peers
def test_the_command_line_takes_the_url(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The sparse head is trained by distillation.", encoding="utf-8")
    _, said = command(tmp_path, "index", "a.txt", "--into", "papers")
    assert "papers: 1 added; 1 chunk in all" in said
    found, said = command(tmp_path, "search", "sparse head", "--in", "papers", "--json")
    assert "distillation" in json.loads(found)[0]["text"]
    assert "Traceback" not in said


def command(tmp_path: Path, *words: str) -> tuple[str, str]:
    """What it printed, and what it said beside."""
    done = subprocess.run(
        [sys.executable, "-m", "threefold", *words, "--url", file_of(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return done.stdout, done.stderr
