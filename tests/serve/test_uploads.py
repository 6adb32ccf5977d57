"""Uploads that stall, are overtaken, or lose their collection: they keep nobody else waiting, and end with a reason."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.fakes import START_S, ServedEncoder, make_server, serving

from threefold.collection import Collection
from threefold.ingest import AddReport, Progress
from threefold.serve import adding, server
from threefold.serve.app import build
from threefold.serve.keys import Key, change_key, create_key, revoke_key
from threefold.serve.library import Library
from threefold.serve.settings import ServeConfig
from threefold.serve.threads import Threads
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Document, Output, Row

HEAD = b"POST /collections/%s/documents HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@contextmanager
def client_of(encoder: ServedEncoder, root: Path, **options: Any) -> Iterator[httpx.Client]:
    config = ServeConfig(collections=str(root), **options)
    with serving(make_server(encoder, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert client.put("/collections/aa").status_code == 201
        assert client.put("/collections/bb").status_code == 201
        yield client


@contextmanager
def upload(client: httpx.Client, name: bytes, *documents: dict[str, Any]) -> Iterator[socket.socket]:
    """An upload that has begun, and sends no more than these."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), START_S) as connection:
        body = b"".join(json.dumps(one).encode() + b"\n" for one in documents)
        connection.sendall(HEAD % name + (b"%x\r\n%s\r\n" % (len(body), body) if body else b""))
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        yield connection


def line_of(connection: socket.socket, kind: str) -> dict[str, Any]:
    """The line of the answer that is a `report`, or an `error`."""
    received, start = b"", f'{{"{kind}"'.encode()
    while b"\n" not in received.partition(start)[2]:
        part = connection.recv(4_096)
        assert part, received
        received += part
    found: dict[str, Any] = json.loads(start + received.partition(start)[2].split(b"\n")[0])
    return found


def add(client: httpx.Client, name: str, *ids: str) -> dict[str, Any]:
    body = b"\n".join(json.dumps({"id": id, "text": f"a fox {id}"}).encode() for id in ids)
    lines = client.post(f"/collections/{name}/documents", content=body).text.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_uploads_that_stall_keep_nobody_from_writing(served: ServedEncoder, tmp_path: Path) -> None:
    with client_of(served, tmp_path) as client, ExitStack() as stalled:
        for _ in range(server.ADDING + 1):
            stalled.enter_context(upload(client, b"aa"))
        assert add(client, "aa", "one", "two")["report"]["added"] == 2
        assert add(client, "bb", "one")["report"]["added"] == 1
        assert client.delete("/collections/aa/documents/one").json() == {"deleted_chunks": 1}


def test_an_upload_that_stalls_is_ended_and_what_had_come_is_stored(served: ServedEncoder, tmp_path: Path) -> None:
    with (
        client_of(served, tmp_path, body_s=0.1) as client,
        upload(client, b"aa", {"id": "one", "text": "a fox"}, {"id": "two", "text": "a dog"}) as connection,
    ):
        error = line_of(connection, "error")["error"]
        assert error == {"message": "nothing more of the body has come for 0.1 s; what was stored stays", "status": 408}
        assert client.get("/collections/aa").json()["documents"] == 2


def test_a_slow_upload_is_stored_while_it_goes_on(served: ServedEncoder, tmp_path: Path) -> None:
    with client_of(served, tmp_path) as client, upload(client, b"aa", {"id": "one", "text": "a fox"}) as connection:
        while client.get("/collections/aa").json()["documents"] == 0:
            pass
        body = b'{"id": "two", "text": "a dog"}\n{"id": "one", "text": "other"}'
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        report = line_of(connection, "report")["report"]
    assert (report["added"], report["replaced"], report["skipped"], report["chunks"]) == (2, 0, 1, 2)
    assert report["reasons"] == [{"line": 3, "reason": "the id 'one' occurred before in this upload"}]


def test_blocks_add_up(served: ServedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "BLOCK_LINES", 2)
    with client_of(served, tmp_path) as client:
        report = add(client, "aa", "a", "b", "c", "d", "a", "e", "e")["report"]
        assert (report["added"], report["skipped"], report["chunks"]) == (5, 2, 5)
        assert [one["line"] for one in report["reasons"]] == [5, 7]
        whole = served.tokenizer.count([f"a fox {id}" for id in "abcde"]).sum()
        assert report["tokens"] == whole
        assert add(client, "aa", "a", "b", "c", "x")["report"]["unchanged"] == 3


def test_an_id_is_free_while_nothing_was_taken_under_it(served: ServedEncoder, tmp_path: Path) -> None:
    with client_of(served, tmp_path) as client:
        body = '{"id": "a", "text": " "}\n{"id": "a", "text": "a fox"}\n'
        lines = client.post("/collections/aa/documents", content=body).text.splitlines()
        report = json.loads(lines[-1])["report"]
        assert (report["added"], report["skipped"]) == (1, 1)
        assert "there is no text in it" in report["reasons"][0]["reason"]


