"""Texts of a corpus by id: in memory while they are few, in an unnamed temporary file when they are not.

The file vanishes with the object, also after a crash. Ids stay in memory (about 150 bytes each).
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from threading import Lock
from typing import IO, Final

from threefold.errors import EvaluationError

#: Bytes of text that are kept in memory.
IN_MEMORY: Final = 1 << 30


class Texts(Mapping[str, str]):
    """{id: text} in the order in which they were added."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit, self._bytes = in_memory, 0
        self._places: dict[str, int] = {}
        self._memory: list[str] = []
        self._file: IO[bytes] | None = None
        self._starts = array("q", [0])
        self._lock = Lock()  # one position in the file for all readers

    def add(self, id: str, text: str, where: str) -> None:
        """Add a text under a new id; `where` is for the message."""
        if id in self._places:
            raise EvaluationError(f"{where}: id twice: {id!r}")
        self._places[id] = len(self._places)
        if self._file is None:
            self._memory.append(text)
            self._bytes += len(text)
            if self._bytes > self._limit:
                self._spill()
        else:
            self._write(text)

    def __getitem__(self, id: str) -> str:
        place = self._places[id]
        if self._file is None:
            return self._memory[place]
        start, stop = self._starts[place], self._starts[place + 1]
        with self._lock:
            self._file.seek(start)
            data = self._file.read(stop - start)
            self._file.seek(0, os.SEEK_END)
        return data.decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, id: object) -> bool:
        return id in self._places

    @property
    def on_disk(self) -> bool:
        """Whether the texts are in a file."""
        return self._file is not None

    def _spill(self) -> None:
        with ExitStack() as opened:
            self._file = opened.enter_context(tempfile.TemporaryFile(prefix="threefold-"))
            weakref.finalize(self, opened.pop_all().close)
        for text in self._memory:
            self._write(text)
        self._memory = []

    def _write(self, text: str) -> None:
        assert self._file is not None
        data = text.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._starts.append(self._starts[-1] + len(data))
