"""A collection as a retriever of LlamaIndex: alone, in a query engine, from a server (extra `llama-index`)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeEncoder
from tests.integrations.frameworks import QUESTION, in_memory, on_a_server, run_guide

from threefold.client import AsyncClient, Client
from threefold.errors import InputError, MissingExtraError
from threefold.integrations import llama_index
from threefold.integrations.hits import metadata_of
from threefold.text.tokenizer import Tokenizer


def needs_llama_index(test: Any) -> Any:
    """What it imports warns about itself."""
    return pytest.mark.peers(pytest.mark.filterwarnings("ignore")(test))


def test_without_the_package_its_name_and_extra_are_said(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (llama_index._retriever, llama_index._embedding):
        made.cache_clear()
    for name in ("llama_index.core.retrievers", "llama_index.core.base.embeddings.base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'needs the package "llama-index-core".*threefold\[llama-index\]'):
        llama_index.retriever(in_memory(encoder))
    with pytest.raises(MissingExtraError, match=r"embeddings of LlamaIndex needs .*threefold\[llama-index\]"):
        llama_index.embeddings(encoder)


@needs_llama_index
def test_nodes_are_the_hits(encoder: FakeEncoder) -> None:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import MetadataMode

    papers = in_memory(encoder)
    retriever = llama_index.retriever(papers, k=2, weights={"dense": 1.0, "sparse": 0.0}, quote=True)
    assert isinstance(retriever, BaseRetriever)
    nodes = retriever.retrieve(QUESTION)
    hits = papers.search(QUESTION, k=2, weights={"dense": 1.0, "sparse": 0.0}, quote=True)
    assert [(one.node_id, one.score, one.text) for one in nodes] == [(hit.id, hit.score, hit.text) for hit in hits]
    assert [one.metadata for one in nodes] == [metadata_of(hit) for hit in hits]
    first: Any = nodes[0].node
    assert (first.ref_doc_id, first.start_char_idx, first.end_char_idx) == ("fox", 0, 20)
    shown = "source: fox.txt\ntitle: Fox\nlanguage: en\nyear: 2024\n\nThe quick brown fox."
    assert first.get_content(MetadataMode.LLM) == first.get_content(MetadataMode.EMBED) == shown
    assert asyncio.run(retriever.aretrieve(QUESTION)) == nodes


@needs_llama_index
def test_a_query_engine(encoder: FakeEncoder) -> None:
    from llama_index.core.llms import MockLLM
    from llama_index.core.postprocessor import SimilarityPostprocessor
    from llama_index.core.query_engine import RetrieverQueryEngine

    retriever = llama_index.retriever(in_memory(encoder), where={"year": {"gt": 0}})
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    answer = engine.query(QUESTION)
    assert [one.node_id for one in answer.source_nodes] == ["fox#0", "dog#0"]
    assert "The quick brown fox." in str(answer)  # the mock says what it was told
    assert "content_hash" not in str(answer)
    assert asyncio.run(engine.aquery(QUESTION)).source_nodes == answer.source_nodes
    best = answer.source_nodes[0].get_score()
    strict = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=best)]
    )
    assert [one.node_id for one in strict.query(QUESTION).source_nodes] == ["fox#0"]


@needs_llama_index
def test_the_collection_of_a_server(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    async def awaited(url: str) -> list[str]:
        async with AsyncClient(url) as client:
            retriever = llama_index.retriever(client.collection("papers"), k=2)
            with pytest.raises(InputError, match="can only be awaited"):
                retriever.retrieve(QUESTION)
            return [one.node_id for one in await retriever.aretrieve(QUESTION)]

    with on_a_server(tokenizer, tmp_path) as url, Client(url) as client:
        retriever = llama_index.retriever(client.collection("papers"), k=2, quote=True)
        nodes = retriever.retrieve(QUESTION)
        expected = llama_index.retriever(in_memory(encoder), k=2, quote=True).retrieve(QUESTION)
        assert [(one.node_id, one.text) for one in nodes] == [(one.node_id, one.text) for one in expected]
        assert nodes[0].metadata["threefold"]["quote"]["text"] == "The quick brown fox."
        assert asyncio.run(awaited(url)) == [one.node_id for one in nodes]


@needs_llama_index
def test_embeddings_have_the_prompts_of_the_model(tokenizer: Tokenizer) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    encoder = FakeEncoder(tokenizer, prompt="quick ", max_tokens=16)
    model = llama_index.embeddings(encoder)
    dense = encoder.encode(["quick a fox", "quick dog"]).dense
    assert dense is not None
    assert model.model_name == "fake"
    assert model.get_text_embedding_batch(["a fox", "dog"]) == dense.tolist()
    assert model.get_text_embedding("dog") == model.get_query_embedding("dog") == dense[1].tolist()
    assert asyncio.run(model.aget_query_embedding("dog")) == dense[1].tolist()
    assert asyncio.run(model.aget_text_embedding_batch(["a fox", "dog"])) == dense.tolist()
    index = VectorStoreIndex([TextNode(text="a fox"), TextNode(text="the dog")], embed_model=model)
    assert index.as_retriever(similarity_top_k=1).retrieve("fox")[0].text == "a fox"
    with pytest.raises(InputError):
        llama_index.embeddings(encoder, truncate="none").get_text_embedding("fox " * 50)


@needs_llama_index
def test_the_guide(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_guide("LlamaIndex")
    assert "[('heads#0', " in capsys.readouterr().out
