"""A collection as a retriever of LangChain: alone, in chains, from a server (extra `langchain`)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.fakes import FakeEncoder
from tests.integrations.frameworks import DOCUMENTS, QUESTION, in_memory, on_a_server, run_guide

from threefold.client import AsyncClient, Client
from threefold.errors import InputError, MissingExtraError
from threefold.integrations import langchain
from threefold.integrations.hits import metadata_of
from threefold.text.tokenizer import Tokenizer

needs_langchain = pytest.mark.peers


def test_without_the_package_its_name_and_extra_are_said(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (langchain._retriever, langchain._embeddings):
        made.cache_clear()
    for name in ("langchain_core.documents", "langchain_core.embeddings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'needs the package "langchain-core".*threefold\[langchain\]'):
        langchain.retriever(in_memory(encoder))
    with pytest.raises(MissingExtraError, match=r"embeddings of LangChain needs .*threefold\[langchain\]"):
        langchain.embeddings(encoder)


@needs_langchain
def test_documents_are_the_hits(encoder: FakeEncoder) -> None:
    from langchain_core.retrievers import BaseRetriever

    papers = in_memory(encoder)
    retriever = langchain.retriever(papers, k=2, mode="dense", quote=True)
    assert isinstance(retriever, BaseRetriever)
    documents, hits = retriever.invoke(QUESTION), papers.search(QUESTION, k=2, mode="dense", quote=True)
    assert [one.id for one in documents] == [hit.id for hit in hits]
    assert [one.page_content for one in documents] == [hit.text for hit in hits]
    assert [one.metadata for one in documents] == [metadata_of(hit) for hit in hits]
    assert documents[0].metadata["threefold"]["quote"]["text"] == "The quick brown fox."


@needs_langchain
def test_options_of_a_call_take_the_place_of_those_of_the_retriever(encoder: FakeEncoder) -> None:
    from langchain_core.runnables import ConfigurableField

    retriever = langchain.retriever(in_memory(encoder), k=2, where={"year": {"gte": 2000}})
    assert [one.id for one in retriever.invoke(QUESTION)] == ["fox#0"]
    assert [one.id for one in retriever.invoke(QUESTION, where={"year": 1994})] == ["dog#0"]
    assert len(retriever.bind(where=None).invoke(QUESTION)) == 2
    named = retriever.configurable_fields(search_kwargs=ConfigurableField(id="search"))
    assert len(named.invoke(QUESTION, config={"configurable": {"search": {"k": 3}}})) == 3


@needs_langchain
def test_chains_batches_and_awaited_calls(encoder: FakeEncoder) -> None:
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnablePassthrough

    retriever = langchain.retriever(in_memory(encoder), k=1)
    prompt = ChatPromptTemplate.from_template("{context}|{question}")
    chain = {"context": retriever | (lambda found: found[0].page_content), "question": RunnablePassthrough()} | prompt
    expected = f"Human: The quick brown fox.|{QUESTION}"
    assert chain.invoke(QUESTION).to_string() == expected
    assert asyncio.run(chain.ainvoke(QUESTION)).to_string() == expected
    assert [found[0].id for found in retriever.batch([QUESTION, "lazy dog"])] == ["fox#0", "dog#0"]


@needs_langchain
def test_the_collection_of_a_server(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    async def awaited(url: str) -> list[str | None]:
        async with AsyncClient(url) as client:
            retriever = langchain.retriever(client.collection("papers"), k=2)
            with pytest.raises(InputError, match="can only be awaited"):
                retriever.invoke(QUESTION)
            return [one.id for one in await retriever.ainvoke(QUESTION)]

    with on_a_server(tokenizer, tmp_path) as url, Client(url) as client:
        retriever = langchain.retriever(client.collection("papers"), k=2, quote=True)
        documents = retriever.invoke(QUESTION)
        expected = langchain.retriever(in_memory(encoder), k=2, quote=True).invoke(QUESTION)
        assert [(one.id, one.page_content) for one in documents] == [(one.id, one.page_content) for one in expected]
        assert documents[0].metadata["year"] == DOCUMENTS[0].metadata["year"]
        assert documents[0].metadata["threefold"]["quote"]["text"] == "The quick brown fox."
        assert asyncio.run(awaited(url)) == [one.id for one in documents]
        assert asyncio.run(retriever.ainvoke(QUESTION)) == documents


@needs_langchain
def test_embeddings_have_the_prompts_of_the_model(tokenizer: Tokenizer) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    encoder = FakeEncoder(tokenizer, prompt="quick ", max_tokens=16)
    vectors = langchain.embeddings(encoder)
    dense = encoder.encode(["quick a fox", "quick dog"]).dense
    assert dense is not None
    assert vectors.embed_documents(["a fox", "dog"]) == dense.tolist()
    assert vectors.embed_query("dog") == asyncio.run(vectors.aembed_query("dog")) == dense[1].tolist()
    store = InMemoryVectorStore.from_texts(["a fox", "the dog"], vectors)
    assert store.similarity_search("fox", k=1)[0].page_content == "a fox"
    with pytest.raises(InputError):
        langchain.embeddings(encoder, truncate="none").embed_query("fox " * 50)


@needs_langchain
def test_the_guide(home: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with on_a_server(tokenizer, tmp_path / "served") as url:
        run_guide("LangChain", url)
    said = capsys.readouterr().out
    assert said.startswith("The sparse head is trained by self-distillation. 2024 {'text': 'The sparse head")
    assert "BM25 is a ranking function" in said
