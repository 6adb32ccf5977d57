"""What frameworks are told of a hit, without any of them."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.fakes import FakeEncoder
from tests.integrations.frameworks import QUESTION, in_memory

from threefold.errors import InputError
from threefold.integrations.hits import check_dense, dense_rows, found, found_async, metadata_of
from threefold.text.tokenizer import Tokenizer
from threefold.types import Chunk, Hit, Quote


def test_the_metadata_of_a_document_is_kept_and_everything_of_the_hit_is_beside_it() -> None:
    given = {"source": "mine", "threefold": 3, "tags": ["a"]}
    chunk = Chunk("d", 2, 10, 14, "fox.", source="d.txt", title="D", metadata=given)
    told = metadata_of(Hit(chunk, 0.5, {"dense": 0.4}, quote=Quote("fox.", 10, 14, 0.9)))
    ours = told.pop("threefold")
    assert told == {"source": "mine", "title": "D", "tags": ["a"]}  # there is no language
    assert ours == {
        "id": "d#2",
        "document_id": "d",
        "number": 2,
        "start": 10,
        "end": 14,
        "source": "d.txt",
        "title": "D",
        "language": "",
        "content_hash": "",
        "score": 0.5,
        "scores": {"dense": 0.4},
        "quote": {"text": "fox.", "start": 10, "end": 14, "score": 0.9},
        "own": 3,
    }
    told["tags"].append("b")
    assert given == {"source": "mine", "threefold": 3, "tags": ["a"]}


def test_it_is_plain_json(encoder: FakeEncoder) -> None:
    for hit in in_memory(encoder).search(QUESTION, why=True, quote=True):
        told = metadata_of(hit)
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["threefold"]["why"]["tokens"]


def test_what_blocks_is_awaited_in_a_thread_and_what_is_awaited_does_not_block() -> None:
    threads: list[int] = []

    class Blocking:
        def search(self, query: str, **options: Any) -> list[Hit]:
            threads.append(threading.get_ident())
            return [Hit(Chunk(query, options["k"], 0, 0, ""), 1.0)]

    class Awaited:
        async def search(self, query: str, **options: Any) -> list[Hit]:
            return Blocking().search(query, **options)

    for kind in (Blocking, Awaited):
        assert asyncio.run(found_async(kind(), "q", {"k": 7}))[0].id == "q#7"
    assert [thread == threading.get_ident() for thread in threads] == [False, True]
    assert found(Blocking(), "q", {"k": 7})[0].id == "q#7"
    with pytest.raises(InputError, match="can only be awaited: call the async method"):
        found(Awaited(), "q", {"k": 7})


def test_vectors_are_the_dense_ones_and_a_model_without_them_is_refused(
    encoder: FakeEncoder, tokenizer: Tokenizer
) -> None:
    dense = encoder.encode(["a fox"]).dense
    assert dense is not None
    assert dense_rows(encoder.encode, ["a fox"]) == dense.tolist()
    assert dense_rows(encoder.encode, []) == []
    check_dense(encoder)
    with pytest.raises(InputError, match="fake makes no dense vectors"):
        check_dense(FakeEncoder(tokenizer, heads=("sparse",)))
