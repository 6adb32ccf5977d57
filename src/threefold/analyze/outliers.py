"""Items unlike the others: the mean distance to the nearest of them.

    1 - mean cosine to the k nearest, on centred vectors          Angiulli and Pizzuti, PKDD 2002

The local outlier factor and isolation forests found fewer of the strangers that were hidden (docs/log.md): the first
depends on k more, the second makes nothing of directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threefold.analyze.corpus import Corpus, centred
from threefold.analyze.neighbours import Progress, nearest
from threefold.errors import InputError

#: Neighbours whose distance counts; from 2 to 5 it makes little difference (`results/analyze.json`).
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class Outlier:
    """Item `number`, how far off it is (0 to 2), and the item most like it."""

    number: int
    score: float
    nearest: int


def outliers(
    corpus: Corpus, count: int = 10, *, neighbours: int = NEIGHBOURS, progress: Progress | None = None
) -> list[Outlier]:
    """The `count` items least like the others, the strangest first; of equals the first."""
    if count < 1 or neighbours < 1:
        raise InputError(f"count and neighbours must be at least 1; got {count} and {neighbours}")
    if len(corpus) < 3:
        raise InputError(f"{len(corpus)} items have no outliers; give at least 3")
    rows = centred(corpus.dense)
    cosines, numbers = nearest(rows, min(neighbours, len(corpus) - 1), progress)
    scores = np.maximum(1.0 - cosines.mean(axis=1), 0.0)  # the cosine of equal items may be 1.0000002
    scores[~rows.any(axis=1)] = 0.0  # the mean itself, as all are where all are equal
    order = np.argsort(-scores, kind="stable")[:count]
    return [Outlier(int(i), float(scores[i]), int(numbers[i, 0])) for i in order]
