"""Is the difference between two systems real? Paired over queries, corrected over sets; all by scipy.

The unit is the query: averages over 18 languages are 18 numbers and say little. Test the queries of each set, then
correct over the sets with Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from threefold.errors import EvaluationError
from threefold.types import Floats

#: Random sign flips of the test and random samples of the interval; p cannot be below 1 / (RESAMPLES + 1).
RESAMPLES = 9_999


@dataclass(frozen=True, slots=True)
class Comparison:
    """System a against system b on the queries of one set.

    difference  mean of a - b
    low, high   bounds of the interval of the difference (bootstrap over queries)
    p           of the two-sided paired randomisation test (Fisher); after `holm`, corrected
    wins        queries where a is better; `losses` where b is; the rest are ties
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    queries: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Queries won, tied and lost."""
        return self.wins, self.queries - self.wins - self.losses, self.losses


def compare(a: Mapping[str, float], b: Mapping[str, float], *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare the values of one measure, query by query (`Judgement.values[measure]`)."""
    if set(a) != set(b) or not a:
        raise EvaluationError(
            f"a paired test needs the same queries on both sides; {len(a)} and {len(b)} were given, "
            f"{len(set(a) & set(b))} are in common"
        )
    differences = np.array([a[query] - b[query] for query in a])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    mean = float(differences.mean())
    low, high = interval(differences, confidence=confidence, seed=seed)
    return Comparison(mean, low, high, _randomisation(differences, seed), wins, losses, len(differences))


def interval(values: Floats, *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-query values."""
    if len(values) < 2 or np.ptp(values) == 0:  # nothing varies: every resample has the same mean
        return float(np.mean(values)), float(np.mean(values))
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons with p corrected for their number (Holm 1979, step-down Bonferroni)."""
    adjusted = holm_p([one.p for one in comparisons.values()])
    return {name: replace(one, p=p) for (name, one), p in zip(comparisons.items(), adjusted, strict=True)}


def holm_p(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest of m is multiplied by m - i + 1, kept rising, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    corrected = np.empty_like(p)
    corrected[order] = stepped
    values: list[float] = corrected.tolist()
    return values


def _randomisation(differences: Floats, seed: int) -> float:
    moved = differences[differences != 0]  # a sign flip of 0 changes nothing
    if len(moved) == 0:
        return 1.0
    if len(moved) == 1:  # both signs are equally far out
        return 1.0
    result = stats.permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
