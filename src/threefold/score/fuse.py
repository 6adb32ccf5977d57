"""From several scores of a document to one: weighted sum, reciprocal rank fusion, distribution based fusion.

The weighted sum is the fusion of the BGE-M3 paper. It takes complete scores: a candidate that one list lacks
must be scored by the caller, not counted as 0 (the published runs count it as 0).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from threefold.config import Settings
from threefold.errors import ConfigError, InputError, NumericalError, ShapeError
from threefold.score.top import ranked
from threefold.types import REPRESENTATIONS, Floats, Representation

#: Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet (SIGIR 2009), section 2.
RRF_K: Final = 60


@dataclass(frozen=True, slots=True)
class Weights(Settings):
    """How much each score counts in the weighted sum. 0 leaves it out."""

    dense: float = 1.0
    sparse: float = 0.3
    multi: float = 1.0

    def __post_init__(self) -> None:
        for name in REPRESENTATIONS:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"the weight of {name} must be a finite number >= 0; got {value}")
        if not math.isfinite(self.total):
            raise ConfigError(f"the weights {self.dense}, {self.sparse}, {self.multi} are too large to be added")
        if not self.used:
            raise ConfigError("all weights are 0; give at least one of dense, sparse, multi a positive weight")

    @property
    def used(self) -> tuple[Representation, ...]:
        """The scores that count."""
        return tuple(name for name in REPRESENTATIONS if self[name] > 0)

    @property
    def total(self) -> float:
        """The sum of the weights, by which the weighted sum is divided."""
        return self.dense + self.sparse + self.multi

    def __getitem__(self, name: Representation) -> float:
        value: float = getattr(self, name)
        return value

    def only(self, *names: Representation) -> Weights:
        """The same weights for `names`, 0 for the rest."""
        return Weights(**{name: self[name] if name in names else 0.0 for name in REPRESENTATIONS})


#: FlagEmbedding 1.4 `BGEM3FlagModel.compute_score`, when no weights are given (inference/.../m3.py).
BGE_M3_DEFAULT: Final = Weights(1.0, 1.0, 1.0)
#: The example in the README of FlagEmbedding and on the model card of BAAI/bge-m3.
BGE_M3_README: Final = Weights(0.4, 0.2, 0.4)
#: The ensemble score that teaches the heads (FlagEmbedding finetune/.../m3/modeling.py): our default.
TRAINING: Final = Weights(1.0, 0.3, 1.0)
#: MIRACL, arXiv 2402.03216 v4, appendix: "Dense+Sparse" and "All"; All reranks the dense top 200.
MIRACL_DENSE_SPARSE: Final = Weights(1.0, 0.3, 0.0)
MIRACL_ALL: Final = Weights(1.0, 0.3, 1.0)
#: MKQA, same source; All reranks the dense top 100. The alternative is in FlagEmbedding research/C_MTEB/MKQA.
MKQA_DENSE_SPARSE: Final = Weights(1.0, 0.3, 0.0)
MKQA_ALL: Final = Weights(1.0, 0.3, 1.0)
MKQA_ALL_ALTERNATIVE: Final = Weights(1.0, 0.1, 1.0)
#: MLDR (long documents, where sparse is strong), same source; All reranks the dense top 200. The alternative is in
#: FlagEmbedding research/C_MTEB/MLDR.
MLDR_DENSE_SPARSE: Final = Weights(0.2, 0.8, 0.0)
MLDR_ALL: Final = Weights(0.15, 0.5, 0.35)
MLDR_ALL_ALTERNATIVE: Final = Weights(0.2, 0.4, 0.4)

#: Every published weight set by the name that settings and the command line use.
PUBLISHED: Final[Mapping[str, Weights]] = {
    "default": BGE_M3_DEFAULT,
    "readme": BGE_M3_README,
    "training": TRAINING,
    "miracl-dense+sparse": MIRACL_DENSE_SPARSE,
    "miracl": MIRACL_ALL,
    "mkqa-dense+sparse": MKQA_DENSE_SPARSE,
    "mkqa": MKQA_ALL,
    "mkqa-alternative": MKQA_ALL_ALTERNATIVE,
    "mldr-dense+sparse": MLDR_DENSE_SPARSE,
    "mldr": MLDR_ALL,
    "mldr-alternative": MLDR_ALL_ALTERNATIVE,
}


def weighted_sum(scores: Mapping[Representation, Floats], weights: Weights) -> Floats:
    """Sum of w_i * s_i, divided by the sum of w_i  (FlagEmbedding `compute_score`, "colbert+sparse+dense").

    scores  complete arrays of one shape for every representation that counts; others are not looked at
    return  float32, same shape; -inf stays -inf
    """
    missing = [name for name in weights.used if name not in scores]
    if missing:
        raise InputError(
            f"weight {weights[missing[0]]:g} for {missing[0]}, but it was not scored. "
            f"Compute it, or leave it out: weights.only({', '.join(map(repr, scores))})"
        )
    shapes = {scores[name].shape for name in weights.used}
    if len(shapes) > 1:
        raise ShapeError(f"scores of different shapes cannot be added: {sorted(shapes)}")
    fused = np.zeros(shapes.pop(), dtype=np.float32)
    for name in weights.used:  # scores of weight 0 may be -inf: leave them out instead of multiplying
        fused += np.float32(weights[name] / weights.total) * scores[name]
    return fused


def rrf(rankings: Sequence[Sequence[str]], *, k: float = RRF_K) -> list[tuple[str, float]]:
    """Reciprocal rank fusion: sum over lists of 1 / (k + rank), rank from 1; a list that lacks the id adds nothing.

    rankings  ids, best first; each id at most once per list
    return    (id, score), best first, ties by id ascending
    """
    if not k >= 0:  # NaN is not
        raise InputError(f"k of reciprocal rank fusion must be >= 0; got {k}")
    terms: dict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        _refuse_duplicates(ranking)
        for rank, id in enumerate(ranking, start=1):
            terms[id].append(1.0 / (k + rank))
    return ranked((id, math.fsum(parts)) for id, parts in terms.items())


def dbsf(lists: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Distribution based score fusion as Qdrant defines it (lib/segment/src/common/score_fusion.rs).

    Each list is mapped linearly so that mean - 3 sigma is 0 and mean + 3 sigma is 1 (sigma with n - 1 in the
    denominator); one score alone, or all equal, is 0.5. The mapped scores of an id are added. Nothing is
    clamped, as in Qdrant: a score beyond 3 sigma lies outside [0, 1].

    lists   (id, score) pairs; each id at most once per list
    return  (id, score), best first, ties by id ascending
    """
    terms: dict[str, list[float]] = defaultdict(list)
    for pairs in lists:
        _refuse_duplicates([id for id, _ in pairs])
        for (id, _), value in zip(pairs, _three_sigma([score for _, score in pairs]), strict=True):
            terms[id].append(value)
    return ranked((id, math.fsum(parts)) for id, parts in terms.items())


def _three_sigma(scores: list[float]) -> list[float]:
    if not all(map(math.isfinite, scores)):
        raise NumericalError("distribution based fusion needs finite scores; drop candidates that scored -inf or NaN")
    if len(scores) < 2:
        return [0.5] * len(scores)
    values = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, reach = float(values.mean()), 3.0 * float(values.std(ddof=1))
    if not math.isfinite(mean) or not math.isfinite(reach):
        raise NumericalError(f"the scores from {values.min()} to {values.max()} are too far apart for a deviation")
    low, high = mean - reach, mean + reach
    if values.min() == values.max() or low >= high:  # the second: a spread that float64 cannot resolve
        return [0.5] * len(scores)
    mapped: list[float] = ((values - low) / (high - low)).tolist()
    return mapped


def _refuse_duplicates(ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        twice = next(id for i, id in enumerate(ids) if id in ids[:i])
        raise InputError(f"id {twice!r} is twice in one ranking; a ranking names each id once")
