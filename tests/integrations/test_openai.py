"""A remote encoder, against an endpoint that runs in the test."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEncoder
from tests.web import serving

from threefold.errors import InputError, MissingHeadError, NumericalError, OfflineError
from threefold.evaluate.task import Task
from threefold.integrations.openai import ATTEMPTS, RemoteEncoder
from threefold.retrieve.experiment import Protocol, available_modes, run_task


class Endpoint(BaseHTTPRequestHandler):
    """Answers with vectors of a fake encoder, twice as long as unit, in reverse order."""

    encoder: FakeEncoder
    asked: list[dict[str, Any]]
    failures: list[tuple[int, dict[str, str]]]
    answer: Any = None
    raw: tuple[bytes, dict[str, str]] | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        if self.raw is not None:
            return self._send(200, *self.raw)
        if self.failures:
            status, headers = self.failures.pop(0)
            return self._send(status, b'{"error": {"message": "not now"}}', headers)
        dense = self.encoder.encode(body["input"]).dense
        assert dense is not None
        rows = [{"index": i, "embedding": (2 * row).tolist()} for i, row in enumerate(dense)]
        answer = {"data": rows[::-1]} if self.answer is None else self.answer
        self._send(200, json.dumps(answer).encode(), {})

    def log_message(self, *_: Any) -> None: ...

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def endpoint(encoder: FakeEncoder) -> Iterator[type[Endpoint]]:
    handler = type("OneEndpoint", (Endpoint,), {"encoder": encoder, "asked": [], "failures": []})
    with serving(handler) as address:
        handler.url = f"{address}/v1"  # type: ignore[attr-defined]
        yield handler


def connect(endpoint: type[Endpoint], **options: Any) -> RemoteEncoder:
    url: str = endpoint.url  # type: ignore[attr-defined]
    return RemoteEncoder(url, "some-model", **{"sleep": lambda _: None, **options})


def test_the_same_vectors_as_here(endpoint: type[Endpoint], encoder: FakeEncoder) -> None:
    with connect(endpoint, api_key="secret", batch_size=2, query_prompt="query: ") as remote:
        assert remote.card.dense_dim == 16
        assert remote.card.representations == ("dense",)
        found = remote.encode_documents(["quick fox", "lazy dog", "quick fox"])
        remote.encode_queries(["who"])
    expected = encoder.encode(["quick fox", "lazy dog", "quick fox"]).dense
    assert expected is not None
    assert found.dense is not None
    np.testing.assert_allclose(found.dense, expected, atol=1e-6)
    assert [one["input"] for one in endpoint.asked] == [
        ["dimension"],
        ["quick fox", "lazy dog"],
        ["quick fox"],
        ["query: who"],
    ]
    assert {one["key"] for one in endpoint.asked} == {"Bearer secret"}
    assert {one["path"] for one in endpoint.asked} == {"/v1/embeddings"}
    assert {one["model"] for one in endpoint.asked} == {"some-model"}


def test_it_can_be_evaluated(endpoint: type[Endpoint]) -> None:
    task = Task("pets", {"a": "quick fox", "b": "lazy dog"}, {"q": "lazy dog"}, {"q": {"b": 1}})
    with connect(endpoint, dimensions=16) as remote:
        rows = run_task(task, remote, Protocol(modes=("dense", "bm25-words"))).rows
        assert [row.values["nDCG@10"] for row in rows] == [1.0, 1.0]
        sent = len(endpoint.asked)
        with pytest.raises(InputError, match="no tokenizer to offer"):
            run_task(task, remote, Protocol(modes=("bm25", "dense")))
        assert len(endpoint.asked) == sent  # nothing was sent, and nothing paid for
        assert available_modes(remote.card) == ("dense",)
        with pytest.raises(InputError, match="mode 'sparse' needs sparse"):
            run_task(task, remote, Protocol(modes=("sparse",)))
    assert endpoint.asked[0]["dimensions"] == 16


def test_it_waits_as_long_as_it_is_told(endpoint: type[Endpoint]) -> None:
    waited: list[float] = []
    endpoint.failures += [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "999"})]
    connect(endpoint, sleep=waited.append).close()
    assert waited == [7.0, 4.0, 30.0]
    endpoint.failures += [(503, {})] * ATTEMPTS
    with pytest.raises(InputError, match="answered 503"):
        connect(endpoint)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"data": []}, "answered 0 vectors for 1 texts"),
        ({"data": [{"index": 0}]}, "answered in another format"),
        ([], "answered in another format"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "answered in another format"),
        ({"data": [{"index": 0, "embedding": [10**400]}]}, "answered in another format"),
        ({"data": [{"index": 0, "embedding": []}]}, "answered vectors without numbers"),
    ],
)
def test_answers_that_are_none(endpoint: type[Endpoint], answer: Any, message: str) -> None:
    endpoint.answer = answer
    with pytest.raises(InputError, match=message):
        connect(endpoint)


def test_what_cannot_be_asked(endpoint: type[Endpoint]) -> None:
    endpoint.failures.append((401, {}))
    with pytest.raises(InputError, match=r"embeddings answered 401: .*not now"):
        connect(endpoint)
    with pytest.raises(InputError, match="is not an address"):
        RemoteEncoder("localhost", "m")
    with pytest.raises(OfflineError, match="cannot be reached"):
        RemoteEncoder("http://127.0.0.1:9", "m", sleep=lambda _: None)
    with connect(endpoint) as remote:
        with pytest.raises(MissingHeadError, match="dense vectors only, not multi"):
            remote.encode(["x"], outputs=["multi"])
        with pytest.raises(InputError, match="truncate='start' is not possible"):
            remote.encode(["x"], truncate="start")
        empty = remote.encode([])
        assert empty.dense is not None
        assert empty.dense.shape == (0, 16)
        endpoint.answer = {"data": [{"index": 0, "embedding": [float("nan")] * 16}]}
        with pytest.raises(NumericalError, match="NaN or infinity"):
            remote.encode(["x"])


def test_vectors_of_other_dimensions_than_at_first(endpoint: type[Endpoint]) -> None:
    with connect(endpoint) as remote:
        endpoint.answer = {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}
        with pytest.raises(InputError, match="answered vectors of 2 dimensions, and of 16 at first"):
            remote.encode(["x"])


def test_a_broken_body_is_not_asked_for_again(endpoint: type[Endpoint]) -> None:
    endpoint.raw = (b"no gzip", {"Content-Encoding": "gzip"})
    with pytest.raises(InputError, match="gave an answer that cannot be read"):
        connect(endpoint)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://", {}, "'http://' is not an address"),
        ("http://127.0.0.1:9", {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ("http://127.0.0.1:9", {"batch_size": -1}, "batch_size must be at least 1; got -1"),
        ("http://127.0.0.1:9", {"api_key": "ключ"}, "no header can carry it"),
        ("http://127.0.0.1:9", {"api_key": "key\n"}, "no header can carry it"),
    ],
)
def test_settings_that_no_request_can_have(url: str, options: dict[str, Any], message: str) -> None:
    waited: list[float] = []
    with pytest.raises(InputError, match=message):
        RemoteEncoder(url, "m", sleep=waited.append, **options)
    assert waited == []


def test_texts_that_json_cannot_carry(endpoint: type[Endpoint]) -> None:
    with connect(endpoint, document_prompt="doc: ") as remote:
        remote.encode(["\ud800"])
        remote.encode_documents(["\ud800"])
        for encode in (remote.encode, remote.encode_queries, remote.encode_documents):
            with pytest.raises(InputError, match="expected a list of texts, got one text"):
                encode("abc")
            with pytest.raises(InputError, match="text 1 must be a string; got NoneType"):
                encode(["x", None])  # type: ignore[list-item]
    assert [one["input"] for one in endpoint.asked[1:]] == [["\ufffd"], ["doc: \ufffd"]]


def test_a_limit_that_is_not_applied_is_said_once(endpoint: type[Endpoint], caplog: pytest.LogCaptureFixture) -> None:
    with connect(endpoint, max_tokens=64) as remote, caplog.at_level(logging.WARNING):
        remote.encode(["quick fox"], max_tokens=9)  # nine bytes are never more tokens
        remote.encode(["quick fox " * 20], max_tokens=64)  # the model reads no more anyway
        assert caplog.messages == []
        remote.encode(["quick foxes"], max_tokens=9)
        remote.encode(["quick foxes"], max_tokens=9)
        assert caplog.messages == [
            "max_tokens=9 is not applied: the endpoint of some-model reads texts as far as it does"
        ]
        with pytest.raises(InputError, match="max_tokens must be at least 1; got 0"):
            remote.encode(["x"], max_tokens=0)
