"""The most similar items of every item, exactly: blocks of one matrix product, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from threefold.types import Floats, Ints

#: Told how many items are done, of how many.
Progress = Callable[[int, int], None]

#: Numbers of a block of similarities: 128 MB in float32.
BLOCK = 2**25


def blocks(rows: Floats, progress: Progress | None = None) -> Iterator[tuple[int, Floats]]:
    """(first row, (b, n) cosines of b rows with all) for unit rows (n, d)."""
    n = len(rows)
    step = max(1, BLOCK // max(n, 1))
    for start in range(0, n, step):
        yield start, rows[start : start + step] @ rows.T
        if progress is not None:
            progress(min(start + step, n), n)


def nearest(rows: Floats, k: int, progress: Progress | None = None) -> tuple[Floats, Ints]:
    """Cosines (n, k) and numbers (n, k) of the k most similar other items, the most similar first; k < n."""
    cosines = np.empty((len(rows), k), np.float32)
    numbers = np.empty((len(rows), k), np.int64)
    for start, block in blocks(rows, progress):
        here = np.arange(len(block))
        block[here, start + here] = -np.inf
        best = np.argpartition(-block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        cosines[start : start + len(block)] = np.take_along_axis(values, order, axis=1)
        numbers[start : start + len(block)] = np.take_along_axis(best, order, axis=1)
    return cosines, numbers
