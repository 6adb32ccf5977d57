"""Values of the TEI, rerank and vLLM routes; their shapes are in `contracts/`."""

from __future__ import annotations

import base64
import math
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import ServedEncoder

from threefold.score.fuse import TRAINING
from threefold.score.multi import maxsim
from threefold.types import Ragged

TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。"]


def test_embed_is_the_dense_vector_and_unnormalised_is_longer(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS).dense
    assert expected is not None
    unit = np.array(http.post("/embed", json={"inputs": TEXTS}).json(), np.float32)
    np.testing.assert_array_equal(unit, expected)
    raw = np.array(http.post("/embed", json={"inputs": TEXTS, "normalize": False}).json(), np.float32)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), expected, atol=1e-6)
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1.0) > 0.01).all()


def test_ids_are_read_as_they_are(http: httpx.Client, served: ServedEncoder) -> None:
    ids = served.tokenizer.encode([TEXTS[0]], max_tokens=64)[0].tolist()
    by_text = http.post("/embed", json={"inputs": TEXTS}).json()
    assert http.post("/embed", json={"inputs": [ids, TEXTS[1]]}).json() == by_text
    assert http.post("/embed", json={"inputs": ids}).json() == by_text[:1]
    assert http.post("/embed", json={"inputs": [ids[:1] + [ids[1]] * 100]}).status_code == 200  # cut to what is read


def test_truncation_direction(http: httpx.Client, served: ServedEncoder) -> None:
    long = " ".join(["quick brown fox"] * 40 + ["lazy dog"] * 40)
    for direction, how in (("right", "end"), ("left", "start"), ("Left", "start")):
        expected = served.encode([long], truncate=how).dense  # type: ignore[arg-type]
        assert expected is not None
        body = {"inputs": long, "truncate": True, "truncation_direction": direction}
        np.testing.assert_array_equal(np.array(http.post("/embed", json=body).json(), np.float32), expected)


def test_sparse_pairs(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS).sparse
    assert expected is not None
    found = http.post("/embed_sparse", json={"inputs": TEXTS}).json()
    assert [{pair["index"]: pair["value"] for pair in row} for row in found] == [
        pytest.approx(expected.row(i)) for i in range(2)
    ]


def test_embed_all_keeps_special_tokens_and_does_not_project(http: httpx.Client, served: ServedEncoder) -> None:
    multi = served.encode(TEXTS[:1]).multi
    assert multi is not None
    (states,) = http.post("/embed_all", json={"inputs": TEXTS[0]}).json()
    assert len(states) == len(multi[0]) + 1
    np.testing.assert_allclose(np.array(states[1:], np.float32), 2 * multi[0], rtol=1e-6)


def test_similarity_is_the_cosine(http: httpx.Client, served: ServedEncoder) -> None:
    rows = served.encode(["a fox", *TEXTS]).dense
    assert rows is not None
    body = {"inputs": {"source_sentence": "a fox", "sentences": TEXTS}}
    assert http.post("/similarity", json=body).json() == pytest.approx((rows[1:] @ rows[0]).tolist(), abs=1e-6)


def test_headers_count_characters_and_tokens(http: httpx.Client, served: ServedEncoder) -> None:
    headers = http.post("/embed", json={"inputs": TEXTS}).headers
    assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert headers["x-compute-tokens"] == str(int(served.encode(TEXTS).tokens.sum()))
    assert headers["x-queue-time"].isdigit()


def test_tokenize_and_decode_are_inverse(http: httpx.Client) -> None:
    (pieces,) = http.post("/tokenize", json={"inputs": TEXTS[0]}).json()
    assert [pieces[0]["text"], pieces[-1]["text"]] == ["<s>", "</s>"]
    assert pieces[0] == {"id": pieces[0]["id"], "text": "<s>", "special": True, "start": None, "stop": None}
    for piece in pieces[1:-1]:
        assert piece["text"] == TEXTS[0][piece["start"] : piece["stop"]]
        assert piece["special"] is False
    ids = [piece["id"] for piece in pieces]
    assert http.post("/decode", json={"ids": [ids]}).json() == [TEXTS[0]]
    (bare,) = http.post("/tokenize", json={"inputs": TEXTS[0], "add_special_tokens": False}).json()
    assert bare == pieces[1:-1]


# ---- pairs -------------------------------------------------------------------------------------------------


