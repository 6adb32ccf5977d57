"""What vectors are good for besides search: similarity of pairs, classification, clustering. Knows vectors, no model.

The definitions are mteb's (arXiv 2210.07316): Spearman's correlation of cosines with the given scores, accuracy of a
logistic regression on the vectors, V-measure of k-means. Vectors are unit rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import spearmanr

from threefold.errors import EvaluationError
from threefold.types import Bools, Floats, Ints

#: Starts of k-means; the one with the least inertia counts.
STARTS: Final = 5
_ROUNDS: Final = 100


def similarity(first: Floats, second: Floats, scores: Sequence[float]) -> float:
    """Spearman's rank correlation between the cosines of pairs and the scores that people gave."""
    if len(scores) < 2 or len(set(scores)) < 2:
        raise EvaluationError("a correlation needs at least two pairs with different scores")
    cosines = np.sum(first * second, axis=1)
    if np.ptp(cosines) == 0:
        return 0.0  # a model that sees no difference has no rank order
    return float(spearmanr(cosines, scores).statistic)


def train_and_test(texts: Sequence[str], labels: Sequence[str]) -> Bools:
    """Which texts are for training: every second one of each label, by the hash of the text; the same everywhere.

    Equal texts are on one side: else training would know what it is tested on.
    """
    hashes = {text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts}
    known: set[str] = set()
    for label in sorted(set(labels)):
        of_label = {text for text, one in zip(texts, labels, strict=True) if one == label}
        known.update(sorted(of_label, key=hashes.__getitem__)[::2])
    return np.array([text in known for text in texts], dtype=np.bool_)


def accuracy(vectors: Floats, labels: Sequence[str], training: Bools) -> float:
    """Share of the other texts that a logistic regression on the training texts labels right."""
    names = sorted({label for label, on in zip(labels, training, strict=True) if on})
    if len(names) < 2 or training.all():
        raise EvaluationError("classification needs at least two labels, and texts to test on")
    known = np.array([names.index(label) if label in names else -1 for label in labels])
    weights, offsets = logistic(vectors[training], known[training], len(names))
    guessed = np.argmax(vectors[~training] @ weights + offsets, axis=1)
    return float((guessed == known[~training]).mean())  # a label that was never trained is never right


def logistic(vectors: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """Weights (d, classes) and offsets of the multinomial logistic regression with an L2 penalty of 1.

    sum over texts of -log softmax(x W + b)[label] + |W|^2 / 2        b is not penalised (scikit-learn's default)
    """
    x = vectors.astype(np.float64)
    n, d = x.shape
    target = np.zeros((n, classes))
    target[np.arange(n), labels] = 1

    def loss(flat: Floats) -> tuple[float, Floats]:
        table = flat.reshape(d + 1, classes)
        raw = x @ table[:d] + table[d]
        log = raw - logsumexp(raw, axis=1, keepdims=True)
        error = np.exp(log) - target
        slope = np.vstack([x.T @ error + table[:d], error.sum(axis=0)])
        return float(-(target * log).sum() + np.square(table[:d]).sum() / 2), slope.ravel()

    found = minimize(loss, np.zeros((d + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 1_000})
    table: Floats = found.x.reshape(d + 1, classes)
    return table[:d], table[d]


def clustering(vectors: Floats, labels: Sequence[str], seed: int = 0) -> float:
    """V-measure of k-means with as many clusters as there are labels."""
    classes = len(set(labels))
    if not 2 <= classes < len(labels):
        raise EvaluationError("clustering needs at least two labels, and more texts than labels")
    return v_measure(labels, kmeans(vectors, classes, seed).tolist())


def kmeans(vectors: Floats, k: int, seed: int = 0) -> Ints:
    """Cluster of every row: Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007), best of `STARTS`."""
    rng = np.random.default_rng(seed)
    best, least = np.zeros(len(vectors), np.int64), np.inf
    for _ in range(STARTS):
        centres = _first_centres(vectors, k, rng)
        chosen = np.full(len(vectors), -1)
        for _ in range(_ROUNDS):
            squares = _squares(vectors, centres)
            nearest = squares.argmin(axis=1)
            if (nearest == chosen).all():
                break
            chosen = nearest
            for cluster in range(k):
                if (chosen == cluster).any():  # an empty cluster keeps its centre
                    centres[cluster] = vectors[chosen == cluster].mean(axis=0)
        inertia = float(_squares(vectors, centres)[np.arange(len(vectors)), chosen].sum())
        if inertia < least:
            best, least = chosen, inertia
    return best


def v_measure(labels: Sequence[object], clusters: Sequence[object]) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg 2007)."""
    _, rows = np.unique(np.array(labels, dtype=str), return_inverse=True)
    _, columns = np.unique(np.array(clusters, dtype=str), return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    share = table / table.sum()
    of_labels, of_clusters, of_both = (_entropy(part) for part in (share.sum(1), share.sum(0), share.ravel()))
    homogeneity = 1.0 if of_labels == 0 else 1 - (of_both - of_clusters) / of_labels
    completeness = 1.0 if of_clusters == 0 else 1 - (of_both - of_labels) / of_clusters
    total = homogeneity + completeness
    return float(2 * homogeneity * completeness / total) if total > 0 else 0.0


def _entropy(shares: Floats) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _squares(vectors: Floats, centres: Floats) -> Floats:
    squares: Floats = np.maximum(
        np.square(vectors).sum(1)[:, np.newaxis] - 2 * vectors @ centres.T + np.square(centres).sum(1), 0
    )
    return squares


def _first_centres(vectors: Floats, k: int, rng: np.random.Generator) -> Floats:
    places = [int(rng.integers(len(vectors)))]
    for _ in range(k - 1):
        far = _squares(vectors, vectors[places]).min(axis=1).astype(np.float64)
        total = far.sum()
        places.append(int(rng.choice(len(vectors), p=far / total if total > 0 else None)))
    return vectors[places].astype(np.float64)
