"""The k best with ties by id, from an engine that breaks ties as it likes."""

from __future__ import annotations

from collections.abc import Callable

from threefold.store.protocol import Scored

#: Results asked for beyond k, so that most ties at the border are seen at once.
EXTRA = 16

#: How far beyond k a tie is followed. Among more equal scores than this, the engine chooses.
MOST_EXTRA = 4096


def best(nearest: Callable[[int], list[Scored]], k: int) -> list[Scored]:
    """The k best of `nearest(limit)`, by score descending, then id ascending.

    The engine is asked for more while the last result ties with the k-th, for the rest of that tie is unseen.
    """
    extra = EXTRA
    while True:
        found = nearest(k + extra)
        found.sort(key=lambda one: (-one.score, one.id))
        whole = len(found) < k + extra or found[-1].score < found[k - 1].score
        if whole or extra >= MOST_EXTRA:
            return found[:k]
        extra = min(extra * 8, MOST_EXTRA)
