"""Values of the TEI, rerank and vLLM routes; their shapes are in `contracts/`."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import POISON, START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.score.fuse import TRAINING
from threefold.score.multi import maxsim
from threefold.serve import heads
from threefold.serve.settings import ServeConfig
from threefold.serve.tei import unit
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Floats, Ragged

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


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    """A model with a prompt, and with dense vectors that may be cut to 8 dimensions."""
    encoder = ServedEncoder(tokenizer, name="trained", max_tokens=64)
    encoder.card = replace(encoder.card, matryoshka=(8,))
    encoder.prompts = {"query": "quick: "}
    with serving(make_server(encoder)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


def test_dimensions_of_vectors_that_are_not_normalised(trained: httpx.Client) -> None:
    whole = trained.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
    cut = trained.post("/embed", json={"inputs": TEXTS, "normalize": False, "dimensions": 8}).json()
    assert cut == [vector[:8] for vector in whole]


@pytest.mark.parametrize(("default", "before"), [("", ""), ("query", "quick: "), ("document", "lazy: ")])
def test_what_texts_are_of_which_a_request_says_nothing(tokenizer: Tokenizer, default: str, before: str) -> None:
    encoder = ServedEncoder(tokenizer, name="prompted")
    encoder.prompts = {"query": "quick: ", "document": "lazy: "}
    expected = encoder.encode([before + "fox", "quick: fox"]).dense
    assert expected is not None
    server = make_server(encoder, ServeConfig.from_dict({"default_prompt": default}, "serve"))
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        plain = [
            client.post("/embed", json={"inputs": "fox"}).json()[0],
            client.post("/v1/embeddings", json={"model": "prompted", "input": "fox"}).json()["data"][0]["embedding"],
            client.post("/api/embed", json={"model": "prompted", "input": "fox"}).json()["embeddings"][0],
        ]
        said = client.post("/embed", json={"inputs": "fox", "prompt_name": "query"}).json()[0]
    np.testing.assert_allclose(plain, [expected[0]] * 3, atol=1e-6)
    np.testing.assert_allclose(said, expected[1], atol=1e-6)


def test_tokenize_puts_the_prompt_before(trained: httpx.Client) -> None:
    (pieces,) = trained.post("/tokenize", json={"inputs": "fox", "prompt_name": "query"}).json()
    (whole,) = trained.post("/tokenize", json={"inputs": "quick: fox"}).json()
    assert pieces == whole
    unknown = trained.post("/tokenize", json={"inputs": "fox", "prompt_name": "nonsense"})
    assert unknown.status_code == 422
    assert unknown.json()["error"] == "the model has no prompt 'nonsense'; known are query"


def test_numbers_where_texts_are_read_are_refused_without_advice_that_does_not_hold(http: httpx.Client) -> None:
    refused = {
        "inputs": http.post("/tokenize", json={"inputs": [-1]}),
        "documents": http.post("/v1/rerank", json={"query": "a", "documents": [1]}),
        "texts": http.post("/rerank", json={"query": "a", "texts": [1, 2]}),
    }
    for field, response in refused.items():
        assert f"{field} is an array of numbers, where texts are read. Send strings" in response.text
    pooling = http.post("/pooling", json={"input": [0, 5, 2], "task": "embed"})
    assert "start it with --set token_ids=true" in pooling.json()["error"]["message"]
    assert "input_ids_vocab" not in pooling.text


LONG = "quick brown fox " * 60


def test_a_long_text_among_ids_is_named_by_its_place(http: httpx.Client) -> None:
    refused = http.post("/embed", json={"inputs": [[0, 5, 2], "a", LONG], "truncate": False})
    assert refused.json()["error"].startswith("input 2 has ")


def test_ids_that_cannot_be_read_are_named_by_their_place(http: httpx.Client) -> None:
    for item, message in (
        ([5, 10**9], "input 1 has ids outside the vocabulary"),
        ([5] * 65, "input 1 has 65 token ids; from 1 to 64 are taken"),
        ([], "`inputs[1]` cannot be empty"),
        (["b"], "inputs[1] must be a string or an array of token ids"),
        ([["b"]], "inputs[1] must be a string or an array of token ids"),
    ):
        refused = http.post("/embed", json={"inputs": [[0, 5, 2], item], "truncate": False})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith(message)


def test_similarity_names_what_the_request_has(http: httpx.Client) -> None:
    for source, sentences, message in (
        ("a", ["b", LONG], "sentences[1] has "),
        (LONG, ["b"], "source_sentence has "),
        ("a", ["b", POISON], "sentences[1]: the model failed"),
        (POISON, ["b"], "source_sentence: the model failed"),
        ("", ["b"], "`source_sentence` cannot be empty"),
        ("a", ["b", ""], "`sentences[1]` cannot be empty"),
    ):
        inputs = {"source_sentence": source, "sentences": sentences}
        refused = http.post("/similarity", json={"inputs": inputs, "parameters": {"truncate": False}})
        assert refused.json()["error"].startswith(message)


def test_rows_of_ids_that_are_none_are_refused_in_their_own_words(http: httpx.Client) -> None:
    for ids in ([[5], []], [[5], "a"], "a", [5, "a"], [[[5]]]):
        refused = http.post("/decode", json={"ids": ids})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith("ids must be an array of token ids, or an array of such arrays")
    assert http.post("/decode", json={"ids": [[5]] * 9}).json()["error"].startswith("batch size 9 > ")


def test_each_dialect_says_how_a_long_text_is_cut(http: httpx.Client) -> None:
    advice = {
        'or send "truncate": true to cut it': http.post("/embed", json={"inputs": LONG, "truncate": False}),
        'or send truncate="END" to cut it': http.post(
            "/v2/embed", json={"model": "fake-m3", "texts": [LONG], "input_type": "x", "truncate": "NONE"}
        ),
        'or send "truncate_prompt_tokens": -1 to cut it': http.post("/pooling", json={"input": LONG}),
    }
    for words, response in advice.items():
        assert 400 <= response.status_code < 500
        assert json.dumps(words)[1:-1] in response.text


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


def test_a_long_query_is_cut_as_a_long_text_is(http: httpx.Client) -> None:
    body = {"query": LONG, "texts": ["a fox"]}
    assert http.post("/rerank", json=body).status_code == 200
    refused = http.post("/rerank", json={**body, "truncate": False}).json()["error"]
    assert refused.startswith("the query has ")
    assert '"truncate": true' in refused
    told = http.post("/v1/rerank", json={"query": LONG, "documents": ["a fox"]})
    assert told.json()["meta"]["warnings"] == ["the query was longer than is read and was cut"]
    score = {"text_1": LONG, "text_2": "a fox"}
    assert http.post("/score", json={**score, "truncate_prompt_tokens": -1}).status_code == 200
    assert http.post("/score", json=score).status_code == 400


def test_a_text_that_is_too_long_has_its_place_in_the_request(http: httpx.Client) -> None:
    refused = http.post("/rerank", json={"query": "a", "texts": ["a", "a", LONG], "truncate": False})
    assert refused.json()["error"].startswith("text 2 has ")


@pytest.mark.parametrize("block", [heads.BLOCK_TOKENS, 1])
def test_a_text_that_breaks_the_model_has_its_place_in_the_request(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(heads, "BLOCK_TOKENS", block)
    why = "the model failed (RuntimeError)"
    bad = f"five {POISON}"
    for path, body, message in (
        ("/rerank", {"query": "a", "texts": ["a", "a", "fox", bad]}, f"text 3: {why}"),
        ("/rerank", {"query": bad, "texts": ["a", "a", "fox"]}, f"the query: {why}"),
        ("/v1/rerank", {"query": "a", "documents": ["a", "a", "fox", bad]}, f"text 3: {why}"),
        ("/score", {"text_1": "a", "text_2": ["a", "a", bad]}, f"text 2: {why}"),
        ("/score", {"text_1": ["a", "a", bad], "text_2": ["a", "a", "a"]}, f"query 2: {why}"),
    ):
        assert message in http.post(path, json=body).text


class Moody(FakeCross):
    """Fails on a pair with a certain word."""

    def score_tokens(self, tokens: Tokens, *, between: Callable[[], None] | None = None) -> Floats:
        words = {piece.id for piece in self.tokenizer.pieces(POISON)} - {
            piece.id for piece in self.tokenizer.pieces("a fox of five")
        }
        if words & set(tokens.ids.tolist()):
            raise RuntimeError("secret details")
        return super().score_tokens(tokens, between=between)


def test_a_pair_that_breaks_the_model_has_its_place_in_the_request(served: ServedEncoder, tokenizer: Tokenizer) -> None:
    server = make_server(served, cross=Moody(tokenizer))
    with serving(server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        refused = client.post("/rerank", json={"query": "a", "texts": ["a", "a", f"five {POISON}"]})
    assert refused.json() == {"error": "pair 2: the model failed (RuntimeError)", "error_type": "Backend"}


def test_rerank_keeps_the_end_where_it_is_told_to(http: httpx.Client, cross_http: httpx.Client) -> None:
    text = " ".join(["搜索"] * 100 + ["quick fox"])

    def score(**options: Any) -> float:
        body = {"query": "quick fox", "texts": [text], "raw_scores": True, **options}
        found: float = http.post("/rerank", json=body).json()[0]["score"]
        return found

    assert score(truncation_direction="left") > score(truncation_direction="right") == score()
    for path, given in (("/rerank", {"query": "fox", "texts": [text]}), ("/predict", {"inputs": ["fox", text]})):
        refused = cross_http.post(path, json={**given, "truncation_direction": "left"})
        assert refused.status_code == 422
        assert refused.json()["error"].endswith("reads the beginning of a long text, its end cannot be kept instead")
    short = {"query": "fox", "texts": ["a fox"], "truncation_direction": "left"}
    assert cross_http.post("/rerank", json=short).status_code == 200


@pytest.mark.parametrize("most", [1, 5, 10])
def test_the_limit_of_documents_leaves_the_query_whole(
    http: httpx.Client, cross_http: httpx.Client, served: ServedEncoder, most: int
) -> None:
    query = "quick brown fox jumps over the lazy dog"
    asked = len(served.tokenizer.pieces(query))
    body = {"query": query, "documents": ["liquor jugs " * 30], "max_tokens_per_doc": most}
    pair = cross_http.post("/v1/rerank", json=body).json()["usage"]["total_tokens"]
    assert pair == asked + most + 4  # <s> query </s></s> text </s>
    alone = http.post("/v1/rerank", json=body).json()["usage"]["total_tokens"]
    assert alone == asked + most + 4  # <s> query </s> and <s> text </s>


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


def test_score_reads_as_many_tokens_as_it_is_told(http: httpx.Client, cross_http: httpx.Client) -> None:
    body = {"text_1": "quick brown fox", "text_2": ["a fox " * 5, "a dog " * 90], "truncate_prompt_tokens": 7}
    read = [client.post("/score", json=body).json()["usage"]["total_tokens"] for client in (http, cross_http)]
    assert read == [7 * 3, 7 * 2]  # three texts alone; two pairs


def test_only_dense_vectors_can_be_cut(trained: httpx.Client) -> None:
    def pooled(task: str, dimensions: int) -> httpx.Response:
        return trained.post("/pooling", json={"input": "a fox", "task": task, "dimensions": dimensions})

    assert len(pooled("embed", 8).json()["data"][0]["data"]) == 8
    assert len(pooled("token_embed", 16).json()["data"][0]["data"][0]) == 16
    for task, dimensions in (("token_embed", 8), ("token_classify", 16)):
        refused = pooled(task, dimensions)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "dimensions"
        message = refused.json()["error"]["message"]
        assert message.startswith(f"nothing of what was asked for can be cut to {dimensions} dimensions")
        assert message.endswith('ask for the task "embed"')


def test_normalized_is_unit_length_whatever_the_model_compares_by() -> None:
    np.testing.assert_allclose(unit(np.array([3.0, 4.0], np.float32)), [0.6, 0.8], atol=1e-7)
    rounded = np.array([0.6, 0.8001], np.float32)
    assert unit(rounded) is rounded
    assert not unit(np.zeros(2, np.float32)).any()