def test_a_slow_body_loses_nothing_on_servers_whose_receive_cannot_be_cancelled(
    served: ServedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "PAUSE_S", 0.02)

    async def body() -> AsyncIterator[bytes]:
        for id in "abc":
            await asyncio.sleep(0.1)
            yield json.dumps({"id": id, "text": f"a fox {id}"}).encode() + b"\n"

    async def added() -> dict[str, Any]:
        transport = httpx.ASGITransport(build(make_server(served, ServeConfig(collections=str(tmp_path)))))
        async with (
            transport.app.router.lifespan_context(transport.app),  # type: ignore[attr-defined]
            httpx.AsyncClient(transport=transport, base_url="http://server", timeout=START_S) as client,
        ):
            assert (await client.put("/collections/aa")).status_code == 201
            answer = await client.post("/collections/aa/documents", content=body())
            found: dict[str, Any] = json.loads(answer.text.splitlines()[-1])["report"]
            return found

    assert asyncio.run(added())["added"] == 3


def blocked(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> tuple[threading.Semaphore, threading.Event]:
    """A method that says when it has begun, and stays until it is let go."""
    began, free = threading.Semaphore(0), threading.Event()

    def wait(*arguments: Any, **options: Any) -> int:
        began.release()
        assert free.wait(START_S)
        return 1

    monkeypatch.setattr(owner, name, wait)
    return began, free


@pytest.mark.parametrize(
    ("owner", "method", "path"),
    [
        (Collection, "DELETE", "/collections/aa/documents/one"),
        (Collection, "POST", "/collections/aa/documents/delete"),
        (Library, "DELETE", "/collections/aa"),
    ],
)
def test_what_waits_to_write_leaves_the_threads_that_read(
    served: ServedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, path: str
) -> None:
    for threads in ("SEARCHING", "CHANGING"):
        monkeypatch.setattr(server, threads, 1, raising=False)
    with client_of(served, tmp_path) as client, ThreadPoolExecutor() as pool:
        began, free = blocked(monkeypatch, owner, "delete")
        waiting = [pool.submit(client.request, method, path, json={"ids": ["one"]}) for _ in range(3)]
        try:
            assert began.acquire(timeout=START_S)
            assert client.get("/collections").status_code == 200
            assert client.post("/collections/bb/search", json={"query": "a fox"}).status_code == 200
        finally:
            free.set()
        assert {one.result().status_code for one in waiting} == {200}


class Held(ServedEncoder):
    """Waits inside a batch once it is told to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, name="held", max_tokens=64)
        self.free, self.began = threading.Event(), threading.Event()
        self.holding = False

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        if self.holding:
            self.began.set()
            assert self.free.wait(START_S)
        return super().encode_tokens(tokens, outputs)


def test_an_upload_to_a_collection_that_is_dropped_meanwhile(tokenizer: Tokenizer, tmp_path: Path) -> None:
    held = Held(tokenizer)
    with client_of(held, tmp_path) as client, ThreadPoolExecutor() as pool:
        held.holding = True
        running = pool.submit(add, client, "aa", "one")
        assert held.began.wait(START_S)
        try:
            assert client.delete("/collections/aa").json() == {"deleted": True}
        finally:
            held.free.set()
        error = running.result()["error"]
    assert error == {"message": "the collection 'aa' was deleted meanwhile", "status": 409}


def test_errors_of_the_store_do_not_name_folders_of_the_server(
    served: ServedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(served, tmp_path) as client:
        (tmp_path / "default" / "cc").mkdir()
        (tmp_path / "default" / "cc" / "manifest.json").write_text("{")
        refused = client.get("/collections/cc")
        assert refused.status_code == 500
        assert refused.json()["error"]["message"].startswith("cc")
        assert str(tmp_path) not in refused.text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda path, key: revoke_key(path, key.id),
            {"message": "the API key is not known, or was revoked", "status": 401},
        ),
        (
            lambda path, key: change_key(path, key.id, tokens_per_day=1),
            {"message": "this API key has used its 1 tokens per day", "status": 429},
        ),
    ],
    ids=["revoked", "used up"],
)
def test_an_upload_ends_when_its_key_may_do_nothing_more(
    served: ServedEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Key], Key],
    error: dict[str, Any],
) -> None:
    monkeypatch.setattr(adding, "BLOCK_LINES", 1)
    keys = tmp_path / "keys.json"
    reading, writing = (create_key(keys, scope, [scope]) for scope in ("search", "write"))
    config = ServeConfig(collections=str(tmp_path / "all"), keys_file=str(keys))
    with serving(make_server(served, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        mine, other = ({"x-api-key": secret} for secret, _ in (writing, reading))
        client.put("/collections/aa", headers=mine)

        def stored() -> int:
            found: int = httpx.get(f"{url}/collections/aa", headers=other, timeout=START_S).json()["documents"]
            return found

        def body() -> Iterator[bytes]:
            yield b'{"id": "one", "text": "a fox"}\n'
            while not stored():
                pass
            change(keys, writing[1])
            yield b'{"id": "two", "text": "a dog"}\n'

        answer = client.post("/collections/aa/documents", content=body(), headers=mine)
        assert json.loads(answer.text.splitlines()[-1])["error"] == error
        assert stored() == 1


class Parts:
    """A request whose body comes in these parts, from a client that stays."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = list(reversed(parts))

    async def receive(self) -> dict[str, Any]:
        if not self._parts:
            await asyncio.Event().wait()
        part = self._parts.pop()
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}


