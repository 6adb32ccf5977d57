"""Keys, limits, load, clients that go, logs, metrics and health, over a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.serve import heads
from threefold.serve.keys import create_key, revoke_key
from threefold.serve.logs import FACTS, JsonLines, Lines
from threefold.serve.models import CLIP_CHARACTERS, Answer, Embedder, Read
from threefold.serve.queue import Limits
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Output, Row


class HeldEncoder(ServedEncoder):
    """Waits inside a batch until it is released."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, name="held", max_tokens=64)
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Semaphore(0)
        self.batches: list[int] = []

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        self.batches.append(len(tokens))
        self.began.release()
        assert self.free.wait(START_S)
        return super().encode_tokens(tokens, outputs)

    def hold(self) -> None:
        """From now on batches stay; those of warming up are over."""
        while self.began.acquire(blocking=False):
            pass
        self.batches.clear()
        self.free.clear()


@contextmanager
def client_of(server: Server) -> Iterator[httpx.Client]:
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


@pytest.fixture
def held(tokenizer: Tokenizer) -> HeldEncoder:
    return HeldEncoder(tokenizer)


def embed(client: httpx.Client, text: str = "a fox", **options: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "held", "input": text}, **options)


# ---- load --------------------------------------------------------------------------------------------------


def test_too_much_is_refused_in_every_dialect_with_the_time_to_come_back(held: HeldEncoder) -> None:
    server = make_server(held, ServeConfig(limits=Limits(queued_tokens=20)))
    with client_of(server) as client, ThreadPoolExecutor() as pool:
        held.hold()
        running = pool.submit(embed, client)
        assert held.began.acquire(timeout=START_S)
        waiting = pool.submit(embed, client, "fox " * 15)
        while server.embedder.engine.queued_tokens == 0:
            pass
        refused = {
            "openai": embed(client, "fox " * 10),
            "tei": client.post("/embed", json={"inputs": "fox " * 10}),
            "cohere": client.post("/v1/rerank", json={"query": "a", "documents": ["fox " * 10]}),
            "vllm": client.post("/pooling", json={"input": "fox " * 10, "task": "embed"}),
            "ollama": client.post("/api/embed", json={"model": "held", "input": "fox " * 10}),
        }
        held.free.set()
        assert running.result().status_code == waiting.result().status_code == 200
    for response in refused.values():
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
    assert refused["openai"].json()["error"]["code"] == "rate_limit_exceeded"
    assert refused["tei"].json()["error_type"] == "Overloaded"
    assert set(refused["cohere"].json()) == {"message", "id"}
    assert refused["vllm"].json()["error"]["code"] == 429
    assert set(refused["ollama"].json()) == {"error"}


def test_a_client_that_goes_frees_its_place(held: HeldEncoder) -> None:
    server = make_server(held)
    with client_of(server) as client, ThreadPoolExecutor() as pool:
        held.hold()
        running = pool.submit(embed, client)
        assert held.began.acquire(timeout=START_S)
        body = json.dumps({"model": "held", "input": "fox " * 10}).encode()
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as raw:
            head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            while server.embedder.engine.queued_tokens == 0:
                pass
        while server.embedder.engine.queued_tokens:  # closed: its text leaves the queue, the batch still runs
            pass
        held.free.set()
        assert running.result().status_code == 200
    assert held.batches == [1]


def test_concurrent_requests_share_batches_and_get_their_own_answers(held: HeldEncoder, tokenizer: Tokenizer) -> None:
    words = ["fox", "dog", "box", "head", "folder", "chunk", "score", "pass"]
    with client_of(make_server(held)) as client, ThreadPoolExecutor(9) as pool:
        alone = {word: embed(client, word).json() for word in words}
        held.hold()
        first = pool.submit(embed, client)
        assert held.began.acquire(timeout=START_S)
        others = {word: pool.submit(embed, client, word) for word in words}
        done = threading.Event()
        while not done.wait(0.01):
            server_waits = sum(not one.done() for one in others.values())
            if server_waits == len(words) and _queued(client) >= sum(tokenizer.count(words)):
                done.set()
        held.free.set()
        assert first.result().status_code == 200
        assert {word: one.result().json() for word, one in others.items()} == alone
    assert held.batches == [1, len(words)]


