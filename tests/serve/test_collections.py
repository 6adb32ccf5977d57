"""Collections over a socket: documents stream in, searches agree with the library, tenants do not see each other."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.collection import Collection
from threefold.errors import UnavailableError
from threefold.serve import wire
from threefold.serve.keys import create_key
from threefold.serve.library import Library
from threefold.serve.settings import ServeConfig
from threefold.store.lock import FolderLock
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document

DOCUMENTS: list[dict[str, Any]] = [
    {"id": "fox", "text": "The quick brown fox jumps over the lazy dog.", "language": "en", "metadata": {"year": 2020}},
    {"id": "box", "text": "Pack my box with five dozen liquor jugs!", "title": "Box", "metadata": {"year": 2021}},
    {"id": "fuchs", "text": "Der schnelle braune Fuchs springt über den faulen Hund.", "language": "de"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collections")


@pytest.fixture(scope="module")
def client(root: Path, served: ServedEncoder, tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    server = make_server(served, ServeConfig(collections=str(root)), FakeCross(tokenizer))
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


def lines(documents: list[Any]) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in documents)


def add(client: httpx.Client, name: str, body: Any) -> dict[str, Any]:
    """The last line of the answer."""
    with client.stream("POST", f"/collections/{name}/documents", content=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("application/x-ndjson")
        found: dict[str, Any] = [json.loads(line) for line in response.iter_lines()][-1]
    return found


@pytest.fixture(scope="module")
def papers(client: httpx.Client) -> str:
    assert client.put("/collections/papers", json={"chunking": {"max_tokens": 32}}).status_code == 201
    assert add(client, "papers", lines(DOCUMENTS))["report"]["added"] == 3
    return "papers"


def test_the_life_of_a_collection(client: httpx.Client, root: Path) -> None:
    made = client.put("/collections/short")
    assert made.status_code == 201
    assert made.json()["name"] == "short"
    assert made.json()["model"] == "fake-m3"
    assert "short" in [one["name"] for one in client.get("/collections").json()["collections"]]
    again = client.put("/collections/short")
    assert again.status_code == 409
    report = add(client, "short", lines(DOCUMENTS))["report"]
    assert (report["added"], report["unchanged"], report["skipped"]) == (3, 0, 0)
    assert report["chunks"] >= 3
    assert report["tokens"] > 0
    repeated = add(client, "short", lines([*DOCUMENTS[:2], {**DOCUMENTS[2], "text": "neu"}]))["report"]
    assert (repeated["added"], repeated["replaced"], repeated["unchanged"]) == (0, 1, 2)
    listed = client.get("/collections/short/documents").json()["documents"]
    assert [one["id"] for one in listed] == ["box", "fox", "fuchs"]
    assert listed[0]["title"] == "Box"
    assert client.delete("/collections/short/documents/fox").json() == {"deleted_chunks": 1}
    assert client.delete("/collections/short/documents/fox").status_code == 404
    body = {"where": {"language": "de"}}
    assert client.post("/collections/short/documents/delete", json=body).json() == {"deleted_chunks": 1}
    assert client.get("/collections/short").json()["documents"] == 1
    assert client.delete("/collections/short").json() == {"deleted": True}
    assert client.get("/collections/short").status_code == 404
    assert not (root / "default" / "short").exists()


def test_search_says_what_the_library_says(
    client: httpx.Client, papers: str, served: ServedEncoder, tmp_path: Path
) -> None:
    given = [Document(**one) for one in DOCUMENTS]
    chunking = {"max_tokens": 32}
    with Collection(tmp_path / "same", served, chunking=_chunking(chunking)) as same:
        same.add(given)
        for options in (
            {},
            {"mode": "dense", "k": 1},
            {"why": True, "quote": True},
            {"where": {"year": {"gte": 2021}}},
        ):
            expected = [hit.to_dict() for hit in same.search("a quick fox", **options)]
            body = {"query": "a quick fox", **options}
            found = client.post(f"/collections/{papers}/search", json=body).json()["hits"]
            assert _rounded(found) == _rounded(json.loads(json.dumps(expected, default=float)))


def test_recommendations_are_those_of_the_library(
    client: httpx.Client, papers: str, served: ServedEncoder, tmp_path: Path
) -> None:
    with Collection(tmp_path / "same", served, chunking=_chunking({"max_tokens": 32})) as same:
        same.add([Document(**one) for one in DOCUMENTS])
        for options in ({"like": ["fox"]}, {"like": ["box", "fox#0"], "unlike": ["fuchs"], "half_life": 2.0}):
            expected = [hit.to_dict() for hit in same.recommend(**options)]
            found = client.post(f"/collections/{papers}/recommend", json=options).json()["hits"]
            assert _rounded(found) == _rounded(json.loads(json.dumps(expected, default=float)))
    varied = {"like": ["fox"], "k": 1, "diversify": {"relevance": 0.5}, "where": {"language": "de"}}
    (hit,) = client.post(f"/collections/{papers}/recommend", json=varied).json()["hits"]
    assert hit["document_id"] == "fuchs"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"like": []}, "like"),
        ({"like": ["nobody"]}, "no document and no chunk has the id 'nobody'. Take ids from the hits of a search"),
        ({"like": ["fox"], "half_life": 0}, "half_life"),
        ({"like": ["fox"], "query": "x"}, "query"),
        ({"like": ["fox"], "diversify": {"relevance": 2}}, "relevance must be from 0 to 1"),
    ],
)
def test_a_bad_recommendation_is_named(client: httpx.Client, papers: str, body: dict[str, Any], message: str) -> None:
    response = client.post(f"/collections/{papers}/recommend", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def _chunking(settings: dict[str, int]) -> Any:
    from threefold.config import Chunking

    return Chunking.from_dict(settings)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def test_hits_and_documents_are_written_where_they_keep_nobody_waiting(
    client: httpx.Client, papers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing: list[str] = []

    def noted(body: Any, *arguments: Any) -> Any:
        writing.append(threading.current_thread().name)
        return original(body, *arguments)

    original = wire.json_response
    monkeypatch.setattr(wire, "json_response", noted)
    assert client.post(f"/collections/{papers}/search", json={"query": "a fox"}).status_code == 200
    assert client.get(f"/collections/{papers}/documents").status_code == 200
    assert [name.startswith("threefold-search") for name in writing] == [True, True]


def test_retrievers_as_json_and_by_name(client: httpx.Client, papers: str) -> None:
    retriever = {
        "candidates": [{"representation": "dense", "k": 5}],
        "fuse": {"weights": {"dense": 1.0, "sparse": 0.0, "multi": 0.0}},
        "rerank": {"by": "multi"},
        "k": 2,
    }
    path = f"/collections/{papers}"
    by_json = client.post(f"{path}/search", json={"query": "a fox", "retriever": retriever}).json()["hits"]
    assert len(by_json) == 2
    assert client.put(f"{path}/retrievers/mine", json=retriever).status_code == 201
    assert client.get(f"{path}/retrievers").json()["retrievers"]["mine"]["k"] == 2
    named = client.post(f"{path}/search", json={"query": "a fox", "retriever": "mine", "k": 2}).json()["hits"]
    assert named == by_json
    cross = client.post(f"{path}/search", json={"query": "a fox", "rerank": {"by": "cross"}}).json()["hits"]
    assert cross[0]["document_id"] == "fox"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": ""}, 400, "the query is empty"),
        ({"query": "a", "k": 0}, 400, "k: Input should be greater"),
        ({"query": "a", "mode": "bm25"}, 400, "unknown mode 'bm25'"),
        ({"query": "a", "fusion": "max"}, 400, "fusion"),
        ({"query": "a", "foo": 1}, 400, "unknown field 'foo'"),
        ({"query": "a", "where": {"year": {"like": 1}}}, 400, "filter.year: unknown operator 'like'"),
        ({"query": "a", "retriever": {"candidates": [{"representation": "bm25"}]}}, 400, "retriever.candidates[0]"),
        ({"query": "a", "retriever": "nobody"}, 400, "there is no retriever 'nobody'"),
        ({"query": "a", "weights": {"dense": -1.0}}, 400, "weights"),
        ({"query": "a " * 200}, 400, "the query has more than the 64 tokens"),
    ],
)
def test_a_bad_search_is_named(
    client: httpx.Client, papers: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = client.post(f"/collections/{papers}/search", json=body)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)


def test_bad_lines_are_skipped_and_named_and_the_rest_is_taken(client: httpx.Client) -> None:
    client.put("/collections/bad")
    body = b"\n".join(
        [
            b'{"id": "a", "text": "a fox"}',
            b"",
            b"{",
            b"[1]",
            b'{"id": "b"}',
            b'{"id": 5, "text": "b"}',
            b'{"id": "c", "text": "c", "year": 1}',
            b'{"id": "d", "text": "\xff"}',
            b'{"id": "e", "text": "a dog", "metadata": {"n": 1}}\n',
        ]
    )
    report = add(client, "bad", body)["report"]
    assert (report["added"], report["skipped"]) == (2, 6)
    assert [one["line"] for one in report["reasons"]] == [3, 4, 5, 6, 7, 8]
    assert "unknown field 'year'" in report["reasons"][4]["reason"]
    client.delete("/collections/bad")


def test_thousands_of_documents_in_one_request(client: httpx.Client) -> None:
    client.put("/collections/many")
    text = "Pack my box with five dozen jugs"
    body = (json.dumps({"id": str(i), "text": f"{text} {i}"}).encode() + b"\n" for i in range(2_000))
    assert add(client, "many", body)["report"]["added"] == 2_000
    assert client.get("/collections/many").json()["documents"] == 2_000
    client.delete("/collections/many")


def test_an_upload_that_breaks_off_keeps_what_was_stored_and_can_be_repeated(client: httpx.Client) -> None:
    client.put("/collections/broken")
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as raw:
        head = b"POST /collections/broken/documents HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
        raw.sendall(head + lines(DOCUMENTS) + b"\n")
    report = add(client, "broken", lines(DOCUMENTS))["report"]
    assert report["added"] + report["unchanged"] == 3
    assert client.get("/collections/broken").json()["documents"] == 3
    client.delete("/collections/broken")


def test_many_searches_and_uploads_at_once_do_not_wait_for_each_other(client: httpx.Client, papers: str) -> None:
    """They have threads of their own: all of one pool, waiting for their query to be tokenized, would be a deadlock."""
    client.put("/collections/busy")
    with ThreadPoolExecutor(40) as pool:
        body = {"query": "a quick fox", "k": 1}
        searches = [pool.submit(client.post, f"/collections/{papers}/search", json=body) for _ in range(80)]
        uploads = [pool.submit(add, client, "busy", lines([{"id": str(i), "text": "a fox"}])) for i in range(20)]
        assert {one.result().status_code for one in searches} == {200}
        assert all("report" in one.result() for one in uploads)
    assert client.get("/collections/busy").json()["documents"] == 20
    client.delete("/collections/busy")


def test_names_are_folders_and_nothing_else(client: httpx.Client, root: Path, papers: str) -> None:
    for name in ("..", ".hidden", "a b", "x" * 65, "%2e%2e"):
        assert client.put(f"/collections/{name}").status_code in (400, 404, 405)
    assert client.put("/collections/a%2Fb").status_code in (400, 404)
    assert [path.name for path in root.iterdir()] == ["default"]


def test_a_name_for_a_retriever_that_is_no_file_is_refused(client: httpx.Client, papers: str) -> None:
    body = {"candidates": [{"representation": "dense", "k": 5}]}
    refused = client.put(f"/collections/{papers}/retrievers/{'a' * 300}", json=body)
    assert refused.status_code == 400
    assert "is not a name for a retriever" in refused.json()["error"]["message"]


def test_what_is_left_of_a_deletion_is_no_collection_and_goes_at_the_next_start(
    served: ServedEncoder, tmp_path: Path
) -> None:
    def leave(name: str) -> Path:
        (tmp_path / "default" / name).mkdir(parents=True)
        (tmp_path / "default" / name / "manifest.json").write_text("{}")
        return tmp_path / "default" / name

    before, kept = leave(".deleted-gone"), leave("kept")
    library = Library(tmp_path, served)
    assert not before.exists()
    while_running, foreign = leave(".deleted-gone"), leave("my papers")
    assert library.names("default") == ["kept"]
    Library(tmp_path, served)
    assert not while_running.exists()
    assert kept.exists()
    assert foreign.exists()


def test_making_one_collection_keeps_nobody_from_another(served: ServedEncoder, tmp_path: Path) -> None:
    library = Library(tmp_path, served)
    library.create("default", "papers", None, None)
    with ThreadPoolExecutor() as pool:
        with library._turns.of(tmp_path / "default" / "busy"):  # as while it is made
            assert pool.submit(library.get, "default", "papers").result(START_S).name == "papers"
            made = pool.submit(library.create, "default", "busy", None, None)
            closing = pool.submit(library.close)
        closing.result(START_S)
    assert made.exception() is None or isinstance(made.exception(), UnavailableError)
    for name in ("papers", "busy"):
        if (tmp_path / "default" / name).exists():
            FolderLock(tmp_path / "default" / name).release()  # closed, whoever came first
    with pytest.raises(UnavailableError, match="the server is shutting down"):
        library.get("default", "papers")
    assert library._turns.names() == set()


def test_wrong_settings_of_a_new_collection(client: httpx.Client) -> None:
    small = client.put("/collections/new", json={"chunking": {"max_tokens": 4}})
    assert small.status_code == 400
    assert small.json()["error"]["message"].startswith("chunking: max_tokens must be at least 8")
    pool = client.put("/collections/new", json={"multi_pool": 17})
    assert pool.status_code == 400
    assert "multi_pool" in pool.json()["error"]["message"]
    storage = client.put("/collections/new", json={"multi_storage": "float8"})
    assert storage.json()["error"]["param"] == "multi_storage"
    assert client.get("/collections/new").status_code == 404


def test_tenants_do_not_see_each_other(served: ServedEncoder, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    people = {
        who: {"authorization": f"Bearer {create_key(keys, who, scopes, namespace)[0]}"}
        for who, scopes, namespace in (
            ("ann", ["search", "write"], "team-a"),
            ("bob", ["search", "write"], "team-b"),
            ("reader", ["search"], "team-a"),
        )
    }
    config = ServeConfig(collections=str(tmp_path / "all"), keys_file=str(keys))
    with serving(make_server(served, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert client.put("/collections/secret", headers=people["ann"]).status_code == 201
        body = lines(DOCUMENTS)
        assert client.post("/collections/secret/documents", content=body, headers=people["ann"]).status_code == 200
        search = {"query": "a fox"}
        for who, status in (("ann", 200), ("reader", 200), ("bob", 404)):
            response = client.post("/collections/secret/search", json=search, headers=people[who])
            assert response.status_code == status
        assert client.get("/collections", headers=people["bob"]).json() == {"collections": []}
        assert "secret" not in client.get("/collections/secret", headers=people["bob"]).text.replace("'secret'", "")
        assert client.delete("/collections/secret", headers=people["bob"]).status_code == 404
        assert client.delete("/collections/secret", headers=people["reader"]).status_code == 403
        assert client.put("/collections/secret", headers=people["bob"]).status_code == 201  # a name of its own
        assert client.get("/collections/secret", headers=people["bob"]).json()["documents"] == 0


def test_a_server_without_a_folder_has_no_collections(http: httpx.Client) -> None:
    response = http.get("/collections")
    assert response.status_code == 404
    assert "--collections FOLDER" in response.json()["error"]["message"]


def test_collections_outlive_the_server(served: ServedEncoder, tmp_path: Path) -> None:
    config = ServeConfig(collections=str(tmp_path))
    with serving(make_server(served, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        client.put("/collections/kept")
        add(client, "kept", lines(DOCUMENTS))
    with serving(make_server(served, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        hits = client.post("/collections/kept/search", json={"query": DOCUMENTS[0]["text"], "k": 1}).json()["hits"]
        assert hits[0]["document_id"] == "fox"


def test_the_document_of_an_address_is_the_one_that_is_deleted(client: httpx.Client) -> None:
    ids = ["a", "a\n", "a\nb", "\n", "a/b", "é", "e\u0301", "A", "é" * 5_000]
    client.put("/collections/ids")
    assert add(client, "ids", lines([{"id": id, "text": "a fox"} for id in ids]))["report"]["added"] == len(ids)
    for id in reversed(ids):
        assert client.delete(f"/collections/ids/documents/{quote(id, safe='')}").status_code == 200
        ids = ids[:-1]
        left = client.get("/collections/ids/documents").json()["documents"]
        assert [one["id"] for one in left] == sorted(ids)
    client.delete("/collections/ids")
