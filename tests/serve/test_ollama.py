"""Ollama's `/api/...` over a socket: exact bodies, names with a tag, what is cut and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import POISON, START_S, ServedEncoder, make_server, serving

from threefold import __version__
from threefold.serve.keys import create_key
from threefold.serve.server import Server
from threefold.serve.settings import ModelSettings, ServeConfig
from threefold.text.tokenizer import Tokenizer
from threefold.types import Row

TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。"]
LONG = "quick brown fox " * 60


def post(http: httpx.Client, path: str = "/api/embed", **body: Any) -> httpx.Response:
    return http.post(path, json={"model": "fake-m3", **body})


def vectors(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.array(response.json()["embeddings"], np.float32)


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"error"}
    error: str = body["error"]
    return error


# ---- vectors -----------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_encoder(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS)
    assert expected.dense is not None
    response = post(http, input=TEXTS)
    np.testing.assert_array_equal(vectors(response), expected.dense)
    body = response.json()
    assert set(body) == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert body["model"] == "fake-m3"
    assert body["prompt_eval_count"] == int(expected.tokens.sum())
    assert 0 < body["load_duration"] < body["total_duration"] < 1e9 * START_S
    np.testing.assert_array_equal(vectors(post(http, input=TEXTS[0])), expected.dense[:1])


def test_the_older_route_gives_the_same_vector(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS).dense
    assert expected is not None
    for i, text in enumerate(TEXTS):
        body = post(http, "/api/embeddings", prompt=text, options={"temperature": 0.5}, keep_alive="5m").json()
        assert set(body) == {"embedding"}
        np.testing.assert_array_equal(np.array(body["embedding"], np.float32), expected[i])


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": ""}, {"input": []}])
def test_nothing_gives_no_vectors(http: httpx.Client, given: dict[str, Any]) -> None:
    assert post(http, **given).json() == {"model": "fake-m3", "embeddings": []}


@pytest.mark.parametrize("given", [{}, {"prompt": None}, {"prompt": ""}])
def test_no_prompt_gives_no_vector(http: httpx.Client, given: dict[str, Any]) -> None:
    assert post(http, "/api/embeddings", **given).json() == {"embedding": []}


def test_an_empty_text_among_others_has_a_vector(http: httpx.Client) -> None:
    found = vectors(post(http, input=["a fox", "", "dog"]))
    assert found.shape == (3, 16)
    np.testing.assert_array_equal(found[[0, 2]], vectors(post(http, input=["a fox", "dog"])))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_what_ollama_ignores_is_ignored(http: httpx.Client) -> None:
    plain = vectors(post(http, input=TEXTS))
    more: dict[str, Any] = {
        "truncate": None, "dimensions": 0, "keep_alive": {"x": 1}, "raw": True, "format": "json",
        "options": {"num_ctx": None, "temperature": 0.8, "stop": ["x"], "num_gpu": -1, "nonsense": [1]},
    }  # fmt: skip
    np.testing.assert_array_equal(vectors(post(http, input=TEXTS, **more)), plain)
    np.testing.assert_array_equal(vectors(post(http, input=TEXTS, dimensions=-1, options=None)), plain)


class Longer(ServedEncoder):
    """A model that compares by inner products: its vectors are three times as long as one."""

    def _row(self, ids: Any, wanted: Any) -> Row:
        row = super()._row(ids, wanted)
        return row._replace(dense=3 * row.dense) if row.dense is not None else row


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    """A model whose vectors are not of unit length, and may be cut to 8 dimensions."""
    encoder = Longer(tokenizer, name="trained", max_tokens=64)
    encoder.card = replace(encoder.card, matryoshka=(8,))
    with serving(make_server(encoder)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


def test_vectors_have_unit_length_whatever_the_model(trained: httpx.Client, tokenizer: Tokenizer) -> None:
    expected = ServedEncoder(tokenizer, name="trained", max_tokens=64).encode(TEXTS).dense
    assert expected is not None
    np.testing.assert_allclose(vectors(post(trained, model="trained", input=TEXTS)), expected, atol=1e-6)
    older = post(trained, "/api/embeddings", model="trained", prompt=TEXTS[0]).json()["embedding"]
    np.testing.assert_allclose(older, expected[0], atol=1e-6)


def test_dimensions_only_where_the_model_was_trained_for_them(http: httpx.Client, trained: httpx.Client) -> None:
    whole = vectors(post(trained, model="trained", input=TEXTS))
    cut = vectors(post(trained, model="trained", input=TEXTS, dimensions=8))
    np.testing.assert_allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    assert vectors(post(http, input="a", dimensions=16)).shape == (1, 16)
    refused = post(http, input="a", dimensions=8)
    assert refused.status_code == 400
    assert error_of(refused).startswith("fake-m3 cannot give 8 dimensions; allowed: 16 (it was not trained")


# ---- too long ----------------------------------------------------------------------------------------------


def test_what_is_cut_is_told(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(["a", LONG], truncate="end")
    assert expected.dense is not None
    for told in (None, True):
        response = post(http, input=["a", LONG], truncate=told)
        np.testing.assert_array_equal(vectors(response), expected.dense)
        assert response.json()["truncated"] == [False, True]
        assert response.json()["prompt_eval_count"] == int(expected.tokens.sum())


def test_what_may_not_be_cut_is_refused_with_its_tokens(http: httpx.Client, served: ServedEncoder) -> None:
    count = int(served.tokenizer.count([LONG])[0])
    response = post(http, input=["a", LONG], truncate=False)
    assert response.status_code == 400
    assert error_of(response) == (
        f"the input length exceeds the context length: input 1 has {count} tokens, the limit is 64. Split it, or send "
        '"truncate": true to cut it'
    )


def test_the_older_route_cuts_only_what_it_is_told_to_cut(http: httpx.Client, served: ServedEncoder) -> None:
    count = int(served.tokenizer.count([LONG])[0])
    refused = post(http, "/api/embeddings", prompt=LONG)
    assert refused.status_code == 400
    assert f"context length: prompt has {count} tokens, the limit is 64" in error_of(refused)
    expected = served.encode([LONG], truncate="end").dense
    assert expected is not None
    body = post(http, "/api/embeddings", prompt=LONG, truncate=True).json()
    assert set(body) == {"embedding", "truncated"}
    assert body["truncated"] is True
    np.testing.assert_array_equal(np.array(body["embedding"], np.float32), expected[0])


@pytest.mark.parametrize(("context", "tokens"), [(8, 8), (8.0, 8), (8.9, 8), (0, 4), (-1, 4), (1_000_000, 64)])
def test_the_context_is_what_the_client_says(
    http: httpx.Client, served: ServedEncoder, context: float, tokens: int
) -> None:
    expected = served.encode([LONG], max_tokens=tokens, truncate="end").dense
    assert expected is not None
    response = post(http, input=LONG, options={"num_ctx": context})
    np.testing.assert_array_equal(vectors(response), expected)
    assert response.json()["prompt_eval_count"] == tokens
    refused = post(http, input=LONG, truncate=False, options={"num_ctx": context})
    assert f"the limit is {tokens}" in error_of(refused)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ["a", 1]}, "invalid input type: input[1] must be a string"),
        ({"input": [1, 2]}, "invalid input type: input[0] must be a string"),
        ({"input": 1}, "input must be a string or an array of strings"),
        ({"input": "a", "truncate": "yes"}, "truncate: Input should be a valid boolean"),
        ({"input": "a", "dimensions": "8"}, "dimensions: Input should be a valid integer"),
        ({"input": "a", "options": []}, "options: Input should be an object"),
        ({"input": "a", "options": {"num_ctx": "8"}}, "options.num_ctx: Input should be a valid number"),
        ({"input": "a", "options": {"num_ctx": True}}, "options.num_ctx: Input should be a valid number"),
        ({"input": "a", "model": None}, "model: Input should be a valid string"),
        ({"input": ["a"] * 9}, "batch size 9 > maximum allowed batch size 8"),
    ],
)
def test_a_bad_field_is_named(http: httpx.Client, body: dict[str, Any], message: str) -> None:
    response = post(http, **body)
    assert response.status_code == 400
    assert error_of(response).startswith(message)


@pytest.mark.parametrize("raw", [b"", b'{"model": ', b"[1]", b'{"input": "a"}'])
def test_a_body_that_is_none(http: httpx.Client, raw: bytes) -> None:
    for path in ("/api/embed", "/api/embeddings"):
        response = http.post(path, content=raw)
        assert response.status_code == 400
        assert error_of(response)


def test_a_text_that_breaks_the_model_is_named(http: httpx.Client) -> None:
    response = post(http, input=["a", f"five {POISON}"])
    assert response.status_code == 500
    assert error_of(response) == "input 1: the model failed (RuntimeError)"
    older = post(http, "/api/embeddings", prompt=POISON)
    assert error_of(older) == "prompt: the model failed (RuntimeError)"


#: What is said of models and routes that are not there.
ONLY = "this server only embeds (POST /api/embed), with the models that it was started with"


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/show", "/api/pull"])
@pytest.mark.parametrize("name", ["nomic-embed-text", "fake-m3:567m", "fake-m3:", "latest", ""])
def test_another_model_is_not_found(http: httpx.Client, path: str, name: str) -> None:
    response = post(http, path, model=name)
    if not name and path in ("/api/show", "/api/pull"):
        assert (response.status_code, error_of(response)) == (400, "model is required")
        return
    assert response.status_code == 404
    assert error_of(response) == f'model "{name}" not found: {ONLY}: "fake-m3:latest", "alias:latest"'


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/generate"), ("POST", "/api/chat"), ("DELETE", "/api/delete"), ("HEAD", "/api/blobs/sha256:0")],
)
def test_other_routes_of_ollama_say_what_this_server_does(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert response.status_code == 404
    if method != "HEAD":
        assert error_of(response) == f"there is no route {path}: {ONLY}"
    wrong = http.get("/api/embed")
    assert (wrong.status_code, error_of(wrong)) == (405, "GET is not allowed here")
    assert wrong.headers["allow"] == "POST"


def test_keys_hold_here_too(served: ServedEncoder, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    may, may_not = (create_key(keys, who, [scope])[0] for who, scope in (("ann", "embed"), ("bob", "search")))
    server = make_server(served, ServeConfig(keys_file=str(keys)))
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        for method, path in (("POST", "/api/embed"), ("GET", "/api/tags"), ("GET", "/api/version")):
            body = {"model": "fake-m3", "input": "a"}
            answers = [
                client.request(method, path, json=body, headers=head)
                for head in ({}, {"authorization": f"Bearer {may_not}"}, {"authorization": f"Bearer {may}"})
            ]
            assert [one.status_code for one in answers] == [401, 403, 200]
            assert error_of(answers[0])
            assert error_of(answers[1])


# ---- models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fake-m3", "fake-m3:latest", "alias", "alias:latest"])
def test_the_latest_is_the_one(http: httpx.Client, name: str) -> None:
    body = post(http, model=name, input="a fox").json()
    assert body["model"] == name
    assert body["embeddings"] == post(http, input="a fox").json()["embeddings"]
    for field in ("model", "name"):
        assert http.post("/api/show", json={field: name}).status_code == 200


def test_models_are_listed_as_clients_look_for_them(http: httpx.Client, served: ServedEncoder) -> None:
    models = http.get("/api/tags").json()["models"]
    assert [one["name"] for one in models] == [one["model"] for one in models] == ["fake-m3:latest", "alias:latest"]
    for one in models:
        assert datetime.fromisoformat(one["modified_at"]).tzinfo is not None
        assert one["size"] == served.weight_bytes
        assert one["digest"] == served.card.hash
    (running,) = http.get("/api/ps").json()["models"]
    assert datetime.fromisoformat(running.pop("expires_at")).year == 2300
    assert running.pop("context_length") == 64
    assert running == models[0]


def test_what_a_model_reads_and_gives(http: httpx.Client) -> None:
    body = post(http, "/api/show").json()
    info = body["model_info"]
    architecture = info["general.architecture"]
    assert info[f"{architecture}.context_length"] == 64
    assert info[f"{architecture}.embedding_length"] == 16
    assert body["capabilities"] == ["embedding"]
    assert body["details"]["family"] == architecture


def test_a_model_that_is_served_was_pulled(http: httpx.Client) -> None:
    stream = post(http, "/api/pull")
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in stream.iter_lines()] == [{"status": "success"}]
    whole = post(http, "/api/pull", stream=False)
    assert whole.headers["content-type"] == "application/json"
    assert whole.json() == {"status": "success"}


def test_clients_ask_whether_it_lives(http: httpx.Client) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        assert http.head(path).status_code == http.get(path).status_code == 200
        assert http.head(path).content == b""
    assert http.get("/api/version").json() == {"version": __version__}


def test_further_models_and_tags_of_their_own(tokenizer: Tokenizer, cross_http: httpx.Client) -> None:
    main = ServedEncoder(tokenizer, name="BAAI/main", max_tokens=64)
    small = ServedEncoder(tokenizer, name="folder/small", heads=("dense",), max_tokens=32)
    further = ModelSettings("folder/small", name="small:33m", aliases=("tiny:latest",))
    server = Server(ServeConfig(models=(further,)), lambda: main, load_more=lambda _: small)
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        before = {one["name"]: one for one in client.get("/api/tags").json()["models"]}
        assert list(before) == ["BAAI/main:latest", "small:33m", "tiny:latest"]
        assert (before["small:33m"]["size"], before["small:33m"]["digest"]) == (0, "0" * 16)
        assert [one["name"] for one in client.get("/api/ps").json()["models"]] == ["BAAI/main:latest"]
        for name in ("small:33m", "tiny", "tiny:latest"):
            assert vectors(post(client, model=name, input="a fox")).shape == (1, 16)
        assert post(client, model="small", input="a fox").status_code == 404
        info = post(client, "/api/show", model="tiny").json()["model_info"]
        assert info["bert.context_length"] == 32
        assert len(client.get("/api/ps").json()["models"]) == 2
    names = [one["name"] for one in cross_http.get("/api/tags").json()["models"]]
    assert names == ["fake-m3:latest"]  # and not the cross-encoder
    wrong = post(cross_http, model="fake-cross:latest", input="a")
    assert (wrong.status_code, error_of(wrong)[:28]) == (400, "fake-cross is a cross-encode")
