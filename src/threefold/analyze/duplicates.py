"""Near-duplicates: which items say again what an item before them says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threefold.analyze.corpus import Corpus
from threefold.analyze.neighbours import Progress, blocks
from threefold.errors import InputError
from threefold.types import Floats

#: Cosine from which two texts count as the same unless another is given: small edits are above it, other texts on the
#: same matter far below (`results/analyze.json`).
THRESHOLD = 0.9


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Item `number` is as good as item `kept`, which comes before it and is no duplicate itself."""

    number: int
    kept: int
    similarity: float


def duplicates(corpus: Corpus, threshold: float = THRESHOLD, *, progress: Progress | None = None) -> list[Duplicate]:
    """Every item that is within `threshold` of one before it that is kept, in order.

    What remains without them has no two items within the threshold, and every item that went names the most similar
    one that stayed. (Components of "is similar to" would join texts that are not, by a chain of others.)
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError(f"the threshold is a cosine above 0 and at most 1, such as {THRESHOLD}; got {threshold}")
    return _kept(corpus.dense, np.float32(threshold - 1e-6), progress)  # equal texts may be 0.9999999 to each other


def _kept(rows: Floats, threshold: np.float32, progress: Progress | None) -> list[Duplicate]:
    stays = np.ones(len(rows), bool)
    found = []
    for start, block in blocks(rows, progress):
        here = np.arange(len(block))
        block[here, start + here] = -np.inf
        for i in np.flatnonzero((block >= threshold).any(axis=1)):
            number = start + int(i)
            before = np.flatnonzero((block[i, :number] >= threshold) & stays[:number])
            if len(before):
                kept = int(before[block[i, before].argmax()])
                stays[number] = False
                found.append(Duplicate(number, kept, min(float(block[i, kept]), 1.0)))
    return found
