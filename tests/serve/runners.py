"""A runner that tests hold in their hands: it can be stopped in the middle of a batch, fail, and die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from threefold.types import Ints

#: A test that waits this long has failed; nothing is measured by it.
PATIENCE_S = 20.0


class Death(BaseException):
    """What ends a thread: no `except Exception` sees it."""


class HeldRunner:
    """Results are (wanted, ids). The first id of a text decides what happens to its batch.

    hold     while set, a batch that has begun waits for `release`
    before   called with the first ids when a batch has begun
    layers   how many layers a batch has; before each, what is more urgent runs
    layer    called in every layer with the first ids
    """

    FAIL, DIE, DIE_ONCE, LOSE = 900, 901, 902, 903

    def __init__(self) -> None:
        self.batches: list[list[int]] = []  # first ids
        self.began = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.loads = 0
        self.load_error: BaseException | None = None
        self.before: Callable[[list[int]], None] = lambda firsts: None
        self.layers = 0
        self.layer: Callable[[list[int]], None] = lambda firsts: None
        self._died: set[int] = set()

    def make(self) -> HeldRunner:
        self.loads += 1
        if self.load_error is not None:
            raise self.load_error
        return self

    def samples(self) -> tuple[Sequence[Ints], Sequence[Any]]:
        return [], []

    def run(
        self, rows: Sequence[Ints], wanted: Sequence[Any], between: Callable[[], None] | None = None
    ) -> list[tuple[Any, list[int]]]:
        firsts = [int(ids[0]) for ids in rows]
        if not firsts:
            return []
        self.batches.append(firsts)
        self.began.release()
        assert self.free.wait(PATIENCE_S)
        self.before(firsts)
        for _ in range(self.layers):
            if between is not None:
                between()
            self.layer(firsts)
        if self.FAIL in firsts:
            raise RuntimeError("secret details of the backend")
        if self.LOSE in firsts:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.DIE in firsts:
            raise Death("killed")
        if self.DIE_ONCE in firsts and self.DIE_ONCE not in self._died:
            self._died.add(self.DIE_ONCE)
            raise Death("killed once")
        return [(want, ids.tolist()) for ids, want in zip(rows, wanted, strict=True)]

    def hold(self) -> None:
        self.free.clear()

    def release(self) -> None:
        self.free.set()
