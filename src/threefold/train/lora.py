"""Low-rank adapters on the linear layers of a network, by the package peft; merged into the weights when saved."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import torch
from torch import nn

from threefold.encoder.model import Model
from threefold.errors import MissingExtraError
from threefold.train.recipe import Lora


def add_adapters(model: Model, wanted: Lora, seed: int) -> None:
    """Freeze the network and put an adapter beside each linear layer that is named. The heads stay trainable.

    The adapters are drawn with the seed, so that every process of a run begins with the same ones. The model should be
    on the CPU: another device has other random numbers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=wanted.rank, lora_alpha=wanted.alpha, lora_dropout=0.0, target_modules=list(wanted.layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.network)  # freezes all that is not an adapter
    model.heads.requires_grad_(True)


def require_peft() -> None:
    """Say at once that the package is missing, not after the data have been read."""
    try:
        import_module("peft")
    except ImportError as error:
        raise MissingExtraError("peft", "train", "LoRA") from error


def merge_adapters(model: Model) -> None:
    """Add what the adapters learnt to the weights and take the adapters away; nothing to do without adapters."""
    for parent in list(model.network.modules()):
        for name, layer in list(parent.named_children()):
            if _is_adapter(layer):
                adapted: Any = layer
                adapted.merge()
                setattr(parent, name, adapted.get_base_layer())


def merged(model: Model) -> Model:
    """The model without adapters: itself, or a copy where there are some."""
    if not any(_is_adapter(layer) for layer in model.network.modules()):
        return model
    plain = copy.deepcopy(model)
    merge_adapters(plain)
    return plain


def _is_adapter(layer: nn.Module) -> bool:
    return hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")
