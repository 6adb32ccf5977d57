"""Clients and machines that misbehave, over a socket: every fault has an end, and the next request is answered."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3
from tests.serve.fakes import START_S, ServedEncoder, make_server, serving
from tests.serve.runners import Death

from threefold.encoder.encoder import Encoder
from threefold.errors import NumericalError
from threefold.serve import queue
from threefold.serve.connection import Connection
from threefold.serve.keys import create_key
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Output, Row

MIB = 2**20


@contextmanager
def client_of(server: Server) -> Iterator[httpx.Client]:
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


@contextmanager
def raw(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), START_S) as connection:
        yield connection


def is_well(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    response = client.post("/embed", json={"inputs": "a fox"})
    assert response.status_code == 200
    assert np.linalg.norm(response.json()[0]) == pytest.approx(1.0, abs=1e-4)


def send_for_ever(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)


def status_of(connection: socket.socket) -> int:
    """The status line of the answer that comes."""
    head = b""
    while b"\r\n" not in head:
        part = connection.recv(4_096)
        assert part, "closed without an answer"
        head += part
    return int(head.split(b" ", 2)[1])


# ---- bodies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(served: ServedEncoder) -> Iterator[httpx.Client]:
    with client_of(make_server(served)) as client:
        yield client


def test_100_mb_that_are_announced_are_refused_before_they_are_sent(client: httpx.Client) -> None:
    with raw(client) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n{")
        assert status_of(connection) == 413
    is_well(client)


def test_100_mb_that_are_not_announced_are_cut_off_at_the_limit(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets its answer in the middle of sending; one that goes on all the same is cut off."""
    monkeypatch.setattr(Connection, "linger_s", 0.05)
    piece = b"100000\r\n" + b" " * MIB + b"\r\n"  # 1 MiB
    with raw(client) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        while not select.select([connection], [], [], 0.0)[0]:
            connection.sendall(piece)
            sent += 1
        assert sent > ServeConfig().max_body_bytes // MIB
        assert status_of(connection) == 413
        with pytest.raises(ConnectionError):
            send_for_ever(connection, piece)
    is_well(client)


@pytest.mark.parametrize(
    "body",
    [b'{"inputs": "\xff\xfe"}', b"\xff", b'{"inputs": "\xed\xa0\x80"}', b'{"inputs": "\\ud800"}'],
    ids=["bytes", "alone", "surrogate", "escaped surrogate"],
)
def test_what_is_not_utf_8_is_the_fault_of_the_client(client: httpx.Client, body: bytes) -> None:
    for path in ("/embed", "/v1/embeddings", "/rerank", "/pooling"):
        response = client.post(path, content=body)
        assert 400 <= response.status_code < 500, response.text
        response.json()
    is_well(client)


def test_bytes_that_are_not_text_in_the_head(client: httpx.Client) -> None:
    headers = {b"x-request-id": b"\xff\xfe", b"authorization": b"Bearer \xff", b"x-api-key": b"\xe9"}
    assert client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200
    for path in ("/v1/models/%ff%fe", "/%00", "/collections/%ff"):
        assert client.get(path).status_code == 404
    with raw(client) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n")
        assert status_of(connection) == 400
    is_well(client)


# ---- connections -------------------------------------------------------------------------------------------


