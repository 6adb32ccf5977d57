"""What every store can do. The embedded engine and the cluster engines take the same calls.

A store knows chunks and vectors; it never knows the model that made them. Scores are on the scales of
`threefold.score`: dense inner product, sparse sum of products, multi **mean** over query tokens of the
best match (engines that return the sum are divided by the number of query tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from threefold.config import Filter, Manifest
from threefold.types import REPRESENTATIONS, Chunk, Encoded, Floats, Representation


class Scored(NamedTuple):
    """A chunk id and its raw score."""

    id: str
    score: float


class Store(Protocol):
    """Named vectors `dense`, `sparse`, `multi` and a payload for each chunk."""

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        ...

    def upsert(self, chunks: Sequence[Chunk], vectors: Encoded) -> None:
        """Add or replace. When it returns, a killed process or a power loss loses nothing of it.

        A chunk twice in one call, NaN, and vectors of other dimensions are errors, and then nothing is stored.
        """
        ...

    def delete(self, where: Filter) -> int:
        """Delete the chunks that match; returns how many."""
        ...

    def search(
        self, representation: Representation, query: Encoded, k: int, where: Filter | None = None
    ) -> list[Scored]:
        """The k best chunks for the one text in `query` by one representation; ties by id, ascending.

        Sparse returns only chunks that share a term.
        """
        ...

    def score(self, query: Encoded, ids: Sequence[str]) -> Mapping[Representation, Floats]:
        """Raw scores (len(ids),) float32 of these chunks by every representation that both sides have.

        A chunk without shared terms has sparse score 0. This is what fusion uses so that no score is missing.
        """
        ...

    def fetch(self, ids: Sequence[str]) -> list[Chunk]:
        """These chunks, in this order; an unknown id is an error that names it."""
        ...

    def vectors(self, ids: Sequence[str], names: Sequence[Representation] = REPRESENTATIONS) -> Encoded:
        """The stored vectors of these chunks, in this order (compact storage is returned as float32).

        ids    at least one: the vectors of no chunks have no shape
        names  read no others: token vectors are a hundred times the rest
        """
        ...

    def scroll(self, where: Filter | None = None, batch: int = 1000) -> Iterator[Chunk]:
        """Every chunk that matches, in no particular order, in bounded memory."""
        ...

    def count(self, where: Filter | None = None) -> int:
        """How many chunks match."""
        ...

    def optimize(self) -> None:
        """Build the approximate index where the engine has one; searching is exact and slower without."""
        ...

    def snapshot(self, target: Path) -> None:
        """A consistent copy that can be opened as a collection."""
        ...

    def close(self) -> None:
        """Flush and release the lock. A closed store refuses every other call."""
        ...
