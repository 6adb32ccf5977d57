"""Large answers: the same JSON, written while it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from threefold.serve import long, wire

DTYPES: tuple[wire.MultiDtype, ...] = ("float32", "float16", "int8", "binary")
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "a fox",
        {"a": [1, 2, 3], "b": None, 'a "quoted" name': {"c": []}},
        [floats(3)],
        [floats(40, 3), floats(0, 3), floats(1, 20)],
        {"data": [{"index": 0, "embedding": floats(200)}, {"index": 1, "embedding": floats(5)}], "usage": {}},
        {"multi": [wire.multi(floats(n, 8), dtype) for dtype in DTYPES for n in (0, 50)]},
        {"pairs": [[1, 0.5], [2, 0.25]], "weights": [floats(40)]},
    ],
)  # fmt: skip
def test_the_pieces_are_the_whole(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wire.dumps(body)
    assert b"".join(long.pieces(body)) == whole
    for module in (wire, long):
        monkeypatch.setattr(module, "PIECE", 16)
    assert b"".join(long.pieces(body)) == whole
    assert max(map(len, long.pieces(body))) < 500  # of 24 numbers, or of one row


REQUESTS = [
    ("/embed", {"inputs": ["a fox", "dog"]}),
    ("/embed_all", {"inputs": ["a quick brown fox", "dog"]}),
    ("/v1/embeddings", {"model": "fake-m3", "input": ["a fox", "dog"]}),
    ("/v1/embeddings", {"model": "fake-m3", "input": ["a fox", "dog"], "encoding_format": "base64"}),
    *(
        (
            "/v1/embeddings",
            {
                "model": "fake-m3",
                "input": ["a quick fox", "dog"],
                "embedding_types": ["dense", "sparse", "multi_vector"],
                "multi_vector_dtype": dtype,
            },
        )
        for dtype in DTYPES
    ),
    *(
        ("/pooling", {"input": ["a quick fox", "dog"], "task": task, "encoding_format": encoding})
        for task in ("embed", "token_embed", "token_classify")
        for encoding in ("float", "base64")
    ),
    ("/v1/embed", {"texts": ["a fox", "dog"]}),
    ("/v2/embed", {"model": "fake-m3", "input_type": "x", "texts": ["a fox"], "embedding_types": ["float", "ubinary"]}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_a_large_answer_says_what_a_small_one_says(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    headers = {"x-request-id": "same"}
    small = http.post(path, json=body, headers=headers)
    for module in (wire, long):
        monkeypatch.setattr(module, "PIECE", 10)
    large = http.post(path, json=body, headers=headers)
    assert small.headers["content-length"] == str(len(small.content))
    assert (large.headers.get("transfer-encoding") == "chunked") == (body.get("task") != "token_classify")
    assert large.headers["content-type"] == small.headers["content-type"] == "application/json"
    assert large.headers["x-request-id"] == "same"
    if path == "/pooling":  # it says when it was made
        assert {**large.json(), "created": 0} == {**small.json(), "created": 0}
    else:
        assert large.content == small.content


def test_others_are_answered_between_two_pieces(
    http: httpx.Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second piece is not written before another client was answered."""
    monkeypatch.setattr(long, "SEND_BYTES", 1)
    monkeypatch.setattr(long, "PIECE", 10)
    answered: list[int] = []

    def pieces(body: Any) -> Iterator[bytes]:
        yield b"["
        other = threading.Thread(
            target=lambda: answered.append(httpx.get(f"{address}/health", timeout=30.0).status_code)
        )
        other.start()
        for _ in range(10**6):
            if answered:
                break
            yield b" "
        other.join(0.0)
        yield b"]"

    monkeypatch.setattr(long, "pieces", pieces)
    assert json.loads(http.post("/embed", json={"inputs": ["a fox", "dog"]}).content) == []
    assert answered == [200]
