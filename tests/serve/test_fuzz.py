"""Whatever is sent: an answer in the dialect of the route, never an unexpected error, and the server goes on."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.serve.app import CONTRACTS
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

#: Fields of all dialects together: a body that has some of them is far more often almost right.
FIELDS = [
    "input",
    "model",
    "encoding_format",
    "dimensions",
    "user",
    "embedding_types",
    "sparse_format",
    "truncate",
    "priority",
    "inputs",
    "normalize",
    "truncation_direction",
    "prompt_name",
    "query",
    "texts",
    "documents",
    "top_n",
    "rank_fields",
    "return_documents",
    "raw_scores",
    "parameters",
    "task",
    "data",
    "text_1",
    "text_2",
    "queries",
    "items",
    "ids",
    "skip_special_tokens",
    "prompt",
    "k",
    "mode",
    "where",
    "weights",
    "fusion",
    "depth",
    "rerank",
    "diversify",
    "group",
    "why",
    "quote",
    "retriever",
    "chunking",
    "multi_storage",
    "multi_pool",
    "input_ids_vocab",
    "truncate_prompt_tokens",
    "options",
    "num_ctx",
    "name",
    "stream",
]
WORDS = ["fake-m3", "fake-cross", "a fox", "", "base64", "float", "end", "none", "hybrid", "dense", "embed", "left"]

#: NaN and infinity are no JSON, but Python's own writer sends them.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*FIELDS, "x"]), inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(lambda body: {"model": "fake-m3"} | body)
ROUTES = sorted({(one.method, one.path) for one in CONTRACTS if one.method in ("POST", "PUT")})


@pytest.fixture(scope="module")
def client(
    served: ServedEncoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    config = ServeConfig(collections=str(tmp_path_factory.mktemp("all")), max_inputs=4)
    with (
        serving(make_server(served, config, FakeCross(tokenizer))) as url,
        httpx.Client(base_url=url, timeout=START_S) as client,
    ):
        client.put("/collections/papers")
        yield client


def send(client: httpx.Client, method: str, path: str, content: bytes) -> httpx.Response:
    return client.request(method, path.replace("{name}", "papers").replace("{id}", "r"), content=content)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
@given(body=bodies)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json(client: httpx.Client, method: str, path: str, body: dict[str, Any]) -> None:
    response = send(client, method, path, json.dumps(body, ensure_ascii=True).encode())
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    for line in response.text.splitlines():
        json.loads(line)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
@given(body=st.binary(max_size=200) | st.text(string.printable).map(str.encode))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes(client: httpx.Client, method: str, path: str, body: bytes) -> None:
    response = send(client, method, path, body)
    assert response.status_code < 500, response.text


def test_deep_json_is_refused(client: httpx.Client) -> None:
    for depth in (1_000, 100_000):
        body = b'{"model": "fake-m3", "input": ' + b"[" * depth + b"]" * depth + b"}"
        for path in ("/v1/embeddings", "/rerank", "/collections/papers/retrievers/{id}"):
            method = "PUT" if "retrievers" in path else "POST"
            assert 400 <= send(client, method, path, body).status_code < 500


def test_the_server_is_still_well(client: httpx.Client, served: ServedEncoder, tmp_path: Path) -> None:
    assert client.get("/health").status_code == 200
    assert 'worker_restarts{model="fake-m3"} 0.0' in client.get("/metrics").text
    expected = served.encode(["a fox"]).dense
    assert expected is not None
    found = client.post("/embed", json={"inputs": "a fox"}).json()
    assert found[0] == pytest.approx(expected[0].tolist(), abs=1e-6)
