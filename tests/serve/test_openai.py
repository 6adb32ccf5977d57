"""`POST /v1/embeddings` and `GET /v1/models` over a socket: exact bodies, limits, errors, and our extension."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import POISON, ServedEncoder

TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。"]
UNIT = 1e-6


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"model": "fake-m3", **body})


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def test_floats(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS)
    assert expected.dense is not None
    response = post(http, input=TEXTS, encoding_format="float", user="someone")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"object", "data", "model", "usage"}
    assert body["object"] == "list"
    assert body["model"] == "fake-m3"
    tokens = int(expected.tokens.sum())
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    for i, item in enumerate(body["data"]):
        assert set(item) == {"object", "index", "embedding"}
        assert item["object"] == "embedding"
        assert item["index"] == i
        np.testing.assert_array_equal(np.array(item["embedding"], np.float32), expected.dense[i])


def test_base64_is_little_endian_float32(http: httpx.Client) -> None:
    plain = post(http, input=TEXTS).json()["data"]
    packed = post(http, input=TEXTS, encoding_format="base64").json()["data"]
    for one, other in zip(plain, packed, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"], validate=True), "<f4")
        np.testing.assert_array_equal(decoded, np.array(one["embedding"], np.float32))


def test_one_text_is_the_same_as_a_list_of_one(http: httpx.Client) -> None:
    assert post(http, input=TEXTS[0]).json() == post(http, input=TEXTS[:1]).json()


def test_the_short_route_and_the_alias(http: httpx.Client) -> None:
    body = http.post("/embeddings", json={"model": "alias", "input": "a"}).json()
    assert body["model"] == "alias"


def test_models(http: httpx.Client) -> None:
    body = http.get("/v1/models").json()
    assert http.get("/models").json() == body  # as infinity has it, whose base address has no /v1
    assert set(body) == {"object", "data"}
    assert [one["id"] for one in body["data"]] == ["fake-m3", "alias"]
    for one in body["data"]:
        assert set(one) == {"id", "object", "created", "owned_by", "kind", "state", "max_model_len"}
        assert one["object"] == "model"
        assert isinstance(one["created"], int)
        assert http.get(f"/v1/models/{one['id']}").json() == one
    missing = http.get("/v1/models/BAAI/other")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "model_not_found"


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": ""}, "input", "`input` cannot be empty"),
        ({"input": []}, "input", "`input` cannot be empty"),
        ({"input": ["a", ""]}, "input", "`input[1]` cannot be empty"),
        ({"input": ["a", 1]}, "input", "input[1] must be a string; got a number"),
        ({"input": [[1], "a"]}, "input", "input[0] must be a string; got an array"),
        ({"input": None}, "input", "input must be a string or an array of strings"),
        ({}, "input", "input: Field required"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "encoding_format: Input should be"),
        ({"input": "a", "dimensions": 0}, "dimensions", "dimensions: Input should be greater than or equal to 1"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "dimensions: Input should be a valid integer"),
        ({"input": "a", "dimensions": 8}, "dimensions", "fake-m3 cannot give 8 dimensions; allowed: 16 (it was not"),
        ({"input": "a", "foo": 1}, "foo", "unknown field 'foo'; known are input, model,"),
        ({"input": "a", "embedding_types": []}, "embedding_types", "embedding_types: List should have at least 1"),
    ],
)
def test_a_bad_field_is_named(http: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    response = post(http, **body)
    error = error_of(response)
    assert response.status_code == 400
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert error["type"] == error["code"] == "invalid_request_error"


def test_too_many_texts_are_known_by_their_code(http: httpx.Client) -> None:
    response = post(http, input=["a"] * 9)
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "batch size 9 > maximum allowed batch size 8",
        "type": "invalid_request_error",
        "param": "input",
        "code": "request_too_large",
    }


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
def test_token_arrays_are_refused_with_the_flag_that_causes_them(http: httpx.Client, ids: Any) -> None:
    response = post(http, input=ids)
    assert response.status_code == 400
    assert "check_embedding_ctx_length=False" in error_of(response)["message"]


def test_token_arrays_of_the_own_tokenizer(http: httpx.Client, served: ServedEncoder) -> None:
    rows = [served.tokenizer.encode([text], max_tokens=64)[0].tolist() for text in TEXTS]
    by_ids = post(http, input=rows, input_ids_vocab="xlm-roberta").json()
    assert by_ids == post(http, input=TEXTS).json()
    bad = post(http, input=[[0, 10**6, 2]], input_ids_vocab="xlm-roberta")
    assert "outside the vocabulary" in error_of(bad)["message"]
    long = post(http, input=[[5] * 65], input_ids_vocab="xlm-roberta")
    assert "input 0 has 65 token ids; from 1 to 64" in error_of(long)["message"]


def test_the_limit_of_vllm_clients_cuts(http: httpx.Client, served: ServedEncoder) -> None:
    listed = http.get("/v1/models/fake-m3").json()["max_model_len"]
    assert listed == served.card.max_tokens
    for limit, tokens in ((listed, listed), (8, 8), (-1, listed)):
        body = post(http, model="fake-m3", input="fox " * 200, truncate_prompt_tokens=limit).json()
        assert body["usage"]["total_tokens"] == tokens
        assert set(body["data"][0]) == {"object", "index", "embedding"}


def test_a_limit_of_vllm_clients_is_cut_where_the_request_says(http: httpx.Client, served: ServedEncoder) -> None:
    text = " ".join(["quick brown fox"] * 5 + ["lazy dog"] * 5)
    for truncate in ("end", "start"):
        expected = served.encode([text], max_tokens=8, truncate=truncate).dense
        assert expected is not None
        (item,) = post(http, input=text, truncate_prompt_tokens=8, truncate=truncate).json()["data"]
        np.testing.assert_array_equal(np.array(item["embedding"], np.float32), expected[0])
    refused = post(http, input=text, truncate_prompt_tokens=8, truncate="none")
    assert refused.status_code == 400
    assert "tokens, the limit is 8" in error_of(refused)["message"]


def test_another_model_is_not_found(http: httpx.Client) -> None:
    response = http.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "a"})
    error = error_of(response)
    assert response.status_code == 404
    assert error["code"] == "model_not_found"
    assert error["message"] == ("the model 'text-embedding-3-small' does not exist here; served: 'fake-m3', 'alias'")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON"),
        (b'{"model": "fake-m3", "input": "a"', "the body is not JSON"),
        (b'{"model": "fake-m3", "input": "\xff"}', "the body is not JSON"),
        (b'{"model": "fake-m3", "input": "\\ud800"}', "the body is not JSON"),
        (b"[1]", "Input should be an object"),
    ],
)
def test_a_body_that_is_not_json(http: httpx.Client, raw: bytes, message: str) -> None:
    response = http.post("/v1/embeddings", content=raw)
    assert response.status_code == 400
    assert error_of(response)["message"].startswith(message)


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    missing, wrong = http.get("/v1/nothing"), http.get("/v1/embeddings")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert error_of(missing)["message"] == "there is no route /v1/nothing"
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"


def test_a_text_that_breaks_the_model_is_named_and_nothing_else_is_said(http: httpx.Client) -> None:
    response = post(http, input=["a", f"five {POISON}"])
    assert response.status_code == 500
    assert error_of(response) == {
        "message": "input 1: the model failed (RuntimeError)",
        "type": "server_error",
        "param": None,
        "code": "server_error",
    }


def test_the_request_id_is_given_back_or_made(http: httpx.Client) -> None:
    given = http.post("/v1/embeddings", json={}, headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    strange = http.post("/v1/embeddings", json={}, headers={"x-request-id": "a b <script>"})
    assert len(strange.headers["x-request-id"]) == 32


def test_a_deadline_of_the_client_must_be_a_number(http: httpx.Client) -> None:
    bad = http.post("/v1/embeddings", json={"model": "fake-m3", "input": "a"}, headers={"x-timeout-ms": "soon"})
    assert "x-timeout-ms must be a number of milliseconds" in error_of(bad)["message"]
    good = http.post("/v1/embeddings", json={"model": "fake-m3", "input": "a"}, headers={"x-timeout-ms": "30000"})
    assert good.status_code == 200


@pytest.mark.parametrize("value", [b"\xb2", b"9" * 400, b"9" * 5_000, b"0", b"-1", b"1.5"])
def test_a_strange_deadline_is_the_fault_of_the_client(http: httpx.Client, value: bytes) -> None:
    response = http.post("/v1/embeddings", json={"model": "fake-m3", "input": "a"}, headers={b"x-timeout-ms": value})
    assert response.status_code == 400
    assert len(error_of(response)["message"]) < 200


# ---- too long ----------------------------------------------------------------------------------------------

LONG = "quick brown fox " * 60


def test_a_long_text_is_an_error_unless_told_otherwise(http: httpx.Client, served: ServedEncoder) -> None:
    count = int(served.tokenizer.count([LONG])[0])
    response = post(http, input=["a", LONG])
    assert response.status_code == 400
    assert error_of(response)["message"] == (
        f'input 1 has {count} tokens, the limit is 64. Split it, or send truncate="end" to cut it'
    )
    explicit = post(http, input=["a", LONG], truncate="none")
    assert explicit.status_code == 400


@pytest.mark.parametrize("truncate", ["end", "start"])
def test_truncation_is_told_per_text(http: httpx.Client, served: ServedEncoder, truncate: Any) -> None:
    body = post(http, input=["a", LONG], truncate=truncate).json()
    expected = served.encode(["a", LONG], truncate=truncate)
    assert [item["truncated"] for item in body["data"]] == [False, True]
    assert [item["tokens"] for item in body["data"]] == expected.tokens.tolist()
    assert body["usage"]["prompt_tokens"] == int(expected.tokens.sum())
    assert expected.dense is not None
    np.testing.assert_array_equal(np.array(body["data"][1]["embedding"], np.float32), expected.dense[1])


def test_a_text_beyond_all_measure_is_not_even_tokenized(http: httpx.Client) -> None:
    response = post(http, input="fox " * 100_000)
    assert error_of(response)["message"].startswith("input 0 has ")
    cut = post(http, input="fox " * 100_000, truncate="end").json()["data"][0]
    assert cut["truncated"] is True
    assert cut["tokens"] == 64


# ---- the other two heads -----------------------------------------------------------------------------------


def test_all_three_from_one_request(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS)
    assert expected.sparse is not None
    assert expected.multi is not None
    types = ["dense", "sparse", "multi_vector"]
    body = post(http, input=TEXTS, embedding_types=types, multi_vector_dtype="float32", return_tokens=True).json()
    for i, item in enumerate(body["data"]):
        assert set(item) == {
            "object", "index", "embedding", "sparse_embedding", "multi_vector", "tokens", "truncated",
        }  # fmt: skip
        sparse = item["sparse_embedding"]
        assert dict(zip(sparse["indices"], sparse["values"], strict=True)) == pytest.approx(expected.sparse.row(i))
        assert sparse["tokens"] == [served.tokenizer.token(id) for id in sparse["indices"]]
        multi = item["multi_vector"]
        assert multi["shape"] == list(expected.multi[i].shape)
        rows = np.frombuffer(base64.b64decode(multi["data"]), "<f4").reshape(multi["shape"])
        np.testing.assert_array_equal(rows, expected.multi[i])


def test_what_was_not_asked_for_is_not_there(http: httpx.Client) -> None:
    (item,) = post(http, input="a fox", embedding_types=["sparse"]).json()["data"]
    assert set(item) == {"object", "index", "sparse_embedding", "tokens", "truncated"}


@pytest.mark.parametrize("types", [["sparse"], ["multi_vector"], ["sparse", "multi_vector"]])
def test_dimensions_need_a_dense_vector(http: httpx.Client, types: list[str]) -> None:
    refused = post(http, input="a fox", embedding_types=types, dimensions=8)
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["param"] == "dimensions"
    assert error["message"] == (
        "nothing of what was asked for can be cut to 8 dimensions: only dense vectors can. Leave `dimensions` out, or "
        'add "dense" to `embedding_types`'
    )
    own = post(http, input="a fox", embedding_types=types, dimensions=16).status_code  # the size of token vectors
    assert own == (400 if types == ["sparse"] else 200)


def test_sparse_formats_say_the_same(http: httpx.Client) -> None:
    def sparse(how: str) -> Any:
        return post(http, input="a fox", embedding_types=["sparse"], sparse_format=how).json()["data"][0][
            "sparse_embedding"
        ]

    arrays = sparse("arrays")
    assert sparse("pairs") == [list(pair) for pair in zip(arrays["indices"], arrays["values"], strict=True)]
    assert sparse("map") == {str(id): w for id, w in zip(arrays["indices"], arrays["values"], strict=True)}


@pytest.mark.parametrize(("dtype", "within"), [("float16", 1e-3), ("int8", 1 / 254 + UNIT), ("binary", None)])
def test_compact_multi_vectors(http: httpx.Client, served: ServedEncoder, dtype: str, within: float | None) -> None:
    expected = served.encode(["a quick fox"]).multi
    assert expected is not None
    item = post(http, input="a quick fox", embedding_types=["multi_vector"], multi_vector_dtype=dtype).json()["data"][0]
    multi = item["multi_vector"]
    assert multi["dtype"] == dtype
    raw, (n, d) = base64.b64decode(multi["data"]), multi["shape"]
    if within is None:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(n, d // 8), axis=1)
        np.testing.assert_array_equal(bits.astype(bool), expected[0] > 0)
    else:
        rows = np.frombuffer(raw, "<f2" if dtype == "float16" else np.int8).reshape(n, d).astype(np.float32)
        np.testing.assert_allclose(rows if dtype == "float16" else rows / 127, expected[0], atol=within)


def test_input_types_of_a_model_without_prompts_change_nothing(http: httpx.Client) -> None:
    plain = post(http, input="a fox").json()["data"][0]["embedding"]
    for kind in ("query", "passage", "document"):
        assert post(http, input="a fox", input_type=kind).json()["data"][0]["embedding"] == plain
