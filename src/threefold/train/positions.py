"""More positions for a network that was trained on shorter texts.

BGE-M3 goes from the 512 positions of XLM-R to 8,192 before its pre-training (arXiv 2402.03216, section 3.4); how is not
published. Here are the two usual ways: `interpolate` stretches the table, as position interpolation does (Chen et
al. 2023, arXiv 2306.15595); `copy` repeats it, so that old texts keep their vectors (Longformer: Beltagy et al. 2020,
arXiv 2004.05150, section 5). Either needs some training on long texts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from threefold.encoder.model import Model
from threefold.errors import ConfigError


def extend_positions(model: Model, max_tokens: int, how: Literal["interpolate", "copy"] = "interpolate") -> None:
    """Let the model read texts of `max_tokens` tokens, in place. Rows below the first position are kept."""
    config = model.config
    first, now = config.network.first_position, config.network.max_tokens
    if max_tokens < now:
        raise ConfigError(f"the model has {now} positions already; max_tokens must be more, got {max_tokens}")
    table = model.network.positions.weight.detach()
    used = table[first:]
    longer = _stretched(used, max_tokens) if how == "interpolate" else _repeated(used, max_tokens)
    network = replace(config.network, positions=first + max_tokens)
    model.config = replace(config, network=network, max_tokens=max_tokens)
    model.network.config = network
    model.network.positions = nn.Embedding(
        first + max_tokens, table.shape[1], _weight=torch.cat([table[:first], longer])
    )


def _stretched(rows: Tensor, count: int) -> Tensor:
    """(n, d) -> (count, d): first and last row stay the ends, the others are between their neighbours."""
    stretched: Tensor = interpolate(rows.T[None], size=count, mode="linear", align_corners=True)[0].T
    return stretched.contiguous()


def _repeated(rows: Tensor, count: int) -> Tensor:
    """(n, d) -> (count, d): the table, and the table again."""
    return rows.repeat(-(-count // len(rows)), 1)[:count]
