"""Which parameters of a model are trained, and how fast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from threefold.encoder.model import Model
from threefold.errors import ConfigError
from threefold.text.tokenizer import Tokens
from threefold.train.settings import TrainSettings
from threefold.types import REPRESENTATIONS, Representation


def add_heads(model: Model, *, sparse: bool, multi_dim: int, seed: int = 0) -> None:
    """Give the model the heads that it lacks: sparse weights near 0.1, token vectors by a random orthogonal map."""
    hidden, heads = model.config.network.hidden, model.heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if sparse and heads.sparse is None:
            heads.sparse = nn.Linear(hidden, 1)
            nn.init.normal_(heads.sparse.weight, std=0.02)
            nn.init.constant_(heads.sparse.bias, 0.1)
        if multi_dim and heads.multi is None:
            heads.multi = nn.Linear(hidden, multi_dim)
            nn.init.orthogonal_(heads.multi.weight)
            nn.init.zeros_(heads.multi.bias)
    dim = 0 if heads.multi is None else heads.multi.out_features
    heads.config = replace(heads.config, sparse=heads.sparse is not None, multi_dim=dim)
    model.config = replace(model.config, heads=heads.config)


def check_lengths(model: Model, *texts: Tokens) -> None:
    """Refuse texts that the network has no positions for."""
    longest, most = max(int(one.lengths.max(initial=0)) for one in texts), model.config.network.max_tokens
    if longest > most:
        raise ConfigError(
            f"a text has {longest} tokens, the model reads at most {most}; cut the texts, or give it more positions"
        )


def trained_heads(model: Model, settings: TrainSettings) -> tuple[Representation, ...]:
    """The representations that are trained: those that are asked for, or all that the model has."""
    has = {"dense": True, "sparse": model.heads.sparse is not None, "multi": model.heads.multi is not None}
    for name in settings.heads:
        if not has[name]:
            raise ConfigError(f"heads: the model has no {name} head to train; leave {name} out")
    return tuple(name for name in REPRESENTATIONS if has[name] and name in (settings.heads or REPRESENTATIONS))


def freeze(model: Model, settings: TrainSettings) -> None:
    """Keep the parts that `freeze` names, and the heads whose representation is not trained, as they are.

    What has been frozen before, by LoRA, stays so.
    """
    parts = split_parameters(model)
    for name in settings.freeze:
        for parameter in parts[name]:
            parameter.requires_grad_(False)
    trained = trained_heads(model, settings)
    for head_name, head in (("sparse", model.heads.sparse), ("multi", model.heads.multi)):
        if head is not None and head_name not in trained:
            head.requires_grad_(False)


def split_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """All parameters by part: words, heads, body."""
    words, heads = list(model.network.words.parameters()), list(model.heads.parameters())
    known = {id(p) for p in [*words, *heads]}
    return {"words": words, "heads": heads, "body": [p for p in model.parameters() if id(p) not in known]}


def parameter_groups(model: Model, s: TrainSettings, new: nn.Module | None = None) -> list[dict[str, Any]]:
    """Groups of AdamW with their peak learning rates. Word vectors and heads do not decay.

    new  what is trained beside the model, at the rate of the heads
    """
    parts = split_parameters(model)
    if new is not None:
        parts["heads"] += list(new.parameters())
    rates = {"words": s.word_lr, "heads": s.head_lr, "body": s.body_lr}
    decay = {"words": 0.0, "heads": 0.0, "body": s.weight_decay}
    return [
        {"params": chosen, "lr": rates[name], "peak": rates[name], "weight_decay": decay[name]}
        for name, parameters in parts.items()
        if (chosen := [p for p in parameters if p.requires_grad])
    ]


def projection(model: Model, teacher_dim: int | None, seed: int) -> nn.Linear | None:
    """A learnt map into a teacher's space, where it has other dimensions; it is not part of the model."""
    hidden = model.config.network.hidden
    if teacher_dim is None or teacher_dim == hidden:
        return None
    layer = nn.Linear(hidden, teacher_dim, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0.0, hidden**-0.5, generator=torch.Generator().manual_seed(seed))
    return layer.to(next(model.parameters()).device)
