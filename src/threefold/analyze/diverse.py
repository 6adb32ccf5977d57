"""How varied items are, and a few of them that stand for all."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np

from threefold.analyze.corpus import Corpus, centred
from threefold.errors import InputError
from threefold.types import Floats

#: Items that are compared with each other, 400 MB; of more, a sample is.
MOST = 10_000


def vendi(dense: Floats) -> float:
    """The Vendi score: the number of different items that would be as varied as these; 1 where all are equal.

    exp(- sum of l_i ln l_i) over the eigenvalues l_i of X X^T / n     Friedman and Dieng (arXiv 2210.02410), equation 1
    X^T X / n has the same ones but for zeros, and is the smaller matrix where there are more items than dimensions.

    dense  (n, d) unit rows

    >>> round(vendi(np.eye(3)), 6), round(vendi(np.ones((5, 1))), 6)
    (3.0, 1.0)
    """
    n, d = dense.shape
    if n == 0:
        raise InputError("no items have no diversity; give at least one")
    rows = dense.astype(np.float64)
    values = np.linalg.eigvalsh((rows.T @ rows if n > d else rows @ rows.T) / n)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def pick(corpus: Corpus, count: int, *, seed: int = 0) -> list[int]:
    """Numbers of `count` items of which every item has one that is like it, in the order in which they were chosen.

    Greedy facility location: the sum over all items of the cosine (centred, at least 0) to the nearest that is picked,
    at least 63 % of the best there is (Nemhauser, Wolsey and Fisher 1978). A beginning of the list is a pick as well.

    seed  which items can be picked where there are more than are compared
    """
    n = len(corpus)
    if not 1 <= count <= min(n, MOST):
        raise InputError(f"{count} of {n} items: give a number from 1 to {min(n, MOST)}")
    chosen = np.arange(n)
    if n > MOST:
        chosen = np.sort(np.random.default_rng(seed).choice(n, MOST, replace=False))
    rows = centred(corpus.dense)[chosen]
    similar = rows @ rows.T
    return [int(chosen[i]) for i in _cover(np.maximum(similar, 0.0, out=similar), count)]


def _cover(similar: Floats, count: int) -> list[int]:
    """Lazily (Minoux 1978): what an item would add only shrinks, so most need not be looked at again."""
    covered = np.zeros(len(similar), np.float32)
    heap = [(-float(total), i) for i, total in enumerate(similar.sum(axis=1))]
    heapify(heap)
    picked: list[int] = []
    while len(picked) < count:
        _, i = heappop(heap)
        gain = float(np.maximum(similar[i] - covered, 0.0).sum())
        if heap and (-gain, i) > heap[0]:
            heappush(heap, (-gain, i))
            continue
        picked.append(i)
        covered = np.maximum(covered, similar[i])
    return picked