async def added(parts: Sequence[bytes]) -> tuple[list[Document], dict[str, Any]]:
    """What a body adds, and the last line of the answer."""
    found: list[Document] = []

    def add(documents: Iterable[Document], progress: Progress) -> AddReport:
        found.extend(documents)
        return AddReport()

    request, limits, threads = Parts(parts), adding.BodyLimits(16 * 2**20, START_S), Threads("test", 1)
    running = adding.Adding(add, request, limits, lambda: None, lambda tokens: None, threads)  # type: ignore[arg-type]
    lines = [json.loads(line) async for line in running.run()]
    threads.close()
    return found, lines[-1]


def test_lines_may_be_cut_anywhere() -> None:
    body = b"".join(
        json.dumps({"id": id, "text": "ein Füchslein"}, ensure_ascii=False).encode() + b"\n" for id in "abc"
    )
    for size in (1, 2, 7, len(body)):
        for end in (len(body), len(body) - 1):  # the last line may have no end
            found, last = asyncio.run(added([body[i : min(i + size, end)] for i in range(0, end, size)]))
            assert [document.id for document in found] == ["a", "b", "c"]
            assert {document.text for document in found} == {"ein Füchslein"}
            assert "report" in last


def test_a_long_line_in_small_parts_does_not_keep_the_server_busy() -> None:
    """Read again with every part, a line of some megabytes that comes byte by byte takes a core of everybody else."""
    start, end = b'{"id": "a", "text": "', b'"}'
    began = time.process_time()
    found, _ = asyncio.run(added([start, b"x" * 4_000_000, *[b"y"] * 2_000, end]))
    assert time.process_time() - began < 1.0
    assert len(found[0].text) == 4_002_000


def test_a_collection_of_the_same_name_may_come_and_go_while_the_last_one_is_still_being_deleted(
    served: ServedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(tmp_path, served)
    with monkeypatch.context() as slow:
        slow.setattr(shutil, "rmtree", lambda path, **options: None)  # as if it took very long
        for _ in range(3):
            library.create("default", "aa", None, None)
            library.delete("default", "aa")
    assert len(list((tmp_path / "default").iterdir())) == 3
    assert library.names("default") == []
    Library(tmp_path, served)  # the next server ends what was begun
    assert not list((tmp_path / "default").iterdir())


def test_a_collection_that_another_process_has_open_is_not_deleted(served: ServedEncoder, tmp_path: Path) -> None:
    """The other one goes on to add to it, and what it was told is stored would be gone."""
    with client_of(served, tmp_path) as client, Collection(tmp_path / "default" / "cc", served) as theirs:
        refused = client.delete("/collections/cc")
        assert refused.status_code == 409
        assert "another process has this collection open" in refused.json()["error"]["message"]
        assert theirs.add("a fox").added == 1
        theirs.close()
        assert client.delete("/collections/cc").status_code == 200


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_while_the_server_runs(served: ServedEncoder, tmp_path: Path, replaced: bool) -> None:
    """What was in it is not found any longer, and every other collection is closed well."""
    with client_of(served, tmp_path) as client:
        for name in ("aa", "bb"):
            assert add(client, name, "one")["report"]["added"] == 1
        shutil.rmtree(tmp_path / "default" / "bb")
        if replaced:
            with Collection(tmp_path / "default" / "bb", served) as other:
                other.add("another text")
        found = client.post("/collections/bb/search", json={"query": "a fox"})
        assert found.status_code == (200 if replaced else 404)
        assert [hit["text"] for hit in found.json().get("hits", ())] == ["another text"] * replaced
        assert client.put("/collections/bb").status_code == (409 if replaced else 201)


def test_one_collection_that_cannot_be_closed_keeps_no_other_open(served: ServedEncoder, tmp_path: Path) -> None:
    library = Library(tmp_path, served)
    for name in ("aa", "bb", "cc"):
        library.create("default", name, None, None)
        library.get("default", name).add("a fox")
    shutil.rmtree(tmp_path / "default" / "bb")
    library.close()
    for name in ("aa", "cc"):
        assert (tmp_path / "default" / name / "closed.json").exists()
