"""Locks by name: whoever works at one thing keeps nobody from another. They take memory only while they are held."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Turns(Generic[K]):
    """One thread at a time per name."""

    def __init__(self) -> None:
        self._turns: dict[K, _Turn] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of(self, name: K) -> Iterator[None]:
        """Alone with this name until the end of the block."""
        with self._lock:
            turn = self._turns.setdefault(name, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    del self._turns[name]

    def names(self) -> set[K]:
        """Those that somebody holds or waits for."""
        with self._lock:
            return set(self._turns)