def _queued(client: httpx.Client) -> float:
    text = client.get("/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("threefold_queued_tokens{"))


def test_a_deadline_is_504(held: HeldEncoder) -> None:
    with client_of(make_server(held)) as client:
        held.hold()
        response = embed(client, headers={"x-timeout-ms": "20"})
        held.free.set()
    assert response.status_code == 504
    assert "no answer within 0.02 s" in response.json()["error"]["message"]


def test_a_search_has_a_deadline_too(held: HeldEncoder, tmp_path: Path) -> None:
    with client_of(make_server(held, ServeConfig(collections=str(tmp_path)))) as client:
        client.put("/collections/papers")
        held.hold()
        body, headers = {"query": "fox"}, {"x-timeout-ms": "20"}
        late = client.post("/collections/papers/search", json=body, headers=headers)
        held.free.set()
        assert client.post("/collections/papers/search", json=body).status_code == 200
    assert late.status_code == 504
    assert "no answer within 0.02 s" in late.json()["error"]["message"]


# ---- limits ------------------------------------------------------------------------------------------------


def test_limits_of_a_request(held: HeldEncoder) -> None:
    config = ServeConfig(max_body_bytes=2_000, max_request_tokens=100, max_multi_tokens=40, max_input_tokens=30)
    with client_of(make_server(held, config)) as client:
        big = embed(client, "x" * 3_000)
        assert big.status_code == 413
        assert big.json()["error"]["code"] == "request_too_large"
        plain = client.post("/embed", content=b"x" * 3_000)
        assert plain.status_code == 413
        assert plain.headers["content-type"].startswith("text/plain")
        chunked = client.post("/v1/embeddings", content=iter([b"x" * 1_500] * 2))
        assert chunked.status_code == 413
        many = client.post("/embed", json={"inputs": ["fox " * 25] * 5})
        assert "the limit is 100" in many.json()["error"]
        for types in (["dense"], ["multi_vector"]):
            ours = {"model": "held", "input": ["fox " * 25] * 5, "embedding_types": types, "truncate": "end"}
            whole = client.post("/v1/embeddings", json=ours)
            assert (whole.status_code, whole.json()["error"]["code"]) == (400, "request_too_large")
        multi = client.post("/embed_all", json={"inputs": ["fox " * 25] * 2})
        assert "with a vector for each the limit is 40" in multi.json()["error"]
        assert client.get("/info").json()["max_input_length"] == 30


def test_scores_have_the_limits_of_a_request(held: HeldEncoder, tokenizer: Tokenizer) -> None:
    config = ServeConfig(max_request_tokens=60, max_inputs=8)
    texts = [f"{'fox ' * 25}{i}" for i in range(4)]
    bodies = {
        "/rerank": {"query": "a", "texts": texts},
        "/v1/rerank": {"query": "a", "documents": texts},
        "/score": {"text_1": "a", "text_2": texts},
        "/vertex": {"instances": [{"query": "a", "texts": [text]} for text in texts]},
    }
    with client_of(make_server(held, config)) as client:
        held.hold()  # nothing reaches the model
        for path, body in bodies.items():
            assert "the limit is 60. Send less" in client.post(path, json=body).text
        embed = client.post("/vertex", json={"instances": [{"inputs": text} for text in texts]})
        assert "the limit is 60. Send less" in embed.text
        many = client.post("/vertex", json={"instances": [{"inputs": ["a"] * 5}, {"query": "a", "texts": ["a"] * 4}]})
        assert many.json()["error"] == "batch size 9 > maximum allowed batch size 8"
        held.free.set()
    cross = ServeConfig(max_request_tokens=100)
    with client_of(make_server(held, cross, FakeCross(tokenizer))) as client:
        for path, body in {**bodies, "/predict": {"inputs": [["a", text] for text in texts]}}.items():
            assert "the limit is 100. Send less" in client.post(path, json=body).text


def test_token_vectors_of_queries_have_a_limit_and_those_of_texts_come_in_blocks(
    held: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'fox ' * (5 * i)}{i}" for i in range(1, 9)]
    body = {"query": "a fox", "texts": [*texts, texts[0]], "raw_scores": True}
    with client_of(make_server(held, ServeConfig(max_multi_tokens=60))) as client:
        whole = client.post("/rerank", json=body)
        monkeypatch.setattr(heads, "BLOCK_TOKENS", 50)
        parts = client.post("/rerank", json=body)
        assert len(whole.json()) == 9
        assert [one["index"] for one in parts.json()] == [one["index"] for one in whole.json()]
        for one, other in zip(parts.json(), whole.json(), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        refused = client.post("/rerank", json=body | {"query": "fox " * 60})
        assert "with a vector for each the limit is 60. Send less" in refused.text


def test_the_deadline_is_of_all_blocks_together(held: HeldEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BLOCK_TOKENS", 20)
    body = {"query": "a fox", "texts": [f"{'fox ' * 12}{i}" for i in range(6)]}
    given = []

    async def slow(embedder: Embedder, read: Read, outputs: Any, **options: Any) -> Answer:
        given.append(options["deadline_s"])
        await asyncio.sleep(0.1)
        return await original(embedder, read, outputs, **options)

    original = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", slow)
    with client_of(make_server(held, ServeConfig(limits=Limits(deadline_s=0.25)))) as client:
        late = client.post("/rerank", json=body)
        assert (late.status_code, len(given) < 6) == (504, True)
        assert "no answer within 0.25 s" in late.text
        assert set(given) == {0.25}
        assert "no answer within 0.15 s" in client.post("/rerank", json=body, headers={"x-timeout-ms": "150"}).text


def test_tokenizing_has_the_limits_of_a_request(held: HeldEncoder) -> None:
    with client_of(make_server(held, ServeConfig(max_request_tokens=50))) as client:
        for path, body in {
            "/tokenize": {"inputs": ["fox " * 25] * 3},
            "/decode": {"ids": [[5] * 30, [5] * 30]},
        }.items():
            refused = client.post(path, json=body)
            assert refused.status_code == 422
            assert "the limit is 50" in refused.json()["error"]
        assert client.post("/tokenize", json={"prompt": "fox " * 60}).status_code == 400


def test_what_is_too_long_to_be_told_is_counted_and_not_made(
    held: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of an answer takes hundreds of bytes: a body of 16 MB would take gigabytes."""
    with client_of(make_server(held, ServeConfig(max_request_tokens=20_000))) as client:
        text = "a " * 19_990  # nearly as many as may be told
        (whole,) = client.post("/tokenize", json={"inputs": text, "add_special_tokens": False}).json()
        assert [piece["id"] for piece in whole] == [piece.id for piece in held.tokenizer.pieces(text)]
        monkeypatch.setattr(Tokenizer, "pieces", None)
        for body in ({"inputs": ["fox " * 50_000]}, {"prompt": "fox " * 50_000}):
            refused = client.post("/tokenize", json=body)
            assert 400 <= refused.status_code < 500
            assert "the limit is 20,000" in refused.text


def test_pairs_are_tokenized_in_pieces_and_never_more_than_is_read(
    held: HeldEncoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Tokenizer.encode_pairs

    def noted(self: Tokenizer, queries: Sequence[str], texts: Sequence[str], **options: Any) -> Tokens:
        sizes.append(sum(map(len, {*queries, *texts})))
        return original(self, queries, texts, **options)

    texts = ["fox " * 50_000, *(f"{'dog ' * 900}{i}" for i in range(12)), "a quick fox"]
    with client_of(make_server(held, cross=FakeCross(tokenizer))) as client:
        alone = [client.post("/rerank", json={"query": "a fox", "texts": [text]}).json()[0]["score"] for text in texts]
        monkeypatch.setattr(Tokenizer, "encode_pairs", noted)
        most = 64 * CLIP_CHARACTERS
        for query in ("a fox", "a fox" + " " * 15_000):  # a long query is not cut into tokens for every text
            sizes.clear()
            found = client.post("/rerank", json={"query": query, "texts": texts}).json()
            assert {one["index"]: one["score"] for one in found} == dict(enumerate(alone))
            assert max(sizes) <= 2 * most
            assert len(sizes) > 2
            assert sum(sizes) <= 2 * (most + sum(map(len, texts[1:])) + len(query))
        limited = client.post("/rerank", json={"query": "a fox", "texts": texts[:1], "truncate": False})
        assert limited.json()["error"].startswith("pair 0 has ")


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("pieces", "/tokenize", {"inputs": "a fox"}),
        ("decode", "/decode", {"ids": [5, 6]}),
        ("encode", "/embed", {"inputs": "a fox"}),
        ("encode", "/score", {"model": "held", "text_1": "a fox", "text_2": "a dog"}),
        ("encode_pairs", "/score", {"model": "fake-cross", "text_1": "a fox", "text_2": "a dog"}),
    ],
)
def test_tokenizing_keeps_nobody_waiting_and_has_the_deadline_of_the_request(
    held: HeldEncoder,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    path: str,
    body: dict[str, Any],
) -> None:
    began, free, original = threading.Event(), threading.Event(), getattr(Tokenizer, name)

    def slow(*arguments: Any, **options: Any) -> Any:
        began.set()
        assert free.wait(START_S)
        return original(*arguments, **options)

    cross = FakeCross(tokenizer) if name == "encode_pairs" else None
    with client_of(make_server(held, cross=cross)) as client, ThreadPoolExecutor() as pool:
        monkeypatch.setattr(Tokenizer, name, slow)
        running = pool.submit(client.post, path, json=body)
        assert began.wait(START_S)
        try:
            assert client.get("/health").status_code == 200
            late = client.post(path, json=body, headers={"x-timeout-ms": "20"})
        finally:
            free.set()
        assert running.result().status_code == 200
    assert late.status_code == 504


def test_a_slow_body_does_not_hold_a_place_for_ever(held: HeldEncoder) -> None:
    with client_of(make_server(held, ServeConfig(body_s=0.05))) as client:
        with socket.create_connection(("127.0.0.1", urlparse(str(client.base_url)).port or 0)) as raw:
            raw.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            raw.settimeout(START_S)
            assert raw.recv(100).startswith(b"HTTP/1.1 408 ")
        assert embed(client).status_code == 200


def test_a_head_that_the_model_lacks(tokenizer: Tokenizer) -> None:
    encoder = ServedEncoder(tokenizer, name="held", heads=("dense",), max_tokens=64)
    with client_of(make_server(encoder)) as client:
        ours = client.post("/v1/embeddings", json={"model": "held", "input": "a", "embedding_types": ["sparse"]})
        assert ours.status_code == 400
        assert ours.json()["error"]["message"] == "held has no sparse head; it has dense"
        tei = client.post("/embed_sparse", json={"inputs": "a"})
        assert tei.status_code == 424
        assert tei.json()["error_type"] == "Backend"
        heads = client.post("/rerank", json={"query": "a", "texts": ["a", "fox"]})  # by the one head it has
        assert heads.json()[0]["index"] == 0


# ---- keys --------------------------------------------------------------------------------------------------


def test_keys_and_scopes(held: HeldEncoder, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = create_key(path, "someone", ["embed"])
    with client_of(make_server(held, ServeConfig(keys_file=str(path)))) as client:
        bearer = {"authorization": f"Bearer {secret}"}
        assert embed(client, headers=bearer).status_code == 200
        assert embed(client, headers={"x-api-key": secret}).status_code == 200
        nobody = embed(client)
        assert nobody.status_code == 401
        assert nobody.json()["error"]["code"] == "invalid_api_key"
        assert embed(client, headers={"authorization": "Bearer tf-wrong"}).status_code == 401
        bare = client.post("/embed", json={"inputs": "a"})
        assert (bare.status_code, bare.text) == (401, "")
        metrics = client.get("/metrics", headers=bearer)
        assert metrics.status_code == 403
        assert client.get("/health").status_code == 200
        revoke_key(path, key.id)
        assert embed(client, headers=bearer).status_code == 401


def test_a_file_of_keys_that_cannot_be_read_is_not_the_fault_of_the_caller(
    held: HeldEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    secret, _ = create_key(path, "someone", ["embed"])
    good = path.read_bytes()
    with client_of(make_server(held, ServeConfig(keys_file=str(path)))) as client:
        bearer = {"authorization": f"Bearer {secret}"}
        for damage in (path.unlink, lambda: path.write_bytes(b"{"), lambda: path.write_bytes(b'{"kyes": []}')):
            damage()
            refused = embed(client, headers=bearer)
            assert refused.status_code == 503
            assert refused.json()["error"]["message"] == "the API keys cannot be read"
            assert client.post("/embed", json={"inputs": "a"}, headers=bearer).status_code == 503
        path.write_bytes(good)
        assert embed(client, headers=bearer).status_code == 200
    assert str(path) in caplog.text


def test_a_key_in_debt_waits(held: HeldEncoder, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    limited, _ = create_key(path, "limited", ["embed", "search", "write"], tokens_per_minute=10)
    free, _ = create_key(path, "free", ["embed"])
    config = ServeConfig(keys_file=str(path), collections=str(tmp_path / "all"))
    with client_of(make_server(held, config)) as client:
        mine, other = ({"authorization": f"Bearer {key}"} for key in (limited, free))
        first = embed(client, "quick brown fox " * 3, headers=mine)  # more than 10 tokens: debt
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "10"
        assert first.headers["x-ratelimit-remaining-tokens"] == "0"
        for refused in (embed(client, headers=mine), client.get("/collections", headers=mine)):
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 1
        assert refused.json()["error"]["message"] == "this API key has used its 10 tokens per minute"
        unlimited = embed(client, headers=other)
        assert unlimited.status_code == 200
        assert "x-ratelimit-limit-tokens" not in unlimited.headers


def test_adding_and_searching_are_paid_for(held: HeldEncoder, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = create_key(path, "limited", ["search", "write"], tokens_per_minute=1_000)
    server = make_server(held, ServeConfig(keys_file=str(path), collections=str(tmp_path / "all")))
    with client_of(server) as client:
        mine = {"authorization": f"Bearer {secret}"}
        client.put("/collections/papers", headers=mine, json={"chunking": {"max_tokens": 32}})
        line = json.dumps({"id": "a", "text": "quick brown fox"}).encode()
        added = client.post("/collections/papers/documents", content=line, headers=mine)
        tokens = json.loads(added.text.splitlines()[-1])["report"]["tokens"]
        client.post("/collections/papers/search", json={"query": "fox"}, headers=mine)
        used = tokens + int(held.tokenizer.count(["fox"])[0])
        left = server.rates.left(key)
    assert left is not None
    assert 1_000 - used <= left < 1_000  # a little has come back since


# ---- what can be seen --------------------------------------------------------------------------------------


def test_the_log_has_facts_and_never_texts_or_keys(
    held: HeldEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    secret, key = create_key(path, "someone", ["embed"])
    with caplog.at_level(logging.INFO), client_of(make_server(held, ServeConfig(keys_file=str(path)))) as client:
        headers = {"authorization": f"Bearer {secret}", "x-request-id": "r-1"}
        embed(client, "confidential words", headers=headers)
        client.post("/v1/embeddings", json={"model": "held", "input": ["confidential", 5]}, headers=headers)
        client.post("/v1/embeddings", content=b'{"confidential', headers=headers)
    facts = [getattr(record, FACTS) for record in caplog.records if hasattr(record, FACTS)]
    assert [one["status"] for one in facts] == [200, 400, 400]
    assert facts[0] | {"ms": 0} == {
        "method": "POST", "route": "/v1/embeddings", "status": 200, "ms": 0, "id": "r-1", "key": key.id,
        "model": "held", "texts": 1, "tokens": held.tokenizer.count(["confidential words"])[0],
    }  # fmt: skip
    everything = "".join(JsonLines().format(one) + Lines().format(one) for one in caplog.records)
    assert "confidential" not in everything
    assert secret not in everything


def test_a_request_without_a_route_has_an_id_and_a_line(held: HeldEncoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), client_of(make_server(held)) as client:
        missing = client.get("/secret-path", headers={"x-request-id": "r-1"})
        wrong = client.get("/v1/embeddings")
        counted = client.get("/metrics").text
    facts = [getattr(record, FACTS) for record in caplog.records if hasattr(record, FACTS)]
    assert [(one["route"], one["status"]) for one in facts[:2]] == [("unknown", 404), ("unknown", 405)]
    assert missing.headers["x-request-id"] == facts[0]["id"] == "r-1"
    assert wrong.headers["x-request-id"] == facts[1]["id"]
    assert 'threefold_requests_total{route="unknown",status="404"} 1.0' in counted
    assert "secret-path" not in "".join(Lines().format(one) for one in caplog.records if hasattr(one, FACTS))


def test_json_lines_have_time_level_facts_and_errors() -> None:
    record = logging.LogRecord("threefold.x", logging.INFO, "", 0, "said %s", ("so",), None)
    setattr(record, FACTS, {"route": "/embed", "status": 200})
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "said so"
    assert (line["level"], line["logger"], line["route"], line["status"]) == ("info", "threefold.x", "/embed", 200)
    assert line["time"].endswith("Z")
    assert Lines().format(record).endswith("INFO said so")


def test_metrics_count_requests_tokens_and_batches(held: HeldEncoder) -> None:
    with client_of(make_server(held)) as client:
        tokens = sum(embed(client, text).json()["usage"]["total_tokens"] for text in ("a fox", "a dog"))
        embed(client, "")
        text = client.get("/metrics").text
    assert 'threefold_requests_total{route="/v1/embeddings",status="200"} 2.0' in text
    assert 'threefold_requests_total{route="/v1/embeddings",status="400"} 1.0' in text
    assert f'threefold_tokens_total{{key="",model="held"}} {float(tokens)}' in text
    assert 'threefold_batch_texts_count{model="held"} 2.0' in text
    assert 'threefold_ready{model="held"} 1.0' in text
    assert 'threefold_worker_restarts{model="held"} 0.0' in text


def test_health_is_red_with_the_reason(held: HeldEncoder) -> None:
    config = ServeConfig(limits=Limits(stall_s=0.01))
    with client_of(make_server(held, config)) as client, ThreadPoolExecutor() as pool:
        assert client.get("/health").status_code == 200
        held.hold()
        running = pool.submit(embed, client)
        assert held.began.acquire(timeout=START_S)
        while (red := client.get("/health")).status_code == 200:
            pass
        alive = client.get("/health/live")
        held.free.set()
        assert running.result().status_code == 200
    assert red.status_code == 503
    assert red.json()["error_type"] == "Unhealthy"
    assert red.json()["error"].startswith("a batch has been running for")
    assert alive.status_code == 200


def test_cors_only_for_the_origins_that_were_named(held: HeldEncoder) -> None:
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with client_of(make_server(held)) as client:
        assert "access-control-allow-origin" not in embed(client, headers=ask).headers
    with client_of(make_server(held, ServeConfig(cors_origins=("https://a.example",)))) as client:
        assert client.options("/v1/embeddings", headers=ask).status_code == 200
        assert embed(client, headers=ask).headers["access-control-allow-origin"] == "https://a.example"
        other = embed(client, headers={**ask, "origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
