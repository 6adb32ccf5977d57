"""A collection as a component of Haystack: alone, in a pipeline, from a server (extra `haystack`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeEncoder
from tests.integrations.frameworks import DOCUMENTS, QUESTION, in_memory, on_a_server, run_guide

from threefold.client import AsyncClient, Client
from threefold.errors import InputError, MissingExtraError
from threefold.integrations import haystack
from threefold.integrations.hits import metadata_of
from threefold.text.tokenizer import Tokenizer

needs_haystack = pytest.mark.peers


@pytest.fixture(autouse=True)
def _nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Haystack sends statistics, and asks when it is imported whether it may."""
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "false")


def test_without_the_package_its_name_and_extra_are_said(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    haystack._component.cache_clear()
    monkeypatch.setitem(sys.modules, "haystack", None)
    with pytest.raises(MissingExtraError, match=r'needs the package "haystack-ai".*threefold\[haystack\]'):
        haystack.retriever(in_memory(encoder))


def leaf(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


FILTERS = [
    (leaf("meta.year", "==", 2024), {"year": 2024}),
    (leaf("year", ">=", 2024), {"year": {"gte": 2024}}),
    (leaf("meta.year", "<", 2000), {"year": {"lt": 2000}}),
    (leaf("meta.year", "!=", 2024), {"not": {"year": 2024}}),
    (leaf("meta.tags", "in", ["a"]), {"tags": {"in": ["a"]}}),
    (leaf("meta.threefold.document_id", "not in", ["fox"]), {"not": {"document_id": {"in": ["fox"]}}}),
    (
        {
            "operator": "NOT",
            "conditions": [leaf("meta.author.name", "==", "Ann"), leaf("meta.threefold.number", "==", 0)],
        },
        {"not": {"and": [{"author.name": "Ann"}, {"number": 0}]}},
    ),
    (
        {"operator": "OR", "conditions": [{"operator": "AND", "conditions": [leaf("meta.year", ">", 0)]}]},
        {"or": [{"and": [{"year": {"gt": 0}}]}]},
    ),
]


@pytest.mark.parametrize(("filters", "where"), FILTERS)
def test_filters_of_haystack_are_said_in_our_words(filters: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    assert haystack.where_of(filters) == where


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (leaf("content", "==", "fox"), "'content' is not a field that a collection can filter by"),
        (leaf("meta.threefold.start", ">", 5), "'meta.threefold.start' is not a field"),
        (leaf("meta.year", "~", 1), "not a condition of Haystack"),
        ({"operator": "XOR", "conditions": []}, "not a condition of Haystack"),
        ({"year": 2024}, "not a condition of Haystack"),
    ],
)
def test_other_filters_are_refused(filters: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        haystack.where_of(filters)


@needs_haystack
@pytest.mark.parametrize("filters", [filters for filters, _ in FILTERS])
def test_filters_mean_what_they_mean_in_haystack(encoder: FakeEncoder, filters: dict[str, Any]) -> None:
    from haystack.utils.filters import document_matches_filter

    component = haystack.retriever(in_memory(encoder))
    every = component.run(QUESTION)["documents"]
    assert len(every) == len(DOCUMENTS)
    found = component.run(QUESTION, filters=filters)["documents"]
    assert [one.id for one in found] == [
        one.id
        for one in every
        if (one.meta.get("tags") and "tags" in str(filters)) or document_matches_filter(filters, one)
    ]  # a list matches by each of its items here


@needs_haystack
def test_documents_are_the_hits(encoder: FakeEncoder) -> None:
    from haystack import Document
    from haystack.core.component import Component

    papers = in_memory(encoder)
    component: Any = haystack.retriever(papers, k=2, mode="dense", quote=True, where={"not": {"year": 1994}})
    assert isinstance(haystack.retriever(papers), Component)
    found = component.run(QUESTION)["documents"]
    hits = papers.search(QUESTION, k=2, mode="dense", quote=True, where={"not": {"year": 1994}})
    assert [(one.id, one.content, one.score) for one in found] == [(hit.id, hit.text, hit.score) for hit in hits]
    assert [one.meta for one in found] == [metadata_of(hit) for hit in hits]
    assert [Document.from_dict(one.to_dict()) for one in found] == found
    assert len(component.run(QUESTION, top_k=1)["documents"]) == 1
    assert component.run(QUESTION, filters=leaf("meta.year", "==", 1994))["documents"] == []  # `where` holds as well
    assert asyncio.run(component.run_async(QUESTION))["documents"] == found


@needs_haystack
def test_a_pipeline(encoder: FakeEncoder) -> None:
    from haystack import Pipeline
    from haystack.components.builders import PromptBuilder

    pipeline = Pipeline()
    pipeline.add_component("retriever", haystack.retriever(in_memory(encoder), k=2))
    pipeline.add_component(
        "prompt", PromptBuilder("{% for one in documents %}{{ one.content }}{% endfor %}", required_variables="*")
    )
    pipeline.connect("retriever.documents", "prompt.documents")
    asked = {"retriever": {"query": QUESTION, "top_k": 1}}
    assert pipeline.run(asked)["prompt"]["prompt"] == "The quick brown fox."
    assert asyncio.run(pipeline.run_async(asked))["prompt"]["prompt"] == "The quick brown fox."
    with pytest.raises(InputError, match="cannot be written to a file"):
        pipeline.dumps()


@needs_haystack
def test_the_collection_of_a_server(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    async def awaited(url: str) -> Any:
        async with AsyncClient(url) as client:
            component = haystack.retriever(client.collection("papers"), k=2)
            with pytest.raises(InputError, match="can only be awaited"):
                component.run(QUESTION)
            return await component.run_async(QUESTION, filters=leaf("meta.year", ">", 0))

    with on_a_server(tokenizer, tmp_path) as url, Client(url) as client:
        component = haystack.retriever(client.collection("papers"), k=2, quote=True)
        found = component.run(QUESTION, filters=leaf("meta.year", ">", 0))["documents"]
        assert [one.id for one in found] == ["fox#0", "dog#0"]
        assert [one.content for one in found] == [one.text for one in DOCUMENTS[:2]]
        assert found[0].meta["threefold"]["quote"]["text"] == "The quick brown fox."
        assert [one.id for one in asyncio.run(awaited(url))["documents"]] == ["fox#0", "dog#0"]


@needs_haystack
def test_the_guide(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_guide("Haystack")
    said = capsys.readouterr().out
    assert said.startswith("The sparse head is trained by self-distillation.\n")
    assert "BM25" not in said  # it is from 1994
