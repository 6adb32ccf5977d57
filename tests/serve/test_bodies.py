"""Bodies that are large on purpose: bounded before they are parsed, and parsed beside the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from tests.serve.fakes import START_S, ServedEncoder, make_server, serving

from threefold.serve import bodies
from threefold.serve.collections import FILTER_VALUES
from threefold.serve.errors import LONGEST, RequestError
from threefold.serve.lines import VALUES
from threefold.serve.rerank import RANK_FIELDS
from threefold.serve.settings import ServeConfig
from threefold.serve.tei import embedded

CONFIG = ServeConfig(max_inputs=8, max_request_tokens=1_000, max_body_bytes=1_000_000)
TEXT = st.text('a,"\\[{é\n', max_size=6)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=12
)


@pytest.fixture
def client(served: ServedEncoder, tmp_path: Path) -> Iterator[httpx.Client]:
    config = ServeConfig(**{**CONFIG.to_dict(), "limits": CONFIG.limits, "collections": str(tmp_path)})
    with serving(make_server(served, config)) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        yield client


# ---- the bound ---------------------------------------------------------------------------------------------


def count(tree: Any) -> int:
    """Commas, and ten for every array and object."""
    if not isinstance(tree, dict | list):
        return 0
    inner = tree.values() if isinstance(tree, dict) else tree
    return bodies.CONTAINER + max(len(tree) - 1, 0) + sum(map(count, inner))


@given(TREES, st.integers(1, 9), st.booleans())
def test_values_are_counted_outside_of_texts_wherever_pieces_end(tree: Any, piece: int, escaped: bool) -> None:
    raw, expected = json.dumps(tree, ensure_ascii=escaped).encode(), count(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "PIECE", piece)
        bodies.check_values(raw, expected)
        if expected:
            with pytest.raises(RequestError, match=f"the body has more than {expected - 1:,} values"):
                bodies.check_values(raw, expected - 1)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/embeddings", {"model": "fake-m3", "input": [1] * 1_200}, 413),
        ("/embed", {"inputs": [[]] * 120}, 413),
        ("/embed", {"inputs": "a,[{" * 3_000}, 200),
        ("/collections/c/search", {"query": "a", "where": {"a": {"in": ["b"] * FILTER_VALUES}}}, 413),
        ("/collections/c/documents/delete", {"where": {"a": {"in": ["b"] * 200}}}, 404),
    ],
)
def test_a_body_with_too_many_values_is_refused_before_it_is_parsed(
    client: httpx.Client, path: str, body: Any, code: int
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == code
    assert ("values (items and fields; an array or object counts as 10)" in answer.text) == (code == 413)
    if path == "/v1/embeddings":
        assert answer.json()["error"]["code"] == "request_too_large"  # by which our client sends less at once


def test_a_filter_has_fewer_values_than_ids(served: ServedEncoder, tmp_path: Path) -> None:
    with (
        serving(make_server(served, ServeConfig(collections=str(tmp_path)))) as url,
        httpx.Client(base_url=url, timeout=START_S) as client,
    ):
        client.put("/collections/c")
        route, many = "/collections/c/documents/delete", ["b"] * (FILTER_VALUES + 1)
        assert client.post(route, json={"ids": many}).status_code == 200
        filtered = client.post(route, json={"where": {"a": {"in": many}}})
        assert filtered.status_code == 413
        assert "where has more than 10,000 values" in filtered.text
        searched = client.post("/collections/c/search", json={"query": "a", "where": {"a": {"in": many}}})
        assert searched.status_code == 413
        saved = client.put("/collections/c/retrievers/r", json={"candidates": [], "where": {"a": {"in": many}}})
        assert saved.status_code == 413


def test_a_line_with_too_many_values_is_skipped_with_the_reason(client: httpx.Client) -> None:
    client.put("/collections/c")
    lines = [{"id": "1", "text": "a fox", "metadata": {"n": [0] * VALUES}}, {"id": "2", "text": "a fox"}]
    body = "\n".join(map(json.dumps, lines))
    report = json.loads(client.post("/collections/c/documents", content=body).text.splitlines()[-1])["report"]
    assert (report["added"], report["skipped"]) == (1, 1)
    assert "the line has more than 32,768 values" in report["reasons"][0]["reason"]


def test_documents_are_read_by_few_fields_and_each_once(client: httpx.Client) -> None:
    body = {"query": "fox", "documents": [{"a": "fox", "b": "dog"}], "rank_fields": ["a", "b", "a"]}
    (found,) = client.post("/v1/rerank", json=body).json()["results"]
    assert found["document"]["text"] == "fox\ndog"
    many = client.post("/v1/rerank", json={**body, "rank_fields": ["a"] * (RANK_FIELDS + 1)})
    assert many.status_code == 400
    assert "at most 64 items" in many.text
    documents = client.post("/v1/rerank", json={**body, "documents": [{}] * 9})  # counted before they are read
    assert "batch size 9 > maximum allowed batch size 8" in documents.text


def test_instances_are_begun_a_few_at_a_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, most = 0, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal begun, most
        begun, most = begun + 1, max(most, begun + 1)
        try:
            return await embedded(*arguments)
        finally:
            begun -= 1

    monkeypatch.setattr("threefold.serve.vertex.embedded", counted)
    monkeypatch.setattr("threefold.serve.vertex.AT_ONCE", 3)
    answer = client.post("/vertex", json={"instances": [{"inputs": "a"}] * 8})
    assert len(answer.json()["predictions"]) == 8
    assert most == 3


# ---- beside the loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed", "/rerank", "/v1/embeddings"])
def test_others_are_answered_while_a_large_body_is_parsed(
    client: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, free = threading.Event(), threading.Event()
    check = bodies.check_values

    def held(raw: bytes, most: int, what: str = "") -> None:
        if len(raw) > bodies.SMALL:
            began.set()
            assert free.wait(START_S)
        check(raw, most)

    monkeypatch.setattr(bodies, "check_values", held)
    fields = {"/rerank": "texts", "/embed": "inputs", "/v1/embeddings": "input"}
    body = {"query": "a"} if path == "/rerank" else {"model": "fake-m3"} if path == "/v1/embeddings" else {}
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(client.post, path, json={**body, fields[path]: ["a"], "truncate": "x" * bodies.SMALL})
        assert began.wait(START_S)
        assert client.get("/health").status_code == 200
        assert client.post("/embed", json={"inputs": "a fox"}).status_code == 200
        assert not large.done()
        free.set()
        assert large.result(START_S).status_code in (400, 422)


# ---- what is said of it ------------------------------------------------------------------------------------


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str]


def test_the_first_wrong_thing_is_named_unless_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "REPORTED", 3)
    with pytest.raises(RequestError, match=r"ids\.1: Input should be a valid string") as found:
        bodies.parse(Strict, b'{"ids": ["a", 1, 2, 3]}')
    assert found.value.param == "ids.1"
    with pytest.raises(RequestError, match="4 fields or items of the body are unknown or of a wrong type"):
        bodies.parse(Strict, b'{"ids": ["a", 1, 2], "b": 1, "c": 2}')


def test_an_error_does_not_send_back_what_was_sent(client: httpx.Client) -> None:
    name = "x" * 100_000
    unknown = client.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"].endswith("x…")
    field = client.post("/v1/embeddings", json={"model": "fake-m3", "input": "a", name: 1})
    assert field.json()["error"]["param"] == "x" * LONGEST + "…"
    client.put("/collections/c")
    line = json.dumps({"id": "1", "text": "a", name: 1})
    (why,) = json.loads(client.post("/collections/c/documents", content=line).text)["report"]["reasons"]
    assert len(why["reason"]) == LONGEST + 1
