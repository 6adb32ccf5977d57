"""Values through a pipe: what comes is what was said, whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from threefold.encoder import wire
from threefold.encoder.wire import BESIDE, HELD, receive, send, widen

LARGE = np.arange(BESIDE, dtype=np.float32) / BESIDE


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    reader, writer = Pipe()
    with reader, writer:
        yield reader, writer


def passed(ends: tuple[Connection, Connection], *values: Any) -> list[Any]:
    reader, writer = ends

    def say() -> None:
        for value in values:
            send(writer, value)

    thread = threading.Thread(target=say)
    thread.start()
    found = [receive(reader) for _ in values]
    thread.join()
    return found


@pytest.mark.parametrize("streams", [True, False])
def test_arrays_of_every_kind(
    ends: tuple[Connection, Connection], streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_STREAMS", streams)
    square = LARGE.reshape(256, -1)
    arrays: list[np.ndarray[Any, Any]] = [
        LARGE,
        square.astype(np.float16),
        np.asfortranarray(square),
        square[:, ::2],
        LARGE[: BESIDE // 4],  # exactly what goes beside
        LARGE[: BESIDE // 4 - 1],
        LARGE[:0],
        np.zeros((0, 1024)),
    ]
    (found,) = passed(ends, arrays)
    for got, said in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(got, said)
        assert got.dtype == said.dtype
        assert got.flags.writeable


def test_messages_stay_apart(ends: tuple[Connection, Connection]) -> None:
    widen(ends[1])
    huge = np.ones(2 * HELD, np.uint8)  # more than the pipe holds
    first, none, second, words = passed(ends, {"a": huge, "b": LARGE}, None, [huge * 2], "words")
    assert (first["a"] == 1).all()
    np.testing.assert_array_equal(first["b"], LARGE)
    assert none is None
    assert (second[0] == 2).all()
    assert words == "words"


def test_each_array_has_memory_of_its_own(ends: tuple[Connection, Connection]) -> None:
    ((one, two),) = passed(ends, [LARGE, LARGE + 0])
    one[:] = 0
    np.testing.assert_array_equal(two, LARGE)


def test_what_cannot_be_pickled_sends_nothing(ends: tuple[Connection, Connection]) -> None:
    with pytest.raises(Exception, match="pickle"):
        send(ends[1], [LARGE, lambda: 0])
    assert passed(ends, 1) == [1]


def test_a_writer_that_ends_within_an_array(ends: tuple[Connection, Connection]) -> None:
    reader, writer = ends
    small = LARGE[: BESIDE // 4]
    send(writer, small)  # it fits into the pipe
    whole = os.read(reader.fileno(), 1 << 20)
    os.write(writer.fileno(), whole[:-1])
    writer.close()
    with pytest.raises(EOFError):
        receive(reader)
