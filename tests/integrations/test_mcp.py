"""A collection as tools of an agent: by the client of the package `mcp`, in this process and over pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import FakeEncoder

from threefold.collection import Collection
from threefold.config import Chunking
from threefold.errors import MissingExtraError
from threefold.integrations import mcp
from threefold.types import Chunk, Document

LONG = "\n\n".join(f"Paragraph {i} says that the quick brown fox jumps over the lazy dog." for i in range(300))
DOCUMENTS = [
    Document("fox", "The quick brown fox.", title="Fox", source="fox.txt", language="en"),
    Document("fuchs", "Der schnelle braune Fuchs.", language="de"),
    Document("long", LONG),
]


@given(st.text(max_size=60), st.data())
def test_a_document_is_put_together_from_its_chunks(text: str, data: st.DataObject) -> None:
    """Chunks that overlap, in any order; between two of them there may be a gap."""
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=8)))
    spans = [(start, min(end + 2, len(text))) for start, end in pairwise(borders)]
    chunks = [Chunk("d", i, start, end, text[start:end]) for i, (start, end) in enumerate(spans)]
    got = mcp.whole(data.draw(st.permutations(chunks)))
    covered = {place for start, end in spans for place in range(start, end)}
    assert len(got) == max(end for _, end in spans)
    assert all(got[i] == text[i] if i in covered else got[i] in " \n" for i in range(len(got)))


def test_without_the_package_its_name_and_extra_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(MissingExtraError, match=r"threefold mcp --in papers needs .*threefold\[mcp\]"):
        mcp.server(lambda: pytest.fail("nothing is opened"), "papers")


@pytest.fixture
def folder(tmp_path: Path, encoder: FakeEncoder) -> Path:
    with Collection(tmp_path / "papers", encoder, chunking=Chunking(max_tokens=64, overlap=8)) as made:
        made.add(DOCUMENTS)
    return tmp_path / "papers"


def asked(folder: Path, encoder: FakeEncoder, ask: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """What a client of a server of the collection is told."""
    import anyio
    from mcp.client import Client

    async def run() -> Any:
        made = mcp.server(lambda: Collection(folder, encoder, create=False), "papers")
        async with Client(made) as client:
            return await ask(client)

    return anyio.run(run)


def called(folder: Path, encoder: FakeEncoder, tool: str, **arguments: Any) -> Any:
    return asked(folder, encoder, lambda client: client.call_tool(tool, arguments))


@pytest.mark.peers
def test_tools_are_described_and_change_nothing(folder: Path, encoder: FakeEncoder) -> None:
    tools = asked(folder, encoder, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["search", "recommend", "read", "documents"]
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert all(name in tool.description for name in tool.input_schema["properties"])


@pytest.mark.peers
def test_answers_are_those_of_the_collection(folder: Path, encoder: FakeEncoder) -> None:
    found = called(folder, encoder, "search", query="a quick fox", k=2, where={"language": "en"})
    (hit,) = found.structured_content["result"]
    with Collection(folder, encoder) as papers:  # nobody holds it between two calls
        (same,) = papers.search("a quick fox", k=2, where={"language": "en"})
        more = papers.recommend(["fox"], k=3)
    assert hit == {
        "document": "fox", "title": "Fox", "source": "fox.txt", "start": 0, "end": 20,
        "score": round(same.score, 4), "text": "The quick brown fox.",
    }  # fmt: skip
    liked = called(folder, encoder, "recommend", like=["fox"], k=3).structured_content["result"]
    assert [one["document"] for one in liked] == [one.chunk.document_id for one in more]
    listed = called(folder, encoder, "documents", skip=1).structured_content["result"]
    assert [one["document"] for one in listed] == ["fuchs", "long"]


@pytest.mark.peers
def test_a_short_answer_is_the_sentence_that_answers_best(folder: Path, encoder: FakeEncoder) -> None:
    text = "The lazy dog sleeps. The quick brown fox jumps."
    with Collection(folder, encoder) as papers:
        papers.add(Document("two", text))
    asked_for = {"query": "quick fox", "where": {"document_id": "two"}}
    (hit,) = called(folder, encoder, "search", **asked_for, short=True).structured_content["result"]
    assert (hit["text"], hit["start"], hit["end"]) == ("The quick brown fox jumps.", 21, 47)
    (whole,) = called(folder, encoder, "search", **asked_for).structured_content["result"]
    assert whole["text"] == text


@pytest.mark.peers
def test_a_long_document_is_read_in_pieces(folder: Path, encoder: FakeEncoder) -> None:
    text, start = "", 0
    while True:
        piece = called(folder, encoder, "read", document="long", start=start).structured_content
        assert (piece["start"], piece["length"]) == (start, len(LONG))
        text, start = text + piece["text"], piece["end"]
        if start == piece["length"]:
            break
    assert text == LONG


@pytest.mark.peers
@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("read", {"document": "nobody"}, "there is no document 'nobody' in 'papers'"),
        ("read", {"document": "fox", "start": 99}, "start 99: the document has 20 characters"),
        ("search", {"query": " "}, "the query is empty"),
        ("search", {"query": "a", "k": 101}, "k must be at most 100; got 101"),
        ("search", {"query": "a", "where": {"n": {"like": 1}}}, "unknown operator 'like'"),
        ("recommend", {"like": []}, "give at least one id"),
        ("search", {"k": "many"}, "search: query: field required; k: input should be a valid integer"),
    ],
)
def test_an_agent_is_told_what_to_mend(
    folder: Path, encoder: FakeEncoder, tool: str, arguments: dict[str, Any], words: str
) -> None:
    answer = called(folder, encoder, tool, **arguments)
    assert answer.is_error
    assert words in answer.content[0].text
    assert "pydantic" not in answer.content[0].text


@pytest.mark.peers
def test_while_another_process_has_it_open_an_agent_is_told(
    folder: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "PATIENCE_S", 0.05)
    with Collection(folder, encoder):
        answer = called(folder, encoder, "search", query="fox")
    assert answer.is_error
    assert "Close it there first" in answer.content[0].text


@pytest.mark.peers
def test_the_command_speaks_over_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the embedded model, in a process of its own."""
    import anyio
    from mcp import StdioServerParameters
    from mcp.client import Client

    from threefold import Encoder

    with Collection(tmp_path / "papers", Encoder()) as made:
        made.add([Document("tides", "The moon pulls the sea."), Document("bread", "Dough rises by yeast.")])
    command = ["-m", "threefold", "mcp", "--in", str(tmp_path / "papers")]
    process = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))

    async def run() -> Any:
        async with Client(process) as client:
            return await client.call_tool("search", {"query": "Warum gibt es Ebbe und Flut?", "k": 1})

    assert anyio.run(run).structured_content["result"][0]["document"] == "tides"
