"""The protocol of a benchmark as an experiment: its lengths, depths and weights, within what a model can read."""

from __future__ import annotations

from typing import Any

from threefold.evaluate.tasks import Benchmark
from threefold.retrieve.experiment import Protocol, available_modes
from threefold.score import PUBLISHED
from threefold.text.protocol import ModelCard


def paper_protocol(benchmark: Benchmark, card: ModelCard, **changes: Any) -> Protocol:
    """The published settings; `changes` are settings of `Protocol` that count instead."""
    settings: dict[str, Any] = {
        "modes": available_modes(card),
        "measures": benchmark.measures,
        "weights": PUBLISHED[benchmark.weights],
        "dense_sparse": PUBLISHED[benchmark.dense_sparse],
        "multi_depth": benchmark.multi_depth,
        "max_tokens": min(benchmark.max_tokens, card.max_tokens),
        "max_query_tokens": min(benchmark.max_query_tokens, card.max_tokens),
    }
    return Protocol(**{**settings, **changes})
