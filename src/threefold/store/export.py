"""Copy any collection into a folder of the embedded engine, through the store protocol alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from threefold.store.edge import EdgeStore
from threefold.store.protocol import Store
from threefold.types import Chunk

#: Chunks that are in memory at once, with their vectors.
BATCH = 256


def export(source: Store, target: Path) -> None:
    """Write every chunk and vector of `source` to a new collection in `target`, in bounded memory."""
    with EdgeStore.create(target, source.manifest) as copy:
        for chunks in _batched(source.scroll(batch=BATCH)):
            copy.upsert(chunks, source.vectors([chunk.id for chunk in chunks]))


def _batched(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    while batch := list(islice(chunks, BATCH)):
        yield batch
