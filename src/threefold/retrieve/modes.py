"""How an experiment is run: what is compared, how deep, with which weights. The defaults are the BGE-M3 paper's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from threefold.config import Settings
from threefold.errors import ConfigError, InputError
from threefold.evaluate.measures import DEFAULT_MEASURES, Measure
from threefold.retrieve.bm25 import K1, B
from threefold.score import RRF_K, TRAINING, Weights
from threefold.text.protocol import ModelCard
from threefold.text.words import describe as describe_words
from threefold.types import REPRESENTATIONS, Representation

#: How documents are found: one of `MODES`, or `dense@N`, dense vectors cut to N dimensions (Matryoshka).
Mode = str
#: `hybrid` is the paper's "All"; `rrf` and `dbsf` fuse the three rankings instead. `bm25` counts the model's own
#: tokens, `bm25-words` the words of the task's language.
MODES: Final[tuple[Mode, ...]] = (
    "dense", "sparse", "multi", "dense+sparse", "hybrid", "bm25", "bm25-words", "rrf", "dbsf",
)  # fmt: skip
#: What is compared when nobody says otherwise.
DEFAULT_MODES: Final[tuple[Mode, ...]] = ("dense", "sparse", "multi", "dense+sparse", "hybrid", "bm25")
#: Modes that see the rankings of the three heads, not their scores side by side.
RANK_FUSION: Final[tuple[Mode, ...]] = ("rrf", "dbsf")
#: Modes that add scores by weights.
WEIGHTED: Final[tuple[Mode, ...]] = ("dense+sparse", "hybrid")
#: Modes that need no model.
LEXICAL: Final[tuple[Mode, ...]] = ("bm25", "bm25-words")

_CUT = re.compile(r"dense@([1-9][0-9]{0,4})")


def cut_of(mode: Mode) -> int | None:
    """The dimensions that `dense@N` keeps; None for every other mode."""
    match = _CUT.fullmatch(mode)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Protocol(Settings):
    """How an experiment is run.

    modes              what is compared
    measures           what is measured
    weights            of `hybrid`, and of `dense+sparse` unless it has its own
    dense_sparse       weights of `dense+sparse`; None: `weights` without multi
    multi_depth        `multi` and `hybrid` rerank so many best documents of dense; None: they score all documents
    depth              documents kept per query
    max_tokens         of a document; None: the longest that the model reads
    max_query_tokens   of a query; None: the longest that the model reads
    """

    modes: tuple[Mode, ...] = DEFAULT_MODES
    measures: tuple[str, ...] = DEFAULT_MEASURES
    weights: Weights = TRAINING
    dense_sparse: Weights | None = None
    multi_depth: int | None = 200
    depth: int = 1000
    max_tokens: int | None = None
    max_query_tokens: int | None = None

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES and cut_of(mode) is None]
        if unknown or not self.modes or len(set(self.modes)) != len(self.modes):
            odd = f"unknown mode {unknown[0]!r}; " if unknown else ""
            raise ConfigError(
                f"{odd}modes must name one or more of {', '.join(MODES)}, dense@N, each once; got {self.modes!r}"
            )
        for name in ("multi_depth", "depth", "max_tokens", "max_query_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
        if self.dense_sparse is not None and self.dense_sparse.multi > 0:
            raise ConfigError(f"dense_sparse has the weight {self.dense_sparse.multi:g} for multi; it must be 0")
        deepest = max((Measure.parse(text).cutoff for text in self.measures), default=0)
        if deepest > self.depth:
            raise ConfigError(f"depth {self.depth} is less than the measures look at ({deepest}); raise depth")

    def weights_of(self, mode: Mode) -> Weights:
        """The weights of a fused mode."""
        if mode == "hybrid":
            return self.weights
        return self.dense_sparse or self.weights.only("dense", "sparse")

    def reranks(self, mode: Mode) -> bool:
        """Whether a mode scores only the best documents of dense."""
        return self.multi_depth is not None and mode not in RANK_FUSION and "multi" in self._used(mode)

    def needs(self, mode: Mode) -> tuple[Representation, ...]:
        """The representations that a mode is made of."""
        used = self._used(mode)
        first = "multi" in used and self.multi_depth is not None
        return tuple(name for name in REPRESENTATIONS if name in used or (first and name == "dense"))

    def describe(self, mode: Mode, language: str = "") -> str:
        """How a mode was run, for reports."""
        if mode in LEXICAL:
            what = describe_words(language) if mode == "bm25-words" else "the model's own tokens"
            return f"Lucene's BM25 (k1 {K1}, b {B}) over {what}, whole texts"
        what = "exact scores" if cut_of(mode) is None else f"exact scores of the first {cut_of(mode)} dimensions"
        if mode in WEIGHTED:
            weights = self.weights_of(mode)
            what = "weighted sum of " + ", ".join(f"{name} {weights[name]:g}" for name in weights.used)
        elif mode == "rrf":
            what = f"reciprocal rank fusion (k {RRF_K}) of dense, sparse and multi, each to rank {self.depth:,}"
        elif mode == "dbsf":
            what = f"distribution based fusion of dense, sparse and multi, each to rank {self.depth:,}"
        if mode in RANK_FUSION and self.multi_depth is not None:
            return f"{what}; multi over the dense top {self.multi_depth}"
        return f"{what}, over the dense top {self.multi_depth}" if self.reranks(mode) else f"{what}, over all documents"

    def _used(self, mode: Mode) -> tuple[Representation, ...]:
        if mode in LEXICAL:
            return ()
        if cut_of(mode) is not None:
            return ("dense",)
        if mode in WEIGHTED:
            return self.weights_of(mode).used
        return tuple(name for name in REPRESENTATIONS if name == mode or mode in RANK_FUSION)


def check_weights(mode: Mode, weights: Weights | None) -> None:
    """Refuse weights by which a mode would add nothing."""
    if weights is not None and mode not in WEIGHTED:
        raise InputError(f"mode {mode!r} adds no scores, so weights do nothing; they are of {' and '.join(WEIGHTED)}")


def available_modes(card: ModelCard) -> tuple[Mode, ...]:
    """Those of the default modes that a model can run; bm25 is over the tokens of its tokenizer, if it has one."""
    possible = [mode for mode in DEFAULT_MODES if set(Protocol().needs(mode)) <= set(card.representations)]
    return tuple(mode for mode in possible if mode != "bm25" or card.tokenizer_hash)
