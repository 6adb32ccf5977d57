"""Answers of a process through its pipe: large arrays go beside the pickle, each straight into memory of its own.

    pickle                          all of a small value
    head, array bytes, array bytes  a value with large arrays

A pickle copies every byte several times on both sides; this way only the system copies (docs/log.md has what
that is worth). Memory that two processes share was little faster, and somebody has to give it back.
Knows nothing of tasks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from threefold.types import Ints

#: Bytes from which an array goes beside the pickle; for smaller ones the calls would cost more than the copies.
BESIDE = 1 << 16

#: Bytes that the system is asked to hold between writer and reader; it gives what it allows (`net.core.wmem_max`).
HELD = 4 << 20

#: Windows has no such pipes; there everything is in the pickle.
_STREAMS = hasattr(os, "readv")


class _Head(NamedTuple):
    """What goes before large arrays: the rest of the value, and their bytes."""

    pickled: bytes
    sizes: list[int]


def widen(connection: Connection) -> None:
    """Let the writer run ahead of the reader by `HELD` bytes: both change turns less often."""
    if _STREAMS:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HELD)


def send(connection: Connection, value: Any) -> None:
    """Say a value. An `OSError` says that nobody listens; after any other error nothing was sent."""
    beside: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the pickle."""
        raw = buffer.raw()
        if not _STREAMS or raw.nbytes < BESIDE:
            return True
        beside.append(raw)
        return False

    pickled = pickle.dumps(value, protocol=5, buffer_callback=keep)
    if not beside:
        connection.send_bytes(pickled)
        return
    connection.send_bytes(pickle.dumps(_Head(pickled, [raw.nbytes for raw in beside])))
    for raw in beside:
        _write(connection.fileno(), raw)


def receive(connection: Connection) -> Any:
    """The next value; each large array has memory of its own. `EOFError` at the end of the pipe."""
    value = pickle.loads(connection.recv_bytes())
    if not isinstance(value, _Head):
        return value
    return pickle.loads(value.pickled, buffers=[_read(connection.fileno(), size) for size in value.sizes])


def _write(pipe: int, left: memoryview) -> None:
    while left:
        left = left[os.write(pipe, left) :]


def _read(pipe: int, size: int) -> Ints:
    found = np.empty(size, np.uint8)  # not zeroed, and on Linux in large pages
    left: memoryview = found.data
    while left:
        got = os.readv(pipe, [left])
        if not got:
            raise EOFError
        left = left[got:]
    return found