def test_heads_score_the_published_sum(http: httpx.Client, served: ServedEncoder) -> None:
    query, texts = served.encode(["a quick fox"]), served.encode(TEXTS)
    assert query.dense is not None
    assert texts.dense is not None
    assert query.sparse is not None
    assert texts.sparse is not None
    assert query.multi is not None
    assert texts.multi is not None
    dense = texts.dense @ query.dense[0]
    sparse = (texts.sparse.to_scipy() @ query.sparse.to_scipy().T).toarray()[:, 0]
    multi = maxsim(query.multi[0], Ragged(texts.multi.rows, texts.multi.offsets))
    expected = (TRAINING.dense * dense + TRAINING.sparse * sparse + TRAINING.multi * multi) / TRAINING.total
    ranks = http.post("/rerank", json={"query": "a quick fox", "texts": TEXTS, "raw_scores": True}).json()
    assert {rank["index"]: rank["score"] for rank in ranks} == pytest.approx(dict(enumerate(expected)), abs=1e-6)
    body = http.post("/score", json={"text_1": "a quick fox", "text_2": TEXTS, "use_activation": False}).json()
    assert [one["score"] for one in body["data"]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_cross_encoder_gives_logits_and_their_sigmoid(cross_http: httpx.Client, served: ServedEncoder) -> None:
    body: dict[str, Any] = {"query": "a fox", "texts": ["a fox", "搜索"]}
    raw = cross_http.post("/rerank", json={**body, "raw_scores": True}).json()
    unit = cross_http.post("/rerank", json=body).json()
    shared = len(served.tokenizer.pieces("a fox"))
    assert raw[0] == {"index": 0, "score": shared - 2.0}
    for one, other in zip(raw, unit, strict=True):
        assert other["score"] == pytest.approx(1 / (1 + math.exp(-one["score"])), abs=1e-6)


def test_equal_scores_stay_in_the_order_of_the_request(cross_http: httpx.Client) -> None:
    body = {"query": "a fox", "documents": ["搜索", "天气", "a fox", "公园"]}
    found = cross_http.post("/v1/rerank", json=body).json()["results"]
    assert [one["index"] for one in found] == [2, 0, 1, 3]


def test_a_pair_that_is_too_long_is_cut_only_where_that_is_allowed(cross_http: httpx.Client) -> None:
    body = {"query": "a fox", "texts": ["fox " * 100]}
    assert cross_http.post("/rerank", json=body).status_code == 200
    refused = cross_http.post("/rerank", json={**body, "truncate": False})
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("pair 0 has ")
    cut = cross_http.post(
        "/v2/rerank", json={"model": "fake-cross", "query": "a fox", "documents": ["b fox"], "max_tokens_per_doc": 1}
    )
    assert "warnings" in cut.json()["meta"]


# ---- vLLM --------------------------------------------------------------------------------------------------


def test_the_sparse_recipe_of_vllm_clients(http: httpx.Client, served: ServedEncoder) -> None:
    """As `test_bge_m3.py` of vLLM: pair the ids of /tokenize with the weights of /pooling, take the maximum."""
    expected = served.encode(TEXTS).sparse
    assert expected is not None
    ids = [http.post("/tokenize", json={"model": "fake-m3", "prompt": text}).json()["tokens"] for text in TEXTS]
    body = {"model": "fake-m3", "input": TEXTS, "task": "token_classify"}
    weights = [item["data"] for item in http.post("/pooling", json=body).json()["data"]]
    for i in range(2):
        found: dict[int, float] = {}
        for id, weight in zip(ids[i][1:], weights[i], strict=False):
            found[id] = max(weight, found.get(id, 0.0))
        assert found == pytest.approx(expected.row(i))


def test_token_embed_is_the_multi_vector(http: httpx.Client, served: ServedEncoder) -> None:
    expected = served.encode(TEXTS).multi
    assert expected is not None
    body = {"model": "fake-m3", "input": TEXTS, "task": "token_embed"}
    for i, item in enumerate(http.post("/pooling", json=body).json()["data"]):
        np.testing.assert_array_equal(np.array(item["data"], np.float32), expected[i])


@pytest.mark.parametrize(("endianness", "dtype"), [("little", "<f4"), ("big", ">f4"), ("native", "=f4")])
def test_base64_with_byte_order(http: httpx.Client, served: ServedEncoder, endianness: str, dtype: str) -> None:
    expected = served.encode(TEXTS[:1]).dense
    assert expected is not None
    body = {"input": TEXTS[:1], "task": "embed", "encoding_format": "base64", "endianness": endianness}
    (item,) = http.post("/pooling", json=body).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["data"]), dtype), expected[0])