#: Opens connections, says so, and holds them until its input ends.
HOLD = """
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_idle_connections_do_not_stop_the_others(served: ServedEncoder, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"{count:,} connections need as many file descriptors; the limit is {hard:,} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    try:
        with client_of(make_server(served)) as client:
            command = [sys.executable, "-c", HOLD, str(client.base_url.port), str(count)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as idle:
                assert idle.stdout is not None
                assert idle.stdout.readline() == "held\n"
                is_well(client)
                idle.communicate()
                assert idle.returncode == 0
            is_well(client)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_head_that_comes_byte_by_byte_is_cut_off_and_a_quiet_client_is_not(served: ServedEncoder) -> None:
    with client_of(make_server(served, ServeConfig(body_s=0.1))) as client:
        with raw(client) as silent, raw(client) as slow, raw(client) as second:
            slow.sendall(b"POST /embed HTTP/1.1\r\nho")
            second.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert status_of(second) == 200
            second.sendall(b"GET /hea")
            assert silent.recv(1) == b""
            assert slow.recv(1) == b""
            while part := second.recv(4_096):  # the rest of the first answer
                assert part
        with raw(client) as quiet:
            for _ in range(2):
                quiet.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
                assert status_of(quiet) == 200
                threading.Event().wait(0.2)
        is_well(client)


def test_clients_that_go_in_the_middle_of_everything(served: ServedEncoder) -> None:
    body = json.dumps({"inputs": ["a fox"] * 8}).encode()
    request = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    server = make_server(served)
    with client_of(server) as client:
        for end in range(0, len(request) + 1, 7):
            with raw(client) as connection:
                connection.sendall(request[:end])
        is_well(client)
        assert server.embedder.engine.queued_tokens == 0


class Mortal(ServedEncoder):
    """Its worker thread dies in the next batch."""

    dying = False

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        if self.dying:
            self.dying = False
            raise Death("killed in flight")
        return super().encode_tokens(tokens, outputs)


def test_a_worker_that_dies_in_flight_is_replaced_and_every_request_is_answered(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "RESTART_S", 0.01)
    encoder = Mortal(tokenizer, name="mortal", max_tokens=64)
    server = make_server(encoder)
    words = ["fox", "dog", "box", "head"] * 3
    with client_of(server) as client, ThreadPoolExecutor(6) as pool:
        expected = encoder.encode(words).dense
        assert expected is not None
        encoder.dying = True
        found = list(pool.map(lambda word: client.post("/embed", json={"inputs": word}), words))
        assert [response.status_code for response in found] == [200] * len(words)
        np.testing.assert_allclose([response.json()[0] for response in found], expected, atol=1e-6)
        assert server.embedder.engine.restarts == 1
        is_well(client)


# ---- weights, disk, tenants --------------------------------------------------------------------------------


def damaged(folder: Path, rows: Any) -> Path:
    """A tiny checkpoint with NaN in rows of its word table."""
    bge_m3(folder, weights="safetensors")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][rows] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_a_checkpoint_of_nan_is_not_served(tmp_path: Path) -> None:
    encoder = Encoder(damaged(tmp_path / "m", slice(None)), device="cpu", precision="float32")
    server = Server(ServeConfig(), lambda: encoder)
    with pytest.raises(NumericalError, match="its weights are damaged"):
        asyncio.run(server.start())


def test_a_word_of_nan_is_an_error_and_never_a_vector(tmp_path: Path) -> None:
    whole = Encoder(bge_m3(tmp_path / "whole"), device="cpu", precision="float32")
    fox = {piece.id for piece in whole.tokenizer.pieces("fox")} - {piece.id for piece in whole.tokenizer.pieces("a")}
    encoder = Encoder(damaged(tmp_path / "m", sorted(fox)), device="cpu", precision="float32")
    with client_of(Server(ServeConfig(), lambda: encoder)) as client:
        expected = whole.encode(["a"]).dense
        assert expected is not None
        with ThreadPoolExecutor(4) as pool:  # in one batch: the good one is not harmed
            found = list(pool.map(lambda text: client.post("/embed", json={"inputs": text}), ["a", "fox"] * 4))
        for good, bad in zip(found[::2], found[1::2], strict=True):
            np.testing.assert_allclose(good.json()[0], expected[0], atol=1e-5)
            assert bad.status_code == 424  # TEI's status for a model that failed
            assert "its weights are damaged" in bad.json()["error"]
        assert client.get("/health").status_code == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 160 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted only as root; tests/store/test_crash.py covers the refusal")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_the_upload_with_a_reason_and_loses_nothing(served: ServedEncoder, small_disk: Path) -> None:
    def documents() -> Iterator[bytes]:
        for i in range(2_000):
            blob = random.Random(i).randbytes(100_000).hex()  # does not shrink: the engine compresses what it can
            yield json.dumps({"id": f"d{i}", "text": "a fox", "metadata": {"blob": blob}}).encode() + b"\n"

    with client_of(make_server(served, ServeConfig(collections=str(small_disk)))) as client:
        assert client.put("/collections/papers").status_code == 201
        with client.stream("POST", "/collections/papers/documents", content=documents()) as response:
            last = [json.loads(line) for line in response.iter_lines()][-1]
        assert "nearly full" in json.dumps(last["error"])
        kept = client.get("/collections/papers").json()["documents"]
        assert kept > 0
        hits = client.post("/collections/papers/search", json={"query": "fox", "k": 3}).json()["hits"]
        assert len(hits) == min(3, kept)
        is_well(client)


def test_no_answer_ever_holds_what_another_key_asked_or_stored(served: ServedEncoder, tmp_path: Path) -> None:
    """Eight threads of two tenants at once, on collections of the same name: every answer is the tenant's own."""
    keys, scopes = tmp_path / "keys.json", ["embed", "search", "write"]
    heads = {who: {"x-api-key": create_key(keys, who, scopes, f"team-{who}")[0]} for who in ("ann", "bob")}
    words = {"ann": "fox", "bob": "liquor"}
    vectors = {who: served.encode([word]).dense for who, word in words.items()}
    config = ServeConfig(collections=str(tmp_path / "all"), keys_file=str(keys))
    with client_of(make_server(served, config)) as client:
        for who, head in heads.items():
            assert client.put("/collections/notes", headers=head).status_code == 201
            body = json.dumps({"id": who, "text": f"{words[who]} of {who}"}).encode()
            assert client.post("/collections/notes/documents", content=body, headers=head).status_code == 200

        def ask(who: str) -> None:
            vector = client.post("/embed", json={"inputs": words[who]}, headers=heads[who]).json()[0]
            expected = vectors[who]
            assert expected is not None
            np.testing.assert_allclose(vector, expected[0], atol=1e-6)
            found = client.post("/collections/notes/search", json={"query": "of"}, headers=heads[who])
            assert [hit["document_id"] for hit in found.json()["hits"]] == [who]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, ["ann", "bob"] * 40))
