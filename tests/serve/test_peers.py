"""The clients that people use, over a socket: nothing of them is imitated (extra `peers`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

pytestmark = pytest.mark.peers

TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。"]


@pytest.fixture(scope="module")
def url(served: ServedEncoder, tokenizer: Tokenizer) -> Iterator[str]:
    """A server with a cross-encoder, under the names that the clients use."""
    config = ServeConfig(served_names=("text-embedding-3-small", "rerank-v3.5"))
    with serving(make_server(served, config, FakeCross(tokenizer))) as url:
        yield url


def test_openai(url: str, served: ServedEncoder) -> None:
    from openai import NotFoundError, OpenAI

    expected = served.encode(TEXTS)
    assert expected.dense is not None
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=START_S, max_retries=0) as client:
        answer = client.embeddings.create(model="fake-m3", input=TEXTS)  # asks for base64
        np.testing.assert_array_equal(np.array([one.embedding for one in answer.data], np.float32), expected.dense)
        assert answer.usage.prompt_tokens == int(expected.tokens.sum())
        plain = client.embeddings.create(model="fake-m3", input=TEXTS, encoding_format="float")
        np.testing.assert_allclose([one.embedding for one in plain.data], expected.dense, atol=1e-6)
        assert next(one.id for one in client.models.list()) == "fake-m3"
        assert client.models.retrieve("fake-m3").owned_by == "threefold"
        with pytest.raises(NotFoundError) as error:
            client.embeddings.create(model="missing", input="a")
        assert error.value.code == "model_not_found"
        assert error.value.request_id
        more = client.embeddings.create(
            model="fake-m3", input=TEXTS, extra_body={"embedding_types": ["dense", "sparse"], "truncate": "end"}
        )
        item = more.data[0].model_dump()
        assert item["truncated"] is False
        assert item["sparse_embedding"]["indices"]


def test_openai_async(url: str) -> None:
    from openai import AsyncOpenAI

    async def many() -> list[int]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=START_S, max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.embeddings.create(model="fake-m3", input=["fox " * (1 + i % 5)]) for i in range(40))
            )
            return [len(answer.data[0].embedding) for answer in answers]

    assert asyncio.run(many()) == [16] * 40


def test_langchain(url: str, served: ServedEncoder) -> None:
    from langchain_openai import OpenAIEmbeddings
    from openai import BadRequestError, OpenAI
    from pydantic import SecretStr

    expected = served.encode(TEXTS).dense
    assert expected is not None
    plain = OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=f"{url}/v1",
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
    )
    np.testing.assert_array_equal(np.array(plain.embed_documents(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(plain.embed_query(TEXTS[0]), np.float32), expected[0])
    with (
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as raw,
        pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"),
    ):  # what OpenAIEmbeddings sends by default; its own tokenizer would have to be downloaded
        raw.embeddings.create(model="text-embedding-3-small", input=[[15339, 1917]])


def test_cohere_v1_and_v2(url: str) -> None:
    import cohere
    from cohere.core import ApiError

    documents = ["dog", "a fox", "搜索"]
    with httpx.Client(timeout=START_S) as transport:
        old = cohere.Client("none", base_url=url, httpx_client=transport)
        first = old.rerank(model="rerank-v3.5", query="a fox", documents=documents, top_n=2, return_documents=True)
        assert first.results[0].index == 1
        assert len(first.results) == 2
        assert first.results[0].document is not None
        assert first.results[0].document.text == "a fox"
        assert first.meta is not None
        new = cohere.ClientV2("none", base_url=url, httpx_client=transport)
        second = new.rerank(model="rerank-v3.5", query="a fox", documents=documents, max_tokens_per_doc=4096)
        assert second.results[0].index == 1
        assert [one.relevance_score for one in first.results] == [one.relevance_score for one in second.results[:2]]
        with pytest.raises(ApiError) as error:
            new.rerank(model="missing", query="a", documents=documents)
        assert error.value.status_code == 404
        assert "does not exist here" in error.value.body["message"]


def test_cohere_embeddings(url: str, served: ServedEncoder) -> None:
    import cohere

    expected = served.encode(TEXTS).dense
    assert expected is not None
    with httpx.Client(timeout=START_S) as transport:
        old = cohere.Client("none", base_url=url, httpx_client=transport)
        plain = old.embed(texts=TEXTS, model="fake-m3", input_type="search_document")
        np.testing.assert_allclose(np.array(plain.embeddings), expected, atol=1e-6)
        new = cohere.ClientV2("none", base_url=url, httpx_client=transport)
        typed = new.embed(
            texts=TEXTS, model="fake-m3", input_type="search_query", embedding_types=["float", "binary", "ubinary"]
        )
        assert typed.embeddings.float_ is not None
        np.testing.assert_allclose(typed.embeddings.float_, expected, atol=1e-6)
        bits = np.packbits(expected > 0, axis=1)
        np.testing.assert_array_equal(np.array(typed.embeddings.ubinary), bits)
        np.testing.assert_array_equal(np.array(typed.embeddings.binary), bits.astype(int) - 128)
        assert typed.meta is not None
        assert typed.meta.billed_units is not None
        assert typed.meta.billed_units.input_tokens == int(served.encode(TEXTS).tokens.sum())


def test_llama_index(url: str, served: ServedEncoder) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    expected = served.encode(TEXTS).dense
    assert expected is not None
    where: dict[str, Any] = {"model_name": "fake-m3", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    with httpx.Client(timeout=START_S) as transport:
        client = OpenAILikeEmbedding(**where, http_client=transport)
        np.testing.assert_array_equal(np.array(client.get_text_embedding_batch(TEXTS), np.float32), expected)
        np.testing.assert_array_equal(np.array(client.get_query_embedding(TEXTS[0]), np.float32), expected[0])

    async def one() -> list[float]:
        async with httpx.AsyncClient(timeout=START_S) as transport:
            found: list[float] = await OpenAILikeEmbedding(**where, async_http_client=transport).aget_text_embedding(
                TEXTS[1]
            )
            return found

    np.testing.assert_array_equal(np.array(asyncio.run(one()), np.float32), expected[1])


def test_mteb_by_the_routes_of_openai_and_vllm(url: str, served: ServedEncoder) -> None:
    """Its three clients of HTTP: embeddings (also of texts that are too long), rerank, token vectors."""
    import mteb
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper, OpenAIAPITokenEmbedWrapper

    metadata = mteb.get_task("NFCorpus").metadata
    where: dict[str, Any] = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    texts = [*TEXTS, "fox " * 200]

    def loader(items: list[str]) -> Any:
        return create_dataloader(Dataset.from_dict({"text": items}), task_metadata=metadata, batch_size=2)

    expected = served.encode(texts, outputs=("dense", "multi"))
    assert expected.dense is not None
    assert expected.multi is not None
    encode = OpenAIAPIEncodeWrapper(url, "fake-m3", use_chat_template=False)
    assert encode.max_length == served.card.max_tokens
    found = encode.encode(loader(texts), **where, show_progress_bar=False)
    np.testing.assert_allclose(found, expected.dense, atol=1e-6)

    rerank = OpenAIAPIRerankWrapper(url, "rerank-v3.5")
    scores = rerank.predict(loader(["a fox", "a fox"]), loader(["dog", "a fox"]), **where, show_progress_bar=False)
    assert scores[1] > scores[0]

    tokens = OpenAIAPITokenEmbedWrapper(url, "fake-m3", use_chat_template=False)
    corpus = Dataset.from_dict({"id": ["a", "b"], "text": TEXTS, "title": ["", ""]})
    options: dict[str, Any] = {"encode_kwargs": {"show_progress_bar": False}, "num_proc": None}
    tokens.index(corpus, **where, **options)
    queries = Dataset.from_dict({"id": ["q"], "text": [TEXTS[0]]})
    hits = tokens.search(queries, **where, **options, top_k=2)["q"]
    rows = [expected.multi[i] for i in range(2)]
    for name, other in zip("ab", rows, strict=True):
        assert hits[name] == pytest.approx(float((rows[0] @ other.T).max(axis=1).sum()), abs=1e-4)


def test_huggingface_hub_against_tei_routes(url: str, served: ServedEncoder) -> None:
    from huggingface_hub import InferenceClient

    expected = served.encode(TEXTS).dense
    assert expected is not None
    client = InferenceClient(base_url=url, timeout=START_S)
    found = client.feature_extraction(TEXTS, normalize=True, truncate=True, truncation_direction="right")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert InferenceClient(model=url, provider="hf-inference", timeout=START_S).health_check()


def test_huggingface_hub_similarity(url: str, served: ServedEncoder) -> None:
    from huggingface_hub import InferenceClient

    rows = served.encode(["a fox", *TEXTS]).dense
    assert rows is not None
    client = InferenceClient(model=f"{url}/similarity", timeout=START_S)
    scores = client.sentence_similarity("a fox", TEXTS)
    assert scores == pytest.approx((rows[1:] @ rows[0]).tolist(), abs=1e-6)


def test_ollama(url: str, served: ServedEncoder) -> None:
    import ollama

    expected = served.encode(TEXTS)
    assert expected.dense is not None
    with ollama.Client(url, timeout=START_S) as client:
        answer = client.embed("fake-m3", TEXTS, keep_alive="5m")
        np.testing.assert_array_equal(np.array(answer.embeddings, np.float32), expected.dense)
        assert answer.prompt_eval_count == int(expected.tokens.sum())
        assert answer.total_duration is not None
        assert answer.load_duration is not None
        assert 0 < answer.load_duration < answer.total_duration
        older = client.embeddings("fake-m3:latest", TEXTS[1])
        np.testing.assert_array_equal(np.array(older.embedding, np.float32), expected.dense[1])
        assert client.embed("fake-m3", "").embeddings == []
        long, short = "fox " * 200, ollama.Options(num_ctx=8, temperature=0.5)
        assert client.embed("fake-m3", long, options=short).prompt_eval_count == 8
        with pytest.raises(ollama.ResponseError, match="exceeds the context length") as error:
            client.embed("fake-m3", long, truncate=False)
        assert error.value.status_code == 400


def test_ollama_about_models(url: str, served: ServedEncoder) -> None:
    import ollama

    with ollama.Client(url, timeout=START_S) as client:
        listed = [one.model for one in client.list().models]
        assert listed == ["fake-m3:latest", "text-embedding-3-small:latest", "rerank-v3.5:latest"]
        (running,) = client.ps().models
        assert (running.model, running.context_length) == (listed[0], served.card.max_tokens)
        shown = client.show("fake-m3")
        assert shown.capabilities == ["embedding"]
        assert shown.modelinfo is not None
        assert shown.modelinfo["bert.embedding_length"] == served.card.dense_dim
        assert client.pull("fake-m3").status == "success"
        assert [one.status for one in client.pull("fake-m3", stream=True)] == ["success"]
        for call in (client.embed, client.show, client.pull):
            with pytest.raises(ollama.ResponseError, match=r'model "missing" not found: .*"fake-m3:latest"') as error:
                call("missing")
            assert error.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="this server only embeds"):
            client.generate("fake-m3", "a fox")


def test_ollama_async(url: str) -> None:
    import ollama

    async def many() -> list[int]:
        async with ollama.AsyncClient(url, timeout=START_S) as client:
            answers = await asyncio.gather(*(client.embed("fake-m3", "fox " * (1 + i % 5)) for i in range(40)))
            return [len(answer.embeddings[0]) for answer in answers]

    assert asyncio.run(many()) == [16] * 40


def test_langchain_by_the_routes_of_ollama(url: str, served: ServedEncoder) -> None:
    from langchain_ollama import OllamaEmbeddings

    expected = served.encode(TEXTS).dense
    assert expected is not None
    where: dict[str, Any] = {  # it closes no client, so none may keep a connection
        "base_url": url, "client_kwargs": {"limits": httpx.Limits(max_keepalive_connections=0)},
    }  # fmt: skip
    client = OllamaEmbeddings(model="fake-m3", validate_model_on_init=True, temperature=0.5, **where)
    np.testing.assert_array_equal(np.array(client.embed_documents(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(client.embed_query(TEXTS[0]), np.float32), expected[0])
    np.testing.assert_array_equal(np.array(asyncio.run(client.aembed_query(TEXTS[1])), np.float32), expected[1])
    cut = served.encode(TEXTS[:1], max_tokens=4).dense
    assert cut is not None
    short = OllamaEmbeddings(model="fake-m3", num_ctx=4, **where).embed_query(TEXTS[0])
    np.testing.assert_array_equal(np.array(short, np.float32), cut[0])
    with pytest.raises(ValueError, match="Available local models: fake-m3:latest"):
        OllamaEmbeddings(model="missing", validate_model_on_init=True, **where)
